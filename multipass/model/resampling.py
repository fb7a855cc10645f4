"""Maps of windows, resampled into other windows or onto a scan's voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multipass.geometry.volume import Grid

LEAST_WEIGHT = 1e-3  # of a window at its own edge, where another one overlaps it


def linear_rows(
    source: torch.Tensor, target: torch.Tensor, n_source: int, n_target: int
) -> torch.Tensor:
    """Linear interpolation along one axis, as matrices.

    Args:
        source, target: (N, 2) edges in mm of the n_source and n_target voxels.

    Returns:
        (N, n_target, n_source) float64; rows of voxels outside the source are zero.
    """
    at = (_centres(target, n_target) - source[:, :1]) / (source[:, 1:] - source[:, :1])
    at = at * n_source - 0.5
    inside = (at >= -0.5) & (at <= n_source - 0.5)
    distance = at.clamp(0, n_source - 1)[:, :, None] - torch.arange(n_source, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0) * inside[:, :, None]


def _centres(edges: torch.Tensor, count: int) -> torch.Tensor:
    """(N, count) centres in mm of the voxels between (N, 2) edges."""
    steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return edges[:, :1] + steps * (edges[:, 1:] - edges[:, :1])


def between(maps: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Resamples (N, C, X, Y, Z) maps from windows over one box into windows over another.

    Args:
        source, target: (N, 2, 3) boxes.
    """
    if torch.equal(source, target):
        return maps
    rows = [
        linear_rows(source[:, :, a], target[:, :, a], n, n) for a, n in enumerate(maps.shape[2:])
    ]
    return apply_rows(maps, rows)


def apply_rows(maps: torch.Tensor, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Interpolates (N, C, X, Y, Z) maps along their three axes, by (N, n_target, n_source) rows."""
    x, y, z = (r.to(maps) for r in rows)
    maps = torch.matmul(x[:, None], maps.flatten(3)).unflatten(3, maps.shape[3:])
    maps = torch.matmul(y[:, None, None], maps)
    return torch.matmul(maps, z.transpose(1, 2)[:, None, None])


@dataclass(frozen=True)
class Blend:
    """Interpolation from windows side by side to the voxels of a box, blended where they overlap.

    A window's weight falls to its ends along each axis on which others overlap it; the weights of
    all windows sum to 1 wherever one reaches.

    Attributes:
        places: (column, row, level) of each window.
        rows: along x for each column, along y for each row and along z for each level
            (size, n) float32: linear interpolation times the weight.
    """

    places: list[tuple[int, ...]]
    rows: list[list[torch.Tensor]]

    def of_window(self, index: int) -> list[torch.Tensor]:
        """A window's rows along x, y and z."""
        return [rows[i] for rows, i in zip(self.rows, self.places[index], strict=True)]


def blend(windows: Sequence[Grid], box_mm: np.ndarray, size: Sequence[int]) -> Blend:
    """How windows of one size, one in each column, row and level, make up a box of voxels.

    Args:
        box_mm: (2, 3) edges of the `size` voxels.
    """
    boxes = np.array([window.box_mm() for window in windows])
    places, rows = [], []
    for axis in range(3):
        _, first, place = np.unique(boxes[:, 0, axis], return_index=True, return_inverse=True)
        places.append(place.ravel().tolist())
        spans = torch.as_tensor(boxes[first, :, axis])
        target = torch.as_tensor(np.array(box_mm[:, axis], np.float64))[None]
        rows.append(_blended(spans, target, windows[0].size[axis], size[axis]))
    assert np.prod([len(of_axis) for of_axis in rows]) == len(windows)
    return Blend(list(zip(*places, strict=True)), rows)


def _blended(
    spans: torch.Tensor, target: torch.Tensor, n_source: int, n_target: int
) -> list[torch.Tensor]:
    """Along one axis, for each of (N, 2) overlapping spans, (n_target, n_source) rows that together
    sum to 1 where any span reaches."""
    centres = _centres(target, n_target)
    depth = torch.minimum(centres - spans[:, :1], spans[:, 1:] - centres)
    weights = depth.clamp(min=LEAST_WEIGHT) * (depth >= 0)
    weights = weights / weights.sum(0).clamp(min=LEAST_WEIGHT)
    rows = linear_rows(spans, target.expand(len(spans), 2), n_source, n_target)
    return [row.float() for row in rows * weights[:, :, None]]


def blended_maps(
    windows: Sequence[Grid],
    maps: Sequence[Sequence[np.ndarray]],
    target: Grid,
    device: torch.device,
) -> Callable[[int], torch.Tensor]:
    """The classes' maps on an upright grid, one when it is asked for; in float32, as in training.

    Args:
        maps: of each window, class by class.

    Returns:
        From a class to its map (X, Y, Z), 0 where no window reaches.
    """
    blended = blend(windows, target.box_mm(), target.size)
    rows = [blended.of_window(index) for index in range(len(windows))]
    near = [k for k, of_window in enumerate(rows) if all(axis.any() for axis in of_window)]

    @torch.autocast(device.type, enabled=False)
    def of_class(c: int) -> torch.Tensor:
        total = torch.zeros(target.size, device=device)
        for k in near:
            one = torch.as_tensor(maps[k][c][None, None]).to(total)
            total = total + apply_rows(one, [axis[None] for axis in rows[k]])[0, 0]
        return total

    return of_class
