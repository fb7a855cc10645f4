"""Boxes are where structures lie; specks go, fragments and largest parts stay, and so do sides."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from multipass.geometry.labelmaps import boxes_of, tidied, with_own_sides, without_specks
from multipass.geometry.volume import Grid
from multipass.structures import PELVIS

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


def crossed_legs(left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """Two columns that lie apart, as they are and with the left one's lower third called right."""
    truth = np.zeros((20, 20, 30), np.uint8)
    truth[3:8, 5:10, :] = left
    truth[12:17, 5:10, :] = right
    found = truth.copy()
    found[3:8, 5:10, :9] = right
    return truth, found


@pytest.mark.parametrize("left, right", [(4, 5), (5, 4)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_a_cut_off_part_that_touches_the_other_femur_is_the_others(left, right, order):
    truth, found = (labels.transpose(order) for labels in crossed_legs(left, right))
    before = found.copy()
    assert np.array_equal(with_own_sides(found, PELVIS), truth)
    assert np.array_equal(found, before)
    assert np.array_equal(tidied(found, GRID, PELVIS, 0.0), truth)
    assert with_own_sides(truth, PELVIS) is truth


@pytest.mark.parametrize("left, right", [(1, 2), (3, 5), (4, 2)])
def test_only_femurs_are_given_to_the_other_side(left, right):
    _, found = crossed_legs(left, right)
    assert with_own_sides(found, PELVIS) is found
    _, femurs = crossed_legs(4, 5)
    assert with_own_sides(femurs, PELVIS[:4]) is femurs  # no partner to give to


def test_fragments_and_what_may_be_the_bone_itself_stay():
    _, found = crossed_legs(4, 5)
    found[3:8, 5:10, 9] = 0  # apart from the left femur: a fragment of the right one
    assert with_own_sides(found, PELVIS) is found
    _, found = crossed_legs(4, 5)
    found[12:17, 5:10, :14] = 0  # nine slices touch the left femur, sixteen are the right one
    assert with_own_sides(found, PELVIS) is found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_boxes_are_those_of_find_objects_in_any_order_of_axes(order):
    labels = np.zeros((12, 15, 9), np.uint8)
    labels[3:5, 7, 2:8] = 2
    labels[11, 14, 0] = 3
    labels[4, 2, 3] = 3
    turned = labels.transpose(order)[::-1]
    assert boxes_of(turned, 4) == ndimage.find_objects(turned, max_label=4)
    assert boxes_of(np.zeros_like(turned), 2) == [None, None]
