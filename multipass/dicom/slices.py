"""CT slices by their headers: a file, or a frame of a file, is admitted by its tags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    SecondaryCaptureImageStorage,
)

from multipass.dicom.headers import numbers, text
from multipass.geometry.volume import Grid

MULTIFRAME_CT = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
CT_CLASSES = {CTImageStorage, *MULTIFRAME_CT}
# 16-bit values become HU: outside of these the tags are damaged.
SLOPES = (1e-3, 1e3)
MAX_INTERCEPT = 65536
# PS3.3 C.11.1.1.2: Hounsfield units, those of a dual-energy image, and unspecified ones, which many
# exports write for Hounsfield units; `hounsfield.implausible` judges the values.
HOUNSFIELD_TYPES = {"", "HU", "HU_MOD", "US"}
PLACING = ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
UNIT_TOLERANCE = 1e-3

_GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}


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
    sop_class: str
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

    @property
    def plane(self) -> Grid:
        """The grid of its pixels, (columns, rows, 1); the third axis is its normal."""
        axes = np.stack([*np.split(np.asarray(self.orientation), 2), self.normal], axis=1)
        spacing_mm = self.column_step_mm, self.row_step_mm, 1.0
        size = self.columns, self.rows, 1
        return Grid(size, spacing_mm, self.position_mm, tuple(axes.ravel().tolist()))


def why_no_ct(header: Dataset) -> str:
    """Why a file is no CT image, '' if it is one. Converters write CT slices as Secondary Capture;
    one that has its place in the patient is taken."""
    kind = header.get("SOPClassUID", "")
    if header.get("Modality") != "CT":
        return f"{header.get('Modality', 'no modality')}, not a CT image"
    if kind in CT_CLASSES:
        return ""
    if kind == SecondaryCaptureImageStorage:
        missing = [keyword for keyword in PLACING if not header.get(keyword)]
        return f"a Secondary Capture without {missing[0]}" if missing else ""
    return f"class {getattr(kind, 'name', '') or 'unknown'}, not a CT image"


def slices_of(path: Path, header: Dataset) -> list[Slice]:
    """The file's slices, admitted by their tags.

    Raises:
        ValueError: a tag that places the pixels in the patient is absent or impossible, or the
            values are no Hounsfield units.
    """
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise ValueError(f"{header.SamplesPerPixel} samples a pixel, a colour image")
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if header.SOPClassUID not in MULTIFRAME_CT:
        if frames != 1:
            raise ValueError(f"{frames} frames in a single-frame CT image")
        return [_slice(path, 0, header, header)]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) != frames:
        raise ValueError(f"{frames} frames, but places for {len(per_frame)}")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    return [_slice(path, k, header, _group_items(item, shared)) for k, item in enumerate(per_frame)]


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


def _slice(path: Path, frame: int, header: Dataset, tags: Dataset) -> Slice:
    rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
    if rows < 2 or columns < 2:
        raise ValueError(f"an image of {columns} x {rows} pixels")
    spacing = numbers(tags, "PixelSpacing", 2)
    position = numbers(tags, "ImagePositionPatient", 3)
    if min(spacing) <= 0:
        raise ValueError(f"PixelSpacing {spacing}")
    slope, intercept = rescale(tags)
    return Slice(
        path=path,
        frame=frame,
        sop_class=text(header, "SOPClassUID"),
        sop_uid=text(header, "SOPInstanceUID"),
        rows=rows,
        columns=columns,
        row_step_mm=spacing[0],
        column_step_mm=spacing[1],
        position_mm=(position[0], position[1], position[2]),
        orientation=unit_orientation(tags),
        slope=slope,
        intercept=intercept,
        bits_stored=int(header.get("BitsStored") or 16),
    )


def unit_orientation(tags: Dataset) -> tuple[float, ...]:
    """ImageOrientationPatient as two unit vectors at right angles, (6,).

    Raises:
        ValueError: it is no such pair.
    """
    orientation = numbers(tags, "ImageOrientationPatient", 6)
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    off = max(*(abs(length - 1) for length in lengths), abs(row @ column))
    if off > UNIT_TOLERANCE:
        raise ValueError(f"ImageOrientationPatient {orientation} is no pair of unit vectors")
    return tuple(np.concatenate([row / lengths[0], column / lengths[1]]).tolist())


def rescale(tags: Dataset) -> tuple[float, float]:
    """(slope, intercept) to Hounsfield units.

    Raises:
        ValueError: the values are none, or the figures impossible.
    """
    kind = text(tags, "RescaleType").upper()
    if kind not in HOUNSFIELD_TYPES:
        raise ValueError(f"values of RescaleType {kind}, not Hounsfield units")
    slope = float(tags.get("RescaleSlope", 1) if tags.get("RescaleSlope") is not None else 1)
    intercept = float(tags.get("RescaleIntercept") or 0)
    if not (SLOPES[0] <= slope <= SLOPES[1] and abs(intercept) <= MAX_INTERCEPT):
        raise ValueError(f"rescale slope {slope:g}, intercept {intercept:g}")
    return slope, intercept
