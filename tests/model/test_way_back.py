"""The way back to a scan's own grid, with a perfect network: what a coarse window keeps of a label
must not depend on how the scan lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pydicom
import pytest
from orientation import ORDERS, oriented

from multipass.dicom.choice import choose
from multipass.dicom.ct import read_ct
from multipass.dicom.series import find
from multipass.geometry.volume import Grid, Volume, resample, resample_oblique, upright
from multipass.geometry.windows import window_over
from multipass.model import passes
from multipass.model.maps import ClassMaps, PassResult, native_labels
from multipass.model.way_back import oblique_labels, own_grid_labels
from multipass.phantom import make_subject
from multipass.phantom.writer import ACQUIRED, flipped, write_ct

# Stated for this product: what an oblique or tilted scan may lose against an upright one.
ALLOWED_LOSS = 0.01
SAME_MASK = 0.995
EDGE_MM = 6.0


@pytest.fixture(scope="module")
def subject():
    return make_subject(5, 0, matrix=256, size="small", implant="", padding=None, slice_step_mm=1.5)


@pytest.fixture(scope="module")
def perfect(subject) -> PassResult:
    """What a perfect network says in the pelvis window: the fraction of each bone in each voxel."""
    grid = subject.volume.grid
    found = np.argwhere(subject.label > 0)
    box = np.stack([found.min(axis=0) - 3, found.max(axis=0) + 3]) * grid.spacing_mm
    window = window_over(box + grid.origin_mm)
    bones = [resample(Volume(subject.label == k, grid), window) for k in range(1, 6)]
    maps = np.stack([1 - np.sum(bones, axis=0), *bones]).astype(np.float32)
    return PassResult([window], [ClassMaps(maps)], [])


def mean_dice(one: np.ndarray, other: np.ndarray) -> float:
    scores = []
    for k in range(1, 6):
        a, b = one == k, other == k
        scores.append(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
    return float(np.mean(scores))


def truth_on(subject, grid: Grid) -> np.ndarray:
    """The fine label at the centres of a coarser grid's voxels; its classes are interpolated, since
    the nearest voxel's label would be off by up to half a voxel."""
    fine = subject.volume.grid
    parts = [
        resample_oblique(Volume((subject.label == k).astype(np.float32), fine), grid, 0.0).array
        for k in range(1, 6)
    ]
    return np.argmax([1 - np.sum(parts, axis=0), *parts], axis=0).astype(np.uint8)


@pytest.fixture(scope="module")
def kept(subject, perfect) -> float:
    """What an upright scan of half the resolution keeps."""
    grid = scan_grid(subject)
    value = mean_dice(native_labels(perfect, grid), truth_on(subject, grid))
    assert value > 0.95
    return value


def scan_grid(subject) -> Grid:
    fine = subject.volume.grid
    spacing = tuple(2 * s for s in fine.spacing_mm)
    return Grid(tuple(n // 2 for n in fine.size), spacing, fine.origin_mm)


def well_inside(scan: Grid, grid: Grid) -> np.ndarray:
    """Voxels of the grid at least EDGE_MM inside the scan: beyond its ends, where femurs are cut,
    an oblique grid has voxels that the upright one has not."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), -1)
    places = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    low, high = scan.box_mm()
    return ((places > low + EDGE_MM) & (places < high - EDGE_MM)).all(axis=-1)


@pytest.mark.parametrize("degrees", [5, 15, 40])
def test_an_oblique_scan_keeps_what_an_upright_one_keeps(subject, perfect, kept, degrees):
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    grid = scan_grid(subject)
    size = tuple(int(1.5 * n) for n in grid.size)
    origin = grid.box_mm().mean(axis=0) - turn @ ((np.array(size) - 1) / 2 * grid.spacing_mm)
    oblique = Grid(size, grid.spacing_mm, tuple(origin), tuple(turn.ravel()))
    mask = oblique_labels(perfect, oblique)
    seen = well_inside(subject.volume.grid, oblique)
    assert mean_dice(mask * seen, truth_on(subject, oblique) * seen) >= kept - ALLOWED_LOSS


def test_a_tilted_scan_keeps_what_an_upright_one_keeps(tmp_path, subject, perfect, kept):
    coarse = scan_grid(subject)
    scan = Volume(resample(subject.volume, coarse, -1024.0).astype(np.int16), coarse)
    write_ct(tmp_path / "ct", scan, subject.recipe)
    for path in (tmp_path / "ct").iterdir():
        dataset = pydicom.dcmread(path)
        x, y, z = map(float, dataset.ImagePositionPatient)
        shift = 0.25 * (z - subject.volume.grid.origin_mm[2])
        dataset.ImagePositionPatient = [x, f"{y + shift:.4f}", z]
        dataset.save_as(path)
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    assert ct.is_resampled
    grid = ct.volume.grid
    assert mean_dice(native_labels(perfect, grid), truth_on(subject, grid)) >= kept - ALLOWED_LOSS


@pytest.mark.parametrize("position", sorted(ACQUIRED))
def test_prone_and_feet_first_series_give_the_same_mask(tmp_path, subject, position):
    volume, _ = oracle.scene(oracle.scene_grid())
    expected = native_labels(passes.segment(oracle.model(), volume, 2)[-1], volume.grid)
    recipe = replace(subject.recipe, slope=1.0, intercept=-1024.0, signed=False)
    write_ct(tmp_path / "ct", flipped(volume, ACQUIRED[position]), recipe, position)
    scan = upright(read_ct(choose(find(tmp_path / "ct"))[0]).volume)
    mask = native_labels(passes.segment(oracle.model(), scan, 2)[-1], scan.grid)
    assert mean_dice(mask, expected) >= SAME_MASK


def test_any_axis_order_gives_the_perfect_mask_back(subject, perfect):
    grid = subject.volume.grid
    labels = native_labels(perfect, grid)
    for order, signs in ORDERS:
        turned = oriented(subject.volume, order, signs)
        mask = own_grid_labels(perfect, turned.grid, labels)
        wanted = oriented(Volume(labels, grid), order, signs).array
        assert np.array_equal(mask, wanted)
