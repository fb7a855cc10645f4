"""A folder of bone surfaces laid out as `--anatomy` wants it, made from the parametric bones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from multipass.geometry.meshes import mesh_of, write_mesh
from multipass.geometry.volume import Grid, Volume, ints3, to_sitk
from multipass.phantom.anatomy import bones, spine
from multipass.phantom.anatomy.bones import HIP_CENTRE
from multipass.phantom.anatomy.individual import COCCYX_BOX, HIP_BOX, SACRUM_BOX
from multipass.phantom.anatomy.lattice import lattice_points

STEP_MM = 3.0
PELVES = ("01", "02", "03", "04", "10")  # the last two are set aside for tests
FEMUR_BOX = ((-30, -35, -150), (80, 45, 30))
VERTEBRA_BOX = ((-50, -22, -28), (50, 67, 31))
OPEN_BELOW_MM = 15.0  # the sacra of the pelves end at this height


def write_folder(folder: Path) -> None:
    for name in ("pelvis", "femur", "spine", "labelmaps"):
        (folder / name).mkdir(parents=True)
    hip, faces = surface(bones.hip_bone, HIP_BOX)
    sacrum = surface(bones.sacrum, SACRUM_BOX, OPEN_BELOW_MM)
    parts = {"left_hip": (hip, faces), "right_hip": mirrored(hip, faces), "sacrum": sacrum}
    for number, name in enumerate(PELVES):
        rng = np.random.default_rng(number)
        turn = Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix()
        stretch, shift = rng.normal(1, 0.04, 3), rng.uniform(-200, 200, 3)
        for part, (vertices, triangles) in parts.items():
            path = folder / "pelvis" / f"{name}_{part}.ply"
            write_mesh(path, (vertices * stretch) @ turn + shift, triangles)
    femur = surface(bones.femur, FEMUR_BOX, -140.0)
    for person in ("m3", "m7"):
        for side, of_side in (("left", femur), ("right", mirrored(*femur))):
            write_mesh(folder / "femur" / f"{person}_{side}_femur.ply", *of_side)
    write_label_map(folder / "labelmaps" / "P_structures.nii.gz")
    low, high = np.minimum(SACRUM_BOX, COCCYX_BOX)[0], np.maximum(SACRUM_BOX, COCCYX_BOX)[1]
    whole = surface(lambda p: np.minimum(bones.sacrum(p), bones.coccyx(p)), (low, high))
    write_model(folder / "spine" / "s1.ply", *whole)
    for number in range(1, 6):
        shape = spine.Vertebra("mean", (0, 0, 0), 0.0, 46 + number, 0)
        lumbar = surface(lambda p, shape=shape: spine.vertebra(p, shape), VERTEBRA_BOX)
        write_model(folder / "spine" / f"l{number}.ply", *lumbar)


def write_label_map(path: Path) -> None:
    """Both femurs as label 2 among others, of 2 x 2 x 3 mm."""
    spacing, low = (2.0, 2.0, 3.0), (-180.0, -40.0, -150.0)
    places = [
        start + np.arange(n) * step
        for start, n, step in zip(low, (181, 45, 61), spacing, strict=True)
    ]
    points = np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(-1, 3)
    labels = np.ones((181, 45, 61), np.uint8)
    for side in (1, -1):
        moved = (points * (side, 1, 1) - (HIP_CENTRE[0], 0, 0)).astype(np.float32)
        labels[(bones.femur(moved) < 0).reshape(labels.shape)] = 2
    sitk.WriteImage(to_sitk(Volume(labels, Grid(labels.shape, spacing, low))), str(path))


def surface(shape, box, above_mm: float = -np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of an implicit shape's part above a height."""
    low = np.floor(np.divide(box[0], STEP_MM)).astype(int) - 2
    size = np.ceil(np.divide(box[1], STEP_MM)).astype(int) + 3 - low
    points = lattice_points(low, tuple(size), STEP_MM)
    inside = (shape(points) < 0) & (points[:, 2] > above_mm)
    origin = tuple(float(v) for v in low * STEP_MM)
    grid = Grid(ints3(size), (STEP_MM,) * 3, origin)
    return mesh_of(inside.reshape(size).astype(np.uint8), 1, grid)


def mirrored(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return vertices * (-1, 1, 1), np.ascontiguousarray(faces[:, ::-1])


def write_model(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """In the axes of the spine model: x forward, y to the left, z up."""
    write_mesh(path, np.column_stack([-vertices[:, 1], vertices[:, 0], vertices[:, 2]]), faces)
