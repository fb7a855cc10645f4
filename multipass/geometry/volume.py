"""Volumes on grids in patient space, and the resampling between such grids.

Coordinates are patient LPS in millimetres. Arrays are indexed (X, Y, Z); SimpleITK's (z, y, x)
arrays exist only inside this module and where a file is read or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
AIR_HU = -1024
# Direction cosines are stored with about six decimals; 1e-4 is 0.05 mm over 500 mm of scan.
AXIS_TOLERANCE = 1e-4
# Grids this close are one: NIfTI keeps its affine in float32, DICOM positions as decimal strings.
SAME_PLACE_MM = 0.01
# Slices of a slab that is converted to float32 at a time: 16 x 512 x 512 x 4 bytes = 16 MiB.
SLAB_SLICES = 16
# 4 GB of int16; a whole body at 0.7 mm has 0.6e9.
MAX_VOXELS = 2e9
# float32 sums of weights.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in patient space, as ITK defines it.

    Attributes:
        size: voxels along each axis (nx, ny, nz).
        spacing_mm: distance of voxel centres along each axis.
        origin_mm: LPS position of the centre of voxel (0, 0, 0).
        direction: row-major 3 x 3 matrix whose columns are the axes' unit vectors in LPS.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...] = IDENTITY

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) matrix whose columns are the axes' unit vectors."""
        return np.asarray(self.direction, float).reshape(3, 3)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) matrix from voxel indices to LPS millimetres."""
        affine = np.eye(4)
        affine[:3, :3] = self.matrix * np.asarray(self.spacing_mm)
        affine[:3, 3] = self.origin_mm
        return affine

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in mL."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    def box_mm(self) -> np.ndarray:
        """(2, 3) lower and upper corner, at voxel edges, of the upright box around the grid."""
        corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in self.size]), -1).reshape(-1, 3)
        corners = corners @ self.affine[:3, :3].T + self.affine[:3, 3]
        return np.stack([corners.min(axis=0), corners.max(axis=0)])

    def cropped(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Grid:
        """The grid of the sub-array [start, start + size)."""
        origin = self.affine[:3, :3] @ np.asarray(start, float) + self.affine[:3, 3]
        return replace(self, size=ints3(size), origin_mm=floats3(origin))


@dataclass(frozen=True)
class Volume:
    """An array (X, Y, Z) on its grid; a CT's values are Hounsfield units."""

    array: np.ndarray
    grid: Grid


def floats3(values) -> tuple[float, float, float]:
    """Three numbers as plain floats."""
    x, y, z = (float(v) for v in values)
    return x, y, z


def ints3(values) -> tuple[int, int, int]:
    """Three whole numbers as plain ints."""
    x, y, z = (int(v) for v in values)
    return x, y, z


def to_sitk(volume: Volume) -> sitk.Image:
    """The volume as a SimpleITK image; its array is copied into (z, y, x) order."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.grid.spacing_mm)
    image.SetOrigin(volume.grid.origin_mm)
    image.SetDirection(volume.grid.direction)
    return image


def grid_of(image: sitk.Image) -> Grid:
    """The grid of a SimpleITK image."""
    return Grid(
        ints3(image.GetSize()),
        floats3(image.GetSpacing()),
        floats3(image.GetOrigin()),
        tuple(float(v) for v in image.GetDirection()),
    )


def from_sitk(image: sitk.Image) -> Volume:
    """A SimpleITK image as a volume, its array a view in (X, Y, Z) order of a copy."""
    return Volume(sitk.GetArrayFromImage(image).T, grid_of(image))


# ------------------------------------------------------------------ orientation


def axis_order(grid: Grid) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]] | None:
    """How the grid's axes lie in LPS, or None for an oblique grid.

    Returns:
        (order, flips): array axis order[d] runs along patient axis d, against it where flips[d].
    """
    matrix = grid.matrix
    order = np.abs(matrix).argmax(axis=1)
    along = matrix[np.arange(3), order]
    if sorted(order) != [0, 1, 2] or np.abs(np.abs(along) - 1).max() > AXIS_TOLERANCE:
        return None
    rest = matrix.copy()
    rest[np.arange(3), order] = 0
    if np.abs(rest).max() > AXIS_TOLERANCE:
        return None
    flips = along < 0
    return ints3(order), (bool(flips[0]), bool(flips[1]), bool(flips[2]))


def upright_grid(grid: Grid) -> Grid:
    """The LPS grid (identity direction) of the same voxels, or, for an oblique grid, the smallest
    axis-aligned grid of about the same spacing around it."""
    found = axis_order(grid)
    if found is None:
        return _grid_around(grid)
    order, _ = found
    size = ints3(np.take(grid.size, order))
    spacing = floats3(np.take(grid.spacing_mm, order))
    origin = grid.box_mm().mean(axis=0) - (np.asarray(size) - 1) / 2 * spacing
    return Grid(size, spacing, floats3(origin))


def _grid_around(grid: Grid) -> Grid:
    steps = grid.matrix * np.asarray(grid.spacing_mm)
    spacing = np.abs(steps).max(axis=1)
    low, high = grid.box_mm()
    size = np.ceil((high - low) / spacing - 1e-6)
    if not size.prod() <= MAX_VOXELS:
        raise ValueError(f"an upright grid around this oblique scan has {size.prod():.2g} voxels")
    origin = (low + high) / 2 - (size - 1) / 2 * spacing
    return Grid(ints3(size), floats3(spacing), floats3(origin))


def upright(volume: Volume, outside: float = AIR_HU) -> Volume:
    """The volume in LPS axis order: by transposing and flipping where its axes are patient axes
    (all 48 orders, exact, no copy), by linear resampling where it is oblique."""
    found = axis_order(volume.grid)
    target = upright_grid(volume.grid)
    if found is None:
        return resample_oblique(volume, target, outside)
    order, flips = found
    array = volume.array.transpose(order)[_flip_slices(flips)]
    return Volume(array, target)


def from_upright(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Inverse of `upright` where the grid's axes are patient axes: the array in its order."""
    found = axis_order(grid)
    if found is None:
        raise ValueError("An oblique grid has no exact way back from the upright one.")
    order, flips = found
    return array[_flip_slices(flips)].transpose(np.argsort(order))


def _flip_slices(flips: tuple[bool, ...]) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)


def resample_oblique(volume: Volume, target: Grid, outside: float = AIR_HU) -> Volume:
    """Linear resampling between any two grids by SimpleITK; `outside` where there is no voxel."""
    image = sitk.Resample(
        to_sitk(volume),
        target.size,
        sitk.Transform(),
        sitk.sitkLinear,
        target.origin_mm,
        target.spacing_mm,
        target.direction,
        outside,
    )
    return from_sitk(image)


def touches_end(start: Sequence[int], shape: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a box of voxels reaches the first or last voxel of a grid along any axis."""
    return any(s == 0 or s + n == m for s, n, m in zip(start, shape, size, strict=True))


# ------------------------------------------------------- separable resampling


def axis_weights(source: tuple[int, float, float], target: tuple[int, float, float]) -> np.ndarray:
    """Weights that resample one axis: the average over a target cell, which is taken at least one
    source voxel wide.

    The mean of a piecewise constant signal over a cell as wide as its voxels is the linear
    interpolation between their centres, so one rule gives the area average where the target is
    coarser and linear interpolation where it is finer.

    Args:
        source, target: (number of voxels, position of the first centre, spacing) in mm.

    Returns:
        float32 (n_target, n_source). A row sums to the part of its cell that the source covers.
    """
    n_source, source_start, source_step = source
    n_target, target_start, target_step = target
    edges = source_start + (np.arange(n_source + 1) - 0.5) * source_step
    centres = target_start + np.arange(n_target) * target_step
    half = max(source_step, target_step) / 2
    low = np.clip(centres[:, None] - half, edges[:-1], edges[1:])
    high = np.clip(centres[:, None] + half, edges[:-1], edges[1:])
    return ((high - low) / (2 * half)).astype(np.float32)


def _normalised(weights: np.ndarray) -> np.ndarray:
    """Rows that sum to 1, or to 0 where the source covers less than half of the cell: there the
    target's centre lies outside of the source."""
    covered = weights.sum(axis=1, keepdims=True)
    inside = covered >= 0.5 - ROUNDING
    return np.where(inside, weights / np.where(inside, covered, 1), 0)


def grid_weights(source: Grid, target: Grid) -> list[np.ndarray]:
    """`axis_weights` of the three axes of two upright grids."""
    return [
        axis_weights(
            (source.size[d], source.origin_mm[d], source.spacing_mm[d]),
            (target.size[d], target.origin_mm[d], target.spacing_mm[d]),
        )
        for d in range(3)
    ]


def resample(volume: Volume, target: Grid, outside: float | None = None) -> np.ndarray:
    """Resample an upright volume onto an upright grid: area average where the target is coarser,
    linear interpolation where it is finer, one slab of slices at a time.

    Args:
        volume: any real dtype; both grids must have the identity direction.
        outside: the value of target voxels whose centre lies outside the source; a cell partly
            outside averages what the source covers. None: everything outside counts as 0, also
            for cells partly outside (for masks that were cropped to their bounding box).

    Returns:
        float32 array of target.size.
    """
    weights = grid_weights(volume.grid, target)
    if outside is not None:
        weights = [_normalised(w) for w in weights]
    spans = [_used_span(w) for w in weights]
    wx, wy, wz = (w[:, lo:hi] for w, (lo, hi) in zip(weights, spans, strict=True))
    zyx = volume.array.transpose(2, 1, 0)[tuple(slice(lo, hi) for lo, hi in reversed(spans))]
    nx, ny, nz = target.size
    total = np.zeros((nz, nx * ny), np.float32)
    for k in range(0, zyx.shape[0], SLAB_SLICES):
        slab = zyx[k : k + SLAB_SLICES].astype(np.float32, order="C")
        # One large product an axis: many small ones make BLAS threads wait for each other.
        n, rows, columns = slab.shape
        along_x = (slab.reshape(n * rows, columns) @ wx.T).reshape(n, rows, nx)
        along_y = np.ascontiguousarray(along_x.transpose(0, 2, 1)).reshape(n * nx, rows) @ wy.T
        total += wz[:, k : k + SLAB_SLICES] @ along_y.reshape(n, nx * ny)
    result = total.reshape(nz, nx, ny).transpose(1, 2, 0)
    if outside:
        inside = [w.any(axis=1) for w in weights]
        result[~np.einsum("i,j,k->ijk", *inside)] = outside
    return result


def _used_span(weights: np.ndarray) -> tuple[int, int]:
    used = np.flatnonzero(weights.any(axis=0))
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
