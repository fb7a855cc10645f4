"""The body around the bones: skin, fat, muscle, organs, vessels, and what lies on the table.

Everything is painted in Hounsfield units on a coarse upright lattice, in the order of this file:
later shapes cover earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from multipass.phantom.anatomy import BOWEL_BOX, MUSCLES, THIGH_MUSCLES, VESSELS
from multipass.phantom.recipe import Recipe
from multipass.phantom.scene import Block, Pose, lattice_points
from multipass.phantom.shapes import Cloud, ball, ellipsoid, smooth_min, tube

AIR_HU = -1000.0
STEP_MM = 3.0


class Canvas:
    """Hounsfield units on a lattice, painted shape by shape with soft edges."""

    def __init__(self, recipe: Recipe, pose: Pose):
        self.recipe, self.pose = recipe, pose
        half = recipe.matrix * recipe.pixel_mm / 2 + 2 * STEP_MM
        x, y = recipe.centre_mm
        low = np.array([x - half, y - half, recipe.bottom_mm - 2 * STEP_MM])
        high = np.array([x + half, y + half, recipe.top_mm + 2 * STEP_MM])
        start, end = np.floor(low / STEP_MM).astype(int), np.ceil(high / STEP_MM).astype(int)
        size = tuple(end - start + 1)
        self.block = Block(start, np.full(size, AIR_HU, np.float32), STEP_MM)
        self.points = lattice_points(start, size, STEP_MM)
        self.pelvis_points = pose.to_pelvis(self.points)
        self.femur_points = {side: pose.to_femur(self.points, side) for side in (1, -1)}
        self.rng = recipe.rng("tissue")
        self.flat = self.block.array.reshape(-1)

    def noise(self, sigma_mm: float) -> np.ndarray:
        """Smooth noise of unit variance on the lattice, flat."""
        shrink = max(int(sigma_mm / STEP_MM / 1.5), 1)
        size = [n // shrink + 2 for n in self.block.array.shape]
        field = gaussian_filter(self.rng.standard_normal(size, dtype=np.float32), 1.5)
        field /= field.std()
        for axis in range(3):
            field = field.repeat(shrink, axis)
        if shrink > 1:
            field = gaussian_filter(field, shrink / 2)
        return field[tuple(slice(n) for n in self.block.array.shape)].reshape(-1)

    def fill(self, distance: np.ndarray, hu: float | np.ndarray, soft_mm: float = STEP_MM) -> None:
        """Paint where the distance is negative, with an edge of `soft_mm`."""
        cover = np.clip(0.5 - distance / np.float32(soft_mm), 0, 1)
        where = np.flatnonzero(cover)
        value = hu[where] if isinstance(hu, np.ndarray) else np.float32(hu)
        self.flat[where] += cover[where] * (value - self.flat[where])

    def paint(self, shape: Callable, points: np.ndarray, hu: float | np.ndarray) -> None:
        self.fill(shape(points), hu)


def paint_body(recipe: Recipe, pose: Pose) -> Block:
    """All soft tissue and the table, as HU on a lattice that covers the scan."""
    canvas = Canvas(recipe, pose)
    outline = _outline(canvas)
    _paint_wall(canvas, outline)
    _paint_muscles(canvas, outline)
    _paint_organs(canvas)
    _paint_outside(canvas, outline)
    return canvas.block


def _outline(canvas: Canvas) -> np.ndarray:
    """Distance to the outer face of the muscle layer: trunk and thighs."""
    p, scale = canvas.points, np.float32(canvas.recipe.scale)
    z = p[:, 2] / scale
    heights = (-260, -120, -60, 0, 60, 110, 170, 260, 380)
    half_x = np.interp(z, heights, (120, 158, 166, 160, 150, 140, 136, 142, 150))
    half_y = np.interp(z, heights, (60, 82, 96, 98, 96, 94, 95, 100, 105))
    centre_y = np.interp(z, heights, (5, 0, 2, 4, 0, -14, -22, -24, -20))
    x = np.abs(p[:, 0] / scale) / half_x
    y = np.abs(p[:, 1] / scale - centre_y) / half_y
    trunk = ((x**2.5 + y**2.5) ** 0.4 - 1) * np.minimum(half_x, half_y) * scale
    trunk = np.maximum(trunk, (-95 - z) * scale)
    legs = []
    for side in (1, -1):
        thigh = tube(
            [(30, 0, -40, 62), (32, 2, -90, 78), (30, 5, -160, 76), (28, 5, -400, 60)], 12.0
        )
        q = canvas.femur_points[side]
        axis = np.interp(q[:, 2], (-420, -60), (26, 28))
        radius = np.interp(q[:, 2], (-420, -150, -80, -20), (58, 76, 80, 70))
        leg = np.hypot(q[:, 0] - axis, q[:, 1] - 2) - radius
        legs.append(np.maximum(leg, q[:, 2] - 10) * scale)
        del thigh
    result = trunk
    for leg in legs:
        result = smooth_min(result, leg, 25 * float(scale))
    return (result + 2.0 * canvas.noise(40)).astype(np.float32)


def _paint_wall(canvas: Canvas, outline: np.ndarray) -> None:
    recipe, p = canvas.recipe, canvas.pelvis_points
    fat_mm = recipe.fat_mm * (0.75 + 0.25 * np.clip(p[:, 1] / 60, -1, 1)) + 3
    fat_mm = fat_mm * (1 + 0.15 * canvas.noise(60))
    fat_hu = canvas.rng.uniform(-115, -80) + 8 * canvas.noise(6)
    canvas.fill(outline - fat_mm - 2.0, canvas.rng.uniform(-20, 60))
    canvas.fill(outline - fat_mm, fat_hu)
    strands = np.abs(canvas.noise(9)) < 0.04
    canvas.fill(np.where(strands, outline - fat_mm + 2, 9), canvas.rng.uniform(-80, -30))
    packing = np.where(canvas.noise(10) > 0.9, -90, 35) + 10 * canvas.noise(5)
    canvas.fill(outline, packing.astype(np.float32))


def _muscle_hu(canvas: Canvas) -> np.ndarray:
    marbling = np.clip(canvas.noise(5) - canvas.rng.uniform(0.6, 2.2), 0, 1)
    return (canvas.rng.uniform(40, 75) + 6 * canvas.noise(4) - 110 * marbling).astype(np.float32)


def _paint_muscles(canvas: Canvas, outline: np.ndarray) -> None:
    muscle, p = _muscle_hu(canvas), canvas.pelvis_points
    fat = (canvas.rng.uniform(-110, -85) + 8 * canvas.noise(5)).astype(np.float32)
    bulk = canvas.rng.uniform(0.75, 1.1)
    cavity = _cavity(p)
    canvas.fill(np.maximum(cavity, outline + 9), fat)
    for shape in MUSCLES:
        for side in (1, -1):
            mirrored = p * np.float32((side, 1, 1))
            distance = shape(mirrored) + (1 - bulk) * 8
            canvas.fill(np.maximum(distance - 2.5, outline + 1), fat)
            canvas.fill(np.maximum(distance, outline + 2), muscle)
    for side in (1, -1):
        q = canvas.femur_points[side]
        for shape in THIGH_MUSCLES:
            distance = shape(q) + (1 - bulk) * 8
            canvas.fill(np.maximum(distance - 2, outline + 1), fat)
            canvas.fill(np.maximum(distance, outline + 1), muscle)


def _cavity(p: np.ndarray) -> np.ndarray:
    """Abdomen and true pelvis, inside their walls."""
    z = p[:, 2]
    heights = (-75, -40, 0, 40, 90, 200, 400)
    half_x = np.interp(z, heights, (15, 45, 55, 85, 112, 118, 120))
    half_y = np.interp(z, heights, (15, 50, 62, 62, 62, 68, 75))
    centre_y = np.interp(z, heights, (0, 5, 0, -18, -32, -40, -38))
    rho = np.hypot(p[:, 0] / half_x, (p[:, 1] - centre_y) / half_y)
    return ((rho - 1) * np.minimum(half_x, half_y)).astype(np.float32)


def _paint_organs(canvas: Canvas) -> None:
    recipe, rng, p = canvas.recipe, canvas.rng, canvas.pelvis_points
    top = recipe.top_mm / canvas.pose.size[2]
    if top > 170:
        _paint_upper_organs(canvas)
    down = np.float32(1 if recipe.prone else -1)  # gas rises against gravity
    low, high = np.array(BOWEL_BOX)
    for _ in range(int(14 + max(top - 100, 0) / 9)):
        _paint_loop(canvas, low, np.array([high[0], high[1], min(high[2], top)]), down)
    rectum = tube(
        [(0, 30, -62, 12), (0, 46, -35, 17), (0, 54, -8, 19), (5, 40, 18, 16), (25, 15, 32, 14)]
    )
    _paint_hollow(canvas, rectum(p), down, 0.0)
    size = rng.uniform(0.55, 1.15)
    bladder = ellipsoid(
        p, (rng.normal(0, 5), -24, -38 + 14 * size), (38 * size, 28 * size, 26 * size)
    )
    urine = np.full(len(p), rng.uniform(0, 15), np.float32)
    if recipe.bladder_hu > 60:
        level = down * (p[:, 1] + 24) + rng.uniform(-15, 15)
        urine = np.where(level < 0, recipe.bladder_hu, urine).astype(np.float32)
    canvas.fill(bladder - 3, 40.0)
    canvas.fill(bladder, urine)
    womb = ellipsoid(
        p, (rng.normal(0, 6), 8, -22), (22, 17, 24) if recipe.sex > 0.5 else (18, 12, 14)
    )
    canvas.fill(womb, rng.uniform(35, 90))
    for shape in VESSELS:
        for side in (1, -1):
            canvas.fill(
                shape(p * np.float32((side, 1, 1))), recipe.vessel_hu + rng.uniform(-10, 10)
            )


def _paint_loop(canvas: Canvas, low: np.ndarray, high: np.ndarray, down: np.float32) -> None:
    rng = canvas.rng
    point, heading = rng.uniform(low, high), rng.normal(0, 1, 3)
    radius, balls = rng.uniform(9, 22), []
    for _ in range(int(rng.integers(8, 26))):
        heading += rng.normal(0, 0.5, 3) + 0.02 * ((low + high) / 2 - point)
        heading /= np.linalg.norm(heading)
        point = np.clip(point + 7 * heading, low, high)
        balls.append((*point, radius * rng.uniform(0.8, 1.15)))
    _paint_hollow(
        canvas,
        np.maximum(Cloud(np.array(balls))(canvas.pelvis_points), _cavity(canvas.pelvis_points)),
        down,
        balls[0][1],
    )


def _paint_hollow(canvas: Canvas, distance: np.ndarray, down: np.float32, level_mm: float) -> None:
    """Bowel: wall, then gas, stool, contrast or fluid; gas lies over fluid."""
    rng, (gas, stool, contrast) = canvas.rng, canvas.recipe.bowel
    kind = rng.random()
    canvas.fill(distance, rng.uniform(20, 60))
    inside = distance + rng.uniform(1.5, 3.5)
    if kind < gas:
        canvas.fill(inside, -980.0)
    elif kind < gas + stool:
        canvas.fill(inside, np.clip(20 + 250 * np.minimum(canvas.noise(3) + 0.8, 0.4), -850, 140))
    else:
        fluid = rng.uniform(120, 700) if kind < gas + stool + contrast else rng.uniform(0, 35)
        canvas.fill(inside, fluid)
        surface = down * (canvas.pelvis_points[:, 1] - level_mm - rng.uniform(-60, 60))
        canvas.fill(np.maximum(inside, surface + 40), -980.0)


def _paint_upper_organs(canvas: Canvas) -> None:
    p, rng = canvas.pelvis_points, canvas.rng
    liver = ellipsoid(p, (-70, -45, 280), (85, 75, 85))
    cavity = _cavity(p)
    canvas.fill(np.maximum(liver, cavity), rng.uniform(50, 120) + 4 * canvas.noise(6))
    canvas.fill(np.maximum(ellipsoid(p, (95, -5, 290), (35, 45, 55)), cavity), rng.uniform(50, 130))
    enhanced = rng.uniform(30, 210)
    for side in (1, -1):
        kidney = ellipsoid(p, (side * 62, 8, 205), (26, 24, 52))
        canvas.fill(kidney - 9, -100.0)
        canvas.fill(kidney, enhanced)
        canvas.fill(
            ellipsoid(p, (side * 50, 4, 205), (12, 10, 22)), rng.choice([-60.0, 10.0, 500.0])
        )
        lung = ellipsoid(p, (side * 78, -25, 400), (58, 78, 110))
        canvas.fill(np.maximum(lung, 318 - p[:, 2]), -830 + 40 * canvas.noise(4))


def _paint_outside(canvas: Canvas, outline: np.ndarray) -> None:
    recipe, rng, p = canvas.recipe, canvas.rng, canvas.points
    sign = np.float32(-1 if recipe.prone else 1)
    depth = sign * p[:, 1]
    inside = outline - recipe.fat_mm - 4
    touching = depth[inside < 0]
    bed = float(touching.max()) + rng.uniform(2, 12) if touching.size else 130.0
    air = inside > 2
    if recipe.table:
        sag = (p[:, 0] / 210) ** 2 * rng.uniform(5, 45)
        top = np.where(air, depth - bed + sag, -99)
        board = np.maximum(np.abs(top - 9) - 9, np.abs(p[:, 0]) - 205)
        mat = np.maximum(np.abs(top + 5) - 5, np.abs(p[:, 0]) - 190)
        canvas.fill(np.where(air, mat, 9), rng.uniform(-960, -700))
        canvas.fill(np.where(air, board, 9), rng.uniform(-930, -650))
        canvas.fill(np.where(air, np.abs(board) - 1, 9), rng.uniform(-450, 100))
    if recipe.arms:
        _paint_arms(canvas, air)
    for _ in range(recipe.cables):
        x, y = rng.uniform(-190, 190), float(sign) * (bed - rng.uniform(0, 12))
        cable = tube(
            [(x + rng.normal(0, 25), y + rng.normal(0, 4), z, 2.5) for z in range(-300, 500, 60)]
        )
        canvas.fill(np.where(air, cable(p), 9), rng.uniform(300, 2500))


def _paint_arms(canvas: Canvas, air: np.ndarray) -> None:
    rng, p = canvas.rng, canvas.points
    out = 175 + canvas.recipe.fat_mm
    for side in (1, -1):
        x, y = side * (out + rng.uniform(10, 50)), rng.uniform(-50, 40)
        low, lean = rng.uniform(-140, 60), rng.uniform(-0.1, 0.15)
        points = [
            (x + side * lean * t, y, low + t, 30 + 14 * min(t / 250, 1)) for t in range(0, 420, 60)
        ]
        arm = np.where(air, tube(points, 8.0)(p), 9)
        canvas.fill(arm, -95.0)
        canvas.fill(arm + 6, 50.0)
        for shift in (-9, 9):
            bone = tube([(a + shift, b + shift / 2, c, 7.0) for a, b, c, _ in points], 4.0)(p)
            canvas.fill(np.maximum(bone, arm + 8), rng.uniform(700, 1300))
            canvas.fill(np.maximum(bone + 3, arm + 8), rng.uniform(0, 250))
    fingertips = ball(p, (out + 25, 0, -150), 12)
    canvas.fill(np.where(air, fingertips, 9), 40.0)
