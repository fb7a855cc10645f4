"""What lies between bones."""

from dataclasses import replace

import numpy as np
import pytest

from multipass.phantom.anatomy import joints
from multipass.phantom.anatomy.lattice import Block
from multipass.phantom.anatomy.pose import Pose
from multipass.phantom.anatomy.scene import Skeleton
from multipass.phantom.recipe import draw_recipe
from multipass.phantom.subject import make_subject


@pytest.fixture(scope="module")
def skeleton():
    recipe = replace(draw_recipe(6, 2, 64, "small"), hip_gap_mm=3.0, sacroiliac_gap_mm=2.0)
    return Skeleton(Pose(recipe))


def test_a_space_lies_within_reach_of_both_bones_and_in_neither():
    points = np.indices((20, 10, 10))[0] * 1.0
    first, second = (Block(np.zeros(3, int), a, 1.0) for a in (points - 6, 12 - points))
    space = joints.between(first, second, 4.0)
    inside = np.flatnonzero((space.array < 0)[:, 0, 0])
    assert inside.min() == 9 and inside.max() == 9  # within 4 mm of what ends at 6 and at 12
    assert joints.between(first, replace(second, start=np.array((40, 0, 0))), 4.0) is None


def test_every_joint_of_the_pelvis_and_every_disc_holds_soft_tissue(skeleton):
    soft = {name for name, bone in skeleton.bones.items() if bone.kind == "soft"}
    assert {"left hip bone to right hip bone", "sacrum to L5"} <= soft
    assert {f"{side} hip bone to {side} femur" for side in ("left", "right")} <= soft
    assert {f"sacrum to {side} hip bone" for side in ("left", "right")} <= soft
    for name in soft:
        bone = skeleton.bones[name]
        assert bone.label == 0 and (bone.distance.array < 0).any(), name
        low, high = joints.SAC_HU if name.startswith("sac ") else joints.SOFT_HU
        gas = joints.VACUUM_HU[0] <= bone.hu <= joints.VACUUM_HU[1]
        assert low <= bone.hu <= high or gas, name


def test_bones_are_painted_over_what_lies_between_them(skeleton):
    kinds = [bone.kind for bone in skeleton.bones.values()]
    assert "soft" not in kinds[kinds.count("soft") :]


def test_no_fat_and_no_gas_in_the_hip_joint_nor_in_the_lowest_disc():
    subject = make_subject(
        6, 2, matrix=256, size="small", hip_gap_mm=4.0, noise_hu=0.0, streak_noise_hu=0.0,
        shading_hu=0.0, lattice_mm=2.0, slice_step_mm=4.0, slice_thickness_mm=1.0, limbs="",
        bowel=(1.0, 0.0, 0.0), pixel_mm=1.5, sharpness=0.0,
    )  # fmt: skip
    hips, femurs = np.isin(subject.label, (1, 2)), np.isin(subject.label, (4, 5))
    between = np.zeros(subject.label.shape, bool)
    between[2:-2] = ~(hips | femurs)[2:-2]
    for shift in (2, -2):  # pixels: a hip bone on the one hand, a femur on the other
        a, b = np.roll(hips, shift, 0), np.roll(femurs, -shift, 0)
        joint = subject.volume.array[a & b & between]
        assert joint.size > 20 and (joint > 0).mean() > 0.95
