"""Metrics against analytic cases, brute force and MONAI, on unequal spacings."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from scipy.ndimage import gaussian_filter

from multipass.evaluation import metrics, surfaces

SPACING_MM = (0.8, 1.3, 3.0)


def blob(seed: int, shape: tuple[int, int, int] = (30, 26, 18)) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return noise > np.quantile(noise, 0.8)


def ball(radius_mm: float, spacing_mm: tuple[float, ...], shift_mm: float = 0.0) -> np.ndarray:
    sides = [np.arange(-34, 34, step) for step in spacing_mm]
    x, y, z = np.meshgrid(sides[0] - shift_mm, sides[1], sides[2], indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2


def box(lower: tuple[int, ...], upper: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((40, 40, 30), bool)
    mask[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))] = True
    return mask


def test_equal_masks_are_perfect():
    row = metrics.compare_structure(blob(1), blob(1), SPACING_MM)
    assert (row["dice"], row["hd95_mm"], row["assd_mm"], row["nsd_2mm"]) == (1, 0, 0, 1)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), SPACING_MM])
def test_with_elements_at_their_centres_nsd_is_that_of_monai(spacing_mm, monkeypatch):
    monkeypatch.setattr(surfaces, "_crossing_table", lambda: np.zeros((256, 3)))
    a, b = blob(2), blob(3) | blob(2)
    theirs = compute_surface_dice(
        torch.as_tensor(np.pad(a, 2))[None, None],
        torch.as_tensor(np.pad(b, 2))[None, None],
        class_thresholds=[surfaces.NSD_TOLERANCE_MM],
        include_background=True,
        spacing=spacing_mm,
        use_subvoxels=True,
    )
    ours = metrics.compare_structure(a, b, spacing_mm)["nsd_2mm"]
    assert ours == pytest.approx(float(theirs), abs=1e-5)


def test_distances_are_those_of_brute_force():
    a, b = surfaces.surface(blob(4), SPACING_MM), surfaces.surface(blob(5), SPACING_MM)
    pairs = np.linalg.norm(a.points_mm[:, None] - b.points_mm[None], axis=2)
    to_b, to_a = pairs.min(axis=1), pairs.min(axis=0)
    total = a.areas_mm2.sum() + b.areas_mm2.sum()
    found = surfaces.surface_distances(a, b)
    expected = ((to_b * a.areas_mm2).sum() + (to_a * b.areas_mm2).sum()) / total
    assert found["assd_mm"] == pytest.approx(expected, rel=1e-5)
    for distance, side in ((to_b, a), (to_a, b)):
        beyond = side.areas_mm2[distance > found["hd95_mm"] + 1e-4].sum() / side.areas_mm2.sum()
        assert beyond <= 0.05
    below = [
        side.areas_mm2[distance >= found["hd95_mm"] - 1e-4].sum() / side.areas_mm2.sum()
        for distance, side in ((to_b, a), (to_a, b))
    ]
    assert max(below) >= 0.05


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (0.87, 0.87, 2.0)])
def test_concentric_balls(spacing_mm):
    row = metrics.compare_structure(ball(16, spacing_mm), ball(13, spacing_mm), spacing_mm)
    assert row["dice"] == pytest.approx(2 * 13**3 / (13**3 + 16**3), abs=0.01)
    assert row["assd_mm"] == pytest.approx(3, abs=0.15)
    assert row["hd95_mm"] == pytest.approx(3, abs=0.4)
    assert row["nsd_2mm"] < 0.05
    assert row["volume_ml"] == pytest.approx(4 / 3 * math.pi * 16**3 / 1000, rel=0.01)


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (0.87, 0.87, 2.0)])
def test_a_shifted_ball_follows_the_law_of_cosines(spacing_mm):
    """The nearest point of a ball moved by d, seen at angle t, is | |r n - d| - r | away."""
    radius, shift = 14.0, 4.0
    balls = ball(radius, spacing_mm), ball(radius, spacing_mm, shift)
    row = metrics.compare_structure(*balls, spacing_mm)
    cosine = np.linspace(-1, 1, 20001)
    distance = np.abs(np.sqrt(radius**2 + shift**2 - 2 * radius * shift * cosine) - radius)
    assert row["assd_mm"] == pytest.approx(distance.mean(), abs=0.1)
    assert row["hd95_mm"] == pytest.approx(np.percentile(distance, 95), abs=0.4)
    assert row["nsd_2mm"] == pytest.approx((distance <= 2).mean(), abs=0.05)


def test_distances_are_in_mm_along_each_axis():
    """A slab moved by two voxels along an axis is two spacings away there, nowhere else."""
    for axis in range(3):
        lower, upper = [0, 0, 0], [40, 40, 30]
        lower[axis], upper[axis] = 10, 20
        moved_lower, moved_upper = list(lower), list(upper)
        moved_lower[axis], moved_upper[axis] = 12, 22
        row = metrics.compare_structure(
            box(tuple(lower), tuple(upper)), box(tuple(moved_lower), tuple(moved_upper)), SPACING_MM
        )
        assert row["hd95_mm"] == pytest.approx(2 * SPACING_MM[axis], rel=1e-5)


def test_thick_slices_carry_their_area():
    surface = surfaces.surface(box((10, 10, 10), (20, 20, 14)), (1.0, 1.0, 5.0))
    assert surface.areas_mm2.sum() == pytest.approx(2 * 100 + 4 * 200, rel=0.1)


def test_the_rules_for_what_is_not_there():
    nothing, something = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    something[5:9, 5:9, 5:9] = True

    def outcome(mask, reference, status=None):
        row = metrics.compare_structure(mask, reference, SPACING_MM, status)
        return row["outcome"], row["dice"], row["nsd_2mm"], row["hd95_mm"]

    assert outcome(nothing, something)[:3] == ("missed", 0, 0)
    assert outcome(something, nothing)[:3] == ("false alarm", 0, 0)
    assert math.isnan(outcome(nothing, something)[3])
    assert outcome(nothing, nothing)[0] == "rightly empty"
    assert math.isnan(outcome(nothing, nothing)[1])
    absent = outcome(something, nothing, "absent")
    assert absent[0] == "not scored" and math.isnan(absent[1])


def test_label_maps_are_compared_structure_by_structure():
    reference = np.zeros((40, 40, 30), np.uint8)
    reference[box((2, 2, 2), (10, 10, 10))] = 1
    reference[box((20, 20, 20), (30, 30, 28))] = 3
    mask = reference.copy()
    mask[mask == 3] = 2
    names = ["left", "right", "sacrum", "tail"]
    rows = metrics.compare(mask, reference, SPACING_MM, names, ["complete"] * 3 + ["absent"])
    assert [row["structure"] for row in rows] == names
    outcomes = [row["outcome"] for row in rows]
    assert outcomes == ["scored", "false alarm", "missed", "not scored"]
    with pytest.raises(ValueError, match="own grid"):
        metrics.compare(mask[1:], reference, SPACING_MM, names)


def test_a_structure_cut_by_the_field_of_view_is_compared_as_it_is():
    cut = box((0, 0, 0), (10, 10, 10))
    row = metrics.compare_structure(cut, cut, SPACING_MM, "cut")
    assert row["dice"] == 1 and row["hd95_mm"] == 0


def test_bootstrap_interval_covers_and_repeats():
    values = np.random.default_rng(0).normal(0.9, 0.05, 40)
    low, high = metrics.bootstrap_interval(values, seed=1)
    half = 1.96 * values.std(ddof=1) / math.sqrt(40)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert metrics.bootstrap_interval(values, seed=1) == (low, high)
    assert all(math.isnan(v) for v in metrics.bootstrap_interval([0.9, float("nan")]))


def test_table_counts_the_missed_and_leaves_out_nan():
    nan = float("nan")
    rows = [
        _row("a", "hip", "scored", 0.9, 2.0),
        _row("b", "hip", "missed", 0.0, nan),
        _row("a", "sacrum", "scored", 0.7, 4.0),
        _row("b", "sacrum", "rightly empty", nan, nan),
    ]
    hip, sacrum, mean = metrics.table(rows)
    assert (hip["cases"], hip["missed"], hip["dice"], hip["dice_worst"]) == (2, 1, 0.45, 0.0)
    assert (hip["hd95_mm"], hip["hd95_mm_worst"]) == (2.0, 2.0)
    assert (sacrum["cases"], sacrum["dice"]) == (1, 0.7)
    assert mean["structure"] == metrics.MEAN_OF_STRUCTURES
    assert mean["dice"] == pytest.approx((0.8 + 0.0) / 2)
    assert (mean["cases"], mean["missed"]) == (2, 1)


def _row(case, structure, outcome, dice, hd95):
    measured = {"dice": dice, "nsd_2mm": dice, "hd95_mm": hd95, "assd_mm": hd95}
    return {"case": case, "pass": 1, "structure": structure, "outcome": outcome, **measured}


@pytest.mark.slow
def test_a_large_scan_takes_seconds():
    reference = np.zeros((512, 512, 500), np.uint8)
    for k in range(5):
        reference[60 + 80 * k : 130 + 80 * k, 150:350, 100:330] = k + 1
    mask = np.roll(reference, (1, 2, 1), (0, 1, 2))
    start = time.perf_counter()
    rows = metrics.compare(mask, reference, (0.8, 0.8, 1.0), [str(k) for k in range(5)])
    assert all(row["outcome"] == "scored" for row in rows)
    assert time.perf_counter() - start < 30
