"""DICOM series in a folder: finding them, describing them by their headers.

No pixel is read here. A file is admitted by its tags; what is not admitted is kept with its reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import pydicom.config
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

MULTIFRAME_CT = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
CT_CLASSES = {CTImageStorage, *MULTIFRAME_CT}
MIN_SLICES = 3
# What people and systems leave beside scans.
NO_DICOM = {
    *(".md", ".txt", ".rtf", ".pdf", ".log", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml"),
    *(".doc", ".docx", ".xls", ".xlsx", ".xlsm", ".ppt", ".pptx", ".odt", ".ods", ".odp", ".eml"),
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".svg", ".webp", ".ico"),
    *(".avi", ".mp4", ".mov", ".wmv", ".html", ".htm", ".css", ".js", ".py", ".sh", ".bat"),
    *(".db", ".ini", ".inf", ".cfg", ".lnk", ".url", ".exe", ".dll", ".jar", ".msi", ".sha256"),
}
# Within 45 degrees of the patient's long axis.
AXIAL_COSINE = math.cos(math.radians(45))
# 16-bit values become HU: outside of these the tags are damaged.
SLOPES = (1e-3, 1e3)
MAX_INTERCEPT = 65536

# Values are checked here where they are used; pydicom's own warnings would only repeat that.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_HEADER_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID"),
    *("StudyInstanceUID", "FrameOfReferenceUID", "SeriesDescription", "SeriesNumber"),
    *("PatientID", "PatientPosition", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("RescaleSlope", "RescaleIntercept", "ReferencedSeriesSequence", "BitsStored"),
]
# A SEG's per-frame groups take long to read and are not needed.
_MULTIFRAME_TAGS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]


@dataclass(frozen=True)
class Slice:
    """One CT slice: a file, or a frame of a multi-frame file.

    Attributes:
        row_step_mm, column_step_mm: PixelSpacing, between rows and between columns.
        position_mm: ImagePositionPatient, the centre of the first pixel.
        orientation: ImageOrientationPatient, (6,) along a row, then down a column.
        slope, intercept: rescale to HU; they may differ between slices.
    """

    path: Path
    frame: int
    sop_uid: str
    rows: int
    columns: int
    row_step_mm: float
    column_step_mm: float
    position_mm: tuple[float, float, float]
    orientation: tuple[float, ...]
    slope: float
    intercept: float
    bits_stored: int = 16

    @property
    def normal(self) -> np.ndarray:
        row, column = np.asarray(self.orientation[:3]), np.asarray(self.orientation[3:])
        return np.cross(row, column)


@dataclass(frozen=True)
class Series:
    """A CT series' header facts, and why some of its files were not admitted."""

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

    @property
    def is_original(self) -> bool:
        return "DERIVED" not in self.image_type and "SECONDARY" not in self.image_type

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


@dataclass(frozen=True)
class SegHeader:
    """A DICOM SEG file's references."""

    path: Path
    uid: str
    series_uid: str
    frame_of_reference_uid: str


@dataclass
class Found:
    """What a folder holds: CT series, SEG files, other DICOM files, and files that could not be
    read, both with the reason to leave them."""

    ct: list[Series] = field(default_factory=list)
    seg: list[SegHeader] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)
    unread: list[tuple[Path, str]] = field(default_factory=list)

    def unread_beside(self, series: Series) -> list[str]:
        """A note if files that are called like the slices, in their folders, could not be read: the
        ends of the series may be missing, which the places of the other slices do not show."""
        like = {(piece.path.parent, _kind(piece.path)) for piece in series.slices}
        beside = [(path, why) for path, why in self.unread if (path.parent, _kind(path)) in like]
        if not beside:
            return []
        path, why = beside[0]
        files = "1 file" if len(beside) == 1 else f"{len(beside)} files"
        return [f"{files} beside the slices could not be read ({path.name}: {why})"]


def _kind(path: Path) -> str:
    """A file's suffix; '' also for the last number of a UID."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdecimal() else suffix


def find(roots: Path | Iterable[Path]) -> Found:
    """Read the headers of all files below the folders, or of files, and sort them into series."""
    roots = [roots] if isinstance(roots, Path) else list(roots)
    below = (p for root in roots for p in ([root] if root.is_file() else root.rglob("*")))
    found = Found()
    groups: dict[tuple[str, bool], list[tuple[Path, Dataset]]] = defaultdict(list)
    for path in sorted(p for p in below if p.is_file()):
        if path.name == "DICOMDIR" or path.name.startswith("."):
            continue
        if path.suffix.lower() in NO_DICOM:
            continue
        try:
            header = read_header(path)
            if header.get("Modality") == "SEG":
                found.seg.append(_seg_header(path, header))
            elif header.get("SOPClassUID") in CT_CLASSES and header.get("Modality") == "CT":
                localizer = "LOCALIZER" in _image_type(header)
                groups[str(header.get("SeriesInstanceUID", "")), localizer].append((path, header))
            else:
                what = f"{header.get('Modality', 'no modality')}, not a CT image"
                found.others.append((path, what))
        except ValueError as error:
            found.unread.append((path, short(error)))
        except Exception as error:  # values are decoded when they are asked for
            found.unread.append((path, f"damaged DICOM header ({short(error)})"))
    found.ct = [_series(uid, members) for (uid, _), members in sorted(groups.items())]
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


def read_dicom(path: Path, **options) -> Dataset:
    """`pydicom.dcmread` without pixels, with one kind of error.

    Raises:
        ValueError: the file is not DICOM or its header is damaged.
    """
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, **options)
    except InvalidDicomError:
        raise ValueError("not a DICOM file") from None
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise ValueError(f"damaged DICOM header ({short(error)})") from None


def short(error: Exception) -> str:
    printable = "".join(c if c.isprintable() else " " for c in str(error))
    return " ".join(printable.split())[:160] or type(error).__name__


def _image_type(header: Dataset) -> tuple[str, ...]:
    value = header.get("ImageType") or ()
    return (value,) if isinstance(value, str) else tuple(str(v).upper() for v in value)


def _seg_header(path: Path, header: Dataset) -> SegHeader:
    references = header.get("ReferencedSeriesSequence") or [Dataset()]
    return SegHeader(
        path,
        str(header.get("SOPInstanceUID", "")),
        str(references[0].get("SeriesInstanceUID", "")),
        str(header.get("FrameOfReferenceUID", "")),
    )


def _series(uid: str, members: list[tuple[Path, Dataset]]) -> Series:
    slices: list[Slice] = []
    refused: list[str] = []
    for path, header in members:
        try:
            slices += _slices(path, header)
        except ValueError as error:
            refused.append(f"{path.name}: {short(error)}")
        except Exception as error:  # malformed values surface as many kinds
            refused.append(f"{path.name}: damaged header ({short(error)})")
    first = members[0][1]
    number = str(first.get("SeriesNumber", "") or "")
    return Series(
        uid=uid,
        study_uid=str(first.get("StudyInstanceUID", "")),
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID", "")),
        image_type=_image_type(first),
        description=str(first.get("SeriesDescription", "") or ""),
        number=int(number) if number.isdecimal() else 0,
        patient_id=str(first.get("PatientID", "") or ""),
        patient_position=str(first.get("PatientPosition", "") or ""),
        slices=tuple(slices),
        refused=tuple(refused),
    )


def _slices(path: Path, header: Dataset) -> list[Slice]:
    """The file's slices, admitted by their tags.

    Raises:
        ValueError: a tag that places the pixels in the patient is absent or impossible.
    """
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise ValueError(f"{header.SamplesPerPixel} samples a pixel, a colour image")
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if header.SOPClassUID not in MULTIFRAME_CT:
        if frames != 1:
            raise ValueError(f"{frames} frames in a single-frame CT image")
        return [_slice(path, 0, header, [header])]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) != frames:
        raise ValueError(f"{frames} frames, but places for {len(per_frame)}")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    return [
        _slice(path, k, header, [_group_items(item, shared)]) for k, item in enumerate(per_frame)
    ]


_GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}


def _group_items(frame: Dataset, shared: list[Dataset]) -> Dataset:
    """A frame's functional groups (PS3.3 C.7.6.16.2) as if they were a single image's tags."""
    flat = Dataset()
    for group, keywords in _GROUPS.items():
        for owner in (frame, *shared):
            items = owner.get(group)
            if items:
                for keyword in keywords:
                    if keyword in items[0]:
                        setattr(flat, keyword, items[0][keyword].value)
                break
    return flat


def _slice(path: Path, frame: int, header: Dataset, owners: list[Dataset]) -> Slice:
    tags = owners[0]
    rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
    if rows < 2 or columns < 2:
        raise ValueError(f"an image of {columns} x {rows} pixels")
    spacing = _numbers(tags, "PixelSpacing", 2)
    position = _numbers(tags, "ImagePositionPatient", 3)
    orientation = _numbers(tags, "ImageOrientationPatient", 6)
    if min(spacing) <= 0:
        raise ValueError(f"PixelSpacing {spacing}")
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 1e-3 or abs(row @ column) > 1e-3:
        raise ValueError(f"ImageOrientationPatient {orientation} is no pair of unit vectors")
    slope = float(tags.get("RescaleSlope", 1) if tags.get("RescaleSlope") is not None else 1)
    intercept = float(tags.get("RescaleIntercept") or 0)
    if not (SLOPES[0] <= slope <= SLOPES[1] and abs(intercept) <= MAX_INTERCEPT):
        raise ValueError(f"rescale slope {slope:g}, intercept {intercept:g}")
    return Slice(
        path=path,
        frame=frame,
        sop_uid=str(header.get("SOPInstanceUID", "")),
        rows=rows,
        columns=columns,
        row_step_mm=spacing[0],
        column_step_mm=spacing[1],
        position_mm=(position[0], position[1], position[2]),
        orientation=tuple(np.concatenate([row / lengths[0], column / lengths[1]]).tolist()),
        slope=slope,
        intercept=intercept,
        bits_stored=int(header.get("BitsStored") or 16),
    )


def _numbers(tags: Dataset, keyword: str, count: int) -> list[float]:
    value = tags.get(keyword)
    values = [] if value is None else [float(v) for v in np.atleast_1d(value)]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(f"no {keyword}" if not values else f"{keyword} {values}")
    return values
