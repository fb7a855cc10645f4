"""What scans of real anatomies draw on top of a recipe: wider ranges, pathology, odd scans.

Shares are high enough for everything to turn up within 200 scans, and far above what clinics see: a
network must have met all of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from multipass.phantom.recipe import Recipe, kernel, of_size

IMPLANTS = {
    "": 0.63, "prosthesis": 0.1, "two prostheses": 0.05, "sacroiliac screws": 0.04,
    "femoral neck screws": 0.03, "femoral nail": 0.03, "hip screw": 0.03,
    "femoral plate": 0.03, "plates": 0.06,
}  # fmt: skip
# Place of the cut, and its share
FRACTURES = {
    "": 0.72, "pubic rami": 0.08, "iliac wing": 0.05, "acetabulum": 0.05, "femoral neck": 0.06,
    "sacral ala": 0.04,
}  # fmt: skip
MOST_SLICES = 260
# Degrees. DICOM's axes turn with a patient who is announced as lying on the side; farther than this
# left and right would change places, which processing refuses.
ON_THE_SIDE = (30.0, 60.0)


def vary(recipe: Recipe, size: str | None = None) -> Recipe:
    """The recipe with its scan, tissue and bones redrawn from the wider ranges; `size` as in
    `recipe.draw_recipe`."""
    rng = recipe.rng("variety")
    recipe = replace(recipe, **_bones(rng), **_body(rng), **_picture(rng))
    recipe = replace(recipe, **_rarities(recipe.rng("rarities")))
    recipe = replace(recipe, **_extent(rng, recipe, size))
    return of_size(recipe, size)


def _choice(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _bones(rng: np.random.Generator) -> dict:
    dense = rng.beta(1.2, 1.2)  # from osteoporotic to sclerotic
    worn = rng.random() < 0.3
    sides = [
        (float(rng.normal(6, 12)), float(rng.normal(0, 7)), float(rng.normal(5, 17)))
        for _ in range(2)
    ]
    return {
        "cortex_mm": float(np.clip(0.6 + 2.4 * dense + rng.normal(0, 0.4), 0.6, 3.5)),
        "cortex_hu": float(np.clip(450 + 900 * dense + rng.normal(0, 200), 350, 1700)),
        "trabecular_hu": float(np.clip(-30 + 420 * dense + rng.normal(0, 70), -50, 520)),
        "patchy": float(rng.uniform(0, 1)),
        "osteophytes": int(rng.integers(6, 40)) if worn else int(rng.choice([0, 0, 5])),
        "hip_gap_mm": float(rng.uniform(0.2, 1.2) if worn else rng.uniform(0.8, 4.5)),
        "sacroiliac_gap_mm": float(rng.uniform(0.0, 4.0)),
        "fracture": _choice(rng, FRACTURES), "implant": _choice(rng, IMPLANTS),
        "femur_deg": tuple(sides), "neck_deg": float(rng.normal(0, 5)),
        "pelvis_deg": tuple(float(a) for a in rng.normal(0, 1, 3) * (9, 4, 4)),
        "stretch": tuple(float(s) for s in rng.normal(1, 0.035, 3)),
    }  # fmt: skip


def _body(rng: np.random.Generator) -> dict:
    fat_mm = float(np.clip(rng.gamma(2.2, 11), 1.5, 85))
    roll = rng.uniform(*ON_THE_SIDE) * rng.choice([-1, 1])
    roll = roll if rng.random() < 0.04 else rng.normal(0, 5)
    girth = rng.normal(1.03, 0.07, 2) + 0.003 * (fat_mm - 20)
    return {
        "fat_mm": fat_mm, "roll_deg": float(roll),
        "girth": tuple(float(g) for g in np.clip(girth, 0.86, 1.35)),
        "arms": bool(rng.random() < 0.3), "table": bool(rng.random() < 0.9),
        "cables": int(rng.choice([0, 0, 1, 3, 6])),
        "vessel_hu": float(rng.uniform(90, 450) if rng.random() < 0.5 else rng.uniform(25, 60)),
        "bladder_hu": float(rng.uniform(80, 2000) if rng.random() < 0.25 else rng.uniform(-5, 25)),
        "calcifications": int(rng.choice([0, 6, 25, 80])),
    }  # fmt: skip


def _rarities(rng: np.random.Generator) -> dict:
    sides = [(), (1,), (-1,), (1, -1)][rng.choice(4, p=[0.9, 0.025, 0.025, 0.05])]
    return {
        "lesions": int(rng.integers(1, 9)) if rng.random() < 0.2 else 0,
        "joint_sclerosis_hu": float(rng.uniform(100, 600)) if rng.random() < 0.3 else 0.0,
        "disc_gap_mm": float(rng.uniform(0.3, 4.0)), "sacralised": sides,
        "clothes": bool(rng.random() < 0.3),
        "catheter": str(rng.choice(["", "bladder", "rectum"], p=[0.84, 0.08, 0.08])),
        "ascites": bool(rng.random() < 0.08),
        "phleboliths": int(rng.integers(1, 8)) if rng.random() < 0.35 else 0,
        "shading_hu": float(rng.normal(0, 15)),
    }  # fmt: skip


def _picture(rng: np.random.Generator) -> dict:
    low_dose = rng.random() < 0.35
    return {
        "noise_hu": float(np.exp(rng.uniform(np.log(4), np.log(60)))),
        **kernel(float(rng.uniform(-0.7, 1.0))),
        "streak_noise_hu": float(rng.uniform(3, 25)) if low_dose else 0.0,
    }


def _extent(rng: np.random.Generator, recipe: Recipe, size: str | None) -> dict:
    """Field of view and height of the scan, drawn as shares of what may be missing or be there."""
    bottom, top = rng.uniform(-240, -135), rng.uniform(105, 170)
    kind = rng.choice(
        ["pelvis", "abdomen", "long", "low", "high", "hips"], p=[0.4, 0.22, 0.06, 0.12, 0.12, 0.08]
    )
    if size in ("pelvis", "abdomen"):
        kind = size
    if kind == "abdomen":
        top = rng.uniform(200, 380)
    elif kind == "long":
        bottom, top = rng.uniform(-400, -250), rng.uniform(250, 450)
    elif kind == "low":  # starts within the wings or the sacrum
        bottom, top = rng.uniform(-330, -135), rng.uniform(25, 100)
    elif kind == "high":  # ends within the ischium or the heads
        bottom, top = rng.uniform(-120, -45), rng.uniform(110, 300)
    elif kind == "hips":
        bottom, top = rng.uniform(-170, -120), rng.uniform(5, 60)
    bottom, top = bottom * recipe.scale, top * recipe.scale
    step = float(np.exp(rng.uniform(np.log(0.6), np.log(6.0))))
    step = round(max(step, (top - bottom) / MOST_SLICES), 2)
    overlap = float(rng.choice([0.8, 1.0, 1.0, 1.0, 1.25, 1.6]))
    field, aside = rng.uniform(330, 460), 10.0
    width = rng.random()
    if width < 0.15:
        field, aside = rng.uniform(240, 330), 25.0
    elif width > 0.8:
        field, aside = rng.uniform(460, 600), 25.0
    centre = rng.normal(0, 1, 2) * aside
    return {
        "bottom_mm": round(float(bottom), 1), "top_mm": round(float(top), 1),
        "slice_step_mm": step, "slice_thickness_mm": round(min(max(step * overlap, 0.6), 8.0), 3),
        "pixel_mm": round(float(field) / recipe.matrix, 6),
        "centre_mm": (round(float(centre[0]), 1), round(float(centre[1]), 1)),
    }  # fmt: skip
