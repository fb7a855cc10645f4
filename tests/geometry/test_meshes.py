"""Meshes are closed, lie where the mask lies, point outward, and files hold them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from multipass.geometry.meshes import mesh_of, write_mesh
from multipass.geometry.volume import Grid

FLIPPED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
GRIDS = [
    Grid((40, 50, 30), (1.0, 0.8, 2.0), (10.0, -20.0, 5.0)),
    Grid((40, 50, 30), (1.0, 0.8, 2.0), (10.0, -20.0, 5.0), FLIPPED),
]


def ball(grid: Grid, radius_mm: float) -> tuple[np.ndarray, np.ndarray]:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.size], indexing="ij"), -1)
    places = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    centre = grid.box_mm().mean(axis=0) + 0.3
    return (np.linalg.norm(places - centre, axis=-1) < radius_mm).astype(np.uint8) * 3, centre


def volume_mm3(points: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def test_a_sheet_of_one_voxel_is_not_lost():
    labels = np.zeros(GRIDS[0].size, np.uint8)
    labels[10:30, 10:30, 15] = 3
    points, triangles = mesh_of(labels, 3, GRIDS[0])
    assert volume_mm3(points, triangles) > 0.3 * 20 * 16 * 2


@pytest.mark.parametrize("grid", GRIDS)
def test_a_ball(grid):
    labels, centre = ball(grid, 14)
    points, triangles = mesh_of(labels, 3, grid)
    assert volume_mm3(points, triangles) == pytest.approx(4 / 3 * np.pi * 14**3, rel=0.03)
    distances = np.linalg.norm(points - centre, axis=1)
    assert np.abs(distances - 14).mean() < 0.4


def test_every_edge_has_two_faces_also_at_the_scans_border():
    labels, _ = ball(GRIDS[0], 23)
    assert labels[:, 0].any()
    _, triangles = mesh_of(labels, 3, GRIDS[0])
    edges = np.sort(
        np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    )
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts % 2 == 0).all()


def test_files(tmp_path):
    labels, _ = ball(GRIDS[0], 10)
    points, triangles = mesh_of(labels, 3, GRIDS[0])
    write_mesh(tmp_path / "a.stl", points, triangles)
    content = (tmp_path / "a.stl").read_bytes()
    assert struct.unpack("<I", content[80:84])[0] == len(triangles)
    assert len(content) == 84 + 50 * len(triangles)
    write_mesh(tmp_path / "a.ply", points, triangles)
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    assert f"element vertex {len(points)}".encode() in head
    assert len(body) == 12 * len(points) + 13 * len(triangles)
    first = np.frombuffer(body, "<f4", 3)
    assert np.allclose(first, points[0], atol=1e-4)


def test_a_structure_that_is_not_there_has_no_mesh():
    points, triangles = mesh_of(np.zeros((5, 5, 5), np.uint8), 1, GRIDS[0])
    assert points.shape == (0, 3) and triangles.shape == (0, 3)
