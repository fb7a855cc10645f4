"""A few of the damaged inputs of benchmarks/fuzz.py; that script runs thousands."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from benchmarks.damage import LABEL_MAP, deflate, zip_deep
from benchmarks.fuzz import FILES, KINDS, READERS, make_good_inputs, run_case

CASES = 54


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_good_inputs(tmp_path_factory.mktemp("fuzz") / "good")


@pytest.mark.slow
def test_damaged_inputs_are_refused_or_read_right(good):
    outcomes = [run_case(good, KINDS[n % len(KINDS)], (7, n)) for n in range(CASES)]
    assert [detail for outcome, detail in outcomes if outcome == "FAULT"] == []
    assert {"refused", "same"} <= {outcome for outcome, _ in outcomes}


@pytest.mark.slow
def test_what_is_packed_otherwise_is_read_the_same(good, tmp_path):
    work, generator = tmp_path / "work", np.random.default_rng(1)
    shutil.copytree(good.folder, work)
    zip_deep(work / FILES["zip"], 2)
    assert READERS["zip"](work, good) == ("same", "")
    files = sorted((work / "cohort").rglob("*.dcm"))
    for path in files:
        deflate(path, generator)
    assert READERS["study"](work, good) == READERS["seg"](work, good) == ("same", "")
    (seg,) = (path for path in files if path.parent.name == "im_3")
    shutil.copyfile(work / LABEL_MAP, seg)
    assert READERS["study"](work, good) == READERS["seg"](work, good) == ("same", "")
