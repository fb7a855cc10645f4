"""What of a patient a scan shows: drawn anew for each sample, as archives hold them.

Half of the samples see all of their scan; the others one hip, half a body, a slab, a stretch
without pelvis, or what an off-centre circle leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import Randomizable

# How often a sample is cropped, by kind; the rest is whole.
ODDS = {"end": 0.12, "around bone": 0.18, "half": 0.06, "slab": 0.06, "elsewhere": 0.08}
CIRCLE = 0.12
# Sizes in mm of crops around a bone and elsewhere: in the plane, along the body.
ACROSS_MM, ALONG_MM = (90.0, 260.0), (40.0, 320.0)
SLAB_MM = (40.0, 110.0)
TRIES = 8  # places elsewhere, of which the one with the least bone is taken


@dataclass(frozen=True)
class FieldOfView:
    """A box, and in the plane a circle that cuts it.

    Attributes:
        box: (2, 3) mm.
        centre, radius: of the circle, mm; radius None where there is none.
    """

    box: np.ndarray
    centre: np.ndarray
    radius: float | None = None

    def holds(self, points: np.ndarray) -> np.ndarray:
        """(P,) bool for points (P, 3) in mm."""
        inside = ((points > self.box[0]) & (points < self.box[1])).all(axis=1)
        if self.radius is not None:
            inside &= ((points[:, :2] - self.centre) ** 2).sum(1) < self.radius**2
        return inside

    def outside(self, box: np.ndarray, size: tuple[int, ...], device) -> torch.Tensor:
        """bool (X, Y, Z): the voxels of a window over `box` that it does not hold."""
        axes = []
        for axis, n in enumerate(size):
            steps = (np.arange(n) + 0.5) / n
            axes.append(box[0, axis] + steps * (box[1, axis] - box[0, axis]))
        beyond = [
            torch.as_tensor((at < low) | (at > high), device=device)
            for at, low, high in zip(axes, *self.box, strict=True)
        ]
        plane = beyond[0][:, None] | beyond[1][None, :]
        if self.radius is not None:
            x, y = (axes[a] - self.centre[a] for a in (0, 1))
            far = x[:, None] ** 2 + y[None, :] ** 2 > self.radius**2
            plane = plane | torch.as_tensor(far, device=device)
        return plane[:, :, None] | beyond[2][None, None, :]


class RandFieldOfView(Randomizable):
    """Draws what is seen of a scan; MONAI's interface.

    Args:
        strength: factor of all odds.
    """

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def __call__(self, scan_box: np.ndarray, points: np.ndarray) -> FieldOfView:
        """
        Args:
            scan_box: (2, 3) of the body, mm.
            points: (P, 3) places of bone, mm; P may be 0.
        """
        kinds = list(ODDS)
        odds = np.array([ODDS[kind] for kind in kinds]) * self.strength
        kind = self.R.choice([*kinds, "whole"], p=[*odds, 1 - odds.sum()])
        if not len(points) and kind in ("around bone", "half", "slab"):
            kind = "elsewhere"
        box = scan_box.copy()
        if kind == "end":
            box = self._without_an_end(box)
        elif kind == "around bone":
            box = self._around(points[self.R.randint(len(points))], 0.4)
        elif kind == "half":
            box = self._half(box, points)
        elif kind == "slab":
            box = self._slab(box, points)
        elif kind == "elsewhere":
            box = self._elsewhere(box, points)
        box = np.clip(box, scan_box[0], scan_box[1])
        return self._with_circle(box)

    def _without_an_end(self, box: np.ndarray) -> np.ndarray:
        end, part = self.R.randint(2), self.R.uniform(0.1, 0.6)
        box[end, 2] += part * (box[1, 2] - box[0, 2]) * (1 if end == 0 else -1)
        return box

    def _around(self, anchor: np.ndarray, off: float) -> np.ndarray:
        across, along = self.R.uniform(*ACROSS_MM), self.R.uniform(*ALONG_MM)
        size = np.array([across, across * self.R.uniform(0.8, 1.25), along])
        middle = anchor + self.R.uniform(-off, off, 3) * size
        return np.stack([middle - size / 2, middle + size / 2])

    def _half(self, box: np.ndarray, points: np.ndarray) -> np.ndarray:
        middle = (points[:, 0].min() + points[:, 0].max()) / 2 + self.R.uniform(-40, 40)
        box[self.R.randint(2), 0] = middle
        return box

    def _slab(self, box: np.ndarray, points: np.ndarray) -> np.ndarray:
        height = self.R.uniform(*SLAB_MM)
        middle = points[self.R.randint(len(points)), 2]
        box[:, 2] = middle - height / 2, middle + height / 2
        return box

    def _elsewhere(self, scan_box: np.ndarray, points: np.ndarray) -> np.ndarray:
        boxes = [self._around(self.R.uniform(*scan_box), 0.0) for _ in range(TRIES)]
        if self.R.rand() < 0.5:  # as wide as the body
            for box in boxes:
                box[:, :2] = scan_box[:, :2]
        bone = [((points > b[0]) & (points < b[1])).all(axis=1).sum() for b in boxes]
        return boxes[int(np.argmin(bone))]

    def _with_circle(self, box: np.ndarray) -> FieldOfView:
        size = box[1] - box[0]
        centre = box.mean(0)[:2] + self.R.uniform(-0.2, 0.2, 2) * size[:2]
        radius = float(self.R.uniform(0.35, 0.6) * size[:2].max())
        if self.R.rand() >= CIRCLE * self.strength:
            return FieldOfView(box, centre)
        round_box = box.copy()
        round_box[:, :2] = np.clip([centre - radius, centre + radius], box[0, :2], box[1, :2])
        return FieldOfView(round_box, centre, radius)
