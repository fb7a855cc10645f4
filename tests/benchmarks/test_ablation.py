"""The tables of the benchmarks that score networks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from multipass.evaluation.metrics import METRICS, bootstrap_interval

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scripts():
    """benchmarks/ablation.py and evaluate.py as modules."""
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    found = []
    for name in ("ablation", "evaluate"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        found.append(importlib.util.module_from_spec(spec))
        sys.modules[name] = found[-1]
        spec.loader.exec_module(found[-1])
    yield found
    sys.path[:] = before
    for name in {"ablation", "evaluate", "native_scores", "training"} - known:
        sys.modules.pop(name, None)


@pytest.fixture
def script(scripts):
    return scripts[0]


def rows(script, gain):
    """Two seeds, four patients, two structures; the second pass gains `gain` of a patient."""
    found = []
    for seed in (0, 1):
        for patient in range(4):
            for output in ("pass 1", "pass 2"):
                for structure in ("sacrum", "left femur"):
                    dice = 0.8 + 0.01 * patient + 0.02 * seed
                    dice += gain[patient] if output == "pass 2" else 0
                    values = ("multi-pass", str(seed), str(patient), output)
                    row = dict(zip(script.KEY, values, strict=True))
                    figures = {"dice": f"{dice:.4f}", "hd95_mm": "3", "outcome": "scored"}
                    found.append(row | {"structure": structure} | figures)
    return found


def test_a_patient_counts_once_whatever_the_seeds(script):
    gain = [0.01, 0.02, 0.03, 0.04]
    found = rows(script, gain)
    scores = sys.modules["native_scores"]
    values = scores.by_patient(found, "dice")
    one, two = ("multi-pass", "pass 1"), ("multi-pass", "pass 2")
    assert values[one]["1"] == pytest.approx(0.82)
    differences = scores.paired(found, "dice", two, one)
    assert list(differences.values()) == pytest.approx(gain)
    low, high = bootstrap_interval(gain)
    line = next(
        line for line in script.table(found, script.DIFFERENCES) if "multi-pass, pass 2 - " in line
    )
    assert f"{np.mean(gain):.4f} [{low:.4f}, {high:.4f}]" in line
    assert line.endswith("| 4 of 4 |")


def test_scans_of_one_anatomy_are_drawn_together(scripts):
    """Twenty scans of two anatomies have the interval of two values."""
    _, evaluate = scripts
    found = [
        {"arm": evaluate.NAME, "output": "pass 2", "patient": str(k), "structure": "sacrum"}
        | {"outcome": "scored", "group": f"anatomy {k // 10}", **dict.fromkeys(METRICS, k // 10)}
        | dict.fromkeys(evaluate.KINDS, 0)
        for k in range(20)
    ]
    assert "| 0.500 [0.000, 1.000] |" in evaluate.by_structure(found, "pass 2")[-1]
    assert "| 0.500 [0.000, 1.000] |" in evaluate.by_kind(found, "pass 2")[2]


def test_results_of_something_else_are_not_mixed_in(script, tmp_path):
    claim = sys.modules["native_scores"].claim
    claim(tmp_path / "new", {"minutes": 10.0, "data": "a"})
    claim(tmp_path / "new", {"minutes": 10.0, "data": "a"})
    with pytest.raises(ValueError, match="minutes = 10.0, not 15.0"):
        claim(tmp_path / "new", {"minutes": 15.0, "data": "a"})
    with pytest.raises(ValueError, match="tta = None, not True"):
        claim(tmp_path / "new", {"minutes": 10.0, "data": "a", "tta": True})


def test_a_missed_structure_is_counted_and_has_no_distance(script):
    found = rows(script, [0.0] * 4)
    found[0] |= {"dice": "0", "hd95_mm": "nan", "outcome": "missed"}
    line = next(
        line
        for line in script.table(found, script.DIFFERENCES)
        if line.startswith("| multi-pass | pass 1 ")
    )
    assert line.endswith("| 3.0 [3.0, 3.0] | 1, 0 |")
    assert "| 0.610 |" in line


def test_to_miss_a_bone_does_not_better_the_distance(script):
    found = rows(script, [0.0] * 4)
    for row in found:
        row["hd95_mm"] = "40" if row["structure"] == "left femur" else "4"
        if row["structure"] == "left femur" and row["output"] == "pass 2":
            row |= {"hd95_mm": "nan", "dice": "0", "outcome": "missed"}
    one, two = ("multi-pass", "pass 1"), ("multi-pass", "pass 2")
    assert sys.modules["native_scores"].paired(found, "hd95_mm", two, one) == dict.fromkeys(
        "0123", 0.0
    )
    (line,) = (line for line in script.by_seed(found) if "pass 2" in line)
    assert line == "| multi-pass | pass 2 | 0.408 | 0.417 | 4.0 | 4.0 |"


def test_results_are_compared_with_others_of_the_same_scans_alone(scripts, tmp_path):
    ablation, evaluate = scripts
    scores = sys.modules["native_scores"]
    new, old = rows(ablation, [0.03, 0.02, 0.01, 0.0]), rows(ablation, [0.01] * 4)
    scores.claim(tmp_path, {"test": "these", "model": "old"})
    scores.write_rows(tmp_path / "rows.csv", old)
    facts = {"test": "these", "model": "new"}
    lines = evaluate.against(evaluate.other_rows(tmp_path, facts), new)
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        f"| multi-pass, {name} - other results, {name}" for name in ("pass 1", "pass 2")
    ]
    assert "| 0.0000 [0.0000, 0.0000] |" in lines[2] and lines[2].endswith("| 0 of 4 |")
    assert "| 0.0050 [" in lines[3] and lines[3].endswith("| 2 of 4 |")
    with pytest.raises(ValueError, match="no results of these scans"):
        evaluate.other_rows(tmp_path, {"test": "those", "model": "new"})
    with pytest.raises(ValueError, match="no results of these scans"):
        evaluate.other_rows(tmp_path / "nowhere", facts)
