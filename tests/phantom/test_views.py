"""Scans of a part: what they show, that left is left, and that they agree with whole scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from multipass.phantom import Subject, draw_labelled, draw_recipe, make_subject
from multipass.phantom.anatomy.individual import PARAMETRIC
from multipass.phantom.recipe import Recipe, patient_size
from multipass.phantom.views import VIEWS, draw_view

COARSE = {"lattice_mm": 3.0, "tissue_mm": 8.0, "implant": "", "noise_hu": 5.0}
WITHOUT = ("head", "chest", "upper abdomen", "shins and feet", "shin or foot", "arm")


def recipe_of(kind: str, seed: int = 2, **changes) -> Recipe:
    recipe = draw_view(draw_recipe(seed, 0, 48), PARAMETRIC, kind)
    return replace(recipe, **COARSE | {"slice_step_mm": 8.0, "slice_thickness_mm": 4.0} | changes)


def values_of(subject: Subject) -> set[int]:
    return set(np.unique(subject.label).tolist()) - {0}


@pytest.mark.parametrize("kind", VIEWS)
def test_every_view_shows_a_body_and_its_bone_is_bright(kind):
    subject = make_subject(2, 0, recipe=recipe_of(kind))
    hu, label, other = subject.volume.array, subject.label, subject.other_bone
    assert np.mean(hu > -200) > 0.05
    bone = (label > 0) | other
    assert not (other & (label > 0)).any()
    if bone.sum() > 50:
        assert np.median(hu[bone]) > 100
    if kind == "head" or kind == "chest":
        assert other.any() and not label.any()


@pytest.mark.parametrize("kind", ["one hip", "proximal femur", "thigh", "distal femur"])
def test_a_view_of_one_side_is_in_the_middle_of_that_side(kind):
    """What is nearest to the middle of the picture is of the side that the box was laid on."""
    for seed in range(3):
        subject = make_subject(seed, 0, recipe=recipe_of(kind, seed, crop=()))
        middle = subject.recipe.centre_mm[0]
        own = {4, 1} if middle > 0 else {5, 2}
        counts = np.bincount(subject.label.ravel(), minlength=6)
        assert counts[sorted(own)].sum() > counts[sorted({1, 2, 4, 5} - own)].sum()


def test_left_is_left_of_right_wherever_both_are_seen():
    for seed, kind in enumerate(["half a pelvis", "thighs", "slab", "knees", "crests", "circle"]):
        subject = make_subject(seed, 0, recipe=recipe_of(kind, seed))
        x = {v: np.argwhere(subject.label == v)[:, 0].mean() for v in values_of(subject)}
        for left, right in ((1, 2), (4, 5)):
            if left in x and right in x:
                assert x[left] > x[right]


def test_a_view_has_the_labels_of_the_whole_scan():
    """The same grid, with all bones worked out and with those in view alone."""
    recipe = recipe_of("one hip", padding=None, crop=())
    near, whole = (make_subject(2, 0, recipe=replace(recipe, view=v)) for v in ("one hip", ""))
    assert near.label.any()
    assert np.mean(near.label != whole.label) < 1e-3
    assert np.mean(near.other_bone != whole.other_bone) < 1e-3


def test_a_cropped_view_is_a_part_of_the_uncropped_one():
    recipe = recipe_of("thigh", padding=None, crop=())
    whole = make_subject(2, 0, recipe=recipe)
    part = make_subject(2, 0, recipe=replace(recipe, crop=(0.25, 0.0, 0.125, 0.25)))
    kept = (slice(0, 36), slice(6, 36), slice(None))  # 48 pixels; x grows to the left
    np.testing.assert_array_equal(part.volume.array, whole.volume.array[kept])
    np.testing.assert_array_equal(part.label, whole.label[kept])
    shift = np.subtract(part.volume.grid.origin_mm, whole.volume.grid.origin_mm)
    np.testing.assert_allclose(shift, (0, 6 * recipe.pixel_mm, 0), atol=1e-3)


@pytest.mark.parametrize("kind", ["distal femur", "knees"])
def test_a_femur_is_labelled_down_to_its_condyles(kind):
    recipe = recipe_of(kind, crop=(), padding=None, bottom_mm=-560.0, top_mm=-380.0)
    recipe = replace(recipe, slice_step_mm=4.0, femur_deg=((0.0, 0.0, 0.0),) * 2, scale=1.0)
    subject = make_subject(2, 0, recipe=recipe)
    value = max(values_of(subject))
    x, _, z = np.nonzero(subject.label == value)
    lowest = recipe.bottom_mm + 4.0 * z.min()
    assert -530 < lowest < -430
    assert 55 < np.ptp(x[z < z.min() + 8]) * recipe.pixel_mm < 100
    assert np.mean(subject.volume.array[subject.label == value] > 50) > 0.7


def test_the_air_around_a_circle_has_no_label():
    subject = make_subject(2, 0, recipe=recipe_of("circle"))
    assert subject.recipe.padding is not None and subject.label.any()
    assert (subject.volume.array[0, 0] == -1024).all()
    assert not subject.label[0, 0].any() and not subject.other_bone[0, 0].any()


def test_views_are_the_same_again_and_half_of_any_cohort():
    one, two = (draw_labelled(4, 1, matrix=32, size="views", **COARSE) for _ in range(2))
    np.testing.assert_array_equal(one[0].array, two[0].array)
    np.testing.assert_array_equal(one[1], two[1])
    assert max(one[0].array.shape[:2]) <= 32
    sizes = [patient_size(7, index, "any") for index in range(600)]
    assert set(sizes) == {"views", "ctpel", "body", None} and 250 < sizes.count("views") < 350
    mixed = [patient_size(7, index, "mixed") for index in range(600)]
    assert all(a in ("views", "ctpel", b) for a, b in zip(sizes, mixed, strict=True))
