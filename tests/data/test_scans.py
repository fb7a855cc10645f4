"""Finding scans: CTPEL's layout, trees of studies, references, and what is refused."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pydicom
import pytest
import SimpleITK as sitk
from enhanced import write_enhanced
from pydicom.uid import generate_uid

from multipass.data.scans import find_cases
from multipass.phantom import make_subject
from multipass.phantom.writer import write_subject


@pytest.fixture(scope="module")
def patient(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "Patient_01"
    write_subject(folder, make_subject(3, 0, matrix=64, size="small", implant="", padding=None))
    return folder


def cases(root: Path):
    with ExitStack() as stack:
        found = find_cases(root, stack)
    return {case.name: case for case in found.cases}, dict(found.refused)


def another_series(folder: Path, description: str) -> None:
    """Gives the DICOM images of a folder another series UID and description."""
    uid = generate_uid()
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID, dataset.SeriesDescription = uid, description
        dataset.SOPInstanceUID = generate_uid()
        dataset.save_as(path)


def test_a_ctpel_patient_and_its_cohort(patient):
    for root in (patient, patient.parent):
        found, refused = cases(root)
        assert list(found) == ["Patient_01"] and not refused
        assert len(found["Patient_01"].seg) == 1
        slices = len(list((patient / "im_1").iterdir()))
        assert len(found["Patient_01"].files) == slices


def test_only_the_folder_of_slices_finds_its_seg_too(patient):
    found, refused = cases(patient / "im_1")
    assert list(found) == ["Patient_01"] and not refused
    assert len(found["Patient_01"].seg) == 1


@pytest.mark.parametrize("size", [100, 400, 1000])
def test_a_segmentation_that_cannot_be_read_is_told(tmp_path, patient, size):
    shutil.copytree(patient, tmp_path / "Patient_02")
    (seg,) = (tmp_path / "Patient_02" / "im_3").iterdir()
    seg.write_bytes(seg.read_bytes()[:size])
    (tmp_path / "Patient_02" / "im_3" / "protocol").write_text("no DICOM, and not called so")
    found, refused = cases(tmp_path)
    (note,) = found["Patient_02"].notes
    assert note.startswith(f"1 file that may belong to it could not be read ({seg.name}: ")
    assert not refused and not found["Patient_02"].seg


@pytest.mark.parametrize(
    "change", [{"Modality": None}, {"Modality": "MR"}, {"SeriesInstanceUID": None}]
)
def test_a_slice_that_is_none_of_its_series_any_more_is_told(tmp_path, patient, change):
    """At an end of the scan, where the places of the others do not show that it is missing."""
    shutil.copytree(patient, tmp_path / "Patient_02")
    slices = [(pydicom.dcmread(p), p) for p in (tmp_path / "Patient_02" / "im_1").iterdir()]
    last, path = max(slices, key=lambda one: one[0].ImagePositionPatient[2])
    last.update(change)
    last.save_as(path)
    found, _ = cases(tmp_path)
    (note,) = found["Patient_02"].notes
    assert note.startswith("1 file ") and path.name in note


def test_landmarks_are_left_alone(tmp_path, patient):
    shutil.copytree(patient, tmp_path / "Patient_02")
    shutil.copytree(patient / "im_1", tmp_path / "Patient_02" / "im_2")
    found, refused = cases(tmp_path)
    assert list(found) == ["Patient_02"] and not refused


def test_a_seg_beside_the_slices(tmp_path, patient):
    shutil.copytree(patient / "im_1", tmp_path / "scan")
    seg = next((patient / "im_3").iterdir())
    shutil.copy(seg, tmp_path / "scan" / "seg.dcm")
    found, _ = cases(tmp_path)
    assert len(found["scan"].seg) == 1


def test_each_series_of_a_study_is_a_case_and_the_seg_finds_its_own(tmp_path, patient):
    study = tmp_path / "in" / "study"
    shutil.copytree(patient / "im_1", study / "thin")
    shutil.copytree(patient / "im_1", study / "thick")
    another_series(study / "thick", "thick")
    shutil.copytree(patient / "im_3", study / "results")
    found, refused = cases(tmp_path / "in")
    assert sorted(found) == ["study_thick", "study_thin"] and not refused
    assert [len(found[name].seg) for name in ("study_thin", "study_thick")] == [1, 0]


def test_a_folder_without_a_ct_is_refused_with_the_reason(tmp_path, patient):
    shutil.copytree(patient / "im_1", tmp_path / "in" / "good")
    shutil.copytree(patient / "im_1", tmp_path / "in" / "magnet")
    for path in (tmp_path / "in" / "magnet").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.Modality = "MR"
        dataset.save_as(path)
    (tmp_path / "in" / "README.md").write_text("no scan")
    (tmp_path / "in" / ".hidden").write_text("no scan")
    found, refused = cases(tmp_path / "in")
    assert list(found) == ["good"]
    assert list(refused) == ["magnet"] and "MR, not a CT image" in refused["magnet"]


def test_links_to_folders_are_followed_once(tmp_path, patient):
    root = tmp_path / "in"
    root.mkdir()
    (root / "linked").symlink_to(patient / "im_1")
    (root / "loop").symlink_to(root)
    found, refused = cases(root)
    assert list(found) == ["linked"] and not refused


def test_references_beside_image_files(tmp_path):
    for name in (
        "a.nii.gz",
        "a_seg.nii.gz",
        "b.nrrd",
        "b-label.mha",
        "c_seg.nii.gz",
        "d.nrrd",
        "d.seg.nrrd",
    ):
        (tmp_path / name).write_bytes(b"")
    found, _ = cases(tmp_path)
    assert sorted(found) == ["a", "b", "c_seg", "d"]
    assert found["a"].reference_path == tmp_path / "a_seg.nii.gz"
    assert found["b"].reference_path == tmp_path / "b-label.mha"
    assert found["c_seg"].reference_path is None
    assert found["d"].reference_path == tmp_path / "d.seg.nrrd"


def test_names_are_safe_and_unique(tmp_path):
    names = ("a/scan.nii.gz", "b/scan.nrrd", "c/SCAN.mha", "d/.hidden.nii", "summary.csv.nii")
    for name in (*names, "ö .. x.nii.gz", "con.nrrd", "....nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found, _ = cases(tmp_path)
    assert sorted(found) == ["a_scan", "b_scan", "c_SCAN", "con_2", "summary.csv_2", "ö_.._x"]


def test_names_of_any_bytes_and_length_are_safe(tmp_path):
    names = (b"M\xfcller.nii", "日".encode() * 80 + b".nii", b"a\nb.nii")
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    found, _ = cases(tmp_path)
    assert sorted(found) == ["M_ller", "a_b", "日" * 26]


def test_scans_of_one_name_are_told_apart_by_number_at_last(tmp_path):
    for k in range(3):
        (tmp_path / str(k) / "CT").mkdir(parents=True)
        (tmp_path / str(k) / "CT" / "a.nii").write_bytes(b"")
    assert sorted(cases(tmp_path)[0]) == ["CT_a", "CT_a_2", "CT_a_3"]


def test_stray_files_rename_no_case(tmp_path, patient):
    root = tmp_path / "in"
    shutil.copytree(patient / "im_1", root / "study" / "thin")
    shutil.copytree(patient, root / "Patient_09")
    before, refused = cases(root)
    assert sorted(before) == ["Patient_09", "study_thin"] and not refused
    for name in ("protocol.docx", "notes.xlsx", "Thumbs.db", "autorun.exe"):
        (root / name).write_bytes(b"no DICOM")
        (root / "study" / "thin" / name).write_bytes(b"no DICOM")
    after, refused = cases(root)
    assert {n: c.notes for n, c in after.items()} == {n: c.notes for n, c in before.items()}
    assert not refused
    shutil.copy(next((patient / "im_3").iterdir()), root / "seg.dcm")
    assert sorted(cases(root)[0]) == sorted(before)


def test_results_of_an_earlier_run_are_no_scans(tmp_path):
    (tmp_path / "out" / "a" / "mine").mkdir(parents=True)
    for name in ("a.nii", "out/a/mask.nii.gz", "out/a/mine/corrected.nii.gz", "out/notes.nrrd"):
        (tmp_path / name).write_bytes(b"")
    report = tmp_path / "out" / "a" / "report.json"
    report.write_text('{"case": "a", "identity": {}, "files": {}}')
    assert sorted(cases(tmp_path)[0]) == ["a", "notes"]
    assert sorted(cases(report.parent)[0]) == ["corrected", "mask"]
    report.write_text('{"someone\'s": "report"}')
    assert len(cases(tmp_path)[0]) == 4


def test_finding_grows_with_the_number_of_scans_alone(tmp_path, monkeypatch):
    for k in range(200):
        for name in (f"{k}.nii.gz", f"{k}_seg.nii.gz"):
            (tmp_path / name).write_bytes(b"")
    listed = []
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or real(self))
    found, _ = cases(tmp_path)
    assert len(found) == 200 and all(case.reference_path for case in found.values())
    assert len(listed) <= 1


def test_archives_that_are_not_read_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.nii.gz", "b.tar.gz", "c.7z", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"")
    found, refused = cases(tmp_path / "in")
    assert list(found) == ["a"]
    reason = "a kind of archive that is not read here: unpack it or zip it, and 1 more"
    assert refused == {"b.tar.gz": reason}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for name in ("a/a.nii", "b/b.nii"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    real = os.scandir

    def closed(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", closed)
    found, refused = cases(tmp_path)
    assert list(found) == ["a"] and refused == {"b": "cannot be listed (Permission denied)"}


def test_a_series_at_one_place_is_no_scan(tmp_path, patient):
    """Bolus tracking, which most contrast studies contain."""
    shutil.copytree(patient / "im_1", tmp_path / "in" / "study" / "scan")
    shutil.copytree(patient / "im_1", tmp_path / "in" / "study" / "bolus")
    another_series(tmp_path / "in" / "study" / "bolus", "bolus tracking")
    for path in (tmp_path / "in" / "study" / "bolus").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [0, 0, 0]
        dataset.save_as(path)
    found, refused = cases(tmp_path / "in")
    assert list(found) == ["study_scan"] and not refused
    shutil.rmtree(tmp_path / "in" / "study" / "scan")
    found, refused = cases(tmp_path / "in")
    assert not found and "all slices at one place" in refused["study"]


def test_slices_that_cannot_be_read_are_named(tmp_path, patient):
    shutil.copytree(patient / "im_1", tmp_path / "in" / "scan")
    paths = sorted(
        (tmp_path / "in" / "scan").iterdir(),
        key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]),
    )
    for path in paths[:3]:
        path.write_bytes(b"")
    (tmp_path / "in" / "scan" / "notes.txt").write_text("no slice")
    found, _ = cases(tmp_path / "in")
    (note,) = found["scan"].notes
    assert note.startswith("3 files beside the slices could not be read")
    assert len(found["scan"].files) == len(paths) - 3


@pytest.mark.parametrize(("suffix", "data"), [(".mhd", ".zraw"), (".nhdr", ".raw.gz")])
def test_detached_voxels_are_among_the_files(tmp_path, suffix, data):
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(path), useCompression=True)
    found, refused = cases(tmp_path)
    assert found["scan"].files == [path, tmp_path / f"scan{data}"] and not refused


def test_a_multi_frame_file_alone_is_a_case(tmp_path, patient):
    path = tmp_path / "all.dcm"
    write_enhanced(sorted((patient / "im_1").iterdir()), path)
    (case,), refused = cases(path)[0].values(), cases(path)[1]
    assert case.files == [path] and not refused
