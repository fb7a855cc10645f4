"""One patient's bones and metal as signed distances on an upright lattice, none overlapping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from multipass.phantom.anatomy import limbs, spine
from multipass.phantom.anatomy.implants import (
    METAL_HU,
    metal_parts,
    prosthetic_sides,
    without_head,
)
from multipass.phantom.anatomy.individual import Box
from multipass.phantom.anatomy.lattice import Block, Shape, distances
from multipass.phantom.anatomy.pathology import add_lesions
from multipass.phantom.anatomy.pose import Pose
from multipass.phantom.anatomy.shapes import FAR_MM, Cloud
from multipass.phantom.anatomy.soft_tissue import ARTERIES
from multipass.structures import PELVIS

MARGIN_MM = 8.0  # of lattice around a bone
BONE_GAP_MM = 2.5  # between bones that have no joint
SCLEROSIS_MM = 8.0  # deep next to a worn joint
SIDES = ((1, "left"), (-1, "right"))
LABELS = {structure.name: i + 1 for i, structure in enumerate(PELVIS)}
OTHER_BONE_VALUE = len(PELVIS) + 1


@dataclass
class Bone:
    """Something hard: a bone, a piece of metal or a calcification.

    Attributes:
        label: 1 to 5 for a structure, OTHER_BONE_VALUE for other bones and teeth, 0 for what is
            no bone.
        kind: 'bone', 'metal', 'calcification', or 'painted' for bone that the soft tissue's
            lattice holds already.
        distance, inner: to the surface, and to the inner face of the cortex.
        shell_hu, core_hu: outside and inside that face.
    """

    name: str
    label: int
    kind: str
    distance: Block
    inner: Block
    shell_hu: float
    core_hu: Block


class Skeleton:
    """All bones that the scan reaches; metal is placed first, and bone gives way to it."""

    def __init__(self, pose: Pose):
        self.recipe, self.pose = pose.recipe, pose
        self.step = pose.recipe.lattice_mm
        self.bones: dict[str, Bone] = {}
        parts = metal_parts(self.recipe.implant, pose.implant_side, pose.individual.hip_centres)
        for piece in (*parts, *pose.individual.plates):
            shape = (self._in_femur if piece.frame == "femur" else self._in_pelvis)(
                piece.shape, piece.side
            )
            self._add(piece.name, shape, self._box(piece.box, piece.side, piece.frame), "metal")
        self._add_legs_and_pelvis()
        self._add_spine()
        if self.recipe.limbs:
            self._add_limbs()
        if self.recipe.calcifications:
            self._add_calcifications()
        if self.recipe.phleboliths:
            self._add_phleboliths()

    def _add_legs_and_pelvis(self) -> None:
        for side, name in SIDES:
            shape, box = self.pose.individual.femurs[side]
            if self.recipe.limbs:
                shape, box = limbs.with_condyles(shape, box)
            shape = self._in_femur(self._remaining(shape, side), side)
            self._add(f"{name} femur", shape, self._box(box, side, "femur"))
        for side, name in SIDES:
            shape, box = self.pose.individual.hips[side]
            self._add(f"{name} hip bone", self._in_pelvis(shape, side), self._box(box, side))
        for name in ("sacrum", "coccyx"):
            shape, box = getattr(self.pose.individual, name)
            self._add(name, self._in_pelvis(shape), self._box(box))

    def _add_spine(self) -> None:
        top = self.recipe.top_mm / self.pose.size[2]
        for v, turn in self._vertebrae():
            _, y, z = v.centre
            box = self._box(((-55, y - 32, z - 42), (55, y + 75, z + 36)))
            form = self.pose.individual.lumbar.get(v.name)
            posed: Shape = partial(spine.vertebra, shape=v, turn=turn, form=form)
            if v.name == "L5" and self.recipe.sacralised:
                posed = spine.sacralised(posed, v.centre, self.recipe.sacralised)
            self._add(v.name, self._in_pelvis(posed), box)
        if top > spine.LOWEST_RIB_MM:
            for side, name in SIDES:
                ribs = partial(spine.ribs, top_mm=top, vertebrae=self._levels)
                box = self._box(((0, -175, 80), (150, 80, top)), side)
                self._add(f"{name} ribs", self._in_pelvis(ribs, side), box)

    def _add_limbs(self) -> None:
        for name, shape, box, paired in limbs.upper_bones(self.recipe.limbs):
            for side, side_name in SIDES if paired else ((1, "the"),):
                self._add(f"{side_name} {name}", self._in_pelvis(shape, side), self._box(box, side))
        for name, bone, box in limbs.lower_bones():
            for side, side_name in SIDES:
                shape = self._in_femur(bone, side)
                self._add(f"{side_name} {name}", shape, self._box(box, side, "femur"))
        teeth = limbs.teeth()
        around = self._box((teeth.lower - 5, teeth.upper + 5))
        self._add("teeth", self._in_pelvis(teeth), around, "calcification")

    @property
    def _levels(self) -> tuple[spine.Vertebra, ...]:
        return spine.SPINE + (spine.UPPER_SPINE if self.recipe.limbs else ())

    def _vertebrae(self) -> list[tuple[spine.Vertebra, float]]:
        """The vertebrae moved onto the sacrum, and their turns, halved from one to the next."""
        person = self.pose.individual
        moved = [
            replace(v, centre=tuple(np.add(v.centre, person.spine_shift).tolist()))
            for v in self._levels
        ]
        return [(v, person.spine_tilt / 2**i) for i, v in enumerate(moved)]

    def _add_calcifications(self) -> None:
        """Plaques on the walls of the arteries."""
        rng = self.recipe.rng("calcifications")
        balls = []
        for _ in range(self.recipe.calcifications):
            artery = ARTERIES[rng.integers(len(ARTERIES))]
            place = rng.integers(len(artery.tree.data))
            way = rng.normal(0, 1, 3)
            way[2] = 0
            centre = artery.tree.data[place] + artery.radii[place] * way / np.linalg.norm(way)
            side = rng.choice([-1, 1])
            for step in range(int(rng.integers(1, 4))):
                balls.append(
                    (side * centre[0], centre[1], centre[2] + 2 * step, rng.uniform(1, 2.4))
                )
        cloud = Cloud(np.array(balls))
        low, high = np.array(balls).min(0)[:3], np.array(balls).max(0)[:3]
        self._add("plaques", self._in_pelvis(cloud), self._box((low, high)), "calcification")

    def _add_phleboliths(self) -> None:
        """Round stones in the veins beside bladder and rectum."""
        rng, count = self.recipe.rng("phleboliths"), self.recipe.phleboliths
        balls = rng.normal((36, 12, -45), (8, 14, 12), (count, 3)) * rng.choice(
            [(-1, 1, 1), (1, 1, 1)], count
        )
        cloud = Cloud(np.column_stack([balls, rng.uniform(1.2, 3.2, count)]))
        box = self._box((cloud.lower, cloud.upper))
        self._add("phleboliths", self._in_pelvis(cloud), box, "calcification")

    def _in_pelvis(self, shape: Shape, side: int = 1) -> Shape:
        scale = np.float32(self.recipe.scale)

        def posed(points: np.ndarray) -> np.ndarray:
            local = self.pose.to_pelvis(points)
            local[:, 0] *= side
            return shape(local) * scale

        return posed

    def _in_femur(self, shape: Shape, side: int) -> Shape:
        scale = np.float32(self.pose.femur_scale)
        return lambda points: shape(self.pose.to_femur(points, side)) * scale

    def _remaining(self, femur: Shape, side: int) -> Shape:
        """What a prosthesis leaves of a femur."""
        if side not in prosthetic_sides(self.recipe.implant, self.pose.implant_side):
            return femur
        return lambda points: without_head(femur(points), points)

    def _box(self, corners: Box, side: int = 1, frame: str = "pelvis") -> np.ndarray:
        """Lattice indices of the lowest and highest corner around a box of a standing frame (of
        the left side, mirrored for the right), cut to what the scan reaches."""
        grid = np.stack(np.meshgrid(*np.transpose(corners), indexing="ij"), -1).reshape(-1, 3)
        if frame == "femur":
            grid = self.pose.femur_to_scene(grid, side)
        else:
            grid = self.pose.to_scene(grid * (side, 1, 1))
        low, high = grid.min(0) - MARGIN_MM, grid.max(0) + MARGIN_MM
        low[2] = max(low[2], self.recipe.bottom_mm - MARGIN_MM)
        high[2] = min(high[2], self.recipe.top_mm + MARGIN_MM)
        return np.array([np.floor(low / self.step), np.ceil(high / self.step)]).astype(int)

    def _add(self, name: str, shape: Shape, box: np.ndarray, kind: str = "bone") -> None:
        if (box[1] - box[0] < 3).any():
            return
        block = distances(shape, box[0], box[1], self.step)
        if block.array.min() > 0:
            return
        if kind != "metal":
            for other in self.bones.values():
                self._keep_apart(name, block, other)
        if kind == "bone":
            inner, shell_hu, core = self._inside(name, block)
        else:
            hu = METAL_HU if kind == "metal" else self.recipe.rng(name).uniform(350, 1300)
            inner, shell_hu, core = Block(block.start, block.array + FAR_MM, self.step), hu, block
        label = LABELS.get(name, OTHER_BONE_VALUE if kind == "bone" or name == "teeth" else 0)
        self.bones[name] = Bone(name, label, kind, block, inner, shell_hu, core)

    def _keep_apart(self, name: str, block: Block, other: Bone) -> None:
        """Cut a new bone back where it comes nearer to an older one than the joint's gap."""
        where = block.overlap(other.distance)
        if where is None:
            return
        gap = 0.0 if other.kind == "metal" else self._joint_mm(name, other.name) or BONE_GAP_MM
        if "sacrum" in other.name and name == "L5":
            gap = 0.3 if self.recipe.sacralised else self.recipe.disc_gap_mm
        mine, theirs = where
        block.array[mine] = np.maximum(block.array[mine], gap - other.distance.array[theirs])

    def _joint_mm(self, name: str, older: str) -> float | None:
        """Width of the joint between two bones, None if they have none."""
        if "hip" in name and "femur" in older:
            return self.recipe.hip_gap_mm
        return self.recipe.sacroiliac_gap_mm if name == "sacrum" and "hip" in older else None

    def _inside(self, name: str, block: Block) -> tuple[Block, float, Block]:
        """Inner face of the cortex, HU of the cortex, HU of what lies inside."""
        recipe = self.recipe
        rng = recipe.rng(name)
        texture = rng.standard_normal(block.array.shape, dtype=np.float32)
        fine = gaussian_filter(texture, 0.7, truncate=2) * 2.0
        coarse = gaussian_filter(texture[::4, ::4, ::4], 1.2) * 7.0
        coarse = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(map(slice, texture.shape))]
        core = recipe.trabecular_hu * (1 + 0.3 * fine + 0.25 * coarse)
        if recipe.patchy:
            core += recipe.patchy * 90 * coarse
        for other in self.bones.values() if recipe.joint_sclerosis_hu else ():
            gap, where = self._joint_mm(name, other.name), block.overlap(other.distance)
            if gap is not None and where is not None:
                depth = (other.distance.array[where[1]] - gap) / SCLEROSIS_MM
                core[where[0]] += recipe.joint_sclerosis_hu * np.clip(1 - depth, 0, 1)
        if recipe.lesions:
            add_lesions(core, block, recipe.lesions, rng)
        shell: np.ndarray | float = recipe.cortex_mm
        if "femur" in name:
            side = 1 if name.startswith("left") else -1
            z = self.pose.to_femur(block.points(), side)[:, 2].reshape(block.array.shape)
            shaft = np.clip((-45 - z) / 60, 0, 1)
            shell = shell * (1 - shaft) + (3.2 + 1.4 * recipe.cortex_mm) * shaft
            core = core * (1 - shaft) + (-60 + 40 * coarse) * shaft
        elif LABELS.get(name, 0) == 0:
            shell = 0.7 * recipe.cortex_mm
        inner = Block(block.start, (block.array + shell).astype(np.float32), self.step)
        core_block = Block(block.start, core.astype(np.float32), self.step)
        return inner, recipe.cortex_hu * float(rng.uniform(0.93, 1.07)), core_block
