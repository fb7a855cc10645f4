"""The files of a case hold what was segmented: a mesh a structure, probabilities of each class."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import SimpleITK as sitk

from multipass.geometry.volume import Volume, from_sitk
from multipass.model.maps import ClassMaps, PassResult
from multipass.results.products import Segmented, Wanted, products_of, write_products
from multipass.results.timing import Stages
from multipass.structures import PELVIS

RIGHT_FEMUR = 5


@pytest.fixture(scope="module")
def case() -> Segmented:
    """A scan without its right femur; one pass that is right with a probability of 0.9."""
    volume, labels = oracle.scene(oracle.scene_grid((5.0, 5.0, 6.0)))
    labels[labels == RIGHT_FEMUR] = 0
    maps = np.stack([np.where(labels == c, 0.9, 0.02) for c in range(1 + len(PELVIS))])
    result = PassResult([volume.grid], [ClassMaps(maps.astype(np.float32))], [])
    seen = volume, labels, volume.grid, labels
    return Segmented("scan", *seen, (), PELVIS, result, None, [])


def written(case: Segmented, folder: Path, wanted: Wanted) -> list[str]:
    assert write_products(folder, products_of(case, wanted), Stages()) == []
    return sorted(path.name for path in folder.iterdir())


def triangles_of(stl: bytes) -> np.ndarray:
    """(N, 3 corners, 3) in mm, of a binary STL."""
    (count,) = struct.unpack("<I", stl[80:84])
    rows = np.frombuffer(stl[84:], np.dtype([("f", "<f4", (4, 3)), ("unused", "<u2")]))
    assert len(rows) == count
    return rows["f"][:, 1:].astype(float)


def test_each_structure_that_is_there_has_its_mesh(case, tmp_path):
    names = written(case, tmp_path, Wanted(formats=(), meshes="stl"))
    there = [s.name.replace(" ", "_") + ".stl" for s in PELVIS[:-1]]
    assert names == sorted([*there, "overlay.png"])
    for value, name in enumerate(there, 1):
        corners = triangles_of((tmp_path / name).read_bytes())
        inside = np.argwhere(case.labels == value)
        centre = np.asarray(case.grid.origin_mm) + inside.mean(axis=0) * case.grid.spacing_mm
        middle = (corners.max(axis=(0, 1)) + corners.min(axis=(0, 1))) / 2
        np.testing.assert_allclose(middle, centre, atol=1)
        a, b, c = corners.transpose(1, 0, 2)
        volume_ml = float((a * np.cross(b, c)).sum() / 6000)
        assert volume_ml == pytest.approx(len(inside) * case.grid.voxel_ml, rel=0.02)


def test_meshes_are_of_the_mask_that_is_written(case, tmp_path):
    """On an oblique scan's own grid, not of its upright copy."""
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    direction = tuple(turn.ravel().tolist())
    oblique = replace(case, grid=replace(case.grid, direction=direction))
    written(oblique, tmp_path, Wanted(formats=(), meshes="stl"))
    corners = triangles_of((tmp_path / "sacrum.stl").read_bytes())
    index = np.argwhere(case.mask == 3).mean(axis=0)
    place = oblique.grid.affine[:3, :3] @ index + oblique.grid.affine[:3, 3]
    np.testing.assert_allclose(corners.mean(axis=(0, 1)), place, atol=3)


def test_each_class_has_its_probabilities(case, tmp_path):
    assert "probabilities.nii.gz" in written(case, tmp_path, Wanted((), probabilities=True))
    image = sitk.ReadImage(str(tmp_path / "probabilities.nii.gz"))
    assert image.GetNumberOfComponentsPerPixel() == 1 + len(PELVIS)
    for value in range(1 + len(PELVIS)):
        of_class = from_sitk(sitk.VectorIndexSelectionCast(image, value))
        assert_same_place(of_class, case)
        wanted = np.where(case.labels == value, 0.9, 0.02)
        np.testing.assert_allclose(of_class.array, wanted, atol=1e-3)


def assert_same_place(volume: Volume, case: Segmented) -> None:
    np.testing.assert_allclose(volume.grid.affine, case.grid.affine, atol=1e-3)


def test_the_mask_holds_the_labels(case, tmp_path):
    assert written(case, tmp_path, Wanted(formats=("nifti",))) == ["mask.nii.gz", "overlay.png"]
    mask = from_sitk(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
    assert_same_place(mask, case)
    assert np.array_equal(mask.array, case.labels)
