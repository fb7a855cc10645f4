"""A folder of real bone surfaces, aligned with the frames in which bones are modelled.

    DIR/pelvis/NN_{left_hip,right_hip,sacrum}.ply   subjects; vertices of a structure correspond
    DIR/femur/NAME_{left,right}_femur.ply           watertight upper ends; see femurs.py
    DIR/labelmaps/NAME_structures.nii.gz            more femurs, if there are any
    DIR/spine/{l1..l5,s1}.ply                       one model, x forward, y to the left, z up

All other coordinates are LPS mm. Subjects for testing are set aside by fixed rules, and what is
learnt from several subjects (the mean, the landmarks) comes from the others alone. The spine model,
of which there is one only, gives both parts their lumbar vertebrae and the sacrum's lower end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from multipass.phantom.anatomy import spine
from multipass.phantom.anatomy.bones import HEAD_RADIUS, HIP_CENTRE
from multipass.phantom.anatomy.femurs import Femur, chosen, load_femurs
from multipass.phantom.anatomy.lattice import lattice_points
from multipass.phantom.anatomy.surface import (
    apply,
    fit,
    fit_ball,
    read_surface,
    similarity,
    vertex_normals,
)

# Of the 28 sorted ids, those whose place leaves 2 or 5 when divided by 7.
TEST_PELVES = ("04", "10", "16", "27", "34", "40", "46", "55")
PARTS = ("left_hip", "right_hip", "sacrum")
# Of the parametric left hip bone: iliac spines in front and behind, crest, ischium, pubis
LANDMARKS = np.array([(110, -61, 26), (43, 76, 40), (86, 28, 95), (42, 2, -110), (7, -63, -61)])


@dataclass(frozen=True)
class Atlas:
    """Surfaces of one part, in the pelvis frame and divided by their size.

    Attributes:
        ids: of the pelves.
        pelves: (subjects, vertices, 3), the three structures of PARTS one after another.
        sizes: mm of the subject per mm of the pelvis frame.
        faces, ranges: of each structure, for all subjects.
        mean: the mean shape of the training subjects, (vertices, 3).
        sockets: indices of the left and right socket's vertices.
        whole_sacrum: vertices and faces of the spine model's sacrum and coccyx, laid on the mean.
        lumbar: vertices and faces of a vertebra by name, in the frame of `spine.vertebra`.
    """

    ids: tuple[str, ...]
    pelves: np.ndarray
    sizes: np.ndarray
    faces: dict[str, np.ndarray]
    ranges: dict[str, slice]
    mean: np.ndarray
    sockets: dict[int, np.ndarray]
    whole_sacrum: tuple[np.ndarray, np.ndarray]
    lumbar: dict[str, tuple[np.ndarray, np.ndarray]]
    femurs: tuple[Femur, ...]


@lru_cache(maxsize=2)
def load_atlas(folder: Path, part: str = "all") -> Atlas:
    """Read and align the surfaces of a part: 'train', 'test' or 'all'.

    Raises:
        ValueError: a file is missing or broken, vertices don't correspond, or the part is empty.
    """
    names = sorted(p.name.split("_")[0] for p in folder.glob("pelvis/*_sacrum.ply"))
    ids = chosen(folder / "pelvis", names, TEST_PELVES, part)
    training = chosen(folder / "pelvis", names, TEST_PELVES, "train")
    shapes, faces, ranges = _read_pelves(folder, sorted({*ids, *training}))
    mean = _mean([shapes[i] for i in training])
    mean = apply(_to_pelvis_frame(mean, ranges), mean)
    pelves, sizes = [], []
    for i in ids:
        scale, turn, shift = similarity(shapes[i], mean)
        pelves.append(scale * shapes[i] @ turn + shift)
        sizes.append(1 / scale)
    sockets = {}
    for side, name in ((1, "left_hip"), (-1, "right_hip")):
        hip = mean[ranges[name]] * (side, 1, 1)
        sockets[side] = ranges[name].start + _socket(hip, faces[name][:, ::side])
    return Atlas(
        tuple(ids), np.array(pelves), np.array(sizes), faces, ranges, mean, sockets,
        _whole_sacrum(folder, mean[ranges["sacrum"]]), _lumbar(folder), load_femurs(folder, part),
    )  # fmt: skip


def _read_pelves(folder: Path, ids: list[str]):
    shapes: dict[str, np.ndarray] = {}
    faces: dict[str, np.ndarray] = {}
    ranges: dict[str, slice] = {}
    for i in ids:
        read = [read_surface(folder / "pelvis" / f"{i}_{name}.ply") for name in PARTS]
        start = 0
        for name, (vertices, triangles) in zip(PARTS, read, strict=True):
            place = slice(start, start + len(vertices))
            same = faces.setdefault(name, triangles)
            if ranges.setdefault(name, place) != place or not np.array_equal(same, triangles):
                raise ValueError(f"--anatomy: the vertices of {i}_{name}.ply don't correspond")
            start = place.stop
        shapes[i] = np.concatenate([vertices for vertices, _ in read])
    return shapes, faces, ranges


def _mean(shapes: list[np.ndarray]) -> np.ndarray:
    """Mean of shapes aligned with each other (generalised Procrustes analysis)."""
    mean = shapes[0]
    for _ in range(4):
        aligned = []
        for shape in shapes:
            scale, turn, shift = similarity(shape, mean)
            aligned.append(scale * shape @ turn + shift)
        mean = np.mean(aligned, axis=0)
    return mean


def _to_pelvis_frame(mean: np.ndarray, ranges: dict[str, slice]) -> np.ndarray:
    """Similarity that takes both hip bones' landmarks onto those of the parametric pelvis."""
    target = np.concatenate([LANDMARKS * (side, 1, 1) for side in (1, -1)])
    matrix = np.vstack([np.eye(3), np.zeros(3)])
    for _ in range(6):
        placed = apply(matrix, mean)
        hips = [placed[ranges["left_hip"]], placed[ranges["right_hip"]] * (-1, 1, 1)]
        found = [_landmarks(h) for h in hips]
        points = [mean[ranges[n]][i] for n, i in zip(PARTS[:2], found, strict=True)]
        scale, turn, shift = similarity(np.concatenate(points), target)
        matrix = np.vstack([scale * turn, shift])
    return matrix


def _landmarks(hip: np.ndarray) -> list[int]:
    """Indices of the vertices of a left hip bone that stand for LANDMARKS."""
    x, y, z = hip.T
    middle = (z.max() + z.min()) / 2
    return [
        int(np.argmin(np.where(z > middle, y, np.inf))), int(np.argmax(y)), int(np.argmax(z)),
        int(np.argmin(z)), int(np.argmin(np.where(z < middle, x, np.inf))),
    ]  # fmt: skip


def _socket(hip: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Indices of a left hip bone's vertices that carry the head, pelvis frame.

    The fossa lies deeper than the sphere and is left out, for which the band is narrower outside.
    """
    normals = vertex_normals(hip, faces)
    centre, radius = np.array(HIP_CENTRE), HEAD_RADIUS + 2
    found: np.ndarray = np.arange(0)
    for outside in (5.0, 4.0, 3.0, 2.0, *[1.2] * 20):
        away = hip - centre
        distance = np.linalg.norm(away, axis=1)
        facing = -(normals * away).sum(1) > 0.85 * distance
        beyond = distance - radius
        inwards = away @ (-0.7, 0.35, 0.6) > 0
        found = np.flatnonzero(facing & inwards & (beyond > -1.5 * outside) & (beyond < outside))
        if len(found) < 20:
            raise ValueError("--anatomy: no hip socket was found in the mean of pelvis/*_hip.ply")
        centre, radius = fit_ball(hip[found])
    return found


def _model(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A surface of the spine model, whose x points forward and y to the left, in LPS."""
    vertices, faces = read_surface(folder / "spine" / f"{name}.ply")
    return np.column_stack([vertices[:, 1], -vertices[:, 0], vertices[:, 2]]), faces


def _whole_sacrum(folder: Path, sacrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = _model(folder, "s1")
    return apply(fit(vertices, sacrum), vertices), faces


def _lumbar(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    shape = spine.Vertebra("mean", (0, 0, 0), 0.0, 48, 0)
    grid = lattice_points(np.array([-50, -22, -28]), (101, 90, 60), 1.0)
    distance = spine.vertebra(grid, shape)
    target = grid[np.abs(distance) < 0.5].astype(float)
    placed = {}
    for number in range(1, 6):
        vertices, faces = _model(folder, f"l{number}")
        placed[f"L{number}"] = apply(fit(vertices, target), vertices), faces
    return placed
