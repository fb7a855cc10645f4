"""The 48 ways in which the axes of an array can lie in a patient."""

from __future__ import annotations

import itertools

import numpy as np

from multipass.geometry.volume import Grid, Volume

ORDERS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def oriented(volume: Volume, order, signs) -> Volume:
    """The same voxels with their axes permuted and flipped, and the direction that says so."""
    steps = volume.grid.affine[:3, :3]
    start = volume.grid.affine @ [
        *[(n - 1) if signs[order.index(d)] < 0 else 0 for d, n in enumerate(volume.grid.size)],
        1,
    ]
    flips = tuple(slice(None, None, sign) for sign in signs)
    array = volume.array.transpose(order)[flips]
    direction = np.stack([steps[:, d] / np.linalg.norm(steps[:, d]) for d in order], axis=1) * signs
    spacing = tuple(volume.grid.spacing_mm[d] for d in order)
    return Volume(array, Grid(array.shape, spacing, tuple(start[:3]), tuple(direction.ravel())))
