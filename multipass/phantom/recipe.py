"""What is drawn at random for one patient: anatomy, pose, scan and file format."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

POSITIONS = ("HFS", "HFP", "FFS", "FFP")
IMPLANTS = ("", "prosthesis", "two prostheses", "sacroiliac screws", "femoral neck screws")

BODY_SHARE = 1 / 6  # of whole bodies in a mixed cohort
VIEW_SHARE = 1 / 2  # of views in a cohort of any size
# Of the others, as fine scans of the pelvis: at least a third of a cohort of any size is fine
CTPEL_SHARE = 0.6


@dataclass(frozen=True)
class Recipe:
    """One patient and one scan; use `dataclasses.replace` to fix what a test needs.

    Lengths along the body are heights above the midpoint between the hip bones' centres.
    """

    seed: int
    index: int
    # the scan
    matrix: int
    pixel_mm: float
    slice_step_mm: float
    slice_thickness_mm: float
    bottom_mm: float
    top_mm: float
    centre_mm: tuple[float, float]  # of the field of view
    table_offset_mm: tuple[float, float, float]  # of the scanner's origin
    position: str
    noise_hu: float
    blur_mm: float  # sigma of the reconstruction kernel in the image plane
    sharpness: float  # of a kernel that enhances edges, 0 for none
    # the anatomy
    sex: float  # 0 male to 1 female
    scale: float
    stretch: tuple[float, float, float]
    pelvis_deg: tuple[float, float, float]  # turns about x (tilt), y (lean), z (spin)
    femur_deg: tuple[tuple[float, float, float], tuple[float, float, float]]  # flex, abduct, rotate
    neck_deg: float  # change of the neck-shaft angle
    hip_gap_mm: float
    sacroiliac_gap_mm: float
    cortex_mm: float
    cortex_hu: float
    trabecular_hu: float
    fat_mm: float
    # what else is in the picture
    implant: str
    arms: bool
    table: bool
    cables: int
    vessel_hu: float
    bladder_hu: float
    bowel: tuple[float, float, float]  # shares of gas, stool and contrast; the rest is fluid
    calcifications: int
    # the files
    slope: float
    intercept: float
    signed: bool
    padding: int | None  # stored value outside the circular field of view
    file_order: str  # instance numbers 'up', 'down' or 'shuffled'
    # how finely the scene is worked out
    lattice_mm: float = 2.0  # bones
    tissue_mm: float = 3.0
    # the real surfaces that the bones come from, '' for parametric bones
    anatomy: str = ""
    # drawn with real surfaces only (variety.py)
    roll_deg: float = 0.0  # of the whole body on the table
    girth: tuple[float, float] = (1.0, 1.0)  # of the muscle layer's outline, across and in depth
    patchy: float = 0.0  # more and coarser texture in the trabecular bone
    osteophytes: int = 0
    fracture: str = ""
    lesions: int = 0  # a bone, at most; lytic or sclerotic
    joint_sclerosis_hu: float = 0.0  # in hip bone and sacrum next to a joint
    disc_gap_mm: float = 2.5
    sacralised: tuple[
        int, ...
    ] = ()  # sides on which L5 has grown onto the sacrum, 1 left, -1 right
    clothes: bool = False
    catheter: str = ""  # 'bladder' or 'rectum'
    ascites: bool = False
    phleboliths: int = 0
    streak_noise_hu: float = 0.0  # along the rows that pass most tissue
    shading_hu: float = 0.0  # of a slow drift across the body, as beam hardening leaves
    # of a whole-body scan, which shows head, shoulders, arms and knees: 'arms up' or 'arms down'
    limbs: str = ""
    # of a scan of a part (views.py): which, and the share cut off its left, right, front and back
    view: str = ""
    crop: tuple[float, ...] = ()

    def rng(self, stream: str) -> np.random.Generator:
        """A generator of its own for each use, so that changing one leaves the others alone."""
        return np.random.default_rng([self.seed, self.index, *stream.encode()])

    @property
    def prone(self) -> bool:
        return self.position.endswith("P")


def draw_recipe(seed: int, index: int, matrix: int = 512, size: str | None = None) -> Recipe:
    """Draw patient `index` of a cohort; depends on seed and index alone.

    Args:
        matrix: pixels a side of a slice.
        size: 'pelvis' (240 to 350 mm tall), 'abdomen' (430 to 600 mm), 'body' (shoulders, neck or
            crown to thighs, shins or feet), 'ctpel' (fine and short, as CTPEL's; on 512 pixels
            whatever the matrix), 'small' (coarse slices, for tests) or None for a random
            one of the first two. 'views' are drawn by views.py on top of such a recipe.
    """
    rng = np.random.default_rng([seed, index, 7])
    tall = rng.random() < 0.25 if size is None else size == "abdomen"
    sex = float(rng.beta(0.6, 0.6))
    scale = float(np.clip(rng.normal(1.045 - 0.03 * sex, 0.045), 0.9, 1.16))
    scan = _draw_scan(rng, tall, scale, matrix)
    recipe = Recipe(
        seed=seed, index=index, sex=sex, scale=scale, matrix=matrix,
        tissue_mm=3.0 if matrix > 256 else 4.0,
        **scan, **_draw_anatomy(rng, sex), **_draw_extras(rng, tall), **_draw_files(rng),
    )  # fmt: skip
    return of_size(recipe, size)


def patient_size(seed: int, index: int, size: str | None) -> str | None:
    """The size of one patient's scan in a cohort of this size, which may be 'mixed' or 'any'."""
    if size not in ("mixed", "any"):
        return size
    rng = np.random.default_rng([seed, index, *b"size"])
    whole = "body" if rng.random() < BODY_SHARE else None
    if size == "mixed":
        return whole
    if rng.random() < VIEW_SHARE:
        return "views"
    return "ctpel" if rng.random() < CTPEL_SHARE else whole


def of_size(recipe: Recipe, size: str | None) -> Recipe:
    if size == "body":
        return whole_body(recipe)
    if size == "ctpel":
        return like_ctpel(recipe)
    return small(recipe) if size == "small" else recipe


def like_ctpel(recipe: Recipe) -> Recipe:
    """The same patient as CTPEL's scans are: 512 fine pixels a side and slices of 0.8 mm, from just
    above the crests to just below the ischia, which cuts the femurs at their lesser trochanters."""
    rng = recipe.rng("ctpel")
    bottom, top = rng.uniform(-125, -117), rng.uniform(101, 108)
    return replace(
        recipe, matrix=512, pixel_mm=round(float(rng.uniform(0.66, 0.78)), 4),
        slice_step_mm=0.8, slice_thickness_mm=round(float(rng.uniform(0.8, 1.25)), 2),
        bottom_mm=round(float(bottom) * recipe.scale, 1), lattice_mm=1.5,
        top_mm=round(float(top) * recipe.scale, 1), tissue_mm=3.0,
    )  # fmt: skip


def small(recipe: Recipe) -> Recipe:
    """The same patient in a quick, coarse scan."""
    return replace(
        recipe, slice_step_mm=6.0, slice_thickness_mm=6.0, lattice_mm=3.0, tissue_mm=6.0,
        bottom_mm=-170.0 * recipe.scale, top_mm=110.0 * recipe.scale, implant="",
    )  # fmt: skip


def whole_body(recipe: Recipe) -> Recipe:
    """The same patient, stretched out, from shoulders, neck or crown to thighs, shins or feet."""
    rng = recipe.rng("body")
    bottom = rng.uniform(-330, -140) if rng.random() < 0.6 else rng.uniform(-760, -450)
    tops = {"shoulders": (440, 600), "neck": (600, 720), "crown": (760, 850)}
    top = rng.uniform(*tops[rng.choice(list(tops), p=[0.4, 0.2, 0.4])])
    step = round(float(rng.choice([2.5, 3.0, 4.0, 5.0])), 2)
    arms = str(rng.choice(["arms up", "arms down"]))
    tilt, lean, spin = recipe.pelvis_deg
    left, right = ((0.5 * a, 0.5 * b, 0.5 * c) for a, b, c in recipe.femur_deg)
    field = rng.uniform(460, 620)
    if rng.random() < 0.2:  # down to the feet, or into them
        bottom = rng.uniform(-1020, -880)
    return replace(
        recipe, limbs=arms, arms=False, bottom_mm=round(float(bottom) * recipe.scale, 1),
        top_mm=round(float(top) * recipe.scale, 1), slice_step_mm=step, slice_thickness_mm=step,
        pixel_mm=round(float(field) / recipe.matrix, 6), lattice_mm=2.5, tissue_mm=5.0,
        pelvis_deg=(0.35 * tilt, 0.35 * lean, 0.35 * spin), femur_deg=(left, right),
    )  # fmt: skip


def kernel(softness: float) -> dict[str, float]:
    """Blur and sharpness of a reconstruction kernel, from -1 (bone) to 1 (smooth)."""
    return {
        "blur_mm": round(0.4 + 0.5 * max(softness, 0.0), 2),
        "sharpness": round(max(-softness, 0.0), 2),
    }


def _draw_scan(rng: np.random.Generator, tall: bool, scale: float, matrix: int) -> dict:
    step = float(rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0]))
    overlap = rng.random()
    thickness = step * (1.0 if overlap < 0.7 else 1.25 if overlap < 0.9 else 0.8)
    bottom = float(rng.uniform(-240, -135)) * scale
    top = float(rng.uniform(250, 360) if tall else rng.uniform(108, 150)) * scale
    field = float(rng.uniform(330, 500))
    return {
        "pixel_mm": round(field / matrix, 6), "slice_step_mm": step,
        "slice_thickness_mm": round(float(np.clip(thickness, 0.8, 6.0)), 3),
        "bottom_mm": round(bottom, 1), "top_mm": round(top, 1),
        "centre_mm": (round(float(rng.normal(0, 7)), 1), round(float(rng.normal(0, 8)), 1)),
        "table_offset_mm": tuple(
            round(float(v), 1) for v in rng.uniform(-400, 400, 3) * (0.1, 0.4, 1)
        ),
        "position": str(rng.choice(POSITIONS, p=[0.55, 0.25, 0.12, 0.08])),
        "noise_hu": round(float(np.exp(rng.uniform(np.log(6), np.log(45)))), 1),
        **kernel(float(rng.uniform(-0.5, 1.0))),
    }  # fmt: skip


def _draw_anatomy(rng: np.random.Generator, sex: float) -> dict:
    wide = 1 + 0.05 * (sex - 0.5)
    stretch = rng.normal(1, 0.03, 3) * (wide, 1.03, 1 - 0.03 * (sex - 0.5))
    sides = []
    together = rng.normal(0, 1, 3)
    for _ in range(2):
        turn = 0.8 * together + 0.5 * rng.normal(0, 1, 3)
        sides.append((float(4 + 7 * turn[0]), float(5 * turn[1]), float(8 + 12 * turn[2])))
    return {
        "stretch": tuple(float(s) for s in stretch),
        "pelvis_deg": tuple(float(a) for a in rng.normal(0, 1, 3) * (6, 2.5, 3)),
        "femur_deg": tuple(sides), "neck_deg": float(rng.normal(0, 4)),
        "hip_gap_mm": float(rng.uniform(1.2, 4.0)),
        "sacroiliac_gap_mm": float(rng.uniform(1.2, 3.5)),
        "cortex_mm": float(rng.uniform(0.9, 2.2)), "cortex_hu": float(rng.uniform(650, 1450)),
        "trabecular_hu": float(rng.uniform(90, 330)),
        "fat_mm": float(np.clip(rng.gamma(4, 6), 5, 60)),
    }  # fmt: skip


def _draw_extras(rng: np.random.Generator, tall: bool) -> dict:
    shares = rng.dirichlet([1.0, 1.0, 0.5, 1.0])
    contrast = rng.random() < 0.5
    return {
        "implant": str(rng.choice(IMPLANTS, p=[0.8, 0.09, 0.03, 0.04, 0.04])),
        "arms": bool(rng.random() < (0.35 if tall else 0.15)), "table": bool(rng.random() < 0.9),
        "cables": int(rng.choice([0, 0, 1, 3])),
        "vessel_hu": float(rng.uniform(110, 330) if contrast else rng.uniform(30, 60)),
        "bladder_hu": float(rng.uniform(120, 900) if rng.random() < 0.25 else rng.uniform(-5, 20)),
        "bowel": tuple(float(s) for s in shares[:3]),
        "calcifications": int(rng.choice([0, 6, 25, 60])),
    }  # fmt: skip


def _draw_files(rng: np.random.Generator) -> dict:
    slope, intercept, signed = [
        (1.0, -1024.0, False), (1.0, 0.0, True), (1.0, -1024.0, True), (0.5, -1000.0, False),
        (2.0, -2000.0, False),
    ][rng.choice(5, p=[0.4, 0.2, 0.2, 0.1, 0.1])]  # fmt: skip
    padded = rng.random() < 0.4
    padding = None if not padded else -2000 if signed else 0
    return {
        "slope": slope, "intercept": intercept, "signed": signed, "padding": padding,
        "file_order": str(rng.choice(["up", "down", "shuffled"], p=[0.5, 0.3, 0.2])),
    }  # fmt: skip
