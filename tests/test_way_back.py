"""The way back to a scan's own grid, with a perfect network: what a coarse window keeps of a label
must not depend on how the scan lies."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pydicom
import pytest
from orientation import ORDERS, oriented

from multipass import passes
from multipass.ct import read_ct
from multipass.maps import PassResult, native_labels
from multipass.phantom import make_subject
from multipass.phantom.writer import ACQUIRED, flipped, write_ct
from multipass.series import choose, find
from multipass.volume import Grid, Volume, resample, resample_oblique, upright
from multipass.windows import window_over

PIPELINE = Path(__file__).resolve().parent.parent / "inference_pipeline" / "processing.py"
# Stated for this product: what an oblique or tilted scan may lose against an upright one.
ALLOWED_LOSS = 0.01
SAME_MASK = 0.995


@pytest.fixture(scope="module")
def pipeline():
    return runpy.run_path(str(PIPELINE))


@pytest.fixture(scope="module")
def subject():
    return make_subject(5, 0, matrix=128, size="small", implant="", padding=None, slice_step_mm=3.0)


@pytest.fixture(scope="module")
def perfect(subject) -> PassResult:
    """What a perfect network says in the pelvis window: the fraction of each bone in each voxel."""
    grid = subject.volume.grid
    found = np.argwhere(subject.label > 0)
    box = np.stack([found.min(axis=0) - 3, found.max(axis=0) + 3]) * grid.spacing_mm
    window = window_over(box + grid.origin_mm)
    bones = [resample(Volume(subject.label == k, grid), window) for k in range(1, 6)]
    maps = np.stack([1 - np.sum(bones, axis=0), *bones]).astype(np.float32)
    return PassResult([window], [maps], [])


def mean_dice(one: np.ndarray, other: np.ndarray) -> float:
    scores = []
    for k in range(1, 6):
        a, b = one == k, other == k
        scores.append(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
    return float(np.mean(scores))


def label_on(label: Volume, grid: Grid) -> np.ndarray:
    """A label map on another grid: its classes interpolated, then the largest."""
    parts = [
        resample_oblique(Volume((label.array == k).astype(np.float32), label.grid), grid, 0.0).array
        for k in range(1, 6)
    ]
    return np.argmax([1 - np.sum(parts, axis=0), *parts], axis=0).astype(np.uint8)


def check_kept(subject, perfect: PassResult, mask: Volume) -> None:
    """Brought back to the subject's grid, the mask is within ALLOWED_LOSS of what its own label
    keeps on the same ways: through the window, and to the mask's grid and back."""
    truth = Volume(subject.label, subject.volume.grid)
    there = Volume(label_on(truth, mask.grid), mask.grid)
    kept = mean_dice(label_on(there, truth.grid), truth.array)
    seen = mean_dice(native_labels(perfect, truth.grid), truth.array)
    assert min(kept, seen) > 0.95
    lost = (1 - kept) + (1 - seen)
    assert mean_dice(label_on(mask, truth.grid), truth.array) >= 1 - lost - ALLOWED_LOSS


@pytest.mark.parametrize("degrees", [5, 15, 40])
def test_an_oblique_scan_keeps_what_its_label_keeps(pipeline, subject, perfect, degrees):
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    grid = subject.volume.grid
    size = tuple(int(1.5 * n) for n in grid.size)
    origin = grid.box_mm().mean(axis=0) - turn @ ((np.array(size) - 1) / 2 * grid.spacing_mm)
    oblique = Grid(size, grid.spacing_mm, tuple(origin), tuple(turn.ravel()))
    check_kept(subject, perfect, Volume(pipeline["oblique_labels"](perfect, oblique), oblique))


def test_a_tilted_scan_keeps_what_its_label_keeps(tmp_path, subject, perfect):
    write_ct(tmp_path / "ct", subject.volume, subject.recipe)
    for path in (tmp_path / "ct").iterdir():
        dataset = pydicom.dcmread(path)
        x, y, z = map(float, dataset.ImagePositionPatient)
        shift = 0.25 * (z - subject.volume.grid.origin_mm[2])
        dataset.ImagePositionPatient = [x, f"{y + shift:.4f}", z]
        dataset.save_as(path)
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    assert ct.is_tilted
    check_kept(subject, perfect, Volume(native_labels(perfect, ct.volume.grid), ct.volume.grid))


@pytest.mark.parametrize("position", sorted(ACQUIRED))
def test_prone_and_feet_first_series_give_the_same_mask(tmp_path, subject, position):
    volume, _ = oracle.scene(oracle.scene_grid())
    expected = native_labels(passes.segment(oracle.model(), volume, 2)[-1], volume.grid)
    recipe = replace(subject.recipe, slope=1.0, intercept=-1024.0, signed=False)
    write_ct(tmp_path / "ct", flipped(volume, ACQUIRED[position]), recipe, position)
    scan = upright(read_ct(choose(find(tmp_path / "ct"))[0]).volume)
    mask = native_labels(passes.segment(oracle.model(), scan, 2)[-1], scan.grid)
    assert mean_dice(mask, expected) >= SAME_MASK


def test_any_axis_order_gives_the_perfect_mask_back(pipeline, subject, perfect):
    grid = subject.volume.grid
    labels = native_labels(perfect, grid)
    for order, signs in ORDERS:
        turned = oriented(subject.volume, order, signs)
        scan = pipeline["Scan"](turned.grid, upright(turned))
        mask = pipeline["own_grid_labels"](perfect, scan, labels)
        wanted = oriented(Volume(labels, grid), order, signs).array
        assert np.array_equal(mask, wanted)
