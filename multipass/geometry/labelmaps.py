"""Label maps of whole scans: where structures lie, how large they are, and what is put right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from multipass.geometry.volume import Grid
from multipass.structures import FEMUR, Structure, mirror_partners

# What TotalSegmentator's --remove_small_blobs takes away: 0.2 mL.
LEAST_PART_MM3 = 200.0
# Of a femur's largest part: what is larger may be the bone itself.
LARGEST_GIVEN = 0.5

Box = tuple[slice, ...]


def box_of(labels: np.ndarray) -> Box | None:
    """The box around all that is not 0, or None where nothing is."""
    box = []
    for axis in range(3):
        used = np.flatnonzero(labels.max(axis=tuple(d for d in range(3) if d != axis)))
        if not len(used):
            return None
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def boxes_of(labels: np.ndarray, count: int) -> list[Box | None]:
    """The box of each value from 1 to `count`, None where it is nowhere.

    As `ndimage.find_objects`, which visits every voxel of a scan one by one, in its array's order,
    for ten times as long: here it sees what is not background.
    """
    outer = box_of(labels)
    if outer is None:
        return [None] * count
    inner = ndimage.find_objects(np.ascontiguousarray(labels[outer].T), max_label=count)
    return [None if one is None else _shifted(one[::-1], outer) for one in inner]


def centre_of(mask: np.ndarray) -> np.ndarray:
    """(3,) mean index of a mask or of fractions."""
    profiles = [mask.sum(axis=tuple({0, 1, 2} - {d}), dtype=np.float64) for d in range(3)]
    return np.array([p @ np.arange(len(p)) / p.sum() for p in profiles])


def voxel_counts(labels: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each value from 0 to `count`; slice by slice, since bincount makes int64 copies."""
    slices = labels.transpose(2, 1, 0)
    return np.sum([np.bincount(part.ravel(), minlength=count + 1) for part in slices], axis=0)


def tidied(
    labels: np.ndarray, grid: Grid, structures: Sequence[Structure], least_mm3: float
) -> np.ndarray:
    """The label map with femurs on their own sides and without specks."""
    return without_specks(with_own_sides(labels, structures), grid, least_mm3)


def with_own_sides(labels: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    """The label map with each part of a femur that is cut off from its bone and touches the other
    femur given to that one: two femurs touch nowhere, so that the part is the other's.

    A part of more than half of its bone's largest part stays. Returns the same array where nothing
    changes.

    Args:
        labels: (X, Y, Z) integers, 0 background, 1 + k of structure k.
    """
    boxes, corrected = boxes_of(labels, len(structures)), labels
    for k, partner in enumerate(mirror_partners(structures)):
        box = boxes[k]
        if structures[k].key[:2] != FEMUR or partner == k or box is None:
            continue
        around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        parts, count = ndimage.label(labels[around] == 1 + k)
        if count == 1:
            continue
        sizes = np.bincount(parts.ravel())[1:]
        touching = parts[ndimage.binary_dilation(labels[around] == 1 + partner)]
        is_other = np.isin(np.arange(1, count + 1), touching)
        is_other &= sizes <= LARGEST_GIVEN * sizes.max()
        if is_other.any():
            corrected = labels.copy() if corrected is labels else corrected
            corrected[around][np.concatenate([[False], is_other])[parts]] = 1 + partner
    return corrected


def without_specks(labels: np.ndarray, grid: Grid, least_mm3: float = LEAST_PART_MM3) -> np.ndarray:
    """The label map without the parts of a structure that are smaller than `least_mm3`.

    Larger parts all stay, so that the fragments of a broken bone do, and so does a structure's
    largest part, however small. Returns the same array where nothing is removed.

    Args:
        labels: (X, Y, Z) integers on `grid`, 0 background.
    """
    if least_mm3 <= 0:
        return labels
    cleaned = labels
    for value, box in enumerate(boxes_of(labels, int(labels.max())), start=1):
        if box is None:
            continue
        parts, count = ndimage.label(labels[box] == value)
        sizes = np.bincount(parts.ravel())[1:] * grid.voxel_ml * 1000
        is_speck = (sizes < least_mm3) & (np.arange(count) != sizes.argmax())
        if is_speck.any():
            cleaned = labels.copy() if cleaned is labels else cleaned
            cleaned[box][np.concatenate([[False], is_speck])[parts]] = 0
    return cleaned


def _shifted(box: Box, outer: Box) -> Box:
    return tuple(
        slice(s.start + o.start, s.stop + o.start) for s, o in zip(box, outer, strict=True)
    )
