"""What is scored: the mask that is written, against the reference, on the scan's own grid."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import SimpleITK as sitk
from nifti import write_nifti
from orientation import oriented

from multipass.data.case import Case
from multipass.data.scan import read_scan
from multipass.data.scans import find_cases
from multipass.evaluation.metrics import compare
from multipass.evaluation.scoring import reference_labels, score
from multipass.geometry.volume import Grid, Volume, to_sitk
from multipass.model import passes
from multipass.model.maps import bone_labels
from multipass.model.way_back import own_grid_labels
from multipass.phantom import make_subject
from multipass.phantom.reference import write_segmentation
from multipass.phantom.writer import write_ct
from multipass.structures import PELVIS

NAMES = [structure.name for structure in PELVIS]


def turned(grid: Grid, degrees: float) -> Grid:
    """The grid turned about the body's axis and then about x."""
    about_z = sitk.Euler3DTransform((0.0, 0.0, 0.0), np.radians(degrees), 0.0, np.radians(degrees))
    matrix = np.reshape(about_z.GetMatrix(), (3, 3)) @ grid.matrix
    corner = matrix @ np.asarray(grid.origin_mm)
    return replace(grid, origin_mm=tuple(corner), direction=tuple(matrix.ravel()))


def case_of(folder: Path, grid: Grid) -> tuple[Case, np.ndarray]:
    """The oracle's scene on a grid, with its label map beside it."""
    volume, label = oracle.scene(grid)
    sitk.WriteImage(to_sitk(volume), str(folder / "scan.nii.gz"))
    sitk.WriteImage(to_sitk(Volume(label, grid)), str(folder / "scan_seg.nii.gz"))
    case = Case("scan", folder / "scan.nii.gz", reference_path=folder / "scan_seg.nii.gz")
    return case, label


def scored(case: Case):
    """Scores, and the mask that is written."""
    scan = read_scan(case)
    results = passes.segment(oracle.model(), scan.upright, 2)
    labels = bone_labels(results[-1], scan.upright.grid)
    mask = own_grid_labels(results[-1], scan.grid, labels)
    return score(case, scan, mask, results, PELVIS, [None] * 5), mask


@pytest.mark.parametrize("degrees", [0, 9])
def test_the_scores_are_those_of_the_written_mask(tmp_path, degrees):
    case, label = case_of(tmp_path, turned(oracle.scene_grid(), degrees))
    found, mask = scored(case)
    assert found.problem is None
    expected = compare(mask, label, oracle.scene_grid().spacing_mm, NAMES)
    rows = [row for row in found.rows if row["pass"] == 2]
    assert [row["dice"] for row in rows] == [row["dice"] for row in expected]
    assert [row["hd95_mm"] for row in rows] == pytest.approx([r["hd95_mm"] for r in expected])
    assert min(row["dice"] for row in rows) > 0.93


def test_a_perfect_mask_of_an_oblique_scan_scores_1(tmp_path):
    case, label = case_of(tmp_path, turned(oracle.scene_grid(), 9))
    scan = read_scan(case)
    results = passes.segment(oracle.model(), scan.upright, 1)
    found = score(case, scan, label, results, PELVIS, [None] * 5)
    assert {(row["dice"], row["assd_mm"], row["nsd_1mm"]) for row in found.rows} == {(1, 0, 1)}


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_a_seg_of_an_oblique_series_lies_voxel_for_voxel_on_it(tmp_path, signs):
    grid = turned(oracle.scene_grid(), 9)
    volume, label = oracle.scene(replace(grid, size=(grid.size[0], grid.size[1], 40)))
    volume, label = (
        oriented(Volume(array, volume.grid), (0, 1, 2), signs) for array in (volume.array, label)
    )
    recipe = make_subject(3, 0, matrix=64, size="small", padding=None).recipe
    paths = write_ct(tmp_path / "im_1", volume, recipe)
    write_segmentation(tmp_path / "im_3", label, tmp_path / "im_1", paths, recipe)
    with ExitStack() as stack:
        (case,) = find_cases(tmp_path, stack).cases
        scan = read_scan(case)
        assert scan.is_oblique and case.seg
        labels, _ = reference_labels(case, scan, PELVIS)
    np.testing.assert_allclose(scan.grid.affine, label.grid.affine, atol=1e-3)
    assert np.array_equal(labels, label.array)


def test_a_sheared_scan_is_scored_against_its_sheared_reference(tmp_path):
    grid = oracle.scene_grid()
    affine = grid.affine
    affine[1, 2] = np.tan(np.radians(12)) * affine[2, 2]
    volume, label = oracle.scene(grid)
    places = np.arange(grid.size[2]) * affine[1, 2] / affine[1, 1]
    for array in (volume.array, label):
        for k, place in enumerate(np.rint(places).astype(int)):
            array[:, :, k] = np.roll(array[:, :, k], -place, axis=1)
    write_nifti(tmp_path / "scan.nii.gz", volume.array, affine)
    write_nifti(tmp_path / "scan_seg.nii.gz", label, affine)
    path = tmp_path / "scan_seg.nii.gz"
    found, mask = scored(Case("scan", tmp_path / "scan.nii.gz", reference_path=path))
    assert found.problem is None and mask.shape != label.shape
    assert min(row["dice"] for row in found.rows if row["pass"] == 2) > 0.9


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((0, 2, 1, 3, 4, 5), "its left hip bone lies .* right of its right hip bone, so that"),
        ((0, 10, 20, 30, 40, 50), "10, 20, 30, 40, 50 stand for no structure"),
    ],
)
def test_a_reference_of_another_convention_gives_a_problem_and_no_score(tmp_path, values, reason):
    case, label = case_of(tmp_path, oracle.scene_grid())
    written = np.array(values, np.uint8)[label]
    write_nifti(tmp_path / "scan_seg.nii.gz", written, oracle.scene_grid().affine)
    scan = read_scan(case)
    results = passes.segment(oracle.model(), scan.upright, 1)
    found = score(case, scan, label, results, PELVIS, [100.0] * 5)
    assert found.problem and not any("dice" in row for row in found.rows)
    assert found.reference is None and len(found.rows) == 5
    assert re.search(reason, found.problem)
