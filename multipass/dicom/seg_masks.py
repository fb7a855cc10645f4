"""The segments of a DICOM SEG as masks, by dcmqi's `segimage2itkimage`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset
from scipy import ndimage

from multipass.dicom.ct import CT
from multipass.dicom.dcmqi import complaint, run_dcmqi
from multipass.dicom.headers import naming, read_dicom
from multipass.dicom.seg_copy import plain_copy
from multipass.dicom.seg_frames import Frames, read_frames
from multipass.dicom.seg_header import attributes_of
from multipass.geometry.volume import from_sitk, ints3
from multipass.scratch import scratch_folder

# Reading a SEG of 844 frames takes about 10 s of an idle machine.
TIMEOUT_S, TIMEOUT_S_A_FRAME = 60, 0.2


@dataclass(frozen=True)
class Mask:
    """A segment in its bounding box.

    Attributes:
        attributes: its label and codes, see `seg_header.attributes_of`.
        array: bool, or float32 in [0, 1] where the SEG is FRACTIONAL; (columns, rows, slices).
        start: index of the box's first voxel on the SEG's lattice.
        lattice: (4, 4), or None where the indices are those of the CT's slices as acquired.
        note: what a person should know of the file's places.
    """

    attributes: dict[str, Any]
    array: np.ndarray
    start: tuple[int, int, int]
    lattice: np.ndarray | None
    note: str = ""


def read_masks(path: Path, ct: CT | None) -> list[Mask]:
    """The file's segments, in the order of its header.

    Raises:
        ValueError: the file is damaged, or its frames lie on no even slices; the sentence names it.
    """
    with naming(path):
        return _read_masks(path, ct)


def _read_masks(path: Path, ct: CT | None) -> list[Mask]:
    dataset = read_dicom(path, pixels=True)
    segments = list(dataset.get("SegmentSequence") or [])
    numbers = [int(segment.SegmentNumber) for segment in segments]
    if not segments:
        raise ValueError("no segment in its header, a DICOM SEG is needed")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"several segments of one number ({', '.join(map(str, numbers[:9]))})")
    frames = read_frames(dataset, ct)
    unknown = set(frames.segments) - {0, *numbers}
    if unknown:
        raise ValueError(f"a frame shows segment {min(unknown)}, which the header has not")
    found = dict(_converted(dataset, frames, numbers))
    nothing = np.zeros((0, 0, 0), bool), (0, 0, 0)
    masks = []
    for number, segment in zip(numbers, segments, strict=True):
        array, start = found.get(number, nothing)
        masks.append(Mask(attributes_of(segment), array, start, frames.lattice, frames.note))
    return masks


def _converted(
    dataset: Dataset, frames: Frames, numbers: list[int]
) -> Iterator[tuple[int, tuple[np.ndarray, tuple[int, int, int]]]]:
    """(number, (array, start)) of each segment that has a voxel."""
    is_fractional = dataset.get("SegmentationType") == "FRACTIONAL"
    maximum = int(dataset.get("MaximumFractionalValue") or 1)
    with scratch_folder() as folder:
        plain_copy(dataset, frames, numbers).save_as(folder / "seg.dcm", enforce_file_format=True)
        arguments = ["--inputDICOM", str(folder / "seg.dcm"), "--outputDirectory", str(folder)]
        arguments += ["--prefix", "seg", "-t", "nrrd"]
        # Merged, the fractions of several segments would lie in one image.
        arguments += [] if is_fractional else ["--mergeSegments"]
        limit_s = TIMEOUT_S + TIMEOUT_S_A_FRAME * len(frames.slices)
        printed = run_dcmqi("segimage2itkimage", *arguments, timeout_s=limit_s)
        meta_path = folder / "seg-meta.json"
        if not meta_path.exists():
            raise ValueError("dcmqi wrote no segment")
        groups = json.loads(meta_path.read_text(encoding="utf-8"))["segmentAttributes"]
        for k, group in enumerate(groups, 1):
            image_path = folder / f"seg-{k}.nrrd"
            if not image_path.exists():
                raise ValueError(f"dcmqi wrote no image: {complaint(printed)}")
            image = from_sitk(sitk.ReadImage(str(image_path)))
            below = np.rint(image.grid.origin_mm).astype(int)
            for label, mask, box in _crops(image.array, group, maximum if is_fractional else None):
                yield numbers[label - 1], (mask, ints3([s.start for s in box] + below))


def _crops(
    array: np.ndarray, group: list[dict[str, Any]], maximum: int | None
) -> Iterator[tuple[int, np.ndarray, tuple[slice, ...]]]:
    """(number in the copy, mask, bounding box) of the segments in one of dcmqi's images: of one by
    its fractions, of several by the values of a label map."""
    if maximum is not None:
        (box,) = ndimage.find_objects((array > 0).astype(np.uint8)) or [None]
        if box is not None:
            yield int(group[0]["SegmentLabel"]), array[box].astype(np.float32) / maximum, box
        return
    boxes = ndimage.find_objects(array)
    for attributes in group:
        value = int(attributes["labelID"])
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:
            yield int(attributes["SegmentLabel"]), array[box] == value, box
