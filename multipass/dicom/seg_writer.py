"""DICOM SEG out: dcmqi's `itkimage2segimage`, and a check of what it wrote.

dcmqi drops labels that the image does not hold and renumbers the segments, so only structures that
were found are announced and segments are known by their codes; it fails on an empty mask, so there
is none for it; it can end well with references missing, so the references are counted and every
frame is compared with the mask.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from multipass import __version__
from multipass.dicom.dcmqi import DcmqiHangsError, number_places, run_dcmqi
from multipass.dicom.frames import is_multiframe, refer_to_frames, write_stand_ins
from multipass.dicom.headers import read_dicom
from multipass.dicom.seg_header import ALGORITHM
from multipass.dicom.slices import Slice
from multipass.files import replacing
from multipass.geometry.labelmaps import box_of, voxel_counts
from multipass.geometry.volume import SAME_PLACE_MM, Grid, Volume, ints3, to_sitk
from multipass.structures import SIDES, Structure, to_attributes

FAMILY = Code("123109", "DCM", "Artificial Intelligence")
SERIES_NUMBER = "300"
LOSSY = ["LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"]


def write_seg(
    path: Path,
    mask: np.ndarray,
    grid: Grid,
    slices: Sequence[Slice],
    structures: Sequence[Structure],
    is_resampled: bool = False,
) -> None:
    """Writes the mask as a DICOM SEG that refers to its source slices, and reads it back.

    Args:
        mask: (X, Y, Z) on the scan's own grid, 1 + k for structures[k]; not empty.
        slices: along the grid's third axis.
        is_resampled: the slices lie askew in the grid, so that frames cannot refer to single ones.

    Raises:
        ValueError: dcmqi failed, or its file does not hold this mask and these references.
    """
    box = box_of(mask)
    if box is None:
        raise ValueError("a SEG of an empty mask cannot be written")
    mask = np.asfortranarray(mask)
    # dcmqi takes its time for every slice that it is given, whether or not a bone is in it.
    held = slice(0, grid.size[2]) if is_resampled else box[2]
    part = mask[:, :, held]
    volume = Volume(part, grid.cropped((0, 0, held.start), ints3(part.shape)))
    several = is_multiframe(slices)
    dataset = _converted(volume, slices[held], structures, is_resampled, several)
    _settle(dataset, slices[0].path)
    with replacing(path) as temporary:
        dataset.save_as(temporary)
        check_seg(
            pydicom.dcmread(temporary), mask, grid, () if is_resampled else slices, structures
        )


def _converted(
    mask: Volume,
    slices: Sequence[Slice],
    structures: Sequence[Structure],
    is_resampled: bool,
    several: bool,
) -> Dataset:
    """What dcmqi makes of a mask; `several`: the CT is a file of several frames."""
    counts = voxel_counts(mask.array, len(structures))
    found = [(k, structure) for k, structure in enumerate(structures, 1) if counts[k]]
    with TemporaryDirectory(prefix="multipass_") as name:
        folder = Path(name)
        sources = folder / "sources"
        sources.mkdir()
        frames = write_stand_ins(slices, sources) if several else {}
        if not frames:
            for number, source in enumerate(dict.fromkeys(piece.path for piece in slices)):
                _link(source, sources / f"{number:05d}.dcm")
        sitk.WriteImage(to_sitk(mask), str(folder / "mask.nrrd"))
        (folder / "meta.json").write_text(json.dumps(_meta(found)), encoding="utf-8")
        arguments = ["--inputImageList", str(folder / "mask.nrrd")]
        arguments += ["--inputDICOMDirectory", str(sources)]
        arguments += ["--inputMetadata", str(folder / "meta.json")]
        if is_resampled:
            arguments += ["--referencesGeometryCheck", "0"]
        _convert([*arguments, "--outputDICOM", str(folder / "seg.dcm")])
        if not (folder / "seg.dcm").exists():
            raise ValueError("dcmqi's itkimage2segimage wrote no file")
        dataset = pydicom.dcmread(folder / "seg.dcm")
    if frames:
        refer_to_frames(dataset, frames)
    return dataset


def _convert(arguments: list[str]) -> None:
    """Runs dcmqi; where the source's own attributes break DICOM's rules for values, once more
    without its check of them, since they are copied and not ours to mend."""
    try:
        run_dcmqi("itkimage2segimage", *arguments)
    except DcmqiHangsError:
        raise
    except ValueError:
        run_dcmqi("itkimage2segimage", *arguments, "--noDicomValueChecks")


def check_seg(
    dataset: Dataset,
    mask: np.ndarray,
    grid: Grid,
    slices: Sequence[Slice],
    structures: Sequence[Structure],
) -> None:
    """Compares a SEG with the mask, frame by frame, and its references with the slices, if any.

    Raises:
        ValueError: they differ.
    """
    values = {}
    for segment in dataset.SegmentSequence:
        values[int(segment.SegmentNumber)] = 1 + _index_of(segment, structures)
    frames = np.atleast_3d(dataset.pixel_array)
    if frames.shape[1:] != (grid.size[1], grid.size[0]):
        frames = dataset.pixel_array[None]
    uids = [piece.sop_uid for piece in slices]
    written = np.zeros(len(structures) + 1, int)
    for frame, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        value = values[int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        k = _slice_index(frame, grid)
        if not np.array_equal(pixels.T > 0, mask[:, :, k] == value):
            raise ValueError(f"seg.dcm: {structures[value - 1].name} differs in slice {k}")
        if uids and uids[k] not in _source_uids(frame):
            raise ValueError(f"seg.dcm: slice {k} does not refer to its source image")
        written[value] += int(np.count_nonzero(pixels))
    if not np.array_equal(written[1:], voxel_counts(mask, len(structures))[1:]):
        raise ValueError("seg.dcm: voxels of the mask are missing")


def _index_of(segment: Dataset, structures: Sequence[Structure]) -> int:
    """The index of the structure that a segment's codes stand for."""
    code = segment.SegmentedPropertyTypeCodeSequence[0]
    modifiers = code.get("SegmentedPropertyTypeModifierCodeSequence") or []
    side = next((s for s, c in SIDES.items() for m in modifiers if m.CodeValue == c.value), "")
    key = (code.CodingSchemeDesignator, code.CodeValue, side)
    for k, structure in enumerate(structures):
        if structure.key == key:
            return k
    raise ValueError(f"seg.dcm: holds a segment {key} that the mask has not")


def _slice_index(frame: Dataset, grid: Grid) -> int:
    position = np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, float)
    index = np.linalg.solve(grid.affine[:3, :3], position - np.asarray(grid.origin_mm))
    off_mm = np.abs(index - [0, 0, np.rint(index[2])]) * grid.spacing_mm
    if off_mm.max() > SAME_PLACE_MM:
        raise ValueError(f"seg.dcm: a frame lies {off_mm.max():.2f} mm away from its slice")
    return int(np.rint(index[2]))


def _source_uids(frame: Dataset) -> set[str]:
    return {
        str(image.ReferencedSOPInstanceUID)
        for derivation in frame.get("DerivationImageSequence") or []
        for image in derivation.get("SourceImageSequence") or []
    }


def _meta(found: Sequence[tuple[int, Structure]]) -> dict[str, Any]:
    """dcmqi's description of the segments: label values, codes, colours, algorithm."""
    algorithm = f"{ALGORITHM} {__version__}"
    return {
        "ContentCreatorName": "MultiPass^U-Net",
        "ContentLabel": "SEGMENTATION",
        "ContentDescription": "Pelvic bones, automatic",
        "SeriesDescription": f"Pelvic bones, {algorithm}",
        "SeriesNumber": SERIES_NUMBER,
        "InstanceNumber": "1",
        "BodyPartExamined": "PELVIS",
        "segmentAttributes": [[to_attributes(s, value, algorithm) for value, s in found]],
    }


def _settle(dataset: Dataset, source: Path) -> None:
    """Adds name, version and family of the algorithm, PS3.3 C.8.20.2 and table 10-19, and whether
    the source was compressed with loss; takes out dcmqi's clinical trial modules, which are
    incomplete, and numbers the slices' places."""
    number_places(dataset)
    lossy = read_dicom(source, specific_tags=LOSSY)
    for keyword in LOSSY if lossy.get("LossyImageCompression") == "01" else ():
        if keyword in lossy:
            setattr(dataset, keyword, lossy[keyword].value)
    for keyword in dataset.dir("ClinicalTrial"):
        delattr(dataset, keyword)
    for segment in dataset.SegmentSequence:
        family = Dataset()
        family.CodeValue, family.CodingSchemeDesignator = FAMILY.value, FAMILY.scheme_designator
        family.CodeMeaning = FAMILY.meaning
        algorithm = Dataset()
        algorithm.AlgorithmFamilyCodeSequence = [family]
        algorithm.AlgorithmName, algorithm.AlgorithmVersion = ALGORITHM, __version__
        segment.SegmentationAlgorithmIdentificationSequence = [algorithm]


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)
