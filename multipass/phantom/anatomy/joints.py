"""What lies between bones: intervertebral discs, cartilage and fluid of joints, the thecal sac."""

from __future__ import annotations

import numpy as np

from multipass.phantom.anatomy.lattice import Block, Shape
from multipass.phantom.anatomy.spine import Vertebra, to_vertebra

SYMPHYSIS_MM = 5.0  # from both pubic bones
DISC_MM = 9.0  # from both end plates
CAPSULE_MM = 1.2  # beyond a joint's gap
SOFT_HU = (60.0, 120.0)  # of discs, cartilage and fluid
SAC_HU = (5.0, 45.0)
VACUUM_HU = (-700.0, -150.0)
VACUUM_SHARE = 0.06  # of sacroiliac joints and discs
SAC_MM = (7.5, 6.5, 19.0)  # half width, depth and height behind a vertebra


def between(first: Block, second: Block, reach_mm: float) -> Block | None:
    """Signed distance to what lies within reach of both bones, None if their boxes are apart."""
    where = first.overlap(second)
    if where is None:
        return None
    mine, theirs = where
    start = first.start + [part.start for part in mine]
    array = np.maximum(first.array[mine], second.array[theirs]) - np.float32(reach_mm)
    return Block(start, array, first.step_mm)


def disc(space: Block, upper: Vertebra, turn: float, to_pelvis: Shape) -> Block:
    """The part of a space between two bones that the upper vertebra's end plate covers."""
    local = to_vertebra(to_pelvis(space.points()), upper, turn)
    rim = (np.hypot(local[:, 0] / 24, local[:, 1] / 17) - 1) * 18
    column = np.maximum(np.maximum(rim, local[:, 1] - 15), local[:, 2])
    return Block(
        space.start, np.maximum(space.array, column.reshape(space.array.shape)), space.step_mm
    )


def sac(points: np.ndarray, vertebra: Vertebra, turn: float) -> np.ndarray:
    """The thecal sac behind a vertebra and its disc, for points of the pelvis frame."""
    wide, deep, tall = SAC_MM
    local = to_vertebra(points, vertebra, turn)
    tube = (np.hypot(local[:, 0] / wide, (local[:, 1] - 23) / deep) - 1) * deep
    return np.maximum(tube, np.abs(local[:, 2]) - tall)


def soft_hu(rng: np.random.Generator, vacuum_share: float = 0.0) -> float:
    return float(rng.uniform(*(VACUUM_HU if rng.random() < vacuum_share else SOFT_HU)))
