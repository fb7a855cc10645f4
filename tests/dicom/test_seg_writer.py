"""DICOM SEG out: highdicom reads what the mask holds, and tampering is found."""

from __future__ import annotations

import json
import shutil
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_files import bones, write_slices
from enhanced import write_enhanced
from orientation import ORDERS, oriented

from multipass import __version__
from multipass.dicom.choice import choose
from multipass.dicom.ct import read_ct
from multipass.dicom.seg_header import seg_header
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.seg_writer import check_seg, write_seg
from multipass.dicom.series import find
from multipass.geometry.volume import from_upright, upright_grid
from multipass.phantom import make_subject
from multipass.phantom.writer import write_ct
from multipass.site_rules import read_rules
from multipass.structures import PELVIS

# Identity, sagittal from the left, coronal, head first and flipped.
SOME_ORDERS = [ORDERS[0], ORDERS[11], ORDERS[26], ORDERS[45]]


@pytest.fixture(scope="module")
def subject():
    return make_subject(3, 0, matrix=64, size="small", implant="", padding=None)


def read(tmp_path, subject, order, signs):
    """The phantom's CT read back from DICOM, and its mask on the CT's own grid."""
    volume = oriented(subject.volume, order, signs)
    write_ct(tmp_path / "ct", volume, subject.recipe)
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    assert upright_grid(ct.volume.grid).size == subject.volume.grid.size
    return ct, np.ascontiguousarray(from_upright(subject.label, ct.volume.grid))


def by_highdicom(path, grid) -> np.ndarray:
    """The SEG on the mask's grid through its own affine, segments matched by code."""
    seg = highdicom.seg.segread(path)
    result = np.zeros(grid.size, np.uint8)
    for number in seg.segment_numbers:
        description = seg.get_segment_description(number)
        code = description.segmented_property_type
        modifiers = [m.meaning.lower() for m in code.get("modifiers", [])] or [
            m.CodeMeaning.lower()
            for m in code.get("SegmentedPropertyTypeModifierCodeSequence") or []
        ]
        key = (code.scheme_designator, code.value, "".join(modifiers))
        value = 1 + [s.key for s in PELVIS].index(key)
        volume = seg.get_volume(segment_numbers=[number], combine_segments=True)
        found = np.argwhere(volume.array > 0)
        places = found @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        index = np.linalg.solve(grid.affine[:3, :3], (places - grid.origin_mm).T).T
        assert np.abs(index - np.rint(index)).max() < 0.01
        result[tuple(np.rint(index).astype(int).T)] = value
    return result


@pytest.mark.parametrize(("order", "signs"), SOME_ORDERS)
def test_highdicom_reads_the_mask(tmp_path, subject, order, signs):
    ct, mask = read(tmp_path, subject, order, signs)
    write_seg(tmp_path / "seg.dcm", mask, ct.volume.grid, ct.slices, PELVIS)
    assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", ct.volume.grid), mask)
    frames = pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence
    (image,) = frames[0].DerivationImageSequence[0].SourceImageSequence
    assert image.SpatialLocationsPreserved == "YES"
    numbered = {
        (frame.FrameContentSequence[0].DimensionIndexValues[1],
         tuple(frame.PlanePositionSequence[0].ImagePositionPatient))
        for frame in frames
    }  # fmt: skip
    numbers, places = (set(part) for part in zip(*numbered, strict=True))
    assert len(numbered) == len(places) and numbers == set(range(1, len(places) + 1))


def test_loss_in_the_source_is_passed_on(tmp_path, subject):
    for path in write_ct(tmp_path / "ct", subject.volume, subject.recipe):
        dataset = pydicom.dcmread(path)
        dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", "12.5"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
        dataset.save_as(path)
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    mask = np.ascontiguousarray(from_upright(subject.label, ct.volume.grid))
    write_seg(tmp_path / "seg.dcm", mask, ct.volume.grid, ct.slices, PELVIS)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (seg.LossyImageCompression, seg.LossyImageCompressionRatio) == ("01", 12.5)


@pytest.mark.parametrize("count", [1, 5])
def test_a_mask_in_a_few_slices_refers_to_these(tmp_path, subject, count):
    ct, mask = read(tmp_path, subject, *SOME_ORDERS[3])
    first = mask.shape[2] // 2
    mask[:, :, :first] = mask[:, :, first + count :] = 0
    write_seg(tmp_path / "seg.dcm", mask, ct.volume.grid, ct.slices, PELVIS)
    assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", ct.volume.grid), mask)
    (series,) = pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence
    referred = {image.ReferencedSOPInstanceUID for image in series.ReferencedInstanceSequence}
    assert referred == {piece.sop_uid for piece in ct.slices[first : first + count]}


def test_on_a_grid_of_its_own_it_refers_to_the_series_alone(tmp_path):
    hounsfield, label = bones((24, 18, 9))
    heights = np.cumsum([0, 3, 3, 5, 3, 4, 3, 3, 5])
    places = np.stack([0 * heights, 0 * heights, heights], axis=1)
    write_slices(tmp_path / "ct", hounsfield, places)
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    assert ct.is_resampled and label.any()
    mask = (ct.volume.array > 400).astype(np.uint8)
    seg_path = tmp_path / "seg.dcm"
    write_seg(seg_path, mask, ct.volume.grid, ct.slices, PELVIS, is_resampled=True)
    assert np.array_equal(by_highdicom(seg_path, ct.volume.grid), mask)
    seg = pydicom.dcmread(seg_path)
    assert all(
        "DerivationImageSequence" not in frame for frame in seg.PerFrameFunctionalGroupsSequence
    )
    (series,) = seg.ReferencedSeriesSequence
    referred = {image.ReferencedSOPInstanceUID for image in series.ReferencedInstanceSequence}
    assert referred == {piece.sop_uid for piece in ct.slices}


def test_a_multi_frame_ct_is_referred_to_frame_by_frame(tmp_path, subject):
    files = write_ct(tmp_path / "single", subject.volume, subject.recipe)
    write_enhanced(files, tmp_path / "ct" / "all.dcm")
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    grid = ct.volume.grid
    write_seg(tmp_path / "seg.dcm", subject.label, grid, ct.slices, PELVIS)
    assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", grid), subject.label)
    source = pydicom.dcmread(tmp_path / "ct" / "all.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert image.ReferencedSOPClassUID == source.SOPClassUID
        other = source.PerFrameFunctionalGroupsSequence[int(image.ReferencedFrameNumber) - 1]
        np.testing.assert_allclose(
            np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, float),
            np.asarray(other.PlanePositionSequence[0].ImagePositionPatient, float),
            atol=1e-3,
        )


def test_a_missing_structure_does_not_shift_the_others(tmp_path, subject):
    ct, mask = read(tmp_path, subject, *ORDERS[0])
    mask[(mask == 1) | (mask == 4)] = 0
    write_seg(tmp_path / "seg.dcm", mask, ct.volume.grid, ct.slices, PELVIS)
    assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", ct.volume.grid), mask)
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert [s.SegmentLabel for s in segments] == [PELVIS[k].name for k in (1, 2, 4)]
    named = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert named.AlgorithmName == "3D MultiPass U-Net"


def test_a_source_against_the_rules_gets_its_seg_and_is_referred_to_as_it_is(tmp_path, subject):
    read(tmp_path, subject, *ORDERS[0])
    for k, path in enumerate((tmp_path / "ct").iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.add(pydicom.DataElement(0x00200010, "SH", "x" * 40, validation_mode=0))
        dataset.add(pydicom.DataElement(0x00100040, "CS", "W", validation_mode=0))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.840.0001", "1.2.840.0002"
        dataset.SOPInstanceUID = f"1.2.840.0003.{k:03d}"
        for keyword in ("PatientBirthDate", "AccessionNumber", "StudyTime", "SliceThickness"):
            dataset.pop(keyword, None)
        dataset.save_as(path)
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    mask = np.ascontiguousarray(from_upright(subject.label, ct.volume.grid))
    write_seg(tmp_path / "seg.dcm", mask, ct.volume.grid, ct.slices, PELVIS)
    assert np.array_equal(by_highdicom(tmp_path / "seg.dcm", ct.volume.grid), mask)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (seg.StudyInstanceUID, seg.StudyID, seg.PatientSex) == ("1.2.840.0001", "x" * 40, "W")
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.840.0002"
    referred = {image.ReferencedSOPInstanceUID for image in series.ReferencedInstanceSequence}
    assert referred <= {piece.sop_uid for piece in ct.slices}


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_it_says_who_made_it_and_what_its_segments_are(tmp_path, subject, kind):
    ct, mask = read(tmp_path, subject, *ORDERS[0])
    implant = {"name": "implant", "code": ["SCT", "40388003", ""]}
    (tmp_path / "rules.json").write_text(json.dumps([{"label": "a", "new": implant}]))
    (structure,) = read_rules(tmp_path / "rules.json")({"SegmentLabel": "a"})
    write_seg(
        tmp_path / "seg.dcm", mask, ct.volume.grid, ct.slices, (*PELVIS[:4], structure), kind=kind
    )
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert seg.Manufacturer == "3D MultiPass U-Net" and seg.SoftwareVersions == __version__
    assert seg.ContentLabel == "PELVIC_BONES" and seg.ContentDescription and seg.SeriesDescription
    categories = {
        segment.SegmentLabel: segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning
        for segment in seg.SegmentSequence
    }
    assert categories["sacrum"] == "Anatomical Structure"
    assert categories["implant"] == "Physical object"
    assert seg_header(tmp_path / "seg.dcm", seg).is_own
    if kind == "LABELMAP":
        assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"


@pytest.mark.parametrize("first", [1, 3])
def test_a_labelmap_has_the_values_of_the_mask(tmp_path, subject, first):
    ct, mask = read(tmp_path, subject, *ORDERS[26])
    mask[mask < first] = 0
    write_seg(tmp_path / "seg.dcm", mask, ct.volume.grid, ct.slices, PELVIS, kind="LABELMAP")
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    there = volume.geometry if hasattr(volume, "geometry") else volume
    found = np.argwhere(volume.array > 0)
    places = found @ there.affine[:3, :3].T + there.affine[:3, 3]
    grid = ct.volume.grid
    index = np.rint(np.linalg.solve(grid.affine[:3, :3], (places - grid.origin_mm).T).T).astype(int)
    assert len(index) == np.count_nonzero(mask)
    assert np.array_equal(mask[tuple(index.T)], volume.array[tuple(found.T)])
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    for segment in dataset.SegmentSequence:
        segment.SegmentAlgorithmType = "MANUAL"
    dataset.save_as(tmp_path / "seg.dcm")
    reference = read_reference(find(tmp_path / "seg.dcm").seg, upright_grid(grid), ct=ct)
    assert [s.structure for s in reference.segments] == list(PELVIS[first - 1 :])
    again = np.append(0, np.arange(first, 6))[from_upright(reference.labels(), grid)]
    assert np.array_equal(again, mask)


def test_an_empty_mask_is_refused(tmp_path, subject):
    ct, mask = read(tmp_path, subject, *ORDERS[0])
    with pytest.raises(ValueError, match="empty mask"):
        write_seg(tmp_path / "seg.dcm", np.zeros_like(mask), ct.volume.grid, ct.slices, PELVIS)


def test_the_check_finds_what_is_wrong(tmp_path, subject):
    ct, mask = read(tmp_path, subject, *ORDERS[0])
    grid = ct.volume.grid
    write_seg(tmp_path / "seg.dcm", mask, grid, ct.slices, PELVIS)
    assert not list(tmp_path.glob(".*"))

    def problem(change, checked=mask):
        dataset = pydicom.dcmread(tmp_path / "seg.dcm")
        change(dataset)
        with pytest.raises(ValueError) as caught:
            check_seg(dataset, checked, grid, ct.slices, PELVIS)
        return str(caught.value)

    def without_references(dataset):
        del dataset.PerFrameFunctionalGroupsSequence[3].DerivationImageSequence

    def moved(dataset):
        place = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
        place.ImagePositionPatient[0] = float(place.ImagePositionPatient[0]) + 0.5

    assert "does not refer" in problem(without_references)
    assert "away from its slice" in problem(moved)
    more = mask.copy()
    more[0, 0, 0] = 2
    assert "missing" in problem(lambda dataset: None, more)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(tmp_path, subject):
    ct, mask = read(tmp_path, subject, *ORDERS[0])
    write_seg(tmp_path / "seg.dcm", mask, ct.volume.grid, ct.slices, PELVIS)
    # LABELMAP is younger than the dciodvfy of most systems.
    done = subprocess.run(
        ["dciodvfy", str(tmp_path / "seg.dcm")], capture_output=True, text=True, check=False
    )
    assert "Segmentation" in done.stdout + done.stderr  # the object that it took it for
    assert not [line for line in done.stderr.splitlines() if line.startswith("Error")]
