"""What a bone is made of: thickness and HU of its cortex, HU of what lies inside, as smooth fields.

Sites are points in the frames of bones.py. Thickness by site: Treece et al. 2010, *High resolution
cortical bone thickness measurement from clinical CT data*, and slices of clinical CT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from multipass.phantom.anatomy.extremities import shaft
from multipass.phantom.anatomy.lattice import Block, enlarged, lattice_points
from multipass.phantom.anatomy.shapes import along
from multipass.phantom.recipe import Recipe

COARSE = 4  # lattice steps between the points at which smooth fields are worked out
FAT_HU = -70.0
# Such that the brightest HU at the surface, their medians and deciles, are as in public clinical CT
CORTEX_MM, SACRUM_CORTEX_MM = (0.35, 1.6), (0.15, 0.9)
OTHER_CORTEX = 0.7  # of bones that are not segmented, a share of the patient's cortex
FINE, PATCHES, PATCHY_HU = 0.5, 0.2, 90.0  # roughness of marrow, over one and over five steps
HU_CHANGE = 0.12  # of the cortex, relative, over a few centimetres
CORTEX_RANGE_MM = (0.6, 3.5)  # of `Recipe.cortex_mm`
SHAFT_START_MM, SHAFT_END_MM, SHAFT_BLEND_MM = -45.0, -330.0, 60.0
SHAFT_CORTEX_MM = (4.0, 8.0)
SHAFT_REACH_MM = 28.0  # of the other long bones' thick cortex, from the middle of their shafts


@dataclass(frozen=True)
class Site:
    """A place on or in a bone, fading out over `reach_mm` from a line.

    Attributes:
        cortex_mm: least and greatest thickness of the cortex, None for that of the bone.
        filling: factor on the trabecular HU; 0 is fat.
    """

    points: Sequence[tuple[float, float, float]]
    reach_mm: float
    cortex_mm: tuple[float, float] | None = None
    filling: float | None = None


HIP = (
    Site([(105, -10, 50), (95, 8, 52), (84, 20, 65), (110, 2, 74), (98, 5, 36)], 17, (0.25, 1.0)),
    Site([(50, 50, 28), (56, 28, 16), (60, 10, 4), (62, -8, -12), (58, -28, -30)], 12, (2.0, 4.0)),
    Site([(60, 42, 12), (68, 30, -6), (74, 26, -22)], 11, (2.0, 4.0)),
    Site([(84, -18, -13), (92, -10, -13), (96, 0, -17)], 9, (1.6, 3.0), 2.2),
    Site([(62, 20, -92), (64, 24, -80)], 14, None, 0.6),
    Site([(14, -48, -62), (20, -46, -60)], 12, None, 0.8),
)
SACRUM = (  # both sides
    Site([(30, 30, 48), (38, 34, 40), (32, 42, 30)], 11, (0.15, 0.8), -0.1),
    Site([(24, 50, 12), (20, 58, 2)], 9, (0.15, 0.8), 0.2),
    Site([(0, 14, 58), (8, 16, 58)], 12, None, 1.2),
)
FEMUR = (
    Site([(0, 0, 0), (-6, -3, 6), (0, 2, 14)], 15, (0.3, 0.8)),
    Site([(-2, 0, 14), (2, 0, 4), (8, 2, -10), (14, 3, -24)], 8, None, 1.7),
    Site([(14, 3, -32), (20, 5, -44), (25, 7, -58), (27, 8, -74)], 11, (2.0, 4.0)),
    Site([(30, 7, -26), (36, 8, -36)], 7, None, 0.1),
    Site([(56, 12, -14), (58, 10, -28)], 11, (0.4, 1.0), 0.3),
)


@dataclass(frozen=True)
class BoneTissue:
    """Fields on a bone's lattice.

    Attributes:
        inner_mm: signed distance to the inner face of the cortex.
        cortex_hu, core_hu: outside and inside that face.
    """

    inner_mm: np.ndarray
    cortex_hu: np.ndarray
    core_hu: np.ndarray


def bone_tissue(
    recipe: Recipe, name: str, block: Block, to_frame: Callable[[np.ndarray], np.ndarray]
) -> BoneTissue:
    """Fields on the block's points; `to_frame` takes scene points to the bone's own frame."""
    rng = recipe.rng(name)
    coarse_shape = tuple(n // COARSE + 2 for n in block.array.shape)
    step = block.step_mm
    points = lattice_points(np.zeros(3), coarse_shape, step * COARSE)
    local = to_frame(points + (block.start * step).astype(np.float32))
    sites = _sites(name, recipe.limbs)
    if sites is SACRUM:
        local[:, 0] = np.abs(local[:, 0])
    low, high, filling = _by_site(sites, local, _usual_cortex(recipe, sites))
    cortex = low + (high - low) * _quantile(recipe, rng, coarse_shape, step).ravel()
    usual_hu = recipe.cortex_hu * float(rng.uniform(0.93, 1.07))
    change = np.clip(_noise(rng, coarse_shape, 10 / step), -2, 2).ravel()
    core = FAT_HU + (recipe.trabecular_hu - FAT_HU) * np.maximum(filling, 0)
    if sites is FEMUR:
        shaft = _shaft(local[:, 2])
        thick = np.interp(recipe.cortex_mm, CORTEX_RANGE_MM, SHAFT_CORTEX_MM)
        cortex = cortex * (1 - shaft) + thick * shaft
        core = core * (1 - shaft) + FAT_HU * shaft
    patches = _noise(rng, coarse_shape, 5.0).ravel()
    core += (PATCHES * _trabeculae(core) + PATCHY_HU * recipe.patchy) * patches
    cortex, hu, core = (
        enlarged(field.astype(np.float32).reshape(coarse_shape), block.array.shape, COARSE)
        for field in (cortex, usual_hu * (1 + HU_CHANGE * change), core)
    )
    fine = gaussian_filter(rng.standard_normal(core.shape, dtype=np.float32), 0.7, truncate=2)
    core += np.float32(FINE) * fine * _trabeculae(core)
    return BoneTissue(block.array + cortex, hu, core)


def _sites(name: str, arms: str) -> tuple[Site, ...]:
    parts = {"hip bone": HIP, "sacrum": SACRUM, "femur": FEMUR}
    if long := shaft(name.partition(" ")[2], arms):
        return (Site(long[0], SHAFT_REACH_MM, long[1], 0.0),)
    return next((sites for part, sites in parts.items() if name.endswith(part)), ())


def _usual_cortex(recipe: Recipe, sites: tuple[Site, ...]) -> tuple[float, float]:
    if sites:
        return SACRUM_CORTEX_MM if sites is SACRUM else CORTEX_MM
    return OTHER_CORTEX * recipe.cortex_mm, OTHER_CORTEX * recipe.cortex_mm


def _by_site(
    sites: tuple[Site, ...], points: np.ndarray, usual_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least and greatest cortex in mm and the filling at the points, each a blend of the sites."""
    low, high = (np.full(len(points), mm, np.float32) for mm in usual_mm)
    filling = np.ones(len(points), np.float32)
    for site in sites:
        weight = np.exp(-((_away(points, site.points) / np.float32(site.reach_mm)) ** 4))
        if site.cortex_mm:
            low += weight * (site.cortex_mm[0] - low)
            high += weight * (site.cortex_mm[1] - high)
        if site.filling is not None:
            filling += weight * (site.filling - filling)
    return low, high, filling


def _away(points: np.ndarray, line: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Distance in mm to a line through two or more points."""
    ends = np.array(line, np.float32)
    nearest = []
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        way, offset = end - start, points - start
        share = np.clip(along(offset, way) / (way @ way), 0, 1)
        nearest.append(((offset - share[:, None] * way) ** 2).sum(1))
    return np.sqrt(np.min(nearest, axis=0))


def _quantile(
    recipe: Recipe, rng: np.random.Generator, shape: tuple[int, ...], step_mm: float
) -> np.ndarray:
    """Where in its bounds the cortex lies, 0 to 1: the patient's share and a smooth change."""
    own = np.interp(recipe.cortex_mm, CORTEX_RANGE_MM, (0.05, 0.95))
    return np.clip(own + 0.25 * _noise(rng, shape, 9 / step_mm), 0, 1)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smooth noise of unit variance on coarse points; sigma in lattice steps."""
    field = rng.standard_normal(shape, dtype=np.float32)
    field = gaussian_filter(field, sigma / COARSE, truncate=2, mode="wrap")
    return field / field.std()


def _shaft(z: np.ndarray) -> np.ndarray:
    """1 along a femur's shaft, 0 at its ends; z in the femur's frame."""
    start = np.clip((SHAFT_START_MM - z) / SHAFT_BLEND_MM, 0, 1)
    return start * np.clip((z - SHAFT_END_MM) / SHAFT_BLEND_MM + 1, 0, 1)


def _trabeculae(core_hu: np.ndarray) -> np.ndarray:
    """HU above fat, in proportion to which marrow is rough."""
    return np.maximum(core_hu - np.float32(FAT_HU), 20)
