"""A scan in memory: read from DICOM, an image file or a patient file, in Hounsfield units.

A scan keeps its own grid, whatever its orientation; the passes run on its upright copy.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from multipass.data import patient_files
from multipass.data.scans import Case
from multipass.dicom import ct, hounsfield, series
from multipass.geometry import windows
from multipass.geometry.volume import (
    AIR_HU,
    Grid,
    Volume,
    axis_order,
    floats3,
    from_sitk,
    ints3,
    resample,
    upright,
    upright_grid,
)

SLAB = 16
CHUNK_BYTES = 1 << 22
# Below -300 HU, so that the body is told from air, and 0 in the image's range like the original.
PATIENT_FILE_AIR_HU = -1000.0


@dataclass(frozen=True)
class Scan:
    """A scan in memory.

    Attributes:
        grid: as stored.
        upright: HU in LPS axis order: the same voxels, or resampled where the scan is oblique.
        slices: the DICOM slices in the order of the third axis, () for other formats.
        tilted: the CT, where its gantry was tilted: `grid` is then upright and resampled.
        notes: what a person should know of this scan.
    """

    grid: Grid
    upright: Volume
    slices: tuple[series.Slice, ...] = ()
    notes: tuple[str, ...] = ()
    tilted: ct.CT | None = None

    @property
    def is_oblique(self) -> bool:
        return axis_order(self.grid) is None


def read_scan(case: Case) -> Scan:
    """The scan in HU.

    Raises:
        ValueError: the case cannot be segmented; one sentence without the case's name.
    """
    if case.series is not None:
        scan = ct.read_ct(case.series)
        tilted = scan if scan.is_tilted else None
        return Scan(scan.volume.grid, upright(scan.volume), scan.slices, scan.notes, tilted)
    if case.path.suffix.lower() == ".pkl":
        return _scan_of_patient(patient_files.read_patient(case.path))
    volume, notes = _read_image(case.path)
    return Scan(volume.grid, upright(volume), notes=notes)


def _read_image(path: Path) -> tuple[Volume, tuple[str, ...]]:
    try:
        _check_whole(path)
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path.name}: cannot be read ({reason})") from None
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{path.name}: {image.GetSize()}, one scalar 3D image is needed")
    if min(image.GetSize()) < series.MIN_SLICES:
        raise ValueError(f"{path.name}: {image.GetSize()} voxels, at least 3 along each axis")
    volume = from_sitk(image)
    array = volume.array
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"{path.name}: holds values that are not numbers")
        array = np.rint(array)
    values = np.clip(array, AIR_HU, hounsfield.MAX_HU).astype(np.int16)
    keys = ("qform_code", "sform_code")
    codes = [image.GetMetaData(key) for key in keys if image.HasMetaDataKey(key)]
    notes = hounsfield.implausible(values)
    if codes and set(codes) == {"0"}:
        notes.append("this file does not say which side is left")
    return Volume(values, volume.grid), tuple(notes)


def _check_whole(path: Path) -> None:
    """Raise ValueError for a NIfTI file that was cut off: ITK reads what is missing as zeros."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    itemsize = int(reader.GetMetaData("bitpix")) // 8
    wanted = int(float(reader.GetMetaData("vox_offset"))) + itemsize * math.prod(reader.GetSize())
    length = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        try:
            with gzip.open(path) as file:
                length = sum(len(chunk) for chunk in iter(lambda: file.read(CHUNK_BYTES), b""))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path.name}: damaged, {error}") from None
    if length < wanted:
        raise ValueError(f"{path.name}: cut off, {length} bytes of {wanted}")


def _scan_of_patient(patient: dict) -> Scan:
    """The scan as far as a patient file holds it, on the grid it was made from: the scan windows
    with the finer pelvis crop or its parts in their place, and air around them."""
    source = patient["source"]
    grid = Grid(
        ints3(source["size"]),
        floats3(source["spacing_mm"]),
        floats3(source["origin_mm"]),
        tuple(source["direction"]),
    )
    target = upright_grid(grid)
    array = np.empty(target.size, np.int16)
    held = [*patient.get("elsewhere", []), patient["scan"], *(patient.get("parts") or [patient])]
    views = [Volume(view["image"], patient_files.window_of(view)) for view in held]
    low, high = windows.HU_RANGE
    for k in range(0, target.size[2], SLAB):
        depth = min(SLAB, target.size[2] - k)
        slab = target.cropped((0, 0, k), (*target.size[:2], depth))
        image, *finer = (resample(view, slab, outside=-1.0) for view in views)
        for seen in finer:
            image = np.where(seen >= 0, seen, image)
        hounsfield = np.where(image > 0, image * (high - low) + low, PATIENT_FILE_AIR_HU)
        array[:, :, k : k + depth] = np.rint(hounsfield)
    return Scan(grid, Volume(array, target), notes=("read from a patient file's windows",))
