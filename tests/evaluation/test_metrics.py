"""Metrics against analytic cases, brute force and MONAI, on unequal spacings."""

from __future__ import annotations

import math
import time
import warnings

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


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), SPACING_MM, (0.2, 0.4, 0.6)])
@pytest.mark.parametrize("touching_the_border", [True, False])
def test_all_distances_are_those_of_surface_distance(spacing_mm, touching_the_border):
    published = pytest.importorskip("surface_distance.metrics")
    a, b = blob(2), blob(3) | blob(2)
    if not touching_the_border:
        a, b = np.pad(a, 3), np.pad(b, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it calls SciPy by older names
        theirs = published.compute_surface_distances(a, b, spacing_mm)
    row = metrics.compare_structure(a, b, spacing_mm)
    assert row["hd95_mm"] == pytest.approx(published.compute_robust_hausdorff(theirs, 95), abs=1e-9)
    areas = [theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()]
    both = published.compute_average_surface_distance(theirs) @ np.asarray(areas) / sum(areas)
    assert row["assd_mm"] == pytest.approx(both, rel=1e-6)
    for tolerance_mm in (1, 2, 3):
        nsd = published.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
        assert row[f"nsd_{tolerance_mm}mm"] == pytest.approx(nsd, abs=1e-6)
    assert 0 < row["nsd_1mm"] < row["nsd_3mm"] <= 1


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), SPACING_MM])
@pytest.mark.parametrize("tolerance_mm", [1, 2, 3])
def test_nsd_is_that_of_monai(spacing_mm, tolerance_mm):
    a, b = blob(2), blob(3) | blob(2)
    theirs = compute_surface_dice(
        torch.as_tensor(np.pad(a, 2))[None, None],
        torch.as_tensor(np.pad(b, 2))[None, None],
        class_thresholds=[float(tolerance_mm)],
        include_background=True,
        spacing=spacing_mm,
        use_subvoxels=True,
    )
    ours = metrics.compare_structure(a, b, spacing_mm)[f"nsd_{tolerance_mm}mm"]
    assert ours == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("spacing_mm", [0.1, 0.2, 0.4, 0.6, 0.7, 1.0])
def test_what_lies_at_the_tolerance_is_near(spacing_mm):
    """A slab moved by 1, 2 or 3 mm, a whole number of voxels or just above it."""
    for tolerance_mm in (1, 2, 3):
        steps = math.ceil(tolerance_mm / spacing_mm - 1e-9)
        a, b = np.zeros((2, 100, 6, 6), bool)
        a[20:50], b[20 + steps : 50 + steps] = True, True
        near = metrics.compare_structure(a, b, (spacing_mm, 50.0, 50.0))[f"nsd_{tolerance_mm}mm"]
        assert (near > 0.9) == math.isclose(steps * spacing_mm, tolerance_mm)


def below_mm(spacing_mm: tuple[float, ...]) -> float:
    """Centres of neighbourhoods form a shell up to a voxel thick, so that surfaces look closer than
    they are, by up to half of a voxel's diagonal."""
    return math.hypot(*spacing_mm) / 2


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (0.87, 0.87, 2.0)])
def test_concentric_balls(spacing_mm):
    row = metrics.compare_structure(ball(16, spacing_mm), ball(13, spacing_mm), spacing_mm)
    assert row["dice"] == pytest.approx(2 * 13**3 / (13**3 + 16**3), abs=0.01)
    assert 3 - below_mm(spacing_mm) < row["assd_mm"] < 3
    assert row["hd95_mm"] == pytest.approx(3, abs=0.4)
    assert row["nsd_1mm"] < 0.05
    assert row["volume_ml"] == pytest.approx(4 / 3 * math.pi * 16**3 / 1000, rel=0.01)


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (0.87, 0.87, 2.0)])
def test_a_shifted_ball_follows_the_law_of_cosines(spacing_mm):
    """The nearest point of a ball moved by d, seen at angle t, is | |r n - d| - r | away."""
    radius, shift = 14.0, 4.0
    balls = ball(radius, spacing_mm), ball(radius, spacing_mm, shift)
    row = metrics.compare_structure(*balls, spacing_mm)
    cosine = np.linspace(-1, 1, 20001)
    distance = np.abs(np.sqrt(radius**2 + shift**2 - 2 * radius * shift * cosine) - radius)
    below = below_mm(spacing_mm)
    assert distance.mean() - below < row["assd_mm"] < distance.mean()
    assert row["hd95_mm"] == pytest.approx(np.percentile(distance, 95), abs=0.4)
    assert (distance <= 2).mean() < row["nsd_2mm"] < (distance <= 2 + below).mean()


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


def test_values_of_one_anatomy_are_drawn_together():
    """Five anatomies seen 8 times each say as much as five values do."""
    of_anatomy = np.random.default_rng(0).normal(0.9, 0.05, 5)
    values, groups = np.repeat(of_anatomy, 8), np.repeat(list("abcde"), 8)
    together = metrics.bootstrap_interval(values, groups)
    assert together == pytest.approx(metrics.bootstrap_interval(of_anatomy), abs=1e-12)
    low, high = metrics.bootstrap_interval(values)
    assert together[0] < low < high < together[1]
    assert all(math.isnan(v) for v in metrics.bootstrap_interval(values, ["a"] * 40))


def test_groups_of_unequal_size_give_the_mean_over_values():
    values, groups = [0.0, 0.0, 0.0, 1.0], [1, 1, 1, 2]
    low, high = metrics.bootstrap_interval(values, groups)
    assert (low, high) == (0.0, 1.0)
    rows = [_row(f"s{k}", "hip", "scored", v, 1.0) for k, v in enumerate(values)]
    grouped = [row | {"group": group} for row, group in zip(rows, groups, strict=True)]
    for line in metrics.table(grouped):
        assert (line["dice"], line["dice_low"], line["dice_high"]) == (0.25, 0.0, 1.0)
    assert metrics.table(rows)[0]["dice_high"] < 1


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
    measured = dict.fromkeys(metrics.NSD, dice) | {"dice": dice, "hd95_mm": hd95, "assd_mm": hd95}
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
