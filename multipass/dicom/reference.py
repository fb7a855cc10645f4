"""The segmentation of a scan: its structures' masks on the scan's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multipass.geometry.field_of_view import FieldOfView
from multipass.geometry.labelmaps import centre_of
from multipass.geometry.volume import Grid, Volume, ints3, resample
from multipass.structures import PELVIS, Structure

# Thirds and fifths of a voxel do not add up to 1 in float32.
SHARE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Segment:
    """One structure's mask on the CT's grid, cropped to its bounding box.

    Attributes:
        start: index of the crop's first voxel in the CT's grid.
        mask: bool, or float32 fractions in [0, 1] where the SEG is FRACTIONAL or segments overlap.
        status: 'complete', 'cut' (touches the scan's border) or 'empty'.
    """

    structure: Structure
    start: tuple[int, int, int]
    mask: np.ndarray
    status: str

    @property
    def span(self) -> tuple[slice, slice, slice]:
        x, y, z = (slice(s, s + n) for s, n in zip(self.start, self.mask.shape, strict=True))
        return x, y, z


@dataclass(frozen=True)
class Reference:
    """The segmentation of a scan, on the scan's upright grid.

    Attributes:
        segments: in the structure table's order, disjoint or sharing voxels by fractions.
        notes: overlaps and parts outside of the scan, for the report.
    """

    grid: Grid
    segments: tuple[Segment, ...]
    notes: tuple[str, ...]

    def fractions(self, window: Grid) -> np.ndarray:
        """uint8 (K, 128, 128, 72): 255 times the part of each window voxel that is structure k."""
        result = np.zeros((len(self.segments), *window.size), np.uint8)
        for k, segment in enumerate(self.segments):
            if segment.mask.size:
                grid = self.grid.cropped(segment.start, ints3(segment.mask.shape))
                part = resample(Volume(segment.mask, grid), window)
                result[k] = np.rint(np.clip(part, 0, 1) * 255)
        return result

    def labels(self) -> np.ndarray:
        """(X, Y, Z) of the smallest unsigned type: 1 + k where structure k has the largest part of
        the voxel, 0 where the background has; the lower value on ties."""
        labels = np.zeros(self.grid.size, np.min_scalar_type(len(self.segments)))
        if all(segment.mask.dtype == bool for segment in self.segments):
            for k, segment in enumerate(self.segments):
                labels[segment.span][segment.mask] = 1 + k
            return labels
        strongest = np.ones(self.grid.size, np.float32)
        for segment in self.segments:
            strongest[segment.span] -= segment.mask
        for k, segment in enumerate(self.segments):
            wins = segment.mask > strongest[segment.span] + SHARE_TOLERANCE
            labels[segment.span][wins] = 1 + k
            strongest[segment.span][wins] = segment.mask[wins]
        return labels


def marked_cut(reference: Reference, view: FieldOfView) -> Reference:
    """The reference with structures marked as cut that go on outside the field of view."""

    def is_cut(segment: Segment) -> bool:
        grid = reference.grid.cropped(segment.start, ints3(segment.mask.shape))
        return segment.status == "complete" and view.cuts(segment.mask, grid)

    segments = [replace(s, status="cut") if is_cut(s) else s for s in reference.segments]
    return replace(reference, segments=tuple(segments))


def share_overlaps(segments: list[Segment]) -> tuple[list[Segment], int]:
    """Divide each voxel that several segments claim equally (or in proportion, if fractional)."""
    filled = [s for s in segments if s.mask.size]
    low = np.min([s.start for s in filled], axis=0)
    high = np.max([np.add(s.start, s.mask.shape) for s in filled], axis=0)
    fractional = any(s.mask.dtype != bool for s in filled)
    total = np.zeros(high - low, np.float32 if fractional else np.min_scalar_type(len(filled)))
    local = {}
    for segment in filled:
        x, y, z = (slice(s.start - o, s.stop - o) for s, o in zip(segment.span, low, strict=True))
        local[segment.structure] = (x, y, z)
        total[x, y, z] += segment.mask
    shared = int(np.count_nonzero(total > (1 + SHARE_TOLERANCE if fractional else 1)))
    if not shared:
        return segments, 0
    result = []
    for segment in segments:
        if segment.mask.size:
            claims = np.maximum(total[local[segment.structure]], 1)
            if (claims[segment.mask > 0] > 1).any():
                segment = replace(segment, mask=segment.mask.astype(np.float32) / claims)
        result.append(segment)
    return result, shared


def check_sides(segments: Sequence[Segment], grid: Grid, frame: np.ndarray) -> None:
    """LPS x grows to the patient's left, so left structures lie at larger x than right ones.

    Args:
        grid: of the segments, upright in the frame.
        frame: (3, 3) axes of the grid's coordinates in LPS, as columns.

    The table's midline structure, the sacrum, is asked only where one side is all there is: it lies
    behind the others, and beside them in a patient who lies on the side.

    Raises:
        ValueError: they do not.
    """
    centres: dict[str, list[tuple[float, str]]] = {"left": [], "right": [], "": []}
    for segment in segments:
        sided = bool(segment.structure.side) or segment.structure in PELVIS
        if segment.mask.size and sided:
            index = np.add(segment.start, centre_of(segment.mask))
            x = float(frame[0] @ (grid.origin_mm + index * grid.spacing_mm))
            centres[segment.structure.side].append((x, segment.structure.name))
    left, right, middle = centres["left"], centres["right"], centres[""]
    for left_x, left_name in left or middle:
        for right_x, right_name in right or (middle if left else []):
            if left_x < right_x:
                raise ValueError(
                    f"{left_name} lies {right_x - left_x:.0f} mm to the patient's right of the "
                    f"{right_name}: left and right are swapped"
                )
