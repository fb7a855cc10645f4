"""Vertebrae and ribs: bone around the pelvis that must not be mistaken for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from multipass.phantom.anatomy.lattice import Shape
from multipass.phantom.anatomy.shapes import (
    Cloud,
    sheet,
    smooth_max,
    smooth_min,
    tube,
    union,
)


@dataclass(frozen=True)
class Vertebra:
    """One vertebra in the pelvis frame; `tilt` turns it about the left-right axis (radians)."""

    name: str
    centre: tuple[float, float, float]
    tilt: float
    width_mm: float
    rib_mm: float  # length of the rib that it carries, 0 for none
    chest: float = 1.0  # size of the chest there


# Body centres up a mean lordosis, the tilt of the upper end plate, width, rib
SPINE = (
    Vertebra("L5", (0, -3, 84), 0.28, 50, 0),
    Vertebra("L4", (0, -11, 119), 0.10, 49, 0),
    Vertebra("L3", (0, -13, 155), -0.02, 47, 0),
    Vertebra("L2", (0, -10, 191), -0.12, 45, 0),
    Vertebra("L1", (0, -4, 226), -0.18, 43, 0),
    Vertebra("T12", (0, 4, 259), -0.20, 41, 110),
    Vertebra("T11", (0, 12, 290), -0.22, 39, 190),
    Vertebra("T10", (0, 19, 319), -0.20, 37, 290),
    Vertebra("T9", (0, 25, 347), -0.16, 36, 330),
    Vertebra("T8", (0, 29, 374), -0.10, 35, 330),
    Vertebra("T7", (0, 32, 400), -0.05, 34, 330),
    Vertebra("T6", (0, 33, 425), 0.0, 33, 330),
    Vertebra("T5", (0, 33, 449), 0.05, 32, 330),
    Vertebra("T4", (0, 32, 472), 0.1, 31, 330),
)

# Of whole-body scans only
UPPER_SPINE = (
    Vertebra("T3", (0, 30, 494), 0.14, 31, 330, 0.86),
    Vertebra("T2", (0, 27, 515), 0.2, 31, 330, 0.7),
    Vertebra("T1", (0, 22, 535), 0.22, 31, 300, 0.52),
    Vertebra("C7", (0, 16, 553), 0.2, 29, 0),
    Vertebra("C6", (0, 11, 569), 0.12, 27, 0),
    Vertebra("C5", (0, 8, 584), 0.04, 26, 0),
    Vertebra("C4", (0, 7, 599), -0.04, 26, 0),
    Vertebra("C3", (0, 8, 614), -0.1, 26, 0),
    Vertebra("C2", (0, 10, 629), -0.1, 27, 0),
    Vertebra("C1", (0, 13, 644), -0.1, 30, 0),
)

RIB_DROP_MM = 60.0  # a rib may reach this far below its vertebra
LOWEST_RIB_MM = min(v.centre[2] for v in SPINE if v.rib_mm) - RIB_DROP_MM


@cache
def _arch() -> Cloud:
    """Pedicles, laminae, processes of a mean lumbar vertebra, body centre at the origin."""
    parts = [
        sheet(
            [
                [(0, 38, -2, 3.5), (0, 50, -5, 4), (0, 62, -9, 4)],
                [(0, 40, -12, 4), (0, 50, -15, 4), (0, 60, -16, 4.5)],
            ]
        )
    ]
    for side in (-1, 1):
        parts += [
            tube([(side * 16, 14, 5, 6.5), (side * 17, 24, 4, 5.5), (side * 17, 30, 2, 6)]),
            sheet(
                [
                    [(side * 16, 31, 0, 5), (side * 2, 40, -3, 4)],
                    [(side * 15, 32, -14, 5), (side * 2, 41, -12, 4)],
                ]
            ),
            tube([(side * 17, 30, 3, 6), (side * 19, 33, 12, 6.5), (side * 19, 32, 17, 5)]),
            tube([(side * 14, 33, -13, 6), (side * 14, 36, -22, 6)]),
            tube([(side * 18, 27, 3, 5.5), (side * 32, 29, 3, 4.5), (side * 43, 30, 4, 4.5)]),
        ]
    balls = np.concatenate([np.column_stack([p.tree.data, p.radii[:-1]]) for p in parts])
    return Cloud(balls)


def to_vertebra(points: np.ndarray, shape: Vertebra, turn: float = 0.0) -> np.ndarray:
    """Points of the pelvis frame in a vertebra's own frame, where its body is 48 mm wide."""
    angle = shape.tilt + turn
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    p = points - np.asarray(shape.centre, np.float32)
    turned = [p[:, 0], p[:, 1] * cos + p[:, 2] * sin, p[:, 2] * cos - p[:, 1] * sin]
    return np.column_stack(turned) / np.float32(shape.width_mm / 48)


def vertebra(
    points: np.ndarray, shape: Vertebra, turn: float = 0.0, form: Shape | None = None
) -> np.ndarray:
    """A vertebra; `turn` adds to its tilt, `form` is another shape in a vertebra's own frame."""
    scale = np.float32(shape.width_mm / 48)
    local = to_vertebra(points, shape, turn)
    if form is not None:
        return form(local) * scale
    waist = 1 + np.float32(0.12) * np.minimum(np.abs(local[:, 2] / 13), 1.5) ** 2
    rim = np.hypot(local[:, 0] / 23, local[:, 1] / 16) / waist
    # the back of the body is flat to hollow: the front wall of the spinal canal
    side = smooth_max((rim - 1) * 17, local[:, 1] - 14, 5)
    body = smooth_max(side, np.abs(local[:, 2]) - 13.2, 4)
    bone = smooth_min(body, _arch()(local), 4)
    canal = np.hypot(local[:, 0] / 1.25, local[:, 1] - 24) - 8.5
    bone = smooth_max(bone, -canal, 2)
    return bone * scale


def sacralised(vertebra: Shape, centre: tuple[float, float, float], sides: Sequence[int]) -> Shape:
    """L5, its transverse processes grown towards the wings of the sacrum."""
    bridges = [
        tube(
            [
                (s * x, y, z, r)
                for x, y, z, r in ((22, 22, 2, 8), (38, 25, -6, 10), (44, 20, -26, 12))
            ]
        )
        for s in sides
    ]

    def grown(points: np.ndarray) -> np.ndarray:
        local = points - np.asarray(centre, np.float32)
        return union([vertebra(points), *[bridge(local) for bridge in bridges]], 4)

    return grown


@cache
def rib(name: str) -> Cloud:
    """One left rib as a flat band that runs out, down and forward around an oval chest."""
    shape = next(v for v in (*SPINE, *UPPER_SPINE) if v.name == name)
    start = np.array(shape.centre) + (20, 22, 2)
    half_width, half_depth = 138 * shape.chest, 100 * shape.chest
    centre_y = shape.centre[1] - 62 * shape.chest
    reach = shape.rib_mm / 120
    points = []
    for t in np.linspace(0, 1, 14):
        angle = np.pi / 2 - 0.25 - t * reach
        x = half_width * np.cos(angle)
        y = centre_y + half_depth * np.sin(angle)
        z = shape.centre[2] - 95 * shape.chest * t * min(reach / 2.6, 1)
        weight = min(t * 6, 1)
        mix = weight * np.array([x, y, z]) + (1 - weight) * start
        points.append((*mix, 4.5 + 0.8 * np.sin(np.pi * t)))
    band = np.array(points)
    lower = band.copy()
    lower[:, 2] -= 7 * np.minimum(np.linspace(0, 6, len(band)), 1)
    return sheet([band, lower])


def ribs(points: np.ndarray, top_mm: float, vertebrae: Sequence[Vertebra] = SPINE) -> np.ndarray:
    """All left ribs whose vertebra lies below `top_mm` (pelvis frame)."""
    names = [v.name for v in vertebrae if v.rib_mm and v.centre[2] - RIB_DROP_MM < top_mm]
    return union([rib(name)(points) for name in names], 1.0)
