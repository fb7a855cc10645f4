"""Fields on a part of the scene's lattice, whose point (i, j, k) lies at (i, j, k) times a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CELL = 4  # lattice points a side of a cell; its corners lie within 2.6 steps of its centre
BAND_MM = 13.0  # cells farther from a surface than this are not looked into

Shape = Callable[[np.ndarray], np.ndarray]


@dataclass
class Block:
    """A box of the lattice: `start` is the lattice index of array[0, 0, 0]."""

    start: np.ndarray
    array: np.ndarray
    step_mm: float

    def points(self) -> np.ndarray:
        return lattice_points(self.start, self.array.shape, self.step_mm)

    def overlap(self, other: Block) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """The slices of both arrays where the boxes overlap."""
        low = np.maximum(self.start, other.start)
        high = np.minimum(self.start + self.array.shape, other.start + other.array.shape)
        if (high <= low).any():
            return None
        mine, theirs = (
            tuple(slice(a, b) for a, b in zip(low - s, high - s, strict=True))
            for s in (self.start, other.start)
        )
        return mine, theirs


def lattice_points(start: np.ndarray, shape: tuple[int, ...], step_mm: float) -> np.ndarray:
    """(N, 3) float32, with contiguous columns."""
    axes = [
        (s + np.arange(n, dtype=np.float32)) * np.float32(step_mm)
        for s, n in zip(start, shape, strict=True)
    ]
    grid = np.meshgrid(*axes, indexing="ij")
    return np.stack([g.ravel() for g in grid]).T


def enlarged(field: np.ndarray, shape: tuple[int, ...], factor: int) -> np.ndarray:
    """Trilinear interpolation of a field known at every `factor`-th point of a lattice.

    Args:
        field: float32, at least shape // factor + 2 along each axis.
    """
    for axis, count in enumerate(shape):
        place = np.arange(count, dtype=np.float32) / factor
        low = place.astype(int)
        along = [1, 1, 1]
        along[axis] = count
        part = (place - low).reshape(along)
        field = field.take(low, axis) * (1 - part) + field.take(low + 1, axis) * part
    return field


def distances(shape: Shape, low: np.ndarray, high: np.ndarray, step_mm: float) -> Block:
    """A shape's distance on the lattice points low..high, exact near its surface only.

    It is worked out in the middle of cells first, then point by point in the cells that may hold
    a surface; elsewhere the cell's value stands.
    """
    cells = (high - low) // CELL + 1
    middle = lattice_points(np.zeros(3), tuple(cells), step_mm * CELL)
    middle += ((low + (CELL - 1) / 2) * step_mm).astype(np.float32)
    coarse = shape(middle).astype(np.float32)
    active = np.flatnonzero(np.abs(coarse) < BAND_MM)
    inside = lattice_points(np.full(3, (1 - CELL) / 2), (CELL,) * 3, step_mm)
    points = np.stack([np.add.outer(middle[active, d], inside[:, d]).ravel() for d in range(3)]).T
    values = np.repeat(coarse[:, None], CELL**3, axis=1)
    values[active] = shape(points).reshape(-1, CELL**3)
    array = values.reshape(*cells, CELL, CELL, CELL).transpose(0, 3, 1, 4, 2, 5)
    return Block(low, np.ascontiguousarray(array.reshape(cells * CELL)), step_mm)
