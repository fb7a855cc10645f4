"""DICOM SEG in: dcmqi's `segimage2itkimage`, placed on the CT's grid, as structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from multipass.dicom.ct import CT, resample_lattice
from multipass.dicom.dcmqi import read_segments
from multipass.dicom.series import SegHeader
from multipass.geometry.volume import (
    Grid,
    Volume,
    axis_order,
    ints3,
    is_cut,
    resample,
    resample_oblique,
    touches_end,
)
from multipass.structures import PELVIS, Key, Structure, by_codes, ordered

# Grids whose voxels drift apart by less than this over their whole size are the same grid.
CONGRUENT_VOXELS = 0.1
# Thirds and fifths of a voxel do not add up to 1 in float32.
SHARE_TOLERANCE = 1e-5

Identify = Callable[[dict], Sequence[Structure]]


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
        """uint8 (X, Y, Z): 1 + k where structure k has the largest part of the voxel, 0 where the
        background has; the lower value on ties."""
        labels = np.zeros(self.grid.size, np.uint8)
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


def read_reference(
    headers: Sequence[SegHeader], grid: Grid, rules: Identify = by_codes, tilted: CT | None = None
) -> Reference:
    """Read the SEG files of one scan.

    Args:
        headers: one or more files; a structure may lie in one of them only.
        grid: the scan's upright grid.
        rules: from a segment's attributes (dcmqi's meta.json) to structures: none to leave it out,
            two to split it at its midline; see `structures.read_rules`. Segments that they name
            alike become one structure, and are noted.
        tilted: the CT, where its gantry was tilted: the masks are sheared as its slices are.

    Raises:
        ValueError: a file cannot be read, a structure lies twice, codes do not tell segments apart,
            nothing lies in the scan, left and right are swapped.
    """
    pieces: dict[Key, list[tuple[tuple[int, int, int], np.ndarray]]] = {}
    labels: dict[Key, list[str]] = {}
    named: dict[Key, Structure] = {}
    notes: list[str] = []
    for header in headers:
        owned = set(pieces)
        for attributes, mask in read_segments(header.path, tilted):
            label = attributes.get("SegmentLabel", "")
            placed, outside = _placed(mask, grid, tilted)
            if outside:
                notes.append(f"'{label}' lies outside the scan with {outside:.1%} of its voxels")
            for structure, piece in _split(rules(attributes), placed):
                if structure.key in owned:
                    raise ValueError(f"{structure.name} lies in two segmentation files")
                named.setdefault(structure.key, structure)
                pieces.setdefault(structure.key, []).append(piece)
                labels.setdefault(structure.key, []).append(label)
    structures = ordered(list(named.values()))
    notes += _joined(structures, labels, rules is by_codes)
    segments = [_merged(s, pieces[s.key], grid) for s in structures]
    if not any(segment.mask.size for segment in segments):
        raise ValueError("the segmentation has no voxel inside the scan")
    segments, shared = _share_overlaps(segments, grid)
    if shared:
        notes.append(f"segments overlap in {shared} voxels, shared equally")
    _check_sides(segments, grid)
    return Reference(grid, tuple(segments), tuple(notes))


def marked_cut(reference: Reference, unseen: np.ndarray) -> Reference:
    """The reference with structures marked as cut that touch columns outside the field of view.

    Args:
        unseen: see `volume.unseen_columns`.
    """
    depth = reference.grid.size[2]
    segments = [
        replace(segment, status="cut")
        if segment.status == "complete" and is_cut(segment.mask, segment.start, depth, unseen)
        else segment
        for segment in reference.segments
    ]
    return replace(reference, segments=tuple(segments))


def _joined(
    structures: Sequence[Structure], labels: dict[Key, list[str]], only_codes: bool
) -> list[str]:
    """Notes on structures that several segments name, as the fragments of a bone do.

    Raises:
        ValueError: all that such segments have in common is a code that this product does not know,
            as where every segment is coded as 'Tissue'.
    """
    notes = []
    for structure in structures:
        names = labels[structure.key]
        if len(names) > 1:
            listed = ", ".join(f"'{name}'" for name in names)
            if only_codes and structure not in PELVIS and len(set(names)) > 1:
                raise ValueError(
                    f"segments {listed} have the same code ({structure.meaning}); --structures can "
                    "tell them apart by their labels"
                )
            notes.append(f"segments {listed} taken together as {structure.name}")
    return notes


# ----------------------------------------------------------------- placement


def _placed(
    mask: Volume, grid: Grid, tilted: CT | None
) -> tuple[tuple[tuple[int, int, int], np.ndarray], float]:
    """The mask on the scan's grid as (start, array), and the part of it that lies outside."""
    nothing = ((0, 0, 0), np.zeros((0, 0, 0), bool))
    if not mask.array.size:
        return nothing, 0.0
    offset = None if tilted else _congruent_offset(mask.grid, grid)
    if tilted:
        start, array = _sheared(mask, tilted, grid)
    elif offset is None:
        start, array = _resampled(mask, grid)
    else:
        start, array = offset, mask.array
    low = np.maximum(start, 0)
    high = np.minimum(np.add(start, array.shape), grid.size)
    if (high <= low).any():
        return nothing, 1.0
    inside = array[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))]
    total = float(array.sum())
    return (ints3(low), inside), 1 - float(inside.sum()) / total if total else 0.0


def _congruent_offset(grid: Grid, target: Grid) -> tuple[int, int, int] | None:
    """The index of `grid`'s first voxel in `target` where their voxels coincide, else None."""
    if axis_order(grid) is None:
        return None
    size, spacing = np.asarray(grid.size), np.asarray(target.spacing_mm)
    drift = np.abs(np.subtract(grid.spacing_mm, spacing)) * (size - 1) / spacing
    index = np.subtract(grid.origin_mm, target.origin_mm) / spacing
    off = np.abs(index - np.rint(index))
    return ints3(np.rint(index)) if (drift + off).max() < CONGRUENT_VOXELS else None


def _sheared(mask: Volume, tilted: CT, grid: Grid) -> tuple[tuple[int, int, int], np.ndarray]:
    """The mask on the upright grid that the tilted CT was resampled to, by the same shear."""
    lattice = tilted.lattice.copy()
    index = np.linalg.inv(tilted.stack.affine) @ (*mask.grid.origin_mm, 1)
    lattice[:3, 3] = (tilted.lattice @ np.append(np.rint(index[:3]) - 1, 1))[:3]
    padded = np.pad(mask.array.astype(np.float32), 1)
    values = resample_lattice(padded, lattice, grid, 0.0).array
    found = ndimage.find_objects((values >= 0.5).astype(np.uint8))
    if not found:
        return ints3(grid.size), mask.array
    part = values[found[0]]
    start = ints3(s.start for s in found[0])
    return start, part >= 0.5 if mask.array.dtype == bool else part


def _resampled(mask: Volume, grid: Grid) -> tuple[tuple[int, int, int], np.ndarray]:
    """The mask, linearly interpolated and cut at one half, on the part of `grid` around it."""
    low, high = mask.grid.box_mm()
    origin, spacing = np.asarray(grid.origin_mm), np.asarray(grid.spacing_mm)
    start = np.maximum(np.floor((low - origin) / spacing), 0).astype(int)
    stop = np.minimum(np.ceil((high - origin) / spacing) + 1, grid.size).astype(int)
    if (stop <= start).any():
        return ints3(grid.size), mask.array
    target = grid.cropped(ints3(start), ints3(stop - start))
    padded = Volume(
        np.pad(mask.array.astype(np.float32), 1),
        mask.grid.cropped((-1, -1, -1), ints3(np.add(mask.grid.size, 2))),
    )
    values = resample_oblique(padded, target, 0.0).array
    return ints3(start), values >= 0.5 if mask.array.dtype == bool else values


def _split(structures: Sequence[Structure], piece):
    """The pieces of one segment: itself, or halves at its midline for a (left, right) pair."""
    if len(structures) != 2:
        return [(structure, piece) for structure in structures]
    (x, y, z), mask = piece
    middle = mask.shape[0] // 2
    halves = {"right": ((x, y, z), mask[:middle]), "left": ((x + middle, y, z), mask[middle:])}
    return [(structure, halves[structure.side]) for structure in structures]


def _merged(structure: Structure, pieces: list, grid: Grid) -> Segment:
    """One segment of all pieces that name the same structure, with its status."""
    pieces = [piece for piece in pieces if piece[1].size]
    if not pieces:
        return Segment(structure, (0, 0, 0), np.zeros((0, 0, 0), bool), "empty")
    start, mask = pieces[0]
    if len(pieces) > 1:
        low = np.min([s for s, _ in pieces], axis=0)
        high = np.max([np.add(s, m.shape) for s, m in pieces], axis=0)
        mask = np.zeros(high - low, np.result_type(*[m for _, m in pieces]))
        for s, m in pieces:
            span = tuple(slice(a, a + n) for a, n in zip(s - low, m.shape, strict=True))
            np.maximum(mask[span], m, out=mask[span])
        start = ints3(low)
    status = "cut" if touches_end(start, mask.shape, grid.size) else "complete"
    return Segment(structure, start, mask, status)


def _share_overlaps(segments: list[Segment], grid: Grid) -> tuple[list[Segment], int]:
    """Divide each voxel that several segments claim equally (or in proportion, if fractional)."""
    filled = [s for s in segments if s.mask.size]
    low = np.min([s.start for s in filled], axis=0)
    high = np.max([np.add(s.start, s.mask.shape) for s in filled], axis=0)
    fractional = any(s.mask.dtype != bool for s in filled)
    total = np.zeros(high - low, np.float32 if fractional else np.uint8)
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


def _check_sides(segments: list[Segment], grid: Grid) -> None:
    """LPS x grows to the patient's left, so left structures lie at larger x than right ones.

    The table's midline structure, the sacrum, is asked only where one side is all there is: it lies
    behind the others, and beside them in a patient who lies on the side.

    Raises:
        ValueError: they do not.
    """
    centres: dict[str, list[tuple[float, str]]] = {"left": [], "right": [], "": []}
    for segment in segments:
        sided = bool(segment.structure.side) or segment.structure in PELVIS
        if segment.mask.size and sided:
            weights = segment.mask.sum(axis=(1, 2), dtype=np.float64)
            index = float(weights @ np.arange(len(weights)) / weights.sum()) + segment.start[0]
            x = grid.origin_mm[0] + index * grid.spacing_mm[0]
            centres[segment.structure.side].append((x, segment.structure.name))
    left, right, middle = centres["left"], centres["right"], centres[""]
    for left_x, left_name in left or middle:
        for right_x, right_name in right or (middle if left else []):
            if left_x < right_x:
                raise ValueError(
                    f"{left_name} lies {right_x - left_x:.0f} mm to the patient's right of the "
                    f"{right_name}: left and right are swapped"
                )
