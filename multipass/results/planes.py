"""Axial, coronal and sagittal pictures of a labelled volume, chosen so that they show its bones.

Everything is drawn from upright arrays (LPS axis order), in the radiologist's view: the patient's
right is on the picture's left, and proportions are those of the patient in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Rgb = tuple[float, float, float]

MARGIN_MM = 35.0
# Planes are chosen on every n-th voxel, about 3 mm apart.
CHOICE_STEP_MM = 3.0
FILL = 0.28
INK = "#e8e8e8"
# Per view: its axis, the LPS axes across and down the picture, whether `down` runs against the
# axis, and the letters at the left, right, top and bottom edge.
VIEWS = {
    "axial": (2, 0, 1, False, "RLAP"),
    "coronal": (1, 0, 2, True, "RLHF"),
    "sagittal": (0, 1, 2, True, "APHF"),
}
LETTER_PLACES = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.97), (0.5, 0.03))


@dataclass(frozen=True)
class Plane:
    """One picture; `image`, `label` and `reference` are (rows, columns) from the upper left."""

    view: str
    image: np.ndarray
    label: np.ndarray
    reference: np.ndarray | None
    size_mm: tuple[float, float]
    letters: str


def planes_through(
    image: np.ndarray,
    label: np.ndarray,
    spacing_mm: Sequence[float],
    reference: np.ndarray | None = None,
) -> tuple[Plane, ...]:
    """The three planes that show most of every structure, cropped to the structures and 35 mm.

    Args:
        image: (X, Y, Z) upright, any range.
        label: (X, Y, Z) integers, 0 background; without a structure (and without one in the
            reference) the planes are the scan's middle ones, not cropped.
        reference: another label map, drawn in the planes that suit `label`.
    """
    steps = [max(1, int(CHOICE_STEP_MM / float(step))) for step in spacing_mm]
    coarse = tuple(slice(None, None, step) for step in steps)
    chosen = label[coarse]
    if reference is not None and not chosen.any():
        chosen = reference[coarse]
    at = [index * step for index, step in zip(_busiest(chosen), steps, strict=True)]
    box = _box_around(chosen, steps, label.shape, spacing_mm)
    arrays = [image, label] + ([reference] if reference is not None else [])
    planes = []
    for view, (axis, across, down, upwards, letters) in VIEWS.items():
        cut = [_cut(array, axis, at[axis], box, upwards) for array in arrays]
        rows, columns = cut[0].shape
        size_mm = columns * float(spacing_mm[across]), rows * float(spacing_mm[down])
        planes.append(Plane(view, cut[0], cut[1], (cut + [None])[2], size_mm, letters))
    return tuple(planes)


def draw(ax, plane: Plane, range_shown: tuple[float, float], colours: Sequence[Rgb]) -> None:
    """One plane on matplotlib axes: grey image, filled and outlined structures, the reference as
    dashed white lines, orientation letters."""
    width, height = plane.size_mm
    low, high = range_shown
    grey = np.clip((plane.image.astype(np.float32) - low) / (high - low), 0, 1)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    for k, colour in enumerate(colours):
        inside = plane.label == k + 1
        rgb[inside] = (1 - FILL) * rgb[inside] + FILL * np.asarray(colour, np.float32)
    ax.imshow(rgb, extent=(0, width, height, 0), interpolation="bilinear", aspect="equal")
    for k, colour in enumerate(colours):
        _outline(ax, plane.label == k + 1, plane.size_mm, colour, "solid")
        if plane.reference is not None:
            _outline(ax, plane.reference == k + 1, plane.size_mm, (1, 1, 1), "dashed")
    for letter, (x, y) in zip(plane.letters, LETTER_PLACES, strict=True):
        ax.text(x, y, letter, transform=ax.transAxes, color=INK, ha="center", va="center", size=10)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.axis("off")


def unit_rgb(colour: Sequence[int]) -> Rgb:
    red, green, blue = (c / 255 for c in colour)
    return red, green, blue


def _outline(ax, inside: np.ndarray, size_mm: tuple[float, float], colour: Rgb, style: str) -> None:
    if not inside.any() or min(inside.shape) < 2:
        return
    # Where it is and a pixel around: a contour keeps float64 copies of all that it looks at.
    rows, columns = (_grown_span(inside, axis) for axis in (0, 1))
    x, y = (
        (np.arange(size) + 0.5) * length / size
        for size, length in zip(inside.shape[::-1], size_mm, strict=True)
    )
    width = 1.1 if style == "solid" else 0.8
    ax.contour(
        x[columns], y[rows], inside[rows, columns],
        levels=[0.5], colors=[colour], linewidths=width, linestyles=style,
    )  # fmt: skip


def _grown_span(inside: np.ndarray, axis: int) -> slice:
    """The rows or columns that have any True, and one more on each side, within the array."""
    at = np.flatnonzero(inside.any(axis=1 - axis))
    return slice(max(0, int(at[0]) - 1), int(at[-1]) + 2)


def _cut(
    array: np.ndarray, axis: int, index: int, box: tuple[slice, ...], upwards: bool
) -> np.ndarray:
    where: list[int | slice] = list(box)
    where[axis] = index
    plane = array[tuple(where)].T
    return plane[::-1] if upwards else plane


def _box_around(
    coarse: np.ndarray, steps: Sequence[int], shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[slice, ...]:
    """The structures' box and 35 mm around, within the array; without structures all of it."""
    box = []
    for axis, (step, size, spacing) in enumerate(zip(steps, shape, spacing_mm, strict=True)):
        used = np.flatnonzero(coarse.any(axis=tuple(d for d in range(3) if d != axis)))
        margin = round(MARGIN_MM / float(spacing))
        if used.size:
            low, high = int(used[0]) * step - margin, (int(used[-1]) + 1) * step + margin
            box.append(slice(max(0, low), min(size, high)))
        else:
            box.append(slice(0, size))
    return tuple(box)


def _busiest(label: np.ndarray) -> list[int]:
    """For each axis, the plane that shows most of every structure's largest section."""
    scores = [np.zeros(n) for n in label.shape]
    for value in range(1, int(label.max(initial=0)) + 1):
        inside = label == value
        for axis in range(3):
            areas = np.count_nonzero(inside, axis=tuple(d for d in range(3) if d != axis))
            scores[axis] += np.sqrt(areas / max(1, areas.max()))
    return [int(s.argmax()) if s.any() else len(s) // 2 for s in scores]
