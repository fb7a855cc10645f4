"""Each flag is raised by what it names, for the structure that it concerns, and by nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest

from multipass.geometry.volume import Volume
from multipass.model.maps import ClassMaps, PassResult, native_labels
from multipass.results.findings import describe, flags_of
from multipass.structures import PELVIS

SACRUM, LEFT_FEMUR = 3, 4


@pytest.fixture(scope="module")
def found() -> tuple[Volume, list[PassResult]]:
    """A scan and two passes that see the whole of it and are right and sure."""
    volume, labels = oracle.scene(oracle.scene_grid((5.0, 5.0, 6.0)))
    maps = np.stack([np.where(labels == c, 0.95, 0.01) for c in range(1 + len(PELVIS))])
    result = PassResult([volume.grid], [ClassMaps(maps.astype(np.float32))], [])
    return volume, [result, result]


def flags(volume: Volume, results: list[PassResult], labels: np.ndarray | None = None) -> list[str]:
    labels = native_labels(results[-1], volume.grid) if labels is None else labels
    return flags_of(describe(labels, volume, results, PELVIS), PELVIS, results)


def changed(result: PassResult, change) -> PassResult:
    """The result with `change` applied to its (1 + K, X, Y, Z) probabilities."""
    maps = [
        ClassMaps(change(np.stack(list(one)).astype(np.float32))) for one in result.probabilities
    ]
    return replace(result, probabilities=maps)


def moved_to_background(maps: np.ndarray, value: int, where: np.ndarray | float) -> np.ndarray:
    """`where`: the part of the structure's probability that goes, from 0 to 1, in each voxel."""
    part = maps[value] * where
    maps[0] += part
    maps[value] -= part
    return maps


def test_a_good_mask_has_none(found):
    assert flags(*found) == []


def test_a_structure_that_is_not_there(found):
    volume, results = found
    gone = [changed(r, lambda maps: moved_to_background(maps, SACRUM, 1.0)) for r in results]
    assert flags(volume, gone) == ["missing: sacrum"]


def test_nothing_there(found):
    volume, results = found
    labels = np.zeros(volume.grid.size, np.uint8)
    assert flags(volume, results, labels) == ["none of the structures is in this scan"]


def test_a_structure_in_two_pieces(found):
    volume, results = found

    def broken(maps: np.ndarray) -> np.ndarray:
        at = np.flatnonzero((maps[LEFT_FEMUR] > 0.5).any(axis=(0, 1)))
        gap = np.zeros(maps.shape[-1])
        gap[at[len(at) // 2 - 2 : len(at) // 2 + 2]] = 1
        return moved_to_background(maps, LEFT_FEMUR, gap)

    results = [changed(result, broken) for result in results]
    assert flags(volume, results) == ["in several parts: left femur"]


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_volume_that_no_adult_has(found, size):
    """A sacrum of 6 mL; then all bones in a body of twice the size each way."""
    volume, results = found
    labels = native_labels(results[-1], volume.grid)
    if size == "large":
        grid = replace(volume.grid, spacing_mm=tuple(2 * s for s in volume.grid.spacing_mm))
        volume = Volume(volume.array, grid)
        names = "left hip bone, right hip bone, sacrum, left femur, right femur"
        ml = [row["volume_ml"] for row in describe(labels, volume, results, PELVIS)]
        assert min(ml) > 1000
    else:
        inside = np.argwhere(labels == SACRUM)
        middle = inside.mean(axis=0)
        far = np.abs(inside - middle).max(axis=1) > 2.5
        labels[tuple(inside[far].T)] = 0
        names = "sacrum"
    assert [f for f in flags(volume, results, labels) if "edge" not in f] == [
        f"implausible volume: {names}"
    ]


def test_a_pass_that_is_unsure(found):
    volume, results = found
    results = [
        changed(result, lambda maps: moved_to_background(maps, SACRUM, 0.3)) for result in results
    ]
    assert flags(volume, results) == ["low confidence: sacrum"]


def test_passes_that_disagree(found):
    volume, (*_, last) = found

    def shifted(maps: np.ndarray) -> np.ndarray:
        whole = maps[LEFT_FEMUR].copy()
        there = np.roll(whole, 3, axis=0)
        maps[0] += whole - np.minimum(there, maps[0] + whole)
        maps[LEFT_FEMUR] = np.minimum(there, maps[0] + whole)
        return maps

    assert flags(volume, [changed(last, shifted), last]) == ["the passes disagree: left femur"]
