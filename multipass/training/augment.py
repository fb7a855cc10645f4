"""Augmentation: one deformation of patient space per sample, through which both windows look.

The network sees windows of a *deformed* patient. Window boxes lie in that deformed space; a cubic
B-spline maps its points to those of the stored scan. The spline's control points hold the affine
part as well (cubic B-splines reproduce linear functions exactly), so that rotation, scale, shear,
mirror and elastic deformation are three small matrix products and one resampling a window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Randomizable

from multipass.data.cohort import Sample
from multipass.geometry.windows import GRID_SIZE, close_windows

CONTROL = 9  # control points an axis: 60 mm apart over a body 360 mm wide
MARGIN_MM = 20.0  # around the bones, as in windows.pelvis_box
FEW_POINTS = 8  # fewer foreground points in view: no pelvis there to look closer at
SLABS = 8  # torch samples a 3D grid on one thread per batch item, so a window goes as 8


@dataclass(frozen=True)
class Space:
    """How far a patient is deformed and windows are displaced. Angles in degrees.

    A part of the patients, `turned`, lies turned about the long axis as far as on the side.
    """

    rotation_deg: float = 15.0
    turned: float = 0.2
    turn_deg: float = 90.0
    scale: float = 0.15
    shear: float = 0.05
    elastic_mm: float = 8.0
    mirror: float = 0.5
    cut: float = 0.15
    shift_mm: float = 10.0
    scan_scale: tuple[float, float] = (0.95, 1.1)
    box_scale: tuple[float, float] = (0.9, 1.15)

    def scaled(self, strength: float) -> Space:
        """Deformations of another strength; boxes stay as imperfect as they will be found."""
        keys = ("rotation_deg", "turned", "scale", "shear", "elastic_mm", "cut")
        return replace(self, **{key: strength * getattr(self, key) for key in keys})


@dataclass(frozen=True)
class Placement:
    """A deformation and the two windows of the deformed patient.

    Attributes:
        control_mm: (n, n, n, 3) where in the stored scan each control point lies.
        domain: (2, 3) box of deformed space that the spline covers.
        scan_box, close_box: (2, 3), lower and upper edges in mm; close_box is of one of the windows
            over the pelvis.
        mirrored: left and right are exchanged.
    """

    control_mm: np.ndarray
    domain: np.ndarray
    scan_box: np.ndarray
    close_box: np.ndarray
    mirrored: bool

    def box(self, window: str) -> np.ndarray:
        return {"scan": self.scan_box, "pelvis": self.close_box}[window]


def control_positions(domain: np.ndarray) -> np.ndarray:
    """(n, n, n, 3) positions of the control points; one lies beyond the domain on each side."""
    steps = (np.arange(CONTROL) - 1) / (CONTROL - 3)
    axes = [lo + steps * (hi - lo) for lo, hi in zip(*domain, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def undeformed(sample: Sample) -> list[Placement]:
    """The windows that inference would use if it found the reference, a placement for each over the
    pelvis, foot to head: for validation."""
    box = sample.scan_box
    return [
        Placement(control_positions(box), box, box, window.box_mm(), mirrored=False)
        for window in close_windows(sample.pelvis_box)
    ]


class RandPlacement(Randomizable):
    """Draws placements; MONAI's interface: `set_random_state`, `randomize`, call."""

    def __init__(self, space: Space, mirror_allowed: bool) -> None:
        self.space, self.mirror_allowed = space, mirror_allowed
        self.linear = np.eye(3)
        self.elastic_mm = np.zeros((CONTROL,) * 3 + (3,))
        self.mirrored = False

    def randomize(self, data=None) -> None:
        space, R = self.space, self.R
        angles = np.deg2rad(R.uniform(-1, 1, 3) * space.rotation_deg)
        turn = np.deg2rad(R.uniform(-1, 1) * space.turn_deg)
        if R.rand() < space.turned:
            angles[2] += turn
        scale = np.exp(R.uniform(-1, 1) * space.scale + R.uniform(-1, 1, 3) * space.scale / 3)
        shear = np.eye(3) + np.triu(R.uniform(-1, 1, (3, 3)) * space.shear, 1)
        self.mirrored = bool(R.rand() < space.mirror) and self.mirror_allowed
        flip = np.diag([-1.0 if self.mirrored else 1.0, 1.0, 1.0])
        self.linear = flip @ _rotation(angles) @ shear @ np.diag(scale)
        sigma_mm = R.uniform(0, space.elastic_mm)
        self.elastic_mm = R.normal(0, sigma_mm, (CONTROL,) * 3 + (3,))

    def __call__(self, sample: Sample) -> Placement:
        self.randomize()
        centre = sample.pelvis_box.mean(axis=0)
        scan_box = self._scan_box(sample, centre)
        control = control_positions(scan_box)
        control = centre + (control - centre) @ self.linear.T + self.elastic_mm
        close_box = self._close_box(sample, centre, scan_box)
        return Placement(control, scan_box, scan_box, close_box, self.mirrored)

    def _scan_box(self, sample: Sample, centre: np.ndarray) -> np.ndarray:
        """The deformed body's box, displaced a little, now and then with an end of it cut off."""
        inverse = np.linalg.inv(self.linear)
        body = (sample.scan_box[1] - sample.scan_box[0]) / 2
        middle = centre + inverse @ (sample.scan_box.mean(0) - centre)
        half = np.sqrt(((inverse * body) ** 2).sum(1))  # of the ellipsoid that fills the box
        box = self._displaced(np.stack([middle - half, middle + half]), self.space.scan_scale)
        if self.R.rand() < self.space.cut:
            end, part = self.R.randint(2), self.R.uniform(0.1, 0.45)
            height = box[1, 2] - box[0, 2]
            box[end, 2] += part * height * (1 if end == 0 else -1)
        return box

    def _close_box(self, sample: Sample, centre: np.ndarray, scan_box: np.ndarray) -> np.ndarray:
        """One of the windows over the deformed bones as inference would set them, displaced as it
        may err."""
        inverse = np.linalg.inv(self.linear).T
        points = centre + (sample.points_mm - centre) @ inverse
        points = points - self._elastic_at(points, scan_box) @ inverse
        inside = ((points > scan_box[0]) & (points < scan_box[1])).all(axis=1)
        if inside.sum() < FEW_POINTS:
            return scan_box.copy()
        points = points[inside]
        box = np.stack([points.min(0) - MARGIN_MM, points.max(0) + MARGIN_MM])
        windows = close_windows(np.clip(box, scan_box[0], scan_box[1]))
        box = windows[self.R.randint(len(windows))].box_mm()
        box = self._displaced(box, self.space.box_scale)
        return np.clip(box, scan_box[0], scan_box[1])

    def _elastic_at(self, points: np.ndarray, domain: np.ndarray) -> np.ndarray:
        x, y, z = (_spline_rows(points[:, a], domain[:, a]) for a in range(3))
        field = np.einsum("pi,ijkc->pjkc", x, self.elastic_mm, optimize=True)
        return np.einsum("pj,pk,pjkc->pc", y, z, field, optimize=True)

    def _displaced(self, box: np.ndarray, scales: tuple[float, float]) -> np.ndarray:
        middle, half = box.mean(0), (box[1] - box[0]) / 2 * self.R.uniform(*scales, 3)
        middle = middle + self.R.uniform(-1, 1, 3) * self.space.shift_mm
        return np.stack([middle - half, middle + half])


def _rotation(angles: np.ndarray) -> np.ndarray:
    out = np.eye(3)
    for axis, (c, s) in enumerate(zip(np.cos(angles), np.sin(angles), strict=True)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = c
        turn[i, j], turn[j, i] = -s, s
        out = turn @ out
    return out


def _spline_rows(at: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """(len(at), n) cubic B-spline weights of the control points at positions in mm."""
    at = (at - domain[0]) / (domain[1] - domain[0]) * (CONTROL - 3) + 1
    away = np.abs(at[:, None] - np.arange(CONTROL))
    near = 2 / 3 - away**2 + away**3 / 2
    return np.where(away < 1, near, np.maximum(2 - away, 0) ** 3 / 6)


def _sampling_grid(
    place: Placement, box: np.ndarray, source: np.ndarray, sizes: tuple[int, ...], device
) -> torch.Tensor:
    """(X, Y, Z, 3) where a window's voxels lie in a source box: -1 and 1 are its edges, z first."""
    control = (place.control_mm - source[0]) / (source[1] - source[0]) * 2 - 1
    grid = torch.as_tensor(control[..., ::-1].copy(), dtype=torch.float32, device=device)
    rows = []
    for axis, size in enumerate(sizes):
        steps = (np.arange(size) + 0.5) / size
        at = box[0, axis] + steps * (box[1, axis] - box[0, axis])
        weights = _spline_rows(at, place.domain[:, axis])
        rows.append(torch.as_tensor(weights, dtype=torch.float32, device=device))
    grid = torch.einsum("xi,ijkc->xjkc", rows[0], grid)
    grid = torch.einsum("yj,xjkc->xyck", rows[1], grid)
    return (grid @ rows[2].T).permute(0, 1, 3, 2).contiguous()


def _sample(source: torch.Tensor, grid: torch.Tensor, padding: str) -> torch.Tensor:
    """Trilinear: (C, ...) source at a (X, Y, Z, 3) grid."""
    slabs = grid.view(SLABS, -1, *grid.shape[1:])
    out = F.grid_sample(
        source.expand(SLABS, *source.shape), slabs, padding_mode=padding, align_corners=False
    )
    return out.transpose(0, 1).flatten(1, 2)


def look(
    sample: Sample, place: Placement, window: str, size: tuple[int, ...] = GRID_SIZE
) -> torch.Tensor:
    """(1 + K, *size) image and fractions of one window of the deformed patient.

    The pelvis window reads the finer stored crop, and the scan window's grid where it looks
    beyond it. Beyond the scan there is air.
    """
    scan, crop = sample.scan, sample.crop
    if window == "scan":
        grid = _sampling_grid(place, place.scan_box, sample.scan_box, size, scan.device)
        return _sample(scan, grid, "zeros")
    grid = _sampling_grid(place, place.close_box, sample.crop_box, size, crop.device)
    seen = _sample(crop, grid, "border")
    outside = (grid.abs() > 1).any(-1)
    if bool(outside.any()):
        ratio = (sample.crop_box[1] - sample.crop_box[0]) / (
            sample.scan_box[1] - sample.scan_box[0]
        )
        offset = (sample.crop_box.sum(0) - sample.scan_box.sum(0)) / (
            sample.scan_box[1] - sample.scan_box[0]
        )
        ratio, offset = (grid.new_tensor(v[::-1].copy()) for v in (ratio, offset))
        points = (grid[outside] * ratio + offset).view(1, 1, 1, -1, 3)
        seen[:, outside] = F.grid_sample(scan[None], points, align_corners=False)[0, :, 0, 0]
    return seen
