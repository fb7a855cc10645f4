"""The synthetic cohort: anatomy, labels that fit the picture, DICOM that reads back, same bytes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage

from multipass.geometry.volume import Volume, upright
from multipass.phantom import Subject, draw_recipe, make_subject, write_subject
from multipass.phantom.anatomy.lattice import Block
from multipass.phantom.anatomy.pathology import add_lesions
from multipass.phantom.anatomy.pose import Pose
from multipass.phantom.anatomy.shapes import FAR_MM
from multipass.phantom.cohort import Options, write_cohort
from multipass.phantom.recipe import patient_size
from multipass.phantom.scanner.acquisition import outside_circle
from multipass.phantom.scanner.canvas import Canvas
from multipass.phantom.writer import flipped
from multipass.structures import PELVIS

QUICK = {"matrix": 64, "size": "small"}
WRITTEN = {"HFS": (1, 0, 0, 0, 1, 0), "HFP": (-1, 0, 0, 0, -1, 0), "FFS": (-1, 0, 0, 0, 1, 0)}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(5, 0, **QUICK, position="HFS", noise_hu=10.0)


def centre_mm(subject: Subject, value: int) -> np.ndarray:
    index = np.argwhere(subject.label == value).mean(axis=0)
    return subject.volume.grid.affine[:3, :3] @ index + subject.volume.grid.affine[:3, 3]


def read_ct(folder: Path) -> tuple[np.ndarray, list[pydicom.Dataset]]:
    """HU (X, Y, Z) and the slices, sorted along the normal."""
    files = [pydicom.dcmread(p) for p in folder.glob("*.dcm")]
    turn = np.array(files[0].ImageOrientationPatient, float)
    normal = np.cross(turn[:3], turn[3:])
    files.sort(key=lambda d: float(np.dot(normal, d.ImagePositionPatient)))
    hu = [d.pixel_array.T * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in files]
    return np.stack(hu, axis=-1), files


def read_mask(folder: Path) -> tuple[dict[int, str], hd.Volume]:
    (path,) = folder.glob("*.dcm")
    seg = hd.seg.segread(path)
    names = {d.SegmentNumber: d.SegmentLabel for d in seg.SegmentSequence}
    return names, seg.get_volume(combine_segments=True)


def test_every_structure_is_where_it_belongs(subject):
    left_hip, right_hip, sacrum, left_femur, right_femur = (
        centre_mm(subject, v) for v in range(1, 6)
    )
    assert right_femur[0] < right_hip[0] < sacrum[0] < left_hip[0] < left_femur[0]
    assert sacrum[1] > max(left_hip[1], right_hip[1])  # behind
    assert sacrum[2] > max(left_hip[2], right_hip[2])  # above
    assert max(left_femur[2], right_femur[2]) < min(left_hip[2], right_hip[2])


def test_sizes_are_human():
    subject = make_subject(5, 1, matrix=160, size="small", slice_step_mm=3.0, implant="")
    ml = [(subject.label == v).sum() * subject.volume.grid.voxel_ml for v in range(1, 6)]
    assert 230 < ml[0] < 520 and 230 < ml[1] < 520 and 120 < ml[2] < 320
    hips = np.argwhere(np.isin(subject.label, (1, 2)))
    wide, deep, tall = np.ptp(hips, axis=0) * subject.volume.grid.spacing_mm
    assert 220 < wide < 330 and 115 < deep < 190 and 170 < tall < 260


def test_label_fits_the_picture():
    subject = make_subject(
        5, 2, matrix=192, size="small", noise_hu=0.0, implant="", calcifications=0, blur_mm=0.0,
        sharpness=0.0,
        slice_step_mm=3.0, slice_thickness_mm=3.0, vessel_hu=40.0, cortex_hu=1200.0,
        cortex_mm=2.0,
    )  # fmt: skip
    inside = subject.volume.array[subject.label > 0]
    assert np.mean(inside > 100) > 0.85
    hu = subject.volume.array.astype(float)
    solid = subject.label == 4
    scores = [
        np.corrcoef(np.roll(solid, shift, axis)[10:-10].ravel(), (hu > 300)[10:-10].ravel())[0, 1]
        for axis in range(3)
        for shift in (-1, 0, 1)
    ]
    for axis in range(3):
        before, here, after = scores[3 * axis : 3 * axis + 3]
        assert here > before and here > after


def test_same_seed_same_subject_whatever_the_cohort(subject):
    again = make_subject(5, 0, **QUICK, position="HFS", noise_hu=10.0)
    np.testing.assert_array_equal(again.volume.array, subject.volume.array)
    np.testing.assert_array_equal(again.label, subject.label)
    assert draw_recipe(5, 0) != draw_recipe(5, 1) != draw_recipe(6, 1)


def test_metal_is_not_bone():
    fixed = {"matrix": 96, "size": "small", "noise_hu": 5.0}
    subject = make_subject(5, 3, **fixed, implant="two prostheses")
    whole = make_subject(5, 3, **fixed, implant="")
    metal = subject.volume.array >= 3000
    assert metal.sum() > 50
    assert (subject.label[metal] > 0).mean() < 0.35  # partly filled voxels only
    for femur in (4, 5):
        assert 0 < (subject.label == femur).sum() < (whole.label == femur).sum()


def test_no_bone_is_labelled_where_padding_hides_it():
    narrow = {"matrix": 64, "size": "small", "pixel_mm": 3.6, "signed": True}
    hidden, whole = (make_subject(5, 3, **narrow, padding=padding) for padding in (-2000, None))
    outside = outside_circle(64, 64)
    assert whole.label[outside].any() and not hidden.label[outside].any()
    np.testing.assert_array_equal(hidden.label[~outside], whole.label[~outside])


@pytest.mark.parametrize("position", ["HFS", "HFP", "FFS"])
@pytest.mark.parametrize(("slope", "intercept", "signed"), [(1, -1024, True), (0.5, -1000, False)])
def test_dicom_reads_back(tmp_path, subject, position, slope, intercept, signed):
    recipe = replace(
        subject.recipe,
        slope=slope, intercept=intercept, signed=signed, padding=None, file_order="shuffled",
    )  # fmt: skip
    kept = replace(subject, position=position, recipe=recipe)
    write_subject(tmp_path / "Patient_01", kept)
    assert [p.name for p in tmp_path.iterdir()] == ["Patient_01"]
    hu, files = read_ct(tmp_path / "Patient_01" / "im_1")
    first = files[0]
    assert first.SOPClassUID == CTImageStorage and first.PatientPosition == position
    assert tuple(np.array(first.ImageOrientationPatient, float)) == WRITTEN[position]
    assert len({d.SOPInstanceUID for d in files}) == len(files) == subject.label.shape[2]
    turn = np.array(first.ImageOrientationPatient, float)
    signs = (int(turn[0]), int(turn[4]), int(turn[0] * turn[4]))
    expected = flipped(subject.volume, signs)
    np.testing.assert_allclose(hu, np.maximum(expected.array, intercept), atol=0.51 * slope)
    np.testing.assert_allclose(first.ImagePositionPatient, expected.grid.origin_mm, atol=1e-5)
    np.testing.assert_array_equal(upright(expected).array, subject.volume.array)

    names, mask = read_mask(tmp_path / "Patient_01" / "im_3")
    assert sorted(names.values()) == sorted(s.name for s in PELVIS)
    values = np.zeros(6, np.uint8)
    for number, name in names.items():
        values[number] = 1 + [s.name for s in PELVIS].index(name)
    # highdicom's array runs (slice, row, column) with an affine to LPS millimetres
    truth = flipped(Volume(subject.label, subject.volume.grid), signs)
    index = np.argwhere(mask.array)
    place = index @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    voxel = (place - truth.grid.origin_mm) @ truth.grid.matrix / truth.grid.spacing_mm
    assert np.abs(voxel - np.rint(voxel)).max() < 0.01
    found = np.zeros_like(truth.array)
    found[tuple(np.rint(voxel).astype(int).T)] = values[mask.array[tuple(index.T)]]
    np.testing.assert_array_equal(found, truth.array)


def test_segmentation_skips_empty_frames_and_points_to_the_slices(tmp_path, subject):
    write_subject(tmp_path / "a", subject)
    (path,) = (tmp_path / "a" / "im_3").glob("*.dcm")
    seg = pydicom.dcmread(path)
    frames = sum(int((subject.label == v).any(axis=(0, 1)).sum()) for v in range(1, 6))
    assert seg.NumberOfFrames == frames
    referenced = {
        item.ReferencedSOPInstanceUID
        for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    slices = {pydicom.dcmread(p).SOPInstanceUID for p in (tmp_path / "a" / "im_1").glob("*")}
    assert referenced and referenced <= slices
    codes = {
        (d.SegmentedPropertyTypeCodeSequence[0].CodeValue, d.SegmentLabel)
        for d in seg.SegmentSequence
    }
    assert codes == {(s.value, s.name) for s in PELVIS}


def test_same_bytes_for_any_number_of_jobs_and_segments_numbered_differently(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"seed": 3, "matrix": 48, "size": "small"}
    list(write_cohort(Options(output=one, patients=3, **options)))
    lines = list(write_cohort(Options(output=two, patients=2, jobs=2, **options)))
    assert [line.split(":")[0] for line in lines] == ["Patient_01", "Patient_02"]
    names = sorted(p.relative_to(two) for p in two.rglob("*.dcm"))
    assert names == sorted(
        p.relative_to(one) for p in one.rglob("*.dcm") if "Patient_03" not in p.parts
    )
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    orders = {tuple(read_mask(p / "im_3")[0].values()) for p in one.glob("Patient_*")}
    assert len(orders) > 1
    kept = list(write_cohort(Options(output=one, patients=3, **options)))
    assert all("kept" in line for line in kept)
    with pytest.raises(ValueError, match="holds patients of --seed 3, not 4"):
        list(write_cohort(Options(output=one, patients=3, **{**options, "seed": 4})))
    # Another name is another cohort in the same folder.
    list(write_cohort(Options(output=one, patients=1, name="View", **{**options, "seed": 4})))
    assert (one / "View_01").is_dir() and (one / "Patient_01").is_dir()


def test_bad_options_get_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "multipass.phantom", "--patients", "1", "--output"]
    result = subprocess.run(
        [*command, str(tmp_path / "file")], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1 and "--output" in result.stderr
    with pytest.raises(ValueError, match="matrix"):
        list(write_cohort(Options(output=tmp_path / "x", matrix=8)))
    with pytest.raises(ValueError, match="name"):
        list(write_cohort(Options(output=tmp_path / "x", name="../x")))


@pytest.mark.parametrize("arms", ["arms up", "arms down"])
def test_a_whole_body_has_bone_from_crown_to_toes_and_a_mask_from_hips_to_knees(arms):
    subject = make_subject(
        3, 0, matrix=64, size="body", limbs=arms, scale=1.0, bottom_mm=-1000.0, top_mm=840.0,
        slice_step_mm=10.0, slice_thickness_mm=2.0, lattice_mm=4.0, tissue_mm=8.0, pixel_mm=8.5,
        cortex_hu=1200.0, noise_hu=5.0, fat_mm=20.0, implant="", cables=0, blur_mm=0.0,
        sharpness=0.0,
    )  # fmt: skip
    heights = -1000.0 + 10.0 * np.arange(subject.label.shape[2])
    labelled = heights[subject.label.any(axis=(0, 1))]
    assert -490 < labelled.min() < -420 and 60 < labelled.max() < 160
    volume = subject.volume.array
    for low, high in ((-920, -850), (-760, -500), (200, 300), (420, 500), (560, 640), (700, 780)):
        part = volume[:, :, (heights > low) & (heights < high)]
        assert (part > 250).any(axis=(0, 1)).mean() > 0.6
    assert not (volume[:, :, heights < -980] > 400).any()
    air = np.count_nonzero(volume[:, :, heights > 600] < -500) / volume[:, :, heights > 600].size
    assert 0.8 < air < 0.97  # a head, and arms or none
    shoulders = np.ptp(np.argwhere(volume[:, :, (heights > 480) & (heights < 520)] > -300)[:, 0])
    assert 40 < shoulders < 62


def test_a_mixed_cohort_has_a_sixth_of_whole_bodies_and_the_other_patients_as_ever():
    sizes = [patient_size(7, index, "mixed") for index in range(600)]
    assert set(sizes) == {"body", None} and 75 < sizes.count("body") < 125
    assert patient_size(7, 0, None) is None and patient_size(7, 0, "abdomen") == "abdomen"


def test_any_height_can_be_scanned():
    """Up to below the lowest ribs there are none to paint."""
    for top_mm in (185.0, 195.0, 205.0):
        subject = make_subject(0, 0, matrix=32, size="small", top_mm=top_mm, scale=1.0)
        assert subject.label.any()


def test_fat_ends_with_the_body_and_not_with_a_bones_box():
    """Far from a bone its distance is a lower bound, which must not pull the outline outwards."""
    canvas = Canvas(Pose(draw_recipe(0, 0, 32, "small")))
    before = canvas.outline.copy()
    start, shape = canvas.block.start, canvas.block.array.shape
    far = Block(start, np.full(shape, FAR_MM, np.float32), canvas.block.step_mm)
    canvas.cover([far], 5.0)
    np.testing.assert_array_equal(canvas.outline, before)


def test_lesions_start_within_the_bone():
    points = np.indices((30, 30, 30)) - 15.0
    bone = Block(np.zeros(3, int), np.sqrt((points**2).sum(0)) - 12, 2.0)
    core = np.full(bone.array.shape, 200.0, np.float32)
    add_lesions(core, bone, 8, np.random.default_rng(3))
    changed = core != 200
    assert changed.any() and core.min() >= -20 and core.max() <= 1300
    assert bone.array[changed].max() < 7  # the largest radius, in lattice steps
