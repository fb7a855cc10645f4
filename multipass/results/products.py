"""The files of a case: mask, DICOM SEG, picture, what its page shows, on request more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from multipass.dicom.seg_writer import write_seg
from multipass.dicom.series import Slice
from multipass.geometry.meshes import mesh_of, write_mesh
from multipass.geometry.volume import Grid, Volume, to_sitk
from multipass.geometry.windows import stacked_grid
from multipass.model.maps import PassResult
from multipass.model.passes import context_of
from multipass.results.case_folder import write_mask
from multipass.results.pictures import overlay
from multipass.results.timing import Stages
from multipass.results.viewer import page_data
from multipass.structures import Structure

FORMATS = ("nifti", "seg")


@dataclass(frozen=True)
class Segmented:
    """A segmented scan.

    Attributes:
        upright, labels: the CT and its label map on the upright grid.
        grid, mask: the scan's own grid, and the label map on it.
        slices: the DICOM slices in the order of the grid's third axis; () for other formats.
        result: of the last pass, if its probabilities are wanted.
        reference: a label map on the upright grid.
        is_tilted: the scan was resampled to `grid`, and its slices lie askew in it.
    """

    title: str
    upright: Volume
    labels: np.ndarray
    grid: Grid
    mask: np.ndarray
    slices: tuple[Slice, ...]
    structures: Sequence[Structure]
    result: PassResult | None
    reference: np.ndarray | None
    flags: Sequence[str]
    is_tilted: bool = False


@dataclass(frozen=True)
class Wanted:
    """Which files of a case; 'nifti' and 'seg' are formats, `meshes` is 'stl', 'ply' or ''."""

    formats: Sequence[str] = FORMATS
    probabilities: bool = False
    meshes: str = ""
    viewer: bool = False


@dataclass
class Written:
    """Notes, sentences on files that could not be written, and `viewer.page_data` if wanted."""

    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    page: dict[str, Any] | None = None


def write_products(folder: Path, case: Segmented, wanted: Wanted, stages: Stages) -> Written:
    """Writes the case's files, seg.dcm beside the others, since dcmqi is a process of its own; the
    stage 'seg.dcm' is what it takes longer than they do.

    Raises:
        ValueError: what was read back is not what was written.
    """
    written = Written()
    # DICOM knows no SEG without a segment.
    wants_seg = "seg" in wanted.formats and bool(case.slices) and bool(case.mask.any())
    with ThreadPoolExecutor(1) as beside:
        seg = beside.submit(_write_seg, folder, case) if wants_seg else None
        written.notes += _write_others(folder, case, wanted, stages)
        if wanted.viewer:
            with stages.stage("viewer"):
                shown = case.upright, case.labels, case.structures, case.reference
                written.page = page_data(*shown)
        if seg is not None:
            with stages.stage("seg.dcm"):
                written.problems += seg.result()
    return written


def _write_others(folder: Path, case: Segmented, wanted: Wanted, stages: Stages) -> list[str]:
    notes = []
    if "nifti" in wanted.formats:
        with stages.stage("mask.nii.gz"):
            write_mask(folder / "mask.nii.gz", case.mask, case.grid)
    if case.is_tilted:
        with stages.stage("ct.nii.gz"):
            sitk.WriteImage(to_sitk(case.upright), str(folder / "ct.nii.gz"), useCompression=True)
        notes.append("tilted gantry: mask and SEG lie on the upright grid of ct.nii.gz beside them")
    if wanted.probabilities and case.result is not None:
        with stages.stage("probabilities"):
            write_probabilities(folder, case.result)
    if wanted.meshes:
        with stages.stage("meshes"):
            write_meshes(folder, case, wanted.meshes)
    with stages.stage("overlay.png"):
        title = f"{case.title}   {shape_text(case.grid)}"
        drawn = case.upright, case.labels, case.structures
        overlay(folder / "overlay.png", *drawn, title, case.flags, case.reference)
    return notes


def _write_seg(folder: Path, case: Segmented) -> list[str]:
    """Writes seg.dcm; a refusal of dcmqi's must not take the mask away."""
    try:
        what = case.mask, case.grid, case.slices, case.structures
        write_seg(folder / "seg.dcm", *what, case.is_tilted)
    except ValueError as error:
        return [f"no seg.dcm: {error}"]
    return []


def write_probabilities(folder: Path, result: PassResult) -> None:
    """The last pass's class probabilities, background first, on the grid of its windows: a NIfTI of
    vectors."""
    grid = stacked_grid(result.windows)
    of_class = context_of(result, grid, torch.device("cpu"))
    maps = (of_class(c).numpy() for c in range(len(result.probabilities[0])))
    image = sitk.Compose([to_sitk(Volume(one, grid)) for one in maps])
    sitk.WriteImage(image, str(folder / "probabilities.nii.gz"), useCompression=True)


def write_meshes(folder: Path, case: Segmented, suffix: str) -> None:
    """One mesh a structure that was found, named after it."""
    for k, structure in enumerate(case.structures):
        points, triangles = mesh_of(case.labels, k + 1, case.upright.grid)
        if len(triangles):
            name = re.sub(r"[^\w.-]+", "_", structure.name)
            write_mesh(folder / f"{name}.{suffix}", points, triangles)


def shape_text(grid: Grid) -> str:
    spacing = " x ".join(f"{v:.2f}" for v in grid.spacing_mm)
    return f"{' x '.join(map(str, grid.size))} at {spacing} mm"
