"""Scores of a case against the reference beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from multipass.data.case import Case
from multipass.dicom.ct import CT
from multipass.dicom.seg_reader import Identify, read_reference
from multipass.evaluation.metrics import compare
from multipass.geometry.labelmaps import LEAST_PART_MM3, boxes_of
from multipass.geometry.volume import (
    SAME_PLACE_MM,
    Grid,
    Volume,
    axis_order,
    from_sitk,
    to_sitk,
    upright,
    upright_grid,
)
from multipass.model.maps import PassResult, bone_labels
from multipass.structures import Structure, by_codes


@dataclass(frozen=True)
class Scored:
    """Rows of summary.csv, the reference's label map on the upright grid if there is one, and why
    a reference could not be used."""

    rows: list[dict[str, Any]]
    reference: np.ndarray | None = None
    problem: str | None = None


def score(
    case: Case,
    grid: Grid,
    labels: np.ndarray,
    results: Sequence[PassResult],
    structures: Sequence[Structure],
    volumes_ml: Sequence[float | None],
    tilted: CT | None = None,
    rules: Identify = by_codes,
    every_pass: bool = False,
    least_part_mm3: float = LEAST_PART_MM3,
) -> Scored:
    """With a reference, the scores of the first and the last pass; else the last pass's volumes, if
    it found anything.

    Args:
        grid: the scan's own.
        labels: of the last pass, on the upright grid.
        volumes_ml: of the structures in `labels`.
        tilted: the CT, where its gantry was tilted.
        rules: of a SEG's segments, see `multipass.dicom.seg_reader.read_reference`.
        every_pass: score the passes between the first and the last, too.
        least_part_mm3: what was removed from `labels`, and is from the other passes'.
    """
    problem = None
    try:
        found = reference_labels(case, grid, structures, tilted, rules)
    except (ValueError, OSError, RuntimeError) as error:
        found = None
        problem = "its reference was not used: " + " ".join(str(error).split())[:300]
    names = [structure.name for structure in structures]
    target, last = upright_grid(grid), len(results)
    rows: list[dict[str, Any]] = []
    if found is None and any(volume_ml is not None for volume_ml in volumes_ml):
        for name, volume_ml in zip(names, volumes_ml, strict=True):
            rows.append({"pass": last, "structure": name, "volume_ml": volume_ml})
    if found is not None:
        for number in range(1, last + 1) if every_pass else sorted({1, last}):
            compared = labels
            if number < last:
                compared = bone_labels(results[number - 1], target, structures, least_part_mm3)
            for row in compare(compared, found[0], target.spacing_mm, names, found[1]):
                rows.append({"pass": number, **row})
    for row in rows:
        row |= {"case": case.name, "value": names.index(row["structure"]) + 1}
    return Scored(rows, None if found is None else found[0], problem)


def reference_labels(
    case: Case,
    grid: Grid,
    structures: Sequence[Structure],
    tilted: CT | None = None,
    rules: Identify = by_codes,
) -> tuple[np.ndarray, list[str]] | None:
    """The reference's label map on the scan's upright grid in the model's order, and each
    structure's status; None where no reference lies beside the scan.

    Raises:
        ValueError: the reference cannot be read or does not fit.
    """
    if case.seg:
        found = read_reference(case.seg, upright_grid(grid), rules, tilted)
        values = {segment.structure.key: 1 + k for k, segment in enumerate(found.segments)}
        statuses = {segment.structure.key: segment.status for segment in found.segments}
        lookup = np.zeros(len(found.segments) + 1, np.uint8)
        for k, structure in enumerate(structures):
            lookup[values.get(structure.key, 0)] = 1 + k
        lookup[0] = 0
        return lookup[found.labels()], [statuses.get(s.key, "absent") for s in structures]
    if case.reference_path is None:
        return None
    image = from_sitk(sitk.ReadImage(str(case.reference_path)))
    if image.grid.size != grid.size or not np.allclose(
        image.grid.affine, grid.affine, atol=SAME_PLACE_MM
    ):
        raise ValueError(f"{case.reference_path.name} does not lie on the scan's grid")
    with np.errstate(invalid="ignore"):
        labels = image.array.astype(np.uint8)
    if not np.array_equal(labels, image.array):
        raise ValueError(f"{case.reference_path.name}: labels must be whole numbers from 0 to 255")
    if axis_order(grid) is None:
        to = upright_grid(grid)
        nearest = sitk.Transform(), sitk.sitkNearestNeighbor
        resampled = sitk.Resample(
            to_sitk(Volume(labels, grid)),
            to.size,
            *nearest,
            to.origin_mm,
            to.spacing_mm,
            to.direction,
        )
        labels = sitk.GetArrayFromImage(resampled).T
    else:
        labels = upright(Volume(labels, grid)).array
    boxes = boxes_of(labels, len(structures))
    return labels, ["empty" if box is None else "complete" for box in boxes]
