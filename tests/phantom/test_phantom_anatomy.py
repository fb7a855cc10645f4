"""Phantoms around bone surfaces: the laws that hold for any folder laid out as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bone_surfaces import PELVES, write_folder
from scipy.spatial import cKDTree

from multipass.phantom import make_subject
from multipass.phantom.anatomy.atlas import TEST_PELVES, load_atlas
from multipass.phantom.anatomy.femurs import TEST_FEMURS
from multipass.phantom.anatomy.implants import plates
from multipass.phantom.anatomy.individual import draw_individual
from multipass.phantom.anatomy.pose import Pose
from multipass.phantom.anatomy.surface import Surface
from multipass.phantom.recipe import draw_recipe

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "anatomy"
QUICK = {"matrix": 64, "size": "small"}
# Nothing that takes bone away or moves it, and all of the pelvis in view.
WHOLE = {
    "bottom_mm": -230.0, "top_mm": 160.0, "pixel_mm": 7.0, "slice_step_mm": 3.0,
    "slice_thickness_mm": 3.0, "centre_mm": (0.0, 0.0), "roll_deg": 0.0, "hip_gap_mm": 0.3,
    "sacroiliac_gap_mm": 0.1,
}  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    pytest.importorskip("igl")
    folder = tmp_path_factory.mktemp("anatomy")
    write_folder(folder)
    return folder


@pytest.fixture(params=["made", "real"])
def folder(request, made) -> Path:
    if request.param == "made":
        return made
    if not REAL.is_dir():
        pytest.skip("no ../shared/anatomy")
    return REAL


def test_a_missing_folder_gets_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="holds no subject"):
        load_atlas(tmp_path)


def test_a_broken_surface_is_named(tmp_path):
    pytest.importorskip("igl")
    write_folder(tmp_path)
    (tmp_path / "pelvis" / "02_sacrum.ply").write_bytes(b"ply\nnot a mesh")
    with pytest.raises(ValueError, match="02_sacrum.ply"):
        load_atlas(tmp_path)


def test_no_test_subject_in_the_training_part(folder):
    train, test = load_atlas(folder, "train"), load_atlas(folder, "test")
    assert train.ids and not set(train.ids) & set(TEST_PELVES)
    assert set(test.ids) <= set(TEST_PELVES)
    assert not {f.name.split("_")[0] for f in train.femurs} & set(TEST_FEMURS)
    np.testing.assert_array_equal(train.mean, test.mean)


def test_the_made_folder_is_split(made):
    assert load_atlas(made, "train").ids == PELVES[:3]
    assert load_atlas(made, "test").ids == PELVES[3:]


def test_femurs_of_a_label_map_lie_as_those_of_surfaces(made):
    """Both were made from one shape: in the femur's frame they are within a voxel of it."""
    femurs = {f.name: f for f in load_atlas(made, "train").femurs}
    assert set(femurs) == {"m3_left", "m3_right", "P_left", "P_right"}
    tree = cKDTree(femurs["m3_left"].vertices)
    for name in ("P_left", "P_right"):
        vertices = femurs[name].vertices
        distances_mm = tree.query(vertices[vertices[:, 2] > -130])[0]
        assert np.percentile(distances_mm, 95) < 4


def test_left_lies_left_and_the_same_seed_gives_the_same_scan(folder):
    atlas = load_atlas(folder, "train")
    subject, again = (make_subject(3, 1, atlas=atlas, **{**QUICK, **WHOLE}) for _ in range(2))
    np.testing.assert_array_equal(subject.volume.array, again.volume.array)
    np.testing.assert_array_equal(subject.label, again.label)
    x = [np.argwhere(subject.label == v)[:, 0].mean() for v in range(1, 6)]
    assert x[4] < x[1] < x[2] < x[0] < x[3]


def test_labels_have_the_volume_of_the_surfaces(folder):
    """Of the hip bones, as posed: what the lattice, the joints and the voxels may take away."""
    atlas = load_atlas(folder, "train")
    index = intact_patient(atlas)
    subject = make_subject(
        5, index, atlas=atlas, matrix=128, size="small", **WHOLE | {"pixel_mm": 3.5}
    )
    individual, _ = draw_individual(atlas, draw_recipe(5, index, 128, "small"), "small")
    pose = Pose(subject.recipe, individual)
    for value, side in ((1, 1), (2, -1)):
        shape = individual.hips[side][0]
        assert isinstance(shape, Surface)
        placed = pose.to_scene(shape.vertices * (side, 1, 1))
        expected_ml = abs(enclosed_mm3(placed, shape.faces)) / 1000
        found_ml = np.count_nonzero(subject.label == value) * subject.volume.grid.voxel_ml
        assert found_ml == pytest.approx(expected_ml, rel=0.06)


def test_plates_lie_on_the_bone(made):
    atlas = load_atlas(made, "train")
    vertices = atlas.pelves[0][atlas.ranges["left_hip"]]
    bone = Surface(vertices, atlas.faces["left_hip"])
    for seed in range(3):
        for piece in plates(bone, 1, np.random.default_rng(seed)):
            low, high = piece.box
            points = np.random.default_rng(0).uniform(low, high, (20000, 3)).astype(np.float32)
            metal = points[piece.shape(points) < 0]
            assert len(metal) and bone(metal).max() < 8  # mm off the surface, at its sharpest bend


def intact_patient(atlas) -> int:
    """The first without a fracture or metal on a hip bone."""
    for index in range(50):
        _, recipe = draw_individual(atlas, draw_recipe(5, index, 128, "small"), "small")
        if not recipe.fracture and not recipe.implant:
            return index
    raise AssertionError("none among fifty")


def enclosed_mm3(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume within a closed surface, by the divergence theorem."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_size_counts(made):
    atlas = load_atlas(made, "train")
    for index in range(4):
        heights = {}
        for size in ("pelvis", "abdomen"):
            _, recipe = draw_individual(atlas, draw_recipe(0, index, 64, size), size)
            heights[size] = recipe.top_mm / recipe.scale
        assert heights["pelvis"] <= 170 and heights["abdomen"] >= 200


@pytest.mark.slow
def test_jobs_change_nothing(made, tmp_path):
    command = [
        sys.executable, "-m", "multipass.phantom", "--anatomy", str(made), "--patients", "2",
        "--matrix", "64", "--size", "small",
    ]  # fmt: skip
    for jobs in ("1", "2"):
        subprocess.run(
            [*command, "--jobs", jobs, "--output", tmp_path / jobs], cwd=ROOT, check=True
        )
    one, two = (sorted((tmp_path / jobs).rglob("*.dcm")) for jobs in ("1", "2"))
    assert [p.relative_to(tmp_path / "1") for p in one] == [
        p.relative_to(tmp_path / "2") for p in two
    ]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
