"""The frames of a DICOM SEG: which segment each shows, and where it lies.

Places count, not the spacing or thickness that a header declares: these are often those of the
source's slices, absent, or negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from multipass.dicom.ct import CT
from multipass.dicom.headers import numbers
from multipass.dicom.slices import unit_orientation
from multipass.dicom.stack import PLACE_TOLERANCE

SEGMENT_NUMBER = pydicom.tag.Tag("ReferencedSegmentNumber")
SAME_DIRECTION = 1e-3
SAME_HEIGHT_MM = 1e-3
# Some writers round places to two decimals.
ROUNDED_MM = 0.01
# Decimals to which some write the pixel spacing.
DECIMALS = 1, 2, 3
# A frame may lie this part of a pixel aside of its slice.
ASIDE_PIXELS = 0.1
# Of a whole body with a wide margin: dcmqi makes an image of all slices between two frames.
LONGEST_MM, MOST_SLICES = 5000.0, 10000


@dataclass(frozen=True)
class Frames:
    """The frames of a SEG on a lattice.

    Attributes:
        segments: segment number of each frame; 0 where it shows several, as a label map.
        slices: index of each frame along the lattice's third axis.
        lattice: (4, 4) affine from (column, row, slice) to LPS mm; None where the indices are
            those of the CT's slices as acquired.
        note: what a person should know of the places.
    """

    segments: tuple[int, ...]
    slices: tuple[int, ...]
    lattice: np.ndarray | None
    note: str = ""


def read_frames(dataset: Dataset, ct: CT | None) -> Frames:
    """The segments and places of a SEG's frames.

    Args:
        ct: the CT that the SEG belongs to, for frames that lie on its slices.

    Raises:
        ValueError: a frame names no segment or no place, two of a segment lie at one place, or the
            frames do not lie on evenly spaced slices.
    """
    frames = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    count = int(dataset.get("NumberOfFrames") or 0)
    if not frames:
        raise ValueError("no frame in it")
    if len(frames) != count:
        raise ValueError(f"{count} frames, and places for {len(frames)}")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    segments = _segments(dataset, frames, shared)
    groups = [_flat(frame, shared) for frame in frames]
    plane = _plane(groups)
    places = np.array([numbers(group, "ImagePositionPatient", 3) for group in groups])
    apart_mm = float(np.ptp(places, axis=0).max())
    if apart_mm > LONGEST_MM:
        raise ValueError(f"frames up to {apart_mm:.3g} mm apart")
    slices, note = _on_ct(dataset, plane, places, ct) if ct else (None, "")
    lattice = None
    if slices is None:
        slices, lattice = _on_own_lattice(plane, places, _declared_mm(groups[0], ct))
    if max(slices) >= MOST_SLICES:
        raise ValueError(f"frames on {max(slices) + 1} slices, at most {MOST_SLICES} are possible")
    _check_once(segments, slices)
    return Frames(tuple(segments), tuple(slices), lattice, "" if lattice is not None else note)


def _plane(groups: Sequence[Dataset]) -> np.ndarray:
    """(3, 2) steps in mm from one column to the next and from one row to the next."""
    orientation = np.array([unit_orientation(group) for group in groups])
    spacing = np.array([numbers(group, "PixelSpacing", 2) for group in groups])
    if np.abs(orientation - orientation[0]).max() > SAME_DIRECTION:
        raise ValueError("frames of different orientations in one segmentation")
    if spacing.min() <= 0:
        raise ValueError(f"PixelSpacing {spacing.min():g}")
    if not np.allclose(spacing, spacing[0]):
        raise ValueError("frames of different pixel spacings in one segmentation")
    return orientation[0].reshape(2, 3).T * spacing[0, ::-1]


def _flat(frame: Dataset, shared: Dataset) -> Dataset:
    """What places a frame, of its own groups or the shared ones (PS3.3 C.7.6.16.2)."""
    flat = Dataset()
    for group in ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence"):
        items = frame.get(group) or shared.get(group) or []
        if items:
            flat.update(items[0])
    return flat


def _declared_mm(group: Dataset, ct: CT | None) -> float:
    """The spacing of a single slice, which no gap shows."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = group.get(keyword)
        if value and abs(float(value)) > SAME_HEIGHT_MM:
            return abs(float(value))
    return ct.stack.straight.spacing_mm[2] if ct else 1.0


def _on_ct(
    dataset: Dataset, plane: np.ndarray, places: np.ndarray, ct: CT
) -> tuple[list[int] | None, str]:
    """The CT slice of each frame, by the CT's pixel spacing where the frames' is that one rounded;
    None unless each frame lies on a slice, pixel on pixel. And a note on the spacing."""
    slices = _on_slices(dataset, plane, places, ct)
    if slices is not None or not _is_rounded(plane, ct):
        return slices, ""
    own = ct.stack.lattice[:3, :2]
    mm, exact_mm = (np.linalg.norm(steps[:, 0]) for steps in (plane, own))
    note = f"its PixelSpacing of {mm:g} mm is read as the scan's, {exact_mm:.5g} mm"
    return _on_slices(dataset, own, places, ct), note


def _is_rounded(plane: np.ndarray, ct: CT) -> bool:
    """Whether these are the CT's steps, their lengths rounded to some decimals."""
    own = ct.stack.lattice[:3, :2]
    pixel, exact = (np.linalg.norm(steps, axis=0) for steps in (plane, own))
    same_directions = np.abs(plane / pixel - own / exact).max() < SAME_DIRECTION
    return same_directions and any(np.allclose(pixel, np.round(exact, d)) for d in DECIMALS)


def _on_slices(dataset: Dataset, plane: np.ndarray, places: np.ndarray, ct: CT) -> list[int] | None:
    """The CT slice of each frame; None unless each frame lies on one, pixel on pixel."""
    first = ct.slices[0]
    if (dataset.Rows, dataset.Columns) != (first.rows, first.columns):
        return None
    extent = np.array([first.columns, first.rows])
    pixel = np.linalg.norm(plane, axis=0)
    drift = np.linalg.norm(plane - ct.stack.lattice[:3, :2], axis=0) * extent / pixel
    if drift.max() > ASIDE_PIXELS:
        return None
    acquired = np.array([piece.position_mm for piece in ct.slices])
    heights = acquired @ first.normal
    nearest = np.abs(places @ first.normal - heights[:, None]).argmin(axis=0)
    off = places - acquired[nearest]
    aside = np.abs(off @ (plane / pixel)) / pixel
    along_mm = max(PLACE_TOLERANCE * np.diff(heights).min(), ROUNDED_MM)
    if aside.max() > ASIDE_PIXELS or np.abs(off @ first.normal).max() > along_mm:
        return None
    return nearest.tolist()


def _on_own_lattice(
    plane: np.ndarray, places: np.ndarray, declared_mm: float
) -> tuple[list[int], np.ndarray]:
    """Indices on evenly spaced slices, and their lattice."""
    normal = np.cross(plane[:, 0], plane[:, 1])
    normal /= np.linalg.norm(normal)
    heights = (places - places[0]) @ normal
    lowest, highest = int(heights.argmin()), int(heights.argmax())
    heights -= heights[lowest]
    gaps = np.diff(np.unique(np.round(heights, 6)))
    gaps = gaps[gaps > SAME_HEIGHT_MM]
    lattice = np.eye(4)
    lattice[:3, :2], lattice[:3, 2], lattice[:3, 3] = plane, normal * declared_mm, places[lowest]
    if not len(gaps):
        at = np.zeros(len(places))
    else:
        spacing = _even_spacing(heights, gaps)
        at = heights / spacing
        rise = places[highest] - places[lowest]
        lattice[:3, 2] = rise / np.rint(at[highest])
    index = np.rint(at).astype(int)
    ideal = lattice[:3, 3] + index[:, None] * lattice[:3, 2]
    pixel = np.linalg.norm(plane, axis=0)
    aside = np.abs((places - ideal) @ (plane / pixel)) / pixel
    if aside.max() > ASIDE_PIXELS:
        raise ValueError(
            f"the segmentation's frames do not lie along one line (up to {aside.max():.2g} pixels "
            "aside of it)"
        )
    return index.tolist(), lattice


def _even_spacing(heights: np.ndarray, gaps: np.ndarray) -> float:
    """The usual gap, which all heights are multiples of: empty frames are left out."""
    spacing = heights.max() / np.rint(heights.max() / np.median(gaps))
    at = heights / spacing
    if np.abs(at - np.rint(at)).max() > PLACE_TOLERANCE:
        raise ValueError(
            "the segmentation's frames do not lie on evenly spaced slices (from "
            f"{gaps.min():.4g} to {gaps.max():.4g} mm apart), nor on those of the CT"
        )
    return float(spacing)


def _segments(dataset: Dataset, frames: Sequence[Dataset], shared: Dataset) -> list[int]:
    """Each frame's segment, which its identification and its dimension index must agree on."""
    if dataset.get("SegmentationType") == "LABELMAP":
        return [0] * len(frames)
    pointers = [item.DimensionIndexPointer for item in dataset.get("DimensionIndexSequence") or []]
    column = pointers.index(SEGMENT_NUMBER) if SEGMENT_NUMBER in pointers else None
    segments, named = [], set()
    for number, frame in enumerate(frames, 1):
        owner = frame.get("SegmentIdentificationSequence") or shared.get(
            "SegmentIdentificationSequence"
        )
        if not owner:
            raise ValueError(f"frame {number} of the segmentation names no segment")
        segments.append(int(owner[0].ReferencedSegmentNumber))
        content = (frame.get("FrameContentSequence") or [Dataset()])[0]
        index = np.atleast_1d(content.get("DimensionIndexValues") or [])
        if column is not None and column < len(index):
            named.add((int(index[column]), segments[-1]))
    if not len(named) == len({index for index, _ in named}) == len({s for _, s in named}):
        raise ValueError("the segmentation's frames contradict their dimension index")
    return segments


def _check_once(segments: Sequence[int], slices: Sequence[int]) -> None:
    seen = set()
    for one in zip(segments, slices, strict=True):
        if one in seen:
            who = f"segment {one[0]}" if one[0] else "the label map"
            raise ValueError(f"{who} has two frames at one place")
        seen.add(one)
