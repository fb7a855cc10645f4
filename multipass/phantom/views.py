"""Scans that show a part: crops of a whole body on all six sides, and other parts of it.

Archives hold them as often as whole pelves: one hip, a thigh in close-up, a chest, a foot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from multipass.phantom.anatomy.individual import Individual
from multipass.phantom.anatomy.limbs import ARMS
from multipass.phantom.anatomy.pose import Pose
from multipass.phantom.recipe import Recipe

PIXELS_MM = (0.4, 1.2)
STEPS_MM = (0.6, 5.0)
MOST_SLICES = 240
FLEXED_SHARE, FLEXED_DEG = 0.2, (15.0, 45.0)  # of views of hips and thighs
CROPPED_SHARE, MOST_CROPPED = 0.3, 0.3  # off each side of the picture
# Lattices by what is in view (litres): bones, soft tissue. 2 mm close foramina and joint gaps.
LATTICES_MM = ((4, 1.3, 2.6), (9, 1.6, 3.2), (30, 2.0, 4.0), (np.inf, 2.5, 5.0))


@dataclass(frozen=True)
class View:
    """A box around a place of the body.

    Attributes:
        share: of the views.
        frame: 'pelvis' or 'femur', in which `centre_mm` is given for the left side; 'arm'.
        centre_mm, spread_mm: where the box's middle lies, evenly spread to both sides.
        height_mm, field_mm: ranges of the box's height, and of its width and depth.
        near: whether hips or thighs are in view, as the patient's pose then counts.
    """

    share: float
    frame: str
    centre_mm: tuple[float, float, float]
    spread_mm: tuple[float, float, float]
    height_mm: tuple[float, float]
    field_mm: tuple[float, float]
    near: bool = False


# The hip joint lies at (88, -14, -41) of the pelvis frame and at the origin of the femur's, the
# knee at -450, the ankle at -830 of the latter; crests end at 95, shoulders at 530, crown at 815.
VIEWS = {
    "one hip": View(0.12, "pelvis", (88, -10, -35), (25, 25, 40), (90, 260), (170, 300), True),
    "half a pelvis": View(0.09, "pelvis", (70, 0, 0), (30, 25, 40), (150, 320), (230, 360), True),
    "proximal femur": View(0.08, "femur", (30, 5, -70), (25, 25, 50), (70, 230), (130, 260), True),
    "distal femur": View(0.08, "femur", (29, 5, -400), (20, 25, 50), (70, 240), (120, 260)),
    "thigh": View(0.09, "femur", (35, 5, -220), (25, 30, 90), (40, 220), (130, 280), True),
    "thighs": View(0.05, "pelvis", (0, 0, -260), (30, 30, 100), (40, 260), (330, 480)),
    "crests": View(0.05, "pelvis", (0, 0, 110), (30, 30, 30), (60, 170), (300, 460), True),
    "slab": View(0.06, "pelvis", (0, 0, -60), (90, 40, 150), (40, 60), (180, 480), True),
    "circle": View(0.05, "pelvis", (90, 0, -10), (60, 60, 50), (180, 380), (240, 400), True),
    "head": View(0.07, "pelvis", (0, -10, 700), (25, 25, 60), (110, 330), (190, 340)),
    "chest": View(0.08, "pelvis", (0, -20, 420), (40, 30, 60), (90, 330), (280, 480)),
    "upper abdomen": View(0.05, "pelvis", (0, -20, 250), (40, 30, 40), (70, 180), (280, 460)),
    "knees": View(0.03, "pelvis", (0, 5, -490), (30, 25, 60), (90, 280), (260, 420)),
    "shins and feet": View(0.03, "pelvis", (0, 0, -800), (30, 30, 140), (110, 420), (260, 460)),
    "shin or foot": View(0.04, "femur", (27, -15, -760), (20, 40, 130), (80, 350), (120, 280)),
    "arm": View(0.03, "arm", (0, 0, 0), (25, 25, 25), (70, 300), (110, 280)),
}


def draw_view(recipe: Recipe, individual: Individual, kind: str | None = None) -> Recipe:
    """The same patient, with arms, legs and head, in a scan of a part.

    Args:
        recipe: its matrix is the largest that the scan may have.
        kind: one of VIEWS; a random one by default.
    """
    rng = recipe.rng("view")
    drawn = str(rng.choice(list(VIEWS), p=[v.share for v in VIEWS.values()]))
    kind = kind or drawn
    view = VIEWS[kind]
    recipe = replace(
        recipe, view=kind, limbs=str(rng.choice(list(ARMS))), arms=False,
        **_posed(recipe, rng, view.near),
    )  # fmt: skip
    place = _place(Pose(recipe, individual), rng, view)
    recipe = replace(recipe, **_box(recipe, rng, view, place))
    if kind == "circle":
        return replace(recipe, padding=-2000 if recipe.signed else 0)
    if rng.random() < CROPPED_SHARE:
        sides = rng.uniform(0, MOST_CROPPED, 4)
        return replace(recipe, crop=tuple(round(float(s), 3) for s in sides), padding=None)
    return recipe


def _posed(recipe: Recipe, rng: np.random.Generator, near: bool) -> dict:
    """Turns of pelvis and thighs; the parts far from the pelvis are modelled straight."""
    share = 1.0 if near else 0.35
    flexed = near and rng.random() < FLEXED_SHARE
    flex = rng.uniform(*FLEXED_DEG, 2)
    sides = [
        (extra if flexed else share * a, share * b, share * c)
        for (a, b, c), extra in zip(recipe.femur_deg, flex.tolist(), strict=True)
    ]
    return {
        "pelvis_deg": tuple(share * angle for angle in recipe.pelvis_deg),
        "femur_deg": tuple(sides),
    }


def _place(pose: Pose, rng: np.random.Generator, view: View) -> np.ndarray:
    """The middle of the view, scene mm."""
    side = int(rng.choice([-1, 1]))
    shift = rng.uniform(-1, 1, 3) * view.spread_mm
    if view.frame == "arm":
        joints = np.asarray(ARMS[pose.recipe.limbs], float)
        bone, along = int(rng.integers(len(joints) - 1)), rng.random()
        centre = joints[bone] + along * (joints[bone + 1] - joints[bone])
    else:
        centre = np.asarray(view.centre_mm, float)
    at = (centre + shift)[None]
    if view.frame == "femur":
        return pose.femur_to_scene(at, side)[0]
    return pose.to_scene(at * (side, 1, 1))[0]


def _box(recipe: Recipe, rng: np.random.Generator, view: View, place: np.ndarray) -> dict:
    """The recipe's fields for a scan around a place."""
    field = float(rng.uniform(*view.field_mm)) * recipe.scale
    height = float(rng.uniform(*view.height_mm))
    height *= recipe.scale if height > 80 else 1
    pixel = float(np.exp(rng.uniform(*np.log(PIXELS_MM))))
    matrix = int(np.clip(round(field / pixel), min(128, recipe.matrix), recipe.matrix))
    step = float(np.exp(rng.uniform(*np.log(STEPS_MM))))
    step = round(max(step, height / MOST_SLICES), 2)
    overlap = float(rng.choice([0.8, 1.0, 1.0, 1.25]))
    litres = field**2 * height / 1e6
    _, lattice, tissue = next(row for row in LATTICES_MM if litres < row[0])
    bottom = float(place[2]) - height / 2
    return {
        "matrix": matrix, "pixel_mm": round(field / matrix, 6), "slice_step_mm": step,
        "slice_thickness_mm": round(max(step * overlap, 0.6), 3),
        "bottom_mm": round(bottom, 1), "top_mm": round(bottom + height, 1),
        "centre_mm": (round(float(place[0]), 1), round(float(place[1]), 1)),
        "lattice_mm": lattice, "tissue_mm": tissue,
    }  # fmt: skip
