"""Small CT series and DICOM SEG files, made of arrays by pydicom and highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from multipass.structures import PELVIS, SIDES

# How rows and columns of an axial slice lie in LPS, for each PatientPosition.
POSITIONS = {
    "HFS": (1, 0, 0, 0, 1, 0),
    "HFP": (-1, 0, 0, 0, -1, 0),
    "FFS": (-1, 0, 0, 0, 1, 0),
    "FFP": (1, 0, 0, 0, -1, 0),
    "HFDR": (0, -1, 0, 1, 0, 0),
    "HFDL": (0, 1, 0, -1, 0, 0),
    "FFDR": (0, -1, 0, -1, 0, 0),
    "FFDL": (0, 1, 0, 1, 0, 0),
}


def write_slices(
    folder: Path,
    array: np.ndarray,
    places: np.ndarray,
    orientation: Sequence[float] = POSITIONS["HFS"],
    spacing_mm: tuple[float, float] = (2.0, 1.5),
    **tags,
) -> list[Dataset]:
    """Writes a series of HU.

    Args:
        array: (columns, rows, slices).
        places: (slices, 3) ImagePositionPatient.
        spacing_mm: PixelSpacing, between rows and between columns.
        tags: of every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = (generate_uid() for _ in range(3))
    datasets = []
    for k, place in enumerate(places):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, generate_uid(), "CT"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientID, ds.PatientName, ds.SliceThickness = "P1", "P^1", "3"
        ds.PatientBirthDate = ds.PatientSex = ds.StudyID = ds.AccessionNumber = ""
        ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "20200101", "120000", ""
        ds.SeriesNumber, ds.InstanceNumber, ds.ImageType = 2, k + 1, ["ORIGINAL", "PRIMARY"]
        ds.ImagePositionPatient = [f"{v:.5f}" for v in place]
        ds.ImageOrientationPatient, ds.PixelSpacing = list(orientation), list(spacing_mm)
        ds.Columns, ds.Rows = array.shape[:2]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
        ds.PixelData = np.ascontiguousarray(array[:, :, k].T).astype("<i2").tobytes()
        for keyword, value in tags.items():
            setattr(ds, keyword, value)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
        datasets.append(ds)
    return datasets


def write_seg(
    path: Path, label: np.ndarray, slices: Sequence[Dataset], kind: str = "BINARY", **options
) -> Dataset:
    """Writes a SEG of the table's structures, by highdicom.

    Args:
        label: (columns, rows, slices), 1 + k for PELVIS[k]; or (..., 5) fractions.
        kind: SegmentationType.
    """
    descriptions = []
    for number, structure in enumerate(PELVIS, 1):
        one = highdicom.seg.SegmentDescription(
            number,
            structure.name,
            CodedConcept("123037004", "SCT", "Anatomical Structure"),
            CodedConcept(structure.value, structure.scheme, structure.meaning),
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        if structure.side:
            side = SIDES[structure.side]
            one.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                CodedConcept(side.value, side.scheme_designator, side.meaning)
            ]
        descriptions.append(one)
    axes = (2, 1, 0, 3)[: label.ndim]
    seg = highdicom.seg.Segmentation(
        source_images=list(slices),
        pixel_array=np.ascontiguousarray(label.transpose(axes)),
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=300,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="hospital",
        manufacturer_model_name="station",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return pydicom.dcmread(path)


def bones(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(HU, label) of five boxes in water and air: left ones at high indices of the first axis."""
    nx, ny, nz = size
    label = np.zeros(size, np.uint8)
    middle = slice(nz // 4, nz - nz // 4)
    for value, (low, high) in enumerate(
        [(0.70, 0.85), (0.15, 0.30), (0.45, 0.55), (0.88, 0.95), (0.05, 0.12)], 1
    ):
        label[round(low * nx) : round(high * nx), ny // 4 : ny // 2, middle] = value
    hounsfield = np.full(size, -1000, np.int16)
    hounsfield[1:-1, 1:-1] = 20
    hounsfield[label > 0] = 700
    return hounsfield, label
