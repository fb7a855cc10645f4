"""The cases of a run by workers: the same results as in one process, and what a worker refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import oracle
import pytest
import SimpleITK as sitk

from multipass import api
from multipass.claims import claimed, holder_of
from multipass.data.archives import Archive
from multipass.data.case import Case
from multipass.files import ROOT, code_sha256
from multipass.geometry.volume import Volume, to_sitk
from multipass.inference import case as case_module
from multipass.inference import cohort
from multipass.inference.case import Request
from multipass.inference.cohort import Labour, Run, Task, each_segmented, segment_apart
from multipass.phantom import make_subject
from multipass.phantom.writer import write_ct
from multipass.results.output_folder import OutputFolder
from multipass.workers import this_process

SCRIPT = ROOT / "inference_pipeline" / "run_inference.py"
REQUEST = Request(api.Settings(), Path("none.pth"))


def write_image(path: Path, volume: Volume) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(to_sitk(volume), str(path))
    return path


# ---------------------------------------------------------- the loop over cases


def test_cases_are_named_unpacked_and_reported_one_by_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        archive.writestr("scan.nii", "voxels")
    (tmp_path / "to").mkdir()
    (tmp_path / "out").mkdir()
    study = Archive(tmp_path / "study.zip", tmp_path / "to", uses=1)
    gone = Archive(tmp_path / "gone.zip", tmp_path / "to", uses=1)
    cases = [
        Case("ct", tmp_path / "ct.nii"),
        Case("gone", tmp_path / "to" / "x.nii", archive=gone),
        Case("scan", tmp_path / "to" / "scan.nii", archive=study),
    ]

    def work(task: Task) -> dict:
        if task.case.name == "ct":
            raise ValueError("no scan")
        return {"case": task.place.path.name, "read": task.case.path.read_text()}

    output = OutputFolder(tmp_path / "out")
    done = [(c.name, what) for c, what in each_segmented(cases, output, work, this_process)]
    assert [name for name, _ in done] == ["ct", "gone", "scan"]
    assert str(done[0][1]) == "no scan" and isinstance(done[1][1], FileNotFoundError)
    assert done[2][1] == {"case": "scan", "read": "voxels"} == output.reports["scan"]
    assert list((tmp_path / "to").iterdir()) == []


def test_labour_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="--jobs 0: at least 1"):
        Labour(jobs=0)
    with pytest.raises(ValueError, match="--jobs is for one machine"):
        Labour(jobs=2, cluster="tcp://localhost:8786")
    one_sided = replace(oracle.model(), structures=oracle.model().structures[1:])
    request = replace(REQUEST, settings=api.Settings(tta=True))
    with pytest.raises(ValueError, match="on one side only"):
        Labour(jobs=2).work(request, one_sided, Path(), lambda case, stage: None)


# -------------------------------------------------------------- a worker's part


@pytest.fixture
def task(tmp_path) -> Task:
    path = write_image(tmp_path / "a.nrrd", oracle.scene(oracle.scene_grid((6.2, 5.8, 8.0)))[0])
    (tmp_path / "out").mkdir()
    case = Case("a", path)
    return Task(case, OutputFolder(tmp_path / "out").place_for(case, str))


def run_of(task: Task, **other) -> Run:
    holder = holder_of(task.place.path.parent)
    return replace(Run(oracle.model().sha256, code_sha256(), 1, holder), **other)


def test_a_worker_refuses_another_program_and_another_network(task, monkeypatch):
    cohort._model.cache_clear()
    monkeypatch.setattr(api, "load_model", lambda path, device: oracle.model())
    with pytest.raises(ValueError, match="has another version of this program than the run"):
        segment_apart(task, REQUEST, run_of(task, code_sha256="1"))
    with pytest.raises(ValueError, match=r"none\.pth on .* is another network"):
        segment_apart(task, REQUEST, run_of(task, model_sha256="1"))
    assert not task.place.path.exists()


def test_a_worker_whose_run_was_stopped_leaves_no_result(task, monkeypatch):
    cohort._model.cache_clear()
    loaded = []
    monkeypatch.setattr(
        api, "load_model", lambda path, device: loaded.append(path) or oracle.model()
    )
    folder = task.place.path.parent
    with claimed(folder):
        stopped = run_of(task)
    with pytest.raises(ValueError, match="the run that asked for it has ended"):
        segment_apart(task, REQUEST, stopped)
    assert list(folder.iterdir()) == []
    with claimed(folder):
        report = segment_apart(task, REQUEST, run_of(task))
    assert (task.place.path / "mask.nii.gz").exists() and report["case"] == "a"
    assert loaded == [Path("none.pth")]


# -------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Three scans, one of them zipped, and a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    for name, seed in (("one", 3), ("two", 4)):
        subject = make_subject(seed, 0, matrix=64, size="small", implant="", padding=None)
        write_ct(folder / name, subject.volume, subject.recipe)
    with zipfile.ZipFile(folder / "three.zip", "w") as archive:
        archive.write(write_image(folder.parent / "scan.nrrd", subject.volume), "scan.nrrd")
    (folder / "bad.nii.gz").write_bytes(b"no image")
    return folder


def segment(scans: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs the script beside its output, whose path it is given from there."""
    command = [sys.executable, str(SCRIPT), "-i", os.path.relpath(scans, output.parent)]
    command += ["-o", output.name, "--quiet", "--no-page", "--threads", "1", *more]
    return subprocess.run(command, cwd=output.parent, capture_output=True, text=True)


@pytest.fixture(scope="module")
def alone(scans, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "out"
    assert segment(scans, output).returncode == 1
    return output


def check_same(output: Path, expected: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Failed: bad: bad.nii.gz: cannot be read" in done.stderr
    assert "3 of 4 cases segmented, 1 failed" in done.stdout, done.stderr
    names = {path.relative_to(expected) for path in expected.rglob("*")}
    assert {path.relative_to(output) for path in output.rglob("*")} == names
    for name in ("one", "two", "three"):
        masks = [sitk.ReadImage(str(f / name / "mask.nii.gz")) for f in (output, expected)]
        arrays = [sitk.GetArrayFromImage(mask) for mask in masks]
        assert np.array_equal(*arrays) and arrays[0].any()
        reports = [json.loads((f / name / "report.json").read_text()) for f in (output, expected)]
        assert reports[0]["identity"] == reports[1]["identity"]
    tables = [sorted(csv.reader((f / "summary.csv").open())) for f in (output, expected)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_two_jobs_give_the_same_masks_and_go_on_after_each_other(scans, alone, tmp_path):
    output = tmp_path / "out"
    check_same(output, alone, segment(scans, output, "--jobs", "2"))
    before = (output / "one" / "mask.nii.gz").stat().st_mtime_ns
    check_same(output, alone, segment(scans, output))
    assert (output / "one" / "mask.nii.gz").stat().st_mtime_ns == before


def die_of(name: str) -> None:
    """In a worker: reading this case kills it. The one that is started instead of it does not."""
    read = case_module.read_scan

    def deadly(case: Case) -> object:
        if case.name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(case)

    case_module.read_scan = deadly


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_cluster_gives_the_same_masks_although_a_worker_dies(scans, alone, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    output = tmp_path / "out"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):
        client.run(partial(die_of, "two"))
        done = segment(scans, output, "--cluster", local.scheduler_address)
    check_same(output, alone, done)
