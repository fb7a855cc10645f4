"""The lattice on which soft tissue is painted, and the outlines of body and body cavity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

from multipass.phantom.anatomy import limbs
from multipass.phantom.anatomy.lattice import Block, enlarged
from multipass.phantom.anatomy.pose import Pose
from multipass.phantom.anatomy.scene import OTHER_BONE_VALUE, Bone
from multipass.phantom.anatomy.shapes import FAR_MM, smooth_max, smooth_min

AIR_HU = -1000.0
COVER_MM = 20.0  # from a bone; farther away its distance is only a lower bound


class Canvas:
    """Hounsfield units on a lattice, painted shape by shape with soft edges.

    Attributes:
        points: (N, 3) lattice points in the scene; `select` narrows them to the body.
        pelvis: the same points in the pelvis frame, as they are (1) and mirrored (-1).
        outline: distance to the outer face of the muscle layer.
        fat_share: of the trunk's fat, or 1 everywhere.
        bone_mm: distance to the bones that `measure` was given, cut at COVER_MM.
        cavity: distance to the walls of abdomen and true pelvis.
        stool: HU, for the points that turn out to lie in stool.
        painted: all bones that are painted here, as one, or none.
    """

    def __init__(self, pose: Pose):
        self.recipe, self.pose = pose.recipe, pose
        recipe, step = pose.recipe, pose.recipe.tissue_mm
        half = recipe.matrix * recipe.pixel_mm / 2 + 2 * step
        x, y = recipe.centre_mm
        low = np.array([x - half, y - half, recipe.bottom_mm - 2 * step])
        high = np.array([x + half, y + half, recipe.top_mm + 2 * step])
        start, end = np.floor(low / step).astype(int), np.ceil(high / step).astype(int)
        self.block = Block(start, np.full(end - start + 1, AIR_HU, np.float32), step)
        self.all: np.ndarray = np.arange(self.block.array.size)
        self.points = self.block.points()
        self.hu: np.ndarray = self.block.array.reshape(-1)
        self.rng = recipe.rng("tissue")
        self.painted: list[Bone] = []
        self.outline, self.fat_share = outline(self), 1.0
        self.bone_mm: np.ndarray = np.full(len(self.points), COVER_MM, np.float32)
        if recipe.limbs:
            self._add_limbs()

    def _add_limbs(self) -> None:
        """Head, neck, shoulders and arms join the outline; fat is thinner on them, and on shins."""
        scale = np.float32(self.recipe.scale)
        trunk = smooth_max(
            self.outline, self.pose.to_body(self.points)[:, 2] - limbs.NECK_MM * scale, 30
        )
        limb = limbs.outline(self.pose.to_pelvis(self.points), self.recipe.limbs) * scale
        lean = (limb < trunk) | (self.points[:, 2] < limbs.KNEE_MM * scale)
        share = np.where(lean, np.float32(limbs.LEAN), np.float32(1))
        shape = self.block.array.shape
        blurred = gaussian_filter(share.reshape(shape), 20 / self.recipe.tissue_mm, truncate=2)
        self.outline, self.fat_share = smooth_min(trunk, limb, 25), blurred.reshape(-1)

    def select(self, where: np.ndarray) -> None:
        """Go on with these points only."""
        self.all = np.flatnonzero(where)
        self.points = _columns(self.points, self.all)
        self.outline, self.bone_mm = self.outline[self.all], self.bone_mm[self.all]
        self.hu = self.hu[self.all]
        pelvis = self.pose.to_pelvis(self.points)
        self.pelvis = {1: pelvis, -1: _mirrored(pelvis)}
        self.cavity = cavity(pelvis)
        if self.recipe.limbs:
            self.cavity = smooth_max(self.cavity, pelvis[:, 2] - limbs.NECK_MM, 40)
        lumps = 20 + 250 * np.minimum(self.noise(3) + 0.8, 0.4)
        self.stool = np.clip(lumps, -850, 140)

    def cover(self, hard: list[Block], flesh_mm: float) -> None:
        """Move the outline outwards where it lies less than `flesh_mm` outside a shape."""
        for near, distance in self._beside(hard):
            self.outline[near] = smooth_min(self.outline[near], distance - np.float32(flesh_mm), 10)

    def measure(self, hard: list[Block]) -> None:
        """Keep how far the points lie from the nearest of these shapes, up to COVER_MM."""
        for near, distance in self._beside(hard):
            self.bone_mm[near] = np.minimum(self.bone_mm[near], distance)

    def _beside(self, hard: list[Block]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each shape the indices of the points within COVER_MM and their distances."""
        index = self.all.reshape(self.block.array.shape)
        for block in hard:
            ends = np.stack([block.start - 1, block.start + block.array.shape]) * block.step_mm
            low, high = np.rint(ends / self.block.step_mm).astype(int) - self.block.start
            box = tuple(slice(max(a, 0), max(b, 0) + 1) for a, b in zip(low, high, strict=True))
            near = index[box].ravel()
            place = np.rint(self.points[near] / np.float32(block.step_mm)).astype(int)
            place -= block.start
            inside = np.flatnonzero(((place >= 0) & (place < block.array.shape)).all(axis=1))
            distance = block.array[tuple(place[inside].T)]
            close = distance < COVER_MM
            yield near[inside[close]], distance[close]

    def store(self) -> None:
        self.block.array.reshape(-1)[self.all] = self.hu

    def noise(self, sigma_mm: float) -> np.ndarray:
        """Smooth noise of unit variance at the points."""
        shrink = max(int(sigma_mm / self.recipe.tissue_mm / 1.5), 1)
        size = [n // shrink + 2 for n in self.block.array.shape]
        field = gaussian_filter(self.rng.standard_normal(size, dtype=np.float32), 1.5, truncate=2)
        field /= field.std()
        return enlarged(field, self.block.array.shape, shrink).reshape(-1)[self.all]

    def keep_bone(self, near: np.ndarray, distance: np.ndarray) -> None:
        """Remember a bone that is painted here, for the labels.

        Args:
            near: indices into all of the lattice that `distance` is for.
        """
        if not self.painted:
            far = np.full(self.block.array.shape, FAR_MM, np.float32)
            block = Block(self.block.start, far, self.block.step_mm)
            self.painted = [Bone("painted", OTHER_BONE_VALUE, "painted", block, 0.0, None)]
        known = self.painted[0].distance.array.reshape(-1)
        known[near] = np.minimum(known[near], distance)

    def fill(
        self, distance: np.ndarray, hu: float | np.ndarray, where: np.ndarray | None = None
    ) -> None:
        """Paint where the distance is negative, with a soft edge.

        Args:
            hu: a number, or a value for each of the canvas's points.
            where: indices of the points that `distance` is for; all by default.
        """
        cover = np.clip(0.5 - distance / np.float32(self.recipe.tissue_mm), 0, 1)
        hit = np.flatnonzero(cover)
        cover = cover[hit]
        index = hit if where is None else where[hit]
        value = hu[index] if isinstance(hu, np.ndarray) else np.float32(hu)
        self.hu[index] += cover * (value - self.hu[index])


def _columns(points: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.stack([points[where, d] for d in range(3)]).T


def _mirrored(points: np.ndarray) -> np.ndarray:
    return np.stack([-points[:, 0], points[:, 1], points[:, 2]]).T


def outline(canvas: Canvas) -> np.ndarray:
    """Distance to the outer face of the muscle layer: trunk and thighs."""
    p, scale = canvas.pose.to_body(canvas.points), np.float32(canvas.recipe.scale)
    wide, deep = (np.float32(g) for g in canvas.recipe.girth)
    z = p[:, 2] / scale
    half_x, half_y, centre_y = (_profile(z, column) for column in (1, 2, 3))
    half_x, half_y = half_x * wide, half_y * deep
    x = np.abs(p[:, 0] / scale) / half_x
    y = np.abs(p[:, 1] / scale - centre_y) / half_y
    trunk = ((x**2.5 + y**2.5) ** 0.4 - 1) * np.minimum(half_x, half_y) * scale
    result = np.maximum(trunk, (-95 - z) * scale).astype(np.float32)
    low = np.flatnonzero(z < 80)
    below = _columns(canvas.points, low)
    for side in (1, -1):
        q = canvas.pose.to_femur(below, side)
        axis = np.interp(q[:, 2], (-420, -60), (26, 28)).astype(np.float32)
        radius = np.interp(q[:, 2], *LEG_RADIUS)
        leg = np.hypot(q[:, 0] - axis, q[:, 1] - 2) - radius.astype(np.float32)
        leg = limbs.with_foot(leg, q) * scale
        result[low] = smooth_min(result[low], leg, 25 * float(scale))
    return result + 2.0 * canvas.noise(40)


# Height, half width, half depth and middle (front to back) of the muscle layer's outline
OUTLINE = np.array(
    [
        (-260, 120, 60, 5), (-120, 158, 82, 0), (-60, 166, 96, 2), (0, 160, 98, 4),
        (60, 150, 96, 0), (110, 140, 94, -14), (170, 136, 95, -22), (260, 142, 100, -24),
        (380, 150, 105, -20),
    ]
)  # fmt: skip
# Of a leg: heights in the femur's frame, and radii. Only whole bodies reach below the knee.
LEG_RADIUS = (
    (-800, -680, -560, -490, -420, -150, -80, -20, 70),
    (36, 44, 57, 58, 58, 76, 80, 72, 10),
)
CAVITY = np.array(
    [
        (-75, 15, 15, 0), (-40, 45, 50, 5), (0, 55, 62, 0), (40, 85, 62, -18), (90, 112, 62, -32),
        (200, 118, 68, -40), (400, 120, 75, -38),
    ]
)  # fmt: skip


def _profile(z: np.ndarray, column: int, table: np.ndarray = OUTLINE) -> np.ndarray:
    return np.interp(z, table[:, 0], table[:, column]).astype(np.float32)


def cavity(p: np.ndarray) -> np.ndarray:
    """Distance to the walls of abdomen and true pelvis, pelvis frame."""
    half_x, half_y, centre_y = (_profile(p[:, 2], column, CAVITY) for column in (1, 2, 3))
    rho = np.hypot(p[:, 0] / half_x, (p[:, 1] - centre_y) / half_y)
    return (rho - 1) * np.minimum(half_x, half_y)
