"""A pass over parts of the pelvis: what they say together is what one fine window would say."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import SimpleITK as sitk
import torch
from orientation import ORDERS, oriented

from multipass.geometry.volume import Grid, Volume, upright
from multipass.geometry.windows import part_windows, window_over
from multipass.model.evidence import is_background
from multipass.model.maps import ClassMaps, PassResult, confidence, native_labels
from multipass.model.mirrored import with_mirroring
from multipass.model.passes import context_of, segment
from multipass.model.resampling import blend
from multipass.model.way_back import oblique_labels, own_grid_labels
from multipass.results.products import write_probabilities

WINDOWS = ("scan", "pelvis", "parts")
BOX = np.array([[-190.0, -110.0, -150.0], [180.0, 120.0, 130.0]])
CPU = torch.device("cpu")


def linear_maps(window: Grid) -> np.ndarray:
    """Six classes whose probabilities are linear in space: interpolation of any kind keeps them."""
    index = np.stack(np.meshgrid(*map(np.arange, window.size), indexing="ij"))
    x, y, z = index * np.reshape(window.spacing_mm, (3, 1, 1, 1)) + np.reshape(
        window.origin_mm, (3, 1, 1, 1)
    )
    slopes = np.array([x, -x, y, z, -y - z]) / 4000
    return np.concatenate([[1 / 6 - slopes.sum(0)], 1 / 6 + slopes]).astype(np.float32)


def linear_result(windows: list[Grid]) -> PassResult:
    return PassResult(windows, [ClassMaps(linear_maps(w)) for w in windows], [])


def scan_grid(spacing: float = 4.1) -> Grid:
    size = tuple(int(n) for n in (BOX[1] - BOX[0]) / spacing - 2)
    return Grid(size, (spacing,) * 3, tuple(BOX[0] + spacing))


def turned(grid: Grid) -> Grid:
    c, s = np.cos(0.2), np.sin(0.2)
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    size = tuple(n // 2 for n in grid.size)
    middle = grid.box_mm().mean(axis=0) - matrix @ ((np.array(size) - 1) / 2 * grid.spacing_mm)
    return Grid(size, grid.spacing_mm, tuple(middle), tuple(matrix.ravel()))


def dice(one: np.ndarray, other: np.ndarray) -> list[float]:
    both = ((one == k, other == k) for k in range(1, 6))
    return [
        2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)) for a, b in both
    ]


@pytest.fixture(scope="module")
def scene():
    volume, label = oracle.scene(oracle.scene_grid())
    return volume, label, segment(oracle.model(WINDOWS), volume, 4, keep_all=True)


def test_weights_sum_to_one_wherever_a_part_reaches():
    grid = scan_grid(3.0)
    blended = blend(part_windows(BOX), grid.box_mm(), grid.size)
    assert [len(rows) for rows in blended.rows] == [2, 1, 3]
    for rows in blended.rows:
        np.testing.assert_allclose(sum(of_part.sum(1) for of_part in rows), 1, atol=1e-5)
    beyond = blend(part_windows(BOX), BOX + 1000, (8, 8, 8))
    assert not any(of_part.any() for rows in beyond.rows for of_part in rows)


def test_weights_fall_to_a_parts_ends_where_others_overlap_it():
    windows = part_windows(BOX)
    x, y, _ = blend(windows, windows[0].box_mm(), windows[0].size).of_window(0)
    assert x[0].sum() == 1 and x[-1].sum() < 0.05
    assert np.all(np.diff(x.sum(1)) <= 1e-6)
    assert torch.all(y.sum(1) == 1)


def test_a_linear_function_comes_through_parts_as_through_one_window():
    grid = scan_grid()
    parts, whole = part_windows(BOX), window_over(BOX)
    found = native_labels(linear_result(parts), grid)
    assert (found == native_labels(linear_result([whole]), grid)).mean() > 0.999  # but for ties
    assert len(np.unique(found)) == 5
    inner = window_over((BOX - BOX.mean(0)) * 0.7 + BOX.mean(0))
    context = context_of(linear_result(parts), inner, CPU)
    for c, expected in enumerate(linear_maps(inner)):
        np.testing.assert_allclose(context(c), expected, atol=1e-5)


def test_on_an_oblique_grid_parts_say_what_one_window_says():
    grid = turned(scan_grid())
    found = oblique_labels(linear_result(part_windows(BOX)), grid)
    assert (found == oblique_labels(linear_result([window_over(BOX)]), grid)).mean() > 0.999


def test_confidence_is_that_of_one_window():
    parts, whole = (linear_result(w) for w in (part_windows(BOX), [window_over(BOX)]))
    np.testing.assert_allclose(confidence(parts), confidence(whole), rtol=1e-2)


def test_a_third_pass_looks_closer_at_parts_and_keeps_the_sides(scene):
    volume, label, (_, second, third, _) = scene
    assert len(third.windows) > len(second.windows)
    assert third.windows[0].spacing_mm[0] < second.windows[0].spacing_mm[0]
    found = native_labels(third, volume.grid)
    assert min(dice(found, label)) > 0.95


def test_the_first_passes_are_what_they_are_without_the_third(scene):
    volume, _, results = scene
    for one, other in zip(segment(oracle.model(WINDOWS), volume, 2), results, strict=False):
        assert one.windows == other.windows
        assert all(
            np.array_equal(one.probabilities[0][c], other.probabilities[0][c]) for c in range(6)
        )


def test_a_fourth_pass_looks_at_the_same_parts(scene):
    volume, label, results = scene
    assert results[3].windows == results[2].windows
    assert min(dice(native_labels(results[3], volume.grid), label)) > 0.95


def check_orders(scene, orders) -> None:
    volume, _, results = scene
    expected = native_labels(results[2], volume.grid)
    for order, signs in orders:
        scan = oriented(volume, order, signs)
        result = segment(oracle.model(WINDOWS), upright(scan))[-1]
        mask = own_grid_labels(result, scan.grid, native_labels(result, volume.grid))
        assert min(dice(upright(Volume(mask, scan.grid)).array, expected)) >= 0.995


def test_another_axis_order_gives_the_same_mask(scene):
    check_orders(scene, ORDERS[29:30])


@pytest.mark.slow
def test_every_axis_order_gives_the_same_mask(scene):
    check_orders(scene, ORDERS)


@pytest.mark.slow
def test_mirroring_looks_at_parts_too(scene):
    volume, label, _ = scene
    result = segment(with_mirroring(oracle.model(WINDOWS)), volume)[-1]
    assert min(dice(native_labels(result, volume.grid), label)) > 0.95


def test_a_part_that_the_pass_before_is_sure_of_keeps_its_maps():
    """One leg is in the upper half of the scan and the other one in the lower half."""
    grid = oracle.scene_grid()
    centres = [
        o + np.arange(n) * s
        for o, n, s in zip(grid.origin_mm, grid.size, grid.spacing_mm, strict=True)
    ]
    x, y, z = np.meshgrid(*centres, indexing="ij", sparse=True)
    array = np.where((x / 170) ** 2 + (y / 110) ** 2 + 0 * z < 1, 40, -1000).astype(np.int16)
    array[(np.abs(x - 105) < 45) & (np.abs(y) < 30) & (z > 0) & (z < 140)] = 950
    array[(np.abs(x + 105) < 45) & (np.abs(y) < 30) & (z < 10) & (z > -140)] = 950
    model = oracle.model(WINDOWS)
    looked = []
    forward = model.network.forward
    model.network.forward = lambda image, *rest: looked.append(1) or forward(image, *rest)
    _, second, third = segment(model, Volume(array, grid))
    sure = [is_background(second, window.box_mm()) for window in third.windows]
    assert any(sure) and len(looked) == 1 + len(second.windows) + sure.count(False)
    for window, maps in zip(third.windows, third.probabilities, strict=True):
        if sure.pop(0):
            context = context_of(second, window, CPU)
            for c in range(1, 6):
                np.testing.assert_allclose(maps[c], context(c), atol=2e-3)
            np.testing.assert_allclose(sum(maps[c] for c in range(6)), 1, atol=5e-3)


def test_probabilities_of_parts_are_written_as_one_image(scene, tmp_path):
    volume, label, results = scene
    write_probabilities(tmp_path / "p.nii.gz", results[2])
    image = sitk.ReadImage(str(tmp_path / "p.nii.gz"))
    values = sitk.GetArrayFromImage(image)
    np.testing.assert_allclose(values.sum(-1), 1, atol=5e-3)
    low, high = np.array([w.box_mm() for w in results[2].windows])[:, 0].min(0), image.GetOrigin()
    assert np.all(np.abs(low - high) <= image.GetSpacing())
