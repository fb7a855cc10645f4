"""What a pass is told of the one before it in training.

What was found, disturbed now and then, since a network that always gets a good context trusts it
blindly; or a reference with the errors of a pass; or, before the second pass, nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.transforms import Randomizable


@dataclass(frozen=True)
class ContextOdds:
    """How often a sample's context is blank, and how often one that was found is disturbed.

    Attributes:
        blank: of contexts of the second pass; a part of the pelvis can't be told without one.
        corrupted: a reference with errors stands in for what the pass before found.
    """

    blank: float = 0.1
    corrupted: float = 0.25
    blur: float = 0.1
    shift: float = 0.1
    remove: float = 0.1


class RandContext(Randomizable):
    """Contexts of one sample; the same draws whatever the passes find.

    Args:
        odds: how often.
        partners: for each structure the one on the other side, see `mirror_partners`.
    """

    MAX_SHIFT_VOXELS = 5
    GROWTH_VOXELS = 3

    def __init__(self, odds: ContextOdds, partners: list[int]) -> None:
        self.odds = odds
        self.swapped = [0, *(1 + partner for partner in partners)]

    def __call__(self, index: int, found: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Takes what pass `index` found and the fractions in its window, both (1 + K, X, Y, Z), and
        returns what the next pass is told."""
        draw = self.R.rand(2)
        if index == 0 and draw[0] < self.odds.blank:
            return torch.zeros_like(found)
        if draw[1] < self.odds.corrupted:
            return self._corrupted(reference.to(found))
        return self._disturbed(found)

    def _disturbed(self, maps: torch.Tensor) -> torch.Tensor:
        draw, odds = self.R.rand(3), self.odds
        width, removed = self.R.choice([3, 5, 7]), self.R.randint(1, len(maps))
        if draw[0] < odds.blur:
            maps = _blurred(maps, int(width))
        if draw[1] < odds.shift:
            maps = self._shifted(maps)
        if draw[2] < odds.remove:
            maps = _without(maps, removed)
        return maps

    def _corrupted(self, reference: torch.Tensor) -> torch.Tensor:
        """A reference with the errors of a pass: grown or shrunken, shifted, without a structure or
        with a false piece of one, sides swapped in a part; blurred as probabilities are."""
        draw = self.R.rand(5)
        maps = _grown(reference, int(self.R.randint(-self.GROWTH_VOXELS, self.GROWTH_VOXELS + 1)))
        if draw[0] < 0.7:
            maps = self._shifted(maps)
        if draw[1] < 0.2:
            maps = _without(maps, self.R.randint(1, len(maps)))
        if draw[2] < 0.25:
            maps = self._with_false_piece(maps)
        if draw[3] < 0.25:
            maps = self._with_swapped_part(maps)
        if draw[4] < 0.8:
            maps = _blurred(maps, 3)
        return maps

    def _shifted(self, maps: torch.Tensor) -> torch.Tensor:
        """By a few voxels; what comes in from outside is background."""
        limit = self.MAX_SHIFT_VOXELS
        shift = self.R.randint(-limit, limit + 1, 3).tolist()
        maps = torch.roll(maps, shift, (1, 2, 3)).clone()
        for axis, step in enumerate(shift, start=1):
            start = 0 if step >= 0 else maps.shape[axis] + step
            edge = maps.narrow(axis, start, abs(step))
            edge[:] = 0
            edge[0] = 1
        return maps

    def _box(self, maps: torch.Tensor) -> tuple[slice, ...]:
        spans = []
        for n in maps.shape[1:]:
            length = int(self.R.uniform(0.1, 0.6) * n)
            start = self.R.randint(0, n - length + 1)
            spans.append(slice(start, start + length))
        return (slice(None), *spans)

    def _with_false_piece(self, maps: torch.Tensor) -> torch.Tensor:
        """A box of what lies there is said to be another structure."""
        maps = maps.clone()
        part = maps[self._box(maps)]
        claimed = self.R.randint(1, len(maps))
        amount = float(self.R.uniform(0.3, 1.0))
        part *= 1 - amount
        part[claimed] += amount
        return maps

    def _with_swapped_part(self, maps: torch.Tensor) -> torch.Tensor:
        maps = maps.clone()
        box = self._box(maps)
        maps[box] = maps[box][self.swapped]
        return maps


def _blurred(maps: torch.Tensor, width: int) -> torch.Tensor:
    return F.avg_pool3d(maps, width, 1, width // 2, count_include_pad=False)


def _grown(maps: torch.Tensor, voxels: int) -> torch.Tensor:
    """Structures dilated, or eroded where `voxels` is negative; background is the rest."""
    if not voxels:
        return maps
    width = 2 * abs(voxels) + 1
    sign = 1 if voxels > 0 else -1
    bones = sign * F.max_pool3d(sign * maps[1:], width, 1, width // 2)
    bones = bones / bones.sum(0, keepdim=True).clamp(min=1)
    return torch.cat([1 - bones.sum(0, keepdim=True), bones])


def _without(maps: torch.Tensor, removed: int) -> torch.Tensor:
    maps = maps.clone()
    maps[0] += maps[removed]
    maps[removed] = 0
    return maps
