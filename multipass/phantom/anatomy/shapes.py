"""Implicit shapes: signed distances in mm, negative inside, for points given as (N, 3) arrays.

The bones are medial representations (Pizer et al. 2003, *Deformable m-reps for 3D medical image
segmentation*): a few control points with radii, joined by curves or curved sheets, each sampled as
a cloud of balls. A sheet of small balls is a thin blade, a curve of balls is a ramus or a shaft.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.spatial import cKDTree

FAR_MM = 30.0  # distances beyond the reach of a shape are cut to this
REACH_MM = 14.0  # a shape's distance is worked out this far from its surface
STEP_MM = 2.0  # between ball centres: a blade of 3.5 mm radius then ripples by 0.15 mm


class Cloud:
    """The union of many balls."""

    def __init__(self, balls: np.ndarray):
        balls = balls.reshape(-1, 4)
        self.radii = np.append(balls[:, 3], 0.0).astype(np.float32)
        self.tree = cKDTree(balls[:, :3])
        self.thickest = float(balls[:, 3].max())
        self.lower, self.upper = balls[:, :3].min(0), balls[:, :3].max(0)

    def near(self, points: np.ndarray, reach_mm: float = REACH_MM) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the points that may lie within reach of the surface, and their distances."""
        margin = self.thickest + reach_mm
        near = np.flatnonzero(within(points, self.lower - margin, self.upper + margin))
        distance, nearest = self.tree.query(points[near], distance_upper_bound=margin)
        result = np.minimum(distance - self.radii[nearest], FAR_MM).astype(np.float32)
        return near, result

    def __call__(self, points: np.ndarray) -> np.ndarray:
        near, distance = self.near(points)
        result = np.full(len(points), FAR_MM, np.float32)
        result[near] = distance
        return result


def within(points: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    inside = np.ones(len(points), bool)
    for axis in range(3):
        column = points[:, axis]
        inside &= (column > np.float32(lower[axis])) & (column < np.float32(upper[axis]))
    return inside


def _resample(control: np.ndarray, axis: int, step_mm: float) -> np.ndarray:
    control = np.moveaxis(control, axis, 0)
    count = len(control)
    if count == 1:
        return np.moveaxis(control, 0, axis)
    lengths = np.linalg.norm(np.diff(control[..., :3], axis=0), axis=-1)
    samples = int(np.ceil(lengths.sum(axis=0).max() / step_mm)) + 1
    curve = PchipInterpolator(np.arange(count), control, axis=0)
    return np.moveaxis(curve(np.linspace(0, count - 1, max(samples, count))), 0, axis)


def sheet(rows: Sequence, step_mm: float = STEP_MM) -> Cloud:
    """A curved blade through a net of (x, y, z, half thickness) control points."""
    net = np.asarray(rows, float)
    return Cloud(_resample(_resample(net, 0, step_mm), 1, step_mm))


def tube(points: Sequence, step_mm: float = STEP_MM) -> Cloud:
    """A curved rod through (x, y, z, radius) control points."""
    return Cloud(_resample(np.asarray(points, float), 0, step_mm))


def length(points: np.ndarray, centre: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    total = np.zeros(len(points), np.float32)
    for axis in range(3):
        total += (points[:, axis] - np.float32(centre[axis])) ** 2
    return np.sqrt(total)


def along(points: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """points @ weights, summed here since a BLAS may round differently with each thread count."""
    x, y, z = (points.dtype.type(w) for w in weights)
    return points[:, 0] * x + points[:, 1] * y + points[:, 2] * z


def ball(points: np.ndarray, centre: Sequence[float], radius: float) -> np.ndarray:
    return length(points, centre) - np.float32(radius)


def ellipsoid(points: np.ndarray, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Approximate distance (exact on the surface) to an ellipsoid along the axes."""
    radii_mm = np.asarray(radii, np.float32)
    scaled = (points - np.asarray(centre, np.float32)) / radii_mm
    rho = length(scaled)
    slope = length(scaled / radii_mm)
    return rho * (rho - 1) / np.maximum(slope, np.float32(1e-4))


def plane(points: np.ndarray, through: Sequence[float], normal: Sequence[float]) -> np.ndarray:
    """Positive on the side that the normal points to."""
    unit = np.asarray(normal, float) / np.linalg.norm(normal)
    return along(points - np.asarray(through, np.float32), unit)


def smooth_min(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Union with a fillet (polynomial smooth minimum)."""
    overlap = np.maximum(blend_mm - np.abs(a - b), 0) / np.float32(blend_mm)
    return np.minimum(a, b) - overlap * overlap * np.float32(blend_mm / 4)


def smooth_max(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Intersection with a rounded edge."""
    return -smooth_min(-a, -b, blend_mm)


def union(parts: Sequence[np.ndarray], blend_mm: float) -> np.ndarray:
    result = parts[0]
    for part in parts[1:]:
        result = smooth_min(result, part, blend_mm)
    return result
