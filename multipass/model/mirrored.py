"""Test-time augmentation: a network that also looks at the mirrored scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from multipass.model.checkpoint import Model
from multipass.model.network import Maps, Network
from multipass.structures import Structure, has_both_sides, mirror_partners


class Mirrored(Network):
    """The mean of a network's probabilities on the scan and on its mirror image, left and right
    structures swapped on the way there (in the context) and back."""

    def __init__(self, network: Network, structures: Sequence[Structure]) -> None:
        super().__init__()
        self.network = network
        self.classes = 1 + len(structures)
        self.partners = [0, *(1 + partner for partner in mirror_partners(structures))]

    def look(self, image: torch.Tensor, context: Maps | None, pass_index: int = 0) -> Maps:
        straight = self.network.look(image, context, pass_index)
        mirrored = self.network.look(image.flip(2), context and self._mirror(context), pass_index)
        back = self._mirror(mirrored)
        return lambda c: (straight(c) + back(c)) / 2

    def _mirror(self, maps: Maps) -> Maps:
        return lambda c: maps(self.partners[c]).flip(0)


def with_mirroring(model: Model) -> Model:
    """The model with test-time mirroring; passes take twice as long.

    Raises:
        ValueError: a structure of one side would be looked for on both.
    """
    if not has_both_sides(model.structures):
        raise ValueError("tta: this network knows a structure on one side only")
    mirrored: Any = Mirrored(model.network, model.structures).eval()
    return replace(model, network=mirrored)
