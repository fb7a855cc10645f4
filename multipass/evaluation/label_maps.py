"""References that are label maps beside an image file: read where they are what they claim to be,
else refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multipass.data.images import Image, distinct_whole, read_image
from multipass.geometry.labelmaps import boxes_of, centre_of
from multipass.geometry.lattices import Lattice, apart_mm, nearest_grid, voxel_mm
from multipass.geometry.volume import Volume
from multipass.structures import FEMUR, PELVIS, Key, Structure, mirror_partners, named_as

# A reference whose farthest voxel lies off by more than this part of a voxel is on another grid.
SAME_GRID = 0.25
HIP, SACRUM = PELVIS[0].key[:2], PELVIS[2].key
HIGHEST_VALUE = 65535
# Of the distance between a left structure and its right partner: what is more along the body's axis
# is no such pair, however the scan is cut.
PARTNERS_ABOVE = 0.75
# A whole adult pelvis is 230 to 310 mm from side to side, and one half of it at most 180 mm.
WIDEST_HIP_BONE_MM = 210.0


def read_label_map(
    path: Path, lattice: Lattice, structures: Sequence[Structure]
) -> tuple[np.ndarray, list[str]]:
    """The label map (X, Y, Z) on the scan's own voxels, 1 + k for the structure k, and each
    structure's status.

    A segmentation of 3D Slicer (`.seg.nrrd`) may cover a part of the scan, and says by names what
    its values stand for.

    Raises:
        ValueError: the file is damaged or cut off, does not lie on the scan's grid, or has values
            that are none of the structures'.
    """
    image = read_image(path)
    named = _values_by_name(image.fields, structures)
    start = _start(image, lattice, path.name, is_part=named is not None)
    values = distinct_whole(image.array, HIGHEST_VALUE)
    if not values or values[-1] > HIGHEST_VALUE:
        raise ValueError(f"{path.name}: labels must be whole numbers from 0 to {HIGHEST_VALUE}")
    if named is None:
        named = {1 + k: 1 + k for k in range(len(structures))}
        _check_values(values, structures, path.name)
    labels = _pasted(_renamed(image.array, named), start, lattice.size)
    boxes = boxes_of(labels, len(structures))
    found = ["empty" if box is None else "complete" for box in boxes]
    known = set(named.values())
    return labels, [s if 1 + k in known else "absent" for k, s in enumerate(found)]


def _check_values(values: Sequence[int], structures: Sequence[Structure], name: str) -> None:
    unknown = [str(value) for value in values if value > len(structures)]
    if unknown:
        table = ", ".join(f"{1 + k} {s.name}" for k, s in enumerate(structures))
        listed = ", ".join(unknown[:6]) + (" ..." if len(unknown) > 6 else "")
        raise ValueError(
            f"{name}: {listed} stand for no structure of the network, whose labels are {table}"
        )


def _renamed(array: np.ndarray, named: dict[int, int]) -> np.ndarray:
    """The labels that the values of an array are named; 0 for all others. Slice by slice, since
    indices are int64."""
    lookup = np.zeros(HIGHEST_VALUE + 1, np.min_scalar_type(max(named.values())))
    lookup[list(named)] = list(named.values())
    labels = np.empty(array.shape, lookup.dtype, order="F")
    for k in range(array.shape[2]):
        labels[:, :, k] = lookup[array[:, :, k].astype(np.intp)]
    return labels


def _values_by_name(
    fields: dict[str, str], structures: Sequence[Structure]
) -> dict[int, int] | None:
    """{value: 1 + k} of the segments that are named as a structure is, by the same words in any
    order ('hip_left'); None where a header names no segments."""
    found = {}
    places = {structure: 1 + k for k, structure in enumerate(structures)}
    segments = [key.removesuffix("_LabelValue") for key in fields if key.endswith("_LabelValue")]
    for segment in segments:
        structure = named_as(fields.get(f"{segment}_Name", ""), structures)
        value = fields[f"{segment}_LabelValue"]
        if structure is not None and value.isdecimal() and int(value) <= HIGHEST_VALUE:
            found[int(value)] = places[structure]
    if segments and not found:
        names = ", ".join(fields.get(f"{segment}_Name", "?") for segment in segments)
        raise ValueError(f"none of its segments ({names}) is named as a structure of the network")
    return found if segments else None


def _start(image: Image, lattice: Lattice, name: str, is_part: bool) -> tuple[int, int, int]:
    """The index of the label map's first voxel in the scan.

    Raises:
        ValueError: its voxels do not lie on the scan's.
    """
    size = image.array.shape
    grid = nearest_grid(image.affine, size)
    affine = image.affine if grid is None else grid.affine
    start = np.zeros(3, int)
    if is_part:
        start = np.rint((np.linalg.inv(lattice.affine) @ affine[:, 3])[:3]).astype(int)
    elif size != lattice.size:
        raise ValueError(f"{name}: {size} voxels, the scan has {lattice.size}")
    there = lattice.affine.copy()
    there[:3, 3] += there[:3, :3] @ start
    off_mm = apart_mm(affine, there, size)
    if not off_mm <= SAME_GRID * voxel_mm(lattice.affine):
        raise ValueError(f"{name}: lies off the scan's grid by up to {off_mm:.2g} mm")
    return int(start[0]), int(start[1]), int(start[2])


def _pasted(
    labels: np.ndarray, start: tuple[int, int, int], size: tuple[int, int, int]
) -> np.ndarray:
    if labels.shape == size:
        return labels
    whole = np.zeros(size, labels.dtype)
    low = np.maximum(start, 0)
    high = np.maximum(np.minimum(np.add(start, labels.shape), size), low)
    inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = labels[inside]
    return whole


# ---------------------------------------------------------------- what cannot be


@dataclass(frozen=True)
class _Place:
    """Where a structure lies: its centre, and its ends towards the patient's right and left."""

    centre_mm: np.ndarray
    right_mm: float
    left_mm: float


def contradiction(upright: Volume, structures: Sequence[Structure]) -> str | None:
    """Why a label map cannot be of these structures in this order: a left one lies right of its
    partner, a hip bone is as wide as both, the sacrum not between the hip bones, or a femur nearer
    to the midline than the hip bone that holds its head. None where nothing speaks against it,
    however the scan is cut; nothing is said of a patient who lies on the side.

    Args:
        upright: 1 + k for the structure k, on an upright LPS grid.
    """
    places = _places(upright, structures)
    for side in ("left", "right"):
        hip = places.get((*HIP, side))
        if hip and hip.left_mm - hip.right_mm > WIDEST_HIP_BONE_MM:
            width_mm = hip.left_mm - hip.right_mm
            return f"its {side} hip bone is {width_mm:.0f} mm from side to side, wide as both"
    for k, partner in enumerate(mirror_partners(structures)):
        here, there = (places.get(structures[n].key) for n in (k, partner))
        if structures[k].side != "left" or partner == k or not here or not there:
            continue
        names = f"its {structures[k].name}", f"its {structures[partner].name}"
        right_mm, _, up_mm = there.centre_mm - here.centre_mm
        if right_mm > 0 and _to_the_left(here, there):
            return f"{names[0]} lies {right_mm:.0f} mm to the patient's right of {names[1]}"
        if abs(up_mm) > PARTNERS_ABOVE * np.linalg.norm(there.centre_mm - here.centre_mm):
            return f"{names[0]} lies {abs(up_mm):.0f} mm above or below {names[1]}"
    left, right, sacrum = (places.get(key) for key in ((*HIP, "left"), (*HIP, "right"), SACRUM))
    if left is None or right is None or _to_the_left(left, right) == 0:
        return None
    if sacrum and not right.right_mm <= sacrum.centre_mm[0] <= left.left_mm:
        return "its sacrum does not lie between its hip bones"
    femurs = {side: places.get((*FEMUR, side)) for side in ("left", "right")}
    if femurs["left"] and femurs["left"].right_mm < left.right_mm:
        return "its left femur lies nearer to the midline than its left hip bone"
    if femurs["right"] and femurs["right"].left_mm > right.left_mm:
        return "its right femur lies nearer to the midline than its right hip bone"
    return None


def _to_the_left(one: _Place, other: _Place) -> int:
    """1 or -1 where one structure lies left or right of another, 0 where above or behind it."""
    apart_mm = one.centre_mm - other.centre_mm
    return int(np.sign(apart_mm[0])) if 2 * abs(apart_mm[0]) > np.linalg.norm(apart_mm) else 0


def _places(upright: Volume, structures: Sequence[Structure]) -> dict[Key, _Place]:
    """Of each structure that is there."""
    origin, spacing = np.asarray(upright.grid.origin_mm), np.asarray(upright.grid.spacing_mm)
    places = {}
    for k, box in enumerate(boxes_of(upright.array, len(structures))):
        if box is not None:
            index = centre_of(upright.array[box] == 1 + k) + [s.start for s in box]
            ends = origin[0] + spacing[0] * np.array([box[0].start, box[0].stop - 1])
            places[structures[k].key] = _Place(origin + index * spacing, *ends.tolist())
    return places
