"""What whole-body scans show beyond trunk and thighs: head, shoulders, arms, knees, shins and feet.

None of it is segmented, but for the lower end of the femurs: bone that must not be mistaken for the
pelvis, such as the heads of the humeri. Left side, pelvis frame (from the knee femur frame), mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from multipass.phantom.anatomy.extremities import ARMS, both, foot_bones, hand, rod
from multipass.phantom.anatomy.lattice import Shape
from multipass.phantom.anatomy.shapes import (
    Cloud,
    along,
    ellipsoid,
    sheet,
    smooth_max,
    smooth_min,
    tube,
    union,
    within,
)

Box = tuple[Sequence[float], Sequence[float]]

NECK_MM = 520.0  # the height where the neck begins
KNEE_MM = -470.0
ANKLE_MM, FOOT_MM = -845.0, -760.0  # where the leg ends and the foot's flesh begins, femur frame
LEAN = 0.25  # how thick the fat is there and on arms and shins, as a share of the trunk's
FAT_REACH_MM = 90.0  # from the flesh, more than fat is thick there
SKULL_MM = 7.0
CRANIUM = ((0, -2, 735), (74, 93, 80))
FACE = ((0, -62, 668), (52, 34, 48))
# Orbit; then what holds air: maxillary sinus, nose, ethmoid cells, sphenoid and frontal sinuses
HOLLOWS = (
    ((32, -86, 690), (19, 22, 17)), ((27, -64, 656), (15, 20, 15)), ((0, -70, 660), (12, 44, 20)),
    ((9, -68, 688), (6, 20, 9)), ((8, -34, 686), (8, 10, 8)), ((11, -90, 716), (9, 5, 9)),
)  # fmt: skip
ARM_RADII_MM = (46, 42, 31, 14)


def upper_bones(arms: str) -> list[tuple[str, Shape, Box, bool]]:
    """Name, shape, box and whether there are two, of all bones above the trunk's."""
    shoulder, elbow, wrist, fingers = (np.asarray(place, float) for place in ARMS[arms])
    clouds = {
        "humerus": _humerus(shoulder, elbow),
        "radius": rod(elbow + (8, 0, 0), wrist + (8, 0, 0), 9, 6.5, 12),
        "ulna": rod(elbow - (8, 0, 0), wrist - (8, 0, 0), 12, 6, 8),
        "hand": hand(wrist, fingers, arms),
        "clavicle": tube([(14, -78, 505, 11), (60, -80, 518, 6), (130, -20, 535, 6),
                          (162, 6, 532, 7)]),
        "scapula": _scapula(),
    }  # fmt: skip
    bones = [(name, cloud, _box(cloud), True) for name, cloud in clouds.items()]
    sternum = sheet(
        [[(-16, -108, 500, 6), (16, -108, 500, 6)], [(-14, -128, 400, 6), (14, -128, 400, 6)]]
    )
    jaw = _jaw()
    return [
        *bones,
        ("sternum", sternum, _box(sternum), False),
        ("skull", skull, ((-80, -100, 615), (80, 95, 820)), False),
        ("mandible", jaw, _box(jaw), False),
    ]


def lower_bones() -> list[tuple[str, Cloud, Box]]:
    """Name, shape and box of the bones below the femur, femur frame."""
    tibia = [
        (29, 8, -474, 22), (29, 8, -500, 20), (27, 4, -560, 14.5), (25, 4, -650, 12.5),
        (24, 8, -740, 12), (22, 10, -800, 17),
    ]  # fmt: skip
    plateau = [(8, 10, -468, 15), (29, 8, -468, 15), (50, 10, -468, 15)]
    fibula = [(60, 28, -484, 9), (60, 27, -505, 6), (56, 24, -620, 6), (48, 20, -800, 8)]
    patella = sheet(
        [[(18, -38, -402, 8), (40, -38, -402, 8)], [(23, -37, -426, 7), (35, -37, -426, 7)]]
    )
    clouds = {"tibia": both(tube(tibia), tube(plateau)), "fibula": tube(fibula),
              "patella": patella}  # fmt: skip
    return [(name, cloud, _box(cloud)) for name, cloud in (clouds | foot_bones()).items()]


def with_condyles(femur: Shape, box: Box) -> tuple[Shape, Box]:
    """A femur, which ends above the knee, down to the joint."""

    def whole(points: np.ndarray) -> np.ndarray:
        return smooth_min(femur(points), _condyles()(points), 10)

    (x, y, _), high = box
    return whole, ((min(x, -18), min(y, -32), -452), high)


@cache
def _condyles() -> Cloud:
    sides = [tube([(x, -10, -414, 17), (x, 10, -424, 21), (x, 28, -418, 18)], 3.0) for x in (8, 50)]
    return both(*sides, tube([(28, 12, -400, 25), (29, 2, -414, 22)], 3.0))


def _box(cloud: Cloud) -> Box:
    return tuple(cloud.lower - cloud.thickest), tuple(cloud.upper + cloud.thickest)


def _humerus(shoulder: np.ndarray, elbow: np.ndarray) -> Cloud:
    head = tube([(*(shoulder - (14, 0, 0)), 23), (*shoulder, 21)], 3.0)
    return both(head, rod(shoulder, elbow, 21, 11.5, 17))


def _scapula() -> Cloud:
    blade = sheet(
        [
            [(70, 84, 520, 3), (110, 68, 528, 4), (146, 34, 520, 8)],
            [(78, 92, 460, 3), (104, 84, 455, 3), (140, 42, 488, 8)],
            [(92, 92, 392, 3), (98, 90, 390, 3), (106, 84, 394, 4)],
        ]
    )
    ridge = tube([(84, 92, 506, 5), (128, 76, 526, 6), (166, 40, 536, 8), (176, 10, 532, 7)])
    return both(blade, ridge)


def skull(points: np.ndarray) -> np.ndarray:
    """A shell around the brain, and a face with orbits, sinuses and a nose."""
    brain = cranium(points)
    shell = smooth_max(brain, -SKULL_MM - brain, 2)
    p = folded(points)
    face = ellipsoid(p, *FACE)
    for centre, radii in HOLLOWS:
        face = smooth_max(face, -ellipsoid(p, centre, radii), 3)
    return smooth_min(shell, smooth_max(face, -SKULL_MM - brain, 2), 4)


def cranium(points: np.ndarray) -> np.ndarray:
    """The outer face of the braincase."""
    return smooth_max(ellipsoid(points, *CRANIUM), 672 - along(points, (0, 0.35, 1)), 20)


def _jaw() -> Cloud:
    half = [(50, -12, 668, 7), (47, -20, 636, 8), (42, -34, 614, 9), (26, -72, 604, 8),
            (0, -90, 602, 10)]  # fmt: skip
    return both(tube(half), tube([(-x, *rest) for x, *rest in half]))


@cache
def teeth() -> Cloud:
    arch = [(30, -62), (24, -78), (10, -90), (0, -92)]
    rows = [[(x, y, z, 4.5) for x, y in arch] for z in (624, 634)]
    return both(*[tube([(s * x, *rest) for x, *rest in row]) for row in rows for s in (1, -1)])


def outline(points: np.ndarray, arms: str) -> np.ndarray:
    """Distance to the flesh of head, neck, shoulders and arms, points in the pelvis frame."""
    p = folded(points)
    arm = [(*place, r) for place, r in zip(ARMS[arms], ARM_RADII_MM, strict=True)]
    parts = [
        ellipsoid(p, CRANIUM[0], [r + 6 for r in CRANIUM[1]]),
        ellipsoid(p, (0, -58, 645), (60, 44, 66)),
        _far(tube([(0, 14, 670, 50), (0, 14, 580, 56), (0, 4, 500, 70)], 8.0), p),
        _far(tube([(60, 14, 505, 62), (130, 16, 500, 52), (172, 16, 496, 48)], 8.0), p),
        _far(tube(arm, 8.0), p),
    ]
    if arms == "arms up":  # the right hand's fingers cross over to this side
        parts.append(_far(tube([(-x, *rest) for x, *rest in arm[2:]], 8.0), p))
    return union(parts, 20)


def with_foot(leg: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance to the flesh of a leg that ends in a foot, from that of one that goes on and on;
    femur frame."""
    low = np.flatnonzero(points[:, 2] < FOOT_MM)
    if low.size:
        ended = np.maximum(leg[low], np.float32(ANKLE_MM) - points[low, 2])
        foot = union([_far(cloud, points[low]) for cloud in FOOT], 15)
        leg[low] = smooth_min(ended, foot, 15)
    return leg


def folded(points: np.ndarray) -> np.ndarray:
    """The points of the right side mirrored onto the left."""
    return np.stack([np.abs(points[:, 0]), points[:, 1], points[:, 2]]).T


def _far(cloud: Cloud, points: np.ndarray) -> np.ndarray:
    """A cloud's distance, exact as far away as fat may reach."""
    margin = cloud.thickest + FAT_REACH_MM
    near = np.flatnonzero(within(points, cloud.lower - margin, cloud.upper + margin))
    distance, nearest = cloud.tree.query(points[near], distance_upper_bound=margin)
    result = np.full(len(points), FAT_REACH_MM, np.float32)
    result[near] = np.minimum(distance - cloud.radii[nearest], FAT_REACH_MM)
    return result


AIRWAY = tube(
    [(0, -62, 662, 10), (0, -30, 650, 9), (0, -24, 610, 8), (0, -38, 560, 9), (0, -30, 480, 9),
     (0, -24, 440, 9)],
    4.0,
)  # fmt: skip
FOOT = (
    tube([(24, 10, -800, 34), (24, 16, -840, 34), (26, 46, -866, 24)], 6.0),
    tube([(24, 4, -830, 32), (26, -30, -862, 30), (30, -80, -906, 24)], 6.0),
    tube([(8, -80, -914, 17), (10, -122, -934, 11)], 6.0),
    tube([(46, -64, -900, 16), (48, -84, -912, 11)], 6.0),
)
CALF = (
    tube([(18, 42, -450, 14), (20, 44, -530, 23), (26, 38, -620, 17), (28, 32, -720, 8)], 6.0),
    tube([(44, 40, -450, 13), (44, 40, -520, 20), (38, 36, -610, 15), (32, 32, -720, 8)], 6.0),
    tube([(46, -6, -490, 8), (46, -4, -560, 12), (42, -4, -700, 6)], 6.0),
)
