"""Femurs of a folder of anatomy, all laid into the femur's frame.

DIR/femur/NAME_{left,right}_femur.ply       watertight upper ends
DIR/labelmaps/NAME_structures.nii.gz        label maps in which 2 is both femurs
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from multipass.geometry.meshes import surface_net
from multipass.geometry.volume import Volume, from_sitk, upright
from multipass.phantom.anatomy.bones import HEAD_RADIUS
from multipass.phantom.anatomy.surface import fit_ball, read_surface

TEST_FEMURS = ("m7", "m8", "Pelvic-Ref-005")  # people
SHORT_SHAFT_MM = 90.0  # below the head's centre: too short to tell the shaft's direction
LABEL = 2
MESH_MM, BLUR_VOXELS, MARGIN_VOXELS = 2.0, 0.8, 4
LEAST_ML = 20.0  # of a femur


@dataclass(frozen=True)
class Femur:
    """A left femur (right ones are mirrored) in the femur's frame, its head of HEAD_RADIUS."""

    name: str
    vertices: np.ndarray
    faces: np.ndarray


def chosen(folder: Path, names: Sequence[str], aside: Sequence[str], part: str) -> list[str]:
    """The names of a part: 'train', 'test' (those `aside`) or 'all'.

    Raises:
        ValueError: there are none.
    """
    found = [n for n in names if part == "all" or (n in aside) == (part == "test")]
    if not found:
        raise ValueError(f"--anatomy: {folder} holds no subject for --part {part}")
    return found


def load_femurs(folder: Path, part: str) -> tuple[Femur, ...]:
    """The femurs of a part's people.

    Raises:
        ValueError: a file is broken, or there is nobody.
    """
    surfaces = sorted(folder.glob("femur/*_femur.ply"))
    maps = sorted(folder.glob("labelmaps/*_structures.nii.gz"))
    people = chosen(folder / "femur", [_person(p) for p in (*surfaces, *maps)], TEST_FEMURS, part)
    found = []
    for path in surfaces:
        if _person(path) in people:
            found.append(_femur(path.stem.removesuffix("_femur"), *read_surface(path)))
    for path in maps:
        if _person(path) in people:
            for side, vertices, faces in _in_label_map(path):
                found.append(_femur(f"{_person(path)}_{side}", vertices, faces))
    return tuple(found)


def _person(path: Path) -> str:
    return path.name.split("_")[0]


def _in_label_map(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Side, vertices and triangles of both femurs; LPS x grows to the left."""
    try:
        volume = upright(from_sitk(sitk.ReadImage(str(path))))
    except RuntimeError as error:
        raise ValueError(f"--anatomy: {path} can't be read as an image") from error
    mask = volume.array == LABEL
    parts = np.zeros(mask.shape, np.int32)
    for around in ndimage.find_objects(mask.view(np.uint8)):
        parts[around], _ = ndimage.label(np.ascontiguousarray(mask[around]))
    sizes_ml = np.bincount(parts.ravel())[1:] * volume.grid.voxel_ml
    large = np.flatnonzero(sizes_ml > LEAST_ML) + 1
    if len(large) != 2:
        raise ValueError(f"--anatomy: {path} has {len(large)} femurs as label {LABEL}, not two")
    boxes = ndimage.find_objects(parts)
    order = sorted(large, key=lambda value: boxes[value - 1][0].start)
    for side, value in zip(("right", "left"), order, strict=True):
        box = boxes[value - 1]
        start = [s.start for s in box]
        vertices, faces = _mesh(Volume(parts[box] == value, volume.grid))
        yield side, vertices + volume.grid.affine[:3, :3] @ start + volume.grid.origin_mm, faces


def _mesh(mask: Volume) -> tuple[np.ndarray, np.ndarray]:
    """A smooth surface of a mask, mm from its first voxel; thick slices leave no steps."""
    factors = np.divide(mask.grid.spacing_mm, MESH_MM)
    padded = np.pad(mask.array, MARGIN_VOXELS).astype(np.float32)
    fine = ndimage.zoom(padded, factors, order=1, grid_mode=True, mode="nearest")
    sigma = np.maximum(factors / 2, BLUR_VOXELS)
    points, faces = surface_net(ndimage.gaussian_filter(fine, sigma) - 0.5)
    scale = np.divide(padded.shape, fine.shape) * mask.grid.spacing_mm
    middle = (points + 0.5) * scale - 0.5 * np.asarray(mask.grid.spacing_mm)
    return middle - MARGIN_VOXELS * np.asarray(mask.grid.spacing_mm), faces


def _femur(name: str, vertices: np.ndarray, faces: np.ndarray) -> Femur:
    if name.endswith("right"):
        vertices, faces = vertices * (-1, 1, 1), faces[:, ::-1]
    centre, radius = _head(vertices)
    vertices = (vertices - centre) * HEAD_RADIUS / radius
    if vertices[:, 2].min() < -SHORT_SHAFT_MM:
        vertices = vertices @ _upright(vertices)
    return Femur(name, vertices, faces)


def _head(femur: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius of a left femur's head: its most medial part near the top."""
    upper = femur[femur[:, 2] > femur[:, 2].max() - 2.4 * HEAD_RADIUS]
    radius = HEAD_RADIUS
    centre = upper[upper[:, 0].argmin()] + (radius, 0, 0)
    for tolerance in (*[4.0] * 20, *[1.5] * 20):
        away = femur - centre
        distance = np.linalg.norm(away, axis=1)
        inwards = away @ (-0.7, 0, 0.7) > -0.1 * distance
        found = inwards & (np.abs(distance - radius) < tolerance)
        if found.sum() < 20:
            raise ValueError("--anatomy: no head was found in one of femur/*.ply")
        centre, radius = fit_ball(femur[found])
    return centre, radius


def _upright(femur: np.ndarray) -> np.ndarray:
    """Rotation about the head's centre that sets the shaft upright, beside the head as modelled."""
    z = femur[:, 2]
    low, high = (femur[np.abs(z - z.min() - height) < 3].mean(axis=0) for height in (6.0, 45.0))
    up = (high - low) / np.linalg.norm(high - low)
    aside = low - (low @ up) * up
    aside /= np.linalg.norm(aside)
    own = np.column_stack([aside, np.cross(up, aside), up])
    x, y = np.array((41.0, 8.0)) / np.hypot(41.0, 8.0)  # from the head to the modelled shaft
    return own @ np.array([(x, y, 0), (-y, x, 0), (0, 0, 1)])
