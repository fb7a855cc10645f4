"""dcmqi's commands: running them, and what `segimage2itkimage` makes of a DICOM SEG."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from scipy import ndimage

from multipass.dicom.ct import CT
from multipass.dicom.series import read_dicom, short
from multipass.geometry.volume import Grid, Volume, axis_order, from_sitk, ints3
from multipass.geometry.volume import upright as to_upright

# Reading a SEG of 844 frames takes about 10 s; beyond this dcmqi hangs.
DCMQI_TIMEOUT_S = 600
# A frame further than this from its slice, in voxels, was misplaced.
FRAME_TOLERANCE = 0.1
SAME_SLICE_MM = 0.1
SEGMENT_NUMBER = pydicom.tag.Tag("ReferencedSegmentNumber")
PLACE = pydicom.tag.Tag("ImagePositionPatient")


def dcmqi_command(name: str) -> str:
    """The path of a dcmqi command: beside the running Python first, then on PATH.

    Raises:
        ValueError: it is installed in neither place.
    """
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise ValueError(f"dcmqi's {name} was not found: pip install -r requirements.txt")
    return found


def run_dcmqi(name: str, *arguments: str) -> str:
    """Run a dcmqi command and return what it printed.

    Raises:
        ValueError: it failed or hung; the sentence carries its own last error.
    """
    command = [dcmqi_command(name), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DCMQI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ValueError(f"dcmqi's {name} did not end within {DCMQI_TIMEOUT_S} s") from None
    if done.returncode == -signal.SIGINT:  # Ctrl-C reaches it, too
        raise KeyboardInterrupt
    printed = done.stdout + done.stderr
    if done.returncode != 0:
        reason = complaint(printed) or f"exit code {done.returncode}"
        raise ValueError(f"dcmqi's {name} refused the file: {reason}")
    return printed


def complaint(printed: str) -> str:
    """The last error that a command printed, or ''."""
    lines = [line for line in printed.splitlines() if "rror" in line.lower() or "FATAL" in line]
    return lines[-1].strip() if lines else ""


def read_segments(path: Path, tilted: CT | None) -> list[tuple[dict, Volume]]:
    """The file's segments: attributes and mask (bool, or float32 in [0, 1] if FRACTIONAL), each
    cropped to its bounding box, on the SEG's own grid, in LPS order unless that is oblique."""
    header = read_dicom(path)
    try:
        maximum = _fractional_maximum(header)
        _check_segment_numbers(header)
    except ValueError:
        raise
    except Exception as error:  # pydicom decodes values when they are asked for
        raise ValueError(f"{path.name}: damaged DICOM header ({short(error)})") from None
    converted = []
    with tempfile.TemporaryDirectory(prefix="multipass_") as folder:
        source = path if tilted is None else _without_drift(path, tilted, Path(folder))
        arguments = ["--inputDICOM", str(source), "--outputDirectory", folder]
        arguments += ["--prefix", "seg", "-t", "nrrd", "--mergeSegments"]
        printed = run_dcmqi("segimage2itkimage", *arguments)
        meta_path = Path(folder) / "seg-meta.json"
        if not meta_path.exists():
            raise ValueError(f"{path.name}: dcmqi wrote no segment")
        groups = json.loads(meta_path.read_text(encoding="utf-8", errors="replace"))
        for number, group in enumerate(groups.get("segmentAttributes", []), 1):
            image_path = Path(folder) / f"seg-{number}.nrrd"
            if not image_path.exists():
                raise ValueError(f"{path.name}: dcmqi wrote no image: {complaint(printed)}")
            image = from_sitk(sitk.ReadImage(str(image_path)))
            if tilted is None:
                _check_frames(header, image.grid)
            volume = _upright_labels(image)
            spans = ndimage.find_objects(volume.array) if maximum is None else []
            for attributes in group:
                converted.append((attributes, _one_segment(volume, attributes, spans, maximum)))
    return converted


def number_places(dataset: Dataset) -> None:
    """Numbers the places of a SEG's frames through all its segments, along the slices' normal: one
    dimension index value is one place (PS3.3 C.7.6.17), where dcmqi counts anew in each segment."""
    pointers = [item.DimensionIndexPointer for item in dataset.DimensionIndexSequence]
    column = pointers.index(PLACE)
    shared = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    row, down = np.split(np.asarray(shared.ImageOrientationPatient, float), 2)
    frames = dataset.PerFrameFunctionalGroupsSequence
    places = [f.PlanePositionSequence[0].ImagePositionPatient for f in frames]
    heights = np.round(np.asarray(places, float) @ np.cross(row, down), 3)
    numbers = 1 + np.unique(heights, return_inverse=True)[1].ravel()
    for frame, number in zip(frames, numbers, strict=True):
        content = frame.FrameContentSequence[0]
        values = list(content.DimensionIndexValues)
        values[column] = int(number)
        content.DimensionIndexValues = values


def _without_drift(path: Path, tilted: CT, folder: Path) -> Path:
    """A copy of a SEG on tilted slices with its frames stacked along their normal: dcmqi can
    represent nothing else.

    Raises:
        ValueError: a frame lies on none of the CT's slices.
    """
    dataset = pydicom.dcmread(path)
    places = np.array([s.position_mm for s in tilted.slices])
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        plane = frame.PlanePositionSequence[0]
        distance = np.linalg.norm(places - np.asarray(plane.ImagePositionPatient, float), axis=1)
        k = int(distance.argmin())
        if distance[k] > SAME_SLICE_MM:
            raise ValueError(f"{path.name}: a frame lies on none of the tilted CT's slices")
        straight = tilted.stack.affine @ (0, 0, k, 1)
        plane.ImagePositionPatient = [f"{v:.6f}" for v in straight[:3]]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for owner in (shared, *dataset.PerFrameFunctionalGroupsSequence):
        for measures in owner.get("PixelMeasuresSequence") or []:
            measures.SpacingBetweenSlices = f"{tilted.stack.spacing_mm[2]:.6f}"
    copy = folder / "straight.dcm"
    dataset.save_as(copy)
    return copy


def _check_frames(header: Dataset, grid: Grid) -> None:
    """Raise ValueError unless each frame lies on a slice of the grid that dcmqi made of them: it
    trusts a file's spacing between slices, and drops in-plane drift, without a word."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    planes = [frame.get("PlanePositionSequence") for frame in frames]
    places = np.array([p[0].ImagePositionPatient for p in planes if p], float)
    if not len(places):
        return
    at = (places - grid.origin_mm) @ grid.matrix / grid.spacing_mm
    off = np.abs(at - np.rint(at) * (0, 0, 1)).max()
    if off > FRAME_TOLERANCE:
        raise ValueError(
            "the segmentation's frames do not lie on evenly spaced slices, or its spacing between "
            f"slices is wrong (off by up to {off:.2g} voxels)"
        )


def _check_segment_numbers(header: Dataset) -> None:
    """Raise ValueError unless each frame names one segment, in its identification as in its
    dimension index, and no segment has two frames at one place."""
    if header.get("SegmentationType") == "LABELMAP":
        return
    pointers = [item.DimensionIndexPointer for item in header.get("DimensionIndexSequence") or []]
    column = pointers.index(SEGMENT_NUMBER) if SEGMENT_NUMBER in pointers else None
    places, named = set(), set()
    for number, frame in enumerate(header.get("PerFrameFunctionalGroupsSequence") or [], 1):
        owner = frame.get("SegmentIdentificationSequence") or header.get(
            "SharedFunctionalGroupsSequence", [Dataset()]
        )[0].get("SegmentIdentificationSequence")
        if not owner:
            raise ValueError(f"frame {number} of the segmentation names no segment")
        segment = int(owner[0].ReferencedSegmentNumber)
        content = (frame.get("FrameContentSequence") or [Dataset()])[0]
        index = np.atleast_1d(content.get("DimensionIndexValues") or [])
        if column is not None and column < len(index):
            named.add((int(index[column]), segment))
        plane = frame.get("PlanePositionSequence")
        place = (segment, *(plane[0].ImagePositionPatient if plane else (number,)))
        if place in places:
            raise ValueError(f"segment {segment} has two frames at one place")
        places.add(place)
    if not len(named) == len({index for index, _ in named}) == len({s for _, s in named}):
        raise ValueError("the segmentation's frames contradict their dimension index")


def _fractional_maximum(header: Dataset) -> int | None:
    if header.get("SegmentationType") != "FRACTIONAL":
        return None
    return int(header.get("MaximumFractionalValue", 255)) or 255


def _upright_labels(volume: Volume) -> Volume:
    return volume if axis_order(volume.grid) is None else to_upright(volume)


def _one_segment(volume: Volume, attributes: dict, spans: list, maximum: int | None) -> Volume:
    if maximum is not None:
        values = volume.array.astype(np.float32) / maximum
        found = ndimage.find_objects((values > 0).astype(np.uint8))
        span = found[0] if found else None
    else:
        label = int(attributes["labelID"])
        span = spans[label - 1] if 0 < label <= len(spans) else None
        values = volume.array
    if span is None:
        return Volume(np.zeros((0, 0, 0), bool), volume.grid)
    grid = volume.grid.cropped(ints3(s.start for s in span), ints3(s.stop - s.start for s in span))
    crop = values[span]
    return Volume(crop if maximum is not None else crop == label, grid)
