"""Specks go, fragments and the largest part of a structure stay."""

from __future__ import annotations

import numpy as np

from multipass.cleanup import without_specks

VOXEL_MM3 = 2.0


def test_specks_go_and_fragments_stay():
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[2:12, 2:12, 2:12] = 1
    labels[20:25, 2:7, 2:7] = 1
    labels[28, 28, 28] = 1
    labels[2, 28, 2] = 2
    labels[13, 5, 5] = 3
    labels[15:18, 5, 5] = 3
    before = labels.copy()
    cleaned = without_specks(labels, VOXEL_MM3, 5.0)
    assert np.array_equal(labels, before)
    assert cleaned[28, 28, 28] == 0 and cleaned[13, 5, 5] == 0
    assert (cleaned == 1).sum() == 1125 and cleaned[2, 28, 2] == 2
    assert (cleaned == 3).sum() == 3


def test_nothing_to_remove_is_no_copy():
    labels = np.ones((4, 4, 4), np.uint8)
    assert without_specks(labels, VOXEL_MM3, 5.0) is labels
