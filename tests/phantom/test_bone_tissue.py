"""Cortex and marrow as smooth fields."""

from dataclasses import replace

import numpy as np
import pytest

from multipass.phantom.anatomy.bone_tissue import bone_tissue
from multipass.phantom.anatomy.lattice import Block
from multipass.phantom.recipe import draw_recipe


def tissue_around(name: str, place: tuple[float, float, float], **changes):
    """A bone's tissue on a box of 40 mm around a place of its own frame, which is the scene's."""
    recipe = replace(draw_recipe(3, 1, 64, "small"), patchy=0.0, **changes)
    start = np.round(np.array(place) / 2).astype(int) - 10
    block = Block(start, np.zeros((20, 20, 20), np.float32), 2.0)
    return bone_tissue(recipe, name, block, lambda points: points)


THIN = [("left hip bone", (95, 8, 55)), ("sacrum", (36, 34, 42)), ("sacrum", (-36, 34, 42))]
THIN += [("left femur", (0, 0, 5))]
THICK = [("left hip bone", (60, 10, 4)), ("right hip bone", (68, 30, -6))]
THICK += [("left femur", (20, 5, -44))]


@pytest.mark.parametrize("cortex_mm", [0.6, 1.6, 3.5])
@pytest.mark.parametrize(("name", "place"), THIN)
def test_the_cortex_is_at_most_a_millimetre_in_fossa_ala_and_head(name, place, cortex_mm):
    middle = tissue_around(name, place, cortex_mm=cortex_mm).inner_mm[8:12, 8:12, 8:12]
    assert middle.min() > 0.1 and middle.max() <= 1.05


@pytest.mark.parametrize("cortex_mm", [0.6, 1.6, 3.5])
@pytest.mark.parametrize(("name", "place"), THICK)
def test_the_cortex_is_2_to_4_mm_at_arcuate_line_notch_and_calcar(name, place, cortex_mm):
    middle = tissue_around(name, place, cortex_mm=cortex_mm).inner_mm[9:11, 9:11, 9:11]
    assert middle.min() > 1.7 and middle.max() <= 4.2


def test_cortex_and_marrow_have_no_steps():
    """Fields worked out on every fourth point must not show it."""
    tissue = tissue_around("left hip bone", (90, 0, 20))
    for field in (tissue.inner_mm, tissue.cortex_hu):
        for axis in range(3):
            steps = np.abs(np.diff(field, axis=axis))
            assert steps.max() < np.ptp(field) / 3


def test_wards_triangle_is_fat_beside_a_dense_compressive_group():
    tissue = tissue_around("left femur", (18, 4, -16), trabecular_hu=200.0)
    places = [np.array(p) for p in ((32, 7, -31), (6, 2, -6))]
    start = np.round(np.array((18, 4, -16)) / 2).astype(int) - 10
    ward, group = (
        tissue.core_hu[tuple(slice(v - 2, v + 2) for v in np.round(p / 2).astype(int) - start)]
        for p in places
    )
    assert ward.mean() < 120 and group.mean() > 220


def test_a_shaft_is_thick_and_filled_with_fat_and_its_ends_are_not():
    shaft = tissue_around("left femur", (40, 8, -200))
    knee = tissue_around("left femur", (40, 8, -430))
    assert shaft.inner_mm.min() >= 4 and shaft.core_hu.mean() < 0
    assert knee.inner_mm.max() < 2.5 and knee.core_hu.mean() > shaft.core_hu.mean() + 50
