"""Finding the scans to segment below a folder: DICOM series, image files, patient files, archives.

A reference is a DICOM SEG in the same tree that names the series (or names none and lies beside a
single one), or, beside an image file, a label map of the same name with `_seg`, `-seg`, `_label`,
`-label`, `_reference` or `-reference` appended (`scan.nii.gz`, `scan_seg.nii.gz`), on the scan's
grid, its values those of the structure table. Folders of results, known by their report.json, are
left alone.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from multipass.data.archives import SUFFIX as ZIP
from multipass.data.archives import Archive
from multipass.data.images import detached
from multipass.data.patient_files import DATASET_NAME
from multipass.data.prepare import CT_FOLDER, LANDMARK_FOLDER, SEG_FOLDER
from multipass.dicom import series as dicom
from multipass.dicom.choice import choose, unfit
from multipass.files import files_below
from multipass.terminal import one_sentence

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, ".pkl", ZIP)
# With the detached voxels of .nhdr and .mhd.
IGNORED_SUFFIXES = {".raw", ".zraw", ".gz", *dicom.NO_DICOM}
REFERENCE_ENDINGS = ("_seg", "-seg", "_label", "-label", "_reference", "-reference")
RESULTS = {"summary.csv", "index.html", "inference.log", "niivue.js"}
RESERVED_NAMES = {*RESULTS, "con", "prn", "aux", "nul"}
# In bytes: with what is added to it, a temporary name stays below 255.
MAX_NAME = 80
REPORT_NAME = "report.json"
# Archives stay unpacked from finding to segmenting up to so much in all, since unpacking takes
# time.
KEPT_BYTES = 4 << 30


@dataclass(frozen=True)
class Case:
    """One scan to segment: a DICOM series, or the file at `path`.

    Attributes:
        name: safe as a folder's name, and unique among the cases found with it.
        seg: SEG files that belong to the series.
        reference_path: a label map beside an image file.
        notes: what a person should know of the files.
    """

    name: str
    path: Path
    series: dicom.Series | None = None
    seg: tuple[dicom.SegHeader, ...] = ()
    reference_path: Path | None = None
    notes: tuple[str, ...] = ()
    archive: Archive | None = None

    @property
    def source(self) -> Path:
        """Where it lies, absolute: study.zip/folder/scan.nii.gz where it lies in an archive."""
        return self.archive.inside(self.path) if self.archive else self.path.resolve()

    @property
    def series_uid(self) -> str:
        return self.series.uid if self.series else ""

    @property
    def longer_name(self) -> str:
        """Its name with that of the folder around it, as safe as a name."""
        around = self.archive.path if self.archive else self.path
        return safe_name(f"{around.resolve().parent.name}_{self.name}")

    def at_hand(self) -> AbstractContextManager[None]:
        """Its files can be read in the block.

        Raises:
            ValueError, OSError: they lie in an archive that cannot be unpacked.
        """
        return self.archive.at_hand() if self.archive else nullcontext()

    @property
    def files(self) -> list[Path]:
        """What the scan is read from, in a fixed order."""
        if self.series is None:
            return [self.path, *detached(self.path)]
        return sorted({piece.path for piece in self.series.slices})

    @property
    def reference_files(self) -> list[Path]:
        """What the reference is read from; [] where there is none."""
        beside = self.reference_path
        labels = [beside, *detached(beside)] if beside else []
        return [*(header.path for header in self.seg), *labels]


@dataclass
class FoundCases:
    """Cases, and what should have been one but cannot: (name, sentence).

    Attributes:
        kept_bytes: of the archives that are unpacked.
    """

    cases: list[Case] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    kept_bytes: int = 0


def find_cases(root: Path, stack: ExitStack) -> FoundCases:
    """All cases below a folder, or those in one file.

    Args:
        stack: removes what is left of unpacked archives when it is closed.

    Raises:
        ValueError: there is no such folder or file.
    """
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder")
    found = FoundCases()

    def unlisted(error: OSError) -> None:
        found.refused.append((Path(error.filename).name, f"cannot be listed ({error.strerror})"))

    files = [root] if root.is_file() else _without_results(files_below(root, unlisted), root)
    stems_in = cache(_stems_in)
    for path in files:
        stem = _stem(path)
        if path.suffix.lower() == ZIP:
            _add_zip(path, found, stack)
        elif stem is not None and path.name != DATASET_NAME and not _is_reference(path, stems_in):
            found.cases.append(Case(stem, path, reference_path=_reference(path, stems_in)))
    voxels = {p for path in files if _stem(path) is not None for p in _voxels_of(path)}
    unknown = [p for p in files if _stem(p) is None and p.suffix.lower() not in IGNORED_SUFFIXES]
    unknown = [p for p in unknown if p not in voxels]
    for unit, members in _units(root, unknown):
        _add_dicom(unit, members, found, root)
    found.cases = _uniquely_named(found.cases)
    return found


def _without_results(files: Sequence[Path], root: Path) -> list[Path]:
    """The files that lie in no folder of results, unless that is the one asked for."""
    results = {p.parent for p in files if p.name == REPORT_NAME and _is_report(p)} - {root}
    if not results:
        return list(files)
    return [path for path in files if results.isdisjoint(path.parents)]


def _is_report(path: Path) -> bool:
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and {"case", "identity", "files"} <= report.keys()


# -------------------------------------------------------------------- DICOM


def _units(root: Path, files: Sequence[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Groups of files that are searched for series together: a CTPEL patient folder; the root, if
    DICOM files lie in it directly; else each of its children."""
    units: dict[Path, list[Path]] = {}
    in_root = any(p == root or (p.parent == root and _is_dicom(p)) for p in files)
    for path in files:
        unit = root if in_root or path.parent == root else root / path.relative_to(root).parts[0]
        for parent in path.parents:
            if parent.name in (CT_FOLDER, SEG_FOLDER, LANDMARK_FOLDER) and (
                (parent.parent / CT_FOLDER).is_dir()
            ):
                unit = parent.parent
            if parent == root:
                break
        units.setdefault(unit, []).append(path)
    yield from units.items()


def _is_dicom(path: Path) -> bool:
    try:
        dicom.read_header(path)
    except ValueError:
        return False
    return True


def _add_dicom(unit: Path, members: list[Path], found: FoundCases, root: Path) -> None:
    if (unit / CT_FOLDER).is_dir():
        held = dicom.find([unit / name for name in (CT_FOLDER, SEG_FOLDER)])
        held.ct = [s for s in held.ct if s.slices and CT_FOLDER in s.slices[0].path.parts]
    else:
        held = dicom.find(members)
    fit = [s for s in held.ct if not unfit(s)]
    if not fit:
        if not held.seg or held.ct:
            found.refused.append((unit.name, _why_none(held)))
        return
    names = [_name_of(one, unit, root) for one in fit]
    for one, name in zip(fit, names, strict=True):
        if names.count(name) > 1:
            name = f"{name}_{one.number}_{one.description}"
        seg = tuple(header for header in held.seg if _belongs(header, one, fit))
        notes = tuple(held.unread_beside(one))
        found.cases.append(Case(name, unit, series=one, seg=seg, notes=notes))


def _why_none(held: dicom.Found) -> str:
    try:
        choose(held)
    except ValueError as error:
        return str(error)
    raise AssertionError("a folder without a fit series has a reason")


def _name_of(one: dicom.Series, unit: Path, root: Path) -> str:
    """The path of the series' folder from the unit on; below the root, which a stray file makes the
    unit of all, without the root's own name."""
    folder = Path(os.path.commonpath([piece.path.parent for piece in one.slices]))
    below = folder.relative_to(unit).parts if folder != unit and unit in folder.parents else ()
    parts = [part for part in below if part != CT_FOLDER]
    start = unit.parent if unit.name == CT_FOLDER else unit
    named = start if start.name not in ("", "..") else start.resolve()
    return "_".join(parts if parts and unit == root else [named.name, *parts])


def _belongs(header: dicom.SegHeader, one: dicom.Series, fit: Sequence[dicom.Series]) -> bool:
    if any(s.uid == header.series_uid for s in fit):
        return header.series_uid == one.uid
    return len(fit) == 1


# ------------------------------------------------------- images and archives


def _add_zip(path: Path, found: FoundCases, stack: ExitStack) -> None:
    try:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="multipass_")))
        archive = Archive(path, folder)
        archive.unpack()
    except (ValueError, OSError, MemoryError) as error:
        found.refused.append((path.name, f"cannot be unpacked: {one_sentence(error)}"))
        return
    inner = find_cases(folder, stack)
    left_out = archive.left_out()
    for case in inner.cases:
        name = path.stem if len(inner.cases) == 1 else f"{path.stem}_{case.name}"
        notes = (*case.notes, *left_out)
        found.cases.append(replace(case, name=name, notes=notes, archive=archive))
    found.refused += [(f"{path.name}: {name}", reason) for name, reason in inner.refused]
    found.refused += [(path.name, reason) for reason in left_out]
    if not inner.cases and not inner.refused and not left_out:
        found.refused.append((path.name, "no scan in it"))
    archive.uses = len(inner.cases)
    if archive.uses and found.kept_bytes + archive.size <= KEPT_BYTES:
        found.kept_bytes += archive.size
    else:
        archive.clear()


def _stem(path: Path) -> str | None:
    """The name without its suffix of an image, patient file or archive; None: another file."""
    for suffix in KNOWN_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return None


def _voxels_of(path: Path) -> list[Path]:
    """Detached voxels of an image file; none where its header cannot be read, which its reader
    will say."""
    try:
        return detached(path)
    except (OSError, ValueError):
        return []


def _stems_in(folder: Path) -> dict[str, list[Path]]:
    """Images, patient files and archives by their names without suffix, in small letters."""
    stems = defaultdict(list)
    for path in sorted(folder.iterdir()):
        stems[(_stem(path) or "").lower()].append(path)
    return stems


def _is_reference(path: Path, stems_in: Callable[[Path], dict[str, list[Path]]]) -> bool:
    stem = _stem(path) or ""
    for ending in REFERENCE_ENDINGS:
        if stem.lower().endswith(ending):
            scan = stem[: -len(ending)]
            beside = stems_in(path.parent).get(scan.lower(), [])
            return any(_stem(p) == scan for p in beside if p != path)
    return False


def _reference(path: Path, stems_in: Callable[[Path], dict[str, list[Path]]]) -> Path | None:
    named = [f"{_stem(path)}{ending}".lower() for ending in REFERENCE_ENDINGS]
    beside = [p for name in named for p in stems_in(path.parent).get(name, [])]
    return min((p for p in beside if p.name.lower().endswith(IMAGE_SUFFIXES)), default=None)


# ------------------------------------------------------------------------ names


def safe_name(name: str) -> str:
    """As a folder may be called on any system."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._")
    return plain.encode()[:MAX_NAME].decode(errors="ignore") or "case"


def _uniquely_named(cases: Sequence[Case]) -> list[Case]:
    """The cases with names that are safe as a folder's and unique whatever the letters' case: where
    several have one name, with that of the folder around each, so that another scan of that name
    renames none."""
    counts = Counter(safe_name(case.name).lower() for case in cases)
    numbers: Counter[str] = Counter()
    used = set(RESERVED_NAMES)
    named = []
    for case in cases:
        name = stem = safe_name(case.name)
        if counts[stem.lower()] > 1:
            name = stem = case.longer_name
        while name.lower() in used:
            numbers[stem.lower()] += 1
            name = f"{stem}_{numbers[stem.lower()] + 1}"
        used.add(name.lower())
        named.append(replace(case, name=name))
    return named
