"""Windows: grids of 128 x 128 x 72 voxels laid over axis-aligned boxes in patient space.

A window is a `Grid` of GRID_SIZE with the identity direction. Boxes are (2, 3) arrays: the lower
and the upper corner in LPS millimetres, at voxel edges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from multipass.geometry.labelmaps import parts_of
from multipass.geometry.volume import AIR_HU, Grid, Volume, floats3, ints3, resample

GRID_SIZE = (128, 128, 72)
# Half as fine, for the first part of a training; the network halves z three times, hence 40.
COARSE_GRID_SIZE = (64, 64, 40)
# Hounsfield units that become 0 and 1: fat to dense cortical bone.
HU_RANGE = (-200.0, 1000.0)
MAX_SCAN_WINDOW_MM = 600.0
SCAN_WINDOW_OVERLAP_MM = 150.0
# 72 slices over 240 mm are 3.3 mm apart; over a whole pelvis with half of the femurs 5 mm.
MAX_CLOSE_WINDOW_MM = 240.0
CLOSE_WINDOW_OVERLAP_MM = 80.0
# Parts of a pelvis: their voxels are at most 1.9 mm in x and z; in y they take all of it but for
# thighs that are bent up.
PART_VOXEL_MM = 1.9
MAX_PART_MM = (240.0, 300.0, 140.0)
PART_OVERLAP_MM = 32.0
# Parts overlap more before their voxels become smaller than this.
FINEST_PART_VOXEL_MM = (1.2, 1.2, 1.0)
MOST_PARTS = 12
PELVIS_MARGIN_MM = 20.0
BODY_HU = -300
BODY_STEP_MM = 4.0
BODY_OPENING_STEPS = 2
BODY_PART = 1 / 3
NEARBY_MM = 50.0
BESIDE_PART = 0.1
# Of a component that counts: a speck is no pelvis.
LEAST_MM3 = 1000.0


def window_over(box_mm: np.ndarray) -> Grid:
    """The window whose 128 x 128 x 72 voxels fill the box."""
    spacing = (box_mm[1] - box_mm[0]) / np.asarray(GRID_SIZE)
    return Grid(GRID_SIZE, floats3(spacing), floats3(box_mm[0] + spacing / 2))


def body_box(volume: Volume) -> np.ndarray:
    """The box of the body in an upright CT: the largest component above -300 HU after an opening of
    8 mm, so that table, sheets, cables and most arms do not stretch it; and components of at least
    a third of its size, as below the crotch each thigh is one.

    The component is found on every n-th voxel (about 4 mm apart); the box is grown by that much and
    clipped to the scan. A scan with nothing above -300 HU gives the whole scan's box.
    """
    spacing = np.asarray(volume.grid.spacing_mm)
    steps = np.maximum(1, np.floor(BODY_STEP_MM / spacing)).astype(int)
    coarse = volume.array[tuple(slice(None, None, s) for s in steps)] > BODY_HU
    opened = ndimage.binary_opening(coarse, iterations=BODY_OPENING_STEPS)
    body = opened if opened.any() else coarse
    if not body.any():
        return volume.grid.box_mm()
    parts, sizes = parts_of(body)
    large = np.count_nonzero(sizes >= BODY_PART * sizes[0])
    spans = ndimage.find_objects(((parts > 0) & (parts <= large)).astype(np.uint8))[0]
    origin = np.asarray(volume.grid.origin_mm)
    low = origin + (np.array([s.start for s in spans]) - 1) * steps * spacing
    high = origin + np.array([s.stop for s in spans]) * steps * spacing
    return clipped(np.stack([low, high]), volume.grid.box_mm())


def window_image(volume: Volume, window: Grid, hu_range: tuple[float, float] = HU_RANGE):
    """float32 (128, 128, 72) in [0, 1]: the upright CT seen through the window, air outside."""
    low, high = hu_range
    hounsfield = resample(volume, window, outside=AIR_HU)
    return np.clip((hounsfield - low) / (high - low), 0, 1)


def clipped(box_mm: np.ndarray, limit_mm: np.ndarray) -> np.ndarray:
    return np.stack([np.maximum(box_mm[0], limit_mm[0]), np.minimum(box_mm[1], limit_mm[1])])


def scan_windows(box_mm: np.ndarray) -> list[Grid]:
    """Windows over the body's box, foot to head, each at most 600 mm tall, neighbours overlapping
    by at least 150 mm."""
    count = _fewest(_height(box_mm), MAX_SCAN_WINDOW_MM, SCAN_WINDOW_OVERLAP_MM)
    return _stacked(box_mm, min(_height(box_mm), MAX_SCAN_WINDOW_MM), count)


def close_windows(box_mm: np.ndarray) -> list[Grid]:
    """Windows over the pelvis box, foot to head, each at most 240 mm tall and all of one height,
    neighbours overlapping by 80 mm."""
    count = _fewest(_height(box_mm), MAX_CLOSE_WINDOW_MM, CLOSE_WINDOW_OVERLAP_MM)
    height = (_height(box_mm) + (count - 1) * CLOSE_WINDOW_OVERLAP_MM) / count
    return _stacked(box_mm, height, count)


def part_windows(
    box_mm: np.ndarray, voxel_mm: float = PART_VOXEL_MM, most: int | None = None
) -> list[Grid]:
    """Windows of one size over a box, side by side in rows, columns and levels that overlap by at
    least 32 mm: as few as do with windows of at most `MAX_PART_MM`.

    Where that takes more than `most`, they are larger. A box that fits into one window gets one of
    its own size. Of several, none has voxels smaller than `FINEST_PART_VOXEL_MM`.

    Args:
        box_mm: (2, 3) corners, LPS.
        voxel_mm: for smaller windows, in proportion.
        most: 12 of voxels of 1.9 mm if None, and as many more as there are more voxels.

    Returns:
        Windows by level from foot to head, in each from front to back, in each from right to left.
    """
    extent = box_mm[1] - box_mm[0]
    finest = np.asarray(FINEST_PART_VOXEL_MM) * GRID_SIZE
    scale = voxel_mm / PART_VOXEL_MM
    largest = np.maximum(np.asarray(MAX_PART_MM) * scale, finest)
    most = most or max(1, round(MOST_PARTS / scale**3))
    counts = np.array(
        [_fewest(n, m, PART_OVERLAP_MM) for n, m in zip(extent, largest, strict=True)]
    )
    while counts.prod() > most:
        # One fewer along the axis whose voxels are then the least too large.
        fewer = _part_mm(extent, np.maximum(counts - 1, 1)) / largest
        counts[np.where(counts > 1, fewer, np.inf).argmin()] -= 1
    size = np.where(counts > 1, np.maximum(_part_mm(extent, counts), finest), extent)
    starts = [np.linspace(*ends) for ends in zip(box_mm[0], box_mm[1] - size, counts, strict=True)]
    lows = (np.array([x, y, z]) for z, y, x in itertools.product(*reversed(starts)))
    return [window_over(np.stack([low, low + size])) for low in lows]


def _part_mm(extent_mm: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How long windows are along each axis that overlap no more than they must."""
    return (extent_mm + (counts - 1) * PART_OVERLAP_MM) / counts


def _height(box_mm: np.ndarray) -> float:
    return float(box_mm[1, 2] - box_mm[0, 2])


def _fewest(length_mm: float, longest_mm: float, overlap_mm: float) -> int:
    """How many windows of at most some length reach from end to end of a box."""
    return 1 + max(0, math.ceil((length_mm - longest_mm) / (longest_mm - overlap_mm)))


def _stacked(box_mm: np.ndarray, height_mm: float, count: int) -> list[Grid]:
    """Windows of one height, evenly from end to end of a box."""
    low, high = float(box_mm[0, 2]), float(box_mm[1, 2])
    windows = []
    for start in np.linspace(low, high - height_mm, count):
        box = box_mm.copy()
        box[:, 2] = start, start + height_mm
        windows.append(window_over(box))
    return windows


def stacked_grid(windows: Sequence[Grid]) -> Grid:
    """The grid over all that windows of one size cover together, as fine as they are."""
    if len(windows) == 1:
        return windows[0]
    boxes = np.array([w.box_mm() for w in windows])
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    spacing = np.asarray(windows[0].spacing_mm)
    size = np.maximum(1, np.rint((high - low) / spacing))
    return Grid(ints3(size), floats3(spacing), floats3(low + spacing / 2))


def joined(windows: Sequence[Grid], maps: Sequence[np.ndarray]) -> Volume:
    """Maps (128, 128, 72) of overlapping windows as one volume: the larger value where two windows
    overlap."""
    if len(windows) == 1:
        return Volume(maps[0], windows[0])
    grid = stacked_grid(windows)
    total = np.zeros(grid.size, np.float32)
    for window, values in zip(windows, maps, strict=True):
        start = np.subtract(window.origin_mm, grid.origin_mm) / grid.spacing_mm
        first = np.clip(np.floor(start).astype(int), 0, None)
        last = np.minimum(first + 1 + window.size, grid.size)
        place = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        part = grid.cropped(ints3(first), ints3(last - first))
        seen = resample(Volume(values, window), part, outside=0.0)
        np.maximum(total[place], seen, out=total[place])
    return Volume(total, grid)


def pelvis_box(foreground: Volume, limit_mm: np.ndarray) -> np.ndarray | None:
    """The box of what a pass found: voxels of P(foreground) > 0.5, the largest component and those
    of at least 1 cm3 that are within 50 mm of it or beside it with a tenth of its size, as below
    the crotch the other femur is; grown by 20 mm a side and clipped to the scan.

    Args:
        foreground: probabilities (or fractions) on an upright grid.
        limit_mm: the scan's box.

    Returns:
        The box, or None where no component of voxels above 0.5 has 1 cm3: a speck is no pelvis.
    """
    spacing = np.asarray(foreground.grid.spacing_mm)
    kept = _parts_of_a_pelvis(foreground.array > 0.5, spacing)
    if not kept.any():
        return None
    spans = ndimage.find_objects(kept.astype(np.uint8))[0]
    origin = np.asarray(foreground.grid.origin_mm)
    low = origin + (np.array([s.start for s in spans]) - 0.5) * spacing - PELVIS_MARGIN_MM
    high = origin + (np.array([s.stop for s in spans]) - 0.5) * spacing + PELVIS_MARGIN_MM
    return clipped(np.stack([low, high]), limit_mm)


def _parts_of_a_pelvis(found: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """The components that `pelvis_box` keeps; none where none has 1 cm3."""
    parts, sizes = parts_of(found)
    count = np.count_nonzero(sizes * spacing_mm.prod() >= LEAST_MM3)
    if count < 2:
        return parts == 1 if count else np.zeros_like(found)
    parts[parts > count] = 0
    heights = [spans[2] for spans in ndimage.find_objects(parts.astype(np.int32))]
    level = heights[0]
    beside = np.array([s.start < level.stop and level.start < s.stop for s in heights])
    distance = ndimage.distance_transform_edt(parts != 1, sampling=spacing_mm)
    nearest = ndimage.minimum(distance, parts, index=np.arange(1, count + 1))
    kept = (nearest <= NEARBY_MM) | (beside & (sizes[:count] >= BESIDE_PART * sizes[0]))
    return np.isin(parts, 1 + np.flatnonzero(kept))
