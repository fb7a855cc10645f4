"""Good SEG files with headers that writers differ in: all are read as the plain one."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import POSITIONS, bones, write_seg, write_slices
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits
from pydicom.uid import DeflatedExplicitVRLittleEndian

from multipass.data.prepare import prepare_patient
from multipass.dicom import dcmqi
from multipass.dicom.choice import choose
from multipass.dicom.ct import CT, read_ct
from multipass.dicom.seg_header import SegHeader
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import find
from multipass.structures import PELVIS

SIZE = (24, 20, 8)
PLACES = np.arange(SIZE[2])[:, None] * np.array([0, 0, 3.0]) - (20, 20, 400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("headers")


@pytest.fixture(scope="module")
def label(folder) -> np.ndarray:
    hounsfield, label = bones(SIZE)
    slices = write_slices(folder / "ct", hounsfield, PLACES, POSITIONS["HFS"])
    write_seg(folder / "seg.dcm", label, slices)
    return label


@pytest.fixture(scope="module")
def ct(folder, label) -> CT:
    return read_ct(choose(find(folder / "ct"))[0])


def read(path: Path, ct: CT):
    return read_reference([SegHeader(path)], ct.volume.grid, ct=ct)


def measures(dataset: Dataset) -> Dataset:
    return dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def thickness_is_not_the_spacing(dataset: Dataset) -> None:
    measures(dataset).pop("SpacingBetweenSlices", None)
    measures(dataset).SliceThickness = 5


def wrong_spacing(dataset: Dataset) -> None:
    measures(dataset).SpacingBetweenSlices = 3.09


def negative_spacing(dataset: Dataset) -> None:
    measures(dataset).SpacingBetweenSlices = -3


def no_thickness(dataset: Dataset) -> None:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        measures(dataset).pop(keyword, None)


def orientation_in_each_frame(dataset: Dataset) -> None:
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for group in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            setattr(frame, group, copy.deepcopy(shared[group].value))
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence


def numbers_with_gaps(dataset: Dataset) -> None:
    new = {1: 2, 2: 5, 3: 9, 4: 40, 5: 300}
    for segment in dataset.SegmentSequence:
        segment.SegmentNumber = new[segment.SegmentNumber]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        identification = frame.SegmentIdentificationSequence[0]
        number = new[identification.ReferencedSegmentNumber]
        identification.ReferencedSegmentNumber = number
        values = list(frame.FrameContentSequence[0].DimensionIndexValues)
        frame.FrameContentSequence[0].DimensionIndexValues = [number, *values[1:]]


def no_algorithm_and_no_category(dataset: Dataset) -> None:
    for segment in dataset.SegmentSequence:
        for keyword in ("SegmentAlgorithmType", "SegmentedPropertyCategoryCodeSequence"):
            segment.pop(keyword, None)


def uids_with_leading_zeros(dataset: Dataset) -> None:
    dataset.StudyInstanceUID = dataset.SOPInstanceUID = "1.2.003.04"
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.003.05"


def nested(dataset: Dataset) -> None:
    inner = Dataset()
    for _ in range(40):
        outer = Dataset()
        outer.SourceImageSequence = [inner]
        inner = outer
    dataset.SourceImageSequence = [inner]


def deflated(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


EDITS = [
    thickness_is_not_the_spacing,
    wrong_spacing,
    negative_spacing,
    no_thickness,
    orientation_in_each_frame,
    numbers_with_gaps,
    no_algorithm_and_no_category,
    uids_with_leading_zeros,
    nested,
    deflated,
]


@pytest.mark.parametrize("edit", EDITS)
def test_the_header_changes_nothing(folder, label, ct, tmp_path, edit: Callable):
    dataset = pydicom.dcmread(folder / "seg.dcm")
    edit(dataset)
    dataset.save_as(tmp_path / "seg.dcm")
    reference = read(tmp_path / "seg.dcm", ct)
    assert [s.structure for s in reference.segments] == list(PELVIS)
    assert np.array_equal(reference.labels(), label)


def test_a_rounded_pixel_spacing_is_the_scans(label, tmp_path):
    hounsfield, _ = bones(SIZE)
    slices = write_slices(tmp_path / "ct", hounsfield, PLACES, spacing_mm=(2.033, 1.541))
    dataset = write_seg(tmp_path / "seg.dcm", label, slices)
    measures(dataset).PixelSpacing = [2.0, 1.5]
    dataset.save_as(tmp_path / "seg.dcm")
    scan = read_ct(choose(find(tmp_path / "ct"))[0])
    reference = read(tmp_path / "seg.dcm", scan)
    assert np.array_equal(reference.labels(), label)
    assert any("1.5 mm is read as the scan's, 1.541 mm" in note for note in reference.notes)
    # A spacing that no rounding explains is the file's own lattice.
    measures(dataset).PixelSpacing = [2.2, 1.7]
    dataset.save_as(tmp_path / "seg.dcm")
    assert not np.array_equal(read(tmp_path / "seg.dcm", scan).labels(), label)


@pytest.mark.parametrize("empty", [None, 1, 3])
def test_fractions_of_several_segments_stay_apart(folder, label, ct, empty):
    slices = [pydicom.dcmread(path) for path in sorted((folder / "ct").iterdir())]
    rng = np.random.default_rng(0)
    parts = np.stack([(label == k) * rng.integers(40, 200, SIZE) / 200 for k in range(1, 6)], -1)
    if empty:
        parts[..., empty - 1] = 0
    options = {"fractional_type": "OCCUPANCY", "max_fractional_value": 200}
    write_seg(folder / "fractions.dcm", parts, slices, "FRACTIONAL", **options)
    reference = read(folder / "fractions.dcm", ct)
    for k, segment in enumerate(reference.segments):
        found = np.zeros(SIZE, np.float32)
        found[segment.span] = segment.mask
        np.testing.assert_allclose(found, parts[..., k], atol=0.003)


def test_a_label_map_of_numbers_with_gaps(folder, label, ct):
    slices = [pydicom.dcmread(path) for path in sorted((folder / "ct").iterdir())]
    dataset = write_seg(folder / "map.dcm", label, slices, "LABELMAP")
    new = {0: 0, 1: 7, 2: 3, 3: 100, 4: 1, 5: 255}
    for segment in dataset.SegmentSequence:
        segment.SegmentNumber = new[segment.SegmentNumber]
    dataset.PixelData = np.array(list(new.values()), np.uint8)[dataset.pixel_array].tobytes()
    dataset.save_as(folder / "map.dcm")
    assert np.array_equal(read(folder / "map.dcm", ct).labels(), label)


def cut_off(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-20]


def other_rows(dataset: Dataset) -> None:
    dataset.Rows -= 1


def no_maximum(dataset: Dataset) -> None:
    del dataset.MaximumFractionalValue


def fractional_bits(dataset: Dataset) -> None:
    dataset.SegmentationType = "FRACTIONAL"


def no_place(dataset: Dataset) -> None:
    place = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    place.ImagePositionPatient = None


def unknown_value(dataset: Dataset) -> None:
    dataset.PixelData = bytes(40 if value == 2 else value for value in dataset.PixelData)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("seg.dcm", cut_off, "bytes of pixels where its tags announce"),
        ("seg.dcm", other_rows, "bytes of pixels where its tags announce"),
        ("seg.dcm", fractional_bits, "SegmentationType FRACTIONAL of 1 bits a pixel"),
        ("seg.dcm", no_place, "no ImagePositionPatient"),
        ("fractions.dcm", no_maximum, "no MaximumFractionalValue"),
        ("map.dcm", unknown_value, "pixels of value 40, which no segment has"),
    ],
)
def test_damage_is_said_in_one_sentence(folder, label, ct, tmp_path, name, damage, words):
    slices = [pydicom.dcmread(path) for path in sorted((folder / "ct").iterdir())]
    if name == "seg.dcm":
        dataset = pydicom.dcmread(folder / name)
    elif name == "map.dcm":
        dataset = write_seg(tmp_path / name, label, slices, "LABELMAP")
    else:
        parts = np.stack([label == k for k in range(1, 6)], -1) * 0.5
        dataset = write_seg(
            tmp_path / name, parts, slices, "FRACTIONAL", fractional_type="OCCUPANCY"
        )
    damage(dataset)
    dataset.save_as(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: .*{words}"):
        read(tmp_path / name, ct)


def with_many_segments(path: Path, count: int) -> Dataset:
    """Nodes of one voxel each beside the five bones."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    more = []
    for number in range(6, count + 1):
        segment = copy.deepcopy(dataset.SegmentSequence[2])
        segment.SegmentNumber, segment.SegmentLabel = number, f"node {number}"
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.CodeValue, kind.CodingSchemeDesignator = str(number), "99NODE"
        kind.CodeMeaning = f"Node {number}"
        dataset.SegmentSequence.append(segment)
        frame = copy.deepcopy(frames[0])
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber = number
        values = list(frame.FrameContentSequence[0].DimensionIndexValues)
        frame.FrameContentSequence[0].DimensionIndexValues = [number, *values[1:]]
        frames.append(frame)
        one = np.zeros_like(pixels[0])
        one.flat[number] = 1
        more.append(one)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = pack_bits(np.concatenate([pixels, more]).ravel(), pad=True)
    return dataset


def test_300_segments_are_300_structures_and_too_many_for_a_patient_file(
    folder, label, ct, tmp_path
):
    patient = tmp_path / "patient"
    (patient / "im_3").mkdir(parents=True)
    (patient / "im_1").symlink_to(folder / "ct", target_is_directory=True)
    path = patient / "im_3" / "seg.dcm"
    with_many_segments(folder / "seg.dcm", 300).save_as(path)
    reference = read(path, ct)
    labels = reference.labels()
    assert len(reference.segments) == labels.max() == 300
    assert np.array_equal(np.where(labels > 5, 0, labels), label)
    with pytest.raises(ValueError, match="300 structures, a patient file holds 255"):
        prepare_patient(patient, tmp_path)


def test_a_command_that_hangs_is_ended_in_bounded_time(folder, ct, label, monkeypatch):
    limits = []

    def hang(*_, timeout: float, **__):
        limits.append(timeout)
        raise subprocess.TimeoutExpired("segimage2itkimage", timeout)

    monkeypatch.setattr(dcmqi.subprocess, "run", hang)
    with pytest.raises(ValueError, match="seg.dcm: dcmqi's segimage2itkimage did not end within"):
        read(folder / "seg.dcm", ct)
    assert len(limits) == 1 and limits[0] < 120
