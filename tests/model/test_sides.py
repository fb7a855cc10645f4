"""One side a bone: nothing is half left and half right; a mirrored scan gets the mirrored mask."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from multipass.geometry.volume import Grid
from multipass.geometry.windows import part_windows, window_over
from multipass.model.maps import ClassMaps, PassResult, native_labels
from multipass.model.passes import segment
from multipass.model.sides import on_own_sides
from multipass.structures import PELVIS

BOX = np.array([[-180.0, -100.0, -150.0], [180.0, 100.0, 150.0]])
SWAP = [0, 2, 1, 3, 5, 4]
GRID = Grid((90, 50, 75), (4.0, 4.0, 4.0), (-178.0, -98.0, -148.0))
# Boxes in mm: low and high corner; the chances of left and right.
LEFT_HIP = ((5, -30, 0), (110, 30, 120))
RIGHT_HIP = ((-110, -30, 0), (-5, 30, 120))
LEFT_THIGH = ((90, -20, -140), (120, 20, -20))
RIGHT_THIGH = ((-120, -20, -140), (-90, 20, -20))
SYMPHYSIS = ((-6, -20, 0), (6, 0, 20))


def result_of(pieces, windows=None) -> PassResult:
    """Pieces (class of left, box, chance of left, chance of right), later ones over earlier."""
    windows = windows or [window_over(BOX)]
    found = []
    for window in windows:
        maps = np.zeros((6, *window.size), np.float32)
        centres = [
            o + np.arange(n) * s
            for o, n, s in zip(window.origin_mm, window.size, window.spacing_mm, strict=True)
        ]
        for left, (low, high), *chances in pieces:
            inside = [(c > a) & (c < b) for c, a, b in zip(centres, low, high, strict=True)]
            place = (slice(left, left + 2), *np.ix_(*inside))
            maps[place] = np.reshape(chances, (2, 1, 1, 1))
        maps[0] = 1 - maps.sum(0)
        found.append(ClassMaps(maps.astype(np.float16)))
    return PassResult(windows, found, [])


def mirrored(result: PassResult) -> PassResult:
    """The result of the mirrored scan, in windows that lie evenly about x = 0."""
    flipped = [ClassMaps(maps[c][::-1] for c in SWAP) for maps in result.probabilities]
    unsure = tuple(sorted(SWAP[1 + k] - 1 for k in result.unsure_sides))
    return PassResult(result.windows, flipped, result.flags, unsure)


def sides(result: PassResult) -> tuple[np.ndarray, tuple[int, ...]]:
    own = on_own_sides(result, PELVIS)
    return native_labels(own, GRID), own.unsure_sides


def upper(box, z: float):
    (x, y, _), high = box
    return (x, y, z), high


# Name: pieces, values in the mask, structures whose side is unsure.
CASES = {
    "whole pelvis": (
        [(1, LEFT_HIP, 0.9, 0.05), (1, RIGHT_HIP, 0.05, 0.9), (1, SYMPHYSIS, 0.5, 0.4)],
        {1, 2},
        (),
    ),
    "two thighs": ([(4, LEFT_THIGH, 0.9, 0.05), (4, RIGHT_THIGH, 0.05, 0.9)], {4, 5}, ()),
    "a thigh with a stretch of the other": (
        [(4, LEFT_THIGH, 0.9, 0), (4, RIGHT_THIGH, 0, 0.9), (4, upper(RIGHT_THIGH, -40), 0.9, 0)],
        {4, 5},
        (),
    ),
    "one thigh, half and half": (
        [(4, LEFT_THIGH, 0.9, 0), (4, upper(LEFT_THIGH, -75), 0.1, 0.8)],
        {4},
        (3,),
    ),
    "one thigh, evenly unsure": ([(4, LEFT_THIGH, 0.45, 0.5)], {5}, (4,)),
    "votes split between sides": ([(4, LEFT_THIGH, 0.35, 0.25)], {4}, (3,)),
    "one hip bone, half and half": (
        [(1, RIGHT_HIP, 0.1, 0.8), (1, upper(RIGHT_HIP, 70), 0.8, 0.1)],
        {2},
        (1,),
    ),
    "a hip bone and the end of the other": (
        [(1, LEFT_HIP, 0.9, 0), (1, ((-30, -20, 0), (6, 0, 20)), 0, 0.9)],
        {1, 2},
        (),
    ),
}


IN_PARTS = ("whole pelvis", "a thigh with a stretch of the other")


@pytest.mark.parametrize(
    ("name", "in_parts"), [(n, False) for n in CASES] + [(n, True) for n in IN_PARTS]
)
def test_a_bone_has_one_side(name, in_parts):
    pieces, values, unsure = CASES[name]
    found, said = sides(result_of(pieces, part_windows(BOX) if in_parts else None))
    assert set(np.unique(found)) - {0} == values and said == unsure
    for _, (low, high), *_ in pieces[:2] if len(values) == 2 else pieces[:1]:
        x, y, z = (np.add(GRID.origin_mm[a], 4.0 * np.arange(GRID.size[a])) for a in range(3))
        inside = [(c > a + 6) & (c < b - 6) for c, a, b in zip((x, y, z), low, high, strict=True)]
        assert len(np.unique(found[np.ix_(*inside)])) == 1


@pytest.mark.parametrize("name", CASES)
def test_the_mirrored_scan_gets_the_mirrored_mask(name):
    result = result_of(CASES[name][0])
    found, unsure = sides(result)
    other, other_unsure = sides(mirrored(result))
    assert np.array_equal(np.array(SWAP, np.uint8)[found], other[::-1])
    assert other_unsure == tuple(sorted(SWAP[1 + k] - 1 for k in unsure))


def test_what_is_of_one_side_is_left_alone():
    result = result_of(CASES["whole pelvis"][0][:2])
    own = on_own_sides(result, PELVIS)
    assert own.probabilities is result.probabilities


def test_structures_without_a_partner_are_left_alone():
    result = result_of(CASES["one thigh, half and half"][0])
    assert on_own_sides(result, PELVIS[:4]).probabilities is result.probabilities


def test_a_part_keeps_the_doubt_of_the_pass_before():
    volume, _ = oracle.scene(oracle.scene_grid((6.0, 6.0, 6.0)))
    model = oracle.model(("scan", "pelvis", "parts"))
    forward = model.network.forward

    def unsure(image, context, pass_index=0):
        logits = forward(image, context, pass_index)
        if pass_index == 1:
            logits[:, 5] = logits[:, 4] = logits[:, 4:].amax(1)
        return logits

    model.network.forward = unsure
    _, second, third = segment(model, volume)
    assert set(second.unsure_sides) == set(third.unsure_sides) == {3}
