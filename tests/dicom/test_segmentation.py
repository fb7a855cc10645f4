"""DICOM SEG in: kinds of SEG, overlaps, parts outside of the scan, site rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import pack_bits

from multipass.dicom.reference import Reference, Segment, marked_cut, share_overlaps
from multipass.dicom.seg_header import SegHeader
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import find
from multipass.geometry.field_of_view import FieldOfView
from multipass.geometry.volume import Grid
from multipass.phantom import make_subject, write_subject
from multipass.site_rules import read_rules
from multipass.structures import PELVIS

ZOO = Path(__file__).resolve().parents[3] / "shared" / "dicom_zoo" / "seg"
zoo = pytest.mark.skipif(not ZOO.exists(), reason="the DICOM collection is not beside the clone")
LIVER_GRID = Grid((512, 512, 3), (0.810547, 0.810547, 1.0), (-235.199997, -226.800003, -128.690002))


def header(path: Path) -> SegHeader:
    return SegHeader(Path(path))


def highdicom_masks(path: Path) -> dict[str, np.ndarray]:
    """Each segment's mask (X, Y, Z) by another library, slices from foot to head."""
    seg = highdicom.seg.segread(path)
    volume = seg.get_volume(combine_segments=False)
    if volume.affine[2, 0] < 0:
        volume = volume.flip_spatial(0)
    arrays = volume.array.transpose(2, 1, 0, 3)
    numbers = seg.segment_numbers
    return {
        seg.get_segment_description(n).segment_label: arrays[..., i] for i, n in enumerate(numbers)
    }


@zoo
def test_one_segment_as_another_library_reads_it():
    reference = read_reference([header(ZOO / "liver.dcm")], LIVER_GRID)
    (mask,) = highdicom_masks(ZOO / "liver.dcm").values()
    assert np.array_equal(reference.labels() > 0, mask > 0)


@zoo
def test_overlaps_are_shared_equally_and_reported():
    reference = read_reference([header(ZOO / "partial_overlaps.dcm")], LIVER_GRID)
    masks = np.stack(list(highdicom_masks(ZOO / "partial_overlaps.dcm").values())) > 0
    claims = masks.sum(axis=0)
    assert f"overlap in {np.count_nonzero(claims > 1)} voxels" in " ".join(reference.notes)
    total = np.zeros(claims.shape)
    for segment in reference.segments:
        total[segment.span] += segment.mask
        values = np.unique(np.round(1 / segment.mask[segment.mask > 0], 3))
        assert set(values) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert claims.shape == LIVER_GRID.size
    np.testing.assert_allclose(total, claims > 0, atol=1e-5)


@zoo
@pytest.mark.parametrize("name", ["sparse-labelmap-ppv5.dcm", "sparse-labelmap-noppv.dcm"])
def test_labelmap_background_and_padding_are_no_structures(name):
    grid = Grid((24, 38, 3), (0.7, 0.7, 5.0), (46.464901, 5.0188098, -177.75))
    reference = read_reference([header(ZOO / name)], grid)
    assert [s.structure.name for s in reference.segments] == ["liver"]
    assert reference.segments[0].mask.any()


@zoo
def test_fractional_values_become_fractions():
    path = ZOO / "seg_image_ct_true_fractional.dcm"
    dataset = pydicom.dcmread(path)
    grid = Grid((16, 16, 3), (7.8125, 7.8125, 1.25), (-125.0, -128.100006, 103.019997))
    raw = dataset.pixel_array.max() / int(dataset.MaximumFractionalValue)
    spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    grid = replace(grid, spacing_mm=(float(spacing[1]), float(spacing[0]), 1.25))
    (segment,) = read_reference([header(path)], grid).segments
    assert segment.mask.dtype == np.float32
    assert segment.mask.max() == pytest.approx(raw)


def test_a_file_that_is_no_seg_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="CT_small.dcm: no segment"):
        read_reference([header(Path(get_testdata_file("CT_small.dcm")))], LIVER_GRID)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    subject = make_subject(4, 1, matrix=64, size="small", implant="")
    folder = tmp_path_factory.mktemp("cohort") / "Patient_01"
    write_subject(folder, subject)
    return folder, subject


def test_structures_come_in_the_tables_order_whatever_the_segment_numbers(patient):
    folder, subject = patient
    reference = read_reference(find(folder).seg, subject.volume.grid)
    assert [s.structure for s in reference.segments] == list(PELVIS)
    assert np.array_equal(reference.labels(), subject.label)
    assert [s.status for s in reference.segments][3:] == ["cut", "cut"]


def test_parts_outside_the_scan_are_reported(patient):
    folder, subject = patient
    grid = subject.volume.grid
    shorter = grid.cropped((0, 0, 8), (grid.size[0], grid.size[1], grid.size[2] - 8))
    reference = read_reference(find(folder).seg, shorter)
    outside = np.count_nonzero(subject.label[:, :, :8] == 4) / np.count_nonzero(subject.label == 4)
    assert f"'left femur' lies outside the scan with {outside:.1%}" in " ".join(reference.notes)
    assert np.array_equal(reference.labels(), subject.label[:, :, 8:])


def test_a_segmentation_elsewhere_is_refused(patient):
    folder, subject = patient
    elsewhere = replace(subject.volume.grid, origin_mm=(5000.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="no voxel inside the scan"):
        read_reference(find(folder).seg, elsewhere)


def test_fractions_sum_to_the_volume_on_a_coarser_window(patient):
    folder, subject = patient
    grid = subject.volume.grid
    reference = read_reference(find(folder).seg, grid)
    low, high = grid.box_mm()
    window = Grid((32, 32, 18), tuple((high - low) / (32, 32, 18)), (0.0, 0.0, 0.0))
    window = replace(window, origin_mm=tuple(low + np.array(window.spacing_mm) / 2))
    fractions = reference.fractions(window)
    for k in range(5):
        ml = fractions[k].sum(dtype=np.float64) / 255 * window.voxel_ml
        assert ml == pytest.approx(
            np.count_nonzero(subject.label == k + 1) * grid.voxel_ml, rel=0.02
        )


def test_site_rules_rename_and_ignore(patient, tmp_path):
    folder, subject = patient
    rules = [
        {"code": ["SCT", "29836001"], "ignore": True},
        {"label": "Left Femur", "new": {"name": "thigh bone", "code": ["99SITE", "1", ""]}},
    ]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(rules))
    reference = read_reference(find(folder).seg, subject.volume.grid, read_rules(path))
    names = [s.structure.name for s in reference.segments]
    assert names == ["sacrum", "right femur", "thigh bone"]
    assert np.array_equal(reference.labels(), np.array([0, 0, 0, 1, 3, 2])[subject.label])


def coded_alike(folder: Path, path: Path, code: str, meaning: str) -> Path:
    """A copy of a patient's SEG whose segments differ by their labels alone."""
    dataset = pydicom.dcmread(find(folder).seg[0].path)
    for segment in dataset.SegmentSequence:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.CodeValue, kind.CodeMeaning = code, meaning
        if "SegmentedPropertyTypeModifierCodeSequence" in segment:
            del segment.SegmentedPropertyTypeModifierCodeSequence
    dataset.save_as(path)
    return path


def test_segments_that_only_their_labels_tell_apart_need_rules(patient, tmp_path):
    folder, subject = patient
    path = coded_alike(folder, tmp_path / "seg.dcm", "85756007", "Tissue")
    with pytest.raises(ValueError, match=r"have the same code \(Tissue\); --structures"):
        read_reference([header(path)], subject.volume.grid)
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"label": s.name, "structure": s.name} for s in PELVIS]))
    reference = read_reference([header(path)], subject.volume.grid, read_rules(rules))
    assert np.array_equal(reference.labels(), subject.label)
    assert not reference.notes


def test_two_codes_of_one_name_stay_two_structures(patient, tmp_path):
    folder, subject = patient
    dataset = pydicom.dcmread(find(folder).seg[0].path)
    codes = [("SCT", "64688005"), ("SRT", "T-11BF7")]
    for segment, (scheme, value) in zip(dataset.SegmentSequence[:2], codes, strict=True):
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.CodingSchemeDesignator, kind.CodeValue, kind.CodeMeaning = scheme, value, "Coccyx"
        kind.pop("SegmentedPropertyTypeModifierCodeSequence", None)
        segment.pop("SegmentedPropertyTypeModifierCodeSequence", None)
        segment.SegmentLabel = segment.SegmentDescription = "coccyx"
    dataset.save_as(tmp_path / "seg.dcm")
    reference = read_reference([header(tmp_path / "seg.dcm")], subject.volume.grid)
    names = [s.structure.name for s in reference.segments if "coccyx" in s.structure.name]
    assert len(names) == len(set(names)) == 2 and len(reference.segments) == 5


def test_fragments_of_a_bone_are_one_structure_and_are_noted(patient, tmp_path):
    folder, subject = patient
    path = coded_alike(folder, tmp_path / "seg.dcm", "54735007", "Sacrum")
    reference = read_reference([header(path)], subject.volume.grid)
    assert [s.structure.name for s in reference.segments] == ["sacrum"]
    assert "taken together as sacrum" in reference.notes[0]
    assert np.array_equal(reference.labels() > 0, subject.label > 0)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{",
        '[{"label": "a"}]',
        '[{"label": "a", "structure": "nose"}]',
        '[{"structure": "sacrum"}]',
    ],
)
def test_broken_rules_are_refused(tmp_path, text):
    (tmp_path / "rules.json").write_text(text)
    with pytest.raises(ValueError, match="structure rules"):
        read_rules(tmp_path / "rules.json")


def test_a_segment_without_frames_is_annotated_as_empty(patient, tmp_path):
    folder, subject = patient
    dataset = pydicom.dcmread(find(folder).seg[0].path)
    (number,) = (s.SegmentNumber for s in dataset.SegmentSequence if s.SegmentLabel == "sacrum")
    frames = dataset.PerFrameFunctionalGroupsSequence
    kept = [
        k
        for k, frame in enumerate(frames)
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number
    ]
    bits = pack_bits(dataset.pixel_array[kept].ravel(), pad=True)
    dataset.PerFrameFunctionalGroupsSequence = [frames[k] for k in kept]
    dataset.NumberOfFrames, dataset.PixelData = len(kept), bits
    dataset.save_as(tmp_path / "seg.dcm")
    reference = read_reference([header(tmp_path / "seg.dcm")], subject.volume.grid)
    statuses = {s.structure.name: s.status for s in reference.segments}
    assert statuses["sacrum"] == "empty"
    assert statuses["left hip bone"] == "complete"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("unnamed", "names no segment"),
        ("twice", "two frames at one place|contradict their dimension index"),
        ("moved", "contradict their dimension index|two frames at one place"),
    ],
)
def test_frames_that_name_the_wrong_segment_are_refused(patient, tmp_path, damage, words):
    folder, subject = patient
    dataset = pydicom.dcmread(find(folder).seg[0].path)
    frames = dataset.PerFrameFunctionalGroupsSequence
    if damage == "unnamed":
        del frames[7].SegmentIdentificationSequence
    elif damage == "twice":
        frames[1].PlanePositionSequence = frames[0].PlanePositionSequence
    else:
        identification = frames[0].SegmentIdentificationSequence[0]
        last = frames[-1].SegmentIdentificationSequence[0].ReferencedSegmentNumber
        identification.ReferencedSegmentNumber = last
    dataset.save_as(tmp_path / "seg.dcm")
    with pytest.raises(ValueError, match=words):
        read_reference([header(tmp_path / "seg.dcm")], subject.volume.grid)


def test_a_structure_at_the_edge_of_a_round_field_of_view_is_cut():
    grid = Grid((20, 20, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    x, y = np.ogrid[:20, :20]
    outside = np.hypot(x - 9.5, y - 9.5) > 9
    inner = Segment(PELVIS[0], (8, 8, 1), np.ones((4, 4, 4), bool), "complete")
    outer = Segment(PELVIS[1], (2, 4, 1), np.ones((3, 3, 4), bool), "complete")
    nothing = Segment(PELVIS[2], (0, 0, 0), np.zeros((0, 0, 0), bool), "empty")
    marked = marked_cut(
        Reference(grid, (inner, outer, nothing), ()), FieldOfView(grid.affine, grid.size, outside)
    )
    assert [s.status for s in marked.segments] == ["complete", "cut", "empty"]


def test_three_segments_on_one_voxel_get_a_third_each():
    segments = [
        Segment(PELVIS[0], (0, 0, 0), np.ones((2, 2, 2), bool), "complete"),
        Segment(PELVIS[1], (1, 1, 1), np.ones((2, 2, 2), bool), "complete"),
        Segment(PELVIS[2], (1, 1, 1), np.ones((1, 1, 1), bool), "complete"),
    ]
    shared, voxels = share_overlaps(segments)
    assert voxels == 1
    assert [float(s.mask.min()) for s in shared] == pytest.approx([1 / 3] * 3)
    assert float(shared[0].mask.sum()) == pytest.approx(7 + 1 / 3)
