"""Label maps of whole scans: where structures lie, how large they are, and what is put right."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from multipass.geometry.volume import Grid

# What TotalSegmentator's --remove_small_blobs takes away: 0.2 mL.
LEAST_PART_MM3 = 200.0

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


def middle_voxel(voxels: np.ndarray, grid: Grid) -> np.ndarray:
    """(3,) LPS mm of that voxel of a structure that is nearest to the middle of them all: a curved
    bone's centre lies beside it.

    Args:
        voxels: (n, 3) indices on `grid`, at least one.
    """
    away_mm = (voxels - voxels.mean(axis=0)) * grid.spacing_mm
    voxel = voxels[np.square(away_mm).sum(axis=1).argmin()]
    return grid.affine[:3, :3] @ voxel + grid.affine[:3, 3]


def voxel_counts(labels: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each value from 0 to `count`; slice by slice, since bincount makes int64 copies."""
    slices = labels.transpose(2, 1, 0)
    return np.sum([np.bincount(part.ravel(), minlength=count + 1) for part in slices], axis=0)


def parts_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of a mask whose voxels touch by their faces, the largest first.

    Args:
        mask: (X, Y, Z), fastest where it lies in memory slice by slice, as scans do.

    Returns:
        (X, Y, Z) each voxel's part, from 1 on, 0 outside; (parts,) voxels of each.
    """
    relabel = sitk.RelabelComponentImageFilter()
    image = sitk.GetImageFromArray(mask.T.astype(np.uint8, order="C"))
    parts = sitk.GetArrayFromImage(relabel.Execute(sitk.ConnectedComponent(image)))
    return parts.T, np.array(relabel.GetSizeOfObjectsInPixels(), np.int64)


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
        parts, sizes = parts_of(labels[box] == value)
        kept = max(1, np.count_nonzero(sizes * grid.voxel_ml * 1000 >= least_mm3))
        if kept < len(sizes):
            cleaned = labels.copy("K") if cleaned is labels else cleaned
            cleaned[box][parts > kept] = 0
    return cleaned


def _shifted(box: Box, outer: Box) -> Box:
    return tuple(
        slice(s.start + o.start, s.stop + o.start) for s, o in zip(box, outer, strict=True)
    )
