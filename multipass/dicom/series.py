"""DICOM series in a folder: finding them, describing them by their headers.

No pixel is read here. A file is admitted by its tags; what is not admitted is kept with its reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from multipass.dicom.headers import NOT_DICOM, image_type, read_dicom, short, text
from multipass.dicom.seg_header import (
    SEG_TAGS,
    SegHeader,
    is_seg,
    is_structure_set,
    seg_header,
    why_no_seg,
)
from multipass.dicom.slices import MULTIFRAME_CT, Slice, slices_of, why_no_ct
from multipass.files import files_below
from multipass.terminal import is_out_of_memory

MIN_SLICES = 3
# What people and systems leave beside scans.
NO_DICOM = {
    *(".md", ".txt", ".rtf", ".pdf", ".log", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml"),
    *(".doc", ".docx", ".xls", ".xlsx", ".xlsm", ".ppt", ".pptx", ".odt", ".ods", ".odp", ".eml"),
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".svg", ".webp", ".ico"),
    *(".avi", ".mp4", ".mov", ".wmv", ".html", ".htm", ".css", ".js", ".py", ".sh", ".bat"),
    *(".db", ".ini", ".inf", ".cfg", ".lnk", ".url", ".exe", ".dll", ".jar", ".msi", ".sha256"),
}
DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
# Within 45 degrees of the patient's long axis.
AXIAL_COSINE = math.cos(math.radians(45))

_HEADER_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID"),
    *("StudyInstanceUID", "FrameOfReferenceUID", "SeriesDescription", "SeriesNumber"),
    *("PatientID", "PatientPosition", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "BitsStored"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "FileSetID"),
    *SEG_TAGS,
]
# A SEG's per-frame groups take long to read and are not needed.
_MULTIFRAME_TAGS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
# What all slices of one series share, as a person says it.
SHARED = {
    "PatientID": "patients",
    "StudyInstanceUID": "studies",
    "FrameOfReferenceUID": "frames of reference",
}

Member = tuple[Path, Dataset]


@dataclass(frozen=True)
class Series:
    """A CT series' header facts, and why some of its files were not admitted.

    Attributes:
        notes: what a person should know of its files.
    """

    uid: str
    study_uid: str
    frame_of_reference_uid: str
    image_type: tuple[str, ...]
    description: str
    number: int
    patient_id: str
    patient_position: str
    slices: tuple[Slice, ...]
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_original(self) -> bool:
        return "DERIVED" not in self.image_type and "SECONDARY" not in self.image_type

    @property
    def kinds(self) -> set[tuple[Path, str]]:
        """The folders that its slices lie in, with their suffixes there."""
        return {(piece.path.parent, _kind(piece.path)) for piece in self.slices}

    @property
    def is_axial(self) -> bool:
        return bool(self.slices) and abs(self.slices[0].normal[2]) > AXIAL_COSINE

    @property
    def extent_mm(self) -> float:
        """How far its slices lie apart; 0 where bolus tracking repeats one place."""
        places = np.array([piece.position_mm for piece in self.slices])
        return float(np.ptp(places, axis=0).max()) if self.slices else 0.0

    def __str__(self) -> str:
        return f"series {self.number} '{self.description}' ({len(self.slices)} slices)"


@dataclass
class Found:
    """What a folder holds: CT series, SEG files and RT Structure Sets, other DICOM files, and files
    that could not be read, both with the reason to leave them; the other files by their series'
    UIDs, too."""

    ct: list[Series] = field(default_factory=list)
    seg: list[SegHeader] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)
    unread: list[tuple[Path, str]] = field(default_factory=list)
    no_ct: dict[str, list[tuple[Path, str]]] = field(default_factory=lambda: defaultdict(list))

    def missing_of(self, series: Series) -> list[str]:
        """Notes if files of a series are no CT images, or files that are called like its slices, in
        their folders, could not be read: the ends of the series may be missing, which the places of
        the other slices do not show."""
        like = series.kinds
        beside = [one for one in self.unread if (one[0].parent, _kind(one[0])) in like]
        stray = _note("of its series: no CT image", self.no_ct.get(series.uid, []))
        return stray + _note("beside the slices could not be read", beside)

    def unread_elsewhere(self) -> list[str]:
        """A note if damaged DICOM files lie where no slices do: a segmentation may be lost."""
        like = {kind for series in self.ct for kind in series.kinds}
        elsewhere = [
            (path, why)
            for path, why in self.unread
            if (path.parent, _kind(path)) not in like
            and (why != NOT_DICOM or path.suffix.lower() in DICOM_SUFFIXES)
        ]
        return _note("that may belong to it could not be read", elsewhere)


def _note(what: str, files: Sequence[tuple[Path, str]]) -> list[str]:
    if not files:
        return []
    path, why = files[0]
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    return [f"{count} {what} ({path.name}: {why})"]


def _kind(path: Path) -> str:
    """A file's suffix; '' also for the last number of a UID."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdecimal() else suffix


def find(roots: Path | Iterable[Path]) -> Found:
    """Read the headers of all files below the folders, or of files, and sort them into series.
    Links to folders are followed once."""
    roots = [roots] if isinstance(roots, Path) else list(roots)
    found = Found()
    groups: dict[tuple[str, bool], list[Member]] = defaultdict(list)
    below = {p for root in roots for p in ([root] if root.is_file() else files_below(root))}
    for path in sorted(p for p in below if p.is_file()):
        if path.name == "DICOMDIR" or path.suffix.lower() in NO_DICOM:
            continue
        try:
            header = read_header(path)
            if is_structure_set(header) or (is_seg(header) and not (why := why_no_seg(header))):
                found.seg.append(seg_header(path, header))
            elif not is_seg(header) and not (why := why_no_ct(header)):
                localizer = "LOCALIZER" in image_type(header)
                groups[text(header, "SeriesInstanceUID"), localizer].append((path, header))
            elif not text(header, "Modality") and "FileSetID" not in header:  # of a DICOMDIR
                found.unread.append((path, "damaged DICOM header (no Modality)"))
            else:
                found.others.append((path, why))
                if uid := text(header, "SeriesInstanceUID"):
                    found.no_ct[uid].append((path, why))
        except ValueError as error:
            found.unread.append((path, short(error)))
        except Exception as error:  # values are decoded when they are asked for
            if is_out_of_memory(error):
                raise
            found.unread.append((path, f"damaged DICOM header ({short(error)})"))
    if any(uid for uid, _ in groups):
        strays = groups.pop(("", False), []) + groups.pop(("", True), [])
        found.unread += [(p, "damaged DICOM header (no SeriesInstanceUID)") for p, _ in strays]
    for (uid, _), members in sorted(groups.items()):
        parts = _parts(members)
        found.ct += [_series(uid, part, notes) for part, notes in parts]
    return found


def read_header(path: Path) -> Dataset:
    """The tags that this module needs.

    Raises:
        ValueError: the file is not DICOM or its header is damaged.
    """
    header = read_dicom(path, specific_tags=_HEADER_TAGS)
    if header.get("SOPClassUID") in MULTIFRAME_CT:
        header = read_dicom(path, specific_tags=[*_HEADER_TAGS, *_MULTIFRAME_TAGS])
    return header


def _parts(members: Sequence[Member]) -> list[tuple[list[Member], tuple[str, ...]]]:
    """The files of one series UID, apart where they are of several patients, studies or frames of
    reference, with a note that says so."""
    keys: list[tuple[str, ...]] = [() for _ in members]
    differing = []
    for keyword, names in SHARED.items():
        values = [text(header, keyword) for _, header in members]
        said = sorted(set(values) - {""})
        # Some anonymisers give every file a study and a frame of reference of its own.
        all_differ = len(said) == len(members) >= MIN_SLICES and keyword != "PatientID"
        if len(said) > 1 and not all_differ:
            differing.append(f"{len(said)} {names}")
            keys = [(*key, value) for key, value in zip(keys, values, strict=True)]
    parts: dict[tuple[str, ...], list[Member]] = defaultdict(list)
    for key, member in zip(keys, members, strict=True):
        parts[key].append(member)
    notes = (f"its series UID stands for {' and '.join(differing)}",) if differing else ()
    return [(part, notes) for _, part in sorted(parts.items())]


def _series(uid: str, members: Sequence[Member], notes: tuple[str, ...]) -> Series:
    slices: list[Slice] = []
    refused: list[str] = []
    for path, header in members:
        try:
            slices += slices_of(path, header)
        except ValueError as error:
            refused.append(f"{path.name}: {short(error)}")
        except Exception as error:  # malformed values surface as many kinds
            if is_out_of_memory(error):
                raise
            refused.append(f"{path.name}: damaged header ({short(error)})")
    first = members[0][1]
    number = text(first, "SeriesNumber")
    frames = {text(header, "FrameOfReferenceUID") for _, header in members}
    return Series(
        uid=uid,
        study_uid=text(first, "StudyInstanceUID"),
        frame_of_reference_uid=frames.pop() if len(frames) == 1 else "",
        image_type=image_type(first),
        description=text(first, "SeriesDescription"),
        number=int(number) if number.isdecimal() else 0,
        patient_id=text(first, "PatientID"),
        patient_position=text(first, "PatientPosition"),
        slices=tuple(slices),
        refused=tuple(refused),
        notes=notes,
    )
