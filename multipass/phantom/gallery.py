"""A picture of 24 patients of a cohort, to judge synthetic scans by eye.

    python -m multipass.phantom.gallery ctpel docs/phantoms.png

Each shows a slice of its scan, axial or coronal, at a random place; every other one with the
outlines of its reference.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes

from multipass.dicom.choice import choose
from multipass.dicom.ct import read_ct
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import find
from multipass.files import replacing
from multipass.geometry.volume import upright
from multipass.results.planes import unit_rgb
from multipass.structures import PELVIS

matplotlib.use("Agg")

ROWS, COLUMNS = 4, 6
WINDOW_HU = (-180, 500)


def draw(axes: Axes, folder: Path, number: int) -> None:
    """One patient's slice."""
    rng = np.random.default_rng(number)
    found = find(folder)
    ct = read_ct(choose(found)[0])
    volume = upright(ct.volume)
    labels = read_reference(found.seg, volume.grid, ct=ct).labels()
    spacing = volume.grid.spacing_mm
    axis, across = ((2, 1), (1, 2))[int(rng.random() < 0.4)]
    places = np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis})))
    at = int(rng.choice(places)) if places.size else labels.shape[axis] // 2
    image, label = (np.take(array, at, axis).T for array in (volume.array, labels))
    axes.imshow(
        image, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1],
        origin="upper" if axis == 2 else "lower", aspect=spacing[across] / spacing[0],
    )  # fmt: skip
    for value, structure in enumerate(PELVIS, start=1):
        if number % 2 and (label == value).any():
            colour = unit_rgb(structure.colour)
            axes.contour(label == value, [0.5], colors=[colour], linewidths=0.7)
    axes.set_box_aspect(0.8)
    axes.set_facecolor("black")


def main(cohort: tyro.conf.Positional[Path], output: tyro.conf.Positional[Path]) -> None:
    from matplotlib import pyplot as plt

    folders = sorted(p for p in cohort.iterdir() if p.is_dir())[: ROWS * COLUMNS]
    if not folders:
        raise ValueError(f"{cohort}: no patients in it")
    figure, grid = plt.subplots(ROWS, COLUMNS, figsize=(15, 8.2), facecolor="black")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for number, (axes, folder) in enumerate(zip(grid.flat, folders, strict=False)):
        draw(axes, folder, number)
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    with replacing(output) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"gallery: {error}")
