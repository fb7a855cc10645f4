"""What objects that this product derives from a CT have in common: the source's patient and study,
references to its images, and who made them."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from multipass import __version__
from multipass.dicom.headers import read_dicom, text
from multipass.dicom.seg_header import ALGORITHM
from multipass.dicom.slices import MULTIFRAME_CT, Slice
from multipass.structures import SIDES, Structure

TITLE, LABEL = "Pelvic bones, automatic", "PELVIC_BONES"
SERIES_DESCRIPTION = f"Pelvic bones, {ALGORITHM} {__version__}"
FAMILY = Code("123109", "DCM", "Artificial Intelligence")
# Of the modules of patient and study: those that must be there, if empty, and others of the source.
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
COPIED = (
    *("IssuerOfPatientID", "StudyDescription", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "DeidentificationMethodCodeSequence", "StudyInstanceUID"),
)
REFERRED_TO = ("StudyInstanceUID", "SeriesInstanceUID")
# Of VR LO.
MOST_LETTERS = 64


def source_header(slices: Sequence[Slice]) -> Dataset:
    """The header of the first slice; with a frame of reference of its own where it names none,
    since objects with places must have one.

    Raises:
        ValueError: the source lacks UIDs by which it could be referred to.
    """
    header = read_dicom(slices[0].path)
    for keyword in REFERRED_TO:
        if not text(header, keyword):
            raise ValueError(f"{slices[0].path.name} has no {keyword} to refer to")
    uids = {(piece.sop_uid, piece.frame) for piece in slices if piece.sop_uid}
    if len(uids) < len(slices):
        raise ValueError(
            "its slices have no SOPInstanceUID, or share one, and cannot be referred to"
        )
    if not text(header, "FrameOfReferenceUID"):
        header.FrameOfReferenceUID = generate_uid()
    return header


def take_over(dataset: Dataset, source: Dataset) -> None:
    """Gives an object the patient and the study of its source, as they are."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*TYPE_2, *COPIED):
        if keyword in source:
            dataset[keyword] = source[keyword]
        elif keyword in TYPE_2:
            setattr(dataset, keyword, "")


def file_reference(piece: Slice) -> Dataset:
    """A reference to a slice's file."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = piece.sop_class, piece.sop_uid
    return item


def slice_reference(piece: Slice) -> Dataset:
    """A reference to a slice, by its number where the file has several."""
    item = file_reference(piece)
    if piece.sop_class in MULTIFRAME_CT:
        item.ReferencedFrameNumber = piece.frame + 1
    return item


def file_references(slices: Sequence[Slice]) -> list[Dataset]:
    """A reference to each file."""
    return [file_reference(piece) for piece in {piece.sop_uid: piece for piece in slices}.values()]


def label_of(structure: Structure) -> str:
    return structure.name.replace("\\", "/")[:MOST_LETTERS]


def type_of(structure: Structure) -> CodedConcept:
    """The structure's code, its side as a modifier."""
    meaning = (structure.meaning or structure.name)[:MOST_LETTERS]
    code = CodedConcept(structure.value, structure.scheme, meaning)
    if structure.side:
        side = CodedConcept.from_code(SIDES[structure.side])
        code.SegmentedPropertyTypeModifierCodeSequence = [side]
    return code


def algorithm() -> AlgorithmIdentificationSequence:
    return AlgorithmIdentificationSequence(ALGORITHM, FAMILY, __version__)
