"""The regions of interest of a DICOM RT Structure Set as masks on the CT's slices.

A pixel belongs to a region if its centre lies inside its closed contours. Keyholes and
CLOSEDPLANAR_XOR are read (PS3.3 C.8.8.6.3); a CLOSED_PLANAR contour that lies wholly in others of
its slice is a hole, too, as many programs write them, and those that overlap add up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from multipass.dicom.ct import CT
from multipass.dicom.headers import naming, read_dicom, text
from multipass.dicom.seg_header import attributes_of
from multipass.dicom.seg_masks import Mask
from multipass.dicom.stack import WIDEST_GAP_MM
from multipass.geometry.labelmaps import box_of
from multipass.geometry.outlines import filled
from multipass.geometry.volume import ints3
from multipass.site_rules import SiteRules
from multipass.structures import OTHER_BONE, PELVIS, Identify, named_as, to_attributes

TABLE = (*PELVIS, OTHER_BONE)
XOR = "CLOSEDPLANAR_XOR"
CLOSED = {"CLOSED_PLANAR", XOR}
# Of the slices' spacing: contours that rise by more within themselves lie across the slices, and
# such that lie closer together are of one plane.
SAME_PLANE = 0.25
# From so many on, planes that leave out every second slice, say, are meant to.
FEWEST_PLANES = 3
SHOWN = 6

# Contour type, and its points as (column, row) of a slice.
Ring = tuple[str, np.ndarray]


def read_contours(path: Path, ct: CT, rules: Identify) -> tuple[list[Mask], list[str]]:
    """The regions that a site's rules name, or that are coded or named as a structure of the table,
    and notes on what was left out.

    Regions without contours were not drawn, and are absent.

    Raises:
        ValueError: the file is damaged, or its contours lie across the slices.
    """
    with naming(path):
        return _read_contours(read_dicom(path), ct, rules)


def _read_contours(dataset: Dataset, ct: CT, rules: Identify) -> tuple[list[Mask], list[str]]:
    regions = list(dataset.get("StructureSetROISequence") or [])
    if not regions:
        raise ValueError("no region of interest in it")
    contours = _by_region(dataset, "ROIContourSequence")
    observations = _by_region(dataset, "RTROIObservationsSequence")
    masks: list[Mask] = []
    notes: list[str] = []
    unknown, frames = [], set()
    for region in regions:
        number, name = int(region.ROINumber), text(region, "ROIName")
        attributes = _attributes(name, observations.get(number, Dataset()), rules)
        if attributes is None:
            unknown.append(name)
        elif rules(attributes):
            drawn = contours.get(number, Dataset()).get("ContourSequence") or []
            mask, remarks = _mask(attributes, drawn, ct)
            notes += [f"'{name}' {remark}" for remark in remarks]
            masks += [mask] if mask else []
            frames |= {text(region, "ReferencedFrameOfReferenceUID")} - {""}
    if len(frames) > 1:
        raise ValueError(f"regions in {len(frames)} frames of reference, one is needed")
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        named = f"{', '.join(unknown[:SHOWN])}{more}"
        notes.append(f"regions left out, of no known name or code: {named}")
    return masks, notes


def _by_region(dataset: Dataset, keyword: str) -> dict[int, Dataset]:
    return {int(item.ReferencedROINumber): item for item in dataset.get(keyword) or []}


def _attributes(name: str, observation: Dataset, rules: Identify) -> dict[str, Any] | None:
    """A region's label and codes as a SEG's segment has them; None where nothing says what it is:
    structure sets hold the body, targets and rings, too."""
    segment = Dataset()
    segment.SegmentLabel = name
    segment.SegmentedPropertyTypeCodeSequence = (
        observation.get("RTROIIdentificationCodeSequence") or []
    )
    attributes = attributes_of(segment)
    if isinstance(rules, SiteRules) and rules.decides(attributes):
        return attributes
    code = attributes.get("SegmentedPropertyTypeCodeSequence", {})
    key = Code(code.get("CodeValue", ""), code.get("CodingSchemeDesignator", ""), "")
    if any(key == Code(structure.value, structure.scheme, "") for structure in TABLE):
        return attributes
    structure = named_as(name, TABLE)
    return None if structure is None else {**to_attributes(structure, 1), "SegmentLabel": name}


# -------------------------------------------------------------------- contours


def points_of(contour: Dataset) -> np.ndarray:
    """(N, 3) mm.

    Raises:
        ValueError: its values are no points.
    """
    raw = contour.get_item("ContourData")
    values = [] if raw is None or raw.value is None else raw.value
    # As bytes they are read a hundred times faster than as pydicom's decimal strings.
    values = values.strip(b"\0 ").split(b"\\") if isinstance(values, bytes) else values
    try:
        points = np.asarray(values, "S" if values and isinstance(values[0], bytes) else float)
        points = points.astype(float).reshape(-1, 3)
    except ValueError:
        points = np.full((1, 3), np.nan)
    if not np.isfinite(points).all():
        raise ValueError("contours whose values are no points")
    return points


def in_lattice(points_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(N, 3) indices of places in a lattice."""
    return np.linalg.solve(affine[:3, :3], (points_mm - affine[:3, 3]).T).T


def _mask(
    attributes: dict[str, Any], contours: Sequence[Dataset], ct: CT
) -> tuple[Mask | None, list[str]]:
    """A region's mask on the slices as acquired, None where it is not drawn, and remarks."""
    closed, remarks = [], []
    for contour in contours:
        kind = text(contour, "ContourGeometricType").upper()
        points = points_of(contour)
        if kind in CLOSED and len(points) > 2:
            closed.append((kind, in_lattice(points, ct.stack.lattice)))
    if len(closed) < len(contours):
        remarks.append(f"has {len(contours) - len(closed)} open contours or points, left out")
    if not closed:
        return None, remarks or ["has no contours: not drawn"]
    rise = max(float(np.ptp(points[:, 2])) for _, points in closed)
    if rise > SAME_PLANE:
        raise ValueError(
            f"'{attributes['SegmentLabel']}' is drawn across the slices of the CT, not in them"
        )
    sections, outside = _by_slice(closed, ct.stack.at)
    if outside:
        remarks.append(f"lies outside the scan with {outside} of {len(closed)} contours")
    array, start = _stacked(sections, ct.stack.size)
    step = _step(list(sections))
    if step > 1:
        gap_mm = step * ct.stack.straight.spacing_mm[2]
        if gap_mm > WIDEST_GAP_MM:
            raise ValueError(f"'{attributes['SegmentLabel']}' has contours {gap_mm:.4g} mm apart")
        array = _filled_between(array, sorted(sections), step)
        remarks.append(f"is drawn in one of {step} slices, taken for those between")
    box = box_of(array)
    if box is None:
        return Mask(attributes, array[:0], (0, 0, 0), None), remarks
    start = ints3(np.add(start, [s.start for s in box]))
    return Mask(attributes, array[box], start, None), remarks


def _by_slice(contours: Sequence[Ring], at: np.ndarray) -> tuple[dict[int, list[Ring]], int]:
    """The contours of each slice, of those between slices the nearest plane's, and how many lie
    beyond the first and the last slice.

    Args:
        contours: their points as indices, the third one along `at`.
    """
    near: dict[int, list[tuple[float, Ring]]] = defaultdict(list)
    outside = 0
    for kind, points in contours:
        place = float(points[:, 2].mean())
        if not at[0] - 0.5 <= place <= at[-1] + 0.5:
            outside += 1
            continue
        k = int(np.abs(at - place).argmin())
        near[k].append((place, (kind, points[:, :2])))
    sections = {}
    for k, rings in near.items():
        plane = min((place for place, _ in rings), key=lambda place: abs(place - at[k]))
        sections[k] = [ring for place, ring in rings if abs(place - plane) <= SAME_PLANE]
    return sections, outside


def _stacked(
    sections: dict[int, list[Ring]], size: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """bool (columns, rows, slices) around all contours, and the index of its first voxel."""
    if not sections:
        return np.zeros((0, 0, 0), bool), (0, 0, 0)
    points = np.concatenate([ring for rings in sections.values() for _, ring in rings])
    low = np.clip(np.floor(points.min(axis=0)), 0, size[:2]).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, low, size[:2]).astype(int)
    first, last = min(sections), max(sections)
    array = np.zeros((*(high - low), last - first + 1), bool)
    for k, rings in sections.items():
        moved = [(kind, ring - low) for kind, ring in rings]
        array[:, :, k - first] = _section(moved, (int(array.shape[0]), int(array.shape[1])))
    return array, ints3((*low, first))


def _section(rings: Sequence[Ring], size: tuple[int, int]) -> np.ndarray:
    """bool (columns, rows): what the contours of one slice hold."""
    inside = filled([ring for kind, ring in rings if kind == XOR], size)
    added: list[np.ndarray] = []
    for kind, ring in rings:
        if kind != XOR and not any(np.array_equal(ring, other) for other in added):
            added.append(ring)
    parts = [filled([ring], size) for ring in added]
    for part in sorted(parts, key=np.count_nonzero, reverse=True):
        inside = inside | part if (part & ~inside).any() else inside ^ part
    return inside


def _step(planes: Sequence[int]) -> int:
    """How many slices it is from one plane with contours to the next."""
    if len(planes) < FEWEST_PLANES:
        return 1
    return int(np.diff(sorted(planes)).min())


def _filled_between(array: np.ndarray, planes: Sequence[int], step: int) -> np.ndarray:
    """The nearest plane's contours in the slices between planes that are one step apart."""
    result = array.copy()
    for below, above in zip(planes, planes[1:], strict=False):
        for k in range(below + 1, above) if above - below == step else ():
            nearest = below if k - below <= above - k else above
            result[:, :, k - planes[0]] = array[:, :, nearest - planes[0]]
    return result
