"""The scores that a training ends with: patients found again, and those that are not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from multipass.data.cohort import Cohort
from multipass.data.patient_files import read_patient, write_patient
from multipass.data.prepare import prepare_patient
from multipass.model import checkpoint
from multipass.model.network import MultiPassUNet
from multipass.structures import PELVIS, Structure, by_codes
from multipass.training.final_scores import final_scores, find_case


@pytest.fixture(scope="module")
def processed(cohort_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processed")
    for name in ("Patient_01", "Patient_02"):
        write_patient(folder / f"{name}.pkl", prepare_patient(cohort_dir / name, cohort_dir)[0])
    return folder


@pytest.fixture(scope="module")
def model() -> checkpoint.Model:
    torch.manual_seed(0)
    network = MultiPassUNet(1 + len(PELVIS), filters=(4, 4, 8, 8)).eval()
    return checkpoint.Model(network, list(PELVIS), (-200.0, 1000.0), ("scan", "pelvis", "pelvis"))


def test_a_patient_file_leads_back_to_its_scan(processed, cohort_dir):
    source = read_patient(processed / "Patient_01.pkl")["source"]
    case = find_case("Patient_01", source, cohort_dir)
    assert {piece.path.parent for piece in case.series.slices} == {cohort_dir / "Patient_01/im_1"}
    assert [header.uid for header in case.seg] == source["seg_uids"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "Patient_99"}, "no folder .*Patient_99"),
        ({"path": "Patient_02"}, "does not hold its CT, series "),
        ({"seg_uids": ["1.2.3"]}, "does not hold its segmentation, SEG 1.2.3"),
    ],
)
def test_what_is_not_there_is_named(processed, cohort_dir, change, reason):
    source = read_patient(processed / "Patient_01.pkl")["source"]
    with pytest.raises(ValueError, match=reason):
        find_case("Patient_01", {**source, **change}, cohort_dir)
    with pytest.raises(ValueError, match="does not say"):
        find_case("Patient_01", {}, cohort_dir)


def test_one_patient_that_cannot_be_scored_does_not_stop_the_others(
    processed, cohort_dir, model, tmp_path
):
    """And every pass is scored, by the rules that the cohort was processed with."""
    (tmp_path / "Patient_02").symlink_to(cohort_dir / "Patient_02")

    def without_sacrum(attributes: dict) -> list[Structure]:
        return [s for s in by_codes(attributes) if s.name != "sacrum"]

    ids = ["Patient_01", "Patient_02"]
    scores = final_scores(model, Cohort(processed), ids, tmp_path, without_sacrum)
    assert [name for name, _ in scores.failed] == ["Patient_01"]
    assert {row["case"] for row in scores.rows} == {"Patient_02"}
    assert sorted({row["pass"] for row in scores.rows}) == [1, 2, 3]
    for row in scores.rows:
        assert math.isnan(row["dice"]) == (row["structure"] == "sacrum")
    scores.write(tmp_path)
    text = (tmp_path / "native.txt").read_text()
    assert "ASSD mm" in text and "Not scored: Patient_01: no folder" in text
    assert len((tmp_path / "native.csv").read_text().splitlines()) == 1 + 3 * len(PELVIS)


def test_without_scans_the_windows_grids_are_scored(processed, model, tmp_path):
    ids = ["Patient_01", "Patient_02"]
    scores = final_scores(model, Cohort(processed), ids, tmp_path / "nowhere")
    assert (scores.name, scores.failed) == ("grid", [])
    assert str(tmp_path / "nowhere") in scores.title
    assert len(scores.rows) == 2 * 3 * len(PELVIS)
    assert all(0 <= row["dice"] <= 1 for row in scores.rows)
    assert not any("HD95" in line for line in scores.lines())
