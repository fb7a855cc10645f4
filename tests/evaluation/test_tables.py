"""summary.csv and the table of scores."""

from __future__ import annotations

import codecs
import csv
import math
import os

from multipass.evaluation.metrics import NSD
from multipass.evaluation.tables import (
    aligned,
    markdown,
    score_lines,
    with_interval,
    with_nan,
    write_summary,
)

NAN = float("nan")


def row(case: str, number: int, dice: float, outcome: str = "scored") -> dict:
    measured = {"dice": dice, "hd95_mm": 2.0, "assd_mm": 0.5, **dict.fromkeys(NSD, dice)}
    names = {"case": case, "pass": number, "structure": "sacrum", "value": 3, "outcome": outcome}
    return {**names, **measured, "volume_ml": 200.0, "reference_ml": 210.0}


def test_summary_leaves_unknown_cells_blank(tmp_path):
    unscored = {"case": "b", "pass": 2, "structure": "sacrum", "value": 3, "volume_ml": None}
    write_summary(tmp_path / "summary.csv", [row("a", 1, 0.9), row("a", 2, NAN), unscored])
    rows = list(csv.DictReader((tmp_path / "summary.csv").open(encoding="utf-8-sig")))
    assert [r["dice"] for r in rows] == ["0.9000", "", ""]
    assert rows[2]["volume_ml"] == "" and rows[0]["reference_ml"] == "210.0000"


def test_a_spreadsheet_knows_the_letters_of_a_summary(tmp_path):
    names = ["Fälle/Müller.nii", os.fsdecode(b"M\xfcller")]
    write_summary(tmp_path / "summary.csv", [row(name, 1, 0.9) for name in names])
    assert (tmp_path / "summary.csv").read_bytes().startswith(codecs.BOM_UTF8 + b"case,")
    rows = list(csv.DictReader((tmp_path / "summary.csv").open(encoding="utf-8-sig")))
    assert [r["case"] for r in rows] == [names[0], r"M\udcfcller"]


def test_scores_are_means_with_intervals_and_counts():
    lines = score_lines([row("a", 2, 0.9), row("b", 2, 0.8), row("c", 2, 0.0, "missed")])
    assert lines[-1].startswith("Intervals are over cases: too narrow for fewer than 10")
    many = score_lines([row(str(k), 2, 0.9) for k in range(10)])
    assert len(many) == len(lines) - 1
    sacrum = next(line for line in lines if "sacrum" in line)
    assert "0.567" in sacrum and "0.000" in sacrum and sacrum.endswith("1, 0")
    for heading in ("Dice", "NSD 2 mm", "HD95 mm", "ASSD mm"):
        assert sum(f"{heading} [95 %] worst" in line for line in lines) == 1
    assert score_lines([{"case": "a", "pass": 2, "structure": "sacrum"}]) == []


def test_a_mean_without_an_interval_stands_alone():
    assert with_interval(0.9, 0.8, 0.95, 2) == "0.90 [0.80, 0.95]"
    assert with_interval(0.9, NAN, NAN, 2) == "0.90" and with_interval(NAN, NAN, NAN, 2) == "-"


def test_null_becomes_nan_again():
    back = with_nan({"dice": None, "volume_ml": None, "case": "a"})
    assert math.isnan(back["dice"]) and back["volume_ml"] is None


def test_columns_line_up():
    cells = [("a", "bb"), ("ccc", "d")]
    assert aligned(cells) == ["a    bb", "ccc  d"]
    assert markdown(cells) == ["| a | bb |", "|---|---|", "| ccc | d |"]
