"""DICOM RT Structure Set out: closed outlines of each structure on the source slices.

Implicit VR, since an outline may need more than the 64 kB that explicit VR allows (PS3.3 C.8.8.6).
Holes are joined to their outlines by keyholes: CLOSEDPLANAR_XOR is from 2020, and programs that do
not know it fill the holes or leave the contour out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from multipass import __version__
from multipass.dicom.derived import (
    LABEL,
    SERIES_DESCRIPTION,
    TITLE,
    file_references,
    label_of,
    slice_reference,
    source_header,
    take_over,
    type_of,
)
from multipass.dicom.headers import read_dicom
from multipass.dicom.rt_reader import in_lattice, points_of
from multipass.dicom.seg_header import ALGORITHM
from multipass.dicom.slices import Slice
from multipass.files import replacing
from multipass.geometry.labelmaps import boxes_of
from multipass.geometry.outlines import filled, outlines_of
from multipass.geometry.volume import Grid, Volume, ints3, to_sitk
from multipass.structures import CATEGORY, Structure

# What stands for a study where a class is asked for, retired as it is.
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(
    path: Path,
    mask: np.ndarray,
    grid: Grid,
    slices: Sequence[Slice],
    structures: Sequence[Structure],
    is_resampled: bool = False,
) -> None:
    """Writes the mask as an RT Structure Set, and reads it back.

    Args:
        mask: (X, Y, Z) on the scan's own grid, 1 + k for structures[k]; not empty.
        slices: along the grid's third axis.
        is_resampled: the grid's slices are others than these: each gets the nearest labels.

    Raises:
        ValueError: the source has no UIDs to refer to, or the file does not hold this mask.
    """
    if is_resampled:
        mask = _on_slices(mask, grid, slices)
    dataset = _structure_set(slices)
    boxes = boxes_of(mask, len(structures))
    for value, (structure, box) in enumerate(zip(structures, boxes, strict=True), 1):
        if box is not None:
            contours = [
                _contour(outline, slices[k])
                for k in range(box[2].start, box[2].stop)
                for outline in _outlines(mask[box[0], box[1], k] == value, box)
            ]
            _add(dataset, value, structure, contours)
    if not dataset.ROIContourSequence:
        raise ValueError("an RT Structure Set of an empty mask cannot be written")
    with replacing(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
        _check(read_dicom(temporary), mask, slices)


def _on_slices(mask: np.ndarray, grid: Grid, slices: Sequence[Slice]) -> np.ndarray:
    """(columns, rows, slices): the nearest labels at the pixels of slices that lie askew in a grid,
    or between its slices."""
    image = to_sitk(Volume(mask, grid))
    planes = np.empty((slices[0].columns, slices[0].rows, len(slices)), mask.dtype, order="F")
    for k, piece in enumerate(slices):
        to = piece.plane
        where = to.size, sitk.Transform(), sitk.sitkNearestNeighbor
        part = sitk.Resample(image, *where, to.origin_mm, to.spacing_mm, to.direction)
        planes[:, :, k] = sitk.GetArrayViewFromImage(part)[0].T
    return planes


def _outlines(part: np.ndarray, box: Sequence[slice]) -> Iterator[np.ndarray]:
    for outline in outlines_of(part) if part.any() else ():
        yield outline + [box[0].start, box[1].start]


# --------------------------------------------------------------------- content


def _structure_set(slices: Sequence[Slice]) -> Dataset:
    """The object without its structures."""
    source = source_header(slices)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    take_over(dataset, source)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.OperatorsName = 301, 1, ""
    dataset.SeriesDescription = SERIES_DESCRIPTION
    dataset.Manufacturer = dataset.ManufacturerModelName = ALGORITHM
    dataset.SoftwareVersions = __version__
    dataset.FrameOfReferenceUID = source.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = ""
    dataset.StructureSetLabel, dataset.StructureSetName = LABEL, TITLE
    day, time = datetime.now().strftime("%Y%m%d %H%M%S").split()
    dataset.StructureSetDate, dataset.StructureSetTime = day, time
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source, slices)]
    dataset.StructureSetROISequence = []
    dataset.ROIContourSequence = []
    dataset.RTROIObservationsSequence = []
    return dataset


def _frame_of_reference(source: Dataset, slices: Sequence[Slice]) -> Dataset:
    """The frame of reference, with study, series and images in it."""
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ContourImageSequence = file_references(slices)
    study.ReferencedSOPClassUID = STUDY_CLASS
    study.ReferencedSOPInstanceUID = source.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _contour(outline: np.ndarray, piece: Slice) -> Dataset:
    """An outline in (column, row) coordinates of its slice as a contour in patient mm."""
    affine = piece.plane.affine
    places = outline @ affine[:3, :2].T + affine[:3, 3]
    # As bytes, which in implicit VR are the same: pydicom's decimal strings take a minute for the
    # million of a pelvis.
    values = "\\".join(f"{v:.3f}" for v in places.ravel().tolist()).encode()
    values += b" " * (len(values) % 2)
    contour = Dataset()
    contour.ContourImageSequence = [slice_reference(piece)]
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(outline)
    contour.add_new("ContourData", "OB", values)
    return contour


def _add(dataset: Dataset, value: int, structure: Structure, contours: Sequence[Dataset]) -> None:
    """A structure as a region of interest, numbered as in the mask."""
    frame = dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    region, outlines, observation = Dataset(), Dataset(), Dataset()
    region.ROINumber, region.ReferencedFrameOfReferenceUID = value, frame
    region.ROIName = label_of(structure)
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIGenerationDescription = f"{ALGORITHM} {__version__}"
    outlines.ReferencedROINumber, outlines.ROIDisplayColor = value, list(structure.colour)
    for number, contour in enumerate(contours, 1):
        contour.ContourNumber = number
    outlines.ContourSequence = contours
    observation.ObservationNumber = observation.ReferencedROINumber = value
    observation.RTROIIdentificationCodeSequence = [type_of(structure)]
    observation.SegmentedPropertyCategoryCodeSequence = [CodedConcept.from_code(structure.category)]
    is_organ = structure.category == CATEGORY
    observation.RTROIInterpretedType = "ORGAN" if is_organ else ""
    observation.ROIInterpreter = ""
    dataset.StructureSetROISequence.append(region)
    dataset.ROIContourSequence.append(outlines)
    dataset.RTROIObservationsSequence.append(observation)


def _check(dataset: Dataset, mask: np.ndarray, slices: Sequence[Slice]) -> None:
    """Compares what the contours of each structure hold with the mask.

    Raises:
        ValueError: they differ.
    """
    index = {(piece.sop_uid, piece.frame + 1): k for k, piece in enumerate(slices)}
    size = ints3(mask.shape)
    written = np.zeros_like(mask)
    for region in dataset.ROIContourSequence:
        polygons = defaultdict(list)
        for contour in region.ContourSequence:
            image = contour.ContourImageSequence[0]
            frame = int(image.get("ReferencedFrameNumber") or 1)
            k = index[str(image.ReferencedSOPInstanceUID), frame]
            polygons[k].append(in_lattice(points_of(contour), slices[k].plane.affine)[:, :2])
        for k, outlines in polygons.items():
            written[:, :, k][filled(outlines, size[:2])] = region.ReferencedROINumber
    if not np.array_equal(written, mask):
        raise ValueError("the contours do not hold the mask")
