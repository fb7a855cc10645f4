"""What a mask is worth where no reference lies beside the scan: how well it fits the picture.

Bone ends where Hounsfield units fall most steeply outwards. A perfect mask does not read 0: voxels
have a size, and blur moves the steepest place of a thin cortex.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import (
    binary_erosion,
    distance_transform_edt,
    gaussian_filter,
    map_coordinates,
)
from scipy.spatial import cKDTree

from multipass.geometry.labelmaps import box_of, boxes_of, parts_of

MARGIN_MM, MARGIN_VOXELS = 6.0, 8
MOST_POINTS = 4000  # of a structure's surface
LEAST_VOXELS = 200  # of a structure whose surface is looked at
SMOOTH_MM = 2.0  # of the mask, for its normals
OFFSETS_MM = np.arange(-18, 19) / 4
FALL_OVER = 4  # offsets: 1 mm
LEAST_FALL_HU = 150.0  # over 1 mm, of an edge
ALONE_MM = 4.0  # from another structure, whose bone would be an edge, too
BONE_HU = 300
BESIDE_MM = 2.0


def edge_distances(hu: np.ndarray, labels: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Signed distances in mm from points of the masks' surfaces to the picture's edge.

    Along the outward normal the edge is where HU fall most over 1 mm, at most 4 mm away.

    Args:
        hu: (X, Y, Z).
        labels: (X, Y, Z), a value from 1 for each structure.

    Returns:
        One value for each point that has an edge: above 0 where the mask ends within the bone.
    """
    found = [np.zeros(0)]
    margins = [max(MARGIN_VOXELS, int(np.ceil(MARGIN_MM / mm))) for mm in spacing_mm]
    for value, box in enumerate(boxes_of(labels, int(labels.max(initial=0))), start=1):
        if box is None:
            continue
        wider = tuple(
            slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, margins, strict=True)
        )
        part = labels[wider]
        if np.count_nonzero(part == value) >= LEAST_VOXELS:
            others = (part > 0) & (part != value)
            found.append(_of_one(hu[wider], part == value, others, np.asarray(spacing_mm)))
    return np.concatenate(found)


def _of_one(
    hu: np.ndarray, mask: np.ndarray, others: np.ndarray, spacing_mm: np.ndarray
) -> np.ndarray:
    points = _surface_points(mask)
    if others.any():
        tree = cKDTree(np.argwhere(others & ~binary_erosion(others)) * spacing_mm)
        nearest, _ = tree.query(points * spacing_mm, distance_upper_bound=ALONE_MM)
        points = points[nearest > ALONE_MM]
    normals = _normals(mask, points, spacing_mm)
    steps = OFFSETS_MM[None, :, None] * (normals / spacing_mm)[:, None]
    places = points[:, None] + steps
    inside = ((places >= 0) & (places <= np.subtract(mask.shape, 1))).all(axis=(1, 2))
    lines = _sampled(hu.astype(np.float32), places[inside])
    falls = lines[:, :-FALL_OVER] - lines[:, FALL_OVER:]
    steepest = falls.argmax(axis=1)
    is_edge = falls.max(axis=1, initial=-np.inf) >= LEAST_FALL_HU
    return OFFSETS_MM[steepest[is_edge] + FALL_OVER // 2]


def _surface_points(mask: np.ndarray) -> np.ndarray:
    """Middles of the faces between a mask and its background (N, 3), in voxels; at most so many."""
    faces = []
    for axis in range(3):
        between = np.argwhere(np.diff(mask, axis=axis)).astype(float)
        between[:, axis] += 0.5
        faces.append(between)
    points = np.concatenate(faces)
    return points[np.random.default_rng(0).permutation(len(points))[:MOST_POINTS]]


def _normals(mask: np.ndarray, points: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Outward unit normals at points (N, 3), of the mask smoothed over some millimetres."""
    smooth = gaussian_filter(mask.astype(np.float32), SMOOTH_MM / spacing_mm)
    inwards = [
        (_sampled(smooth, points + step) - _sampled(smooth, points - step)) / (2 * mm)
        for step, mm in zip(np.eye(3), spacing_mm, strict=True)
    ]
    slope = -np.stack(inwards, axis=1)
    return slope / (np.linalg.norm(slope, axis=1, keepdims=True) + 1e-6)


def _sampled(volume: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Linear interpolation at places (..., 3) in voxels."""
    return map_coordinates(volume, np.moveaxis(places, -1, 0), order=1, mode="nearest")


def left_out(hu: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """The share of mask and bright voxels that are bright and beside the mask: holes and bone that
    was left out, or other bone and vessels close by. NaN for an empty mask."""
    box = box_of(mask.astype(np.uint8))
    if box is None:
        return float("nan")
    beside_mm = max(BESIDE_MM, 1.01 * max(spacing_mm))  # or one voxel
    wider = tuple(
        slice(max(s.start - int(beside_mm / mm) - 1, 0), s.stop + int(beside_mm / mm) + 1)
        for s, mm in zip(box, spacing_mm, strict=True)
    )
    inside = mask[wider]
    bright = (hu[wider] > BONE_HU) & ~inside
    if bright.any():
        bright &= distance_transform_edt(~inside, sampling=spacing_mm) <= beside_mm
    missed = int(np.count_nonzero(bright))
    return missed / (missed + int(np.count_nonzero(inside)))


def parts_too_many(labels: np.ndarray, value: int, least_voxels: float) -> int:
    """How many parts of at least so many voxels a structure has beyond one."""
    box = boxes_of(labels, value)[value - 1]
    if box is None:
        return 0
    _, sizes = parts_of(labels[box] == value)
    return max(0, int(np.count_nonzero(sizes >= least_voxels)) - 1)
