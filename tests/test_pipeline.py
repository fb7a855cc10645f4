"""The three scripts, as a user runs them, on a tiny cohort."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from multipass.data.patient_files import read_dataset
from multipass.dicom.choice import choose
from multipass.dicom.ct import read_ct
from multipass.dicom.series import find
from multipass.evaluation.metrics import METRICS
from multipass.geometry.volume import from_sitk, upright

ROOT = Path(__file__).resolve().parent.parent
SCORES = ("value", "outcome", *METRICS, "volume_ml", "reference_ml")


def run(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_processing_training_and_inference_on_dicom(cohort_dir, tmp_path):
    run("processing.py", "--input", cohort_dir, "--output", tmp_path / "processed", cwd=tmp_path)
    dataset_path = tmp_path / "processed" / "complete_dataset.pkl"
    assert len(read_dataset(dataset_path)["patients"]) == 3

    trained = run(
        "training.py", "--data", dataset_path, "--output", tmp_path, "--epochs", 2,
        "--steps-per-epoch", 3, "--filters", 8, 16, 16, 16, "--folds", 3, "--name", "one",
        "--passes", 2, "--dicom", cohort_dir, cwd=tmp_path,
    )  # fmt: skip
    model_path = tmp_path / "best_model.pth"
    assert "best_model.pth: Dice" in trained.stdout
    assert f"run_inference.py --model {model_path}" in trained.stdout
    torch.load(model_path, weights_only=True)

    results = tmp_path / "results"
    inferred = run(
        "inference_pipeline/run_inference.py", "--input", cohort_dir, "--output", results,
        "--model", model_path, cwd=tmp_path,
    )  # fmt: skip
    assert inferred.stdout.splitlines()[0].startswith(f"Network {model_path}, SHA-256 ")
    cases = sorted(p for p in results.iterdir() if p.is_dir())
    assert len(cases) == 3
    rows = read_table(results / "summary.csv")
    validated = read_table(tmp_path / "runs" / "one" / "native.csv")
    assert len(validated) == 5 * 2
    for row in validated:
        (same,) = [r for r in rows if all(r[k] == row[k] for k in ("case", "pass", "structure"))]
        assert {key: same[key] for key in SCORES} == {key: row[key] for key in SCORES}
    assert {row["pass"] for row in rows} == {"1", "2"}
    assert len(rows) == 3 * 5 * 2
    for folder, case in zip(sorted(cohort_dir.iterdir()), cases, strict=True):
        assert (case / "overlay.png").stat().st_size > 10_000
        mask = from_sitk(sitk.ReadImage(str(case / "mask.nii.gz")))
        ct = read_ct(choose(find(folder / "im_1"))[0]).volume
        np.testing.assert_allclose(mask.grid.affine, ct.grid.affine, atol=1e-3)
        assert upright(mask).array.shape == upright(ct).array.shape
        assert mask.array.max() <= 5
