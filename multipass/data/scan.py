"""A scan in memory: read from DICOM, an image file or a patient file, in Hounsfield units.

A scan keeps its own grid, whatever its orientation; the passes run on its upright copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from multipass.data import patient_files
from multipass.data.case import Case
from multipass.data.images import Image, distinct_whole, read_image
from multipass.data.levels import KEPT_HU, Level
from multipass.dicom import hounsfield, series
from multipass.dicom.ct import CT, read_ct
from multipass.dicom.slices import Slice
from multipass.geometry.field_of_view import FieldOfView, field_of_lattice, field_of_view
from multipass.geometry.lattices import (
    Lattice,
    grid_around,
    nearest_grid,
    resample_lattice,
    shear_degrees,
)
from multipass.geometry.volume import (
    AIR_HU,
    MAX_VOXELS,
    Grid,
    Volume,
    axis_order,
    floats3,
    ints3,
    resample,
    upright,
    upright_grid,
)

SLAB = 16
# Below -300 HU, so that the body is told from air; the levels keep nothing below -250.
PATIENT_FILE_AIR_HU = -1000.0
NOT_HELD = -9999.0
# Of axes at right angles it is 1.
LEAST_DETERMINANT = 0.5
# TotalSegmentator has 117 structures; a CT has thousands of values, an 8-bit picture up to 256.
MOST_LABELS = 128


@dataclass(frozen=True)
class Scan:
    """A scan in memory.

    Attributes:
        grid: as stored.
        upright: HU in LPS axis order: the same voxels, or resampled where the scan is oblique.
        slices: the DICOM slices in the order of the third axis, () for other formats.
        ct: the scan, if it was read from DICOM.
        view: what it shows of the patient, as it was acquired; None for a patient file.
        sheared: the voxels of an image file whose axes are not at right angles: `grid` is then
            upright and resampled.
        notes: what a person should know of this scan.
    """

    grid: Grid
    upright: Volume
    slices: tuple[Slice, ...] = ()
    notes: tuple[str, ...] = ()
    ct: CT | None = None
    view: FieldOfView | None = None
    sheared: Lattice | None = None

    @property
    def is_resampled(self) -> bool:
        """Whether `grid` is another than that of the files."""
        return self.sheared is not None or (self.ct is not None and self.ct.is_resampled)

    @property
    def is_oblique(self) -> bool:
        return axis_order(self.grid) is None


def read_scan(case: Case) -> Scan:
    """The scan in HU.

    Raises:
        ValueError: the case cannot be segmented; one sentence without the case's name.
    """
    if case.series is not None:
        ct = read_ct(case.series)
        grid, volume = ct.volume.grid, upright(ct.volume)
        return Scan(grid, volume, ct.slices, ct.notes, ct, ct.view)
    if case.path.suffix.lower() == ".pkl":
        return _scan_of_patient(patient_files.read_patient(case.path))
    return scan_of(read_image(case.path), case.path.name)


def scan_of(image: Image, name: str) -> Scan:
    """The scan in HU of an image's voxels, called `name` in errors.

    Raises:
        ValueError: it is too thin, or a label map.
    """
    size = ints3(image.array.shape)
    if min(size) < series.MIN_SLICES:
        raise ValueError(f"{name}: {size} voxels, at least 3 along each axis")
    labels = distinct_whole(image.array, MOST_LABELS)
    if labels:
        raise ValueError(
            f"{name}: looks like a label map, {len(labels)} whole numbers from {labels[0]} to "
            f"{labels[-1]}; a reference is called as its scan with _seg behind it"
        )
    values, unknown = _hounsfield(image.array, name)
    notes = [*image.notes, *unknown, *hounsfield.implausible(values)]
    grid = nearest_grid(image.affine, size)
    if grid is not None:
        volume = Volume(values, grid)
        return Scan(grid, upright(volume), notes=tuple(notes), view=field_of_view(volume))
    notes.append(
        f"axes {shear_degrees(image.affine):.1f} degrees off right angles, resampled to an upright "
        "grid"
    )
    resampled = resample_lattice(values, image.affine, grid_around(image.affine, size))
    lattice, view = Lattice(image.affine, size), field_of_lattice(values, image.affine)
    return Scan(resampled.grid, resampled, notes=tuple(notes), view=view, sheared=lattice)


def _hounsfield(array: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
    """int16 HU, and a note where voxels hold no number: they are read as air, since programs fill
    with NaN what no scanner saw."""
    notes = []
    if array.dtype.kind == "f":
        is_number = np.isfinite(array)
        part = 1 - float(is_number.mean())
        if part == 1:
            raise ValueError(f"{name}: holds no number")
        if part:
            array = np.where(is_number, array, AIR_HU)
            notes = [f"{part:.1%} of its voxels hold no number, read as air"]
        array = np.rint(array)
    return np.clip(array, AIR_HU, hounsfield.MAX_HU).astype(np.int16), notes


def _scan_of_patient(patient: dict) -> Scan:
    """The scan as far as a patient file holds it, on the grid it was made from: the whole scan at
    the finest level that has it, with the finer one around the bones in its place."""
    grid = _grid_of_source(patient["source"])
    target = upright_grid(grid)
    array = np.empty(target.size, np.int16)
    near, half = (Level.from_dict(row) for row in patient["levels"][:2])
    whole, finer = (Volume(level.hounsfield(), level.grid) for level in (half, near))
    for k in range(0, target.size[2], SLAB):
        depth = min(SLAB, target.size[2] - k)
        slab = target.cropped((0, 0, k), (*target.size[:2], depth))
        hounsfield = resample(whole, slab, outside=float(KEPT_HU[0]))
        seen = resample(finer, slab, outside=NOT_HELD)
        hounsfield = np.where(seen > NOT_HELD, seen, hounsfield)
        hounsfield[hounsfield <= KEPT_HU[0]] = PATIENT_FILE_AIR_HU
        array[:, :, k : k + depth] = np.rint(hounsfield)
    return Scan(grid, Volume(array, target), notes=("read from a patient file's levels",))


def _grid_of_source(source: Any) -> Grid:
    """The scan's grid that a patient file names.

    Raises:
        ValueError: it names none, or none that is possible.
    """
    try:
        grid = Grid(
            ints3(source["size"]),
            floats3(source["spacing_mm"]),
            floats3(source["origin_mm"]),
            tuple(source["direction"]),
        )
        is_sound = min(grid.size) > 0 and np.prod(grid.size, dtype=float) <= MAX_VOXELS
        is_sound &= min(grid.spacing_mm) > 0 and np.isfinite(grid.affine).all()
        is_sound &= abs(np.linalg.det(grid.matrix)) > LEAST_DETERMINANT
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        is_sound = False
    if not is_sound:
        raise ValueError("a patient file that does not say in 'source' which grid its scan has")
    return grid
