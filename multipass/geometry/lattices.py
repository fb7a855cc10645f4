"""Lattices of voxels in patient space, sheared ones included, as (4, 4) affines in LPS mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from scipy.optimize import linear_sum_assignment

from multipass.geometry.volume import AIR_HU, Grid, Volume, axis_order, floats3, ints3

# A lattice that a grid meets to half a voxel at all corners is that grid, written with rounding;
# beyond it is sheared, as a gantry counts as tilted.
SAME_VOXEL = 0.5
# The axes of LPS coordinates, as columns.
LPS = np.eye(3)
# Places farther from the scanner, and smaller voxels, are no patient's.
FARTHEST_MM, LEAST_MM3 = 1e6, 1e-9


@dataclass(frozen=True)
class Lattice:
    """`size` voxels at the places that an affine gives their indices."""

    affine: np.ndarray
    size: tuple[int, int, int]


def corners_mm(affine: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(8, 3) centres of the corner voxels of a lattice of `size` voxels."""
    index = np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1).reshape(-1, 3)
    return index @ affine[:3, :3].T + affine[:3, 3]


def apart_mm(affine: np.ndarray, other: np.ndarray, size: Sequence[int]) -> float:
    """How far the farthest voxel of one lattice lies from the same voxel of another: at a corner,
    since the difference of two affine maps is affine."""
    off = corners_mm(affine, size) - corners_mm(other, size)
    return float(np.linalg.norm(off, axis=1).max())


def is_place(affine: np.ndarray) -> bool:
    """Whether an affine gives each voxel a place of its own near a scanner."""
    near = bool((np.abs(affine) < FARTHEST_MM).all())
    return near and abs(float(np.linalg.det(affine[:3, :3]))) > LEAST_MM3


def voxel_mm(affine: np.ndarray) -> float:
    """The shortest side of a lattice's voxels."""
    return float(np.linalg.norm(affine[:3, :3], axis=0).min())


def nearest_grid(affine: np.ndarray, size: Sequence[int]) -> Grid | None:
    """The grid with right angles that lies nearest, None where it is off by half a voxel or more.

    The directions are the orthogonal polar factor of the normalised axes; the middle voxel stays.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(affine[:3, :3] / spacing)
    middle = (np.asarray(size) - 1) / 2
    place = affine[:3, :3] @ middle + affine[:3, 3]
    origin = place - u @ vt @ (spacing * middle)
    direction = tuple((u @ vt).ravel().tolist())
    grid = Grid(ints3(size), floats3(spacing), floats3(origin), direction)
    return grid if apart_mm(grid.affine, affine, size) < SAME_VOXEL * spacing.min() else None


def shear_degrees(affine: np.ndarray) -> float:
    """The largest deviation of two axes from a right angle."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(cosines.max().clip(0, 1))))


def grid_around(lattice: np.ndarray, size: Sequence[int]) -> Grid:
    """The upright grid around a sheared lattice, of its spacing along each patient axis."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in size]), -1).reshape(-1, 3)
    corners = corners @ lattice[:3, :3].T + lattice[:3, 3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = np.abs(lattice[:3, :3]).max(axis=1)
    count = np.ceil((high - low) / spacing - 1e-6).astype(int)
    origin = (low + high) / 2 - (count - 1) / 2 * spacing
    return Grid(ints3(count), floats3(spacing), floats3(origin))


def resample_lattice(
    array: np.ndarray, lattice: np.ndarray, target: Grid, outside: float = AIR_HU
) -> Volume:
    """Linear resampling from any affine lattice, sheared ones included, which ITK images cannot
    represent: the image is taken in index space and the lattice's inverse is the transform."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    inverse = np.linalg.inv(lattice)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(inverse[:3, :3].ravel().tolist())
    transform.SetTranslation(inverse[:3, 3].tolist())
    resampled = sitk.Resample(
        image,
        target.size,
        transform,
        sitk.sitkLinear,
        target.origin_mm,
        target.spacing_mm,
        target.direction,
        outside,
    )
    return Volume(sitk.GetArrayFromImage(resampled).T, target)


def frame_of(grid: Grid) -> np.ndarray:
    """(3, 3) axes of a grid as columns, in the order and sense that come nearest to L, P, S: the
    identity where they are patient axes."""
    if axis_order(grid) is not None:
        return LPS
    _, order = linear_sum_assignment(-np.abs(grid.matrix))
    axes = grid.matrix[:, order]
    return axes * np.sign(np.diag(axes))


def in_frame(grid: Grid, frame: np.ndarray) -> Grid:
    """A grid in coordinates along the columns of an orthogonal matrix."""
    origin, direction = frame.T @ grid.origin_mm, frame.T @ grid.matrix
    return replace(grid, origin_mm=floats3(origin), direction=tuple(direction.ravel().tolist()))
