"""One patient's bones, bent, scaled and posed, as signed distances on an upright lattice.

Scene coordinates are LPS mm with the origin midway between the hip bones' centres; lattice point
(i, j, k) lies at (i, j, k) times the lattice's step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from multipass.phantom import bones, spine
from multipass.phantom.recipe import Recipe
from multipass.structures import PELVIS

MARGIN_MM = 8.0  # of lattice around a bone
DISC_GAP_MM = 2.5
LABELS = {structure.name: i + 1 for i, structure in enumerate(PELVIS)}

Shape = Callable[[np.ndarray], np.ndarray]


@dataclass
class Block:
    """A box of the lattice: `start` is the lattice index of array[0, 0, 0]."""

    start: np.ndarray
    array: np.ndarray
    step_mm: float

    def points(self) -> np.ndarray:
        return lattice_points(self.start, self.array.shape, self.step_mm)

    def overlap(self, other: Block) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """The slices of both arrays where the boxes overlap."""
        low = np.maximum(self.start, other.start)
        high = np.minimum(self.start + self.array.shape, other.start + other.array.shape)
        if (high <= low).any():
            return None
        mine, theirs = (
            tuple(slice(a, b) for a, b in zip(low - s, high - s, strict=True))
            for s in (self.start, other.start)
        )
        return mine, theirs


@dataclass
class Bone:
    """A bone: distance to its surface, to the inner face of its cortex, and the HU inside."""

    name: str
    label: int  # mask value, 0 for bone that is not segmented
    distance: Block
    inner: Block
    core_hu: Block


def lattice_points(start: np.ndarray, shape: tuple[int, ...], step_mm: float) -> np.ndarray:
    axes = [
        (s + np.arange(n, dtype=np.float32)) * np.float32(step_mm)
        for s, n in zip(start, shape, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


class Pose:
    """The ways from scene coordinates to the standing frames in which bones are modelled."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        rng = recipe.rng("pose")
        self.turn = Rotation.from_euler("xyz", recipe.pelvis_deg, degrees=True).as_matrix()
        self.size = np.asarray(recipe.stretch) * recipe.scale
        self.flare = 0.06 * (recipe.sex - 0.5) + rng.normal(0, 0.03)
        self.arch = 0.14 * (recipe.sex - 0.5) + rng.normal(0, 0.04)
        self.waves = rng.normal(0, 1, (6, 3)) * 2 * np.pi / 220
        self.shifts = rng.uniform(0, 2 * np.pi, 6)
        self.swing = rng.normal(0, 0.8, (6, 3)) * recipe.scale
        self.femur_scale = recipe.scale * float(np.clip(rng.normal(1, 0.02), 0.95, 1.04))
        self.femur_size = self.femur_scale * rng.normal(1, 0.02, 3)
        self.heads = {
            side: self.to_scene(np.array([[side * bones.HIP_CENTRE[0], *bones.HIP_CENTRE[1:]]]))[0]
            for side in (1, -1)
        }
        self.femur_turns = {
            side: Rotation.from_euler(
                "yxz", (-side * (abduct - 3), -flex, side * (8 - rotate)), degrees=True
            ).as_matrix()
            for side, (flex, abduct, rotate) in zip((1, -1), recipe.femur_deg, strict=True)
        }

    def to_pelvis(self, points: np.ndarray) -> np.ndarray:
        """Scene points (N, 3) in the pelvis frame."""
        p = (points @ self.turn.astype(np.float32)) / self.size.astype(np.float32)
        bend = np.zeros_like(p)
        for wave, shift, swing in zip(self.waves, self.shifts, self.swing, strict=True):
            bend += np.sin(p @ wave.astype(p.dtype) + shift)[:, None] * swing.astype(p.dtype)
        p = p + bend
        z = p[:, 2]
        p[:, 0] /= (
            1 + self.flare * np.clip(z - 5, 0, 90) / 90 + self.arch * np.clip(-50 - z, 0, 60) / 60
        )
        return p

    def to_scene(self, points: np.ndarray) -> np.ndarray:
        """Inverse of `to_pelvis`, by fixed-point iteration."""
        target = np.asarray(points, float)
        guess = (target * self.size) @ self.turn.T
        for _ in range(30):
            guess += ((target - self.to_pelvis(guess)) * self.size) @ self.turn.T
        return guess

    def to_femur(self, points: np.ndarray, side: int) -> np.ndarray:
        """Scene points in the left femur's frame, those of the right side mirrored."""
        p = (points - self.heads[side].astype(np.float32)) @ self.femur_turns[side].astype(
            np.float32
        )
        p *= np.float32((side, 1, 1))
        p /= np.float32(self.femur_scale)
        slant = np.float32(np.tan(np.radians(self.recipe.neck_deg)))
        p[:, 2] += slant * np.clip(p[:, 0], 0, 45)
        return p

    def femur_to_scene(self, points: np.ndarray, side: int) -> np.ndarray:
        p = np.array(points, float)
        slant = np.tan(np.radians(self.recipe.neck_deg))
        p[:, 2] -= slant * np.clip(p[:, 0], 0, 45)
        return (p * self.femur_scale * (side, 1, 1)) @ self.femur_turns[side].T + self.heads[side]


class Skeleton:
    """All bones that the scan reaches, none overlapping another."""

    def __init__(self, recipe: Recipe, pose: Pose):
        self.recipe, self.pose = recipe, pose
        self.step = recipe.lattice_mm
        self.bones: dict[str, Bone] = {}
        self._build()

    def _build(self) -> None:
        pose = self.pose
        for side, name in ((1, "left"), (-1, "right")):
            self._add(
                f"{name} femur", self._femur(side), self._box_of_femur(side), pose.femur_scale
            )
        for side, name in ((1, "left"), (-1, "right")):
            box = self._box([(min(0, side * 150), -95, -125), (max(0, side * 150), 95, 105)])
            mirrored = self._mirrored(bones.hip_bone, side)
            self._add(f"{name} hip bone", mirrored, box, self.recipe.scale)
        centre = self._mirrored
        self._add(
            "sacrum",
            centre(bones.sacrum, 1),
            self._box([(-70, -20, -35), (70, 95, 95)]),
            self.recipe.scale,
        )
        self._add(
            "coccyx",
            centre(bones.coccyx, 1),
            self._box([(-12, 30, -55), (12, 85, -10)]),
            self.recipe.scale,
        )
        for v in spine.SPINE:
            x, y, z = v.centre
            box = self._box([(-55, y - 32, z - 42), (55, y + 75, z + 36)])
            self._add(
                v.name, centre(lambda p, v=v: spine.vertebra(p, v), 1), box, self.recipe.scale
            )
        top = self.recipe.top_mm / self.pose.size[2]
        if top > 190:
            for side in (1, -1):
                box = self._box([(min(0, side * 150), -175, 80), (max(0, side * 150), 80, top)])
                self._add(
                    f"ribs {side}",
                    centre(lambda p, s=side: spine.ribs(p, s, top), 1),
                    box,
                    self.recipe.scale,
                )

    def _mirrored(self, shape: Shape, side: int) -> Shape:
        return lambda points: shape(self.pose.to_pelvis(points) * np.float32((side, 1, 1)))

    def _femur(self, side: int) -> Shape:
        return lambda points: bones.femur(self.pose.to_femur(points, side))

    def _box_of_femur(self, side: int) -> np.ndarray:
        corners = np.array([(x, y, z) for x in (-26, 75) for y in (-30, 40) for z in (-410, 26)])
        return self._bounds(self.pose.femur_to_scene(corners, side))

    def _box(self, box: list[tuple[float, float, float]]) -> np.ndarray:
        grid = np.stack(np.meshgrid(*np.transpose(box), indexing="ij"), -1).reshape(-1, 3)
        return self._bounds(self.pose.to_scene(grid))

    def _bounds(self, corners: np.ndarray) -> np.ndarray:
        low, high = corners.min(0) - MARGIN_MM, corners.max(0) + MARGIN_MM
        low[2] = max(low[2], self.recipe.bottom_mm - MARGIN_MM)
        high[2] = min(high[2], self.recipe.top_mm + MARGIN_MM)
        return np.array([np.floor(low / self.step), np.ceil(high / self.step)]).astype(int)

    def _add(self, name: str, shape: Shape, box: np.ndarray, scale: float) -> None:
        size = box[1] - box[0] + 1
        if (size < 3).any():
            return
        points = lattice_points(box[0], tuple(size), self.step)
        array = (shape(points) * np.float32(scale)).reshape(size).astype(np.float32)
        block = Block(box[0], array, self.step)
        for other in self.bones.values():
            self._keep_apart(name, block, other)
        inner, core = self._inside(name, block, points)
        self.bones[name] = Bone(name, LABELS.get(name, 0), block, inner, core)

    def _keep_apart(self, name: str, block: Block, other: Bone) -> None:
        """Cut a new bone back where it comes nearer to an older one than the joint's gap."""
        where = block.overlap(other.distance)
        if where is None:
            return
        gap = DISC_GAP_MM
        if "femur" in other.name:
            gap = self.recipe.hip_gap_mm
        elif "hip" in other.name and name == "sacrum":
            gap = self.recipe.sacroiliac_gap_mm
        mine, theirs = where
        block.array[mine] = np.maximum(block.array[mine], gap - other.distance.array[theirs])

    def _inside(self, name: str, block: Block, points: np.ndarray) -> tuple[Block, Block]:
        recipe = self.recipe
        shell = np.float32(recipe.cortex_mm)
        rng = recipe.rng(name)
        texture = rng.standard_normal(block.array.shape, dtype=np.float32)
        fine = gaussian_filter(texture, 0.7) * 2.0
        coarse = gaussian_filter(texture[::4, ::4, ::4], 1.2) * 7.0
        coarse = (
            coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(slice(n) for n in texture.shape)]
        )
        core = recipe.trabecular_hu * (1 + 0.3 * fine + 0.25 * coarse)
        if "femur" in name:
            side = 1 if name.startswith("left") else -1
            z = self.pose.to_femur(points, side)[:, 2].reshape(block.array.shape)
            shaft = np.clip((-45 - z) / 60, 0, 1)
            shell = shell * (1 - shaft) + (4.2 + 1.3 * recipe.cortex_mm) * shaft
            core = core * (1 - shaft) + (-60 + 40 * coarse) * shaft
        inner = Block(block.start, block.array + shell, self.step)
        return inner, Block(block.start, core.astype(np.float32), self.step)
