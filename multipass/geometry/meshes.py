"""Surfaces of structures as triangle meshes in patient LPS mm: STL and PLY."""

from __future__ import annotations

import struct
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import ndimage

from multipass.geometry.labelmaps import box_of
from multipass.geometry.volume import Grid, ints3

# A blur of about one voxel takes the voxels' steps off and moves a smooth surface by far less.
BLUR_VOXELS = 0.8
# Least height of the blurred field over the surface in the structure, and depth outside of it: thin
# sheets and holes stay, and smooth surfaces, where it is 0.23, are hardly touched.
LEAST_FIELD = 0.1
# Newton's steps to the mask's volume; two suffice, but for structures of a few voxels.
MOST_STEPS, VOLUME_TOLERANCE = 10, 1e-4
MESH_SUFFIXES = ("stl", "ply")
CORNERS = list(np.ndindex(2, 2, 2))


def mesh_of(labels: np.ndarray, value: int, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """A closed 2-manifold of a structure's volume around it: vertices (V, 3) in mm and triangles
    (F, 3), outward by the right-hand rule.

    Surface nets (Gibson 1998): a vertex in each 2x2x2 neighbourhood that the surface crosses, at
    the mean of its edges' crossings, and two triangles for each crossed lattice edge. Where voxels
    touch at an edge or a corner only, voxels between them join them. Closed where the field of view
    cuts the structure, too.
    """
    box = box_of(labels == value)
    if box is None:
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    start = ints3(s.start - 2 for s in box)
    mask = np.pad(labels[box] == value, 2)
    volume_mm3 = np.count_nonzero(mask) * grid.voxel_ml * 1000
    inside = well_composed(mask)
    blurred = ndimage.gaussian_filter(inside.astype(np.float32), BLUR_VOXELS) - 0.5
    field = np.where(inside, np.maximum(blurred, LEAST_FIELD), np.minimum(blurred, -LEAST_FIELD))
    points, triangles = surface_net(field)
    affine = grid.cropped(start, ints3(field.shape)).affine
    if np.linalg.det(affine[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    points = points @ affine[:3, :3].T + affine[:3, 3]
    return with_volume(points, triangles, volume_mm3), triangles


def well_composed(mask: np.ndarray) -> np.ndarray:
    """The mask with voxels added until no two of it, nor two outside, touch at an edge or a corner
    only; its surface is then a 2-manifold (Latecki 1997).

    Args:
        mask: bool (X, Y, Z), False on all borders.
    """
    mask = mask.copy()
    filled = _filled_corners()
    while True:
        codes = np.zeros(tuple(n - 1 for n in mask.shape), np.uint8)
        for bit, corner in enumerate(CORNERS):
            at = tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))
            codes |= mask[at].view(np.uint8) << np.uint8(bit)
        critical = np.nonzero(filled[codes] >= 0)
        if not len(critical[0]):
            return mask
        corners = np.asarray(CORNERS)[filled[codes[critical]]]
        mask[tuple((np.stack(critical, axis=1) + corners).T)] = True


@cache
def _filled_corners() -> np.ndarray:
    """(256,) by a 2x2x2 neighbourhood's code the corner to fill; -1 where no two of its voxels,
    in or out, touch at an edge or a corner only."""
    table = np.full(256, -1)
    for code in range(256):
        held = {corner: bool(code >> bit & 1) for bit, corner in enumerate(CORNERS)}
        for a, b in combinations(CORNERS, 2):
            apart = np.subtract(a, b) != 0
            between = [c for c in CORNERS if (np.equal(c, a) | apart).all() and c not in (a, b)]
            alone = all(held[c] != held[a] for c in between)
            if apart.sum() >= 2 and held[a] == held[b] and alone:
                table[code] = CORNERS.index(between[0] if held[a] else a)
                break
    return table


def with_volume(points: np.ndarray, triangles: np.ndarray, volume_mm3: float) -> np.ndarray:
    """The vertices of a closed mesh, all moved equally far along their normals, so that it holds a
    volume."""
    for _ in range(MOST_STEPS):
        a, b, c = (points[triangles[:, k]] for k in range(3))
        crossed = np.cross(b - a, c - a) / 6
        missing = volume_mm3 - float(np.einsum("ij,ij->", a, crossed))
        if abs(missing) < VOLUME_TOLERANCE * volume_mm3:
            break
        # What the volume gains where a vertex is moved: a third of the areas around it.
        gains = np.stack(
            [
                np.bincount(triangles.ravel(), np.repeat(crossed[:, d], 3), len(points))
                for d in range(3)
            ],
            axis=1,
        )
        lengths = np.linalg.norm(gains, axis=1, keepdims=True)
        points = points + gains / np.where(lengths > 0, lengths, 1) * (missing / lengths.sum())
    return points


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
