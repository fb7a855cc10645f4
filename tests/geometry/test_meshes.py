"""Meshes are closed, lie where the mask lies, point outward, and files hold them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

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


@pytest.mark.parametrize("grid", GRIDS)
def test_a_ball(grid):
    labels, centre = ball(grid, 14)
    points, triangles = mesh_of(labels, 3, grid)
    assert volume_mm3(points, triangles) == pytest.approx(4 / 3 * np.pi * 14**3, rel=0.01)
    distances = np.linalg.norm(points - centre, axis=1)
    assert np.abs(distances - 14).mean() < 0.4


def link_parts(triangles: np.ndarray) -> np.ndarray:
    """Parts of the ring of triangles around each vertex; 1 on a 2-manifold."""
    corners = np.concatenate([np.roll(triangles, k, axis=1) for k in range(3)])
    counts = []
    for vertex in range(triangles.max() + 1):
        ring = corners[corners[:, 0] == vertex, 1:]
        names, ends = np.unique(ring, return_inverse=True)
        ends = ends.reshape(ring.shape)
        size = len(names)
        graph = coo_matrix((np.ones(len(ring)), (ends[:, 0], ends[:, 1])), (size, size))
        counts.append(connected_components(graph, directed=False)[0])
    return np.asarray(counts)


def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {f"noise {part}": rng.random((9, 8, 10)) < part for part in (0.05, 0.3, 0.6, 0.9)}
    for name, other in {"an edge": (2, 3, 2), "a corner": (3, 3, 3), "a face": (3, 2, 2)}.items():
        found[name] = np.zeros((9, 8, 10), bool)
        found[name][2, 2, 2] = found[name][other] = True
    for name in ("an edge", "a corner"):
        found[f"holes at {name}"] = np.pad(~found[name][1:5, 1:5, 1:5], ((2, 3), (2, 2), (2, 4)))
    for name, size in {"a voxel": (1, 1, 1), "a rod": (6, 1, 1), "a sheet": (6, 5, 1)}.items():
        found[name] = np.zeros((9, 8, 10), bool)
        found[name][tuple(slice(1, 1 + n) for n in size)] = True
    found["a ball at the border"] = ball(GRIDS[0], 23)[0] > 0
    found["two parts"] = np.zeros((20, 12, 12), bool)
    found["two parts"][1:9, 1:9, 1:9] = found["two parts"][12:18, 3:9, 3:9] = True
    return found


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("direction", [GRIDS[0].direction, FLIPPED])
def test_a_mesh_is_a_closed_2_manifold_of_the_masks_volume(name, direction):
    mask = masks()[name]
    grid = Grid(mask.shape, (0.8, 0.9, 2.5), (10.0, -20.0, 5.0), direction)
    points, triangles = mesh_of(mask.astype(np.uint8) * 3, 3, grid)
    directed = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    _, counts = np.unique(np.sort(directed), axis=0, return_counts=True)
    assert (counts == 2).all()
    assert len(np.unique(directed, axis=0)) == len(directed), "neighbours turn the same way"
    if len(triangles) < 5000:
        assert (link_parts(triangles) == 1).all()
    wanted = mask.sum() * grid.voxel_ml * 1000
    assert volume_mm3(points, triangles) == pytest.approx(wanted, rel=0.01)
    assert np.isfinite(points).all()


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
