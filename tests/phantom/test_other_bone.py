"""Bone of no structure: where it lies, that it changes nothing else, and its segment."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from multipass.dicom.choice import choose
from multipass.dicom.ct import read_ct
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import find
from multipass.geometry.volume import upright
from multipass.phantom import Subject, draw_labelled, make_subject, write_subject
from multipass.phantom.cohort import Options, write_cohort
from multipass.structures import OTHER_BONE

QUICK = {"matrix": 96, "size": "small"}
CLEAR = {"noise_hu": 3.0, "implant": "", "calcifications": 0, "cortex_hu": 1200.0, "padding": None}
CLEAR |= {"pixel_mm": 6.0, "centre_mm": (0.0, 0.0), "fat_mm": 15.0}  # arms within the field
CLEAR |= {"bowel": (0.5, 0.3, 0.0), "vessel_hu": 40.0, "bladder_hu": 5.0, "cables": 0}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(5, 4, **QUICK, **CLEAR, arms=True, slice_step_mm=3.0)


def test_other_bone_is_bright_and_no_structure(subject):
    assert subject.other_bone.any()
    assert not (subject.other_bone & (subject.label > 0)).any()
    assert np.mean(subject.volume.array[subject.other_bone] > 100) > 0.8


def test_hardly_any_bright_voxel_is_left_without_a_label(subject):
    bright = subject.volume.array > 500
    known = ndimage.binary_dilation((subject.label > 0) | subject.other_bone)
    assert bright.sum() > 1000 and known[bright].mean() > 0.99


def test_arms_beside_the_trunk_are_other_bone(subject):
    aside = make_subject(5, 4, **QUICK, **CLEAR, arms=False, slice_step_mm=3.0)
    grown = subject.other_bone & ~aside.other_bone
    x = np.argwhere(grown)[:, 0]
    hips = np.argwhere(np.isin(subject.label, (1, 2)))[:, 0]
    assert grown.any() and ((x < hips.min()) | (x > hips.max())).all()
    np.testing.assert_array_equal(aside.label, subject.label)


def test_metal_is_no_other_bone():
    subject = make_subject(5, 3, **QUICK, noise_hu=5.0, implant="two prostheses")
    metal = subject.volume.array >= 3000
    assert metal.sum() > 50 and not (metal & subject.other_bone).any()


def test_arrays_alone_are_the_patient_that_is_written(subject):
    volume, label = draw_labelled(5, 4, **QUICK, **CLEAR, arms=True, slice_step_mm=3.0)
    np.testing.assert_array_equal(volume.array, subject.volume.array)
    np.testing.assert_array_equal(label == 6, subject.other_bone)
    np.testing.assert_array_equal(np.where(label == 6, 0, label), subject.label)
    assert volume.array.dtype == np.int16 and label.dtype == np.uint8
    again, _ = pickle.loads(pickle.dumps((volume, label)))
    np.testing.assert_array_equal(again.array, volume.array)


def test_its_segment_is_read_back_and_the_series_is_the_same_without(tmp_path, subject):
    write_subject(tmp_path / "with", subject, other_bone=True)
    write_subject(tmp_path / "without", subject)
    found = find(tmp_path / "with")
    volume = upright(read_ct(choose(found)[0]).volume)
    reference = read_reference(found.seg, volume.grid)
    names = [segment.structure.name for segment in reference.segments]
    assert names[-1] == OTHER_BONE.name and len(names) == 6
    labels = reference.labels()
    np.testing.assert_array_equal(labels == 6, subject.other_bone)
    np.testing.assert_array_equal(np.where(labels == 6, 0, labels), subject.label)
    one, two = (sorted((tmp_path / k / "im_1").iterdir()) for k in ("with", "without"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_patients_with_and_without_the_segment_are_not_mixed(tmp_path: Path):
    options = {"output": tmp_path / "a", "patients": 1, "matrix": 32, "size": "small"}
    list(write_cohort(Options(**options)))
    with pytest.raises(ValueError, match="holds patients of --other-bone none, not True"):
        list(write_cohort(Options(**options, other_bone=True)))
