"""Where to look at what a flag says of a structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage

from multipass.geometry.field_of_view import FieldOfView
from multipass.geometry.labelmaps import Box, box_of, boxes_of, middle_voxel, parts_of
from multipass.geometry.volume import Grid, Volume, ints3
from multipass.model.maps import PassResult, native_labels
from multipass.results.findings import (
    BEYOND_WINDOW,
    CUT,
    DISAGREEMENT,
    IN_PARTS,
    flagged_structures,
    on_windows,
    sentence,
)
from multipass.structures import Structure


@dataclass(frozen=True)
class Looked:
    """A scan that was looked at.

    Attributes:
        labels: the label map on the upright grid.
        view: what the scan shows.
        results: of all passes.
    """

    labels: Volume
    view: FieldOfView
    results: Sequence[PassResult]

    @cached_property
    def seen(self) -> Volume:
        """The last pass's label map on the grid of its windows."""
        return on_windows(self.results[-1])

    @cached_property
    def boxes(self) -> list[Box | None]:
        """Of all structures in the label map."""
        return boxes_of(self.labels.array, len(self.results[-1].probabilities[0]) - 1)

    def inside(self, value: int) -> tuple[np.ndarray, Grid] | None:
        """A structure in its bounding box, and the box's grid; None where it is missing."""
        box = self.boxes[value - 1]
        return None if box is None else _cropped(self.labels, box, value)


def places_of(
    rows: Sequence[dict[str, Any]], structures: Sequence[Structure], looked: Looked
) -> dict[str, list[dict[str, Any]]]:
    """A place for each structure that a flag names.

    Args:
        rows: of `findings.describe`.

    Returns:
        By the sentence of a flag with a place: 'structure', its name, and 'place_mm', LPS, None
        where there is none.
    """
    places = {}
    for what, indices in flagged_structures(rows, structures, looked.results).items():
        found = [_place(what, rows[k]["value"], looked) for k in indices]
        if any(found):
            names = (rows[k]["name"] for k in indices)
            places[sentence(what, rows, indices)] = [
                {"structure": name, "place_mm": place}
                for name, place in zip(names, found, strict=True)
            ]
    return places


def _place(what: str, value: int, looked: Looked) -> list[float] | None:
    """Where a flag is true of a structure; where that can't be told, the structure's middle."""
    special = _SPECIAL.get(what)
    place = special(value, looked) if special else None
    place = _middle(value, looked) if place is None else place
    return None if place is None else [round(float(v), 1) for v in place]


def _cropped(labels: Volume, box: Box, value: int) -> tuple[np.ndarray, Grid]:
    mask = labels.array[box] == value
    return mask, labels.grid.cropped(ints3([s.start for s in box]), ints3(mask.shape))


def _middle(value: int, looked: Looked) -> np.ndarray | None:
    found = looked.inside(value)
    return None if found is None else middle_voxel(np.argwhere(found[0]), found[1])


def _cut(value: int, looked: Looked) -> np.ndarray | None:
    """Where it touches the end of what the scan shows."""
    found = looked.inside(value)
    if found is None:
        return None
    voxels = looked.view.cut_voxels(*found)
    return middle_voxel(voxels, found[1]) if len(voxels) else None


def _second_part(value: int, looked: Looked) -> np.ndarray | None:
    """The second largest, as the last pass saw it."""
    mask = looked.seen.array == value
    box = box_of(mask)
    if box is None:
        return None
    mask, grid = _cropped(looked.seen, box, value)
    parts, sizes = parts_of(mask)
    return middle_voxel(np.argwhere(parts == 2), grid) if len(sizes) > 1 else None


def _beyond(value: int, looked: Looked) -> np.ndarray | None:
    """Where it touches a face of what the last pass saw, with more of the scan behind it."""
    grid, scan = looked.seen.grid, looked.labels.grid.box_mm()
    voxels = np.argwhere(looked.seen.array == value)
    inner = np.abs(grid.box_mm() - scan) > np.asarray(grid.spacing_mm) / 2
    first, last = (voxels == 0) & inner[0], (voxels == np.subtract(grid.size, 1)) & inner[1]
    voxels = voxels[(first | last).any(axis=1)]
    return middle_voxel(voxels, grid) if len(voxels) else None


def _disagreement(value: int, looked: Looked) -> np.ndarray | None:
    """The thickest place of what only one of the last two passes takes for the structure."""
    grid = looked.seen.grid
    before = native_labels(looked.results[-2], grid) == value
    differing = before != (looked.seen.array == value)
    box = box_of(differing)
    if box is None:
        return None
    depths_mm = ndimage.distance_transform_edt(np.pad(differing[box], 1), grid.spacing_mm)
    deepest = np.unravel_index(depths_mm.argmax(), depths_mm.shape)
    voxel = np.array([s.start for s in box]) + deepest - 1
    return middle_voxel(voxel[None], grid)


_SPECIAL: dict[str, Callable[[int, Looked], np.ndarray | None]] = {
    CUT: _cut,
    IN_PARTS: _second_part,
    BEYOND_WINDOW: _beyond,
    DISAGREEMENT: _disagreement,
}
