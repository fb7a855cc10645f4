"""Boxes are where structures lie; specks go, fragments and largest parts stay."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from multipass.geometry.labelmaps import boxes_of, parts_of, without_specks
from multipass.geometry.volume import Grid

GRID = Grid((30, 30, 30), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))


def test_specks_go_and_fragments_stay():
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[2:12, 2:12, 2:12] = 1
    labels[20:25, 2:7, 2:7] = 1
    labels[28, 28, 28] = 1
    labels[2, 28, 2] = 2
    labels[13, 5, 5] = 3
    labels[15:18, 5, 5] = 3
    before = labels.copy()
    cleaned = without_specks(labels, GRID, 5.0)
    assert np.array_equal(labels, before)
    assert cleaned[28, 28, 28] == 0 and cleaned[13, 5, 5] == 0
    assert (cleaned == 1).sum() == 1125 and cleaned[2, 28, 2] == 2
    assert (cleaned == 3).sum() == 3


def test_nothing_to_remove_is_no_copy():
    labels = np.ones(GRID.size, np.uint8)
    assert without_specks(labels, GRID, 5.0) is labels
    labels[20] = 0
    labels[21:, 9:] = 0
    assert without_specks(labels, GRID) is labels  # a part of 9 x 9 x 30 voxels


def test_the_default_takes_away_less_than_a_fifth_of_a_millilitre():
    labels = np.ones(GRID.size, np.uint8)
    labels[20:] = 0
    labels[25:, :10, :2] = 2
    labels[25, 20:, :9] = 1
    assert (without_specks(labels, GRID)[25:] == 1).sum() == 0
    labels[25, 20:, :10] = 1
    assert without_specks(labels, GRID) is labels
    assert (without_specks(labels, GRID, 0.0)[25:] == 1).sum() == 100


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_boxes_are_those_of_find_objects_in_any_order_of_axes(order):
    labels = np.zeros((12, 15, 9), np.uint8)
    labels[3:5, 7, 2:8] = 2
    labels[11, 14, 0] = 3
    labels[4, 2, 3] = 3
    turned = labels.transpose(order)[::-1]
    assert boxes_of(turned, 4) == ndimage.find_objects(turned, max_label=4)
    assert boxes_of(np.zeros_like(turned), 2) == [None, None]


@pytest.mark.parametrize("order", ["C", "F"])
def test_parts_are_what_touches_by_faces_the_largest_first(order):
    rng = np.random.default_rng(2)
    mask = np.asarray(rng.random((9, 11, 13)) < 0.3, order=order)
    parts, sizes = parts_of(mask)
    assert np.array_equal(parts > 0, mask) and parts.max() == len(sizes)
    assert np.array_equal(np.bincount(parts.ravel())[1:], sizes)
    assert (np.diff(sizes) <= 0).all()
    expected, count = ndimage.label(mask)
    assert len(np.unique(np.stack([parts[mask], expected[mask]]), axis=1).T) == count == len(sizes)
    assert len(parts_of(np.zeros((3, 4, 5), bool))[1]) == 0
