"""Surfaces of masks and the distances between them, in mm.

Surface elements and distances are those of Nikolov et al. (2021, https://github.com/google-deepmind/
surface-distance): an element at the centre of each 2x2x2 neighbourhood that is neither all in nor
all out, weighted by its area in mm2 (MONAI's copy of the table), so that thick slices neither add
nor remove weight. Distances are found by a k-d tree over the elements in place of distance maps:
the same figures, bounded by the surface, not the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from monai.metrics.utils import create_table_neighbour_code_to_surface_area
from scipy.spatial import cKDTree

# TotalSegmentator reports 3 mm; navigation asks for 1 mm.
NSD_TOLERANCES_MM = (1, 2, 3)
# Far look-ups take ten times as long as near ones, and a mask of noise has ten million elements. So
# that it takes seconds too, a sample stands for the elements beyond these numbers, which bones do
# not reach: a hip bone at 0.5 mm has 0.6 million, nearly all of them near its reference.
MAX_ELEMENTS, FAR_MM, MAX_FAR_ELEMENTS = 1_000_000, 25.0, 50_000


@dataclass(frozen=True)
class Surface:
    """Surface elements of a mask: indices (N, 3) of their neighbourhoods, and areas."""

    indices: np.ndarray
    areas_mm2: np.ndarray


def surface(mask: np.ndarray, spacing_mm: Sequence[float]) -> Surface:
    """Surface elements of a boolean (X, Y, Z) array; beyond the array counts as outside."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros(tuple(n - 1 for n in padded.shape), np.uint8)
    for bit, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
        a, b, c = codes.shape
        codes |= padded[i : i + a, j : j + b, k : k + c] << np.uint8(7 - bit)
    codes[codes == 255] = 0
    found = np.nonzero(codes)
    areas_mm2 = _area_table(tuple(map(float, spacing_mm)))[codes[found]]
    return Surface(np.stack(found, axis=1), areas_mm2)


def surface_distances(a: Surface, b: Surface, spacing_mm: Sequence[float]) -> dict[str, float]:
    """HD95, ASSD (both in mm) and NSD between two surfaces, every element weighted by its area.

    HD95 is the larger of the two directions' 95th percentiles; ASSD and NSD are taken over both
    surfaces together. An element at a tolerance counts as within it.
    """
    directions = [_nearest(a, b, spacing_mm), _nearest(b, a, spacing_mm)]
    distances_mm, areas_mm2 = (np.concatenate(part) for part in zip(*directions, strict=True))
    total = areas_mm2.sum()
    figures = {
        "hd95_mm": max(_percentile(*direction) for direction in directions),
        "assd_mm": float(distances_mm @ areas_mm2 / total),
    }
    for tolerance_mm in NSD_TOLERANCES_MM:
        near = areas_mm2[distances_mm <= tolerance_mm].sum()
        figures[f"nsd_{tolerance_mm}mm"] = float(near / total)
    return figures


def _nearest(a: Surface, b: Surface, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from a's elements to b's nearest, and the areas that they stand for."""
    a = _thinned(a, MAX_ELEMENTS)
    edges_mm = np.asarray(spacing_mm)
    tree = cKDTree(b.indices * edges_mm, balanced_tree=False)
    near, owners = tree.query(a.indices * edges_mm, distance_upper_bound=FAR_MM, workers=-1)
    found = np.isfinite(near)
    far = _thinned(Surface(a.indices[~found], a.areas_mm2[~found]), MAX_FAR_ELEMENTS)
    indices = np.concatenate([a.indices[found], far.indices])
    areas_mm2 = np.concatenate([a.areas_mm2[found], far.areas_mm2])
    owners = owners[found]
    if len(far.indices):
        owners = np.append(owners, tree.query(far.indices * edges_mm, workers=-1)[1])
    # From whole steps, as distance maps measure: a tolerance of 2 mm holds two voxels of 1 mm.
    steps = indices - b.indices[owners]
    return np.sqrt(((steps * edges_mm) ** 2).sum(axis=1)), areas_mm2


def _thinned(whole: Surface, limit: int) -> Surface:
    """At most `limit` elements: every n-th, with n times its area."""
    step = -(-len(whole.indices) // limit)
    return Surface(whole.indices[::step], whole.areas_mm2[::step] * step) if step > 1 else whole


def _percentile(distances_mm: np.ndarray, areas_mm2: np.ndarray, percent: float = 95) -> float:
    """The smallest distance that `percent` of the area does not exceed."""
    order = np.argsort(distances_mm)
    reached = np.cumsum(areas_mm2[order]) / areas_mm2.sum()
    index = min(int(np.searchsorted(reached, percent / 100)), len(order) - 1)
    return float(distances_mm[order[index]])


@lru_cache(maxsize=16)
def _area_table(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Area in mm2 of the surface element of each of the 256 neighbourhood codes."""
    areas, _ = create_table_neighbour_code_to_surface_area(spacing_mm)
    return areas.numpy().astype(np.float64)
