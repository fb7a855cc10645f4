"""A CT series as a volume in Hounsfield units: ordering, checking, uneven slices, gantry tilt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from multipass.dicom.hounsfield import implausible, pixels
from multipass.dicom.series import MIN_SLICES, Series
from multipass.dicom.slices import Slice
from multipass.dicom.stack import (
    PLACE_TOLERANCE,
    SAME_SLICE_MM,
    Stack,
    evened,
    gaps_text,
    stack_of,
)
from multipass.geometry.field_of_view import FieldOfView, field_of_lattice, field_of_view
from multipass.geometry.lattices import grid_around, resample_lattice
from multipass.geometry.volume import Volume

SAME_DIRECTION = 1e-3


@dataclass(frozen=True)
class CT:
    """A CT read from DICOM.

    Attributes:
        volume: int16 HU on the grid as acquired (slices along the third axis); with slices in
            between where they lay unevenly; resampled to an upright grid where the gantry was
            tilted.
        slices: in the order of the third axis as acquired.
        stack: where they lie.
        view: what they show of the patient.
        notes: what a person should know of this scan.
    """

    volume: Volume
    slices: tuple[Slice, ...]
    stack: Stack
    view: FieldOfView
    notes: tuple[str, ...]

    @property
    def tilt_degrees(self) -> float:
        return self.stack.tilt_degrees

    @property
    def is_resampled(self) -> bool:
        """The volume's slices are not those of the files."""
        return self.tilt_degrees > 0 or not self.stack.is_even


def read_ct(series: Series) -> CT:
    """Read a series' pixels into one volume.

    Raises:
        ValueError: slices are missing, doubled or mixed, or a file's pixels cannot be read.
    """
    if series.refused:
        raise ValueError(f"{len(series.refused)} of its files do not fit: {series.refused[0]}")
    slices, notes = _in_order(series)
    stack = stack_of(slices)
    array = pixels(slices)
    if len({(s.slope, s.intercept) for s in slices}) > 1:
        notes.append("rescale slope and intercept differ between slices")
    notes += implausible(array)
    if not stack.is_even:
        notes.append(_uneven(stack))
        array = evened(array, stack.at, 0, stack.size[2])
    if stack.tilt_degrees:
        notes.append(
            f"gantry tilt of {stack.tilt_degrees:.1f} degrees, resampled to an upright grid"
        )
        view = field_of_lattice(array, stack.lattice)
        volume = resample_lattice(array, stack.lattice, grid_around(stack.lattice, array.shape))
    else:
        volume = Volume(array, stack.straight)
        view = field_of_view(volume)
    return CT(volume, tuple(slices), stack, view, (*series.notes, *notes))


def _uneven(stack: Stack) -> str:
    spacing_mm = stack.straight.spacing_mm[2]
    gaps = np.diff(stack.at)
    is_hole = np.abs(gaps - np.rint(gaps)).max() < PLACE_TOLERANCE
    apart = f"{gaps_text(gaps * spacing_mm)} mm apart{', files missing?' if is_hole else ','}"
    return f"slices {apart} interpolated to {spacing_mm:.4g} mm"


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


def _without_duplicates(ordered: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    pairs = list(_at_one_place(ordered))
    if not pairs:
        return list(ordered), []
    # Each file is decoded once, however many of its frames lie twice.
    doubled = list({(s.path, s.frame): s for pair in pairs for s in pair}.values())
    array = pixels(doubled)
    row = {(s.path, s.frame): k for k, s in enumerate(doubled)}
    dropped = set()
    for last, current in pairs:
        one, other = (row[s.path, s.frame] for s in (last, current))
        if not np.array_equal(array[:, :, one], array[:, :, other]):
            raise ValueError(
                f"several different slices at one place, {last.path.name} and "
                f"{current.path.name} at {_place(current)} mm"
            )
        dropped.add((current.path, current.frame))
    kept = [s for s in ordered if (s.path, s.frame) not in dropped]
    return kept, [f"{len(dropped)} exact duplicates of slices dropped"]


def _at_one_place(ordered: Sequence[Slice]) -> Iterator[tuple[Slice, Slice]]:
    """Each slice that lies where an earlier one does, behind the first of these."""
    last = ordered[0]
    for current in ordered[1:]:
        apart = np.linalg.norm(np.subtract(current.position_mm, last.position_mm))
        if apart > SAME_SLICE_MM:
            last = current
        else:
            yield last, current


def _place(current: Slice) -> str:
    return "(" + ", ".join(f"{v:g}" for v in current.position_mm) + ")"
