"""Chest and head: lungs with vessels and airways, heart, great vessels, brain and air cavities."""

from __future__ import annotations

import numpy as np

from multipass.phantom.anatomy import limbs
from multipass.phantom.anatomy.shapes import Cloud, ellipsoid, tube
from multipass.phantom.scanner.canvas import Canvas

GAS_HU = -980.0
EDGE_MM = 7.0
BASE_MM, DOME_MM = 300.0, 38.0  # of the lungs: their lowest edge, the diaphragm's height above it
HEART = ((22, -58, 372), (56, 48, 52))
CHAMBERS = (((36, -66, 366), (28, 24, 26)), ((2, -72, 374), (25, 21, 28)))
AORTA = tube(
    [(4, -52, 392, 14), (0, -56, 440, 15), (8, -38, 468, 13), (16, -8, 466, 12), (15, 6, 436, 12),
     (12, 4, 370, 11), (6, -14, 300, 11)],
    4.0,
)  # fmt: skip
GREAT_VESSELS = (
    tube([(-24, -50, 510, 8), (-24, -48, 440, 9), (-22, -50, 385, 10)], 4.0),
    tube([(18, -60, 400, 13), (12, -44, 424, 12), (-32, -26, 418, 8)], 4.0),
    tube([(14, -46, 424, 11), (38, -20, 424, 8)], 4.0),
)
BRONCHI = tuple(tube([(0, -24, 442, 8), (s * 34, -12, 408, 6)], 3.0) for s in (1, -1))
GULLET = tube([(3, -2, 540, 6), (5, 2, 430, 7), (6, -8, 310, 7)], 4.0)


def paint_lungs(canvas: Canvas) -> None:
    p, rng = canvas.pelvis[1], canvas.rng
    air = (rng.uniform(-920, -740) + rng.uniform(15, 60) * canvas.noise(4)).astype(np.float32)
    wet = rng.random() < 0.2
    for side in (1, -1):
        away = (p[:, 0] - side * 68) ** 2 + (p[:, 1] + 30) ** 2
        base = BASE_MM + DOME_MM * np.exp(-away / np.float32(60**2))
        lung = np.maximum(ellipsoid(p, (side * 78, -25, 400), (58, 78, 110)), base - p[:, 2])
        canvas.fill(lung, air)
        _paint_branches(canvas, side, lung)
        if rng.random() < 0.15:
            place = rng.normal((side * 75, -25, 390), (18, 25, 35)).tolist()
            mass = ellipsoid(p, place, rng.uniform(6, 32, 3).tolist()) + 3 * canvas.noise(8)
            canvas.fill(np.maximum(mass, lung), rng.uniform(20, 90))
        if wet:
            canvas.fill(np.maximum(lung, rng.uniform(-10, 40) - p[:, 1]), rng.uniform(0, 30))


def _paint_branches(canvas: Canvas, side: int, lung: np.ndarray) -> None:
    """Vessels and airways that leave the root of a lung and grow thin."""
    rng = canvas.rng
    for number in range(20):
        place, heading = np.array((side * 28.0, -18, 405)), rng.normal(0, 1, 3)
        heading[0] = side * abs(heading[0])
        heading[2] *= 1.6
        radius, balls = rng.uniform(3, 6), []
        for _ in range(int(rng.integers(10, 22))):
            heading += rng.normal(0, 0.25, 3)
            heading /= np.linalg.norm(heading)
            place = place + 5 * heading
            radius = max(radius * 0.9, 1.3)
            balls.append((*place, radius))
        near, distance = Cloud(np.array(balls)).near(canvas.pelvis[1], EDGE_MM)
        distance = np.maximum(distance, lung[near])
        if number % 3:
            canvas.fill(distance, canvas.recipe.vessel_hu, near)
        else:
            canvas.fill(distance - 1, 0.0, near)
            canvas.fill(distance, GAS_HU, near)


def paint_chest(canvas: Canvas) -> None:
    """What lies between the lungs."""
    p, rng, blood = canvas.pelvis[1], canvas.rng, canvas.recipe.vessel_hu
    fat = (rng.uniform(-110, -60) + 10 * canvas.noise(5)).astype(np.float32)
    canvas.fill(ellipsoid(p, (4, -48, 430), (rng.uniform(24, 38), 50, 85)), fat)
    heart = ellipsoid(p, *HEART)
    canvas.fill(heart - rng.uniform(0, 8), fat)
    canvas.fill(heart, rng.uniform(35, 110))
    for centre, radii in CHAMBERS:
        canvas.fill(ellipsoid(p, centre, radii), blood + rng.uniform(-20, 60))
    for shape in (*GREAT_VESSELS, AORTA):
        near, distance = shape.near(p, EDGE_MM)
        canvas.fill(distance, blood + rng.uniform(-20, 60), near)
    near, distance = GULLET.near(p, EDGE_MM)
    canvas.fill(distance, 40.0, near)
    canvas.fill(distance + 4.5, GAS_HU if rng.random() < 0.5 else 30.0, near)
    for shape in BRONCHI:
        near, distance = shape.near(p, EDGE_MM)
        canvas.fill(distance, GAS_HU, near)


def paint_head(canvas: Canvas) -> None:
    p, rng = canvas.pelvis[1], canvas.rng
    brain = limbs.cranium(p)
    canvas.fill(brain, (36 + 4 * canvas.noise(5)).astype(np.float32))
    for side in (1, -1):
        canvas.fill(ellipsoid(p, (side * 12, 0, 745), (7, 32, 9)), 8.0)
    folded = limbs.folded(p)
    eye, *sinuses = limbs.HOLLOWS
    canvas.fill(ellipsoid(folded, *eye), -80.0)
    canvas.fill(ellipsoid(folded, (32, -92, 690), (13, 13, 13)), 15.0)
    swollen = rng.random() < 0.2
    for centre, radii in sinuses:
        inside = ellipsoid(folded, centre, [r - 1.5 for r in radii])
        canvas.fill(inside, 25.0 if swollen and rng.random() < 0.5 else GAS_HU)
    near, distance = limbs.AIRWAY.near(p, EDGE_MM)
    canvas.fill(distance, GAS_HU, near)
