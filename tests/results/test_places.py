"""Where a flag leads: to the place that it speaks of, inside of the scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest

from multipass.geometry.field_of_view import field_of_view
from multipass.geometry.volume import Grid, Volume
from multipass.model.maps import ClassMaps, PassResult, native_labels
from multipass.model.passes import segment
from multipass.results.findings import describe, flags_of
from multipass.results.places import Looked, places_of
from multipass.structures import PELVIS

SACRUM, LEFT_FEMUR = 3, 4


@pytest.fixture(scope="module")
def seen():
    volume, _ = oracle.scene(oracle.scene_grid())
    results = segment(oracle.model(), volume)
    return volume, results, native_labels(results[-1], volume.grid)


def voxel_of(place_mm, window: Grid) -> np.ndarray:
    """(3,) index of a place in a window."""
    return np.subtract(place_mm, window.origin_mm) / window.spacing_mm


def places(volume: Volume, results, labels: np.ndarray) -> dict:
    """By flag and structure; each flag with places is one that is raised."""
    rows = describe(labels, volume, results, PELVIS)
    looked = Looked(Volume(labels, volume.grid), field_of_view(volume), results)
    found = places_of(rows, PELVIS, looked)
    assert set(found) <= set(flags_of(rows, PELVIS, results))
    return {
        flag.split(": ")[0]: {row["structure"]: row["place_mm"] for row in named}
        for flag, named in found.items()
    }


def index_of(volume: Volume, place_mm) -> tuple[int, ...]:
    away = np.subtract(place_mm, volume.grid.origin_mm) / volume.grid.spacing_mm
    return tuple(np.rint(away).astype(int))


def painted(result: PassResult, value: int, box) -> PassResult:
    """The result with a structure in a box of its one window."""
    maps = [np.array(result.probabilities[0][c]) for c in range(len(PELVIS) + 1)]
    for c, one in enumerate(maps):
        one[box] = float(c == value)
    return replace(result, probabilities=[ClassMaps(maps)])


def test_a_good_mask_has_none(seen):
    assert places(*seen) == {}


def test_nothing_found_leads_nowhere(seen):
    volume, results, labels = seen
    assert places(volume, results, np.zeros_like(labels)) == {}
    assert places(volume, results, np.where(labels == SACRUM, 0, labels)) == {}


def test_a_cut_bone_leads_to_where_it_is_cut(seen):
    volume, results, labels = seen
    longer = labels.copy()
    femur = np.argwhere(labels == LEFT_FEMUR)
    i, j, _ = femur.mean(axis=0).astype(int)
    longer[i - 2 : i + 3, j - 2 : j + 3, : femur[:, 2].max()] = LEFT_FEMUR
    (place,) = places(volume, results, longer)["cut by the field of view"].values()
    assert index_of(volume, place) == (i, j, 0)


def test_parts_lead_to_the_second(seen):
    volume, (first, last), labels = seen
    box = (slice(5, 20), slice(5, 20), slice(5, 20))
    with_part = painted(last, SACRUM, box)
    (place,) = places(volume, [first, with_part], labels)["in several parts"].values()
    window = last.windows[0]
    index = voxel_of(place, window)
    assert np.allclose(index, 12, atol=1)


def test_the_edge_of_the_last_pass(seen):
    volume, (first, last), labels = seen
    box = (slice(60, 70), slice(60, 70), slice(0, 9))
    at_edge = painted(last, SACRUM, box)
    found = places(volume, [first, at_edge], labels)["at the edge of what the last pass saw"]
    index = voxel_of(found["sacrum"], last.windows[0])
    assert abs(index[2]) < 0.6 and np.allclose(index[:2], 64.5, atol=1)


def test_passes_that_disagree_lead_to_where_they_do(seen):
    volume, (first, last), labels = seen
    box = (slice(5, 45), slice(5, 45), slice(5, 45))
    otherwise = painted(last, SACRUM, box)
    found = places(volume, [otherwise, last], labels)["the passes disagree"]
    index = voxel_of(found["sacrum"], last.windows[0])
    assert ((index > 5) & (index < 44)).all()


def test_other_flags_lead_into_the_structure(seen):
    volume, results, labels = seen
    swapped = np.array([0, 2, 1, 3, 4, 5], np.uint8)[labels]
    found = places(volume, results, swapped)["left and right inverted"]
    for value, structure in enumerate(PELVIS[:2], 1):
        assert swapped[index_of(volume, found[structure.name])] == value
