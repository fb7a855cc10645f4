"""From the scene to Hounsfield units and labels on the scan's grid, a slab of slices at a time."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

from multipass.phantom.recipe import Recipe
from multipass.phantom.scene import Block, Bone
from multipass.volume import Grid

SLAB_MM = 10.0
FINE_MM = 1.3  # thick slices are averaged over planes about this far apart
HU_RANGE = (-1024, 3071)


def scan_grid(recipe: Recipe) -> Grid:
    """The scan's upright grid in scene coordinates."""
    slices = int(np.floor((recipe.top_mm - recipe.bottom_mm) / recipe.slice_step_mm)) + 1
    first = -(recipe.matrix - 1) / 2 * recipe.pixel_mm
    x, y = recipe.centre_mm
    return Grid(
        (recipe.matrix, recipe.matrix, slices),
        (recipe.pixel_mm, recipe.pixel_mm, recipe.slice_step_mm),
        (x + first, y + first, recipe.bottom_mm),
    )


def _axis(start: int, count: int, step: float, positions: np.ndarray):
    """Indices of the voxels of an axis within the lattice, their lower neighbours and weights."""
    where = positions / step - start
    used = np.flatnonzero((where >= 0) & (where < count - 1))
    low = where[used].astype(int)
    return used, low, (where[used] - low).astype(np.float32)


class Sampler:
    """Trilinear interpolation of blocks of one lattice box at planes of the scan."""

    def __init__(self, block: Block, xs: np.ndarray, ys: np.ndarray):
        self.block = block
        self.x, self.x_low, self.x_part = _axis(
            block.start[0], block.array.shape[0], block.step_mm, xs
        )
        self.y, self.y_low, self.y_part = _axis(
            block.start[1], block.array.shape[1], block.step_mm, ys
        )

    def plane(self, array: np.ndarray, z: float) -> np.ndarray | None:
        where = z / self.block.step_mm - self.block.start[2]
        if not 0 <= where < array.shape[2] - 1 or not self.x.size or not self.y.size:
            return None
        low = int(where)
        part = np.float32(where - low)
        flat = array[:, :, low] * (1 - part) + array[:, :, low + 1] * part
        rows = flat[:, self.y_low] * (1 - self.y_part) + flat[:, self.y_low + 1] * self.y_part
        weight = self.x_part[:, None]
        return rows[self.x_low] * (1 - weight) + rows[self.x_low + 1] * weight

    @property
    def box(self) -> tuple[slice, slice]:
        return slice(self.x[0], self.x[-1] + 1), slice(self.y[0], self.y[-1] + 1)


def render(
    recipe: Recipe, bones: list[Bone], body: Block, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """HU (int16) and labels (uint8) on the grid, (X, Y, Z).

    A voxel's label is the bone that fills at least half of it, so that label and picture come
    from one geometry.
    """
    xs, ys, zs = (
        grid.origin_mm[d] + np.arange(grid.size[d]) * grid.spacing_mm[d] for d in range(3)
    )
    hu = np.empty(grid.size[::-1], np.int16)
    label = np.zeros(grid.size[::-1], np.uint8)
    samplers = [(bone, Sampler(bone.distance, xs, ys)) for bone in bones]
    ground = Sampler(body, xs, ys)
    rng = recipe.rng("noise")
    planes = max(1, round(recipe.slice_thickness_mm / FINE_MM))
    shifts = ((np.arange(planes) + 0.5) / planes - 0.5) * recipe.slice_thickness_mm
    for k, z in enumerate(zs):
        total = np.zeros(grid.size[:2], np.float32)
        best = np.full(grid.size[:2], 0.5, np.float32)
        fills = {}
        for shift in shifts:
            total += _plane(recipe, samplers, ground, z + shift, fills, planes)
        picked = label[k].T
        for value, (box, fill) in fills.items():
            better = fill >= best[box]
            picked[box][better] = value
            best[box][better] = fill[better]
        hu[k] = _finish(recipe, total.T / planes, rng)
    return hu.T, label.T


def _plane(recipe, samplers, ground: Sampler, z: float, fills: dict, planes: int) -> np.ndarray:
    """HU of one thin plane; adds each bone's share of the voxels to `fills`."""
    picture = ground.plane(ground.block.array, z)
    assert picture is not None and picture.shape == (recipe.matrix, recipe.matrix)
    edge = np.float32(1 / recipe.pixel_mm)
    for bone, sampler in samplers:
        distance = sampler.plane(bone.distance.array, z)
        if distance is None or distance.min() > recipe.pixel_mm:
            continue
        box = sampler.box
        outer = np.clip(0.5 - distance * edge, 0, 1)
        inner = np.clip(0.5 - sampler.plane(bone.inner.array, z) * edge, 0, 1)
        core = sampler.plane(bone.core_hu.array, z)
        solid = recipe.cortex_hu * (outer - inner) + core * inner
        picture[box] = picture[box] * (1 - outer) + solid
        if bone.label:
            old = fills.get(bone.label, (box, 0.0))[1]
            fills[bone.label] = (box, old + outer / np.float32(planes))
    return picture


def _finish(recipe: Recipe, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Kernel, noise and rounding of one slice (Y, X)."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    soft = 0.35 + 0.5 * max(recipe.kernel_px, 0)
    grain = gaussian_filter1d(gaussian_filter1d(noise, soft, 0, truncate=3), soft, 1, truncate=3)
    grain *= np.float32(recipe.noise_hu) / grain.std()
    if recipe.kernel_px > 0.2:
        for axis in (0, 1):
            picture = gaussian_filter1d(picture, recipe.kernel_px, axis, truncate=3)
    elif recipe.kernel_px < -0.1:
        blurred = gaussian_filter1d(
            gaussian_filter1d(picture, 1.0, 0, truncate=3), 1.0, 1, truncate=3
        )
        picture = picture - recipe.kernel_px * 1.2 * (picture - blurred)
    return np.clip(np.rint(picture + grain), *HU_RANGE).astype(np.int16)
