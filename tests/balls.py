"""Patient files without DICOM: five balls in an elliptic body, left and right as in a pelvis."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from multipass.data.patient_files import write_complete_dataset, write_patient
from multipass.data.prepare import as_patient
from multipass.dicom.reference import Reference, Segment
from multipass.geometry.volume import Grid, Volume, floats3, ints3
from multipass.structures import PELVIS

BODY = np.array([[-180.0, -120.0, -170.0], [180.0, 120.0, 170.0]])
SPACING_MM = (2.8, 1.9, 2.4)
# Side, distance from the middle, depth, height, radius in mm, grey value.
BALLS = (
    (1, 48, 0, 0, 38, 0.5),
    (-1, 48, 0, 0, 38, 0.5),
    (0, 0, 45, 10, 32, 0.45),
    (1, 70, 0, -65, 26, 0.6),
    (-1, 70, 0, -65, 26, 0.6),
)


def centres(grid: Grid) -> list[np.ndarray]:
    axes = [grid.origin_mm[a] + np.arange(grid.size[a]) * grid.spacing_mm[a] for a in range(3)]
    return np.meshgrid(*axes, indexing="ij", sparse=True)


def view(grid: Grid, rng: np.random.Generator, offset: np.ndarray) -> dict:
    x, y, z = centres(grid)
    image = np.where((x / 170) ** 2 + (y / 110) ** 2 + 0 * z < 1, 0.2, 0.0)
    fractions = []
    for side, across, back, up, radius, grey in BALLS:
        middle = offset + [side * across, back, up]
        distance = np.sqrt((x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2)
        inside = np.clip((radius - distance) / 3 + 0.5, 0, 1)
        image = image * (1 - inside) + grey * inside
        fractions.append(inside)
    shares = np.array(fractions) / np.maximum(np.sum(fractions, axis=0), 1)
    label = np.concatenate([1 - shares.sum(0, keepdims=True), shares]).argmax(0)
    return {
        "image": np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1).astype(np.float16),
        "label": label.astype(np.uint8),
        "fractions": np.rint(shares * 255).astype(np.uint8),
        "window": {"origin_mm": list(grid.origin_mm), "spacing_mm": list(grid.spacing_mm)},
    }


def scan(number: int, grid: Grid | None = None) -> tuple[Volume, Reference]:
    """A scan of balls in HU and its reference, both on an upright grid."""
    rng = np.random.default_rng(number)
    offset = rng.normal(0, 6, 3)
    low, high = BODY + rng.normal(0, 4, (2, 3))
    size = ints3(np.round((high - low) / SPACING_MM))
    grid = grid or Grid(size, SPACING_MM, floats3(low + np.divide(SPACING_MM, 2)))
    seen = view(grid, rng, offset)
    hounsfield = np.rint(seen["image"].astype(np.float32) * 1200 - 200).astype(np.int16)
    hounsfield[seen["image"] < 0.1] = -1000
    masks = seen["fractions"].astype(np.float32) / 255
    rows = zip(PELVIS, masks, strict=True)
    segments = tuple(Segment(s, (0, 0, 0), mask, "complete") for s, mask in rows)
    return Volume(hounsfield, grid), Reference(grid, segments, ())


@cache
def _prepared(number: int) -> dict:
    return as_patient(f"Patient_{number:02d}", *scan(number), {})


def patient(number: int, status: dict[str, str] | None = None) -> dict:
    """A patient dict; `status` overrides 'complete' by structure name."""
    prepared = dict(_prepared(number))
    prepared["structures"] = [
        row | {"status": (status or {}).get(row["name"], "complete")}
        for row in prepared["structures"]
    ]
    return prepared


def write_cohort(folder: Path, count: int) -> Path:
    """Writes patient files and complete_dataset.pkl; returns the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(1, count + 1):
        paths.append(folder / f"Patient_{number:02d}.pkl")
        write_patient(paths[-1], patient(number))
    return write_complete_dataset(folder, paths)
