"""What lies around the body: table, mat, clothes, arms, cables."""

from __future__ import annotations

import numpy as np

from multipass.phantom.anatomy.shapes import ball, tube
from multipass.phantom.scanner.canvas import Canvas

TABLE_HALF_MM = 205.0
EDGE_MM = 6.0


def paint_surroundings(canvas: Canvas, fat_mm: np.ndarray) -> None:
    """Paint on the whole canvas, outside the skin; the body is painted over it afterwards."""
    recipe, rng, p = canvas.recipe, canvas.rng, canvas.points
    skin = canvas.outline - fat_mm
    sign = np.float32(-1 if recipe.prone else 1)
    depth = sign * p[:, 1]
    touching = depth[skin < 0]
    bed = float(touching.max()) + rng.uniform(2, 12) if touching.size else 130.0
    if recipe.table:
        _paint_table(canvas, skin, depth - np.float32(bed))
    if recipe.clothes:
        _paint_clothes(canvas, skin)
    if recipe.arms:
        _paint_arms(canvas, skin)
    for _ in range(recipe.cables):
        x, y = rng.uniform(-190, 190), float(sign) * (bed - rng.uniform(0, 12))
        points = [
            (x + rng.normal(0, 25), y + rng.normal(0, 4), z, 2.5) for z in range(-300, 500, 60)
        ]
        near, distance = tube(points).near(p, EDGE_MM)
        canvas.fill(np.maximum(distance, 2 - skin[near]), rng.uniform(300, 2500), near)


def _paint_table(canvas: Canvas, skin: np.ndarray, below: np.ndarray) -> None:
    """A mat on a hollow board, both bent like a trough; `below` is the depth under the patient."""
    rng = canvas.rng
    across = np.abs(canvas.points[:, 0])
    top = below + (across / 210) ** 2 * np.float32(rng.uniform(5, 45))
    free = skin > 2
    board = np.maximum(np.abs(top - 9) - 9, across - TABLE_HALF_MM)
    mat = np.maximum(np.abs(top + 5) - 5, across - TABLE_HALF_MM + 15)
    canvas.fill(np.where(free, mat, 9), rng.uniform(-960, -700))
    canvas.fill(np.where(free, board, 9), rng.uniform(-930, -650))
    canvas.fill(np.where(free, np.abs(board) - 2, 9), rng.uniform(-500, 300))


def _paint_clothes(canvas: Canvas, skin: np.ndarray) -> None:
    """A sheet with folds, and now and then buttons."""
    rng = canvas.rng
    away = skin - (2 + 4 * np.abs(canvas.noise(25)))
    canvas.fill(np.abs(away) - rng.uniform(0.3, 1.2), rng.uniform(-800, -100))
    places = np.flatnonzero(np.abs(away) < 1)
    for at in rng.choice(places, min(int(rng.choice([0, 0, 3])), len(places)), replace=False):
        canvas.fill(ball(canvas.points, canvas.points[at].tolist(), 3), rng.uniform(500, 3000))


def _paint_arms(canvas: Canvas, skin: np.ndarray) -> None:
    rng, p = canvas.rng, canvas.points
    out = 175 + canvas.recipe.fat_mm
    for side in (1, -1):
        x, y = side * (out + rng.uniform(10, 50)), rng.uniform(-50, 40)
        low, lean = rng.uniform(-140, 60), rng.uniform(-0.1, 0.15)
        points = [
            (x + side * lean * t, y, low + t, 30 + 14 * min(t / 250, 1)) for t in range(0, 420, 60)
        ]
        near, arm = tube(points, 8.0).near(p, EDGE_MM)
        arm = np.maximum(arm, 2 - skin[near])
        canvas.fill(arm, -95.0, near)
        canvas.fill(arm + 6, 50.0, near)
        for shift in (-9, 9):
            bone = tube([(a + shift, b + shift / 2, c, 7.0) for a, b, c, _ in points], 4.0)
            distance = np.maximum(bone(p[near]), arm + 8)
            canvas.fill(distance, rng.uniform(700, 1300), near)
            canvas.keep_bone(near, distance)
            canvas.fill(distance + 3, rng.uniform(0, 250), near)
        hand = ball(p[near], (x, y - 5, low - 20), 24)
        canvas.fill(np.maximum(hand, 2 - skin[near]), 40.0, near)
