"""Class probabilities between windows, and from windows back to labels on the scan's own grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multipass.geometry.labelmaps import LEAST_PART_MM3, Box, box_of, tidied
from multipass.geometry.volume import Grid
from multipass.structures import Structure

# A class's map is kept in the box where it exceeds this: a tenth of what would be the likeliest
# among 100 classes.
LEAST_KEPT = 1e-3
LEAST_WEIGHT = 1e-3  # of a window at its own edge, where another one overlaps it
SLAB_SLICES = 8  # of the scan at a time: 8 x 512 x 512 x 4 bytes = 8 MiB a class
FLOAT16_ROUNDING = 2e-3


class ClassMaps(Sequence[np.ndarray]):
    """The classes' probabilities in one window, background first: each an (X, Y, Z) array when it
    is asked for, but kept only in the box where it exceeds `LEAST_KEPT`, and 0 elsewhere. So memory
    follows the space that structures take up, not their number.

    Args:
        maps: (X, Y, Z) of each class in turn, of one shape and type.
    """

    def __init__(self, maps: Iterable[np.ndarray]) -> None:
        self._boxes: list[Box] = []
        self._kept: list[np.ndarray] = []
        for one in maps:
            self.size, self.dtype = one.shape, one.dtype
            box = box_of(one > LEAST_KEPT) or (slice(0, 0),) * 3
            self._boxes.append(box)
            self._kept.append(one[box].copy())

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, c):
        whole = np.zeros(self.size, self.dtype)
        whole[self._boxes[c]] = self._kept[c]
        return whole

    def inside(self, c: int) -> tuple[Box, np.ndarray]:
        """The box of a class, and its map within."""
        return self._boxes[c], self._kept[c]


@dataclass(frozen=True)
class PassResult:
    """What one pass found in a scan.

    Attributes:
        windows: where it looked; several that overlap in z where the scan is tall.
        probabilities: for each window of 1 + K classes in float16, whose steps of at most 0.0005
            move a surface by a micrometre or two.
        flags: sentences for people.
    """

    windows: list[Grid]
    probabilities: list[ClassMaps]
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
    maps = result.probabilities
    peaks = [torch.stack([_peaks(of_window, c) for c in range(len(maps[0]))]) for of_window in maps]
    labels = np.zeros((nz, ny, nx), np.uint8)
    for start in range(0, nz, SLAB_SLICES):
        part = slice(start, min(start + SLAB_SLICES, nz))
        classes, slab = _slab(maps, peaks, [z[part] for z in zs])
        if len(classes) > 1:
            _likeliest(slab, classes, len(maps[0]), x, y, torch.from_numpy(labels[part]))
    return labels.transpose(2, 1, 0)


def bone_labels(
    result: PassResult,
    grid: Grid,
    structures: Sequence[Structure],
    least_part_mm3: float = LEAST_PART_MM3,
) -> np.ndarray:
    """`native_labels`, tidied: what is written and scored."""
    return tidied(native_labels(result, grid), grid, structures, least_part_mm3)


def _peaks(maps: ClassMaps, c: int) -> torch.Tensor:
    """The largest value of a class in each of its window's slices (Z,)."""
    box, kept = maps.inside(c)
    peaks = torch.zeros(maps.size[2])
    if kept.size:
        peaks[box[2]] = torch.as_tensor(kept.max((0, 1))).float()
    return peaks


def least(classes: int) -> float:
    """What the likeliest of so many classes has at least, in float16; interpolation exceeds none of
    its corners, so that a class below it everywhere is the likeliest nowhere."""
    return 1 / classes * (1 - FLOAT16_ROUNDING)


def _slab(
    maps: Sequence[ClassMaps], peaks: Sequence[torch.Tensor], zs: Sequence[torch.Tensor]
) -> tuple[list[int], torch.Tensor]:
    """The classes that may be the likeliest in some of the scan's slices, background first, and
    their maps (classes, Z, Y, X) on the window's columns, interpolated to these slices.

    Args:
        maps, peaks, zs: for each window its maps, their largest values in each slice (C, Z), and
            the rows from its slices to the scan's.
    """
    seen = []
    for of_window, peak, z in zip(maps, peaks, zs, strict=True):
        used = z.any(0).nonzero().flatten()
        if len(used):
            span = slice(int(used[0]), int(used[-1]) + 1)
            seen.append((of_window, span, peak[:, span].amax(1), z[:, span].T))
    if not seen:
        return [], torch.zeros(())
    highest = torch.stack([peak for _, _, peak, _ in seen]).amax(0)
    classes = [0, *(c for c in range(1, len(highest)) if highest[c] >= least(len(highest)))]
    slab = [
        torch.stack([_slices(part, c, span) @ z for part, span, _, z in seen]).sum(0)
        for c in classes
    ]
    return classes, torch.stack(slab).permute(0, 3, 2, 1).contiguous()


def _slices(maps: ClassMaps, c: int, span: slice) -> torch.Tensor:
    """Some slices of a class, (X, Y, span) float32."""
    (in_x, in_y, in_z), kept = maps.inside(c)
    part = torch.zeros(*maps.size[:2], span.stop - span.start)
    low, high = max(in_z.start, span.start), min(in_z.stop, span.stop)
    if low < high:
        shown = kept[:, :, low - in_z.start : high - in_z.start]
        part[in_x, in_y, low - span.start : high - span.start] = torch.as_tensor(shown).float()
    return part


def _likeliest(
    slab: torch.Tensor,
    classes: Sequence[int],
    count: int,
    x: torch.Tensor,
    y: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Writes the likeliest class of a slab into labels (Z, Y, X).

    Args:
        slab, classes: of `_slab`.
        count: of all classes.
    """
    areas = [_area((values >= least(count)).any(0), x, y) for values in slab]
    bones = [a for a in areas[1:] if a is not None]
    if not bones:
        return
    low_y, high_y, low_x, high_x = (
        f(a[i] for a in bones) for i, f in enumerate((min, max, min, max))
    )
    rows, columns = slice(low_y, high_y), slice(low_x, high_x)
    best = y[rows] @ (slab[0] @ x[columns].T)
    winner = labels[:, rows, columns]
    for value, of_class, area in zip(classes[1:], slab[1:], areas[1:], strict=True):
        if area is None:
            continue
        rows, columns = slice(*area[:2]), slice(*area[2:])
        inner = (
            slice(None),
            slice(area[0] - low_y, area[1] - low_y),
            slice(area[2] - low_x, area[3] - low_x),
        )
        probability = y[rows] @ (of_class @ x[columns].T)
        wins = probability > best[inner]
        winner[inner].masked_fill_(wins, value)
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


def likeliest(maps: ClassMaps) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest class of each of a window's voxels, uint8, and its probability, float32."""
    best = torch.as_tensor(maps[0]).float()
    winner = torch.zeros(best.shape, dtype=torch.uint8)
    for c in range(1, len(maps)):
        box, kept = maps.inside(c)
        probability = torch.as_tensor(kept).float()
        winner[box].masked_fill_(probability > best[box], c)
        best[box] = torch.maximum(best[box], probability)
    return winner.numpy(), best.numpy()


def confidence(result: PassResult) -> list[float]:
    """For each structure the mean probability of the likeliest class where it is the likeliest, NaN
    where it is nowhere."""
    sums = np.zeros(len(result.probabilities[0]))
    counts = np.zeros_like(sums)
    for probabilities in result.probabilities:
        winner, best = (array.ravel() for array in likeliest(probabilities))
        sums += np.bincount(winner, best, len(sums))
        counts += np.bincount(winner, minlength=len(sums))
    return [float(s / c) if c else float("nan") for s, c in zip(sums[1:], counts[1:], strict=True)]
