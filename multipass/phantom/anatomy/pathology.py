"""What goes wrong with bones: fractures with displaced fragments, osteophytes, lesions."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from multipass.phantom.anatomy.lattice import Block, Shape
from multipass.phantom.anatomy.shapes import plane
from multipass.phantom.anatomy.surface import vertex_normals

# Structure that breaks, a point of the cut and its normal, which points to the fragment; frames and
# sides as in `Individual`
CUTS = {
    "pubic rami": ("hip", (38, -35, -65), (-0.85, -0.5, 0.1)),
    "iliac wing": ("hip", (100, 5, 40), (0.4, -0.4, 0.8)),
    "acetabulum": ("hip", (85, -15, -38), (0.0, -0.25, -1.0)),
    "femoral neck": ("femur", (22, 3, -18), (-0.75, -0.05, 0.65)),
    "sacral ala": ("sacrum", (27, 40, 30), (1.0, 0.1, -0.1)),
}


def fractured(shape: Shape, cut: str, rng: np.random.Generator) -> Shape:
    """A shape cut by a plane, whose fragment has been shifted and turned; it keeps its label."""
    _, through, normal = CUTS[cut]
    place: list[float] = np.add(through, rng.normal(0, 5, 3)).tolist()
    towards = np.add(normal, rng.normal(0, 0.2, 3))
    way: list[float] = (towards / np.linalg.norm(towards)).tolist()
    gap = rng.uniform(0.3, 2.5)
    turn = Rotation.from_rotvec(rng.normal(0, np.radians(5), 3)).as_matrix().astype(np.float32)
    shift = (rng.normal(0, 3, 3) + rng.uniform(0, 3) * np.asarray(way)).astype(np.float32)
    centre = np.asarray(place, np.float32)

    def broken(points: np.ndarray) -> np.ndarray:
        rest = np.maximum(shape(points), plane(points, place, way) + np.float32(gap / 2))
        away = points - centre - shift
        back = np.stack([(away * column).sum(1) for column in turn.T]).T + centre
        moved = np.maximum(shape(back), np.float32(gap / 2) - plane(back, place, way))
        return np.minimum(rest, moved)

    return broken


def with_osteophytes(
    vertices: np.ndarray, faces: np.ndarray, where: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Vertices raised along their normals in small bumps.

    Args:
        where: indices of vertices on which bumps may sit.
        count: bumps, of 1 to 6 mm and as wide.
    """
    if not count or not len(where):
        return vertices
    normals = vertex_normals(vertices, faces)
    height = np.zeros(len(vertices))
    for seed in rng.choice(where, count):
        distance = np.linalg.norm(vertices - vertices[seed], axis=1)
        width = rng.uniform(2.0, 5.0)
        bump = rng.uniform(0.3, 1.2) * width * np.exp(-0.5 * (distance / width) ** 2)
        height = np.maximum(height, bump)
    return vertices + height[:, None] * normals


def add_lesions(core: np.ndarray, bone: Block, most: int, rng: np.random.Generator) -> None:
    """Paints balls of soft or dense tissue into a bone's HU.

    Args:
        core: HU of what lies inside the cortex, changed in place.
        bone: the bone's distance, on the same lattice.
        most: lesions, none to this many, of 2 to 14 mm radius.
    """
    inside = np.argwhere(bone.array < -1)
    if not len(inside):
        return
    for _ in range(int(rng.integers(0, most + 1))):
        radius = np.exp(rng.uniform(np.log(2), np.log(14))) / bone.step_mm
        hu = rng.uniform(-20, 90) if rng.random() < 0.5 else rng.uniform(500, 1300)
        centre = inside[rng.integers(len(inside))]
        box = tuple(slice(max(int(c - radius), 0), int(c + radius) + 2) for c in centre)
        places = np.indices(core[box].shape) + [[[[s.start]]] for s in box]
        distance = np.sqrt(((places - centre[:, None, None, None]) ** 2).sum(0)) - radius
        core[box] += np.clip(0.5 - distance, 0, 1) * (hu - core[box])
