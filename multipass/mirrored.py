"""Test-time augmentation: a network that also looks at the mirrored scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from multipass.checkpoint import Model
from multipass.structures import Structure, mirror_partners


class Mirrored(torch.nn.Module):
    """The mean of a network's probabilities on the scan and on its mirror image, left and right
    structures swapped on the way there (in the context) and back.

    Attributes:
        network: takes image (N, 1, X, Y, Z) and context (N, 1 + K, X, Y, Z), returns logits.
    """

    def __init__(self, network: torch.nn.Module, structures: Sequence[Structure]) -> None:
        super().__init__()
        self.network = network
        self.classes = 1 + len(structures)
        self.partners = [0, *(1 + partner for partner in mirror_partners(structures))]

    def forward(self, image: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        straight = torch.softmax(self.network(image, context).float(), 1)
        logits = self.network(image.flip(2), self._mirror(context))
        mirrored = self._mirror(torch.softmax(logits.float(), 1))
        return torch.log((straight + mirrored) / 2)

    def _mirror(self, maps: torch.Tensor) -> torch.Tensor:
        return maps[:, self.partners].flip(2)


def with_mirroring(model: Model) -> Model:
    """The model with test-time mirroring; passes take twice as long."""
    mirrored: Any = Mirrored(model.network, model.structures).eval()
    return replace(model, network=mirrored)
