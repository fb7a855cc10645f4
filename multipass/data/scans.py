"""Finding the scans to segment below a folder: DICOM series, image files, patient files, archives.

A reference is a DICOM SEG or RT Structure Set in the same tree that belongs to the series (see
`dicom.belonging`), or, beside an image file, a label map of the same name with `_seg`, `-seg`,
`.seg`, `_label`, `-label`, `_reference` or `-reference` appended (`scan.nii.gz`,
`scan_seg.nii.gz`), on the scan's grid, its values those of the structure table; a segmentation of
3D Slicer (`scan.seg.nrrd`) says by names what its values are. Folders of results, known by their
report.json, are left alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from multipass.data.archives import SUFFIX as ZIP
from multipass.data.archives import Archive
from multipass.data.beside import Beside, stem_of, voxels_of
from multipass.data.case import Case, safe_name, uniquely_named
from multipass.data.patient_files import DATASET_NAME
from multipass.data.prepare import CT_FOLDER, LANDMARK_FOLDER, SEG_FOLDER
from multipass.dicom import series as dicom
from multipass.dicom.belonging import fitting, why_not
from multipass.dicom.choice import choose, fit
from multipass.files import files_below
from multipass.scratch import scratch_folder
from multipass.terminal import one_sentence

# With the detached voxels of .nhdr and .mhd.
IGNORED_SUFFIXES = {".raw", ".zraw", *dicom.NO_DICOM}
UNREAD_ARCHIVES = {".gz", ".tgz", ".tar", ".bz2", ".xz", ".zst", ".7z", ".rar"}
REPORT_NAME = "report.json"
# Archives stay unpacked from finding to segmenting up to so much in all, since unpacking takes
# time.
KEPT_BYTES = 4 << 30


@dataclass
class FoundCases:
    """Cases, and what should have been one but cannot: (name, sentence).

    Attributes:
        kept_bytes: of the archives that are unpacked.
    """

    cases: list[Case] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    kept_bytes: int = 0


def find_cases(root: Path, stack: ExitStack, unpack_to: Path | None = None) -> FoundCases:
    """All cases below a folder, or those in one file.

    Args:
        stack: removes what is left of unpacked archives when it is closed.
        unpack_to: a folder for archives; that of temporary files if None.

    Raises:
        ValueError: there is no such folder or file.
    """
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder")
    found = FoundCases()

    def unlisted(error: OSError) -> None:
        found.refused.append(
            (_shown(Path(error.filename), root), f"cannot be listed ({error.strerror})")
        )

    files = [root] if root.is_file() else _without_results(files_below(root, unlisted), root)
    beside = Beside()
    for path in files:
        stem = stem_of(path)
        if path.suffix.lower() == ZIP:
            _add_zip(path, found, stack, root, unpack_to)
        elif stem is not None and path.name != DATASET_NAME and not beside.is_reference(path):
            found.cases.append(Case(stem, path, reference_path=beside.reference_of(path)))
    voxels = {p for path in files if stem_of(path) is not None for p in voxels_of(path)}
    unknown = [p for p in files if stem_of(p) is None and p.suffix.lower() not in IGNORED_SUFFIXES]
    unknown = [p for p in unknown if p not in voxels]
    if packed := [p for p in unknown if p.suffix.lower() in UNREAD_ARCHIVES]:
        more = f", and {len(packed) - 1} more" if len(packed) > 1 else ""
        reason = f"a kind of archive that is not read here: unpack it or zip it{more}"
        found.refused.append((_shown(packed[0], root), reason))
        unknown = [p for p in unknown if p.suffix.lower() not in UNREAD_ARCHIVES]
    for unit, members in _units(root, unknown):
        _add_dicom(unit, members, found, root)
    found.cases = uniquely_named(found.cases)
    return found


def _without_results(files: Sequence[Path], root: Path) -> list[Path]:
    """The files that lie in no folder of results, unless that is the one asked for."""
    results = {p.parent for p in files if p.name == REPORT_NAME and _is_report(p)} - {root}
    if not results:
        return list(files)
    return [path for path in files if results.isdisjoint(path.parents)]


def _shown(path: Path, root: Path) -> str:
    """A path from the root on, which tells apart what has one name; the root itself by its name."""
    return path.relative_to(root).as_posix() if root in path.parents else path.name


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
    scans = fit(held)
    if not scans:
        if not held.seg or held.ct:
            found.refused.append((_shown(unit, root), _why_none(held)))
        return
    ours = {h: [s for s in scans if not why_not(h, s, scans)] for h in held.seg}
    names = [_name_of(one, unit, root) for one in scans]
    for one, name in zip(scans, names, strict=True):
        if names.count(name) > 1:
            name = f"{name}_{one.number}_{one.description}"
        concerned = [h for h in held.seg if not ours[h] or any(s is one for s in ours[h])]
        seg, left_out = fitting(concerned, one, scans)
        notes = (*held.missing_of(one), *held.unread_elsewhere(), *left_out)
        found.cases.append(Case(name, unit, series=one, seg=tuple(seg), notes=notes))


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


# ------------------------------------------------------- images and archives


def _add_zip(
    path: Path, found: FoundCases, stack: ExitStack, root: Path, unpack_to: Path | None
) -> None:
    called = _shown(path, root)
    try:
        folder = stack.enter_context(scratch_folder(unpack_to)) / safe_name(path.stem)
        folder.mkdir()
        archive = Archive(path, folder)
        archive.unpack()
    except (ValueError, OSError, MemoryError) as error:
        found.refused.append((called, f"cannot be unpacked: {one_sentence(error)}"))
        return
    inner = find_cases(folder, stack)
    left_out = archive.left_out()
    for case in inner.cases:
        name = path.stem if len(inner.cases) == 1 else f"{path.stem}_{case.name}"
        notes = (*case.notes, *left_out)
        found.cases.append(replace(case, name=name, notes=notes, archive=archive))
    found.refused += [(f"{called}: {name}", reason) for name, reason in inner.refused]
    found.refused += [(called, reason) for reason in left_out]
    if not inner.cases and not inner.refused and not left_out:
        found.refused.append((called, "no scan in it"))
    archive.uses = len(inner.cases)
    if archive.uses and found.kept_bytes + archive.size <= KEPT_BYTES:
        found.kept_bytes += archive.size
    else:
        archive.clear()
