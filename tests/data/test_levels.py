"""Levels of a scan: blocks that unpack alone, grids, and the level that a window reads."""

from __future__ import annotations

import numpy as np
import pytest
from balls import scan

from multipass.data.levels import (
    KEPT_HU,
    STEP_HU,
    Level,
    level_for,
    make_levels,
    packed,
    unpacked,
)
from multipass.geometry.volume import Grid, Volume, resample


@pytest.fixture(scope="module")
def levels() -> list[Level]:
    volume, reference = scan(3, Grid((180, 130, 90), (1.0, 1.0, 2.5), (-90.0, -60.0, -110.0)))
    return make_levels(volume, reference.fractions, np.array([[-60.0, -40, -90], [60, 40, 50]]))


@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 32), (70, 3, 100)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_box_of_a_packed_array_is_that_of_the_array(shape, dtype):
    rng = np.random.default_rng(sum(shape))
    array = rng.integers(0, 250, shape).astype(dtype)
    stored = packed(array)
    assert np.array_equal(unpacked(stored), array)
    for _ in range(8):
        start = [rng.integers(0, n) for n in shape]
        box = tuple(slice(s, rng.integers(s + 1, n + 1)) for s, n in zip(start, shape, strict=True))
        assert np.array_equal(unpacked(stored, box), array[box])


@pytest.mark.parametrize("damage", [b"", b"xyz"])
def test_a_damaged_block_is_said_to_be_one(damage):
    stored = packed(np.zeros((70, 3, 4), np.uint8))
    stored["blocks"][1] = damage
    assert unpacked(stored, (slice(0, 9), slice(0, 3), slice(0, 4))).shape == (9, 3, 4)
    with pytest.raises(ValueError, match="a block of it"):
        unpacked(stored)


def test_levels_are_averages_over_whole_voxels(levels):
    volume, reference = scan(3, Grid((180, 130, 90), (1.0, 1.0, 2.5), (-90.0, -60.0, -110.0)))
    assert [level.grid.spacing_mm for level in levels] == [(1, 1, 2.5), (2, 2, 2.5), (3, 3, 5)]
    for level in levels:
        exact = np.clip(resample(volume, level.grid, outside=0.0), *KEPT_HU)
        assert np.abs(level.hounsfield() - exact).max() <= STEP_HU / 2 + 1e-3
        fractions = reference.fractions(level.grid)
        kept = np.zeros_like(fractions)
        for label, share in level.shares():
            for k in range(len(kept)):
                kept[k] += np.where(label == k + 1, 255 if share is None else share, 0).astype(
                    np.uint8
                )
        lost = fractions.astype(int) - kept
        assert (lost >= 0).all() and lost.sum() < 1e-3 * fractions.sum(dtype=int)


def test_a_level_reads_back_from_its_dict(levels):
    again = Level.from_dict(levels[1].to_dict())
    assert again == levels[1]


def test_a_window_reads_the_coarsest_level_that_is_finer_than_its_voxels(levels):
    inside = np.array([[-50.0, -30, -50], [50, 30, 30]])
    for spacing, name in ((1.2, "near"), (2.5, "near"), (2.8, "half"), (4.1, "quarter")):
        assert level_for(levels, inside, (spacing, spacing, 7.0)).name == name
    # Slices can't be finer than the scan's: they are no reason to read finer pixels.
    assert level_for(levels, inside, (2.8, 2.8, 2.6)).name == "half"


def test_a_window_beyond_the_near_level_reads_the_whole_scan(levels):
    wide = np.array([[-89.0, -59, -100], [89, 60, 100]])
    assert level_for(levels, wide, (1.2, 1.2, 2.5)).name == "half"


def test_scans_coarser_than_a_level_keep_their_voxels():
    grid = Grid((20, 20, 10), (5.0, 5.0, 8.0), (0.0, 0.0, 0.0))
    volume = Volume(np.zeros(grid.size, np.int16), grid)
    whole = make_levels(volume, lambda g: np.zeros((1, *g.size), np.uint8), grid.box_mm())
    assert {level.grid for level in whole} == {grid}
