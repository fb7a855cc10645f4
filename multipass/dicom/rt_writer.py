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
from multipass.dicom.headers import read_dicom, text
from multipass.dicom.rt_reader import in_lattice, points_of
from multipass.dicom.seg_header import ALGORITHM
from multipass.dicom.slices import MULTIFRAME_CT, Slice
from multipass.files import replacing
from multipass.geometry.labelmaps import boxes_of
from multipass.geometry.outlines import filled, outlines_of
from multipass.geometry.volume import Grid, Volume, ints3, to_sitk
from multipass.structures import SIDES, Structure

# Of the modules of patient and study: those that must be there, if empty, and others of the source.
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
COPIED = (
    *("IssuerOfPatientID", "PatientAge", "StudyDescription", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "DeidentificationMethodCodeSequence"),
)
# What stands for a study where a class is asked for, retired as it is.
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
# Of VR LO.
MOST_LETTERS = 64


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
    """The object without its structures.

    Raises:
        ValueError: the source lacks a UID by which it could be referred to.
    """
    source = read_dicom(slices[0].path)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not text(source, keyword):
            raise ValueError(f"{slices[0].path.name} has no {keyword} for contours to refer to")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in TYPE_2:
        setattr(dataset, keyword, "")
    for keyword in (*TYPE_2, *COPIED, "StudyInstanceUID"):
        if keyword in source:
            dataset[keyword] = source[keyword]
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.OperatorsName = 301, 1, ""
    dataset.SeriesDescription = f"Pelvic bones, {ALGORITHM} {__version__}"
    dataset.Manufacturer = dataset.ManufacturerModelName = ALGORITHM
    dataset.SoftwareVersions = __version__
    dataset.StructureSetLabel, dataset.StructureSetName = "PELVIC_BONES", "Pelvic bones, automatic"
    day, time = datetime.now().strftime("%Y%m%d %H%M%S").split()
    dataset.StructureSetDate, dataset.StructureSetTime = day, time
    dataset.ApprovalStatus = "UNAPPROVED"
    frame = _frame_of_reference(source, slices)
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = frame.FrameOfReferenceUID, ""
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence = []
    dataset.ROIContourSequence = []
    dataset.RTROIObservationsSequence = []
    return dataset


def _frame_of_reference(source: Dataset, slices: Sequence[Slice]) -> Dataset:
    """The frame of reference with study, series and images in it; one of its own where the source
    names none, since contours must have one."""
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    files = {piece.sop_uid: piece for piece in slices}
    series.ContourImageSequence = [_image(piece) for piece in files.values()]
    study.ReferencedSOPClassUID = STUDY_CLASS
    study.ReferencedSOPInstanceUID = source.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = text(source, "FrameOfReferenceUID") or generate_uid()
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(piece: Slice) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = piece.sop_class, piece.sop_uid
    return item


def _contour(outline: np.ndarray, piece: Slice) -> Dataset:
    """An outline in (column, row) coordinates of its slice as a contour in patient mm."""
    affine = piece.plane.affine
    places = outline @ affine[:3, :2].T + affine[:3, 3]
    # As bytes, which in implicit VR are the same: pydicom's decimal strings take a minute for the
    # million of a pelvis.
    values = "\\".join(f"{v:.3f}" for v in places.ravel().tolist()).encode()
    values += b" " * (len(values) % 2)
    contour, image = Dataset(), _image(piece)
    if piece.sop_class in MULTIFRAME_CT:
        image.ReferencedFrameNumber = piece.frame + 1
    contour.ContourImageSequence = [image]
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(outline)
    contour.add_new("ContourData", "OB", values)
    return contour


def _add(dataset: Dataset, value: int, structure: Structure, contours: Sequence[Dataset]) -> None:
    """A structure as a region of interest, numbered as in the mask."""
    frame = dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    region, outlines, observation = Dataset(), Dataset(), Dataset()
    region.ROINumber, region.ReferencedFrameOfReferenceUID = value, frame
    region.ROIName = structure.name.replace("\\", "/")[:MOST_LETTERS]
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIGenerationDescription = f"{ALGORITHM} {__version__}"
    outlines.ReferencedROINumber, outlines.ROIDisplayColor = value, list(structure.colour)
    for number, contour in enumerate(contours, 1):
        contour.ContourNumber = number
    outlines.ContourSequence = contours
    observation.ObservationNumber = observation.ReferencedROINumber = value
    observation.RTROIIdentificationCodeSequence = [code_of(structure)]
    observation.RTROIInterpretedType, observation.ROIInterpreter = "ORGAN", ""
    dataset.StructureSetROISequence.append(region)
    dataset.ROIContourSequence.append(outlines)
    dataset.RTROIObservationsSequence.append(observation)


def code_of(structure: Structure) -> Dataset:
    """The structure's type with its side as a modifier."""
    code = CodedConcept(structure.value, structure.scheme, structure.meaning or structure.name)
    if structure.side:
        side = CodedConcept.from_code(SIDES[structure.side])
        code.SegmentedPropertyTypeModifierCodeSequence = [side]
    return code


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
