"""Which SEG is a reference of which series: what it names, its patient, its maker, copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import POSITIONS, bones, write_seg, write_slices
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from multipass.dicom.belonging import fitting
from multipass.dicom.choice import choose, fit
from multipass.dicom.ct import read_ct
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import Found, Series, find
from multipass.geometry.volume import upright

SIZE = (24, 20, 6)
PLACES = np.arange(SIZE[2])[:, None] * np.array([0, 0, 3.0])


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("belonging")
    hounsfield, label = bones(SIZE)
    slices = write_slices(folder / "ct", hounsfield, PLACES, POSITIONS["HFS"])
    write_seg(folder / "seg.dcm", label, slices)
    return folder


@pytest.fixture
def study(tmp_path, template) -> Path:
    shutil.copytree(template, tmp_path / "study")
    return tmp_path / "study"


def edited(path: Path, **values) -> Dataset:
    """The file with other values; None takes an attribute out."""
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return dataset


def twin(study: Path, name: str, **values) -> None:
    """A copy of the CT with other values; images of its own."""
    shutil.copytree(study / "ct", study / name)
    for path in (study / name).iterdir():
        edited(path, SOPInstanceUID=generate_uid(), **values)


def taken(study: Path) -> tuple[Found, dict[str, list[str]], list[str]]:
    """(what is there, the SEG names of each series, all notes); series by folder."""
    found = find(study)
    names, notes = {}, []
    for one in fit(found):
        kept, said = fitting(found.seg, one, fit(found))
        names[folder_of(one)] = [header.path.name for header in kept]
        notes += said
    return found, names, notes


def folder_of(series: Series) -> str:
    return series.slices[0].path.parent.name


def without_sources(dataset: Dataset) -> None:
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.pop("DerivationImageSequence", None)
    dataset.pop("ReferencedSeriesSequence", None)


def test_a_segmentation_of_another_series_is_none_of_the_only_one(study):
    dataset = pydicom.dcmread(study / "seg.dcm")
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    dataset.save_as(study / "seg.dcm")
    assert taken(study)[1:] == ({"ct": []}, ["seg.dcm: belongs to another series"])


def test_frames_name_the_series_where_the_header_does_not(study):
    twin(study, "thick", SeriesInstanceUID=generate_uid())
    edited(study / "seg.dcm", ReferencedSeriesSequence=None)
    found, names, notes = taken(study)
    assert names == {"ct": ["seg.dcm"], "thick": []}
    assert notes == ["seg.dcm: belongs to the images of another series"]
    assert folder_of(choose(found)[0]) == "ct"


def test_one_that_names_nothing_belongs_to_the_frame_of_reference_of_its_patient(study):
    twin(study, "other", SeriesInstanceUID=generate_uid(), FrameOfReferenceUID="1.2.3")
    dataset = pydicom.dcmread(study / "seg.dcm")
    without_sources(dataset)
    dataset.save_as(study / "seg.dcm")
    assert taken(study)[1] == {"ct": ["seg.dcm"], "other": []}
    edited(study / "seg.dcm", PatientID="P2")
    assert taken(study)[1]["ct"] == []
    edited(study / "seg.dcm", PatientID="P1", FrameOfReferenceUID=None)
    found, names, notes = taken(study)
    assert names == {"ct": [], "other": []}
    assert "does not say to which of several series it belongs" in notes[0]


def test_the_second_series_that_is_named_counts_as_the_first(study):
    dataset = pydicom.dcmread(study / "seg.dcm")
    pet, image = Dataset(), Dataset()
    pet.SeriesInstanceUID = generate_uid()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.3", generate_uid()
    pet.ReferencedInstanceSequence = [image]
    dataset.ReferencedSeriesSequence = [pet, *dataset.ReferencedSeriesSequence]
    dataset.save_as(study / "seg.dcm")
    assert taken(study)[1] == {"ct": ["seg.dcm"]}


@pytest.mark.parametrize("place", ["SeriesDescription", "SegmentAlgorithmName"])
def test_our_own_segmentation_is_no_reference_unless_a_person_corrected_it(study, place):
    dataset = pydicom.dcmread(study / "seg.dcm")
    for segment in dataset.SegmentSequence:
        segment.SegmentAlgorithmType = "AUTOMATIC"
    owners = dataset.SegmentSequence if place == "SegmentAlgorithmName" else [dataset]
    for owner in owners:
        setattr(owner, place, "Pelvic bones, 3D MultiPass U-Net 1.0")
    dataset.save_as(study / "seg.dcm")
    found, names, notes = taken(study)
    assert names == {"ct": []} and "automatic segmentation by this product" in notes[0]
    for segment in dataset.SegmentSequence:
        segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
    dataset.save_as(study / "seg.dcm")
    assert taken(study)[1] == {"ct": ["seg.dcm"]}


def test_a_copy_is_left_out_and_the_same_mask_in_another_file_counts_once(study):
    shutil.copy(study / "seg.dcm", study / "zcopy.dcm")
    assert taken(study)[1:] == ({"ct": ["seg.dcm"]}, ["zcopy.dcm: a copy of seg.dcm"])
    edited(study / "zcopy.dcm", SOPInstanceUID=generate_uid())
    found = find(study)
    ct = read_ct(choose(found)[0])
    reference = read_reference(found.seg, upright(ct.volume).grid, ct=ct)
    assert len(reference.segments) == 5
    assert "zcopy.dcm has the same left hip bone once more" in reference.notes


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.5", "Surface Segmentation Storage"),
        ("1.2.840.10008.5.1.4.1.1.66.8", "not a segmentation of voxels"),
    ],
)
def test_other_objects_of_the_modality_are_left_out_by_name(study, kind, words):
    shutil.copy(study / "seg.dcm", study / "surface.dcm")
    edited(study / "surface.dcm", SOPClassUID=kind, SOPInstanceUID=generate_uid())
    found = find(study)
    assert [header.path.name for header in found.seg] == ["seg.dcm"]
    assert words in found.others[0][1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"PatientID": "P2"}, "2 patients"),
        ({"StudyInstanceUID": "1.2.3"}, "2 studies"),
        ({"FrameOfReferenceUID": "1.2.4"}, "2 frames of reference"),
    ],
)
def test_one_series_uid_of_two_patients_is_two_series(study, values, words):
    twin(study, "other", **values)
    for k, path in enumerate(sorted((study / "other").iterdir())):
        edited(path, ImagePositionPatient=[0, 0, 3.0 * (SIZE[2] + k)])
    found, names, _ = taken(study)
    assert [len(series.slices) for series in found.ct] == [SIZE[2]] * 2
    assert all(words in series.notes[0] for series in found.ct)
    assert names == {"ct": ["seg.dcm"], "other": []}
    assert folder_of(choose(found)[0]) == "ct"


def test_a_frame_of_reference_for_each_file_is_an_anonymisers_habit(study):
    for path in (study / "ct").iterdir():
        edited(path, FrameOfReferenceUID=generate_uid())
    (series,) = find(study).ct
    assert len(series.slices) == SIZE[2]


def test_linked_folders_are_entered_once(tmp_path, study):
    patient = tmp_path / "patient"
    patient.mkdir()
    (patient / "CT").symlink_to(study / "ct", target_is_directory=True)
    (patient / "again").symlink_to(patient, target_is_directory=True)
    (series,) = find(patient).ct
    assert len(series.slices) == SIZE[2]
