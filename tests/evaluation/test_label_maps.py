"""Label maps as references: read where they fit, named where they are of another convention."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nifti import write_nifti
from scipy.spatial.transform import Rotation

from multipass.evaluation.label_maps import contradiction, read_label_map
from multipass.geometry.lattices import Lattice
from multipass.geometry.volume import Volume, to_sitk
from multipass.phantom import make_subject
from multipass.structures import PELVIS

NAMES = [structure.name for structure in PELVIS]


@pytest.fixture(scope="module")
def truth() -> Volume:
    subject = make_subject(3, 0, matrix=64, size="small", implant="", padding=None)
    assert set(np.unique(subject.label)) == set(range(6))
    return Volume(subject.label, subject.volume.grid)


def lattice(volume: Volume) -> Lattice:
    return Lattice(volume.grid.affine, volume.grid.size)


def written(folder: Path, volume: Volume, values=(0, 1, 2, 3, 4, 5), affine=None, **more) -> Path:
    path = folder / "scan_seg.nii.gz"
    array = np.asarray(values, more.pop("dtype", np.uint8))[volume.array]
    write_nifti(path, array, volume.grid.affine if affine is None else affine, **more)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_right_one_is_read(tmp_path, truth, dtype):
    labels, statuses = read_label_map(written(tmp_path, truth, dtype=dtype), lattice(truth), PELVIS)
    assert np.array_equal(labels, truth.array) and statuses == ["complete"] * 5
    assert contradiction(truth, PELVIS) is None


def test_a_structure_without_a_voxel_is_empty(tmp_path, truth):
    path = written(tmp_path, truth, (0, 1, 2, 0, 4, 5))
    _, statuses = read_label_map(path, lattice(truth), PELVIS)
    assert statuses == ["complete", "complete", "empty", "complete", "complete"]


@pytest.mark.parametrize(
    ("values", "listed"),
    [
        ((0, 10, 20, 30, 40, 50), "10, 20, 30, 40, 50 stand for no structure"),
        ((0, 11, 21, 1, 0, 0), "11, 21 stand for no structure"),
        ((0, 77, 78, 25, 75, 76), "25, 75, 76, 77, 78 stand for no structure"),
        ((6, 1, 2, 3, 4, 5), "6 stand for no structure"),
        ((0, 1, 2, 3, 4, 1.5), "whole numbers"),
        ((0, 1, 2, 3, 4, -1), "whole numbers"),
        ((0, 1, 2, 3, 4, np.nan), "whole numbers"),
        ((0, 1, 2, 3, 4, 70000), "whole numbers from 0 to 65535"),
    ],
)
def test_values_of_another_convention_are_named(tmp_path, truth, values, listed):
    path = written(tmp_path, truth, values, dtype=np.float32)
    with pytest.raises(ValueError, match=rf"scan_seg\.nii\.gz: .*{listed}"):
        read_label_map(path, lattice(truth), PELVIS)


def test_every_other_order_contradicts_the_anatomy(truth):
    for order in permutations(range(1, 6)):
        volume = Volume(np.array([0, *order], np.uint8)[truth.array], truth.grid)
        assert (contradiction(volume, PELVIS) is None) == (order == (1, 2, 3, 4, 5)), order


def test_what_contradicts_the_anatomy_is_named(truth):
    def sentence(order):
        array = np.array([0, *order], np.uint8)[truth.array]
        return contradiction(Volume(array, truth.grid), PELVIS) or ""

    assert "left hip bone lies" in sentence((2, 1, 3, 4, 5))
    assert "to the patient's right of its right femur" in sentence((1, 2, 3, 5, 4))
    assert sentence((1, 3, 2, 4, 5)) == "its sacrum does not lie between its hip bones"
    assert "left femur lies nearer to the midline" in sentence((4, 5, 3, 1, 2))


@pytest.mark.parametrize("values", [(1, 1, 1, 1, 1), (1, 1, 2, 0, 0), (2, 2, 3, 4, 4)])
def test_one_value_of_both_hip_bones_is_that_of_none(truth, values):
    array = np.array([0, *values], np.uint8)[truth.array]
    assert "wide as both" in (contradiction(Volume(array, truth.grid), PELVIS) or "")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("part", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("above", [True, False])
def test_a_cut_scan_contradicts_nothing(truth, axis, part, above):
    array = truth.array.copy()
    at = int(part * array.shape[axis])
    np.moveaxis(array, axis, 0)[slice(at, None) if above else slice(None, at)] = 0
    assert contradiction(Volume(array, truth.grid), PELVIS) is None


# ------------------------------------------------------------------ the grid


@pytest.mark.parametrize("off", ["scaled", "turned", "moved", "mirrored"])
def test_a_label_map_that_nearly_shares_the_grid_is_refused(tmp_path, truth, off):
    """No entry of the affine is off by more than 0.1 mm, but for the mirrored one."""
    affine = truth.grid.affine
    far = np.append(np.subtract(truth.grid.size, 1), 1)
    if off == "scaled":
        affine[2, 2] += 0.09
    elif off == "turned":
        affine[:3, :3] = Rotation.from_euler("z", 1, degrees=True).as_matrix() @ affine[:3, :3]
    elif off == "moved":
        affine[0, 3] += 0.3 * affine[2, 2]
    else:
        affine[0, 3], affine[0, 0] = (affine @ far)[0], -affine[0, 0]
    path = written(tmp_path, truth, affine=affine)
    with pytest.raises(ValueError, match=r"lies off the scan's grid by up to .* mm"):
        read_label_map(path, lattice(truth), PELVIS)


def test_rounding_of_the_header_is_no_other_grid(tmp_path, truth):
    path = written(tmp_path, truth, affine=truth.grid.affine.round(3))
    labels, _ = read_label_map(path, lattice(truth), PELVIS)
    assert np.array_equal(labels, truth.array)


def test_another_size_is_named(tmp_path, truth):
    smaller = Volume(truth.array[:-1], truth.grid)
    with pytest.raises(ValueError, match=r"\(63, .*\) voxels, the scan has \(64, "):
        read_label_map(written(tmp_path, smaller), lattice(truth), PELVIS)


@pytest.mark.parametrize("packed", [True, False])
def test_a_label_map_that_is_cut_off_is_not_scored(tmp_path, truth, packed):
    path = written(tmp_path, truth, packed=packed)
    content = path.read_bytes()
    path.write_bytes(content[: int(0.6 * len(content))])
    with pytest.raises(ValueError, match="cut off"):
        read_label_map(path, lattice(truth), PELVIS)


# ----------------------------------------------------- segmentations of 3D Slicer


def slicer(folder: Path, truth: Volume, names: dict[int, str], start=(0, 0, 0), moved=0.0) -> Path:
    """Values 1 to 5 of the truth become 5 to 1."""
    part = tuple(slice(s, n - s) for s, n in zip(start, truth.grid.size, strict=True))
    array = np.array([0, 5, 4, 3, 2, 1], np.uint8)[truth.array[part]]
    image = to_sitk(Volume(array, truth.grid.cropped(start, array.shape)))
    image.SetOrigin(np.add(image.GetOrigin(), moved).tolist())
    for number, (value, name) in enumerate(names.items()):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(value))
    path = folder / "scan.seg.nrrd"
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize("start", [(0, 0, 0), (3, 2, 5)])
def test_segments_are_known_by_their_names(tmp_path, truth, start):
    names = {5: "Hip_Left", 4: "right hip bone", 3: "SACRUM", 2: "femur left", 1: "skin"}
    labels, statuses = read_label_map(slicer(tmp_path, truth, names, start), lattice(truth), PELVIS)
    expected = np.zeros_like(truth.array)
    part = tuple(slice(s, n - s) for s, n in zip(start, truth.grid.size, strict=True))
    expected[part] = np.where(truth.array[part] == 5, 0, truth.array[part])
    assert np.array_equal(labels, expected)
    assert statuses == ["complete"] * 4 + ["absent"]


def test_segments_by_other_names_or_on_other_voxels_are_refused(tmp_path, truth):
    with pytest.raises(ValueError, match=r"none of its segments \(liver, spleen\)"):
        read_label_map(slicer(tmp_path, truth, {1: "liver", 2: "spleen"}), lattice(truth), PELVIS)
    path = slicer(tmp_path, truth, {5: "left hip bone"}, moved=1.5)
    with pytest.raises(ValueError, match="lies off the scan's grid"):
        read_label_map(path, lattice(truth), PELVIS)
