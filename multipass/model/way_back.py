"""The way back: labels on a scan's own grid, whatever its orientation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from multipass.geometry.labelmaps import LEAST_PART_MM3, without_specks
from multipass.geometry.volume import (
    Grid,
    Volume,
    axis_order,
    from_upright,
    ints3,
    to_sitk,
)
from multipass.model.maps import ClassMaps, PassResult, least

SLAB = 16


def own_grid_labels(
    result: PassResult,
    grid: Grid,
    labels: np.ndarray,
    least_part_mm3: float = LEAST_PART_MM3,
) -> np.ndarray:
    """The label map on the scan's own grid: by transposing `labels`, which lie on the upright grid,
    or, for an oblique scan, from the class probabilities, without specks as `labels`."""
    if axis_order(grid) is not None:
        return from_upright(labels, grid)
    return without_specks(oblique_labels(result, grid), grid, least_part_mm3)


def oblique_labels(result: PassResult, grid: Grid) -> np.ndarray:
    """Labels on any grid: class probabilities interpolated linearly, then the likeliest class; slab
    by slab and class by class, so that memory grows with neither.

    Overlapping windows are added up, each weighted by the distance from its own end: the likeliest
    class is the same whatever the weights' sum. Outside of all windows nothing exceeds 0.
    """
    labels = np.zeros(grid.size, np.uint8)
    images = _images_of(result)
    for k in range(0, grid.size[2], SLAB):
        depth = min(SLAB, grid.size[2] - k)
        slab = grid.cropped((0, 0, k), (grid.size[0], grid.size[1], depth))
        best = np.zeros(slab.size, np.float32)
        for c, of_windows in images.items():
            value = np.sum([_on_grid(image, slab) for image in of_windows], axis=0)
            wins = value > best
            labels[:, :, k : k + depth][wins] = c
            best[wins] = value[wins]
    return labels


def _images_of(result: PassResult) -> dict[int, list[sitk.Image]]:
    """For the background and each class that is the likeliest somewhere, an image a window."""
    count = len(result.probabilities[0])
    looked = list(zip(result.windows, result.probabilities, strict=True))
    ramps = _ramps(result.windows)
    return {
        c: [_image(maps, c, window, ramps) for window, maps in looked]
        for c in range(count)
        if c == 0 or any(m.inside(c)[1].max(initial=0) >= least(count) for _, m in looked)
    }


def _ramps(windows: Sequence[Grid]) -> list[np.ndarray]:
    """Along each axis the distance of each of a window's voxels from its own end, 1 where no other
    window overlaps it."""
    several = np.ptp([window.origin_mm for window in windows], axis=0) > 0
    steps = (np.arange(n, dtype=np.float32) + 0.5 for n in windows[0].size)
    return [
        np.minimum(s, len(s) - s) if more else np.ones_like(s)
        for s, more in zip(steps, several, strict=True)
    ]


def _image(maps: ClassMaps, c: int, window: Grid, ramps: Sequence[np.ndarray]) -> sitk.Image:
    """A class's box and a voxel around it, those at the window's edges repeated once more, so that
    interpolation reaches the edges."""
    around = tuple(
        slice(max(s.start - 1, 0), min(s.stop + 1, n))
        for s, n in zip(maps.inside(c)[0], window.size, strict=True)
    )
    weights = (ramp[s] for ramp, s in zip(ramps, around, strict=True))
    part = maps[c][around].astype(np.float32) * np.einsum("i,j,k->ijk", *weights)
    padded = np.pad(part, 1, mode="edge")
    start = ints3([s.start - 1 for s in around])
    return to_sitk(Volume(padded, window.cropped(start, ints3(padded.shape))))


def _on_grid(image: sitk.Image, grid: Grid) -> np.ndarray:
    placed = grid.size, sitk.Transform(), sitk.sitkLinear
    resampled = sitk.Resample(image, *placed, grid.origin_mm, grid.spacing_mm, grid.direction, 0.0)
    return sitk.GetArrayFromImage(resampled).T
