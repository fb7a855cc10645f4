"""Outlines of masks: the way there and back, holes, and what lies beside the picture."""

from __future__ import annotations

import matplotlib.path
import numpy as np
import pytest

from multipass.geometry.outlines import filled, outlines_of


def ring(size: int, outer: float, inner: float) -> np.ndarray:
    x, y = np.ogrid[:size, :size]
    distance = np.hypot(x - size / 2.1, y - size / 1.9)
    return (distance < outer) & (distance >= inner)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_any_mask_comes_back_as_it_was(part):
    rng = np.random.default_rng(7)
    for size in [(1, 1), (3, 2), (23, 31), (31, 23)]:
        mask = rng.random(size) < part
        assert np.array_equal(filled(outlines_of(mask), size), mask)


def test_rings_in_rings_are_one_polygon_each():
    mask = ring(60, 28, 22) | ring(60, 18, 12) | ring(60, 5, 2)
    polygons = outlines_of(mask)
    assert len(polygons) == 3
    assert np.array_equal(filled(polygons, mask.shape), mask)


def test_many_holes_are_joined_to_one_outline_within_the_mask():
    rng = np.random.default_rng(3)
    mask = ring(50, 22, 0)
    for x, y in rng.integers(12, 36, (40, 2)):
        mask[x : x + 2, y : y + 1] = False
    polygons = outlines_of(mask)
    (largest, *_) = sorted(polygons, key=len, reverse=True)
    assert np.array_equal(filled(polygons, mask.shape), mask)
    # A channel runs there and back: without them, area by the shoelace formula is what is filled.
    x, y = largest.T
    area = abs(np.roll(x, -1) @ y - np.roll(y, -1) @ x) / 2
    assert area == pytest.approx(np.count_nonzero(filled([largest], mask.shape)), rel=0.05)


def test_another_library_finds_the_same_pixels():
    mask = ring(40, 17, 6)
    (polygon,) = outlines_of(mask)
    centres = np.argwhere(np.ones_like(mask))
    inside = matplotlib.path.Path(polygon).contains_points(centres).reshape(mask.shape)
    off = inside != mask
    # It has its own mind of centres on the channel, which is a line of the mask.
    assert not (off & ~mask).any() and np.count_nonzero(off.any(axis=0)) <= 1


def test_straight_sides_have_no_points_between_their_ends():
    mask = np.zeros((30, 20), bool)
    mask[3:27, 4:16] = True
    (polygon,) = outlines_of(mask)
    assert len(polygon) == 8  # corners are cut by half a pixel


def test_polygons_may_reach_beyond_the_picture():
    square = np.array([[-50.0, 3.5], [100, 3.5], [100, 6.5], [-50, 6.5]])
    mask = filled([square, square + [0, 1000]], (10, 9))
    assert np.array_equal(mask, np.broadcast_to((np.arange(9) > 3) & (np.arange(9) < 7), (10, 9)))
    assert not filled([], (10, 9)).any()
