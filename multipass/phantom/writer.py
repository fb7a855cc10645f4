"""A subject as a CT series and a segmentation object, in the folder layout of CTPEL."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from multipass.geometry.volume import Grid, Volume, floats3
from multipass.phantom.anatomy.scene import OTHER_BONE_VALUE
from multipass.phantom.recipe import Recipe
from multipass.phantom.reference import write_segmentation
from multipass.phantom.scanner.acquisition import outside_circle
from multipass.phantom.subject import Subject

DATE, TIME = "20200101", "120000"
# Signs of the rows', columns' and slices' axes along x, y, z as scanners write them.
ACQUIRED = {"HFS": (1, 1, 1), "HFP": (-1, -1, 1), "FFS": (-1, 1, -1), "FFP": (1, -1, -1)}


def write_subject(
    folder: Path, subject: Subject, *, orientation: str | None = None, other_bone: bool = False
) -> None:
    """Write `folder`/im_1 (CT, one file a slice) and `folder`/im_3 (one DICOM SEG).

    The folder appears under its name only when it is complete.

    Args:
        orientation: write the axes as for this patient position rather than the subject's own.
        other_bone: write `structures.OTHER_BONE`, too.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        signs = ACQUIRED[orientation or subject.position]
        volume = flipped(subject.volume, signs)
        values = subject.label
        if other_bone:
            values = np.where(subject.other_bone, np.uint8(OTHER_BONE_VALUE), values)
        label = flipped(Volume(values, subject.volume.grid), signs)
        slices = write_ct(partial / "im_1", volume, subject.recipe, subject.position)
        write_segmentation(partial / "im_3", label, partial / "im_1", slices, subject.recipe)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flipped(volume: Volume, signs: tuple[int, int, int]) -> Volume:
    """The same upright voxels with axes running along (1) or against (-1) x, y, z."""
    grid = volume.grid
    steps = tuple(slice(None, None, sign) for sign in signs)
    last = (np.asarray(grid.size) - 1) * grid.spacing_mm * (np.asarray(signs) < 0)
    direction = tuple(float(v) for v in np.diag(signs).ravel())
    origin = floats3(np.add(grid.origin_mm, last).round(6))
    return Volume(volume.array[steps], Grid(grid.size, grid.spacing_mm, origin, direction))


def patient_uid(recipe: Recipe, *what: object) -> str:
    """A UID that depends only on the recipe's seed and index, and on what it is for."""
    sources = ["multipass.phantom", str(recipe.seed), str(recipe.index), str(recipe.matrix)]
    sources += [recipe.anatomy] if recipe.anatomy else []
    return str(generate_uid(entropy_srcs=[*sources, *map(str, what)]))


def write_ct(folder: Path, volume: Volume, recipe: Recipe, position: str = "HFS") -> list[Path]:
    """Write one CT file per index of the third axis, whatever the grid's direction.

    Returns:
        The files in the order of that axis.
    """
    folder.mkdir(parents=True)
    rng = recipe.rng("files")
    grid = volume.grid
    count = grid.size[2]
    numbers = list(range(1, count + 1))
    if recipe.file_order == "down":
        numbers = numbers[::-1]
    elif recipe.file_order == "shuffled":
        numbers = [int(n) for n in rng.permutation(numbers)]
    names = [folder / f"{value:016x}.dcm" for value in rng.integers(0, 2**62, count)]
    series = _series(recipe, grid, position)
    affine = grid.affine
    outside = outside_circle(*grid.size[:2]).T if recipe.padding is not None else None
    for k, path in enumerate(names):
        dataset = copy.copy(series)
        place = affine[:3, :3] @ (0, 0, k) + affine[:3, 3]
        dataset.SOPInstanceUID = patient_uid(recipe, "slice", k, *np.round(affine.ravel(), 4))
        dataset.InstanceNumber = numbers[k]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in place]
        dataset.SliceLocation = f"{float(place @ grid.matrix[:, 2]):.6f}"
        stored = _stored(volume.array[:, :, k].T, recipe)
        if outside is not None:
            stored[outside] = recipe.padding
        dataset.PixelData = stored.tobytes()
        _save(dataset, path)
    return names


def _stored(hu: np.ndarray, recipe: Recipe) -> np.ndarray:
    kind = np.dtype("<i2" if recipe.signed else "<u2")
    limits = np.iinfo(kind)
    raw = np.rint((hu.astype(np.float32) - recipe.intercept) / recipe.slope)
    return np.clip(raw, limits.min, limits.max).astype(kind)


def _series(recipe: Recipe, grid: Grid, position: str) -> Dataset:
    """All attributes that the slices of the series share."""
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(ds, name, DATE)
    for name in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(ds, name, TIME)
    ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ""
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", "Synthetic", "MultiPass phantom"
    ds.StudyDescription, ds.SeriesDescription = "Synthetic pelvis", "Synthetic CT"
    ds.PatientName = f"Phantom^{recipe.index + 1:02d}"
    ds.PatientID = f"PHANTOM-{recipe.seed}-{recipe.index + 1:02d}"
    ds.PatientBirthDate, ds.PatientSex = "", "F" if recipe.sex > 0.5 else "M"
    if recipe.anatomy:
        ds.PatientComments = recipe.anatomy
    ds.BodyPartExamined, ds.PatientPosition = "PELVIS", position
    ds.KVP, ds.ConvolutionKernel = "120", "SHARP" if recipe.sharpness > 0.1 else "SOFT"
    ds.SliceThickness = f"{recipe.slice_thickness_mm:.3f}"
    ds.StudyInstanceUID = patient_uid(recipe, "study")
    ds.SeriesInstanceUID = patient_uid(recipe, "series", *np.round(grid.affine.ravel(), 4))
    ds.FrameOfReferenceUID = patient_uid(recipe, "frame of reference")
    ds.PositionReferenceIndicator, ds.SeriesNumber, ds.AcquisitionNumber = "", "2", "1"
    ds.ImageOrientationPatient = [f"{v:.6f}" for v in grid.matrix[:, :2].T.ravel()]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = grid.size[1], grid.size[0]
    ds.PixelSpacing = [f"{grid.spacing_mm[1]:.6f}", f"{grid.spacing_mm[0]:.6f}"]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(recipe.signed)
    if recipe.padding is not None:
        ds.add_new("PixelPaddingValue", "SS" if recipe.signed else "US", recipe.padding)
    ds.RescaleIntercept, ds.RescaleSlope = f"{recipe.intercept:g}", f"{recipe.slope:g}"
    ds.RescaleType, ds.WindowCenter, ds.WindowWidth = "HU", "300", "1500"
    return ds


def _save(dataset: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.save_as(path, enforce_file_format=True)
