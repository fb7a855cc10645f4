"""Masks of slices as closed polygons, and polygons as masks.

A pixel belongs to a polygon if its centre lies inside. Outlines run half-way between pixels in and
out, so that no centre lies on one, and the way there and back changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from contourpy import FillType, contour_generator


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask, by marching squares; pixels that touch at a corner only are apart.

    Args:
        mask: bool (columns, rows).

    Returns:
        Polygons (N, 2) in (column, row) coordinates of pixel centres, the last point joined to the
        first. Holes are joined to their outlines by keyholes, channels of no width (PS3.3
        C.8.8.6.3).
    """
    field = np.pad(mask, 1).T.astype(float)
    generator = contour_generator(z=field, name="serial", fill_type=FillType.OuterOffset)
    outlines = []
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        parts = np.split(points - 1, offsets[1:-1].astype(int))
        outer, *holes = (_corners(part[:-1]) for part in parts)
        outlines.append(_keyholed(outer, holes))
    return outlines


def _corners(ring: np.ndarray) -> np.ndarray:
    """The points at which a ring turns."""
    come, go = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[come[:, 0] * go[:, 1] != come[:, 1] * go[:, 0]]


def _keyholed(outer: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """One polygon of a ring and those inside it. The channel of each hole runs from its last column
    to the first outline behind it: that of a hole farther along is part of the polygon by then."""
    for hole in sorted(holes, key=lambda ring: -ring[:, 0].max()):
        hole = np.roll(hole, -int(hole[:, 0].argmax()), axis=0)
        column, row = hole[0]
        ahead = np.roll(outer, -1, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            part = (row - outer[:, 1]) / (ahead[:, 1] - outer[:, 1])
            at = outer[:, 0] + part * (ahead[:, 0] - outer[:, 0])
        is_crossed = ((outer[:, 1] <= row) != (ahead[:, 1] <= row)) & (at > column)
        k = int(np.where(is_crossed, at, np.inf).argmin())
        gate = np.array([[at[k], row]])
        outer = np.concatenate([outer[: k + 1], gate, hole, hole[:1], gate, outer[k + 1 :]])
    return outer[(outer != np.roll(outer, 1, axis=0)).any(axis=1)]


def filled(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """bool (columns, rows): the pixels whose centre lies in an odd number of polygons.

    Args:
        polygons: (N, 2), as `outlines_of` gives them, from anywhere.
    """
    inside = np.zeros(size, bool)
    if not polygons:
        return inside
    edges = np.concatenate([np.stack([p, np.roll(p, -1, axis=0)], axis=1) for p in polygons])
    low = np.clip(np.floor(edges.min(axis=(0, 1))), 0, size).astype(int)
    high = np.clip(np.ceil(edges.max(axis=(0, 1))) + 1, low, size).astype(int)
    columns, rows = (high - low).tolist()
    (start_x, start_y), (stop_x, stop_y) = (edges - low).transpose(1, 2, 0)
    # Of an edge's rows the upper end counts as outside, so that no corner counts twice.
    ends = np.sort([start_y, stop_y], axis=0)
    first, last = np.clip(np.ceil(ends), 0, rows).astype(int)
    edge = np.repeat(np.arange(len(edges)), last - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    part = (row - start_y[edge]) / (stop_y[edge] - start_y[edge])
    at = start_x[edge] + part * (stop_x[edge] - start_x[edge])
    column = np.clip(np.ceil(at), 0, columns).astype(int)
    crossings = np.bincount(column * rows + row, minlength=(columns + 1) * rows) & 1
    is_odd = crossings.reshape(columns + 1, rows)[:columns].astype(bool)
    inside[low[0] : high[0], low[1] : high[1]] = np.logical_xor.accumulate(is_odd, axis=0)
    return inside
