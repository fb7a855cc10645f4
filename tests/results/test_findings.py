"""What a person is told of a mask: cut, inverted, beyond the window; values that are no HU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest

from multipass.dicom.hounsfield import implausible
from multipass.geometry.field_of_view import FieldOfView
from multipass.geometry.volume import AIR_HU, Volume
from multipass.geometry.windows import close_windows, window_over
from multipass.model.maps import ClassMaps, PassResult, native_labels
from multipass.model.passes import segment
from multipass.results.findings import (
    beyond_window,
    count_parts,
    describe,
    disagreement,
    flags_of,
    on_windows,
)
from multipass.structures import PELVIS


@pytest.fixture(scope="module")
def seen():
    volume, _ = oracle.scene(oracle.scene_grid())
    results = segment(oracle.model(), volume)
    return volume, results, native_labels(results[-1], volume.grid)


def flags(volume: Volume, results, labels: np.ndarray) -> str:
    return "; ".join(flags_of(describe(labels, volume, results, PELVIS), PELVIS, results))


def test_nothing_is_said_of_a_good_mask(seen):
    assert flags(*seen) == ""


def test_left_and_right_inverted(seen):
    volume, results, labels = seen
    swapped = np.array([0, 2, 1, 3, 4, 5], np.uint8)[labels]
    assert "left and right inverted: left hip bone, right hip bone" in flags(
        volume, results, swapped
    )


def test_a_side_that_cannot_be_told(seen):
    volume, (first, last), labels = seen
    results = [first, replace(last, unsure_sides=(3,))]
    assert flags(volume, results, labels) == "side uncertain: left femur"
    without = np.where(labels == 4, 0, labels)
    assert "uncertain" not in flags(volume, results, without)


def test_a_bone_at_the_edge_of_a_round_field_of_view_is_cut(seen):
    volume, results, labels = seen
    x, y, _ = np.ogrid[tuple(slice(n) for n in labels.shape)]
    steps = volume.grid.spacing_mm
    middle = [(n - 1) / 2 for n in labels.shape]
    outside = np.hypot((x - middle[0]) * steps[0], (y - middle[1]) * steps[1]) > 107
    outside = np.broadcast_to(outside, labels.shape)
    padded = Volume(np.where(outside, AIR_HU, volume.array).astype(np.int16), volume.grid)
    rows = describe(np.where(outside, 0, labels), padded, results, PELVIS)
    assert [row["status"] for row in rows] == ["cut", "cut", "complete", "complete", "complete"]


def test_a_bone_at_the_end_of_what_was_acquired_is_cut(seen):
    """An oblique or tilted scan ends within its upright copy."""
    volume, results, labels = seen
    nx, ny, nz = labels.shape
    top = int(np.argwhere(labels == 3)[:, 2].max())
    view = FieldOfView(volume.grid.affine, (nx, ny, top + 2), np.zeros((nx, ny), bool), rim=1.0)
    rows = describe(labels, volume, results, PELVIS, view)
    reaching = [k for k in range(5) if (labels[:, :, top - 1 :] == k + 1).any()]
    assert [row["status"] == "cut" for row in rows] == [k in reaching for k in range(5)]


def test_a_bone_that_goes_on_where_the_last_pass_did_not_look():
    window = window_over(np.array([[-100.0, -80.0, -90.0], [110.0, 90.0, 70.0]]))
    maps = np.zeros((6, *window.size), np.float32)
    maps[1, 20:40, 20:40, 10:40] = 1
    maps[2, 60:80, 20:40, 40:] = 1
    maps[0] = 1 - maps.sum(0)
    seen = on_windows(PassResult([window], [ClassMaps(maps)], []))
    grown = window.box_mm() + [[-50, -50, -50], [50, 50, 50]]
    assert beyond_window(seen, grown, 5) == [False, True, False, False, False]
    assert not any(beyond_window(seen, window.box_mm(), 5))


def test_windows_on_top_of_each_other_are_one_box():
    """A bone through both is one part, and where one window ends in the other is no edge."""
    windows = close_windows(np.array([[-100.0, -80.0, -200.0], [110.0, 90.0, 200.0]]))
    found = []
    for window in windows:
        z = window.origin_mm[2] + np.arange(window.size[2]) * window.spacing_mm[2]
        maps = np.zeros((6, *window.size), np.float32)
        maps[1, 20:40, 20:40, np.abs(z) < 150] = 1
        maps[2, 60:80, 20:40, np.abs(np.abs(z) - 100) < 50] = 1
        maps[3, 90:100, 60:80, z > 100] = 1
        maps[0] = 1 - maps.sum(0)
        found.append(ClassMaps(maps))
    result = PassResult(windows, found, [])
    seen = on_windows(result)
    assert len(windows) == 2
    assert count_parts(seen, 5) == [1, 2, 1, 0, 0]
    scan = np.array([[-100.0, -80.0, -300.0], [110.0, 90.0, 300.0]])
    assert beyond_window(seen, scan, 5) == [False, False, True, False, False]
    assert disagreement(seen, result, 5) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("air", "tissue", "padding", "words"),
    [
        (-1000, 40, -1000, ""),
        (-1000, 40, AIR_HU, ""),
        (24, 1064, 24, "no air"),
        (24, 1064, AIR_HU, "no air"),
        (-1000, -300, -1000, "nothing as dense as water"),
        (-1000, 900, -1000, "no soft tissue"),
        (AIR_HU, AIR_HU, AIR_HU, "no values but padding"),
    ],
)
def test_values_that_are_no_hounsfield_units(air, tissue, padding, words):
    array = np.full((128, 128, 40), air, np.int16)
    array[30:100, 30:100] = tissue
    array[:10] = array[-10:] = padding
    said = "; ".join(implausible(array))
    assert (words in said) if words else not said
