"""Class probabilities between windows, and from windows back to labels on the scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multipass.volume import Grid

LEAST_WEIGHT = 1e-3  # of a window at its own edge, where another one overlaps it
SLAB_SLICES = 8  # of the scan at a time: 8 x 512 x 512 x 4 bytes = 8 MiB a class


@dataclass(frozen=True)
class PassResult:
    """What one pass found in a scan.

    Attributes:
        windows: where it looked; several that overlap in z where the scan is tall.
        probabilities: for each window (1 + K, 128, 128, 72) float32.
        flags: sentences for people.
    """

    windows: list[Grid]
    probabilities: list[np.ndarray]
    flags: list[str]


def linear_rows(
    source: torch.Tensor, target: torch.Tensor, n_source: int, n_target: int
) -> torch.Tensor:
    """Linear interpolation along one axis, as matrices.

    Args:
        source, target: (N, 2) edges in mm of the n_source and n_target voxels.

    Returns:
        (N, n_target, n_source) float64; rows of voxels outside the source are zero.
    """
    centres = (torch.arange(n_target, dtype=torch.float64) + 0.5) / n_target
    centres = target[:, :1] + centres * (target[:, 1:] - target[:, :1])
    at = (centres - source[:, :1]) / (source[:, 1:] - source[:, :1]) * n_source - 0.5
    inside = (at >= -0.5) & (at <= n_source - 0.5)
    distance = at.clamp(0, n_source - 1)[:, :, None] - torch.arange(n_source, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0) * inside[:, :, None]


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
    x, y, z = (r.to(maps) for r in rows)
    maps = torch.matmul(x[:, None], maps.flatten(3)).unflatten(3, maps.shape[3:])
    maps = torch.matmul(y[:, None, None], maps)
    return torch.matmul(maps, z.transpose(1, 2)[:, None, None])


def shared_rows(windows: Sequence[Grid], box: np.ndarray, size: Sequence[int]) -> list:
    """Interpolation from windows that overlap in z to the voxels of a box, blended.

    Returns:
        (x rows, y rows, [z rows of each window]), each (size, n) float32; the z rows of all windows
        together sum to 1 where any window reaches.
    """
    target = torch.as_tensor(np.asarray(box, dtype=np.float64))[None]
    boxes = [torch.as_tensor(w.box_mm())[None] for w in windows]
    n = windows[0].size
    x, y = (linear_rows(boxes[0][:, :, a], target[:, :, a], n[a], size[a])[0] for a in (0, 1))
    centres = (torch.arange(size[2], dtype=torch.float64) + 0.5) / size[2]
    centres = target[0, 0, 2] + centres * (target[0, 1, 2] - target[0, 0, 2])
    depth = [torch.minimum(centres - b[0, 0, 2], b[0, 1, 2] - centres) for b in boxes]
    weights = [d.clamp(min=LEAST_WEIGHT) * (d >= 0) for d in depth]
    total = torch.stack(weights).sum(0).clamp(min=LEAST_WEIGHT)
    z = [
        linear_rows(b[:, :, 2], target[:, :, 2], n[2], size[2])[0] * (w / total)[:, None]
        for b, w in zip(boxes, weights, strict=True)
    ]
    return [x.float(), y.float(), [rows.float() for rows in z]]


def native_labels(result: PassResult, grid: Grid) -> np.ndarray:
    """Labels on a scan's grid: probabilities interpolated linearly, then the likeliest class.

    Slices go in slabs and classes one after the other, each only where it can be the likeliest, so
    that neither time nor memory grows much with the number of classes.

    Args:
        grid: upright.

    Returns:
        uint8 (X, Y, Z), 0 outside the windows. Ties go to the lower class.
    """
    nx, ny, nz = grid.size
    x, y, zs = shared_rows(result.windows, grid.box_mm(), grid.size)
    maps = [torch.as_tensor(p).flatten(1, 2) for p in result.probabilities]
    labels = np.zeros((nz, ny, nx), np.uint8)
    for start in range(0, nz, SLAB_SLICES):
        part = slice(start, min(start + SLAB_SLICES, nz))
        slab = torch.zeros(())
        for probabilities, z in zip(maps, zs, strict=True):
            used = z[part].any(0).nonzero().flatten()
            if len(used):
                span = slice(int(used[0]), int(used[-1]) + 1)
                slab = slab + probabilities[:, :, span] @ z[part, span].T
        if slab.dim():
            slab = slab.view(len(slab), len(x.T), len(y.T), -1).permute(0, 3, 2, 1)
            _likeliest(slab.contiguous(), x, y, torch.from_numpy(labels[part]))
    return labels.transpose(2, 1, 0)


def _likeliest(slab: torch.Tensor, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor) -> None:
    """Writes the likeliest class of a slab (C, Z, Y, X on the window's columns) into labels."""
    # The likeliest of C classes has at least 1 / C, and interpolation exceeds none of its corners.
    possible = (slab >= 1 / len(slab) - 1e-6).any(1)
    areas = [_area(p, x, y) for p in possible]
    bones = [a for a in areas[1:] if a is not None]
    if not bones:
        return
    low_y, high_y, low_x, high_x = (
        f(a[i] for a in bones) for i, f in enumerate((min, max, min, max))
    )
    rows, columns = slice(low_y, high_y), slice(low_x, high_x)
    best = y[rows] @ (slab[0] @ x[columns].T)
    winner = labels[:, rows, columns]
    for k, area in enumerate(areas[1:], start=1):
        if area is None:
            continue
        rows, columns = slice(*area[:2]), slice(*area[2:])
        inner = (
            slice(None),
            slice(area[0] - low_y, area[1] - low_y),
            slice(area[2] - low_x, area[3] - low_x),
        )
        probability = y[rows] @ (slab[k] @ x[columns].T)
        wins = probability > best[inner]
        winner[inner].masked_fill_(wins, k)
        best[inner] = torch.maximum(best[inner], probability)


def _area(possible: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple | None:
    """Rows and columns of the scan that see any possible column of the window, or None."""
    spans = []
    for weights, columns in ((y, possible.any(1)), (x, possible.any(0))):
        seen = (weights[:, columns] > 0).any(1).nonzero().flatten()
        if not len(seen):
            return None
        spans += [int(seen[0]), int(seen[-1]) + 1]
    return tuple(spans)


def confidence(result: PassResult) -> list[float]:
    """For each structure the mean probability of the likeliest class where it is the likeliest, NaN
    where it is nowhere."""
    sums = np.zeros(len(result.probabilities[0]))
    counts = np.zeros_like(sums)
    for probabilities in result.probabilities:
        winner = probabilities.argmax(0).ravel()
        sums += np.bincount(winner, probabilities.max(0).ravel(), len(sums))
        counts += np.bincount(winner, minlength=len(sums))
    return [float(s / c) if c else float("nan") for s, c in zip(sums[1:], counts[1:], strict=True)]
