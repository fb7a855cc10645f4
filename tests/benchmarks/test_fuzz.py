"""A few of the damaged inputs of benchmarks/fuzz.py; that script runs thousands."""

from __future__ import annotations

import pytest

from benchmarks.fuzz import KINDS, make_good_inputs, run_case

CASES = 52


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_good_inputs(tmp_path_factory.mktemp("fuzz") / "good")


@pytest.mark.slow
def test_damaged_inputs_are_refused_or_read_right(good):
    outcomes = [run_case(good, KINDS[n % len(KINDS)], (7, n)) for n in range(CASES)]
    assert [detail for outcome, detail in outcomes if outcome == "FAULT"] == []
    assert {"refused", "same"} <= {outcome for outcome, _ in outcomes}
