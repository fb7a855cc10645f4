"""A scan and its reference at several resolutions, packed in blocks that unpack alone.

A patient file holds three levels, each on a grid whose voxels are whole multiples of the scan's:

    near      the bones' box and 40 mm around it, near the scan's own spacing
    half      the whole scan, about 1.6 x 1.6 x 2 mm
    quarter   the whole scan, about 3.2 x 3.2 x 4 mm

Windows are drawn from the coarsest level that is finer than their voxels. A voxel's fractions are
kept as its two largest structures and their shares; the rest of it is background.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from multipass.geometry.volume import Grid, Volume, floats3, ints3, resample

Box = tuple[slice, ...]

NEAR, WHOLE = "near", ("half", "quarter")
SPACINGS_MM = {"near": (0.8, 0.8, 1.0), "half": (1.6, 1.6, 2.0), "quarter": (3.2, 3.2, 4.0)}
NEAR_MARGIN_MM = 40.0
# Hounsfield units that a level keeps, and the step between two of them: far below a scan's noise.
KEPT_HU = (-250, 1100)
STEP_HU = 4
BLOCK = (64, 64, 32)
PACKING = 1  # zlib's fastest: its best is 4 % smaller and takes ten times as long
# A window's voxel holds at least 4/3 of a level's: interpolation blurs by about one of the level's.
FINER = 0.75
WHOLE_SHARE = 255
ROUNDING = 1e-6

Fractions = Callable[[Grid], np.ndarray]


# ------------------------------------------------------------------------ blocks


def packed(array: np.ndarray) -> dict[str, Any]:
    """An (X, Y, Z) array of numbers as blocks of 64 x 64 x 32 voxels, each packed by zlib."""
    data = [
        zlib.compress(np.ascontiguousarray(array[box]).data, PACKING)
        for box in _blocks(array.shape)
    ]
    return {"shape": list(array.shape), "dtype": array.dtype.str, "blocks": data}


def unpacked(stored: dict[str, Any], box: Box | None = None) -> np.ndarray:
    """A box of a packed array; whole without one. Only the blocks that it touches are read.

    Raises:
        ValueError: a block is damaged or does not hold what its place needs.
    """
    shape, dtype = ints3(stored["shape"]), np.dtype(stored["dtype"])
    read = box or tuple(slice(0, n) for n in shape)
    out = np.empty([s.stop - s.start for s in read], dtype)
    for block, data in zip(_blocks(shape), stored["blocks"], strict=True):
        low = [max(b.start, s.start) for b, s in zip(block, read, strict=True)]
        high = [min(b.stop, s.stop) for b, s in zip(block, read, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        size = [s.stop - s.start for s in block]
        values = _block(data, dtype, size)
        inner, outer = (
            tuple(slice(a - s.start, b - s.start) for a, b, s in zip(low, high, of, strict=True))
            for of in (block, read)
        )
        out[outer] = values[inner]
    return out


def _blocks(shape: Sequence[int]) -> list[Box]:
    starts = [range(0, n, b) for n, b in zip(shape, BLOCK, strict=True)]
    return [
        tuple(slice(s, min(s + b, n)) for s, b, n in zip(start, BLOCK, shape, strict=True))
        for start in product(*starts)
    ]


def _block(data: bytes, dtype: np.dtype, size: Sequence[int]) -> np.ndarray:
    wanted = int(np.prod(size)) * dtype.itemsize
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(data, wanted + 1)
    except zlib.error as error:
        raise ValueError(f"a block of it is damaged ({error})") from None
    if len(raw) != wanted:
        raise ValueError(f"a block of it holds {len(raw)} bytes, not {wanted}")
    return np.frombuffer(raw, dtype).reshape(size)


# ------------------------------------------------------------------------ levels


@dataclass(frozen=True)
class Level:
    """One level of a patient.

    Attributes:
        grid: upright.
        image: packed uint16, (HU + 250) / 4 of HU clipped to -250..1100.
        parts: up to two pairs of packed uint8: the structure that holds most of a voxel (row in the
            patient's structures + 1; 0 for none) and its share of 255, then the second. A share
            that is None is 255 wherever there is a structure.
    """

    name: str
    grid: Grid
    image: dict[str, Any]
    parts: tuple[tuple[dict[str, Any], dict[str, Any] | None], ...]

    def steps(self, box: Box | None = None) -> np.ndarray:
        """int16 steps of 4 HU above -250."""
        return unpacked(self.image, box).view(np.int16)

    def hounsfield(self, box: Box | None = None) -> np.ndarray:
        """float32 HU."""
        return unpacked(self.image, box).astype(np.float32) * STEP_HU + KEPT_HU[0]

    def shares(self, box: Box | None = None) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """The pairs of `parts`, unpacked."""
        return [
            (unpacked(label, box), None if share is None else unpacked(share, box))
            for label, share in self.parts
        ]

    def to_dict(self) -> dict[str, Any]:
        """As plain types, for the patient file."""
        return {
            "name": self.name,
            "size": list(self.grid.size),
            "origin_mm": list(self.grid.origin_mm),
            "spacing_mm": list(self.grid.spacing_mm),
            "image": self.image,
            "parts": [list(pair) for pair in self.parts],
        }

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Level:
        """Inverse of `to_dict`; raises KeyError, TypeError or ValueError for anything else."""
        grid = Grid(ints3(row["size"]), floats3(row["spacing_mm"]), floats3(row["origin_mm"]))
        parts = tuple((label, share) for label, share in row["parts"])
        return cls(row["name"], grid, row["image"], parts)


def make_levels(volume: Volume, fractions: Fractions, near_mm: np.ndarray) -> list[Level]:
    """The levels of an upright scan, finest first.

    Args:
        volume: HU.
        fractions: of each structure on an upright grid, uint8 (K, X, Y, Z) of 255.
        near_mm: (2, 3) the box of the bones; of the scan where there are none.
    """
    levels = []
    for name, spacing_mm in SPACINGS_MM.items():
        grid = _level_grid(volume.grid, spacing_mm)
        if name == NEAR:
            grid = _cropped(grid, near_mm + np.array([[-1.0], [1.0]]) * NEAR_MARGIN_MM)
        hounsfield = np.clip(resample(volume, grid, outside=float(KEPT_HU[0])), *KEPT_HU)
        image = np.rint((hounsfield - KEPT_HU[0]) / STEP_HU).astype(np.uint16)
        levels.append(Level(name, grid, packed(image), _parts(fractions(grid))))
    return levels


def _level_grid(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """The grid of whole multiples of a scan's voxels nearest to a spacing, none finer than the
    scan's; it covers the scan but for a rest that is less than a voxel of it."""
    factors = np.maximum(1, np.rint(np.divide(spacing_mm, grid.spacing_mm))).astype(int)
    size = np.maximum(1, np.asarray(grid.size) // factors)
    spacing = factors * grid.spacing_mm
    origin = grid.box_mm()[0] + spacing / 2
    return Grid(ints3(size), floats3(spacing), floats3(origin))


def _cropped(grid: Grid, box_mm: np.ndarray) -> Grid:
    start, stop = index_box(grid, box_mm)
    return grid.cropped(ints3(start), ints3(stop - start))


def index_box(grid: Grid, box_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First voxel and one past the last of a grid's part in a box, at least one voxel wide."""
    index = (box_mm - grid.box_mm()[0]) / grid.spacing_mm
    start = np.clip(np.floor(index[0]).astype(int), 0, np.subtract(grid.size, 1))
    stop = np.clip(np.ceil(index[1]).astype(int), start + 1, grid.size)
    return start, stop


def _parts(fractions: np.ndarray) -> tuple:
    first, share = _largest(fractions)
    if not share.any():
        return ((packed(first), None),)
    rest = fractions.copy()
    taken = np.arange(1, len(rest) + 1, dtype=np.uint8)[:, None, None, None] == first
    rest[taken] = 0
    second, second_share = _largest(rest)
    pure = bool((share[first > 0] == WHOLE_SHARE).all())
    parts = [(packed(first), None if pure else packed(share))]
    if second.any():
        parts.append((packed(second), packed(second_share)))
    return tuple(parts)


def _largest(fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The structure with the largest share of each voxel, 0 where none has any, and its share."""
    first = np.zeros(fractions.shape[1:], np.uint8)
    share = np.zeros(fractions.shape[1:], np.uint8)
    for k, of_structure in enumerate(fractions, start=1):
        larger = of_structure > share
        first[larger] = k
        share[larger] = of_structure[larger]
    return first, share


def level_for(levels: Sequence[Level], box_mm: np.ndarray, spacing_mm: Sequence[float]) -> Level:
    """The level that a window reads: the coarsest whose voxels are, along each axis, finer than
    three quarters of the window's or as fine as any; of those that hold all of the scan that the
    window sees.

    Args:
        box_mm: (2, 3) of the scan that the window sees.
        spacing_mm: of the window's voxels.
    """
    whole = levels[-1].grid.box_mm()
    seen = np.clip(box_mm, whole[0], whole[1])
    slack = np.asarray(levels[-1].grid.spacing_mm)
    holding = [level for level in levels if _holds(level.grid.box_mm(), seen, slack)]
    finest = np.min([level.grid.spacing_mm for level in levels], axis=0)
    wanted = np.maximum(FINER * np.asarray(spacing_mm), finest * (1 + ROUNDING))
    finer = [level for level in holding if (level.grid.spacing_mm <= wanted).all()]
    return max(finer, key=_coarseness) if finer else min(holding, key=_coarseness)


def _holds(box_mm: np.ndarray, seen_mm: np.ndarray, slack_mm: np.ndarray) -> bool:
    return bool(
        (box_mm[0] <= seen_mm[0] + slack_mm).all() and (box_mm[1] >= seen_mm[1] - slack_mm).all()
    )


def _coarseness(level: Level) -> float:
    return float(np.prod(level.grid.spacing_mm))
