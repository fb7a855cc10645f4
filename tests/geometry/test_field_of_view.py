"""Which structures go on beyond a scan, on the grid that it was acquired on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from orientation import ORDERS, oriented

from multipass.geometry.field_of_view import field_of_lattice, field_of_view
from multipass.geometry.volume import AIR_HU, Grid, Volume, resample_oblique, upright, upright_grid

GRID = Grid((24, 20, 16), (1.5, 2.0, 3.0), (-10.0, 5.0, -300.0))


def round_scan() -> Volume:
    """Water in a cylinder along the third axis, no pixels around it."""
    x, y = np.meshgrid(np.arange(24), np.arange(20), indexing="ij")
    seen = (x - 11.5) ** 2 / 11**2 + (y - 9.5) ** 2 / 9**2 < 1
    array = np.where(seen[..., None], 0, AIR_HU).astype(np.int16)
    return Volume(np.broadcast_to(array, GRID.size), GRID)


BOXES = {
    "inside": ((9, 8, 4), (5, 4, 6), False),
    "at the upper end": ((9, 8, 10), (5, 4, 6), True),
    "at the lower end": ((9, 8, 0), (5, 4, 6), True),
    "at the edge of the circle": ((0, 8, 4), (8, 4, 6), True),
}


def box_of(name: str) -> tuple[np.ndarray, bool]:
    start, shape, cut = BOXES[name]
    mask = np.zeros(GRID.size, np.float32)
    mask[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))] = 1
    return mask, cut


@pytest.mark.parametrize(("name", "order"), list(itertools.product(BOXES, ORDERS[::7])))
def test_whole_voxels_in_any_axis_order(name, order):
    mask, cut = box_of(name)
    view = field_of_view(oriented(round_scan(), *order))
    assert view.cuts(mask > 0, GRID) == cut


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("degrees", [8, 20, 40])
def test_oblique_scans(name, degrees):
    mask, cut = box_of(name)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = Grid(GRID.size, GRID.spacing_mm, GRID.origin_mm, (1, 0, 0, 0, c, -s, 0, s, c))
    view = field_of_view(Volume(round_scan().array, turned))
    target = upright_grid(turned)
    seen = resample_oblique(Volume(mask, turned), target, 0.0).array >= 0.5
    assert view.cuts(seen, target) == cut
    # The rim of air of the upright copy hides what the acquired grid shows.
    copy = field_of_view(upright(Volume(round_scan().array, turned)))
    assert not (name == "at the upper end" and copy.cuts(seen, target))


@pytest.mark.parametrize("name", BOXES)
def test_tilted_scans(name):
    mask, cut = box_of(name)
    lattice = GRID.affine
    lattice[:3, 2] = (0.0, 0.9, 3.0)
    view = field_of_lattice(round_scan().array, lattice)
    index = np.argwhere(mask > 0) @ lattice[:3, :3].T + lattice[:3, 3]
    at = np.rint((index - GRID.origin_mm) / GRID.spacing_mm).astype(int)
    start = at.min(axis=0)
    sheared = np.zeros(np.ptp(at, axis=0) + 1, bool)
    sheared[tuple((at - start).T)] = True
    assert view.cuts(sheared, GRID.cropped(tuple(start), sheared.shape)) == cut
