"""Removal of specks from a label map, on request."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def without_specks(labels: np.ndarray, voxel_mm3: float, least_mm3: float) -> np.ndarray:
    """The label map without the parts of a structure that are smaller than `least_mm3`.

    Larger parts all stay, so that the fragments of a broken bone do, and so does a structure's
    largest part, however small. Returns the same array where nothing is removed.

    Args:
        labels: (X, Y, Z) integers, 0 background.
    """
    cleaned = labels
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        parts, count = ndimage.label(labels[box] == value)
        sizes = np.bincount(parts.ravel())[1:] * voxel_mm3
        is_speck = (sizes < least_mm3) & (np.arange(count) != sizes.argmax())
        if is_speck.any():
            cleaned = labels.copy() if cleaned is labels else cleaned
            cleaned[box][np.concatenate([[False], is_speck])[parts]] = 0
    return cleaned
