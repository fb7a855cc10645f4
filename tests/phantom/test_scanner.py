"""What the scanner adds, and scans as fine as CTPEL's."""

from dataclasses import replace

import numpy as np
import pytest

from multipass.phantom.recipe import draw_recipe, kernel
from multipass.phantom.scanner.acquisition import blurred, truncation_rim
from multipass.phantom.scanner.streaks import dark_bands
from multipass.phantom.subject import make_subject


@pytest.mark.parametrize("pixel_mm", [0.5, 0.8, 1.6, 3.0])
def test_blur_has_the_same_variance_in_mm_on_every_pixel_size(pixel_mm):
    blur_mm = 0.8
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    spread = blurred(point, blur_mm / pixel_mm)
    away_mm = (np.arange(41) - 20) * pixel_mm
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    for axis in (0, 1):
        variance = (spread.sum(axis=axis) * away_mm**2).sum()
        assert variance == pytest.approx(blur_mm**2, rel=0.03)


def test_kernels_blur_by_what_scanners_do_and_sharpen_or_smooth():
    drawn = [kernel(softness) for softness in np.linspace(-1, 1, 21)]
    assert all(0.4 <= k["blur_mm"] <= 0.9 for k in drawn)
    assert all(k["sharpness"] == 0 or k["blur_mm"] == 0.4 for k in drawn)


def test_it_is_dark_between_two_bones_and_nowhere_else():
    picture = np.full((60, 40), 40.0, np.float32)
    picture[10:15, 18:22] = picture[45:50, 18:22] = 1200.0
    band = dark_bands(picture, 2.0, 1.0)
    assert band[30, 20] == pytest.approx(-10, rel=0.2)  # 10 mm on either side
    assert np.all(band[[0, 59]] == 0) and np.all(np.abs(band[:, [5, 35]]) < 1e-3)
    np.testing.assert_allclose(dark_bands(picture[::-1], 2.0, 1.0)[::-1], band, atol=1e-3)


def test_rims_are_bright_at_the_circle_alone_and_only_where_a_circle_cuts():
    recipes = [replace(draw_recipe(1, i, 512), padding=0) for i in range(12)]
    rims = [truncation_rim(recipe) for recipe in recipes]
    bright = [rim for rim in rims if rim.any()]
    assert 2 <= len(bright) < len(rims)
    assert all(rim[256, 0] > 40 and rim[256, 256] < 0.01 * rim[256, 0] for rim in bright)
    assert not any(truncation_rim(replace(recipe, padding=None)).any() for recipe in recipes)


def test_a_scan_like_those_of_ctpel_is_fine_and_ends_around_the_hip_bones():
    for index in range(20):
        recipe = draw_recipe(2, index, 256, "ctpel")
        assert recipe.matrix == 512 and 0.66 <= recipe.pixel_mm <= 0.78
        assert recipe.slice_step_mm == 0.8 and recipe.slice_thickness_mm <= 1.25
        assert 215 < (recipe.top_mm - recipe.bottom_mm) / recipe.scale < 235
    coarse = {"matrix": 96, "pixel_mm": 4.0, "slice_step_mm": 4.0, "lattice_mm": 3.0}
    subject = make_subject(
        2, 0, size="ctpel", tissue_mm=6.0, implant="", pelvis_deg=(0.0, 0.0, 0.0),
    **coarse)  # fmt: skip
    ml = [np.count_nonzero(subject.label == v) * subject.volume.grid.voxel_ml for v in range(1, 6)]
    assert not np.isin(subject.label[:, :, [0, -1]], (1, 2, 3)).any()
    assert min(ml[:3]) > 120 and min(ml[3:]) > 70 and max(ml[3:]) < 200
