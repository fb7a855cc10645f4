"""DICOM SEG out, by highdicom, and a check of what it wrote.

highdicom asks for more than many sources have, so it gets plain stand-ins for the slices; patient,
study and references are then led to the source as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid
from pydicom.valuerep import format_number_as_ds

from multipass import __version__
from multipass.dicom.derived import (
    LABEL,
    SERIES_DESCRIPTION,
    TITLE,
    algorithm,
    file_references,
    label_of,
    slice_reference,
    source_header,
    take_over,
    type_of,
)
from multipass.dicom.seg_header import ALGORITHM
from multipass.dicom.slices import Slice
from multipass.files import replacing
from multipass.geometry.labelmaps import box_of, voxel_counts
from multipass.geometry.volume import SAME_PLACE_MM, Grid
from multipass.structures import SIDES, Structure

LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
# Supplement 243: its pixels are the values of the mask.
LABELMAP = "LABELMAP"
# Stand-ins are called 1.0, 1.1, 1.2 ...
STAND_IN = "1."


def write_seg(
    path: Path,
    mask: np.ndarray,
    grid: Grid,
    slices: Sequence[Slice],
    structures: Sequence[Structure],
    is_resampled: bool = False,
    kind: str = "BINARY",
) -> None:
    """Writes the mask as a DICOM SEG that refers to its source slices, and reads it back.

    Args:
        mask: (X, Y, Z) on the scan's own grid, 1 + k for structures[k]; not empty.
        slices: along the grid's third axis.
        is_resampled: the grid's slices are others than these, and frames refer to none.
        kind: BINARY or LABELMAP.

    Raises:
        ValueError: the source has no UIDs to refer to, or the file does not hold this mask.
    """
    box = box_of(mask)
    if box is None:
        raise ValueError("a SEG of an empty mask cannot be written")
    source = source_header(slices)
    held = box[2]
    images = [_stand_in(grid, k, source) for k in range(held.start, held.stop)]
    dataset = _segmentation(mask[:, :, held], images, structures, kind)
    if is_resampled:
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            del frame.DerivationImageSequence
    _refer(dataset, slices if is_resampled else slices[held], slices)
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = source.SeriesInstanceUID
    dataset.BodyPartExamined = "PELVIS"
    take_over(dataset, source)
    for keyword in LOSSY if source.get(LOSSY[0]) == "01" else ():
        if keyword in source:
            dataset[keyword] = source[keyword]
    with replacing(path) as temporary:
        dataset.save_as(temporary)
        referred = () if is_resampled else slices
        check_seg(pydicom.dcmread(temporary), mask, grid, referred, structures)


def _stand_in(grid: Grid, k: int, source: Dataset) -> Dataset:
    """A slice of a grid as highdicom wants it: a single-frame CT image of nobody."""
    image = Dataset()
    take_over(image, Dataset())
    image.SOPClassUID, image.SOPInstanceUID, image.Modality = CTImageStorage, f"{STAND_IN}{k}", "CT"
    image.StudyInstanceUID, image.SeriesInstanceUID = source.StudyInstanceUID, "1"
    image.FrameOfReferenceUID = source.FrameOfReferenceUID
    image.Columns, image.Rows = grid.size[:2]
    place = grid.affine[:3, :3] @ [0, 0, k] + grid.origin_mm
    image.ImagePositionPatient = _decimals(place)
    image.ImageOrientationPatient = _decimals(grid.matrix.T[:2].ravel())
    image.PixelSpacing = _decimals(grid.spacing_mm[1::-1])
    image.SliceThickness = image.SpacingBetweenSlices = _decimals(grid.spacing_mm)[2]
    return image


def _decimals(values: Sequence[float] | np.ndarray) -> list[str]:
    return [format_number_as_ds(float(v)) for v in values]


def _segmentation(
    mask: np.ndarray, images: Sequence[Dataset], structures: Sequence[Structure], kind: str
) -> Segmentation:
    """A segment for each structure in the mask; numbered one by one, as BINARY has to be, or by
    their values in the mask.

    Args:
        mask: (X, Y, Z), a slice for each image.
    """
    counts = voxel_counts(mask, len(structures))
    found = [(k, structure) for k, structure in enumerate(structures, 1) if counts[k]]
    numbers = np.zeros(len(structures) + 1, mask.dtype)
    for number, (value, _) in enumerate(found, 1):
        numbers[value] = value if kind == LABELMAP else number
    return Segmentation(
        source_images=images,
        pixel_array=np.ascontiguousarray(numbers[mask].T),
        segmentation_type=kind,
        segment_descriptions=[_described(structure, int(numbers[k])) for k, structure in found],
        series_instance_uid=generate_uid(),
        series_number=300 if kind != LABELMAP else 302,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        transfer_syntax_uid=RLELossless if kind == LABELMAP else ExplicitVRLittleEndian,
        manufacturer=ALGORITHM,
        manufacturer_model_name=ALGORITHM,
        software_versions=__version__,
        device_serial_number="1",
        content_label=LABEL,
        content_description=TITLE,
        content_creator_name="MultiPass^U-Net",
        series_description=SERIES_DESCRIPTION,
    )


def _described(structure: Structure, number: int) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=label_of(structure),
        segmented_property_category=structure.category,
        segmented_property_type=type_of(structure),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm(),
        display_color=CIELabColor.from_rgb(*structure.colour),
    )


def _refer(dataset: Dataset, named: Sequence[Slice], slices: Sequence[Slice]) -> None:
    """Leads references from stand-ins to slices.

    Args:
        named: in the header.
        slices: by the numbers of the stand-ins.
    """
    (series,) = dataset.ReferencedSeriesSequence
    series.ReferencedInstanceSequence = file_references(named)
    stands_for = {f"{STAND_IN}{k}": slice_reference(piece) for k, piece in enumerate(slices)}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence") or []:
            for image in derivation.SourceImageSequence:
                # Segments of one slice share the reference.
                image.update(stands_for.get(image.ReferencedSOPInstanceUID, {}))


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
    values = np.zeros(1 + max(int(s.SegmentNumber) for s in dataset.SegmentSequence), mask.dtype)
    for segment in dataset.SegmentSequence:
        if segment.SegmentNumber:
            values[int(segment.SegmentNumber)] = 1 + _index_of(segment, structures)
    frames = np.atleast_3d(dataset.pixel_array)
    if frames.shape[1:] != (grid.size[1], grid.size[0]):
        frames = dataset.pixel_array[None]
    uids = [piece.sop_uid for piece in slices]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    written = 0
    for frame, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        k = _slice_index(frame, grid)
        if dataset.SegmentationType == LABELMAP:
            shown, wanted = values[pixels.T], mask[:, :, k]
        else:
            # The one segment of all frames may be named in the shared groups.
            owner = frame if "SegmentIdentificationSequence" in frame else shared
            number = int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            shown, wanted = pixels.T > 0, mask[:, :, k] == values[number]
        if not np.array_equal(shown, wanted):
            raise ValueError(f"slice {k} differs from the mask")
        if uids and uids[k] not in _source_uids(frame):
            raise ValueError(f"slice {k} does not refer to its source image")
        written += int(np.count_nonzero(pixels))
    if written != np.count_nonzero(mask):
        raise ValueError("voxels of the mask are missing")


def _index_of(segment: Dataset, structures: Sequence[Structure]) -> int:
    """The index of the structure that a segment's codes stand for."""
    code = segment.SegmentedPropertyTypeCodeSequence[0]
    modifiers = code.get("SegmentedPropertyTypeModifierCodeSequence") or []
    side = next((s for s, c in SIDES.items() for m in modifiers if m.CodeValue == c.value), "")
    key = (code.CodingSchemeDesignator, code.CodeValue, side)
    for k, structure in enumerate(structures):
        if structure.key == key:
            return k
    raise ValueError(f"holds a segment {key} that the mask has not")


def _slice_index(frame: Dataset, grid: Grid) -> int:
    position = np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, float)
    index = np.linalg.solve(grid.affine[:3, :3], position - np.asarray(grid.origin_mm))
    off_mm = np.abs(index - [0, 0, np.rint(index[2])]) * grid.spacing_mm
    if off_mm.max() > SAME_PLACE_MM:
        raise ValueError(f"a frame lies {off_mm.max():.2f} mm away from its slice")
    return int(np.rint(index[2]))


def _source_uids(frame: Dataset) -> set[str]:
    return {
        str(image.ReferencedSOPInstanceUID)
        for derivation in frame.get("DerivationImageSequence") or []
        for image in derivation.get("SourceImageSequence") or []
    }
