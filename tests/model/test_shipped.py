"""The checkpoint and the sample scans that ship."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from multipass.model import checkpoint
from multipass.structures import PELVIS

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "inference_pipeline" / "best_model.pth"
TEST_DATA = ROOT / "inference_pipeline" / "test_data"
MOST_MODEL_BYTES, MOST_SAMPLE_BYTES = 30_000_000, 15_000_000
# Below what each bone of the samples scores (0.88 to 0.97): for a mask shifted, flipped or empty.
LEAST_DICE = 0.8


def test_the_model_card_describes_this_checkpoint():
    sha256 = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert sha256 in (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    beside = MODEL.with_name("best_model.pth.sha256").read_text(encoding="utf-8")
    assert beside.split() == [sha256, "best_model.pth"]
    assert MODEL.stat().st_size <= MOST_MODEL_BYTES
    model = checkpoint.load(MODEL)
    assert model.structures == list(PELVIS) and model.sha256 == sha256


def test_the_samples_are_small():
    files = [path for path in TEST_DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_SAMPLE_BYTES


@pytest.mark.slow
def test_without_arguments_it_segments_the_samples(tmp_path):
    """Without arguments but for the output, so as to leave the repository's folder alone."""
    script = ROOT / "inference_pipeline" / "run_inference.py"
    command = [sys.executable, str(script), "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.DictReader(file) if row["pass"] == "2"]
    assert len(rows) == 2 * len(PELVIS)
    assert min(float(row["dice"]) for row in rows) >= LEAST_DICE
    assert (tmp_path / "sample_dicom" / "seg.dcm").exists()
