"""Metal: hip prostheses, nails, plates and screws. Metal is neither hip bone, sacrum nor femur in
the reference: those are the bone that remains around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from scipy.spatial import cKDTree

from multipass.phantom.anatomy.bones import HIP_CENTRE, SOCKET_RADIUS
from multipass.phantom.anatomy.lattice import Shape
from multipass.phantom.anatomy.shapes import (
    Cloud,
    ball,
    plane,
    sheet,
    smooth_max,
    smooth_min,
    tube,
)
from multipass.phantom.anatomy.surface import Surface, vertex_normals

HOLE_MM = 10.0  # from one hole of a plate to the next
METAL_HU = 9000.0  # far above what a scan stores; the writer's range cuts it
CUP_NORMAL = (0.7, -0.35, -0.6)


@dataclass(frozen=True)
class Metal:
    """One piece: its shape and the box around it in a frame of the left side, and its side."""

    name: str
    frame: str  # 'pelvis' or 'femur'
    side: int  # 1 left, -1 right
    shape: Shape
    box: tuple[Sequence[float], Sequence[float]]


@cache
def _stem() -> Cloud:
    return tube(
        [(6, 1, -5, 6), (30, 5, -26, 6.5), (38, 8, -45, 9), (41, 8, -80, 8), (41, 6, -135, 5)], 2.0
    )


@cache
def _neck_screws() -> Cloud:
    ends = [((60, 10, -52), (-6, 3, 6)), ((60, 6, -62), (-8, -5, -5)), ((58, 14, -64), (-4, 8, -8))]
    points = [np.linspace(a, b, 60) for a, b in ends]
    return Cloud(np.column_stack([np.concatenate(points), np.full(180, 3.4)]))


@cache
def _joint_screw(side: int) -> Cloud:
    """From the back of the ilium into the body of S1; the two of a pair pass each other."""
    up = 5 * side
    return tube(
        [
            (78, 50 - up, 36 - up, 6.5), (74, 48 - up, 38 - up, 3.7), (8, 24 - up, 50 - up, 3.7),
            (-4, 20 - up, 52 - up, 3.2),
        ]
    )  # fmt: skip


@cache
def _nail() -> tuple[Cloud, ...]:
    """Down the shaft from the greater trochanter, with a screw through it into the head."""
    shaft = tube([(45, 6, 0, 6.5), (43, 7, -40, 6.5), (41, 7, -120, 5.5), (40, 5, -390, 5)])
    return shaft, tube([(62, 9, -60, 5), (-2, 2, 4, 5)])


@cache
def _hip_screw() -> tuple[Cloud, ...]:
    """A screw into the head that slides in a plate on the shaft."""
    plate = sheet(
        [[(57, 2, -45, 2.5), (57, 14, -45, 2.5)], [(56, 2, -130, 2.5), (56, 14, -130, 2.5)]]
    )
    screws = [tube([(58, 8, z, 2.3), (26, 8, z, 2.3)]) for z in (-75, -95, -115)]
    return plate, tube([(56, 9, -50, 4.5), (-4, 2, 6, 4.5)]), *screws


@cache
def _femoral_plate() -> tuple[Cloud, ...]:
    """Along the side of the shaft, with screws through both walls of it."""
    heights = (-40, -80, -180, -290)
    rows = [
        [(x, y, z, 2.3) for y in (0, 6, 12)] for x, z in zip((62, 57, 55, 53), heights, strict=True)
    ]
    screws = [tube([(58, 6, z, 2.4), (24, 7, z, 2.1)]) for z in range(-80, -291, -35)]
    return sheet(rows), *screws


FEMORAL = {"femoral nail": _nail, "hip screw": _hip_screw, "femoral plate": _femoral_plate}


def _any_of(points: np.ndarray, parts: Sequence[Cloud]) -> np.ndarray:
    return np.minimum.reduce([part(points) for part in parts])


def plates(bone: Surface, side: int, rng: np.random.Generator) -> list[Metal]:
    """One to three plates bent along a hip bone's surface, with a screw in every other hole."""
    normals, tree = vertex_normals(bone.vertices, bone.faces), cKDTree(bone.vertices)
    pieces = []
    for number in range(int(rng.integers(1, 4))):
        at, heading = int(rng.integers(len(bone.vertices))), rng.normal(0, 1, 3)
        rows: list[list[np.ndarray]] = [[], [], []]
        parts = []
        for hole in range(int(rng.integers(4, 10))):
            place, normal = bone.vertices[at], normals[at]
            heading = heading - (heading @ normal) * normal
            heading /= np.linalg.norm(heading)
            for row, offset in zip(rows, (-3.5, 0.0, 3.5), strict=True):
                beside = place + 1.5 * normal + offset * np.cross(normal, heading)
                row.append(np.append(beside, 1.8))
            if hole % 2:
                tip = (
                    place
                    - min(rng.uniform(12, 40), _thickness_mm(bone, place, normal) + 2) * normal
                )
                parts.append(tube([(*(place + 3 * normal), 2.0), (*tip, 1.8)]))
            at = int(tree.query(place + HOLE_MM * heading)[1])
        parts.append(sheet(rows))
        low, high = (
            f([getattr(p, end) for p in parts], axis=0) + grow
            for f, end, grow in ((np.min, "lower", -3), (np.max, "upper", 3))
        )
        shape = partial(_any_of, parts=parts)
        pieces.append(Metal(f"plate {number} {side}", "pelvis", side, shape, (low, high)))
    return pieces


def _thickness_mm(bone: Surface, place: np.ndarray, normal: np.ndarray) -> float:
    """How far a screw goes into a bone before it comes out of it."""
    depths = np.arange(3.0, 41.0, 2.0)
    outside = bone(place - depths[:, None] * normal) > 0
    return float(depths[outside.argmax()]) if outside.any() else float(depths[-1])


def prosthesis(points: np.ndarray) -> np.ndarray:
    """Head, neck and stem, in the left femur's frame."""
    return smooth_min(ball(points, (0, 0, 0), 16), _stem()(points), 2)


def cup(points: np.ndarray, centre: Sequence[float] = HIP_CENTRE) -> np.ndarray:
    """The metal back of the socket, in the pelvis frame."""
    radius = ball(points, centre, 0)
    shell = smooth_max(radius - SOCKET_RADIUS - 1.5, SOCKET_RADIUS - 2.5 - radius, 0.5)
    return np.maximum(shell, plane(points, centre, CUP_NORMAL) - 2)


def without_head(femur: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A femur's distance after its head and neck have been cut off for a prosthesis."""
    return np.maximum(femur, plane(points, (24, 4, -20), (-0.72, 0, 0.69)))


def prosthetic_sides(implant: str, chosen: int) -> tuple[int, ...]:
    """Sides (1 left, -1 right) with a prosthesis, `chosen` being the side of a single one."""
    return {"prosthesis": (chosen,), "two prostheses": (1, -1)}.get(implant, ())


def metal_parts(
    implant: str, chosen: int, hip_centres: Mapping[int, Sequence[float]]
) -> list[Metal]:
    """What is implanted; see `prosthetic_sides` for `chosen`."""
    parts = []
    for side in prosthetic_sides(implant, chosen):
        stem_box = ((-18, -18, -142), (52, 20, 18))
        parts.append(Metal(f"stem {side}", "femur", side, prosthesis, stem_box))
        low, high = ([v + t for v in hip_centres[side]] for t in (-32, 32))
        shell = partial(cup, centre=hip_centres[side])
        parts.append(Metal(f"cup {side}", "pelvis", side, shell, (low, high)))
    if implant == "femoral neck screws":
        box = ((-15, -12, -72), (68, 20, 14))
        parts.append(Metal("neck screws", "femur", chosen, _neck_screws(), box))
    shaft_box = ((-12, -8, -396), (70, 22, 14))
    for name, parts_of in FEMORAL.items():
        if implant == name:
            shape = partial(_any_of, parts=parts_of())
            parts.append(Metal(name, "femur", chosen, shape, shaft_box))
    if implant == "sacroiliac screws":
        for side in (1, -1):
            box = ((-10, 8, 22), (88, 62, 62))
            parts.append(Metal(f"screw {side}", "pelvis", side, _joint_screw(side), box))
    return parts
