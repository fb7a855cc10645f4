"""multipass.segment: any kind of scan, its mask on its own grid, files as of run_inference.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import oracle
import pydicom
import pytest
import SimpleITK as sitk
from orientation import oriented

import multipass
from multipass import api
from multipass.data.source import opened
from multipass.files import ROOT
from multipass.geometry.volume import Volume, from_sitk, to_sitk, upright
from multipass.phantom import make_subject
from multipass.phantom.writer import write_ct

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LEFT_HIP, RIGHT_HIP = 1, 2


@pytest.fixture(scope="module")
def volume() -> Volume:
    """The scene on a grid with mixed axes, as few programs expect it."""
    return oriented(oracle.scene(oracle.scene_grid((5.0, 4.6, 6.0)))[0], (2, 0, 1), (-1, 1, -1))


@pytest.fixture(scope="module")
def result(volume) -> multipass.Result:
    return multipass.segment(to_sitk(volume), oracle.model(), probabilities=True)


def middle_lps(result: multipass.Result, value: int) -> np.ndarray:
    """The middle of a structure, by the mask as an image."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(result.mask)
    return np.asarray(shape.GetCentroid(value))


def test_lines_of_the_readme(tmp_path, monkeypatch, volume):
    monkeypatch.chdir(tmp_path)
    sitk.WriteImage(to_sitk(volume), "scan.nii.gz")
    monkeypatch.setattr(api.checkpoint, "load", lambda path, device: oracle.model())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(readme.split("```python\n")[1].split("```")[0], names)
    result = names["result"]
    assert min(result.volumes_ml.values()) > 50 and result.flags == []
    assert (tmp_path / "results" / "scan" / "mask.nii.gz").exists()


def test_the_mask_lies_on_the_scans_own_grid(volume, result):
    assert result.array.shape == volume.array.shape and result.array.dtype == np.uint8
    written = from_sitk(result.mask)
    assert written.grid == volume.grid and np.array_equal(written.array, result.array)
    voxels = np.bincount(result.array.ravel(), minlength=6)[1:]
    assert np.allclose(list(result.volumes_ml.values()), voxels * volume.grid.voxel_ml)
    sums = sitk.GetArrayFromImage(result.probabilities).sum(axis=-1)
    assert result.probabilities.GetNumberOfComponentsPerPixel() == 6
    assert np.allclose(sums, 1, atol=5e-3)


def test_left_is_left_whatever_the_scan_came_as(tmp_path, volume, result):
    sitk.WriteImage(to_sitk(volume), str(tmp_path / "scan.mha"))
    ras = volume.array.astype(np.float64), LPS_TO_RAS @ volume.grid.affine
    for source in (ras, tmp_path / "scan.mha"):
        other = multipass.segment(source, oracle.model())
        assert np.array_equal(other.array, result.array)
        assert other.probabilities is None
    for found in (result, other):
        assert middle_lps(found, LEFT_HIP)[0] > 0 > middle_lps(found, RIGHT_HIP)[0]
    by_place = upright(Volume(other.array, volume.grid)).array
    assert np.argwhere(by_place == LEFT_HIP)[:, 0].min() > by_place.shape[0] // 2 - 1


def test_an_lps_affine_given_as_ras_swaps_the_sides(volume):
    """So that the convention is one, and not guessed."""
    mistaken = multipass.segment((volume.array, volume.grid.affine), oracle.model())
    again = multipass.segment((volume.array, LPS_TO_RAS @ volume.grid.affine), oracle.model())
    assert np.array_equal(mistaken.array == LEFT_HIP, again.array == RIGHT_HIP)


def test_saved_files_are_those_of_the_result(tmp_path, result):
    report = result.save(tmp_path / "case", meshes="stl")
    (tmp_path / "case" / "notes.txt").write_text("a reader's")
    result.save(tmp_path / "case")
    names = {path.name for path in (tmp_path / "case").iterdir()}
    files = {"mask.nii.gz", "overlay.png", "probabilities.nii.gz", "report.json"}
    assert names == files | {"notes.txt"} and "1_left_hip.stl" not in names
    assert any(name.endswith(".stl") for name in report["files"])
    written = from_sitk(sitk.ReadImage(str(tmp_path / "case" / "mask.nii.gz")))
    assert np.array_equal(written.array, result.array)
    report = json.loads((tmp_path / "case" / "report.json").read_text())
    assert report["identity"]["model_sha256"] == oracle.model().sha256
    assert [row["name"] for row in report["structures"]] == list(result.volumes_ml)


def test_a_folder_of_someone_else_is_left_alone(tmp_path, result):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="left alone"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_path_holds_one_scan(tmp_path, volume):
    with pytest.raises(ValueError, match="no such file or folder"):
        multipass.segment(tmp_path / "none", oracle.model())
    with pytest.raises(ValueError, match="no scan"):
        multipass.segment(tmp_path, oracle.model())
    for name in ("a", "b"):
        sitk.WriteImage(to_sitk(volume), str(tmp_path / f"{name}.mha"))
    with pytest.raises(ValueError, match=r"2 scans \(a, b\), and one"):
        multipass.segment(tmp_path, oracle.model())
    (tmp_path / "b.mha").write_bytes(b"nothing")
    (tmp_path / "b.mha").rename(tmp_path / "b.tar")
    flags = multipass.segment(str(tmp_path), oracle.model()).flags
    assert len(flags) == 1 and flags[0].startswith("left aside: b.tar: ")


CUBE = np.random.default_rng(0).integers(-1000, 1000, (8, 8, 8))


@pytest.mark.parametrize(
    ("scan", "sentence"),
    [
        (CUBE, "not ndarray"),
        ((CUBE[0], np.eye(4)), r"the array: \(8, 8\), one scalar 3D image"),
        ((CUBE, np.eye(3)), "its affine is no 4 x 4 matrix"),
        ((CUBE, np.full((4, 4), np.nan)), "its affine is no 4 x 4 matrix"),
        ((CUBE, np.diag([1.0, 0, 1, 1])), "no place and no size"),
        ((CUBE + 1j, np.eye(4)), "complex128, real numbers"),
        ((CUBE * np.nan, np.eye(4)), "holds no number"),
        ((CUBE > 0, np.eye(4)), "looks like a label map"),
        (sitk.Image(8, 8, sitk.sitkInt16), "the SimpleITK image: .*one scalar 3D image"),
        (sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), "one scalar 3D image"),
        (sitk.Image([8, 8, 8], sitk.sitkComplexFloat32), "complex64, real numbers"),
    ],
)
def test_what_is_no_scan_is_one_sentence(scan, sentence):
    with pytest.raises(ValueError, match=sentence):
        multipass.segment(scan, oracle.model())


@pytest.mark.parametrize(
    "wrong",
    [{"passes": 0}, {"part_voxel_mm": 0.5}, {"least_part_mm3": float("nan")}],
)
def test_impossible_settings_are_refused_before_anything_is_read(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        multipass.segment("nowhere", oracle.model(), **wrong)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"path": "nowhere.pth"}, "nowhere.pth: no such checkpoint"),
        ({"device": "tpu"}, "tpu: auto"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        multipass.load_model(**arguments)


def test_importing_the_package_or_a_room_imports_no_torch():
    rooms = [path.parent.name for path in sorted((ROOT / "multipass").glob("*/__init__.py"))]
    assert "results" in rooms and "training" in rooms
    code = (
        "import sys, multipass, multipass.files, multipass.terminal\n"
        + "".join(f"import multipass.{room}\n" for room in rooms)
        + "assert 'torch' not in sys.modules, 'torch'\n"
        + "assert 'segment' in dir(multipass) and not hasattr(multipass, 'segments')\n"
        + "assert multipass.segment and 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_formats_that_a_result_cannot_have_are_refused(tmp_path, result):
    with pytest.raises(ValueError, match="no rtstruct.dcm: only a scan whose DICOM slices"):
        result.save(tmp_path / "case", formats=("nifti", "rtstruct"))
    with pytest.raises(ValueError, match="no format 'dicom'; there are nifti, seg, labelmap, rts"):
        result.save(tmp_path / "case", formats=("nifti", "dicom"))
    assert not (tmp_path / "case").exists()


def test_a_series_in_a_folder_gets_its_seg(tmp_path, volume):
    recipe = make_subject(3, 0, matrix=64, size="small", padding=None).recipe
    write_ct(tmp_path / "series", upright(volume), recipe)
    found = multipass.segment(tmp_path / "series", oracle.model())
    assert "seg.dcm" in found.save(tmp_path / "out")["files"]
    formats = ("seg", "labelmap", "rtstruct")
    files = set(found.save(tmp_path / "out", formats=formats)["files"])
    wanted = {"seg.dcm", "labelmap.dcm", "rtstruct.dcm", "overlay.png"}
    assert files == wanted and pydicom.dcmread(tmp_path / "out" / "rtstruct.dcm").ROIContourSequence
    packed = opened(shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "series"))
    assert packed.scan.slices == () and packed.scan.grid == found.segmented.grid
    assert packed.sha256 == found.facts["identity"]["input_sha256"]
