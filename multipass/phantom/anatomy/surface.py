"""Triangle surfaces: reading, signed distance, and fitting one onto another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from multipass.phantom.anatomy.shapes import FAR_MM, REACH_MM, within

FIT_POINTS = 1500  # vertices that take part in a fit
FIRST_STEPS, FURTHER_STEPS = 8, 24  # from each start, then from the best
TRIM = 0.8  # share of the nearest pairs that a fit listens to


def read_surface(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 in mm and triangles (F, 3).

    Raises:
        ValueError: the file is missing, holds no triangles, or libigl isn't installed.
    """
    igl = _igl()
    if not path.is_file():
        raise ValueError(f"--anatomy: {path} is missing")
    try:
        vertices, faces = igl.read_triangle_mesh(str(path))
    except RuntimeError as error:
        raise ValueError(f"--anatomy: {path} can't be read as a triangle mesh") from error
    if not len(vertices) or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"--anatomy: {path} holds no triangle mesh")
    return np.asarray(vertices, float), np.asarray(faces, np.int64)


def _igl():
    try:
        import igl
    except ImportError as error:
        raise ValueError(
            "--anatomy needs libigl: pip install -r requirements-anatomy.txt"
        ) from error
    return igl


class Surface:
    """Signed distance to a triangle mesh, small holes allowed.

    The sign is that of the winding number (Barill et al. 2018, *Fast winding numbers for soups and
    clouds*), which a hole or a fold disturbs close to itself only.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray):
        self.vertices = np.ascontiguousarray(vertices, float)
        self.faces = faces
        self.lower, self.upper = self.vertices.min(0), self.vertices.max(0)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        igl = _igl()
        result = np.full(len(points), FAR_MM, np.float32)
        near = np.flatnonzero(within(points, self.lower - REACH_MM, self.upper + REACH_MM))
        if near.size:
            at = np.ascontiguousarray(points[near], float)
            # what igl.signed_distance does with fast winding numbers, in 0.6 of its time
            distance = np.sqrt(igl.point_mesh_squared_distance(at, self.vertices, self.faces)[0])
            winding = igl.fast_winding_number(self.vertices, self.faces, at)
            result[near] = np.minimum((1 - 2 * np.abs(winding)) * distance, FAR_MM)
        return result


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale s, rotation R and shift t such that s * source @ R + t is nearest to target.

    Umeyama 1991, *Least-squares estimation of transformation parameters between two point
    patterns*; the points (N, 3) correspond.
    """
    a, b = source - source.mean(0), target - target.mean(0)
    u, values, v = np.linalg.svd(a.T @ b)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ v))])
    turn = (u * signs) @ v
    scale = float((values * signs).sum() / (a**2).sum())
    return scale, turn, target.mean(0) - scale * source.mean(0) @ turn


def affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(4, 3) matrix that takes corresponding points (N, 3), with a 1 appended, to the target."""
    return np.linalg.lstsq(np.column_stack([source, np.ones(len(source))]), target, rcond=None)[0]


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3] + matrix[3]


def fit(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(4, 3) similarity that lays `source` around the points of `target`, by trimmed ICP.

    Chetverikov et al. 2005, *Robust Euclidean alignment of 3D point sets: the trimmed iterative
    closest point algorithm*. Every target point finds its partner in the source, which may reach
    farther than the target. Started from several tilts about x; the nearest fit wins.
    """
    chosen = target[:: max(len(target) // FIT_POINTS, 1)]
    fits = []
    for tilt in np.radians((-40, -20, 0, 20, 40)):
        turn = np.array(
            [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
        )
        turned = source @ turn
        scale = np.ptp(target[:, 0]) / np.ptp(turned[:, 0])
        shift = np.append((target.max(0) + target.min(0))[:2] / 2, target[:, 2].max())
        top = np.append((turned.max(0) + turned.min(0))[:2] / 2, turned[:, 2].max())
        start = np.vstack([scale * turn, shift - scale * top])
        fits.append(_nearer(start, source, chosen, FIRST_STEPS))
    best, _ = min(fits, key=lambda f: f[1])
    return _nearer(best, source, chosen, FURTHER_STEPS)[0]


def _nearer(
    matrix: np.ndarray, source: np.ndarray, target: np.ndarray, steps: int
) -> tuple[np.ndarray, float]:
    """The similarity after some steps, and the mean distance of the pairs kept."""
    error = np.inf
    for _ in range(steps):
        distance, partner = cKDTree(apply(matrix, source)).query(target)
        kept = distance <= np.quantile(distance, TRIM)
        scale, turn, shift = similarity(source[partner[kept]], target[kept])
        matrix = np.vstack([scale * turn, shift])
        error = float(np.mean(distance[kept]))
    return matrix, error


def fit_ball(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius of the sphere nearest to the points, by linear least squares."""
    system = np.column_stack([2 * points, np.ones(len(points))])
    solution = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
    centre = solution[:3]
    return centre, float(np.sqrt(solution[3] + centre @ centre))


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) outward unit normals; zero for a vertex without a triangle."""
    normals = _igl().per_vertex_normals(np.ascontiguousarray(vertices), np.ascontiguousarray(faces))
    return np.nan_to_num(normals)
