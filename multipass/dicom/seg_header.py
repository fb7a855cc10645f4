"""A DICOM SEG or RT Structure Set by its header: what it refers to, who made it, what its segments
stand for.

Labels and codes are read by pydicom, which knows the file's character sets; dcmqi's JSON does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from multipass.dicom.headers import read_dicom, short, text

# The name that this product's own segmentations bear.
ALGORITHM = "3D MultiPass U-Net"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"  # Supplement 243
SEG_CLASSES = {SegmentationStorage, LABEL_MAP_SEGMENTATION}
SEG_TAGS = (
    *("ReferencedSeriesSequence", "SegmentSequence", "Manufacturer", "ManufacturerModelName"),
    *("ContentCreatorName", "SeriesDescription"),
    *("ReferencedFrameOfReferenceSequence", "StructureSetROISequence"),
)
# PS3.3 table 8.8-1: the three homes of a code's value.
CODE_VALUES = ("CodeValue", "LongCodeValue", "URNCodeValue")
DRAWN_BY_PEOPLE = {"MANUAL", "SEMIAUTOMATIC"}


@dataclass(frozen=True)
class SegHeader:
    """References and maker of a DICOM SEG or an RT Structure Set.

    Attributes:
        series_uids: of ReferencedSeriesSequence.
        instance_uids: of the images named there.
        is_own: an automatic segmentation by this product.
        is_contours: an RT Structure Set.
    """

    path: Path
    uid: str = ""
    patient_id: str = ""
    frame_of_reference_uid: str = ""
    series_uids: tuple[str, ...] = ()
    instance_uids: frozenset[str] = frozenset()
    is_own: bool = False
    is_contours: bool = False


def is_seg(header: Dataset) -> bool:
    return header.get("Modality") == "SEG" or header.get("SOPClassUID") in SEG_CLASSES


def is_structure_set(header: Dataset) -> bool:
    return header.get("SOPClassUID") == RTStructureSetStorage


def why_no_seg(header: Dataset) -> str:
    """Why an object of Modality SEG is no segmentation of voxels, '' if it is one: surfaces and
    height maps have the same modality."""
    kind = header.get("SOPClassUID") or ""
    if not kind or kind in SEG_CLASSES:
        return ""
    return f"{getattr(kind, 'name', '') or 'unknown class'}, not a segmentation of voxels"


def seg_header(path: Path, header: Dataset) -> SegHeader:
    frames = list(header.get("ReferencedFrameOfReferenceSequence") or [])
    studies = (i for frame in frames for i in frame.get("RTReferencedStudySequence") or [])
    references = list(header.get("ReferencedSeriesSequence") or [])
    references += (i for study in studies for i in study.get("RTReferencedSeriesSequence") or [])
    keywords = ("ReferencedInstanceSequence", "ContourImageSequence")
    images = (i for item in references for keyword in keywords for i in item.get(keyword) or [])
    return SegHeader(
        path,
        text(header, "SOPInstanceUID"),
        text(header, "PatientID"),
        text(header, "FrameOfReferenceUID") or _only_frame(header),
        tuple(uid for item in references if (uid := text(item, "SeriesInstanceUID"))),
        frozenset(uid for image in images if (uid := text(image, "ReferencedSOPInstanceUID"))),
        _is_own(header),
        is_structure_set(header),
    )


def _only_frame(header: Dataset) -> str:
    """The frame of reference that a structure set's regions lie in, '' where there are several."""
    regions = header.get("StructureSetROISequence") or []
    uids = {text(region, "ReferencedFrameOfReferenceUID") for region in regions}
    frames = header.get("ReferencedFrameOfReferenceSequence") or []
    uids = uids - {""} or {text(frame, "FrameOfReferenceUID") for frame in frames}
    return uids.pop() if len(uids) == 1 else ""


def source_uids(path: Path) -> frozenset[str]:
    """The images that a SEG's frames say they were derived from (PS3.3 C.7.6.16.2.6), or those on
    which contours were drawn.

    Raises:
        ValueError: the header is damaged.
    """
    facts = path.stat()
    return _source_uids(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)  # a second for 1000 frames, and it is asked for each series of a study
def _source_uids(path: Path, *_: int) -> frozenset[str]:
    keywords = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    header = read_dicom(path, specific_tags=[*keywords, "ROIContourSequence"])
    try:
        groups = [group for keyword in keywords for group in header.get(keyword) or []]
        for region in header.get("ROIContourSequence") or []:
            groups += region.get("ContourSequence") or []
        return frozenset(uid for group in groups for uid in _sources(group))
    except Exception as error:  # pydicom decodes values when they are asked for
        raise ValueError(f"damaged DICOM header ({short(error)})") from None


def _sources(group: Dataset) -> Iterator[str]:
    for derivation in group.get("DerivationImageSequence") or []:
        for image in derivation.get("SourceImageSequence") or []:
            yield text(image, "ReferencedSOPInstanceUID")
    for image in group.get("ContourImageSequence") or []:
        yield text(image, "ReferencedSOPInstanceUID")


def _is_own(header: Dataset) -> bool:
    """Whether this product made a segment of it, and no person corrected that since."""
    titles = ("Manufacturer", "ManufacturerModelName", "ContentCreatorName", "SeriesDescription")
    made_here = any(_is_our_name(text(header, title)) for title in titles)
    segments = [
        (text(segment, "SegmentAlgorithmType"), text(segment, "SegmentAlgorithmName"))
        for segment in header.get("SegmentSequence") or []
    ] + [
        (text(region, "ROIGenerationAlgorithm"), text(region, "ROIGenerationDescription"))
        for region in header.get("StructureSetROISequence") or []
    ]
    return any(
        kind not in DRAWN_BY_PEOPLE and (made_here or _is_our_name(name)) for kind, name in segments
    )


def _is_our_name(name: str) -> bool:
    return ALGORITHM in name or name.startswith("MultiPass^")


def attributes_of(segment: Dataset) -> dict[str, Any]:
    """A segment's label and codes, in the form of an entry of dcmqi's meta.json, which
    `structures.by_codes` and a site's rules read."""
    attributes: dict[str, Any] = {
        keyword: text(segment, keyword) for keyword in ("SegmentLabel", "SegmentDescription")
    }
    kinds = segment.get("SegmentedPropertyTypeCodeSequence") or []
    regions = segment.get("AnatomicRegionSequence") or []
    categories = segment.get("SegmentedPropertyCategoryCodeSequence") or []
    for keyword, owners in {
        "SegmentedPropertyCategoryCodeSequence": categories,
        "SegmentedPropertyTypeCodeSequence": kinds,
        "AnatomicRegionSequence": regions,
        # In the code that they modify, or beside it as some writers do.
        "SegmentedPropertyTypeModifierCodeSequence": _modifiers(
            "SegmentedPropertyTypeModifierCodeSequence", [*kinds, segment]
        ),
        "AnatomicRegionModifierSequence": _modifiers(
            "AnatomicRegionModifierSequence", [*regions, segment]
        ),
    }.items():
        if owners:
            attributes[keyword] = _code(owners[0])
    return attributes


def _modifiers(keyword: str, owners: list[Dataset]) -> list[Dataset]:
    return [item for owner in owners for item in owner.get(keyword) or []]


def _code(item: Dataset) -> dict[str, str]:
    return {
        "CodeValue": next((value for k in CODE_VALUES if (value := text(item, k))), ""),
        "CodingSchemeDesignator": text(item, "CodingSchemeDesignator"),
        "CodeMeaning": text(item, "CodeMeaning"),
    }
