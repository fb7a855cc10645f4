"""Where the voxels of stacked slices lie; uneven stacks made even.

A lattice is an affine (4, 4) from indices (column, row, slice) to LPS mm, sheared where the slices
drift within their plane from one to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multipass.dicom.slices import Slice
from multipass.geometry.volume import Grid, floats3

# A slice may lie this part of a spacing away from its uniform place: positions are often rounded.
PLACE_TOLERANCE = 0.1
# Wider gaps between slices may hide what nobody has seen.
WIDEST_GAP_MM = 10.0
# In-plane drift over the whole stack, in pixels, beyond which the gantry was tilted.
TILT_PIXELS = 0.5
SAME_SLICE_MM = 1e-3
# Differences of stored positions carry rounding noise; a nanometre is enough.
SPACING_DECIMALS = 6
# One gap in ten is as narrow as the even slices that an uneven stack is interpolated to, and these
# are at most so many times as many as the acquired ones: narrow gaps must not multiply them.
NARROW_PART = 0.1
MOST_TIMES = 3


@dataclass(frozen=True)
class Stack:
    """Slices along their normal.

    Attributes:
        lattice: (4, 4), of the slices as acquired, or of the even ones that take their place.
        at: (n,) index of each acquired slice along the lattice's third axis: 0, 1, 2 ..., or
            fractions where the slices lie unevenly.
        size: voxels of the lattice along each axis.
    """

    lattice: np.ndarray
    at: np.ndarray
    size: tuple[int, int, int]

    @property
    def is_even(self) -> bool:
        return len(self.at) == self.size[2] and bool((self.at == np.arange(len(self.at))).all())

    @property
    def straight(self) -> Grid:
        """The grid of the lattice without its in-plane drift."""
        row, column, step = self.lattice[:3, :3].T
        normal = np.cross(row, column) / np.linalg.norm(row) / np.linalg.norm(column)
        spacing = np.array([np.linalg.norm(row), np.linalg.norm(column), abs(normal @ step)])
        axes = np.stack([row / spacing[0], column / spacing[1], normal], axis=1)
        spacing_mm = floats3(np.round(spacing, SPACING_DECIMALS))
        origin_mm = floats3(self.lattice[:3, 3])
        return Grid(self.size, spacing_mm, origin_mm, tuple(axes.ravel().tolist()))

    @property
    def tilt_degrees(self) -> float:
        """The angle between step and normal, 0 where the drift is not measurable."""
        row, column, step = self.lattice[:3, :3].T
        drift = max(abs(step @ row) / (row @ row), abs(step @ column) / (column @ column))
        if drift * (self.size[2] - 1) < TILT_PIXELS:
            return 0.0
        normal = np.cross(row, column)
        cosine = abs(step @ normal) / np.linalg.norm(step) / np.linalg.norm(normal)
        return float(np.degrees(np.arccos(min(1.0, cosine))))


def stack_of(slices: Sequence[Slice]) -> Stack:
    """The lattice of slices in the order of their normal.

    Raises:
        ValueError: a gap is too wide, or the slices do not lie along one line.
    """
    first = slices[0]
    places = np.array([s.position_mm for s in slices])
    heights = (places - places[0]) @ first.normal
    gaps = np.diff(heights)
    if gaps.min() < SAME_SLICE_MM:
        raise ValueError("several slices at one place along the plane normal")
    step = (places[-1] - places[0]) / (len(slices) - 1)
    at = np.arange(len(slices), dtype=float)
    off = np.linalg.norm(places - (places[0] + at[:, None] * step), axis=1)
    if off.max() > PLACE_TOLERANCE * abs(first.normal @ step):
        narrow = float(np.quantile(gaps, NARROW_PART, method="lower"))
        spacing = max(narrow, heights[-1] / (MOST_TIMES * len(slices)))
        step = (places[-1] - places[0]) / heights[-1] * spacing
        at = heights / spacing
        _check_line(slices, places, step, at)
        if gaps.max() > WIDEST_GAP_MM + SAME_SLICE_MM:
            raise ValueError(f"slices {gaps_text(gaps)} mm apart, a file missing?")
    # The median: that of one slice may be off, within what counts as the same direction.
    row, column = np.split(np.median([piece.orientation for piece in slices], axis=0), 2)
    lattice = np.eye(4)
    lattice[:3, 0] = row * first.column_step_mm
    lattice[:3, 1] = column * first.row_step_mm
    lattice[:3, 2] = step
    lattice[:3, 3] = places[0]
    return Stack(lattice, at, (first.columns, first.rows, round(float(at[-1])) + 1))


def _check_line(
    slices: Sequence[Slice], places: np.ndarray, step: np.ndarray, at: np.ndarray
) -> None:
    aside = np.linalg.norm(places - (places[0] + at[:, None] * step), axis=1)
    worst = int(aside.argmax())
    if aside[worst] > PLACE_TOLERANCE * np.linalg.norm(step):
        raise ValueError(
            f"slices do not lie along one line: {slices[worst].path.name} is "
            f"{aside[worst]:.3g} mm aside of it"
        )


def gaps_text(gaps: np.ndarray) -> str:
    """'3, 3, 5', or '3 and, elsewhere, 5' for more than six."""
    rounded = [f"{g:.4g}" for g in gaps]
    if len(rounded) <= 6:
        return ", ".join(rounded)
    values, counts = np.unique(np.round(gaps, 2), return_counts=True)
    usual = values[counts.argmax()]
    odd = [f"{v:.4g}" for v in values if v != usual]
    return f"{usual:.4g} and, elsewhere, {', '.join(odd[:5])}"


def evened(array: np.ndarray, at: np.ndarray, start: int, count: int) -> np.ndarray:
    """Slices start, start + 1 ... of an even stack, each interpolated linearly between the two
    that lie around it; beyond the first and the last, these.

    Args:
        array: (columns, rows, n) values of slices as acquired.
        at: (n,) their places in the even stack.
    """
    result = np.empty((count, array.shape[1], array.shape[0]), array.dtype)
    for k in range(count):
        above = int(np.clip(np.searchsorted(at, start + k), 1, len(at) - 1))
        part = float(np.clip((start + k - at[above - 1]) / (at[above] - at[above - 1]), 0, 1))
        one = array[:, :, above - 1] * (1 - part) + array[:, :, above] * part
        result[k] = (np.rint(one) if array.dtype.kind == "i" else one).T
    return result.transpose(2, 1, 0)
