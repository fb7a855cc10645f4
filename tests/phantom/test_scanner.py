"""What the scanner adds: blur in millimetres whatever the pixels."""

import numpy as np
import pytest

from multipass.phantom.recipe import kernel
from multipass.phantom.scanner.acquisition import blurred


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
