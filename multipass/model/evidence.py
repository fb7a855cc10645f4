"""What a pass says of a scan: where the structures are, or that none of them is there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multipass.geometry.labelmaps import box_of, parts_of
from multipass.geometry.volume import Volume
from multipass.geometry.windows import LEAST_MM3, joined, pelvis_box
from multipass.model.maps import ClassMaps, PassResult

NOTHING = "none of the structures is in this scan"
SURE = 0.99


@dataclass(frozen=True)
class Found:
    """What a pass found.

    Attributes:
        box_mm: (2, 3) around it, see `pelvis_box`.
        lost_ml: what lies outside of that box.
    """

    box_mm: np.ndarray
    lost_ml: float


def found_in(result: PassResult, limit_mm: np.ndarray) -> Found | None:
    """Where a pass found structures; None where it found none, see `pelvis_box`.

    Args:
        limit_mm: the scan's box.
    """
    maps = [1 - p[0].astype(np.float32) for p in result.probabilities]
    foreground = joined(result.windows, maps)
    box = pelvis_box(foreground, limit_mm)
    return None if box is None else Found(box, _outside_ml(foreground, box))


def finds_nothing(result: PassResult) -> bool:
    """Whether no window shows 1 cm3 of structures in one piece: a speck is no pelvis."""
    for window, maps in zip(result.windows, result.probabilities, strict=True):
        found = maps[0] < 0.5
        box = box_of(found)
        if box is not None:
            _, sizes = parts_of(found[box])
            if sizes[0] * np.prod(window.spacing_mm) >= LEAST_MM3:
                return False
    return True


def nothing_in(seen: PassResult) -> PassResult:
    """A result over the same windows that says that none of the structures is there."""
    classes = len(seen.probabilities[0])
    nothing = [
        ClassMaps(np.full(window.size, float(c == 0), np.float16) for c in range(classes))
        for window in seen.windows
    ]
    return PassResult(seen.windows, nothing, [NOTHING])


def is_background(result: PassResult, box_mm: np.ndarray) -> bool:
    """Whether a pass is sure that a box holds background alone, as far as it looked there."""
    for window, maps in zip(result.windows, result.probabilities, strict=True):
        index = (box_mm - window.origin_mm) / window.spacing_mm
        low, high = np.floor(index[0]).astype(int), np.ceil(index[1]).astype(int) + 1
        part = maps[0][tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))]
        if part.size and part.min() <= SURE:
            return False
    return True


def _outside_ml(foreground: Volume, box_mm: np.ndarray) -> float:
    """What a first pass found outside of a box, in mL."""
    grid = foreground.grid
    index = (box_mm - grid.origin_mm) / grid.spacing_mm
    low, high = np.ceil(index[0]).astype(int), np.floor(index[1]).astype(int) + 1
    found = foreground.array > 0.5
    inside = found[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))]
    return (np.count_nonzero(found) - np.count_nonzero(inside)) * grid.voxel_ml
