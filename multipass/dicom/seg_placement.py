"""A segment's mask from its SEG's lattice onto the scan's upright grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from multipass.dicom.ct import CT
from multipass.dicom.seg_masks import Mask
from multipass.dicom.stack import Stack, evened
from multipass.geometry.lattices import resample_lattice
from multipass.geometry.volume import Grid, Volume, axis_order, ints3
from multipass.geometry.volume import upright as to_upright

# Grids whose voxels drift apart by less than this over their whole size are the same grid.
CONGRUENT_VOXELS = 0.1
# A voxel that rounding puts onto the edge of a grid lies in it.
EDGE_VOXELS = 0.25

# The index of an array's first voxel in the scan's grid, and the array.
Piece = tuple[tuple[int, int, int], np.ndarray]


def placed(mask: Mask, grid: Grid, ct: CT | None, frame: np.ndarray) -> tuple[Piece, float]:
    """The mask on the scan's grid, and the part of it that lies outside.

    Args:
        grid: upright in the frame.
        ct: the scan, where the mask lies on its slices.
        frame: (3, 3) axes of the grid's coordinates in LPS, as columns.
    """
    nothing = (0, 0, 0), np.zeros((0, 0, 0), bool)
    if not mask.array.size:
        return nothing, 0.0
    if mask.lattice is None:
        if ct is None:
            raise AssertionError("a mask on a CT's slices comes with the CT")
        stack = ct.stack
    else:
        size = ints3(np.add(mask.start, mask.array.shape))
        stack = Stack(mask.lattice, np.arange(size[2], dtype=float), size)
    turned = stack.lattice.copy()
    turned[:3] = frame.T @ turned[:3]
    stack = replace(stack, lattice=turned)
    array, start = mask.array, mask.start
    if not stack.is_even:
        array, start = _evened(mask, stack)
    outside = 0.0
    if array.size:
        outside = _part_outside(array, start, stack.lattice, grid)
        start, array = _on_grid(array, start, stack, grid)
    low = np.maximum(start, 0)
    high = np.minimum(np.add(start, array.shape), grid.size)
    if (high <= low).any():
        return nothing, 1.0
    inside = array[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))]
    return (ints3(low), inside), outside


def _part_outside(
    array: np.ndarray, start: tuple[int, int, int], lattice: np.ndarray, grid: Grid
) -> float:
    """The part of a mask whose voxels' centres lie beyond the edges of a grid."""
    to_index = np.linalg.inv(grid.affine) @ lattice

    def is_beyond(index: np.ndarray) -> np.ndarray:
        at = (index + start) @ to_index[:3, :3].T + to_index[:3, 3]
        edge = 0.5 + EDGE_VOXELS
        return ((at < -edge) | (at > np.subtract(grid.size, 1) + edge)).any(axis=1)

    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in array.shape]), -1).reshape(-1, 3)
    if not is_beyond(ends).any():
        return 0.0
    voxels = np.argwhere(array)
    weights = array[tuple(voxels.T)]
    return float(weights[is_beyond(voxels)].sum() / weights.sum())


def _evened(mask: Mask, stack: Stack) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The mask with slices in between, as the CT has them; it ends halfway to a slice without."""
    below, above = mask.start[2], mask.start[2] + mask.array.shape[2]
    low, high = max(below - 1, 0), min(above + 1, len(stack.at))
    margin = (0, 0), (0, 0), (below - low, high - above)
    padded = np.pad(mask.array.astype(np.float32), margin)
    at = stack.at[low:high]
    start, stop = int(np.ceil(at[0])), min(int(np.rint(at[-1])) + 1, stack.size[2])
    values = evened(padded, at, start, stop - start)
    return _tight(values, (mask.start[0], mask.start[1], start), mask.array.dtype == bool)


def _tight(
    values: np.ndarray, start: tuple[int, int, int], is_binary: bool
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The bounding box of what an interpolated mask covers, a binary one cut at one half."""
    array = values >= 0.5 if is_binary else values
    found = ndimage.find_objects((array > 0).astype(np.uint8))
    if not found:
        return np.zeros((0, 0, 0), bool), start
    first = ints3(a + s.start for a, s in zip(start, found[0], strict=True))
    return array[found[0]], first


def _on_grid(array: np.ndarray, start: tuple[int, int, int], stack: Stack, grid: Grid) -> Piece:
    if stack.tilt_degrees:
        return _resampled(array, stack.lattice, start, grid)
    volume = Volume(array, stack.straight.cropped(start, ints3(array.shape)))
    if axis_order(volume.grid) is not None:
        volume = to_upright(volume)
        offset = _congruent_offset(volume.grid, grid)
        if offset is not None:
            return offset, volume.array
    return _resampled(volume.array, volume.grid.affine, (0, 0, 0), grid)


def _congruent_offset(grid: Grid, target: Grid) -> tuple[int, int, int] | None:
    """The index of `grid`'s first voxel in `target` where their voxels coincide, else None."""
    size, spacing = np.asarray(grid.size), np.asarray(target.spacing_mm)
    drift = np.abs(np.subtract(grid.spacing_mm, spacing)) * (size - 1) / spacing
    index = np.subtract(grid.origin_mm, target.origin_mm) / spacing
    off = np.abs(index - np.rint(index))
    return ints3(np.rint(index)) if (drift + off).max() < CONGRUENT_VOXELS else None


def _resampled(
    array: np.ndarray, lattice: np.ndarray, start: tuple[int, int, int], grid: Grid
) -> Piece:
    """The mask, linearly interpolated and cut at one half, on the part of `grid` around it."""
    lattice = lattice.copy()
    lattice[:3, 3] += lattice[:3, :3] @ np.subtract(start, 1)
    padded = np.pad(array.astype(np.float32), 1)
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in padded.shape]), -1).reshape(-1, 3)
    corners = ends @ lattice[:3, :3].T + lattice[:3, 3]
    at = (corners - grid.origin_mm) / grid.spacing_mm
    low = np.maximum(np.floor(at.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(at.max(axis=0)) + 1, grid.size).astype(int)
    if (high <= low).any():
        return ints3(grid.size), array[:0]
    target = grid.cropped(ints3(low), ints3(high - low))
    values = resample_lattice(padded, lattice, target, 0.0).array
    array, start = _tight(values, ints3(low), array.dtype == bool)
    return start, array
