"""Metal: hip prostheses and screws. Metal is neither hip bone, sacrum nor femur in the reference:
those are the bone that remains around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from multipass.phantom.bones import HIP_CENTRE, SOCKET_RADIUS
from multipass.phantom.pose import Pose
from multipass.phantom.shapes import Cloud, ball, plane, smooth_max, smooth_min, tube

METAL_HU = 9000.0  # far above what a scan stores; the writer's range cuts it
CUP_NORMAL = (0.7, -0.35, -0.6)

Metal = tuple[str, Callable[[np.ndarray], np.ndarray], list[tuple[float, float, float]], str]


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
def _joint_screw() -> Cloud:
    return tube([(78, 50, 36, 6.5), (74, 48, 38, 3.7), (8, 24, 50, 3.7), (-4, 20, 52, 3.2)])


def prosthesis(points: np.ndarray) -> np.ndarray:
    """Head, neck and stem, in the left femur's frame."""
    return smooth_min(ball(points, (0, 0, 0), 16), _stem()(points), 2)


def cup(points: np.ndarray) -> np.ndarray:
    """The metal back of the socket, in the pelvis frame."""
    radius = ball(points, HIP_CENTRE, 0)
    shell = smooth_max(radius - SOCKET_RADIUS - 1.5, SOCKET_RADIUS - 2.5 - radius, 0.5)
    return np.maximum(shell, plane(points, HIP_CENTRE, CUP_NORMAL) - 2)


def without_head(femur: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A femur's distance after its head and neck have been cut off for a prosthesis."""
    return np.maximum(femur, plane(points, (24, 4, -20), (-0.72, 0, 0.69)))


def prosthetic_sides(implant: str, chosen: int) -> tuple[int, ...]:
    """Sides (1 left, -1 right) with a prosthesis, `chosen` being the side of a single one."""
    return {"prosthesis": (chosen,), "two prostheses": (1, -1)}.get(implant, ())


def metal_parts(pose: Pose) -> list[Metal]:
    """(name, shape in scene points, corners of its box, frame of the box) of each metal part."""
    implant, side = pose.recipe.implant, pose.implant_side
    parts: list[Metal] = []
    for s in prosthetic_sides(implant, side):
        parts.append(
            (f"stem {s}", lambda p, s=s: prosthesis(pose.to_femur(p, s)),
             [(-18, -18, -142), (52, 20, 18)], f"femur {s}")
        )  # fmt: skip
        box = [tuple(np.array(HIP_CENTRE) * (s, 1, 1) + t) for t in (-32, 32)]
        parts.append(
            (f"cup {s}", lambda p, s=s: cup(pose.to_pelvis(p) * np.float32((s, 1, 1))), box, "")
        )
    if implant == "femoral neck screws":
        parts.append(
            ("neck screws", lambda p: _neck_screws()(pose.to_femur(p, side)),
             [(-15, -12, -72), (68, 20, 14)], f"femur {side}")
        )  # fmt: skip
    if implant == "sacroiliac screws":
        for s in (1, -1):
            box = [(min(s * 88, s * -10), 10, 25), (max(s * 88, s * -10), 60, 60)]
            parts.append(
                (f"screw {s}", lambda p, s=s: _joint_screw()(
                    pose.to_pelvis(p) * np.float32((s, 1, 1)) + np.float32((0, s * 5, s * 5))
                ), box, "")
            )  # fmt: skip
    return parts
