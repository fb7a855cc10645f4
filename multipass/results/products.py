"""The files of a case: mask, DICOM SEG, picture, page, on request more."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from multipass.dicom.rt_writer import write_rtstruct
from multipass.dicom.seg_writer import LABELMAP, write_seg
from multipass.dicom.slices import Slice
from multipass.geometry.meshes import mesh_of, write_mesh
from multipass.geometry.volume import Grid, Volume, from_upright, to_sitk
from multipass.geometry.windows import stacked_grid
from multipass.model.checkpoint import versions
from multipass.model.maps import PassResult
from multipass.model.passes import context_of
from multipass.results.case_folder import as_json, write_image, write_mask, write_report
from multipass.results.page import CASE_PAGE, write_case_page
from multipass.results.pictures import overlay
from multipass.results.timing import Stages
from multipass.results.viewer import page_data
from multipass.structures import Structure
from multipass.terminal import one_sentence

FORMATS = ("nifti", "seg")
# What can be written of a DICOM scan alone, by its format.
DICOM_NAMES = {"seg": "seg.dcm", "labelmap": "labelmap.dcm", "rtstruct": "rtstruct.dcm"}
# Of a case, what a DICOM object is made of.
WRITTEN = ("mask", "grid", "slices", "structures", "is_resampled")
Write = Callable[[Path], object]


@dataclass(frozen=True)
class Segmented:
    """A segmented scan.

    Attributes:
        upright, labels: the CT and its label map on the upright grid.
        grid, mask: the scan's own grid, and the label map on it.
        slices: the DICOM slices in the order of the grid's third axis; () for other formats.
        result: of the last pass, if its probabilities are wanted.
        reference: a label map on the upright grid.
        is_resampled: the scan was resampled to `grid`, and its slices lie askew in it.
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
    is_resampled: bool = False


@dataclass(frozen=True)
class Wanted:
    """Which files of a case; `meshes` is 'stl', 'ply' or ''.

    Raises:
        ValueError: a format that there is not.
    """

    formats: Sequence[str] = FORMATS
    probabilities: bool = False
    meshes: str = ""

    def __post_init__(self) -> None:
        if unknown := set(self.formats) - {"nifti", *DICOM_NAMES}:
            known = ", ".join(("nifti", *DICOM_NAMES))
            raise ValueError(f"no format '{min(unknown)}'; there are {known}")

    def not_for(self, slices: Sequence[Slice]) -> list[str]:
        """A sentence for each format beyond the usual ones that a scan cannot have."""
        asked_for = [name for name in self.formats if name in DICOM_NAMES and name not in FORMATS]
        why = "only a scan whose DICOM slices are at hand can have one"
        return [] if slices else [f"no {DICOM_NAMES[name]}: {why}" for name in asked_for]


def products_of(case: Segmented, wanted: Wanted) -> dict[str, Write]:
    """What writes each file that is wanted of a case, by its name, the mask first."""
    products: dict[str, Write] = {}
    if "nifti" in wanted.formats:
        products["mask.nii.gz"] = partial(write_mask, labels=case.mask, grid=case.grid)
    if case.is_resampled:
        resampled = Volume(from_upright(case.upright.array, case.grid), case.grid)
        products["ct.nii.gz"] = lambda path: write_image(path, to_sitk(resampled))
    # DICOM knows no SEG without a segment.
    if case.slices and case.mask.any():
        what = {name: getattr(case, name) for name in WRITTEN}
        writers: dict[str, Write] = {
            "seg": partial(write_seg, **what),
            "labelmap": partial(write_seg, **what, kind=LABELMAP),
            "rtstruct": partial(write_rtstruct, **what),
        }
        products |= {DICOM_NAMES[name]: w for name, w in writers.items() if name in wanted.formats}
    if wanted.probabilities and case.result is not None:
        products["probabilities.nii.gz"] = partial(write_probabilities, result=case.result)
    for k, structure in enumerate(case.structures) if wanted.meshes else ():
        if (case.mask == k + 1).any():
            name = re.sub(r"[^\w.-]+", "_", structure.name) + f".{wanted.meshes}"
            name = f"{k + 1}_{name}" if name in products else name
            products[name] = partial(_write_mesh, case=case, value=k + 1)
    title = f"{case.title}   {shape_text(case.grid)}"
    drawn = case.upright, case.labels, case.structures, title, case.flags, case.reference
    products["overlay.png"] = lambda path: overlay(path, *drawn)
    return products


def write_case(
    folder: Path,
    products: Mapping[str, Write],
    facts: Mapping[str, Any],
    stages: Stages,
    page: Callable[[dict[str, Any]], Write] | None = None,
) -> dict[str, Any]:
    """Writes a case's files, report.json last.

    Args:
        facts: the report's entries, without the files' and those of time.
        page: from the report to what writes the case's page, if there shall be one.

    Returns:
        The report; its 'problems' are those of `facts` and of what could not be written.
    """
    problems = [*facts["problems"], *write_products(folder, products, stages)]
    report = {
        **facts,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "problems": problems,
        "stages": stages.taken,
        "seconds": stages.seconds,
        "versions": versions(),
    }
    if page is None:
        return write_report(folder, report, list(products))
    with stages.stage(CASE_PAGE):
        problems += attempt(folder / CASE_PAGE, page(report))
    report["seconds"] = stages.seconds
    return write_report(folder, report, [*products, CASE_PAGE])


def write_products(folder: Path, products: Mapping[str, Write], stages: Stages) -> list[str]:
    """Writes the files.

    Returns:
        A sentence for each file that could not be written. The others stand.
    """
    problems: list[str] = []
    for name, write in products.items():
        with stages.stage(name):
            problems += attempt(folder / name, write)
    return problems


def attempt(path: Path, write: Write) -> list[str]:
    """Writes a file whole or not at all; a sentence if it cannot be written."""
    try:
        write(path)
    except Exception as error:  # whatever it is, it must not take the other files away
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return [f"no {path.name}: {one_sentence(error)}"]
    return []


def page_of(case: Segmented, report: dict[str, Any], with_viewer: bool) -> Write:
    """What writes the case's page, with the viewer's data where there is one."""

    def write(path: Path) -> None:
        shown = case.upright, case.labels, case.structures, case.reference
        data = page_data(*shown) if with_viewer else None
        write_case_page(path.parent, as_json(report), data)

    return write


def write_probabilities(path: Path, result: PassResult) -> None:
    """`probability_maps` as a NIfTI of vectors."""
    write_image(path, probability_maps(result))


def probability_maps(result: PassResult) -> sitk.Image:
    """A pass's class probabilities, background first, on the grid of its windows: an image of
    float32 vectors."""
    grid = stacked_grid(result.windows)
    of_class = context_of(result, grid, torch.device("cpu"))
    maps = (of_class(c).numpy() for c in range(len(result.probabilities[0])))
    return sitk.Compose([to_sitk(Volume(one, grid)) for one in maps])


def _write_mesh(path: Path, case: Segmented, value: int) -> None:
    write_mesh(path, *mesh_of(case.mask, value, case.grid))


def shape_text(grid: Grid) -> str:
    spacing = " x ".join(f"{v:.2f}" for v in grid.spacing_mm)
    return f"{' x '.join(map(str, grid.size))} at {spacing} mm"
