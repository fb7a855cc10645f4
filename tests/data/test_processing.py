"""processing.py as users run it: a cohort with a bad patient, a second run, kill -9, a cluster."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from multipass.data.levels import Level
from multipass.data.patient_files import read_dataset, read_patient, window_of
from multipass.geometry.volume import Volume, resample

ROOT = Path(__file__).resolve().parents[2]
SECONDS_COLUMN = "seconds"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "processing.py"), *map(str, arguments)]


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd, timeout=300)


def report(folder: Path) -> list[dict]:
    with (folder / "processing_report.csv").open(encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.pkl"))}


def without_seconds(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != SECONDS_COLUMN} for row in report(folder)]


@pytest.fixture(scope="module")
def processed(cohort_dir, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "new" / "processed_files"
    done = run("--input", cohort_dir, "--output", output, "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert "Processed 3 of 3 patients." in done.stdout
    return output


def test_writes_patients_dataset_report_and_contact_sheet(processed):
    dataset = read_dataset(processed / "complete_dataset.pkl")
    assert list(dataset["patients"]) == ["Patient_01", "Patient_02", "Patient_03"]
    for name, patient in dataset["patients"].items():
        alone = read_patient(processed / f"{name}.pkl")
        assert np.array_equal(alone["fractions"], patient["fractions"])
    rows = report(processed)
    assert [row["outcome"] for row in rows] == ["processed"] * 3
    assert all("sacrum" in row["structures"] for row in rows)
    assert (processed / "processing_report.png").stat().st_size > 10_000


def test_the_pelvis_volume_is_what_the_finest_level_averages_to(processed):
    for patient in read_dataset(processed / "complete_dataset.pkl")["patients"].values():
        near = Level.from_dict(patient["levels"][0])
        ((label, share),) = near.shares()[:1]
        window = window_of(patient)
        for k in range(len(patient["structures"])):
            part = np.where(label == k + 1, 255 if share is None else share, 0) / 255
            averaged = resample(Volume(part.astype(np.float32), near.grid), window)
            stored = patient["fractions"][k] / 255
            assert np.abs(averaged - stored).mean() < 0.05 * stored.mean()


def test_no_data_is_one_sentence_that_says_where_to_ask(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "missing", tmp_path / "empty"):
        done = run("--input", folder, "--output", tmp_path / "out")
        assert done.returncode == 1
        assert "10.23698/aida/ctpel" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_bad_patient_stops_nobody_and_a_second_run_does_only_what_changed(cohort_dir, tmp_path):
    data, output = tmp_path / "ctpel", tmp_path / "out"
    shutil.copytree(cohort_dir, data)
    shutil.rmtree(data / "Patient_02" / "im_3")
    (data / "Patient_04" / "im_1").mkdir(parents=True)
    first = run("--input", data, "--output", output, "--jobs", 2)
    assert first.returncode == 1
    assert "Traceback" not in first.stderr
    assert "Not processed: Patient_02: no DICOM SEG" in first.stderr
    assert "Not processed: Patient_04" in first.stderr
    assert sorted(contents(output)) == ["Patient_01.pkl", "Patient_03.pkl", "complete_dataset.pkl"]
    before = {name: (output / name).stat().st_mtime_ns for name in contents(output)}

    shutil.copytree(cohort_dir / "Patient_02" / "im_3", data / "Patient_02" / "im_3")
    shutil.rmtree(data / "Patient_04")
    second = run("--input", data, "--output", output, "--jobs", 2)
    assert second.returncode == 0, second.stderr
    assert len(read_dataset(output / "complete_dataset.pkl")["patients"]) == 3
    for name in ("Patient_01.pkl", "Patient_03.pkl"):
        assert (output / name).stat().st_mtime_ns == before[name]


def test_defaults_do_not_depend_on_the_current_folder(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "ctpel" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.slow
def test_killed_at_any_moment_then_run_again_gives_the_same_bytes(cohort_dir, processed, tmp_path):
    generator = np.random.default_rng(int(time.time()))
    output = tmp_path / "out"
    for _ in range(4):
        process = subprocess.Popen(
            command("--input", cohort_dir, "--output", output, "--jobs", 1),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(float(generator.uniform(1.0, 5.0)))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run("--input", cohort_dir, "--output", output, "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert contents(output) == contents(processed)
    assert without_seconds(output) == without_seconds(processed)
    assert not list(output.glob(".*.partial"))


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_bytes(cohort_dir, processed, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        done = run("--input", cohort_dir, "--output", tmp_path / "out", "--cluster", address)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(processed)
