"""Class probabilities between windows, and from windows back to labels on the scan's own grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multipass.geometry.labelmaps import LEAST_PART_MM3, Box, box_of, without_specks
from multipass.geometry.volume import Grid
from multipass.model.resampling import Blend, blend

# A class's map is kept in the box where it exceeds this: a tenth of what would be the likeliest
# among 100 classes.
LEAST_KEPT = 1e-3
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
        windows: where it looked, all of one size; one in each column, row and level.
        probabilities: for each window of 1 + K classes in float16, whose steps of at most 0.0005
            move a surface by a micrometre or two.
        flags: sentences for people.
        unsure_sides: indices of structures that may be the other side's, see `on_own_sides`.
    """

    windows: list[Grid]
    probabilities: list[ClassMaps]
    flags: list[str]
    unsure_sides: tuple[int, ...] = ()


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
    blended = blend(result.windows, grid.box_mm(), grid.size)
    x, y = (torch.cat(rows, 1) for rows in blended.rows[:2])
    maps = result.probabilities
    peaks = [torch.stack([_peaks(of_window, c) for c in range(len(maps[0]))]) for of_window in maps]
    labels = np.zeros((nz, ny, nx), np.uint8)
    for start in range(0, nz, SLAB_SLICES):
        part = slice(start, min(start + SLAB_SLICES, nz))
        classes, slab = _slab(maps, peaks, blended, part)
        if len(classes) > 1:
            _likeliest(slab, classes, len(maps[0]), x, y, torch.from_numpy(labels[part]))
    return labels.transpose(2, 1, 0)


def bone_labels(
    result: PassResult, grid: Grid, least_part_mm3: float = LEAST_PART_MM3
) -> np.ndarray:
    """`native_labels` without specks: what is written and scored."""
    return without_specks(native_labels(result, grid), grid, least_part_mm3)


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
    maps: Sequence[ClassMaps], peaks: Sequence[torch.Tensor], blended: Blend, slices: slice
) -> tuple[list[int], torch.Tensor]:
    """The classes that may be the likeliest in some of the scan's slices, background first, and
    their maps (classes, Z, Y, X) interpolated to these slices, on the windows' columns and rows
    side by side.

    Args:
        maps, peaks: for each window its maps and their largest values in each slice (C, Z).
        blended: from the windows to the scan.
    """
    seen = []
    for of_window, peak, place in zip(maps, peaks, blended.places, strict=True):
        z = blended.rows[2][place[2]][slices]
        used = z.any(0).nonzero().flatten()
        if len(used):
            span = slice(int(used[0]), int(used[-1]) + 1)
            seen.append((of_window, place, span, peak[:, span].amax(1), z[:, span].T))
    if not seen:
        return [], torch.zeros(())
    highest = torch.stack([peak for *_, peak, _ in seen]).amax(0)
    classes = [0, *(c for c in range(1, len(highest)) if highest[c] >= least(len(highest)))]
    (nx, ny, _), (columns, rows, _) = maps[0].size, (len(r) for r in blended.rows)
    slab = torch.zeros(len(classes), columns, nx, rows, ny, slices.stop - slices.start)
    for of_class, c in zip(slab, classes, strict=True):
        for of_window, (column, row, _), span, _, z in seen:
            of_class[column, :, row] += _slices(of_window, c, span) @ z
    return classes, slab.flatten(3, 4).flatten(1, 2).permute(0, 3, 2, 1).contiguous()


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
    where it is nowhere; windows count by their weights where they overlap."""
    sums = np.zeros(len(result.probabilities[0]))
    counts = np.zeros_like(sums)
    for index, (window, maps) in enumerate(zip(result.windows, result.probabilities, strict=True)):
        rows = blend(result.windows, window.box_mm(), window.size).of_window(index)
        weight = np.einsum("i,j,k->ijk", *(of_axis.sum(1).numpy() for of_axis in rows)).ravel()
        winner, best = (array.ravel() for array in likeliest(maps))
        sums += np.bincount(winner, best * weight, len(sums))
        counts += np.bincount(winner, weight, len(sums))
    return [float(s / c) if c else float("nan") for s, c in zip(sums[1:], counts[1:], strict=True)]
