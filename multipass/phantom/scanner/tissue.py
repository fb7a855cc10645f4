"""The body around the bones: skin, fat, muscle, organs and vessels.

Everything is painted in Hounsfield units on a coarse upright lattice; later shapes cover earlier
ones. HU, texture and amounts are drawn far beyond the usual.
"""

from __future__ import annotations

import numpy as np

from multipass.phantom.anatomy import limbs
from multipass.phantom.anatomy.lattice import Block
from multipass.phantom.anatomy.pose import Pose
from multipass.phantom.anatomy.scene import LABELS, Bone
from multipass.phantom.anatomy.shapes import Cloud, ellipsoid, tube
from multipass.phantom.anatomy.soft_tissue import ARTERIES, BOWEL_BOX, MUSCLES, THIGH_MUSCLES, VEINS
from multipass.phantom.scanner.canvas import Canvas
from multipass.phantom.scanner.surroundings import paint_surroundings
from multipass.phantom.scanner.upper_body import paint_chest, paint_head, paint_lungs

SKIN_MM = 2.0
GAS_HU = -980.0
FAT_HU, LEAST_FAT_HU = -95.0, -300.0
PERITONEUM_MM = 5.0
GROWN_MM = (-1.5, 7.0)  # muscles beyond their shapes: from wasted to filling all space
FASCIA_MM = (0.2, 1.2)  # half of what parts two muscles
FLESH_MM = 5.0  # at least, over a real bone, whose place the outline does not know
CHEST_MM = (290.0, 560.0)  # where the chest's organs lie, pelvis frame
EDGE_MM = 7.0  # beyond a shape: fascia, walls and half a lattice step of soft edge


def paint_body(pose: Pose, bones: list[Bone]) -> tuple[Block, list[Bone]]:
    """All soft tissue and the surroundings, as HU on a lattice that covers the scan, and the bones
    of the arms beside the trunk, which are part of it."""
    canvas = Canvas(pose)
    if pose.individual.fleshed or pose.recipe.limbs:
        canvas.cover([b.distance for b in bones if b.name in LABELS or pose.recipe.limbs], FLESH_MM)
    canvas.measure([b.distance for b in bones if b.kind == "bone" and _behind_bowel(b)])
    fat_mm = _fat_thickness(canvas)
    paint_surroundings(canvas, fat_mm + SKIN_MM)
    whole = canvas.outline - fat_mm
    canvas.select(whole < SKIN_MM + 6)
    _paint_wall(canvas, whole[canvas.all])
    _paint_muscles(canvas)
    _paint_organs(canvas)
    # peritoneum and fat part gas from bone
    canvas.fill(np.where(canvas.hu < LEAST_FAT_HU, canvas.bone_mm - PERITONEUM_MM, 9), FAT_HU)
    if pose.recipe.view:
        _paint_masses(canvas)
    canvas.store()
    return canvas.block, canvas.painted


def _behind_bowel(bone: Bone) -> bool:
    """Whether bowel lies in front of it, rather than lung."""
    return bone.name in LABELS or bone.name == "coccyx" or bone.name.startswith("L")


def _fat_thickness(canvas: Canvas) -> np.ndarray:
    recipe, p = canvas.recipe, canvas.points
    fat_mm = recipe.fat_mm * (0.75 + 0.25 * np.clip(p[:, 1] / 60, -1, 1)) * canvas.fat_share + 3
    return fat_mm * (1 + 0.15 * np.clip(canvas.noise(60), -2.5, 2.5))


def _paint_wall(canvas: Canvas, fat_edge: np.ndarray) -> None:
    rng = canvas.rng
    canvas.fill(fat_edge - SKIN_MM, rng.uniform(-20, 60))
    canvas.fill(fat_edge, (rng.uniform(-115, -80) + 8 * canvas.noise(6)).astype(np.float32))
    strands = np.abs(canvas.noise(12)) < 0.04
    canvas.fill(np.where(strands, fat_edge + 2, 9), rng.uniform(-80, -30))
    fatty = np.clip((canvas.noise(10) - rng.uniform(0.2, 1.2)) / 0.5, 0, 1)
    packing = 35 - 125 * fatty + 10 * canvas.noise(5)
    canvas.fill(canvas.outline, packing.astype(np.float32))


def _paint_muscles(canvas: Canvas) -> None:
    rng = canvas.rng
    marbling = np.clip(canvas.noise(5) - rng.uniform(0.6, 2.2), 0, 1)
    muscle = (rng.uniform(40, 75) + 6 * canvas.noise(4) - 110 * marbling).astype(np.float32)
    fat = (rng.uniform(-110, -85) + 8 * canvas.noise(5)).astype(np.float32)
    canvas.fill(np.maximum(canvas.cavity, canvas.outline + 9), fat)
    grown = np.float32(rng.uniform(*GROWN_MM))
    nearest, second = _muscle_distances(canvas, grown)
    fascia = rng.uniform(*FASCIA_MM) - (second - nearest) / 2
    canvas.fill(np.maximum(nearest - 2.5, canvas.outline + 1), fat)
    canvas.fill(np.maximum(np.maximum(nearest, fascia), canvas.outline + 2), muscle)


def _muscle_distances(canvas: Canvas, grown_mm: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest and the second nearest muscle, all grown until they meet."""
    nearest, second = (np.full(len(canvas.all), EDGE_MM, np.float32) for _ in range(2))
    everywhere, legs = np.arange(len(canvas.all)), np.flatnonzero(canvas.points[:, 2] < 20)
    for side in (1, -1):
        q = canvas.pose.to_femur(canvas.points[legs], side)
        thigh = THIGH_MUSCLES + (limbs.CALF if canvas.recipe.limbs else ())
        placed = [(shape, canvas.pelvis[side], everywhere) for shape in MUSCLES]
        for shape, points, index in placed + [(shape, q, legs) for shape in thigh]:
            near, distance = shape.near(points, EDGE_MM + float(grown_mm))
            where, distance = index[near], np.minimum(distance - grown_mm, EDGE_MM)
            before = nearest[where]
            second[where] = np.minimum(second[where], np.maximum(before, distance))
            nearest[where] = np.minimum(before, distance)
    return nearest, second


def _paint_organs(canvas: Canvas) -> None:
    recipe, rng, p = canvas.recipe, canvas.rng, canvas.pelvis[1]
    top = recipe.top_mm / canvas.pose.size[2]
    bottom = float(p[:, 2].min(initial=np.inf))
    if top > 170 and bottom < CHEST_MM[1]:
        _paint_upper_organs(canvas)
        paint_lungs(canvas)
    if recipe.limbs:
        top = min(top, BOWEL_BOX[1][2])
        if p[:, 2].max(initial=-np.inf) > CHEST_MM[0] and bottom < CHEST_MM[1]:
            paint_chest(canvas)
        paint_head(canvas)
    if recipe.view:
        top = BOWEL_BOX[1][2]
    if recipe.ascites:
        canvas.fill(canvas.cavity, rng.uniform(-5, 25))
    low, high = np.array(BOWEL_BOX)
    high[2] = min(high[2], top)
    for _ in range(int(14 + max(top - 100, 0) / 9)):
        _paint_loop(canvas, low, high)
    rectum = tube(
        [(0, 16, -64, 10), (0, 28, -38, 14), (0, 42, -8, 16), (5, 28, 18, 14), (25, 8, 32, 13)]
    )
    _paint_hollow(canvas, *rectum.near(p, EDGE_MM))
    womb = (22, 17, 24) if recipe.sex > 0.5 else (18, 12, 14)
    canvas.fill(ellipsoid(p, (rng.normal(0, 6), 8, -22), womb), rng.uniform(35, 90))
    _paint_bladder(canvas)
    if recipe.catheter:
        _paint_catheter(canvas)
    for shape in (*VEINS, *ARTERIES):
        for side in (1, -1):
            near, distance = shape.near(canvas.pelvis[side], EDGE_MM)
            canvas.fill(distance, recipe.vessel_hu + rng.uniform(-10, 10), near)


def _paint_masses(canvas: Canvas) -> None:
    """Tumours and bleedings in the flesh, for which parts are often scanned."""
    rng = canvas.recipe.rng("masses")
    flesh = np.flatnonzero(canvas.outline < 0)
    for _ in range(int(rng.choice([0, 0, 0, 1, 1, 2])) if flesh.size else 0):
        centre = canvas.points[flesh[rng.integers(flesh.size)]].tolist()
        radii = rng.uniform(10, 60) * rng.uniform(0.6, 1.3, 3)
        mass = ellipsoid(canvas.points, centre, radii.tolist()) + 3 * canvas.noise(12)
        mass = np.maximum(mass, canvas.outline + 1)
        canvas.fill(mass, (rng.uniform(15, 90) + 12 * canvas.noise(5)).astype(np.float32))
        canvas.fill(mass + 0.6 * radii.min(), rng.uniform(0, 60))


def _paint_bladder(canvas: Canvas) -> None:
    recipe, rng, p = canvas.recipe, canvas.rng, canvas.pelvis[1]
    size = rng.uniform(0.55, 1.15)
    bladder = ellipsoid(
        p, (rng.normal(0, 5), -24, -38 + 14 * size), (38 * size, 28 * size, 26 * size)
    )
    urine = np.full(len(p), rng.uniform(0, 15), np.float32)
    if recipe.bladder_hu > 60:
        middle = canvas.pose.to_scene(np.array([(0, -24, -24)]))[0, 1]
        level = _upwards(canvas) * (canvas.points[:, 1] - middle) + rng.uniform(-15, 15)
        urine[level < 0] = recipe.bladder_hu
    canvas.fill(bladder - 3, 40.0)
    canvas.fill(bladder, urine)


def _paint_catheter(canvas: Canvas) -> None:
    """A tube from below, into the bladder with a balloon or into the rectum."""
    rng, p = canvas.rng, canvas.pelvis[1]
    hu = rng.uniform(80, 500)
    if canvas.recipe.catheter == "bladder":
        line = tube([(20, -70, -150, 3), (5, -50, -105, 3), (0, -26, -70, 3), (0, -24, -32, 3)])
        balloon = ellipsoid(p, (0, -24, -34), (13, 13, 13))
        canvas.fill(balloon, hu)
        canvas.fill(balloon + 2, rng.choice([-900.0, 5.0]))
    else:
        line = tube([(0, 10, -150, 5), (0, 16, -64, 5), (0, 28, -38, 5)])
    near, distance = line.near(p, EDGE_MM)
    canvas.fill(distance, hu, near)


def _upwards(canvas: Canvas) -> float:
    """Sign of the scene's y in the direction of rising gas."""
    return 1.0 if canvas.recipe.prone else -1.0


def _paint_loop(canvas: Canvas, low: np.ndarray, high: np.ndarray) -> None:
    rng = canvas.rng
    point, heading = rng.uniform(low, high), rng.normal(0, 1, 3)
    radius, balls = rng.uniform(9, 22), []
    for _ in range(int(rng.integers(8, 26))):
        heading += rng.normal(0, 0.5, 3) + 0.02 * ((low + high) / 2 - point)
        heading /= np.linalg.norm(heading)
        point = np.clip(point + 7 * heading, low, high)
        balls.append((*point, radius * rng.uniform(0.8, 1.15)))
    near, distance = Cloud(np.array(balls)).near(canvas.pelvis[1], EDGE_MM)
    distance = np.maximum(distance, canvas.cavity[near] + 2)
    _paint_hollow(canvas, near, distance)


def _paint_hollow(canvas: Canvas, near: np.ndarray, distance: np.ndarray) -> None:
    """Bowel: a wall, then gas, stool, contrast or fluid; gas lies over fluid."""
    rng, (gas, stool, contrast) = canvas.rng, canvas.recipe.bowel
    kind = rng.random()
    canvas.fill(distance, rng.uniform(20, 60), near)
    inside = distance + rng.uniform(1.5, 3.5)
    if kind < gas:
        canvas.fill(inside, GAS_HU, near)
    elif kind < gas + stool:
        canvas.fill(inside, canvas.stool, near)
    else:
        fluid = rng.uniform(120, 700) if kind < gas + stool + contrast else rng.uniform(0, 35)
        canvas.fill(inside, fluid, near)
        y = canvas.points[near, 1]
        height = _upwards(canvas) * (y - y.mean() if len(y) else y)
        canvas.fill(np.maximum(inside, rng.uniform(-10, 40) - height), GAS_HU, near)


def _paint_upper_organs(canvas: Canvas) -> None:
    p, rng = canvas.pelvis[1], canvas.rng
    liver = ellipsoid(p, (-70, -45, 280), (85, 75, 85))
    spleen = ellipsoid(p, (95, -5, 290), (35, 45, 55))
    texture = (rng.uniform(50, 120) + 4 * canvas.noise(6)).astype(np.float32)
    canvas.fill(np.maximum(liver, canvas.cavity), texture)
    canvas.fill(np.maximum(spleen, canvas.cavity), rng.uniform(50, 130))
    enhanced, pelvis_hu = rng.uniform(30, 210), float(rng.choice([-60.0, 10.0, 500.0]))
    for side in (1, -1):
        kidney = ellipsoid(p, (side * 62, 8, 205), (26, 24, 52))
        canvas.fill(kidney - 9, -100.0)
        canvas.fill(kidney, enhanced)
        canvas.fill(ellipsoid(p, (side * 50, 4, 205), (12, 10, 22)), pelvis_hu)
