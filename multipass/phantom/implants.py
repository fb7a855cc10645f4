"""Metal: hip prostheses and screws. Metal is neither hip bone, sacrum nor femur in the reference:
those are the bone that remains around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from multipass.phantom.bones import HIP_CENTRE, SOCKET_RADIUS
from multipass.phantom.lattice import Shape
from multipass.phantom.shapes import Cloud, ball, plane, smooth_max, smooth_min, tube

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
    if implant == "sacroiliac screws":
        for side in (1, -1):
            box = ((-10, 8, 22), (88, 62, 62))
            parts.append(Metal(f"screw {side}", "pelvis", side, _joint_screw(side), box))
    return parts
