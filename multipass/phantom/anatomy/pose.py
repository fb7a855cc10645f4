"""Where a patient's bones lie: from the scene to the frames in which bones are modelled, and back.

Scene coordinates are LPS mm with the origin midway between the hip bones' centres.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from multipass.phantom.anatomy.individual import PARAMETRIC, Individual
from multipass.phantom.anatomy.shapes import along
from multipass.phantom.recipe import Recipe


def _turned(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """points @ matrix, with contiguous columns."""
    return np.stack([along(points, column) for column in matrix.T]).T


class Pose:
    """The ways from scene coordinates to the standing frames in which bones are modelled."""

    def __init__(self, recipe: Recipe, individual: Individual = PARAMETRIC):
        self.recipe, self.individual = recipe, individual
        rng = recipe.rng("pose")
        self.turn = Rotation.from_euler("xyz", recipe.pelvis_deg, degrees=True).as_matrix()
        self.roll = Rotation.from_euler("z", recipe.roll_deg, degrees=True).as_matrix()
        self.turn = self.roll @ self.turn
        self.size = np.asarray(recipe.stretch) * recipe.scale
        self.flare = 0.06 * (recipe.sex - 0.5) + rng.normal(0, 0.03)
        self.arch = 0.14 * (recipe.sex - 0.5) + rng.normal(0, 0.04)
        self.waves = rng.normal(0, 1, (4, 3)) * 2 * np.pi / 220
        self.shifts = rng.uniform(0, 2 * np.pi, 4)
        self.swing = rng.normal(0, 1.0, (4, 3)) * recipe.scale
        self.femur_scale = recipe.scale * float(np.clip(rng.normal(1, 0.02), 0.95, 1.04))
        self.femur_scale *= individual.femur_fit
        self.femur_size = self.femur_scale * rng.normal(1, 0.02, 3)
        self.implant_side = int(rng.choice([-1, 1]))
        self.heads = {
            side: self.to_scene(np.array([[side * x, y, z]]))[0]
            for side, (x, y, z) in individual.hip_centres.items()
        }
        self.femur_turns = {
            side: self.roll
            @ Rotation.from_euler(
                "yxz", (-side * (abduct - 3), -flex, side * (8 - rotate)), degrees=True
            ).as_matrix()
            for side, (flex, abduct, rotate) in zip((1, -1), recipe.femur_deg, strict=True)
        }

    def to_body(self, points: np.ndarray) -> np.ndarray:
        """Scene points in the frame of a body that lies straight on its back."""
        return _turned(points, self.roll)

    def to_pelvis(self, points: np.ndarray) -> np.ndarray:
        """Scene points (N, 3) in the pelvis frame."""
        p = _turned(points, self.turn / self.size)
        bends = [
            np.sin(along(p, wave) + p.dtype.type(shift))
            for wave, shift in zip(self.waves, self.shifts, strict=True)
        ]
        for axis in range(3):
            for bend, swing in zip(bends, self.swing, strict=True):
                p[:, axis] += bend * p.dtype.type(swing[axis])
        z = p[:, 2]
        flare = self.flare * np.clip(z - 5, 0, 90) / 90
        p[:, 0] /= 1 + flare + self.arch * np.clip(-50 - z, 0, 60) / 60
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
        p = _turned(points - self.heads[side].astype(points.dtype), self.femur_turns[side])
        p /= p.dtype.type(self.femur_scale)
        p[:, 0] *= side
        slant = p.dtype.type(np.tan(np.radians(self.recipe.neck_deg)))
        p[:, 2] += slant * np.clip(p[:, 0], 0, 45)
        return p

    def femur_to_scene(self, points: np.ndarray, side: int) -> np.ndarray:
        p = np.array(points, float)
        slant = np.tan(np.radians(self.recipe.neck_deg))
        p[:, 2] -= slant * np.clip(p[:, 0], 0, 45)
        return (p * self.femur_scale * (side, 1, 1)) @ self.femur_turns[side].T + self.heads[side]
