"""Whole sacra: the surfaces end below S3, what is missing comes from the spine model's sacrum."""

from __future__ import annotations

import numpy as np

from multipass.phantom.anatomy.atlas import Atlas
from multipass.phantom.anatomy.surface import Surface, affine, apply, vertex_normals

CUT_MM = 2.0  # vertices this near to the end of the mean sacrum lie on the cut
BLEND_MM = (4.0, 14.0)  # above the cut: the model alone, the surface alone
AXIS = np.array([0.0, 0.6, -0.8])  # down the sacrum, about
COCCYX_MM = 33.0  # height of the coccyx at the end of the spine model's sacrum, on the mean
PLATE_NORMAL = np.array([0.0, -0.5, 0.87])  # of the upper end plate of S1, about
JOINT_MM = 1.2


def complete_sacrum(
    atlas: Atlas, pelvis: np.ndarray, rng: np.random.Generator, mirrored: bool
) -> tuple[tuple, tuple, tuple[np.ndarray, np.ndarray]]:
    """Sacrum and coccyx of a pelvis (vertices, 3), each a shape and its box, and the end plate.

    Returns:
        Sacrum, coccyx, and the centre and upward normal of the upper end plate of S1.
    """
    own, mean = pelvis[atlas.ranges["sacrum"]], atlas.mean[atlas.ranges["sacrum"]]
    model, faces = atlas.whole_sacrum
    on_cut = _cut(mean)
    low = (mean @ AXIS) > np.quantile(mean @ AXIS, 0.4)
    through, down = _plane(own[on_cut])
    lower = apply(affine(mean[low], own[low]), model)
    lower = _bent(lower, through, down, float(rng.normal(0, 0.18)), float(rng.normal(1, 0.12)))
    flip = np.array((-1, 1, 1)) if mirrored else np.ones(3, int)
    order = slice(None, None, flip[0])
    upper_shape = Surface(own * flip, atlas.faces["sacrum"][:, order])
    lower_shape = Surface(lower * flip, faces[:, order])
    through, down = through * flip, down * flip
    reach = (lower_shape.vertices - through) @ down
    at_tip = np.abs(model[:, 2] - model[:, 2].min() - COCCYX_MM) < 2
    tip_mm = float(reach[at_tip].mean() + rng.uniform(-4, 4))

    def sacrum(points: np.ndarray) -> np.ndarray:
        below = _heights(points, through, down)
        real = np.clip((-below - BLEND_MM[0]) / (BLEND_MM[1] - BLEND_MM[0]), 0, 1)
        result = np.zeros(len(points), np.float32)
        above, under = np.flatnonzero(real > 0), np.flatnonzero(real < 1)
        result[above] = real[above] * upper_shape(points[above])
        result[under] += (1 - real[under]) * lower_shape(points[under])
        return np.maximum(result, below - np.float32(tip_mm))

    def coccyx(points: np.ndarray) -> np.ndarray:
        below = _heights(points, through, down)
        return np.maximum(lower_shape(points), np.float32(tip_mm + JOINT_MM) - below)

    box = _box(np.concatenate([upper_shape.vertices, lower_shape.vertices[reach > -15]]))
    tail = _box(lower_shape.vertices[reach > tip_mm - 3])
    centre, normal = _end_plate(own * flip, atlas.faces["sacrum"][:, order])
    return (sacrum, box), (coccyx, tail), (centre, normal)


def _heights(points: np.ndarray, through: np.ndarray, way: np.ndarray) -> np.ndarray:
    total = np.zeros(len(points), np.float32)
    for axis in range(3):
        total += (points[:, axis] - np.float32(through[axis])) * np.float32(way[axis])
    return total


def _box(vertices: np.ndarray) -> tuple[tuple, tuple]:
    return tuple((vertices.min(0) - 2).tolist()), tuple((vertices.max(0) + 2).tolist())


def _cut(sacrum: np.ndarray) -> np.ndarray:
    """Indices of the vertices on the plane in which a sacrum was cut off."""
    down = AXIS
    chosen: np.ndarray = np.arange(0)
    for depth in (8.0, 5.0, 3.0, CUT_MM, CUT_MM):
        height = sacrum @ down
        chosen = np.flatnonzero(height > height.max() - depth)
        if len(chosen) < 12:
            break
        down = _plane(sacrum[chosen])[1]
    return chosen


def _plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A point and the unit normal, towards AXIS, of the plane nearest to the points."""
    centre = points.mean(axis=0)
    normal = np.linalg.svd(points - centre)[2][2]
    return centre, normal * np.sign(normal @ AXIS)


def _bent(
    points: np.ndarray, through: np.ndarray, down: np.ndarray, bend: float, stretch: float
) -> np.ndarray:
    """The part below a plane made longer, and curved forwards by `bend` mm at 10 mm (squared)."""
    below = np.maximum((points - through) @ down, 0)
    forward = np.array([0.0, down[2], -down[1]])
    moved = points + (below * (stretch - 1))[:, None] * down
    return moved + (bend * (below / 10) ** 2)[:, None] * forward


def _end_plate(sacrum: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and upward normal of the upper end plate of S1: what looks up and forward within
    30 mm behind the promontory, the foremost point near the midline."""
    middle = np.flatnonzero(np.abs(sacrum[:, 0] - np.median(sacrum[:, 0])) < 12)
    front = sacrum[middle[np.argmin(sacrum[middle, 1])]]
    away = sacrum[middle] - front
    up = vertex_normals(sacrum, faces)[middle] @ PLATE_NORMAL > 0.7
    plate = middle[up & (np.linalg.norm(away, axis=1) < 30) & (away @ PLATE_NORMAL > -8)]
    if len(plate) < 12:
        raise ValueError("--anatomy: no end plate was found on a sacrum")
    centre, normal = _plane(sacrum[plate])
    return centre, -normal if normal @ PLATE_NORMAL < 0 else normal
