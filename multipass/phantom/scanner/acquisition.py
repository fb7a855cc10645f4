"""From the scene to Hounsfield units and labels on the scan's grid, a slab of slices at a time."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve1d, gaussian_filter1d

from multipass.geometry.volume import Grid
from multipass.phantom.anatomy.lattice import Block
from multipass.phantom.anatomy.scene import OTHER_BONE_VALUE, Bone
from multipass.phantom.recipe import Recipe
from multipass.phantom.scanner.streaks import dark_bands, streaks

FINE_MM = 1.3  # thick slices are averaged over planes about this far apart
HU_RANGE = (-1024, 3071)
METAL = -1
NO_TISSUE_HU = -500.0
EVERYWHERE = (slice(None), slice(None))
HARDENING = (0.0, 1.5)  # HU per mm of dense bone on either side
SHARPEN_MM = 0.9  # sigma of what a sharp kernel subtracts
THREE_TAPS_PX = 0.6


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
        self.least = block.array.min(axis=(0, 1))

    def reaches(self, z: float, level: float) -> bool:
        """Whether a plane may hold values up to `level`, seen from the lattice's planes alone."""
        where = z / self.block.step_mm - self.block.start[2]
        if not 0 <= where < len(self.least) - 1:
            return False
        return bool(self.least[int(where) : int(where) + 2].min() <= level)

    def plane(
        self, array: np.ndarray, z: float, part: tuple[slice, slice] = EVERYWHERE
    ) -> np.ndarray | None:
        """Values (x, y) at the pixels of `box`, or of a part of it; None outside the lattice."""
        where = z / self.block.step_mm - self.block.start[2]
        if not 0 <= where < array.shape[2] - 1 or not self.x.size or not self.y.size:
            return None
        low = int(where)
        above = np.float32(where - low)
        flat = array[:, :, low] * (1 - above) + array[:, :, low + 1] * above
        beside, behind = self.x_part[part[0], None], self.y_part[part[1]]
        x, y = self.x_low[part[0]], self.y_low[part[1]]
        rows = flat[:, y] * (1 - behind) + flat[:, y + 1] * behind
        return rows[x] * (1 - beside) + rows[x + 1] * beside

    @property
    def box(self) -> tuple[slice, slice]:
        return slice(self.x[0], self.x[-1] + 1), slice(self.y[0], self.y[-1] + 1)


def render(
    recipe: Recipe, bones: list[Bone], body: Block, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """HU (int16) and labels (uint8, 1 to 6 with other bone) on the grid, (X, Y, Z).

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
    rng, streak_rng = recipe.rng("noise"), recipe.rng("streaks")
    strength = streak_rng.uniform(0.3, 1.2)
    hardening = recipe.rng("hardening").uniform(*HARDENING)
    drift = _drift(recipe) + truncation_rim(recipe)
    for k, z in enumerate(zs):
        picture, fills = _slice(recipe, samplers, ground, z)
        metal = fills.pop(METAL, None)
        if metal is not None and metal.max() > 0.1:
            picture += streaks(metal, recipe.pixel_mm, strength, streak_rng)
        other = fills.pop(OTHER_BONE_VALUE, None)
        best = np.full(grid.size[:2], 0.5, np.float32)
        for value, fill in fills.items():
            better = fill >= best
            label[k].T[better] = value
            best[better] = fill[better]
        if other is not None:
            label[k].T[(other >= 0.5) & (label[k].T == 0)] = OTHER_BONE_VALUE
        tissue = picture > NO_TISSUE_HU
        picture += (drift + dark_bands(picture, recipe.pixel_mm, hardening)) * tissue
        hu[k] = _finish(recipe, picture.T, rng)
    return hu.T, label.T


def _drift(recipe: Recipe) -> np.ndarray:
    """HU of a slow change across each slice (X, Y)."""
    across, deep = np.meshgrid(*[np.linspace(-1, 1, recipe.matrix, dtype=np.float32)] * 2)
    weights = recipe.rng("drift").normal(0, 1, 3).astype(np.float32)
    shape = weights[0] * across + weights[1] * deep + weights[2] * (across**2 + deep**2 - 0.5)
    return np.float32(recipe.shading_hu) * shape


def truncation_rim(recipe: Recipe) -> np.ndarray:
    """HU (X, Y) by which a body is too bright at the circle that cuts it, half of the time."""
    rng = recipe.rng("truncation")
    if recipe.padding is None or rng.random() < 0.5:
        return np.zeros((recipe.matrix,) * 2, np.float32)
    peak_hu, width_mm = rng.uniform(50, 400), rng.uniform(3, 15)
    place = (np.arange(recipe.matrix) - (recipe.matrix - 1) / 2) * recipe.pixel_mm
    inwards = recipe.matrix * recipe.pixel_mm / 2 - np.hypot(place[:, None], place)
    return (peak_hu * np.exp(-np.maximum(inwards, 0) / width_mm)).astype(np.float32)


def _slice(
    recipe: Recipe, samplers: list[tuple[Bone, Sampler]], ground: Sampler, z: float
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """HU of one slice, averaged over its thickness, and each label's share of the pixels."""
    planes = max(1, round(recipe.slice_thickness_mm / FINE_MM))
    shifts = ((np.arange(planes) + 0.5) / planes - 0.5) * recipe.slice_thickness_mm
    shape = (recipe.matrix, recipe.matrix)
    total = np.zeros(shape, np.float32)
    fills: dict[int, np.ndarray] = {}
    for height in z + shifts:
        picture = ground.plane(ground.block.array, height)
        assert picture is not None and picture.shape == shape, "the body does not fill the scan"
        for bone, sampler in samplers:
            share = _paint(recipe, bone, sampler, height, picture)
            key = METAL if bone.kind == "metal" else bone.label
            if key and share is not None:
                fills.setdefault(key, np.zeros(shape, np.float32))[sampler.box] += share / planes
        total += picture
    return total / planes, fills


def _paint(
    recipe: Recipe, bone: Bone, sampler: Sampler, z: float, picture: np.ndarray
) -> np.ndarray | None:
    """Paint a bone into one thin plane; its share of the pixels of its box, None for none."""
    if not sampler.reaches(z, recipe.pixel_mm / 2):
        return None
    distance = sampler.plane(bone.distance.array, z)
    edge = np.float32(1 / recipe.pixel_mm)
    if distance is None or distance.min() * edge > 0.5:
        return None
    outer = np.clip(0.5 - distance * edge, 0, 1)
    if bone.kind == "painted":
        return outer
    part = _used(outer)
    place, cover = picture[sampler.box][part], outer[part]
    if bone.tissue is None:
        place += (np.float32(bone.hu) - place) * cover
        return outer
    depth, cortex_hu, core_hu = (
        sampler.plane(field, z, part)
        for field in (bone.tissue.inner_mm, bone.tissue.cortex_hu, bone.tissue.core_hu)
    )
    assert depth is not None and cortex_hu is not None and core_hu is not None
    place += (cortex_hu - place) * cover
    place += (core_hu - cortex_hu) * np.clip(0.5 - depth * edge, 0, 1)
    return outer


def _used(share: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold something."""
    rows, columns = np.flatnonzero(share.any(axis=1)), np.flatnonzero(share.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _finish(recipe: Recipe, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Kernel, noise and rounding of one slice (Y, X)."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    blur_px = recipe.blur_mm / recipe.pixel_mm
    grain = blurred(noise, max(0.7 * blur_px, 0.4))
    grain *= np.float32(recipe.noise_hu) / grain.std()
    if recipe.streak_noise_hu:
        passed = np.clip(picture + 1000, 0, 2500).mean(axis=1, keepdims=True) / 700
        lines = gaussian_filter1d(rng.standard_normal(picture.shape, dtype=np.float32), 15.0, 1)
        grain += lines / lines.std() * (recipe.streak_noise_hu * passed**2).astype(np.float32)
    picture = blurred(picture, blur_px)
    if recipe.sharpness:
        smooth = blurred(picture, SHARPEN_MM / recipe.pixel_mm)
        picture = picture + np.float32(1.2 * recipe.sharpness) * (picture - smooth)
    return np.clip(np.rint(picture + grain), *HU_RANGE).astype(np.int16)


def blurred(picture: np.ndarray, sigma_px: float) -> np.ndarray:
    """A Gaussian blur whose variance is right below a pixel, too, where a sampled one's is not."""
    for axis in (0, 1):
        if sigma_px < THREE_TAPS_PX:
            beside = sigma_px**2 / 2
            picture = convolve1d(picture, [beside, 1 - 2 * beside, beside], axis)
        else:
            picture = gaussian_filter1d(picture, sigma_px, axis, truncate=3)
    return picture


def outside_circle(columns: int, rows: int) -> np.ndarray:
    """bool (columns, rows): True outside of the circle that scanners reconstruct."""
    x, y = np.ogrid[:columns, :rows]
    return np.hypot((x - (columns - 1) / 2) / columns, (y - (rows - 1) / 2) / rows) > 0.5
