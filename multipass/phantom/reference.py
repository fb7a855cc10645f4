"""The reference segmentation as a DICOM SEG object, by dcmqi, the same bytes for the same seed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from multipass.dicom.dcmqi import complaint, number_places, run_dcmqi
from multipass.geometry.volume import Grid, Volume, floats3, to_sitk
from multipass.phantom.recipe import Recipe
from multipass.structures import OTHER_BONE, PELVIS, Structure, to_attributes

STRUCTURES = (*PELVIS, OTHER_BONE)
DATE, TIME = "20200101", "120000"


def write_segmentation(
    folder: Path, label: Volume, ct_dir: Path, slices: list[Path], recipe: Recipe
) -> Path:
    """Write `folder`/<random name>.dcm with a segment for each structure in the label, whose
    values are those of STRUCTURES.

    Segments are numbered in an order of the patient's own; empty frames are left out.

    Raises:
        ValueError: itkimage2segimage is missing or failed.
    """
    folder.mkdir(parents=True)
    rng = recipe.rng("segments")
    present = [value for value in range(1, len(STRUCTURES) + 1) if (label.array == value).any()]
    order = [int(v) for v in rng.permutation(present)]
    path = folder / f"{int(rng.integers(0, 2**62)):016x}.dcm"
    numbers = np.zeros(len(STRUCTURES) + 1, np.uint8)
    numbers[order] = np.arange(1, len(order) + 1)
    image = to_sitk(_right_handed(Volume(numbers[label.array], label.grid)))
    with tempfile.TemporaryDirectory() as scratch:
        mask, table = Path(scratch) / "mask.nrrd", Path(scratch) / "segments.json"
        sitk.WriteImage(image, mask, useCompression=False)
        table.write_text(json.dumps(_table([STRUCTURES[value - 1] for value in order])))
        arguments = ["--skip", "1", "--inputImageList", str(mask)]
        arguments += ["--inputDICOMDirectory", str(ct_dir), "--inputMetadata", str(table)]
        printed = run_dcmqi("itkimage2segimage", *arguments, "--outputDICOM", str(path))
        if not path.exists():
            raise ValueError(f"dcmqi wrote no segmentation: {complaint(printed)}")
    dataset = pydicom.dcmread(path)
    number_places(dataset)
    _settle(dataset, recipe)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _right_handed(volume: Volume) -> Volume:
    """DICOM frames are stacked along rows x columns: turn the third axis if it runs against it."""
    grid = volume.grid
    if np.linalg.det(grid.matrix) > 0:
        return volume
    matrix = grid.matrix * (1, 1, -1)
    origin = floats3(grid.affine[:3, 3] + (grid.size[2] - 1) * grid.affine[:3, 2])
    turned = Grid(grid.size, grid.spacing_mm, origin, tuple(float(v) for v in matrix.ravel()))
    return Volume(volume.array[:, :, ::-1], turned)


def _table(structures: list[Structure]) -> dict:
    """dcmqi's description of the segments, in the order of their numbers."""
    return {
        "ContentCreatorName": "Phantom", "ClinicalTrialSeriesID": "1",
        "ClinicalTrialTimePointID": "1", "SeriesDescription": "Reference segmentation",
        "SeriesNumber": "300", "InstanceNumber": "1", "BodyPartExamined": "PELVIS",
        "segmentAttributes": [[to_attributes(s, k) for k, s in enumerate(structures, start=1)]],
    }  # fmt: skip


def _settle(dataset: Dataset, recipe: Recipe) -> None:
    """Put fixed dates and seeded UIDs where dcmqi puts the clock's and random ones."""
    own = {str(dataset.SOPInstanceUID): "segmentation", str(dataset.SeriesInstanceUID): "series"}
    for item in dataset.DimensionOrganizationSequence:
        own[str(item.DimensionOrganizationUID)] = "dimensions"
    seeded = {
        old: generate_uid(entropy_srcs=["segmentation", what, str(recipe)])
        for old, what in own.items()
    }

    def settle(_: Dataset, element) -> None:
        if element.VR == "UI" and str(element.value) in seeded:
            element.value = seeded[str(element.value)]
        elif element.VR == "DA" and element.value:
            element.value = DATE
        elif element.VR == "TM" and element.value:
            element.value = TIME
        elif element.VR == "DT" and element.value:
            element.value = DATE + TIME

    dataset.walk(settle)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
