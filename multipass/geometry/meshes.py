"""Surfaces of structures as triangle meshes in patient LPS mm: STL and PLY."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from scipy import ndimage

from multipass.geometry.labelmaps import box_of
from multipass.geometry.volume import Grid, ints3

# A blur of about one voxel takes the voxels' steps off and moves a smooth surface by far less.
BLUR_VOXELS = 0.8
MESH_SUFFIXES = ("stl", "ply")


def mesh_of(labels: np.ndarray, value: int, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) in mm and triangles (F, 3), outward by the right-hand rule, of one structure.

    Surface nets (Gibson 1998): a vertex in each 2x2x2 neighbourhood that the surface crosses, at
    the mean of its edges' crossings, and two triangles for each crossed lattice edge. Closed where
    the field of view cuts the structure, too.
    """
    box = box_of(labels == value)
    if box is None:
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    start = ints3(s.start - 2 for s in box)
    inside = np.pad(labels[box] == value, 2).astype(np.float32)
    field = ndimage.gaussian_filter(inside, BLUR_VOXELS) - 0.5
    if not (field > 0).any():  # a sheet of one voxel
        field = inside - 0.5
    field[[0, -1]] = field[:, [0, -1]] = field[:, :, [0, -1]] = -0.5
    points, triangles = surface_net(field)
    affine = grid.cropped(start, ints3(field.shape)).affine
    if np.linalg.det(affine[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    return points @ affine[:3, :3].T + affine[:3, 3], triangles


def surface_net(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices in index coordinates and outward triangles of the surface field = 0.

    Args:
        field: (X, Y, Z), positive inside, negative on all borders.
    """
    inside = field > 0
    cells = tuple(n - 1 for n in field.shape)
    total, count = np.zeros((*cells, 3), np.float32), np.zeros(cells, np.int8)
    quads, outward = [], []
    for axis in range(3):
        low = tuple(slice(None, -1) if d == axis else slice(None) for d in range(3))
        high = tuple(slice(1, None) if d == axis else slice(None) for d in range(3))
        edges = np.argwhere(inside[low] != inside[high])
        at = tuple(edges.T)
        a, b = field[low][at], field[high][at]
        crossing = edges.astype(np.float32)
        crossing[:, axis] += a / (a - b)
        corners = _around(edges, axis)
        for corner in corners:
            np.add.at(total, tuple(corner.T), crossing)
            np.add.at(count, tuple(corner.T), 1)
        quads.append(
            np.stack([np.ravel_multi_index(tuple(corner.T), cells) for corner in corners], 1)
        )
        outward.append(inside[low][at])
    used = np.flatnonzero(count)
    number = np.zeros(count.size, np.int64)
    number[used] = np.arange(used.size)
    points = total.reshape(-1, 3)[used] / count.reshape(-1)[used, None]
    faces = number[np.concatenate(quads)]
    turned = ~np.concatenate(outward)
    faces[turned] = faces[turned, ::-1]
    return points, np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])


def write_mesh(path: Path, points: np.ndarray, triangles: np.ndarray) -> None:
    """Binary STL or PLY, by the path's suffix."""
    if path.suffix == ".stl":
        path.write_bytes(_stl(points[triangles].astype("<f4")))
        return
    head = (
        "ply\nformat binary_little_endian 1.0\ncomment patient LPS, mm\n"
        f"element vertex {len(points)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(triangles)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    faces = np.zeros(len(triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, triangles
    path.write_bytes(head.encode() + points.astype("<f4").tobytes() + faces.tobytes())


def _stl(corners: np.ndarray) -> bytes:
    fields = [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    rows = np.zeros(len(corners), fields)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    rows["normal"] = normals / np.where(lengths > 0, lengths, 1)
    rows["corners"] = corners
    return b"patient LPS, mm".ljust(80) + struct.pack("<I", len(rows)) + rows.tobytes()


def _around(edges: np.ndarray, axis: int) -> list[np.ndarray]:
    """The four cells around lattice edges along an axis, in the right-hand order about it."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    cells = []
    for a, b in ((-1, -1), (0, -1), (0, 0), (-1, 0)):
        cell = edges.copy()
        cell[:, first] += a
        cell[:, second] += b
        cells.append(cell)
    return cells
