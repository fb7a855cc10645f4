"""The files of a case: mask, DICOM SEG, picture, and on request probabilities and meshes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from multipass.maps import PassResult
from multipass.meshes import mesh_of, write_mesh
from multipass.output import write_mask
from multipass.report import overlay
from multipass.seg_writer import write_seg
from multipass.series import Slice
from multipass.stages import Stages
from multipass.structures import Structure
from multipass.volume import Grid, Volume, to_sitk

FORMATS = ("nifti", "seg")


@dataclass(frozen=True)
class Segmented:
    """A segmented scan.

    Attributes:
        upright, labels: the CT and its label map on the upright grid.
        grid, mask: the scan's own grid, and the label map on it.
        slices: the DICOM slices in the order of the grid's third axis; () for other formats.
        result: of the last pass.
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
    result: PassResult
    reference: np.ndarray | None
    flags: Sequence[str]
    is_tilted: bool = False


def write_products(
    folder: Path,
    case: Segmented,
    stages: Stages,
    formats: Sequence[str] = FORMATS,
    probabilities: bool = False,
    meshes: str = "",
) -> tuple[list[str], list[str]]:
    """Writes the case's files; returns notes, and sentences on files that could not be written.

    Args:
        formats: 'nifti', 'seg'.
        meshes: 'stl', 'ply' or '' for none.

    Raises:
        ValueError: what was read back is not what was written.
    """
    notes: list[str] = []
    problems: list[str] = []
    if "nifti" in formats:
        with stages.stage("mask.nii.gz"):
            write_mask(folder / "mask.nii.gz", case.mask, case.grid)
    if "seg" in formats and case.slices:
        if case.mask.any():
            with stages.stage("seg.dcm"):
                problems += _write_seg(folder, case)
        else:
            notes.append("no seg.dcm, since the mask is empty")
    if case.is_tilted:
        with stages.stage("ct.nii.gz"):
            sitk.WriteImage(to_sitk(case.upright), str(folder / "ct.nii.gz"), useCompression=True)
        notes.append("tilted gantry: mask and SEG lie on the upright grid of ct.nii.gz beside them")
    if probabilities:
        with stages.stage("probabilities"):
            write_probabilities(folder, case.result)
    if meshes:
        with stages.stage("meshes"):
            write_meshes(folder, case, meshes)
    with stages.stage("overlay.png"):
        title = f"{case.title}   {shape_text(case.grid)}"
        drawn = case.upright, case.labels, case.structures
        overlay(folder / "overlay.png", *drawn, title, case.flags, case.reference)
    return notes, problems


def _write_seg(folder: Path, case: Segmented) -> list[str]:
    """Writes seg.dcm; a refusal of dcmqi's must not take the mask away."""
    try:
        what = case.mask, case.grid, case.slices, case.structures
        write_seg(folder / "seg.dcm", *what, case.is_tilted)
    except ValueError as error:
        return [f"no seg.dcm: {error}"]
    return []


def write_probabilities(folder: Path, result: PassResult) -> None:
    """The last pass's class probabilities, background first, on its window's grid: one NIfTI of
    vectors, or one a window where the pass looked through several."""
    for number, (window, maps) in enumerate(
        zip(result.windows, result.probabilities, strict=True), 1
    ):
        image = sitk.Compose([to_sitk(Volume(one, window)) for one in maps])
        name = (
            "probabilities.nii.gz" if len(result.windows) == 1 else f"probabilities_{number}.nii.gz"
        )
        sitk.WriteImage(image, str(folder / name), useCompression=True)


def write_meshes(folder: Path, case: Segmented, suffix: str) -> None:
    """One mesh a structure that was found, named after it."""
    for k, structure in enumerate(case.structures):
        points, triangles = mesh_of(case.labels, k + 1, case.upright.grid)
        if len(triangles):
            name = structure.name.replace(" ", "_").replace("/", "_")
            write_mesh(folder / f"{name}.{suffix}", points, triangles)


def shape_text(grid: Grid) -> str:
    spacing = " x ".join(f"{v:.2f}" for v in grid.spacing_mm)
    return f"{' x '.join(map(str, grid.size))} at {spacing} mm"
