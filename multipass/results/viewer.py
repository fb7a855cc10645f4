"""What a case's page shows in NiiVue: the viewer's script and the data, small enough for a file.

NiiVue is not part of this package: its bundle is read from the installed ipyniivue when a page is
made, and stands beside the pages as niivue.js.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import re
import struct
from collections.abc import Sequence
from errno import ENOSPC
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy.spatial import cKDTree

from multipass.geometry.labelmaps import Box, box_of, boxes_of, centre_of, middle_voxel
from multipass.geometry.meshes import mesh_of
from multipass.geometry.volume import Grid, Volume, floats3, ints3, resample, to_sitk
from multipass.scratch import scratch_folder
from multipass.structures import Structure

VIEWER_NAME = "niivue.js"
MARGIN_MM = 20.0
# 9 million bytes of CT compress to about 6 MB, with base64 and meshes well below 15 MB a case.
MAX_VOXELS = 9e6
MESH_SPACING_MM = 2.0
# A third of the time of level 6 for a twelfth more bytes.
GZIP_LEVEL = 3
SHOWN_HU = (-250.0, 1250.0)
# NIfTI-1 header: float32 scl_slope and scl_inter.
SCALE_OFFSET = 112
# Its voxels start here.
DATA_OFFSET = 352
# The letters MZ, and the bits for faces, vertices and colours.
MZ3_MAGIC, MZ3_PARTS = 23117, 7
# Surfaces that lie this far from the reference are drawn fully in the warning colour.
FAR_MM = 5.0
FAR_RGB = (214.0, 39.0, 40.0)


def viewer_script() -> str | None:
    """NiiVue's class as a classic script, which a page opened from a file may load; None where
    ipyniivue is not installed.

    The bundle is an ES module that exports a widget; the class is taken from where the widget makes
    its instance.

    Raises:
        ValueError: the bundle is not as expected.
    """
    spec = importlib.util.find_spec("ipyniivue")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "static" / "widget.js"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    made = re.search(r'"Creating new Niivue instance".{0,120}?=new ([\w$]+)\(', text)
    export = re.search(r"export\s*\{[^{}]*\};?\s*$", text)
    if made is None or export is None:
        raise ValueError(
            f"ipyniivue {version('ipyniivue')} holds NiiVue otherwise than the pages need it: "
            "install the version of requirements.txt, or run with --no-page"
        )
    return f'(() => {{"use strict";{text[: export.start()]};globalThis.Niivue={made[1]};}})();'


def page_data(
    volume: Volume,
    labels: np.ndarray,
    structures: Sequence[Structure],
    reference: np.ndarray | None = None,
) -> dict:
    """What page.js shows.

    Args:
        volume, labels, reference: on one upright grid.

    Returns:
        'ct', 'labels' and 'meshes' around the structures, as base64 of NIfTI and MZ3 files; 'names'
        and 'colours' of the structures, and the values of the 'found' ones; 'start', a place on
        bone in LPS mm, None without any.
    """
    grid = _page_grid(volume.grid, labels)
    low, high = SHOWN_HU
    step = (high - low) / 255
    hounsfield = resample(volume, grid, outside=low)
    bytes_ct = np.rint((np.clip(hounsfield, low, high) - low) / step).astype(np.uint8)
    at = _nearest_indices(grid, volume.grid)
    shown = labels[at]
    every = enumerate(boxes_of(shown, len(structures)), start=1)
    boxes = {value: box for value, box in every if box is not None}
    data: dict[str, Any] = {
        "ct": _nifti(bytes_ct, grid, step, low),
        "labels": _nifti(shown, grid, 1.0, 0.0),
        "meshes": [],
        "names": [s.name for s in structures],
        "colours": [list(s.colour) for s in structures],
        "found": list(boxes),
        "start": _start(shown, grid, boxes),
    }
    wanted = reference[at] if reference is not None else None
    for k, structure in enumerate(structures):
        mesh = _mesh(shown, wanted, k + 1, grid, structure)
        if mesh:
            data["meshes"].append({"value": k + 1, "mz3": mesh})
    return data


def _start(labels: np.ndarray, grid: Grid, boxes: dict[int, Box]) -> list[float] | None:
    """The middle of that structure which is nearest to the middle of all, in LPS mm.

    Args:
        boxes: of the structures that are there, by their values.
    """
    if not boxes:
        return None
    starts = {value: np.array([s.start for s in box]) for value, box in boxes.items()}
    centres = [centre_of(labels[box] == v) + starts[v] for v, box in boxes.items()]
    away_mm = (np.array(centres) - np.mean(centres, axis=0)) * grid.spacing_mm
    value = list(boxes)[np.square(away_mm).sum(axis=1).argmin()]
    voxels = np.argwhere(labels[boxes[value]] == value) + starts[value]
    return [round(float(v), 1) for v in middle_voxel(voxels, grid)]


def _page_grid(grid: Grid, labels: np.ndarray) -> Grid:
    """The box of the structures, or of the scan without any, and 20 mm; coarser voxels where there
    would be too many."""
    box = box_of(labels) or tuple(slice(0, n) for n in grid.size)
    margin = [round(MARGIN_MM / s) for s in grid.spacing_mm]
    start = [max(0, s.start - m) for s, m in zip(box, margin, strict=True)]
    stop = [min(n, s.stop + m) for s, m, n in zip(box, margin, grid.size, strict=True)]
    crop = grid.cropped(ints3(start), ints3(np.subtract(stop, start)))
    low, high = crop.box_mm()
    spacing = np.asarray(grid.spacing_mm)
    while np.prod((high - low) / spacing) > MAX_VOXELS:
        spacing = np.where(
            spacing < spacing.max(), np.minimum(spacing * 1.1, spacing.max()), spacing
        )
        if np.ptp(spacing) < 1e-6:
            spacing = spacing * 1.05
    size = np.maximum(1, np.floor((high - low) / spacing)).astype(int)
    return Grid(ints3(size), floats3(spacing), floats3(low + spacing / 2))


def _nearest_indices(target: Grid, source: Grid) -> tuple[np.ndarray, ...]:
    indices = []
    for d in range(3):
        places = target.origin_mm[d] + np.arange(target.size[d]) * target.spacing_mm[d]
        index = np.rint((places - source.origin_mm[d]) / source.spacing_mm[d]).astype(int)
        indices.append(np.clip(index, 0, source.size[d] - 1))
    return np.ix_(*indices)


def _nifti(array: np.ndarray, grid: Grid, slope: float, intercept: float) -> str:
    with scratch_folder() as folder:
        path = folder / "image.nii"
        sitk.WriteImage(to_sitk(Volume(array, grid)), str(path))
        content = bytearray(path.read_bytes())
    if len(content) < DATA_OFFSET + array.nbytes:  # ITK says nothing where a disk is full
        raise OSError(ENOSPC, f"no room for temporary files in {gettempdir()}")
    struct.pack_into("<ff", content, SCALE_OFFSET, slope, intercept)
    return base64.b64encode(gzip.compress(bytes(content), GZIP_LEVEL)).decode()


def _mesh(
    labels: np.ndarray, reference: np.ndarray | None, value: int, grid: Grid, structure: Structure
) -> str:
    """A coarse mesh as base64 of MZ3, in the structure's colour; with a reference, the redder the
    farther the surface lies from it. '' where the structure is not found."""
    steps = [max(1, round(MESH_SPACING_MM / s)) for s in grid.spacing_mm]
    strides = tuple(slice(None, None, step) for step in steps)
    coarse = labels[strides]
    spacing = floats3(np.multiply(steps, grid.spacing_mm))
    coarse_grid = Grid(ints3(coarse.shape), spacing, grid.origin_mm)
    points, triangles = mesh_of(coarse, value, coarse_grid)
    if not len(triangles):
        return ""
    colours = np.tile(np.asarray(structure.colour, float), (len(points), 1))
    if reference is not None:
        wanted, _ = mesh_of(reference[strides], value, coarse_grid)
        if len(wanted):
            distances_mm = cKDTree(wanted).query(points, workers=-1)[0]
            share = np.clip(distances_mm / FAR_MM, 0, 1)[:, None]
            colours = colours * (1 - share) + np.asarray(FAR_RGB) * share
    return base64.b64encode(gzip.compress(_mz3(points, triangles, colours), GZIP_LEVEL)).decode()


def _mz3(points: np.ndarray, triangles: np.ndarray, colours: np.ndarray) -> bytes:
    """Surf Ice's format: faces, vertices (RAS, as NiiVue wants them) and a colour for each."""
    head = struct.pack("<HHIII", MZ3_MAGIC, MZ3_PARTS, len(triangles), len(points), 0)
    rgba = np.full((len(points), 4), 255, np.uint8)
    rgba[:, :3] = np.rint(colours)
    places = (points * (-1, -1, 1)).astype("<f4")
    return head + triangles.astype("<i4").tobytes() + places.tobytes() + rgba.tobytes()
