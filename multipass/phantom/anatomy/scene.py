"""One patient's bones and metal as signed distances on an upright lattice, none overlapping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from multipass.phantom.anatomy import joints, limbs, spine
from multipass.phantom.anatomy.bone_tissue import BoneTissue, bone_tissue
from multipass.phantom.anatomy.extremities import IN_FEMUR_FRAME
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
from multipass.phantom.anatomy.shapes import Cloud
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
        kind: 'bone', 'metal', 'calcification', 'soft' for what lies in a joint, or 'painted' for
            bone that the soft tissue's lattice holds already.
        distance: to the surface.
        hu: of what is not a bone.
        tissue: of a bone.
    """

    name: str
    label: int
    kind: str
    distance: Block
    hu: float
    tissue: BoneTissue | None


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
        self._add_joints()

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

    def _add_joints(self) -> None:
        """Discs, cartilage, fluid and the thecal sac, which every bone is painted over."""
        rng = self.recipe.rng("joints")
        soft: dict[str, tuple[Block | None, float]] = {}
        hips = [f"{side} hip bone" for _, side in SIDES]
        pairs = [(hips[0], hips[1], joints.SYMPHYSIS_MM)]
        for hip, (_, side) in zip(hips, SIDES, strict=True):
            pairs.append((hip, f"{side} femur", self.recipe.hip_gap_mm + joints.CAPSULE_MM))
            pairs.append(("sacrum", hip, self.recipe.sacroiliac_gap_mm + joints.CAPSULE_MM))
        for first, second, reach_mm in pairs:
            vacuum = joints.VACUUM_SHARE if first == "sacrum" else 0.0
            soft[f"{first} to {second}"] = self._space(first, second, reach_mm), vacuum
        below = "sacrum"
        for v, turn in self._vertebrae():
            space = self._space(below, v.name, joints.DISC_MM)
            if space is not None:
                space = joints.disc(space, v, turn, self.pose.to_pelvis)
            soft[f"{below} to {v.name}"], below = (space, joints.VACUUM_SHARE), v.name
        pieces = {
            name: Bone(name, 0, "soft", space, joints.soft_hu(rng, vacuum), None)
            for name, (space, vacuum) in soft.items()
            if space is not None
        }
        self.bones = pieces | self._sac(rng) | self.bones

    def _space(self, first: str, second: str, reach_mm: float) -> Block | None:
        if first not in self.bones or second not in self.bones:
            return None
        return joints.between(self.bones[first].distance, self.bones[second].distance, reach_mm)

    def _sac(self, rng: np.random.Generator) -> dict[str, Bone]:
        hu, pieces = float(rng.uniform(*joints.SAC_HU)), {}
        for v, turn in self._vertebrae():
            if v.name in self.bones:
                block = self.bones[v.name].distance
                shape = self._in_pelvis(partial(joints.sac, vertebra=v, turn=turn))
                array = shape(block.points()).reshape(block.array.shape)
                name = f"sac at {v.name}"
                pieces[name] = Bone(name, 0, "soft", replace(block, array=array), hu, None)
        return pieces

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
        if self.recipe.view:  # most bones lie beside it
            half = self.recipe.matrix * self.recipe.pixel_mm / 2 + MARGIN_MM
            low[:2] = np.maximum(low[:2], np.subtract(self.recipe.centre_mm, half))
            high[:2] = np.minimum(high[:2], np.add(self.recipe.centre_mm, half))
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
        tissue = self._tissue(name, block) if kind == "bone" else None
        hu = METAL_HU if kind == "metal" else self.recipe.rng(name).uniform(350, 1300)
        label = LABELS.get(name, OTHER_BONE_VALUE if kind == "bone" or name == "teeth" else 0)
        self.bones[name] = Bone(name, label, kind, block, hu, tissue)

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

    def _tissue(self, name: str, block: Block) -> BoneTissue:
        recipe = self.recipe
        tissue = bone_tissue(recipe, name, block, self._frame(name))
        core = tissue.core_hu
        for other in self.bones.values() if recipe.joint_sclerosis_hu else ():
            gap, where = self._joint_mm(name, other.name), block.overlap(other.distance)
            if gap is not None and where is not None:
                depth = (other.distance.array[where[1]] - gap) / SCLEROSIS_MM
                core[where[0]] += recipe.joint_sclerosis_hu * np.clip(1 - depth, 0, 1)
        if recipe.lesions:
            add_lesions(core, block, recipe.lesions, recipe.rng(f"lesions {name}"))
        return tissue

    def _frame(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """From the scene to the frame in which a bone is modelled."""
        side = -1 if name.startswith("right") else 1
        if name.endswith(IN_FEMUR_FRAME):
            return partial(self.pose.to_femur, side=side)
        return lambda points: self.pose.to_pelvis(points) * np.array((side, 1, 1), np.float32)
