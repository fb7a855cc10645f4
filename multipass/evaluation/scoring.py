"""Scores of a case against the reference beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from multipass.data.case import Case
from multipass.data.scan import Scan
from multipass.dicom.seg_reader import read_reference
from multipass.evaluation.label_maps import contradiction, read_label_map
from multipass.evaluation.metrics import compare
from multipass.geometry.labelmaps import LEAST_PART_MM3
from multipass.geometry.lattices import Lattice, frame_of, in_frame, resample_lattice
from multipass.geometry.volume import (
    Grid,
    Volume,
    axis_order,
    from_upright,
    to_sitk,
    upright,
    upright_grid,
)
from multipass.model.maps import PassResult, bone_labels
from multipass.model.way_back import own_grid_labels
from multipass.structures import Identify, Structure, by_codes
from multipass.terminal import one_sentence


@dataclass(frozen=True)
class Scored:
    """Rows of summary.csv, the reference's label map on the upright grid if there is one, and why
    a reference could not be used."""

    rows: list[dict[str, Any]]
    reference: np.ndarray | None = None
    problem: str | None = None


def score(
    case: Case,
    scan: Scan,
    mask: np.ndarray,
    results: Sequence[PassResult],
    structures: Sequence[Structure],
    volumes_ml: Sequence[float | None],
    rules: Identify = by_codes,
    every_pass: bool = False,
    least_part_mm3: float = LEAST_PART_MM3,
) -> Scored:
    """With a reference, the scores of the first and the last pass; else the last pass's volumes, if
    it found anything.

    Args:
        mask: of the last pass, on the scan's own grid, as it is written.
        volumes_ml: of the structures in it.
        rules: of a SEG's segments, see `multipass.dicom.seg_reader.read_reference`.
        every_pass: score the passes between the first and the last, too.
        least_part_mm3: what was removed from `mask`, and is from the other passes'.
    """
    problem = None
    try:
        found = reference_labels(case, scan, structures, rules)
    except Exception as error:  # whatever is wrong with it, the mask stands
        found = None
        problem = f"its reference was not used: {one_sentence(error)}"
    names = [structure.name for structure in structures]
    last = len(results)
    rows: list[dict[str, Any]] = []
    if found is None:
        if any(volume_ml is not None for volume_ml in volumes_ml):
            for name, volume_ml in zip(names, volumes_ml, strict=True):
                rows.append({"pass": last, "structure": name, "volume_ml": volume_ml})
        return Scored(_of_case(rows, case, names), problem=problem)
    for number in range(1, last + 1) if every_pass else sorted({1, last}):
        compared = mask
        if number < last:
            labels = bone_labels(results[number - 1], scan.upright.grid, least_part_mm3)
            compared = own_grid_labels(results[number - 1], scan.grid, labels, least_part_mm3)
        for row in compare(compared, found[0], scan.grid.spacing_mm, names, found[1]):
            rows.append({"pass": number, **row})
    return Scored(_of_case(rows, case, names), upright_labels(found[0], scan.grid))


def _of_case(rows: list[dict[str, Any]], case: Case, names: Sequence[str]) -> list[dict[str, Any]]:
    return [row | {"case": case.name, "value": names.index(row["structure"]) + 1} for row in rows]


def reference_labels(
    case: Case, scan: Scan, structures: Sequence[Structure], rules: Identify = by_codes
) -> tuple[np.ndarray, list[str]] | None:
    """The reference's label map on the scan's grid in the model's order, and each structure's
    status; None where no reference lies beside the scan.

    Raises:
        ValueError: the reference cannot be read, does not fit, or is of another convention.
    """
    if case.seg:
        frame = frame_of(scan.grid)
        seen = in_frame(scan.grid, frame)
        found = read_reference(case.seg, upright_grid(seen), rules, scan.ct, frame)
        values = {segment.structure.key: 1 + k for k, segment in enumerate(found.segments)}
        statuses = {segment.structure.key: segment.status for segment in found.segments}
        lookup = np.zeros(len(found.segments) + 1, np.min_scalar_type(len(structures)))
        for k, structure in enumerate(structures):
            lookup[values.get(structure.key, 0)] = 1 + k
        lookup[0] = 0
        labels = from_upright(lookup[found.labels()], seen)
        return labels, [statuses.get(s.key, "absent") for s in structures]
    if case.reference_path is None:
        return None
    lattice = scan.sheared or Lattice(scan.grid.affine, scan.grid.size)
    labels, status = read_label_map(case.reference_path, lattice, structures)
    if scan.sheared:
        labels = _unsheared(labels, scan.sheared, scan.grid)
    placed = Volume(upright_labels(labels, scan.grid), scan.upright.grid)
    reason = contradiction(placed, structures)
    if reason is not None:
        raise ValueError(
            f"{case.reference_path.name}: {reason}, so that its labels or its axes are others "
            f"than the scan's and the network's"
        )
    return labels, status


def _unsheared(labels: np.ndarray, lattice: Lattice, grid: Grid) -> np.ndarray:
    """A label map of a sheared lattice on the grid that its scan was resampled to: what makes up
    half of a voxel at least."""
    moved = np.zeros(grid.size, labels.dtype)
    for value in range(1, int(labels.max(initial=0)) + 1):
        part = (labels == value).astype(np.float32)
        moved[resample_lattice(part, lattice.affine, grid, 0.0).array >= 0.5] = value
    return moved


def upright_labels(labels: np.ndarray, grid: Grid) -> np.ndarray:
    """A label map on the scan's grid on its upright one: the nearest label where it is oblique."""
    if axis_order(grid) is not None:
        return upright(Volume(labels, grid)).array
    to = upright_grid(grid)
    placed = to.origin_mm, to.spacing_mm, to.direction
    nearest = sitk.Transform(), sitk.sitkNearestNeighbor
    resampled = sitk.Resample(to_sitk(Volume(labels, grid)), to.size, *nearest, *placed)
    return sitk.GetArrayFromImage(resampled).T
