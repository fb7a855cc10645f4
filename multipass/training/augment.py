"""Augmentation: one deformation of patient space per sample, through which all windows look.

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
from multipass.data.levels import index_box, level_for
from multipass.geometry.volume import ints3
from multipass.geometry.windows import MAX_SCAN_WINDOW_MM, close_windows, part_windows
from multipass.training.field_of_view import FieldOfView, RandFieldOfView
from multipass.training.shelf import Shelf

CONTROL = 9  # control points an axis: 60 mm apart over a body 360 mm wide
MARGIN_MM = 20.0  # around the bones, as in windows.pelvis_box
FEW_POINTS = 6  # fewer foreground points in view: no pelvis there to look closer at
SLABS = 8  # torch samples a 3D grid on one thread per batch item, so a window goes as 8
COARSE_STEPS = 5  # an axis: where a window's box lies in the stored scan
BEYOND_VOXELS = 3  # read around a window, for the bends between those steps


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
    shift_mm: float = 10.0
    scan_scale: tuple[float, float] = (0.95, 1.1)
    box_scale: tuple[float, float] = (0.9, 1.15)

    def scaled(self, strength: float) -> Space:
        """Deformations of another strength; boxes stay as imperfect as they will be found."""
        keys = ("rotation_deg", "turned", "scale", "shear", "elastic_mm")
        return replace(self, **{key: strength * getattr(self, key) for key in keys})


@dataclass(frozen=True)
class Placement:
    """A deformation and the windows of the deformed patient.

    Attributes:
        control_mm: (n, n, n, 3) where in the stored scan each control point lies.
        domain: (2, 3) box of deformed space that the spline covers.
        boxes: by window, (2, 3) lower and upper edges in mm: the scan, one of the windows over the
            pelvis, one of its parts.
        seen: what the scan shows of the deformed patient.
        scale: of lengths, from the deformed patient to the stored one.
        mirrored: left and right are exchanged.
    """

    control_mm: np.ndarray
    domain: np.ndarray
    boxes: dict[str, np.ndarray]
    seen: FieldOfView
    scale: float
    mirrored: bool


def control_positions(domain: np.ndarray) -> np.ndarray:
    """(n, n, n, 3) positions of the control points; one lies beyond the domain on each side."""
    steps = (np.arange(CONTROL) - 1) / (CONTROL - 3)
    axes = [lo + steps * (hi - lo) for lo, hi in zip(*domain, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


class RandPlacement(Randomizable):
    """Draws placements; MONAI's interface: `set_random_state`, `randomize`, call.

    Args:
        space: how far.
        mirror_allowed: every structure of one side has a partner on the other.
        crops: how often the scan shows only a part of the patient, as a factor of
            `field_of_view.ODDS`.
    """

    def __init__(self, space: Space, mirror_allowed: bool, crops: float = 1.0) -> None:
        self.space, self.mirror_allowed = space, mirror_allowed
        self.field_of_view = RandFieldOfView(crops)
        self.linear = np.eye(3)
        self.elastic_mm = np.zeros((CONTROL,) * 3 + (3,))
        self.mirrored = False

    def set_random_state(self, seed=None, state=None) -> RandPlacement:
        """As MONAI's: of the placement and of its field of view."""
        super().set_random_state(seed, state)
        self.field_of_view.set_random_state(state=self.R)
        return self

    def randomize(self, data=None) -> None:
        """Draws rotation, scale, shear, mirror and the elastic displacements."""
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
        centre = (sample.points_mm if len(sample.points_mm) else sample.body_mm).mean(axis=0)
        domain = self._stretch(self._body_box(sample, centre), centre)
        control = control_positions(domain)
        control = centre + (control - centre) @ self.linear.T + self.elastic_mm
        points = self._deformed(sample.points_mm, centre, domain)
        seen = self.field_of_view(domain, points)
        points = points[seen.holds(points)]
        scale = float(abs(np.linalg.det(self.linear))) ** (1 / 3)
        boxes = self._boxes(points, seen.box)
        return Placement(control, domain, boxes, seen, scale, self.mirrored)

    def _body_box(self, sample: Sample, centre: np.ndarray) -> np.ndarray:
        """The deformed body's box: of the ellipsoid that fills the stored one."""
        inverse = np.linalg.inv(self.linear)
        body = (sample.body_mm[1] - sample.body_mm[0]) / 2
        middle = centre + inverse @ (sample.body_mm.mean(0) - centre)
        half = np.sqrt(((inverse * body) ** 2).sum(1))
        return np.stack([middle - half, middle + half])

    def _stretch(self, body: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Of a body taller than a scan window a stretch of that height, every second time one with
        its bones."""
        tallest = MAX_SCAN_WINDOW_MM
        low, high = body[0, 2], body[1, 2] - tallest
        start = float(self.R.uniform(low, max(low, high)))
        if self.R.rand() < 0.5:
            wanted = centre[2] - tallest * self.R.uniform(0.2, 0.8)
            start = min(max(wanted, low), max(low, high))
        if high > low:
            body = body.copy()
            body[:, 2] = start, start + tallest
        return body

    def _boxes(self, points: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
        """Windows over what is seen, as inference would set them, displaced as it may err."""
        scan = np.clip(self._displaced(seen, self.space.scan_scale), seen[0] - 5, seen[1] + 5)
        if len(points) < FEW_POINTS:
            pelvis = self._false_find(seen)
        else:
            pelvis = np.stack([points.min(0) - MARGIN_MM, points.max(0) + MARGIN_MM])
            pelvis = np.clip(pelvis, seen[0], seen[1])
        boxes = [window.box_mm() for window in part_windows(pelvis)]
        full = [b for b in boxes if ((points > b[0]) & (points < b[1])).all(axis=1).any()]
        part = (full or boxes)[self.R.randint(len(full or boxes))]
        # The part's context comes from the windows over the pelvis that hold it.
        close = max((w.box_mm() for w in close_windows(pelvis)), key=lambda b: _shared_mm(b, part))
        found = {"scan": scan}
        for window, box in (("pelvis", close), ("parts", part)):
            box = self._displaced(box, self.space.box_scale)
            found[window] = np.clip(box, seen[0], seen[1])
        return found

    def _false_find(self, seen: np.ndarray) -> np.ndarray:
        """A box that a first pass might be wrong to find."""
        size = np.minimum(self.R.uniform(60, 300, 3), seen[1] - seen[0])
        low = self.R.uniform(seen[0], seen[1] - size)
        return np.stack([low, low + size])

    def _deformed(self, points: np.ndarray, centre: np.ndarray, domain: np.ndarray) -> np.ndarray:
        """Where points of the stored scan lie in the deformed patient, to a millimetre or two."""
        inverse = np.linalg.inv(self.linear).T
        moved = centre + (points - centre) @ inverse
        return moved - self._elastic_at(moved, domain) @ inverse

    def _elastic_at(self, points: np.ndarray, domain: np.ndarray) -> np.ndarray:
        x, y, z = (_spline_rows(points[:, a], domain[:, a]) for a in range(3))
        field = np.einsum("pi,ijkc->pjkc", x, self.elastic_mm, optimize=True)
        return np.einsum("pj,pk,pjkc->pc", y, z, field, optimize=True)

    def _displaced(self, box: np.ndarray, scales: tuple[float, float]) -> np.ndarray:
        middle, half = box.mean(0), (box[1] - box[0]) / 2 * self.R.uniform(*scales, 3)
        middle = middle + self.R.uniform(-1, 1, 3) * self.space.shift_mm
        return np.stack([middle - half, middle + half])


def _shared_mm(box: np.ndarray, other: np.ndarray) -> float:
    """How long two boxes lie side by side along the body."""
    return float(min(box[1, 2], other[1, 2]) - max(box[0, 2], other[0, 2]))


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


def source_box(place: Placement, box: np.ndarray) -> np.ndarray:
    """(2, 3) mm: the stored scan's box that a window over `box` sees."""
    rows = [
        _spline_rows(np.linspace(box[0, axis], box[1, axis], COARSE_STEPS), place.domain[:, axis])
        for axis in range(3)
    ]
    at = np.einsum("xi,yj,zk,ijkc->xyzc", *rows, place.control_mm, optimize=True).reshape(-1, 3)
    return np.stack([at.min(0), at.max(0)])


def look(
    sample: Sample, place: Placement, window: str, size: tuple[int, ...], shelf: Shelf
) -> torch.Tensor:
    """(1 + C, *size) float32 image in [0, 1] and fractions of one window of the deformed patient.

    Beyond the scan and beyond what is seen of it there is air, and no bone.
    """
    box = place.boxes[window]
    source = source_box(place, box)
    spacing = place.scale * (box[1] - box[0]) / np.asarray(size)
    level = level_for(sample.levels, source, spacing)
    beyond = np.asarray(level.grid.spacing_mm) * BEYOND_VOXELS
    start, stop = index_box(level.grid, source + np.stack([-beyond, beyond]))
    read = level.grid.cropped(ints3(start), ints3(stop - start)).box_mm()
    channels = shelf.channels(sample, level, start, stop)
    grid = _sampling_grid(place, box, read, size, channels.device)
    seen = _sample(channels, grid, "zeros")
    return seen.masked_fill_(place.seen.outside(box, size, seen.device), 0)
