"""The shapes of one patient's bones in their frames: parametric, or drawn from an atlas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multipass.phantom.anatomy import bones
from multipass.phantom.anatomy.atlas import Atlas
from multipass.phantom.anatomy.femurs import Femur
from multipass.phantom.anatomy.implants import Metal, plates
from multipass.phantom.anatomy.lattice import Shape
from multipass.phantom.anatomy.pathology import CUTS, fractured, with_osteophytes
from multipass.phantom.anatomy.sacra import complete_sacrum
from multipass.phantom.anatomy.surface import Surface, fit_ball
from multipass.phantom.anatomy.variety import vary
from multipass.phantom.recipe import Recipe

Box = tuple[Sequence[float], Sequence[float]]

FEMUR_BOX: Box = ((-26, -30, -410), (75, 40, 26))
HIP_BOX: Box = ((0, -95, -125), (150, 95, 105))
SACRUM_BOX: Box = ((-70, -20, -35), (70, 95, 95))
COCCYX_BOX: Box = ((-12, 30, -55), (12, 85, -10))

SCALES = (0.84, 1.22)  # of the pelvis frame: women of 1.45 m to men of 2.05 m
JOINT_MM = 2.0  # between head and socket, of the frame
PARAMETRIC_FEMUR = 0.25  # share of patients


@dataclass(frozen=True)
class Individual:
    """Shapes and boxes; sides are 1 left, -1 right, shapes of the right are given mirrored.

    Attributes:
        hip_centres: of the sockets, pelvis frame, x mirrored on the right.
        femur_fit: factor on the femurs' size that fits their heads into the sockets.
        lumbar: shapes in the frame of `spine.vertebra`, for the vertebrae that have one.
        spine_shift: of the spine against the parametric one, pelvis frame.
        spine_tilt: turn of L5 about x against the parametric one, radians.
        fleshed: whether the outline must be kept outside the bones.
        plates: metal that follows a bone's surface.
    """

    name: str = ""
    hips: dict[int, tuple[Shape, Box]] = field(
        default_factory=lambda: dict.fromkeys((1, -1), (bones.hip_bone, HIP_BOX))
    )
    sacrum: tuple[Shape, Box] = (bones.sacrum, SACRUM_BOX)
    coccyx: tuple[Shape, Box] = (bones.coccyx, COCCYX_BOX)
    femurs: dict[int, tuple[Shape, Box]] = field(
        default_factory=lambda: dict.fromkeys((1, -1), (bones.femur, FEMUR_BOX))
    )
    hip_centres: dict[int, Sequence[float]] = field(
        default_factory=lambda: dict.fromkeys((1, -1), bones.HIP_CENTRE)
    )
    femur_fit: float = 1.0
    lumbar: dict[str, Shape] = field(default_factory=dict)
    spine_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spine_tilt: float = 0.0
    fleshed: bool = False
    plates: tuple[Metal, ...] = ()


PARAMETRIC = Individual()


def draw_individual(atlas: Atlas, recipe: Recipe, size: str | None) -> tuple[Individual, Recipe]:
    """Draw a patient's shapes, and the recipe at the true size of the subjects they come from."""
    rng = recipe.rng("individual")
    weights = _draw_weights(rng, len(atlas.ids))
    shape = np.tensordot(weights, atlas.pelves, 1)
    own_size = float(weights @ atlas.sizes * rng.normal(1, 0.05))
    shape = _rippled(shape, rng, float(rng.uniform(0.1, 0.7)))
    centres: dict[int, Sequence[float]] = {}
    radius = 0.0
    for side in (1, -1):
        centre, own = fit_ball(shape[atlas.sockets[side]])
        centres[side] = (centre * (side, 1, 1)).tolist()
        radius += own / 2
    recipe = vary(recipe, size)
    surfaces = {}
    for side, name in ((1, "left_hip"), (-1, "right_hip")):
        vertices = shape[atlas.ranges[name]] * (side, 1, 1)
        faces = np.ascontiguousarray(atlas.faces[name][:, ::side])
        rim = _rim(vertices, centres[side], radius)
        vertices = with_osteophytes(vertices, faces, rim, recipe.osteophytes, rng)
        surfaces[side] = Surface(vertices, faces)
    mirrored = bool(rng.random() < 0.5)
    if mirrored:
        surfaces = {1: surfaces[-1], -1: surfaces[1]}
        centres = {1: centres[-1], -1: centres[1]}
    hips = {side: _boxed(surface) for side, surface in surfaces.items()}
    sacrum, coccyx, end_plate = complete_sacrum(atlas, shape, rng, mirrored)
    femurs, femur_names = _draw_femurs(atlas, rng)
    shift, tilt = _spine_place(*end_plate)
    sides = {"hip": hips, "femur": femurs}
    plated = int(rng.choice([-1, 1]))
    metal = plates(surfaces[plated], plated, rng) if recipe.implant == "plates" else []
    if recipe.fracture:
        bone = CUTS[recipe.fracture][0]
        side = int(rng.choice([-1, 1]))
        if bone == "sacrum":
            sacrum = fractured(sacrum[0], recipe.fracture, rng), _wider(sacrum[1])
        else:
            whole, box = sides[bone][side]
            sides[bone][side] = fractured(whole, recipe.fracture, rng), _wider(box)
    used = [f"{i} {w:+.2f}" for i, w in zip(atlas.ids, weights, strict=True) if w]
    name = f"pelvis {' '.join(used)}{' mirrored' if mirrored else ''}, femur {femur_names}"
    individual = Individual(
        name, hips, sacrum, coccyx, femurs, centres, (radius - JOINT_MM) / bones.HEAD_RADIUS,
        _draw_lumbar(atlas, rng), shift, tilt, True, tuple(metal),
    )  # fmt: skip
    scale = float(np.clip(own_size, *SCALES))
    ratio = scale / recipe.scale
    return individual, replace(
        recipe, scale=scale, anatomy=name,
        bottom_mm=round(recipe.bottom_mm * ratio, 1), top_mm=round(recipe.top_mm * ratio, 1),
    )  # fmt: skip


def _draw_weights(rng: np.random.Generator, count: int) -> np.ndarray:
    """Weights of the subjects, of sum 1: one alone, a dominant one with one or two others, or one
    changed by a part of the difference between two others."""
    weights = np.zeros(count)
    chosen = rng.permutation(count)[:3]
    kind = rng.choice(["alone", "blend", "difference"], p=[0.2, 0.5, 0.3])
    weights[chosen[0]] = 1.0
    if kind == "blend" and len(chosen) > 1:
        shares = rng.dirichlet(np.ones(len(chosen) - 1)) * rng.uniform(0.1, 0.5)
        weights[chosen[0]] -= shares.sum()
        weights[chosen[1:]] = shares
    elif kind == "difference" and len(chosen) > 2:
        weights[chosen[1:]] = rng.uniform(0.15, 0.45) * np.array((1, -1))
    return weights


def _rippled(points: np.ndarray, rng: np.random.Generator, size_mm: float) -> np.ndarray:
    """The points moved by smooth random waves of 30 to 150 mm, `size_mm` rms along each axis."""
    waves = rng.normal(0, 1, (12, 3))
    waves *= (2 * np.pi / rng.uniform(30, 150, 12) / np.linalg.norm(waves, axis=1))[:, None]
    phase = points @ waves.T + rng.uniform(0, 2 * np.pi, 12)
    ways = rng.normal(0, 1, (12, 3))
    # long waves may be high: the surface's slope is what they have in common
    ways *= np.sqrt(1 / np.linalg.norm(waves, axis=1))[:, None]
    ways *= size_mm / np.sqrt((ways**2).sum(0) / 2)
    return points + np.sin(phase) @ ways


def _boxed(surface: Surface) -> tuple[Shape, Box]:
    return surface, (tuple(surface.lower - 1), tuple(surface.upper + 1))


def _rim(hip: np.ndarray, centre: Sequence[float], radius: float) -> np.ndarray:
    """Indices of a left hip bone's vertices around its socket, where osteophytes grow."""
    away = hip - np.asarray(centre)
    distance = np.linalg.norm(away, axis=1)
    return np.flatnonzero((np.abs(distance - radius - 4) < 4) & (away @ (-0.7, 0.35, 0.6) < 16))


def _wider(box: Box) -> Box:
    """The box with room for a fragment that has moved."""
    low, high = box
    return tuple(v - 10 for v in low), tuple(v + 10 for v in high)


def _spine_place(centre: np.ndarray, normal: np.ndarray) -> tuple[tuple, float]:
    """Shift and tilt of the spine above an upper end plate of S1, against the parametric one."""
    y, z = np.subtract(centre[1:], (11.0, 63.5))
    tilt = np.arctan2(-normal[1], normal[2]) - np.arctan2(0.58, 0.81)
    return (float(centre[0]), float(y), float(z)), float(np.clip(0.8 * tilt, -0.35, 0.35))


def _draw_lumbar(atlas: Atlas, rng: np.random.Generator) -> dict[str, Shape]:
    if rng.random() < 0.3:
        return {}
    lumbar: dict[str, Shape] = {}
    for name, (vertices, faces) in atlas.lumbar.items():
        stretch = rng.normal(1, 0.05, 3)
        lumbar[name] = Surface(_rippled(vertices * stretch, rng, 0.5), faces)
    return lumbar


def _draw_femurs(atlas: Atlas, rng: np.random.Generator):
    """Both sides from one person, in turn from left and right where there are both."""
    if rng.random() < PARAMETRIC_FEMUR:
        return dict.fromkeys((1, -1), (bones.femur, FEMUR_BOX)), "parametric"
    first = atlas.femurs[rng.integers(len(atlas.femurs))]
    person = first.name.split("_")[0]
    pair = [f for f in atlas.femurs if f.name.split("_")[0] == person]
    chosen = [first, pair[rng.integers(len(pair))]]
    twist, stretch = float(rng.normal(0, 8)), rng.normal(1, 0.04, 3)
    seed = int(rng.integers(2**32))
    femurs = {}
    for side, femur in zip((1, -1), chosen, strict=True):
        vertices = _changed_femur(femur, twist, stretch, np.random.default_rng(seed))
        femurs[side] = _whole_femur(vertices, femur.faces), FEMUR_BOX
    return femurs, " and ".join(f.name for f in chosen)


def _changed_femur(
    femur: Femur, twist_deg: float, stretch: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Vertices with the shaft turned against the neck (which changes the anteversion), other
    proportions below the head, and ripples; the head stays a sphere."""
    v = femur.vertices
    below = np.clip((np.linalg.norm(v, axis=1) - 24) / 20, 0, 1)[:, None]
    changed = v * (1 + below * (stretch - 1))
    angle = np.radians(twist_deg) * np.clip((-15 - v[:, 2]) / 60, 0, 1)
    x, y = changed[:, 0] - 41, changed[:, 1] - 8
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.column_stack([41 + cos * x - sin * y, 8 + sin * x + cos * y, changed[:, 2]])
    return turned + below * (_rippled(turned, rng, 0.5) - turned)


def _whole_femur(vertices: np.ndarray, faces: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A femur whose shaft goes on as the parametric one below the end of the surface."""
    surface = Surface(vertices, faces)
    z = vertices[:, 2]
    end = float(z.min())
    ring = vertices[np.abs(z - end - 12) < 3]
    own = ring.mean(axis=0)
    own_radius = float(np.median(np.hypot(*(ring - own)[:, :2].T)))
    axis, radius = _modelled_shaft(end + 12)
    offset, extra = own[:2] - axis, own_radius - radius

    def shape(points: np.ndarray) -> np.ndarray:
        height = points[:, 2]
        result = np.full(len(points), 0, np.float32)
        real = np.clip((height - np.float32(end + 4)) / 18, 0, 1)
        above, below = np.flatnonzero(real > 0), np.flatnonzero(real < 1)
        result[above] = real[above] * surface(points[above])
        fade = np.clip((height[below] - np.float32(end)) / 160 + 1, 0, 1)
        moved = points[below].copy()
        for axis_index in (0, 1):
            moved[:, axis_index] -= np.float32(offset[axis_index]) * fade
        result[below] += (1 - real[below]) * (bones.femur(moved) - np.float32(extra) * fade)
        return result

    return shape


def _modelled_shaft(z: float) -> tuple[np.ndarray, float]:
    """Centre (x, y) and radius of the parametric femur's cross-section."""
    grid = np.stack(np.meshgrid(np.arange(0.0, 80), np.arange(-30.0, 50), indexing="ij"), -1)
    points = np.column_stack([grid.reshape(-1, 2), np.full(6400, z)]).astype(np.float32)
    inside = grid.reshape(-1, 2)[bones.femur(points) < 0]
    return inside.mean(axis=0), float(np.sqrt(len(inside) / np.pi))
