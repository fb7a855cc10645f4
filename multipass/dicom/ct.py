"""A CT series as a volume in Hounsfield units: ordering, checking, gantry tilt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from multipass.dicom.hounsfield import hounsfield_frames, implausible, pixels
from multipass.dicom.series import MIN_SLICES, Series, Slice
from multipass.geometry.volume import AIR_HU, Grid, Volume, floats3, ints3

# A slice may lie this part of a spacing away from its uniform place: positions are often rounded.
PLACE_TOLERANCE = 0.1
# In-plane drift over the whole stack, in pixels, beyond which the gantry was tilted.
TILT_PIXELS = 0.5
SAME_DIRECTION = 1e-3
SAME_SLICE_MM = 1e-3
# Differences of stored positions carry rounding noise; a nanometre is enough.
SPACING_DECIMALS = 6


@dataclass(frozen=True)
class CT:
    """A CT read from DICOM.

    Attributes:
        volume: int16 HU on the grid as acquired (slices along the third axis), or, where the gantry
            was tilted, resampled to an upright grid.
        slices: in the order of the third axis as acquired.
        lattice: (4, 4) affine of the voxels as acquired; sheared where the gantry was tilted.
        stack: the slices stacked along their normal; where the gantry was tilted, the grid that
            they would have without their in-plane drift.
        tilt_degrees: 0 for an upright gantry.
        notes: what a person should know of this scan.
    """

    volume: Volume
    slices: tuple[Slice, ...]
    lattice: np.ndarray
    stack: Grid
    tilt_degrees: float
    notes: tuple[str, ...]

    @property
    def is_tilted(self) -> bool:
        return self.tilt_degrees > 0


def read_ct(series: Series) -> CT:
    """Read a series' pixels into one volume.

    Raises:
        ValueError: slices are missing, uneven, doubled or mixed, or a file's pixels cannot be read.
    """
    if series.refused:
        raise ValueError(f"{len(series.refused)} of its files do not fit: {series.refused[0]}")
    slices, notes = _in_order(series)
    lattice = _lattice(slices)
    array = pixels(slices)
    if len({(s.slope, s.intercept) for s in slices}) > 1:
        notes.append("rescale slope and intercept differ between slices")
    notes += implausible(array)
    stack = _stack(slices, lattice)
    tilt = _tilt_degrees(lattice, len(slices))
    if tilt:
        notes.append(f"gantry tilt of {tilt:.1f} degrees, resampled to an upright grid")
        volume = resample_lattice(array, lattice, tilted_grid(lattice, array.shape))
    else:
        volume = Volume(array, stack)
    return CT(volume, tuple(slices), lattice, stack, tilt, tuple(notes))


def _in_order(series: Series) -> tuple[list[Slice], list[str]]:
    """The slices along the plane normal, exact duplicates dropped."""
    first = series.slices[0]
    for other in series.slices:
        if (other.rows, other.columns) != (first.rows, first.columns):
            raise ValueError(
                f"images of different sizes, {first.columns} x {first.rows} and "
                f"{other.columns} x {other.rows}"
            )
        if other.bits_stored != first.bits_stored:
            raise ValueError("images of different bit depths in one series")
        if np.abs(np.subtract(other.orientation, first.orientation)).max() > SAME_DIRECTION:
            raise ValueError("images of different orientations in one series")
        if not np.allclose(
            (other.row_step_mm, other.column_step_mm), (first.row_step_mm, first.column_step_mm)
        ):
            raise ValueError("images of different pixel spacings in one series")
    ordered = sorted(series.slices, key=lambda s: (float(s.normal @ s.position_mm), str(s.path)))
    slices, notes = _without_duplicates(ordered)
    if len(slices) < MIN_SLICES:
        raise ValueError(f"{len(slices)} slices at different places, at least 3 are needed")
    return slices, notes


def _without_duplicates(ordered: list[Slice]) -> tuple[list[Slice], list[str]]:
    kept = [ordered[0]]
    for current in ordered[1:]:
        last = kept[-1]
        if np.linalg.norm(np.subtract(current.position_mm, last.position_mm)) > SAME_SLICE_MM:
            kept.append(current)
            continue
        if not np.array_equal(next(hounsfield_frames([current])), next(hounsfield_frames([last]))):
            raise ValueError(
                f"several different slices at one place, {last.path.name} and "
                f"{current.path.name} at {_place(current)} mm"
            )
    dropped = len(ordered) - len(kept)
    return kept, [f"{dropped} exact duplicates of slices dropped"] if dropped else []


def _place(current: Slice) -> str:
    return "(" + ", ".join(f"{v:g}" for v in current.position_mm) + ")"


def _lattice(slices: list[Slice]) -> np.ndarray:
    """(4, 4) affine of the voxels as acquired, columns: along a row, down a column, slice to slice.

    Raises:
        ValueError: the slices are not evenly spaced along one line.
    """
    places = np.array([s.position_mm for s in slices])
    step = (places[-1] - places[0]) / (len(slices) - 1)
    spacing = float(abs(slices[0].normal @ step))
    if spacing < SAME_SLICE_MM:
        raise ValueError("several slices at one place along the plane normal")
    off = np.linalg.norm(places - (places[0] + np.arange(len(slices))[:, None] * step), axis=1)
    if off.max() > PLACE_TOLERANCE * spacing:
        gaps = np.diff(places @ slices[0].normal)
        raise ValueError(f"slices {_gaps(gaps)} mm apart, a file missing?")
    row, column = np.split(np.asarray(slices[0].orientation), 2)
    lattice = np.eye(4)
    lattice[:3, 0] = row * slices[0].column_step_mm
    lattice[:3, 1] = column * slices[0].row_step_mm
    lattice[:3, 2] = step
    lattice[:3, 3] = places[0]
    return lattice


def _gaps(gaps: np.ndarray) -> str:
    rounded = [f"{g:.4g}" for g in gaps]
    if len(rounded) <= 6:
        return ", ".join(rounded)
    values, counts = np.unique(np.round(gaps, 2), return_counts=True)
    usual = values[counts.argmax()]
    odd = [f"{v:.4g}" for v in values if v != usual]
    return f"{usual:.4g} and, elsewhere, {', '.join(odd[:5])}"


def _stack(slices: list[Slice], lattice: np.ndarray) -> Grid:
    first = slices[0]
    row, column, step = lattice[:3, :3].T
    spacing = np.array([np.linalg.norm(row), np.linalg.norm(column), abs(first.normal @ step)])
    axes = np.stack([row / spacing[0], column / spacing[1], first.normal], axis=1)
    size = (first.columns, first.rows, len(slices))
    spacing_mm = floats3(np.round(spacing, SPACING_DECIMALS))
    return Grid(size, spacing_mm, floats3(lattice[:3, 3]), tuple(axes.ravel().tolist()))


def _tilt_degrees(lattice: np.ndarray, count: int) -> float:
    """The angle between the slices' step and their normal, 0 where the drift is not measurable."""
    row, column, step = lattice[:3, 0], lattice[:3, 1], lattice[:3, 2]
    drift = max(abs(step @ row) / (row @ row), abs(step @ column) / (column @ column))
    if drift * (count - 1) < TILT_PIXELS:
        return 0.0
    normal = np.cross(row, column)
    cosine = abs(step @ normal) / np.linalg.norm(step) / np.linalg.norm(normal)
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def tilted_grid(lattice: np.ndarray, size: tuple[int, int, int]) -> Grid:
    """The upright grid around a sheared lattice, of its spacing along each patient axis."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in size]), -1).reshape(-1, 3)
    corners = corners @ lattice[:3, :3].T + lattice[:3, 3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = np.abs(lattice[:3, :3]).max(axis=1)
    count = np.ceil((high - low) / spacing - 1e-6).astype(int)
    origin = (low + high) / 2 - (count - 1) / 2 * spacing
    return Grid(ints3(count), floats3(spacing), floats3(origin))


def resample_lattice(
    array: np.ndarray, lattice: np.ndarray, target: Grid, outside: float = AIR_HU
) -> Volume:
    """Linear resampling from any affine lattice, sheared ones included, which ITK images cannot
    represent: the image is taken in index space and the lattice's inverse is the transform."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    inverse = np.linalg.inv(lattice)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(inverse[:3, :3].ravel().tolist())
    transform.SetTranslation(inverse[:3, 3].tolist())
    resampled = sitk.Resample(
        image,
        target.size,
        transform,
        sitk.sitkLinear,
        target.origin_mm,
        target.spacing_mm,
        target.direction,
        outside,
    )
    return Volume(sitk.GetArrayFromImage(resampled).T, target)
