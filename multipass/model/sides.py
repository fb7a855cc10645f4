"""One side a bone: what a pass called left in one place and right in another is made one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from multipass.geometry.volume import Grid, floats3, ints3
from multipass.geometry.windows import stacked_grid
from multipass.model.maps import ClassMaps, PassResult
from multipass.model.resampling import blended_maps
from multipass.structures import FEMUR, HIP, Structure, mirror_partners

# Voxels along an axis that tell bones apart: of at most 3 mm in a pelvis of 430 mm.
MOST_VOXELS = 144
# Of P(other side) to P(side), in sum over a bone: from here on nobody should trust the side.
UNSURE_SHARE = 1 / 3
LEAST_ML = 1.0  # of what counts: smaller ones are specks
# Two hip bones in one piece meet at the symphysis: their centres lie apart across the body, those
# of two small ends of pubic bones least, and the joint's face is small. Parts of one hip bone are
# never as far apart as whole ones.
LEAST_APART_MM, WHOLE_APART_MM = 25.0, 80.0
LARGEST_JOINT_MM2 = 1000.0
# Around a bone, so that its blurred edge changes with it.
EDGE_VOXELS = 3

KEPT, LEFT, RIGHT = 0, 1, 2


def on_own_sides(result: PassResult, structures: Sequence[Structure]) -> PassResult:
    """The result with each hip bone and femur on one side.

    A bone is a piece of what is likelier to be left or right together than anything else. All of it
    goes to the side with the larger sum of probability; femurs touch nowhere, so that a piece is
    one bone, and a piece of hip bone is one unless it is two that meet at the symphysis. Sides
    whose sums are within 1 : 3 of each other are added to `unsure_sides`.
    """
    unsure = set(result.unsure_sides)
    for left, right in enumerate(mirror_partners(structures)):
        kind = structures[left].key[:2]
        if structures[left].side != "left" or left == right or kind not in (FEMUR, HIP):
            continue
        pair = (1 + left, 1 + right)
        grid = _coarse(stacked_grid(result.windows))
        seen = blended_maps(result.windows, result.probabilities, grid, torch.device("cpu"))
        chances = np.stack([seen(c).numpy() for c in pair])
        decided, unsure_sides = _decided(chances, grid, may_touch=kind == HIP)
        unsure |= {(left, right)[side - LEFT] for side in unsure_sides}
        if decided.any():
            result = _with_sides(result, pair, decided, grid)
    return replace(result, unsure_sides=tuple(sorted(unsure)))


def _coarse(grid: Grid) -> Grid:
    low, high = grid.box_mm()
    size = np.minimum(grid.size, MOST_VOXELS)
    spacing = (high - low) / size
    return Grid(ints3(size), floats3(spacing), floats3(low + spacing / 2))


def _decided(chances: np.ndarray, grid: Grid, may_touch: bool) -> tuple[np.ndarray, set[int]]:
    """The side of each voxel near a bone that is a mixture, KEPT elsewhere; and the unsure sides.

    Args:
        chances: (2, X, Y, Z) probabilities of left and of right.
    """
    bones, _ = ndimage.label(chances.sum(0) > 0.5)
    decided = np.zeros(bones.shape, np.uint8)
    unsure = set()
    for number, (x, y, z) in enumerate(ndimage.find_objects(bones), start=1):
        bone = bones[x, y, z] == number
        called, sides, is_unsure = _sides_of(bone, chances[:, x, y, z], grid, may_touch)
        if is_unsure or (sides != called).any():
            decided[x, y, z][bone] = sides[bone]
        if is_unsure and np.count_nonzero(bone) * grid.voxel_ml >= LEAST_ML:
            unsure.add(int(sides.max()))
    return _with_edges(decided, bones) if decided.any() else decided, unsure


def _sides_of(
    bone: np.ndarray, chances: np.ndarray, grid: Grid, may_touch: bool
) -> tuple[np.ndarray, np.ndarray, bool]:
    """What a bone's voxels are called, what they should be called, and whether that is unsure."""
    sums = chances[:, bone].sum(1)
    called = np.where(bone, np.where(chances[0] >= chances[1], LEFT, RIGHT), KEPT)
    left, right = _largest(called == LEFT), _largest(called == RIGHT)
    if may_touch and _are_two(left, right, grid):
        # What is no part of its side's bone is enclosed by the other one.
        sides = np.choose(called, [KEPT, RIGHT, LEFT])
        sides[left], sides[right] = LEFT, RIGHT
        return called, sides, False
    sides = np.where(bone, LEFT + int(sums.argmax()), KEPT)
    return called, sides, bool(sums.min() >= UNSURE_SHARE * sums.max())


def _largest(mask: np.ndarray) -> np.ndarray:
    # Not `parts_of`: starting SimpleITK's filters costs more than a small mask, and noise has
    # thousands of them.
    pieces, count = ndimage.label(mask)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if count else mask


def _are_two(left: np.ndarray, right: np.ndarray, grid: Grid) -> bool:
    """Whether a left and a right part that touch are two hip bones; LPS x grows to the left."""
    if min(np.count_nonzero(left), np.count_nonzero(right)) * grid.voxel_ml < LEAST_ML:
        return False
    centres = [np.flatnonzero(part.any((1, 2))) for part in (left, right)]
    weights = [np.count_nonzero(part, axis=(1, 2)) for part in (left, right)]
    middle = [np.average(c, weights=w[c]) for c, w in zip(centres, weights, strict=True)]
    apart_mm = (middle[0] - middle[1]) * grid.spacing_mm[0]
    if apart_mm >= WHOLE_APART_MM:
        return True
    return apart_mm >= LEAST_APART_MM and _joint_mm2(left, right, grid) <= LARGEST_JOINT_MM2


def _joint_mm2(one: np.ndarray, other: np.ndarray, grid: Grid) -> float:
    """The area of the voxel faces between two masks."""
    area = 0.0
    for axis, step in enumerate(grid.spacing_mm):
        a, b = np.moveaxis(one, axis, 0), np.moveaxis(other, axis, 0)
        faces = np.count_nonzero(a[1:] & b[:-1]) + np.count_nonzero(b[1:] & a[:-1])
        area += faces * float(np.prod(grid.spacing_mm)) / step
    return area


def _with_edges(decided: np.ndarray, bones: np.ndarray) -> np.ndarray:
    """Voxels near bones, too, each as the nearest bone's voxel."""
    apart, nearest = ndimage.distance_transform_edt(bones == 0, return_indices=True)
    return np.where(apart <= EDGE_VOXELS, decided[tuple(nearest)], KEPT)


def _with_sides(
    result: PassResult, pair: tuple[int, int], decided: np.ndarray, grid: Grid
) -> PassResult:
    """The result with the probabilities of both sides given to the one that was decided."""
    changed = []
    for window, maps in zip(result.windows, result.probabilities, strict=True):
        places = []
        for axis, n in enumerate(window.size):
            at = window.origin_mm[axis] + np.arange(n) * window.spacing_mm[axis]
            index = np.rint((at - grid.origin_mm[axis]) / grid.spacing_mm[axis]).astype(int)
            places.append(np.clip(index, 0, grid.size[axis] - 1))
        sides = decided[np.ix_(*places)]
        both = maps[pair[0]] + maps[pair[1]]
        new = {
            c: np.where(sides == KEPT, maps[c], np.where(sides == side, both, 0)).astype(maps.dtype)
            for c, side in zip(pair, (LEFT, RIGHT), strict=True)
        }
        changed.append(ClassMaps(new[c] if c in new else maps[c] for c in range(len(maps))))
    return replace(result, probabilities=changed)
