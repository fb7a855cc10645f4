"""Image files: where their voxels lie, what they hold, and what is no scan."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nifti import write_nifti
from scipy.spatial.transform import Rotation

from multipass.data.case import Case
from multipass.data.images import detached, read_image
from multipass.data.nifti import NO_SIDES
from multipass.data.scan import read_scan
from multipass.geometry.volume import Grid, Volume, to_sitk

SIZE = (9, 8, 7)
AFFINE = Grid(SIZE, (1.5, 2.0, 3.0), (-20.0, 10.0, 5.0)).affine


def voxels(dtype: str = "int16") -> np.ndarray:
    """A body of water with bone in air."""
    values = np.random.default_rng(0).integers(-60, 60, SIZE)
    values[0], values[2:4, 3:5, 2:5] = -1000, 900
    return values.astype(dtype)


def scan_of(path: Path):
    return read_scan(Case("case", path))


def turned(degrees: float, affine: np.ndarray = AFFINE) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    return turn @ affine


def mirrored() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += affine[0, 0] * (SIZE[0] - 1)
    affine[0, 0] *= -1
    return affine


# ------------------------------------------------------------------- NIfTI


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("packed", [True, False])
def test_every_kind_of_nifti_is_read_whatever_its_name_says(tmp_path, version, order, name, packed):
    path = tmp_path / name
    write_nifti(path, voxels(), turned(20), order=order, version=version, packed=packed)
    image = read_image(path)
    assert np.array_equal(image.array, voxels()) and image.array.dtype == np.int16
    np.testing.assert_allclose(image.affine, turned(20), atol=1e-4)
    assert image.notes == ()


def test_a_file_of_itk_lies_where_itk_put_it(tmp_path):
    direction = tuple(Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix().ravel())
    grid = Grid(SIZE, (0.7, 0.8, 2.5), (-11.0, 22.0, 33.0), direction)
    sitk.WriteImage(to_sitk(Volume(voxels(), grid)), str(tmp_path / "scan.nii.gz"))
    scan = scan_of(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(scan.grid.affine, grid.affine, atol=1e-4)
    assert scan.is_oblique and not scan.is_resampled and scan.notes == ()


@pytest.mark.parametrize(
    ("codes", "taken"),
    [((1, 1), "sform"), ((2, 1), "sform"), ((1, 2), "sform"), ((4, 0), "sform"), ((0, 1), "qform")],
)
def test_the_sform_is_taken_where_it_has_a_code_as_nibabel_does(tmp_path, codes, taken):
    write_nifti(tmp_path / "scan.nii", voxels(), AFFINE, mirrored(), codes)
    scan = scan_of(tmp_path / "scan.nii")
    expected = AFFINE if taken == "sform" else mirrored()
    np.testing.assert_allclose(scan.grid.affine, expected, atol=1e-4)
    assert any("disagree by up to 12 mm" in note for note in scan.notes) == all(codes)


def test_a_file_without_forms_is_flagged(tmp_path):
    write_nifti(tmp_path / "scan.nii", voxels(), AFFINE, codes=(0, 0))
    assert NO_SIDES in scan_of(tmp_path / "scan.nii").notes


def test_an_empty_sform_gives_way_to_the_qform_with_a_flag(tmp_path):
    write_nifti(tmp_path / "scan.nii", voxels(), np.diag([0.0, 0, 0, 1]), AFFINE)
    scan = scan_of(tmp_path / "scan.nii")
    np.testing.assert_allclose(scan.grid.affine, AFFINE, atol=1e-4)
    assert any("sform (code 1) maps no volume" in note for note in scan.notes)


@pytest.mark.parametrize("decimals", [2, 3])
def test_a_rounded_sform_is_that_of_the_nearest_grid(tmp_path, decimals):
    rounded = turned(7).copy()
    rounded[:3, :3] = rounded[:3, :3].round(decimals)
    write_nifti(tmp_path / "scan.nii", voxels(), rounded, codes=(1, 0))
    scan = scan_of(tmp_path / "scan.nii")
    matrix = scan.grid.matrix
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-12)
    off = (scan.grid.affine - turned(7))[:3] @ [*np.subtract(SIZE, 1), 1]
    assert np.abs(off).max() < 10 * 10**-decimals and scan.notes == ()


def test_a_sheared_sform_is_resampled_to_where_its_voxels_lie(tmp_path):
    affine = AFFINE.copy()
    affine[1, 2] = np.tan(np.radians(15)) * affine[2, 2]
    array = np.full((30, 40, 20), -1000, np.int16)
    array[5:25, 5:35, 2:18], array[12:16, 20:24, 9:12] = 20, 1200
    write_nifti(tmp_path / "scan.nii", array, affine)
    scan = scan_of(tmp_path / "scan.nii")
    assert scan.is_resampled and scan.grid == scan.upright.grid
    assert any("axes 15.0 degrees off right angles" in note for note in scan.notes)
    index = np.argwhere(scan.upright.array > 600).mean(axis=0)
    place = scan.grid.affine @ [*index, 1]
    np.testing.assert_allclose(place, affine @ [13.5, 21.5, 10, 1], atol=1.0)


def test_units_and_scaling(tmp_path):
    metres = AFFINE.copy()
    metres[:3] /= 1000
    write_nifti(tmp_path / "scan.nii", voxels() * 2, metres, units=1, scaling=(0.5, -10.0))
    image = read_image(tmp_path / "scan.nii")
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    assert np.array_equal(image.array, voxels() - 10)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mha", "scan.nrrd"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_without_a_number_are_air_in_every_format(tmp_path, name, value):
    values = voxels("float32")
    values[5:, :, 0] = value
    if ".nii" in name:
        write_nifti(tmp_path / name, values, AFFINE)
    else:
        sitk.WriteImage(
            to_sitk(Volume(values, Grid(SIZE, (1.0,) * 3, (0.0,) * 3))), tmp_path / name
        )
    scan = scan_of(tmp_path / name)
    assert (scan.upright.array[5:, :, 0] == -1024).all()
    assert any(note == "6.3% of its voxels hold no number, read as air" for note in scan.notes)
    assert np.array_equal(scan.upright.array[:5], voxels()[:5])


# ------------------------------------------------- damaged, cut off, elsewhere


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("part", [0.6, -1])
def test_what_is_cut_off_is_not_read(tmp_path, suffix, packed, part):
    path = tmp_path / f"scan{suffix}"
    image = to_sitk(Volume(voxels(), Grid(SIZE, (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))))
    sitk.WriteImage(image, str(path), useCompression=packed)
    held = (detached(path) or [path])[0]
    content = held.read_bytes()
    held.write_bytes(content[: int(len(content) * part) if part > 0 else part])
    with pytest.raises(ValueError, match=r"scan.*(cut off|cannot be read|damaged)") as found:
        read_image(path)
    assert "No such file" not in str(found.value)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"])
def test_a_wrong_checksum_is_seen(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    image = to_sitk(Volume(voxels(), Grid(SIZE, (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))))
    sitk.WriteImage(image, str(path), useCompression=True)
    held = (detached(path) or [path])[0]
    content = bytearray(held.read_bytes())
    content[-2 if suffix in (".mha", ".mhd") else -6] ^= 0x55
    held.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_image(path)


def test_voxels_that_are_missing_are_named(tmp_path):
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(tmp_path / "scan.mhd"))
    (tmp_path / "scan.raw").unlink()
    with pytest.raises(ValueError, match=r"scan\.mhd: its voxels are to lie in scan\.raw, which"):
        read_image(tmp_path / "scan.mhd")


META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    "Offset = 0 0 0\nElementSpacing = 1 1 2\nDimSize = 9 8 7\nElementType = MET_SHORT\n"
)
NRRD = (
    "NRRD0004\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 9 8 7\n"
    "space directions: (1,0,0) (0,1,0) (0,0,2)\nendian: little\nencoding: raw\n"
    "space origin: (0,0,0)\n"
)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_lists_and_patterns_of_files_are_followed(tmp_path, suffix, listed):
    names = [f"part{k:02d}.raw" for k in range(3, 10)]
    for k, name in enumerate(names):
        (tmp_path / name).write_bytes(voxels()[:, :, k].astype("<i2").tobytes(order="F"))
    where = "LIST\n" + "\n".join(names) + "\n" if listed else "part%02d.raw 3 9 1\n"
    path = tmp_path / f"scan{suffix}"
    head = META + "ElementDataFile = " if suffix == ".mhd" else NRRD + "data file: "
    path.write_text(head + where)
    assert detached(path) == [tmp_path / name for name in names]
    assert np.array_equal(read_image(path).array, voxels())
    (tmp_path / names[4]).unlink()
    with pytest.raises(ValueError, match=r"its voxels are to lie in part07\.raw"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("scan.nrrd", NRRD.replace("space: left-posterior-superior\n", "space dimension: 3\n")),
        ("scan.nrrd", NRRD.replace("left-posterior-superior", "scanner-xyz")),
        ("scan.mha", META.replace("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "")),
        ("scan.nrrd", NRRD),
        ("scan.mha", META),
    ],
)
def test_a_header_without_sides_is_flagged(tmp_path, name, head):
    end = "\n" if name == "scan.nrrd" else "ElementDataFile = LOCAL\n"
    content = voxels().astype("<i2").tobytes(order="F")
    (tmp_path / name).write_bytes((head + end).encode() + content)
    assert (NO_SIDES in read_image(tmp_path / name).notes) == (head not in (NRRD, META))


@pytest.mark.parametrize("axes", ["NDims = 73", "NDims = 2", "NDims = x", ""])
def test_a_meta_image_of_other_axes_never_reaches_itk(tmp_path, axes, monkeypatch):
    """NDims = 73 breaks ITK's memory, and with it all cases that follow."""
    monkeypatch.setattr(sitk, "ReadImage", None)
    head = META.replace("NDims = 3", axes) + "ElementDataFile = LOCAL\n"
    (tmp_path / "scan.mha").write_bytes(head.encode() + bytes(2 * 9 * 8 * 7))
    with pytest.raises(ValueError, match=r"scan\.mha: cannot be read, its header gives NDims"):
        read_image(tmp_path / "scan.mha")


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30, 0.0])
def test_a_header_without_places_is_refused(tmp_path, fill):
    path = tmp_path / "scan.nii"
    write_nifti(path, voxels(), AFFINE, codes=(0, 0))
    content = bytearray(path.read_bytes())
    content[80:92] = np.full(3, fill, "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="gives voxels no place and no size"):
        read_image(path)


def test_no_nifti_and_no_volume(tmp_path):
    path = tmp_path / "scan.nii"
    for content in (b"", b"abc", bytes(400), gzip.compress(b"abc")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"scan\.nii: cannot be read, no header"):
            read_image(path)
    write_nifti(path, np.zeros((5, 1, 9), np.int16), AFFINE)
    with pytest.raises(ValueError, match="at least 3 along each axis"):
        scan_of(path)
    vectors = sitk.Image((5, 5, 5), sitk.sitkVectorFloat32, 2)
    sitk.WriteImage(vectors, str(path))
    with pytest.raises(ValueError, match="one scalar 3D image"):
        read_image(path)


@pytest.mark.parametrize("highest", [1, 5, 117])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_label_map_is_no_scan(tmp_path, highest, dtype):
    labels = np.arange(np.prod(SIZE)).reshape(SIZE) % (highest + 1)
    write_nifti(tmp_path / "scan.nii", labels.astype(dtype), AFFINE)
    with pytest.raises(ValueError, match=f"looks like a label map, .* from 0 to {highest};"):
        scan_of(tmp_path / "scan.nii")


def test_a_ct_without_air_is_read_with_a_flag(tmp_path):
    write_nifti(tmp_path / "scan.nii", np.arange(504).reshape(SIZE).astype(np.int16), AFFINE)
    assert any("no air" in note for note in scan_of(tmp_path / "scan.nii").notes)
