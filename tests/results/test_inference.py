"""run_inference.py: any orientation, any format, and what it says when something is wrong."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pydicom
import pytest
import SimpleITK as sitk
import torch
from orientation import ORDERS, oriented

from multipass.claims import claimed
from multipass.data.patient_files import write_patient
from multipass.data.prepare import prepare_patient
from multipass.geometry.labelmaps import LEAST_PART_MM3
from multipass.geometry.volume import Grid, Volume, from_sitk, to_sitk, upright
from multipass.geometry.windows import PART_VOXEL_MM
from multipass.inference import case as case_module
from multipass.model import evidence, passes
from multipass.model.maps import native_labels
from multipass.model.mirrored import Mirrored, with_mirroring
from multipass.model.network import Network
from multipass.phantom import make_subject
from multipass.phantom.writer import write_ct, write_subject

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "inference_pipeline" / "run_inference.py"


@pytest.fixture(scope="module")
def script():
    """run_inference.py as a module, inference_pipeline/ first on the path as when it is run."""
    sys.path.insert(0, str(SCRIPT.parent))
    module = loaded("run_inference_under_test", SCRIPT)
    sys.path.remove(str(SCRIPT.parent))
    module.load_model = lambda path, device: oracle.model()
    return module


@pytest.fixture(scope="module")
def processing():
    """inference_pipeline/processing.py."""
    return loaded("processing_under_test", SCRIPT.with_name("processing.py"))


def loaded(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def dice(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [
        2 * np.count_nonzero((a == k) & (b == k))
        / (np.count_nonzero(a == k) + np.count_nonzero(b == k))
        for k in range(1, 6)
    ]  # fmt: skip


def run(script, tmp_path: Path, **options) -> int:
    folders = {"input": tmp_path / "in", "output": tmp_path / "out"}
    return script.main(script.Options(**{**folders, "quiet": True, "page": False, **options}))


def write_image(path: Path, volume: Volume) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(to_sitk(volume), str(path))


@pytest.fixture(scope="module")
def straight():
    """The scene, and the labels that the model gives it."""
    volume, label = oracle.scene(oracle.scene_grid())
    expected = native_labels(passes.segment(oracle.model(), volume, 2)[-1], volume.grid)
    assert min(dice(expected, label)) > 0.93
    return volume, expected


def check_orders(processing, straight, orders) -> None:
    volume, expected = straight
    for order, signs in orders:
        turned = oriented(volume, order, signs)
        scan = processing.Scan(turned.grid, upright(turned))
        result = passes.segment(oracle.model(), scan.upright, 2)[-1]
        labels = native_labels(result, scan.upright.grid)
        mask = processing.own_grid_labels(result, scan.grid, labels)
        assert mask.shape == turned.array.shape
        assert min(dice(upright(Volume(mask, turned.grid)).array, expected)) >= 0.995


def test_some_axis_orders_give_the_same_mask(processing, straight):
    check_orders(processing, straight, ORDERS[5::14])


@pytest.mark.slow
def test_every_axis_order_gives_the_same_mask(processing, straight):
    check_orders(processing, straight, ORDERS)


def turned_grid(degrees: float) -> Grid:
    angle = math.radians(degrees)
    tilt = np.array(
        [[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]]
    )
    turn = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    matrix = turn @ tilt
    size, spacing = (130, 120, 100), (3.1, 2.9, 4.0)
    corner = matrix @ (-(np.array(size) - 1) / 2 * spacing)
    return Grid(size, spacing, tuple(corner), tuple(matrix.ravel()))


def test_an_oblique_scan_gets_its_mask_on_its_own_grid(processing):
    volume, label = oracle.scene(turned_grid(12))
    scan = processing.Scan(volume.grid, upright(volume))
    assert scan.is_oblique
    result = passes.segment(oracle.model(), scan.upright, 2)[-1]
    labels = native_labels(result, scan.upright.grid)
    mask = processing.own_grid_labels(result, scan.grid, labels)
    assert mask.shape == label.shape
    assert min(dice(mask, label)) > 0.9


def test_an_oblique_dicom_series_end_to_end(script, tmp_path):
    volume, label = oracle.scene(turned_grid(9))
    recipe = make_subject(3, 0, matrix=64, size="small", padding=None).recipe
    write_ct(tmp_path / "in" / "oblique", volume, recipe)
    assert run(script, tmp_path, format=("nifti", "seg")) == 0
    written = from_sitk(sitk.ReadImage(str(tmp_path / "out" / "oblique" / "mask.nii.gz")))
    assert np.allclose(written.grid.affine, volume.grid.affine, atol=1e-3)
    assert min(dice(written.array, label)) > 0.9
    assert (tmp_path / "out" / "oblique" / "seg.dcm").exists()


def test_oblique_labels_on_an_upright_grid_are_the_separable_ones(processing):
    volume, _ = oracle.scene(oracle.scene_grid())
    for result in passes.segment(oracle.model(), volume, 2):
        general = processing.oblique_labels(result, volume.grid)
        assert (general == native_labels(result, volume.grid)).mean() > 0.9999


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_an_image_file_with_its_reference(script, tmp_path, suffix):
    volume, label = oracle.scene(oracle.scene_grid())
    turned = oriented(volume, (2, 0, 1), (-1, 1, -1))
    reference = oriented(Volume(label, volume.grid), (2, 0, 1), (-1, 1, -1))
    write_image(tmp_path / "in" / f"scan{suffix}", turned)
    write_image(tmp_path / "in" / "scan_seg.nii.gz", reference)
    assert run(script, tmp_path) == 0
    written = from_sitk(sitk.ReadImage(str(tmp_path / "out" / "scan" / "mask.nii.gz")))
    assert written.array.dtype == np.uint8
    assert np.allclose(written.grid.affine, turned.grid.affine, atol=1e-3)
    assert min(dice(written.array, reference.array)) > 0.93
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open(encoding="utf-8-sig")))
    assert [(row["pass"], row["value"]) for row in rows] == [
        (str(number), str(k)) for number in (1, 2) for k in range(1, 6)
    ]
    assert all(float(row["dice"]) > 0.85 for row in rows)
    assert all(float(row["hd95_mm"]) < 9 for row in rows)
    assert (tmp_path / "out" / "scan" / "overlay.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "out" / "scan" / "report.json").read_text())
    assert [row["status"] for row in report["structures"]] == ["complete"] * 5
    assert report["flags"] == []


@pytest.mark.parametrize("grid", [oracle.scene_grid(), turned_grid(9)], ids=["upright", "oblique"])
def test_specks_are_not_bone_unless_wanted(script, tmp_path, grid):
    volume, label = oracle.scene(grid)
    middle = np.rint(np.linalg.solve(grid.affine, [0, -60, 30, 1])[:3]).astype(int)
    speck = tuple(slice(i, i + n) for i, n in zip(middle, (2, 2, 1), strict=True))
    volume.array[speck] = oracle.SCENE[2][0]
    assert not label[speck].any()
    write_image(tmp_path / "in" / "scan.nrrd", volume)
    found = []
    for least in ({}, {"least_part_mm3": 0.0}):
        assert run(script, tmp_path, **least) == 0
        mask = from_sitk(sitk.ReadImage(str(tmp_path / "out" / "scan" / "mask.nii.gz"))).array
        found.append(int(np.count_nonzero(mask[speck])))
        assert min(dice(mask, label)) > 0.9
    assert found[0] == 0 < found[1]


@pytest.mark.parametrize("wrong", [0.5, -1])
def test_a_reference_that_is_no_label_map_is_named_and_not_used(script, tmp_path, capsys, wrong):
    volume, label = oracle.scene(oracle.scene_grid())
    label = label.astype(np.float32 if wrong == 0.5 else np.int16)
    label[0, 0, 0] = wrong
    write_image(tmp_path / "in" / "scan.nrrd", volume)
    write_image(tmp_path / "in" / "scan_seg.nii.gz", Volume(label, volume.grid))
    assert run(script, tmp_path) == 1
    assert "scan_seg.nii.gz: labels must be whole numbers" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open(encoding="utf-8-sig")))
    assert len(rows) == 5 and not any(row.get("dice") for row in rows)


@pytest.mark.parametrize("broken", ["link", "folder"])
def test_a_reference_that_cannot_be_opened_costs_the_score_alone(script, tmp_path, capsys, broken):
    volume, _ = oracle.scene(oracle.scene_grid())
    write_image(tmp_path / "in" / "scan.nrrd", volume)
    path = tmp_path / "in" / "scan_seg.nii.gz"
    path.symlink_to(tmp_path / "gone") if broken == "link" else path.mkdir()
    assert run(script, tmp_path) == 1
    assert "its reference was not used" in capsys.readouterr().err
    assert (tmp_path / "out" / "scan" / "mask.nii.gz").exists()


def test_as_many_passes_as_in_training(script, tmp_path, monkeypatch):
    volume, _ = oracle.scene(oracle.scene_grid())
    write_image(tmp_path / "in" / "scan.nrrd", volume)
    monkeypatch.setattr(
        script,
        "load_model",
        lambda path, device: replace(oracle.model(), windows=("scan", "pelvis", "pelvis")),
    )
    assert run(script, tmp_path) == 0
    report = json.loads((tmp_path / "out" / "scan" / "report.json").read_text())
    assert {row["pass"] for row in report["scores"]} == {3}


def test_a_bad_case_does_not_stop_the_others(script, tmp_path, capsys):
    volume, _ = oracle.scene(oracle.scene_grid())
    write_image(tmp_path / "in" / "good.nrrd", volume)
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no image")
    (tmp_path / "in" / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert run(script, tmp_path) == 1
    printed = capsys.readouterr()
    assert "Failed: bad: bad.nii.gz: cannot be read" in printed.err
    assert "Failed: evil" in printed.err and "refused" in printed.err
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        "good",
        "inference.log",
        "summary.csv",
    ]


def test_a_fault_of_ours_does_not_stop_the_others(script, tmp_path, monkeypatch, capsys):
    volume, _ = oracle.scene(oracle.scene_grid())
    for name in ("a", "b"):
        write_image(tmp_path / "in" / f"{name}.nrrd", volume)
    real = case_module.read_scan
    monkeypatch.setattr(
        case_module, "read_scan", lambda case: {}["?"] if case.name == "a" else real(case)
    )
    assert run(script, tmp_path) == 1
    assert "Failed: a: unexpected KeyError" in capsys.readouterr().err
    assert (tmp_path / "out" / "b" / "mask.nii.gz").exists()


def test_none_of_the_structures_is_an_answer(script, tmp_path, capsys):
    """An empty mask, one flag, no volumes, a row in summary and page, and not a failure."""
    volume, _ = oracle.scene(oracle.scene_grid())
    chest = Volume(np.minimum(volume.array, 60), volume.grid)
    recipe = make_subject(3, 0, matrix=64, size="small", padding=None).recipe
    write_ct(tmp_path / "in" / "chest", chest, recipe)
    assert run(script, tmp_path, page=True) == 0
    folder = tmp_path / "out" / "chest"
    report = json.loads((folder / "report.json").read_text())
    assert report["flags"] == [evidence.NOTHING] and not report["problems"]
    assert {row["volume_ml"] for row in report["structures"]} == {None}
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "mask.nii.gz"))).any()
    assert (folder / "overlay.png").exists() and not (folder / "seg.dcm").exists()
    with (tmp_path / "out" / "summary.csv").open(newline="", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert {key for key, value in row.items() if value} == {"case", "flags", "input"}
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert evidence.NOTHING in page and "Failed" not in page and ", mL" not in page
    assert "<table" not in (folder / "view.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.count(f"Flag: chest: {evidence.NOTHING}") == 1


def test_a_reference_is_scored_where_nothing_was_found(script, tmp_path):
    volume, label = oracle.scene(oracle.scene_grid())
    write_image(tmp_path / "in" / "a.nii.gz", Volume(np.minimum(volume.array, 60), volume.grid))
    write_image(tmp_path / "in" / "a_seg.nii.gz", Volume(label, volume.grid))
    assert run(script, tmp_path) == 0
    with (tmp_path / "out" / "summary.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["pass"] for row in rows] == ["1"] * 5 + ["2"] * 5
    assert {(row["outcome"], row["flags"]) for row in rows} == {("missed", evidence.NOTHING)}


def test_missing_and_cut_structures_are_named(script, tmp_path):
    volume, label = oracle.scene(oracle.scene_grid())
    array = volume.array.copy()
    array[label == 3] = 40
    cut = Volume(
        array[:, :, 20:], volume.grid.cropped((0, 0, 20), (*array.shape[:2], array.shape[2] - 20))
    )
    write_image(tmp_path / "in" / "cut.nii.gz", cut)
    assert run(script, tmp_path) == 0
    report = json.loads((tmp_path / "out" / "cut" / "report.json").read_text())
    flags = "; ".join(report["flags"])
    assert "missing: sacrum" in flags
    assert "cut by the field of view: left femur, right femur" in flags
    femur = report["structures"][3]
    assert femur["volume_ml"] is None and femur["visible_ml"] > 20


def test_a_zip_is_unpacked(script, tmp_path):
    volume, _ = oracle.scene(oracle.scene_grid())
    write_image(tmp_path / "scan.nrrd", volume)
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "study.zip", "w") as archive:
        archive.write(tmp_path / "scan.nrrd", "../../deep/scan.nrrd")
    (tmp_path / "in" / "broken.zip").write_bytes(b"PK nothing")
    assert run(script, tmp_path) == 1
    assert (tmp_path / "out" / "study" / "mask.nii.gz").exists()


def test_an_interruption_keeps_finished_cases(script, tmp_path, monkeypatch, capsys):
    volume, _ = oracle.scene(oracle.scene_grid())
    for name in ("a", "b", "c"):
        write_image(tmp_path / "in" / f"{name}.nrrd", volume)
    real, calls = passes.segment, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(passes, "segment", interrupted)
    assert run(script, tmp_path) == 130
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a",
        "inference.log",
        "summary.csv",
    ]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["my_scans"], "run_inference.py: my_scans: no option is called so"),
        (["--ouput", "x"], "--output"),
        (["--output", str(SCRIPT)], "is no folder, or lies in none"),
        (["--model", "nowhere.pth"], "no network at nowhere.pth"),
        (["--passes", "many"], "invalid"),
        (["--threads", "0"], "--threads 0: at least one"),
        (["--device", "tpu"], "device tpu: auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "device cuda:99: "),
    ],
)
def test_the_command_line_fails_in_one_sentence(tmp_path, arguments, expected):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert expected in (done.stderr + done.stdout) and "Traceback" not in done.stderr


def test_options_say_what_the_package_does(script):
    assert script.Options().least_part_mm3 == LEAST_PART_MM3
    assert script.Options().part_voxel_mm == PART_VOXEL_MM


def test_an_empty_input_is_one_sentence(script, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no scan in .*: put DICOM"):
        run(script, tmp_path)
    with pytest.raises(ValueError, match="at least one pass"):
        run(script, tmp_path, passes=0)
    with pytest.raises(ValueError, match="no such file or folder"):
        run(script, tmp_path, input=tmp_path / "nowhere")


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    """A phantom patient in the CTPEL layout, with its SEG."""
    folder = tmp_path_factory.mktemp("dicom") / "Patient_07"
    write_subject(folder, make_subject(3, 0, matrix=64, size="small", implant="", padding=None))
    return folder


def test_dicom_to_all_outputs(script, tmp_path, dicom):
    assert run(script, tmp_path, input=dicom, probabilities=True, meshes="stl", tta=True) == 0
    folder = tmp_path / "out" / "Patient_07"
    names = {path.name for path in folder.iterdir()}
    assert {"mask.nii.gz", "overlay.png", "report.json", "probabilities.nii.gz"} <= names
    report = json.loads((folder / "report.json").read_text())
    assert ("seg.dcm" in names) == any(row["status"] != "missing" for row in report["structures"])
    assert {row["pass"] for row in report["scores"]} == {1, 2}
    assert report["problems"] == []
    assert report["identity"]["input_sha256"] and report["stages"]["passes"]["seconds"] > 0


def test_a_site_s_own_names_are_scored_by_its_rules(script, tmp_path, dicom):
    names = tmp_path / "names.json"
    rules = [
        {"label": "left femur", "structure": "right femur"},
        {"label": "right femur", "structure": "left femur"},
        {"label": "sacrum", "ignore": True},
    ]
    names.write_text(json.dumps(rules[2:]))
    assert run(script, tmp_path, input=dicom, page=False) == 0
    report = tmp_path / "out" / "Patient_07" / "report.json"
    by_codes = {
        row["structure"]: row["outcome"] for row in json.loads(report.read_text())["scores"]
    }
    assert run(script, tmp_path, input=dicom, page=False, structures=names) == 0
    scores = json.loads(report.read_text())["scores"]
    by_rules = {row["structure"]: row["outcome"] for row in scores}
    assert by_rules == by_codes | {"sacrum": "not scored"} != by_codes
    names.write_text(json.dumps(rules))
    assert run(script, tmp_path, input=dicom, page=False, structures=names) == 1
    (problem,) = json.loads(report.read_text())["problems"]
    assert "left and right are swapped" in problem
    with pytest.raises(ValueError, match="no list of structure rules"):
        run(script, tmp_path, input=dicom, structures=tmp_path / "nowhere.json")


def test_a_second_run_does_the_rest(script, tmp_path, capsys):
    volume, _ = oracle.scene(oracle.scene_grid())
    write_image(tmp_path / "in" / "a.nrrd", volume)
    assert run(script, tmp_path) == 0
    before = (tmp_path / "out" / "a" / "mask.nii.gz").stat().st_mtime_ns
    write_image(tmp_path / "in" / "b.nrrd", volume)
    assert run(script, tmp_path) == 0
    assert (tmp_path / "out" / "a" / "mask.nii.gz").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "b" / "mask.nii.gz").exists()
    assert (
        len(list(csv.DictReader((tmp_path / "out" / "summary.csv").open(encoding="utf-8-sig"))))
        == 10
    )
    assert run(script, tmp_path, passes=1) == 0
    assert (tmp_path / "out" / "a" / "mask.nii.gz").stat().st_mtime_ns != before


def test_results_among_the_scans_are_refused_and_folders_of_others_left_alone(
    script, tmp_path, dicom, capsys
):
    scans = tmp_path / "scans"
    shutil.copytree(dicom, scans / "Patient_07")
    before = sorted(scans.rglob("*"))
    for output in (scans, scans / "results"):
        with pytest.raises(ValueError, match="lies in --input"):
            run(script, tmp_path, input=scans, output=output)
    assert run(script, tmp_path, input=scans / "Patient_07", output=scans) == 1
    assert "holds no report.json of this program and is left alone" in capsys.readouterr().err
    assert [path for path in sorted(scans.rglob("*")) if path in before] == before


def test_what_is_missing_of_a_result_is_made_again(script, tmp_path, monkeypatch, capsys):
    volume, _ = oracle.scene(oracle.scene_grid((6.2, 5.8, 8.0)))
    recipe = make_subject(3, 0, matrix=64, size="small", padding=None).recipe
    write_ct(tmp_path / "in" / "scan", volume, recipe)

    def refused(*_, **__):
        raise ValueError("the source cannot be referred to")

    with monkeypatch.context() as broken:
        broken.setattr("multipass.results.products.write_seg", refused)
        assert run(script, tmp_path) == 1
    assert "no seg.dcm: the source cannot be referred to" in capsys.readouterr().err
    assert run(script, tmp_path) == 0
    seg, mask = (tmp_path / "out" / "scan" / name for name in ("seg.dcm", "mask.nii.gz"))
    content = mask.read_bytes()
    seg.unlink()
    mask.write_bytes(content[: len(content) // 2])
    assert run(script, tmp_path) == 0
    assert seg.exists() and mask.read_bytes() == content


def test_two_runs_at_once_are_one_after_the_other(script, tmp_path):
    write_image(tmp_path / "in" / "a.nrrd", oracle.scene(oracle.scene_grid())[0])
    with (
        claimed(tmp_path / "out"),
        pytest.raises(ValueError, match="another run is writing to"),
    ):
        run(script, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_loop_over_patients_keeps_each_result(script, tmp_path, capsys):
    """Scans of one name, one of them below a name that is no UTF-8, into one folder."""
    volume, label = oracle.scene(oracle.scene_grid((6.2, 5.8, 8.0)))
    turned = Volume(volume.array, replace(volume.grid, origin_mm=(-400.0, 0.0, 0.0)))
    folders = [tmp_path / "A", tmp_path / os.fsdecode(b"M\xfcller")]
    for folder, scan in zip(folders, (volume, turned), strict=True):
        write_image(tmp_path / "ct.nrrd", scan)
        folder.mkdir()
        (tmp_path / "ct.nrrd").rename(folder / "ct.nrrd")
        assert run(script, tmp_path, input=folder, page=True) == 0
    origins = [
        sitk.ReadImage(str(tmp_path / "out" / name / "mask.nii.gz")).GetOrigin()[0]
        for name in ("ct", "M_ller_ct")
    ]
    assert origins == pytest.approx([volume.grid.origin_mm[0], -400.0], abs=1e-3)
    lines = (tmp_path / "out" / "summary.csv").read_text(encoding="utf-8-sig").splitlines()
    assert {line.split(",")[0] for line in lines} == {"case", "ct", "M_ller_ct"}
    assert "M\\udcfcller/ct.nrrd" in (tmp_path / "out" / "index.html").read_text()


def test_formats_that_give_no_mask_are_refused(script, tmp_path, capsys):
    write_image(tmp_path / "in" / "a.nrrd", oracle.scene(oracle.scene_grid((6.2, 5.8, 8.0)))[0])
    with pytest.raises(ValueError, match="--format: name nifti, seg, labelmap"):
        run(script, tmp_path, format=())
    assert run(script, tmp_path, format=("nifti", "rtstruct")) == 0
    assert "no rtstruct.dcm: only a scan" in (tmp_path / "out" / "a" / "report.json").read_text()
    assert run(script, tmp_path, format=("seg",)) == 1
    assert "Failed: a: --format seg is for DICOM" in capsys.readouterr().err


def test_a_full_disk_takes_no_mask_away(script, tmp_path, monkeypatch, capsys):
    write_image(tmp_path / "in" / "a.nrrd", oracle.scene(oracle.scene_grid((6.2, 5.8, 8.0)))[0])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("multipass.results.products.page_data", full)
        broken.setattr("multipass.results.products.overlay", full)
        broken.setattr("multipass.results.summary.write_index", full)
        assert run(script, tmp_path, page=True) == 1
    printed = capsys.readouterr()
    for name in ("a: no overlay.png", "a: no view.html", "no index.html"):
        assert f"Failed: {name}: [Errno 28] No space left on device" in printed.err
    assert "1 case segmented, 1 with something missing" in printed.out
    held = {path.name for path in (tmp_path / "out" / "a").iterdir()}
    assert held == {"mask.nii.gz", "report.json"}
    assert run(script, tmp_path, page=True) == 0
    assert (tmp_path / "out" / "a" / "view.html").exists()


def test_mirroring_needs_both_sides():
    model = oracle.model()
    with pytest.raises(ValueError, match="on one side only"):
        with_mirroring(replace(model, structures=model.structures[1:]))
    assert with_mirroring(model).structures == model.structures


def test_mirroring_swaps_sides():
    structures = oracle.model().structures

    class Sided(Network):
        classes = 6

        def forward(self, image, context, pass_index=0):
            bone = (image[:, 0] - 0.5) * 40
            left = torch.arange(image.shape[2])[None, :, None, None] >= image.shape[2] / 2
            logits = [torch.zeros_like(bone), torch.where(left, bone, -50.0)]
            logits += [torch.where(left, -50.0, bone)] + [torch.full_like(bone, -50.0)] * 3
            return torch.stack(logits, 1)

    image = torch.rand(1, 1, 8, 6, 4)
    context = torch.softmax(torch.rand(6, 8, 6, 4), 0)
    plain = Sided().look(image, context.__getitem__)
    mirrored = Mirrored(Sided(), structures).look(image, context.__getitem__)
    for c in range(6):
        assert torch.allclose(plain(c), mirrored(c), atol=1e-5)


def test_a_patient_file_gives_a_mask_on_its_sources_grid(script, tmp_path, dicom):
    patient, _ = prepare_patient(dicom, dicom.parent)
    (tmp_path / "in").mkdir()
    write_patient(tmp_path / "in" / "Patient_07.pkl", patient)
    assert run(script, tmp_path) == 0
    written = from_sitk(sitk.ReadImage(str(tmp_path / "out" / "Patient_07" / "mask.nii.gz")))
    assert list(written.grid.size) == patient["source"]["size"]
    assert np.allclose(written.grid.origin_mm, patient["source"]["origin_mm"], atol=1e-3)


def test_a_tilted_gantry_gets_mask_seg_and_ct_on_one_grid(script, tmp_path):
    subject = make_subject(3, 0, matrix=64, size="small", implant="", padding=None)
    folder, grid = tmp_path / "in" / "tilted", subject.volume.grid
    write_ct(folder, subject.volume, subject.recipe)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        x, y, z = map(float, dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, f"{y + 0.25 * (z - grid.origin_mm[2]):.4f}", z]
        dataset.save_as(path)
    assert run(script, tmp_path) == 0
    out = tmp_path / "out" / "tilted"
    scan, mask = (
        from_sitk(sitk.ReadImage(str(out / name))) for name in ("ct.nii.gz", "mask.nii.gz")
    )
    assert np.allclose(scan.grid.affine, mask.grid.affine) and scan.grid.size == mask.grid.size
    report = json.loads((out / "report.json").read_text())
    assert any("gantry tilt of 14.0 degrees" in flag for flag in report["flags"])
    assert (out / "seg.dcm").exists() == bool(mask.array.any())
