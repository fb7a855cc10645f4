"""Finding the scans to segment below a folder: DICOM series, image files, patient files, archives.

A reference is a DICOM SEG in the same tree that names the series (or names none and lies beside a
single one), or, beside an image file, a label map of the same name with `_seg`, `-seg`, `_label`,
`-label`, `_reference` or `-reference` appended (`scan.nii.gz`, `scan_seg.nii.gz`), on the scan's
grid, its values those of the structure table.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from multipass.data.images import detached
from multipass.data.patient_files import DATASET_NAME
from multipass.data.prepare import CT_FOLDER, LANDMARK_FOLDER, SEG_FOLDER
from multipass.dicom import series as dicom
from multipass.dicom.choice import choose, unfit

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, ".pkl", ".zip")
# With the detached voxels of .nhdr and .mhd.
IGNORED_SUFFIXES = {".raw", ".zraw", ".gz", *dicom.NO_DICOM}
REFERENCE_ENDINGS = ("_seg", "-seg", "_label", "-label", "_reference", "-reference")
RESERVED_NAMES = {"summary.csv", "index.html", "con", "prn", "aux", "nul"}
MAX_NAME = 80
# Guards against archives that unpack to absurd sizes; a CT of 1000 slices is 0.5 GB.
MAX_ZIP_BYTES = 40 << 30


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
    """Cases, and what should have been one but cannot: (name, sentence)."""

    cases: list[Case] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


def find_cases(root: Path, stack: ExitStack) -> FoundCases:
    """All cases below a folder, or those in one file.

    Args:
        stack: keeps unpacked archives until it is closed.

    Raises:
        ValueError: there is no such folder or file.
    """
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder")
    found = FoundCases()
    files = [root] if root.is_file() else _files_below(root)
    for path in files:
        if path.name.lower().endswith(".zip"):
            _add_zip(path, found, stack)
        elif _stem(path) is not None and path.name != DATASET_NAME and not _is_reference(path):
            found.cases.append(Case(_stem(path) or "", path, reference_path=_reference(path)))
    known = {file for case in found.cases for file in case.files}
    unknown = [p for p in files if _stem(p) is None and p.suffix.lower() not in IGNORED_SUFFIXES]
    unknown = [p for p in unknown if p not in known]
    for unit, members in _units(root, unknown):
        _add_dicom(unit, members, found)
    found.cases = _uniquely_named(found.cases)
    return found


def _files_below(root: Path) -> list[Path]:
    """Files that are not hidden, in order; links to folders are followed once."""
    files: list[Path] = []
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
    return files


# -------------------------------------------------------------------- DICOM


def _units(root: Path, files: Sequence[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Groups of files that are searched for series together: a CTPEL patient folder; the root, if
    files lie in it directly; else each of its children."""
    units: dict[Path, list[Path]] = {}
    in_root = any(p.parent == root or p == root for p in files)
    for path in files:
        unit = root if in_root else root / path.relative_to(root).parts[0]
        for parent in path.parents:
            if parent.name in (CT_FOLDER, SEG_FOLDER, LANDMARK_FOLDER) and (
                (parent.parent / CT_FOLDER).is_dir()
            ):
                unit = parent.parent
            if parent == root:
                break
        units.setdefault(unit, []).append(path)
    yield from units.items()


def _add_dicom(unit: Path, members: list[Path], found: FoundCases) -> None:
    if (unit / CT_FOLDER).is_dir():
        held = dicom.find([unit / name for name in (CT_FOLDER, SEG_FOLDER)])
        held.ct = [s for s in held.ct if s.slices and CT_FOLDER in s.slices[0].path.parts]
    else:
        held = dicom.find(unit)
    fit = [s for s in held.ct if not unfit(s)]
    if not fit:
        if not held.seg or held.ct:
            found.refused.append((unit.name, _why_none(held)))
        return
    names = [_name_of(one, unit) for one in fit]
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


def _name_of(one: dicom.Series, unit: Path) -> str:
    """The unit's name and the path of the series' folder below it."""
    folder = Path(os.path.commonpath([piece.path.parent for piece in one.slices]))
    below = folder.relative_to(unit).parts if folder != unit and unit in folder.parents else ()
    start = unit.parent if unit.name == CT_FOLDER else unit
    named = start if start.name not in ("", "..") else start.resolve()
    return "_".join([named.name, *(p for p in below if p != CT_FOLDER)])


def _belongs(header: dicom.SegHeader, one: dicom.Series, fit: Sequence[dicom.Series]) -> bool:
    if any(s.uid == header.series_uid for s in fit):
        return header.series_uid == one.uid
    return len(fit) == 1


# ------------------------------------------------------- images and archives


def _add_zip(path: Path, found: FoundCases, stack: ExitStack) -> None:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="multipass_")))
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(item.file_size for item in archive.infolist())
            if total > MAX_ZIP_BYTES:
                raise ValueError(f"it would unpack to {total / 2**30:.0f} GiB")
            archive.extractall(folder)
    except (ValueError, RuntimeError, zipfile.BadZipFile, OSError) as error:
        found.refused.append((path.name, f"cannot be unpacked ({error})"))
        return
    inner = find_cases(folder, stack)
    for case in inner.cases:
        alone = len(inner.cases) == 1
        found.cases.append(replace(case, name=path.stem if alone else f"{path.stem}_{case.name}"))
    found.refused += [(f"{path.name}: {name}", reason) for name, reason in inner.refused]
    if not inner.cases and not inner.refused:
        found.refused.append((path.name, "no scan in it"))


def _stem(path: Path) -> str | None:
    """The name without its suffix of an image, patient file or archive; None: another file."""
    for suffix in KNOWN_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return None


def _is_reference(path: Path) -> bool:
    stem = _stem(path) or ""
    for ending in REFERENCE_ENDINGS:
        if stem.lower().endswith(ending):
            scan = stem[: -len(ending)]
            return any(_stem(p) == scan for p in path.parent.iterdir() if p != path)
    return False


def _reference(path: Path) -> Path | None:
    endings = {f"{_stem(path)}{ending}".lower() for ending in REFERENCE_ENDINGS}
    beside = sorted(p for p in path.parent.iterdir() if p.name.lower().endswith(IMAGE_SUFFIXES))
    return next((p for p in beside if (_stem(p) or "").lower() in endings), None)


def _uniquely_named(cases: Sequence[Case]) -> list[Case]:
    """The cases with names that are safe as a folder's and unique whatever the letters' case."""
    used = set(RESERVED_NAMES)
    named = []
    for case in cases:
        stem = re.sub(r"[^\w.-]+", "_", case.name).strip("._")[:MAX_NAME] or "case"
        name, count = stem, 1
        while name.lower() in used:
            count += 1
            name = f"{stem}_{count}"
        used.add(name.lower())
        named.append(replace(case, name=name))
    return named
