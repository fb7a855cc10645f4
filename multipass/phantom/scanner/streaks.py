"""Beam hardening and photon starvation: streaks around metal, and dark bands between the hips."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter1d

SIZE = 160  # pixels a side of the image in which streaks are worked out
ANGLES = 120
BINS = 240  # of the detector, one pixel of that image wide
FINE = 4
HARDENING = 0.035  # loss of a ray's attenuation per mm of metal passed, relative
BONE_HU, DENSE_HU = 200.0, 1000.0  # what hardens a ray, and what counts as whole bone
BAND_MM = 2.0
GAIN_HU = 800.0  # HU per mm of missing path and mm of image, chosen by eye against clinical images


@cache
def _ray_places() -> np.ndarray:
    """(ANGLES, SIZE, SIZE): where each pixel's ray meets the detector, in fine bins."""
    grid = np.arange(SIZE) - (SIZE - 1) / 2
    angles = np.arange(ANGLES)[:, None, None] * np.pi / ANGLES
    place = np.cos(angles) * grid[:, None] + np.sin(angles) * grid + BINS / 2
    return np.rint(place * FINE).astype(np.intp)


def _error(metal: np.ndarray, pixel_mm: float, rng: np.random.Generator) -> np.ndarray:
    """(ANGLES, BINS): what metal adds to the measured rays, in mm of metal."""
    scale = len(metal) / SIZE
    rows, columns = np.nonzero(metal > 0.05)
    weight = metal[rows, columns] * pixel_mm / scale
    x, y = ((v - (len(metal) - 1) / 2) / scale for v in (rows, columns))
    paths = []
    for angle in np.arange(ANGLES) * np.pi / ANGLES:
        where = np.rint(x * np.cos(angle) + y * np.sin(angle) + BINS / 2).astype(int)
        paths.append(np.bincount(where, weight, minlength=BINS)[:BINS])
    path = np.array(paths)
    starved = rng.normal(0, 0.6, path.shape) * np.expm1(np.minimum(path / 14, 2.2))
    return starved - HARDENING * path**2


def streaks(
    metal: np.ndarray, pixel_mm: float, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """HU to add to a slice.

    Args:
        metal: (N, N) share of each pixel that is metal.
        strength: 0 for none (metal artefact reduction) to about 1.

    Returns:
        float32 (N, N).
    """
    ramp = np.fft.rfftfreq(2 * BINS)
    error = np.fft.rfft(_error(metal, pixel_mm, rng), 2 * BINS)
    filtered = np.fft.irfft(error * ramp)[:, :BINS].astype(np.float32)
    fine = np.arange(BINS * FINE) / FINE
    total = np.zeros((SIZE, SIZE), np.float32)
    for line, place in zip(filtered, _ray_places(), strict=True):
        total += np.interp(fine, np.arange(BINS), line).astype(np.float32)[place]
    ray_mm = pixel_mm * len(metal) / SIZE
    return _enlarged(total * np.float32(strength * GAIN_HU / ray_mm * np.pi / ANGLES), len(metal))


def dark_bands(picture: np.ndarray, pixel_mm: float, hu_per_mm: float) -> np.ndarray:
    """HU (X, Y) to add to a slice: it is darkest where bone lies on both sides, left and right.

    Args:
        hu_per_mm: of dense bone on either side.
    """
    dense = np.clip((picture - BONE_HU) / (DENSE_HU - BONE_HU), 0, 1)
    path = np.cumsum(dense, axis=0)
    left, right = path - dense / 2, path[-1] - path + dense / 2
    band = -np.float32(hu_per_mm * pixel_mm) * np.sqrt(np.maximum(left * right, 0))
    return gaussian_filter1d(band, BAND_MM / pixel_mm, 1, truncate=2)


def _enlarged(picture: np.ndarray, count: int) -> np.ndarray:
    place = np.clip((np.arange(count) + 0.5) * SIZE / count - 0.5, 0, SIZE - 1.001)
    low = place.astype(int)
    part = (place - low).astype(np.float32)
    rows = picture[low] * (1 - part)[:, None] + picture[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part
