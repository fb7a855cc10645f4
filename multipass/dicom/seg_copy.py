"""A copy of a DICOM SEG that dcmqi can read, whatever the header that its writer gave it.

It holds the frames' pixels and the few attributes that `segimage2itkimage` asks for. Segments are
numbered 1, 2, 3 ... and named by these numbers. It lies in index space: voxels of 1 mm, frames
stacked straight, since where they lie is known from the original (`seg_frames`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from multipass.dicom.headers import short
from multipass.dicom.seg_frames import SEGMENT_NUMBER, Frames
from multipass.structures import CATEGORY
from multipass.terminal import is_out_of_memory

PLACE, PLACE_GROUP = Tag("ImagePositionPatient"), Tag("PlanePositionSequence")
SEGMENT_GROUP = Tag("SegmentIdentificationSequence")
TISSUE = Code("85756007", "SCT", "Tissue")
# PS3.3 C.8.20.2 and Supplement 243.
BITS = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
COPIED = (
    *("SOPClassUID", "SegmentationType", "SegmentationFractionalType", "MaximumFractionalValue"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SamplesPerPixel", "NumberOfFrames", "SegmentsOverlap"),
)


def plain_copy(dataset: Dataset, frames: Frames, segment_numbers: Sequence[int]) -> Dataset:
    """The copy.

    Args:
        segment_numbers: of the original's segments; segment i of the copy is the i-th of them.

    Raises:
        ValueError: the pixels cannot be decoded, or name a segment that the header has not.
    """
    number = {original: k for k, original in enumerate(segment_numbers, 1)}
    copy = _shell()
    for keyword in COPIED:
        if keyword in dataset:
            copy[keyword] = dataset[keyword]
    copy.SegmentSequence = [_segment(k) for k in number.values()]
    is_label_map = dataset.get("SegmentationType") == "LABELMAP"
    copy.DimensionOrganizationSequence, copy.DimensionIndexSequence = _dimensions(is_label_map)
    copy.SharedFunctionalGroupsSequence = [_shared()]
    copy.PerFrameFunctionalGroupsSequence = [
        _frame(number.get(segment, 0), k)
        for segment, k in zip(frames.segments, frames.slices, strict=True)
    ]
    copy.PixelData = _pixels(dataset, number)
    copy["PixelData"].VR = "OW" if copy.BitsAllocated > 8 else "OB"
    copy.file_meta = FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    copy.file_meta.MediaStorageSOPClassUID = copy.SOPClassUID
    copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
    return copy


def _shell() -> Dataset:
    """A SEG of nobody, without segments and frames."""
    shell = Dataset()
    shell.SOPInstanceUID, shell.SeriesInstanceUID = generate_uid(), generate_uid()
    shell.StudyInstanceUID, shell.FrameOfReferenceUID = generate_uid(), generate_uid()
    shell.Modality, shell.SeriesNumber, shell.InstanceNumber = "SEG", 1, 1
    shell.ContentLabel, shell.ContentDescription, shell.ContentCreatorName = "SEG", "", ""
    shell.PatientID = shell.PatientName = shell.PatientBirthDate = shell.PatientSex = ""
    shell.StudyDate = shell.StudyTime = shell.ContentDate = shell.ContentTime = ""
    shell.StudyID = shell.AccessionNumber = shell.ReferringPhysicianName = shell.Manufacturer = ""
    # Label maps may have a palette, which is of no use here.
    shell.LossyImageCompression, shell.PhotometricInterpretation = "00", "MONOCHROME2"
    return shell


def _pixels(dataset: Dataset, number: dict[int, int]) -> bytes:
    """Uncompressed little-endian pixels; a label map's values renumbered."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        try:
            dataset.decompress(generate_instance_uid=False)
        except Exception as error:  # decoders raise many kinds on damaged or unsupported pixels
            if is_out_of_memory(error):
                raise
            raise ValueError(f"its pixels cannot be decoded ({short(error)})") from None
    _check_pixels(dataset)
    if dataset.get("SegmentationType") != "LABELMAP":
        return dataset.PixelData
    stored = dataset.pixel_array
    seen = np.zeros(int(stored.max(initial=0)) + 1, bool)
    seen[stored] = True
    known = {0, dataset.get("PixelPaddingValue"), *number}
    unknown = [int(value) for value in np.flatnonzero(seen) if value not in known]
    if unknown:
        raise ValueError(f"pixels of value {unknown[0]}, which no segment has")
    lookup = np.zeros(len(seen), stored.dtype)
    for original, k in number.items():
        if original < len(lookup):
            lookup[original] = k
    values = lookup[stored].tobytes()
    return values + b"\0" * (len(values) % 2)


def _check_pixels(dataset: Dataset) -> None:
    kind = dataset.get("SegmentationType")
    if int(dataset.BitsAllocated) not in BITS.get(kind, ()):
        raise ValueError(f"a SegmentationType {kind} of {dataset.BitsAllocated} bits a pixel")
    if kind == "FRACTIONAL" and not dataset.get("MaximumFractionalValue"):
        raise ValueError("no MaximumFractionalValue, which its fractions are parts of")
    bits = int(dataset.NumberOfFrames) * dataset.Rows * dataset.Columns * dataset.BitsAllocated
    wanted, found = -(-bits // 8), len(dataset.get("PixelData") or b"")
    if found not in (wanted, wanted + wanted % 2):
        raise ValueError(f"{found} bytes of pixels where its tags announce {wanted}")


def _segment(number: int) -> Dataset:
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = number, str(number)
    segment.SegmentAlgorithmType = "MANUAL"
    segment.SegmentedPropertyCategoryCodeSequence = [_item(CATEGORY)]
    segment.SegmentedPropertyTypeCodeSequence = [_item(TISSUE)]
    return segment


def _item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _dimensions(is_label_map: bool) -> tuple[list[Dataset], list[Dataset]]:
    pointers = [(PLACE, PLACE_GROUP)]
    if not is_label_map:
        pointers.insert(0, (SEGMENT_NUMBER, SEGMENT_GROUP))
    organization = Dataset()
    organization.DimensionOrganizationUID = generate_uid()
    indices = []
    for pointer, group in pointers:
        index = Dataset()
        index.DimensionOrganizationUID = organization.DimensionOrganizationUID
        index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, group
        indices.append(index)
    return [organization], indices


def _shared() -> Dataset:
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [1, 1]
    measures.SpacingBetweenSlices = measures.SliceThickness = 1
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    return shared


def _frame(segment: int, k: int) -> Dataset:
    frame, content, place, identification = Dataset(), Dataset(), Dataset(), Dataset()
    place.ImagePositionPatient = [0, 0, k]
    frame.PlanePositionSequence = [place]
    content.DimensionIndexValues = [segment, k + 1] if segment else [k + 1]
    frame.FrameContentSequence = [content]
    if segment:
        identification.ReferencedSegmentNumber = segment
        frame.SegmentIdentificationSequence = [identification]
    return frame
