"""Muon for a network's inner convolutions, AdamW for all else.

`torch.optim.Muon` takes matrices alone and computes in bfloat16, where processors without 16-bit
arithmetic take ten times as long as for the rest of a step; hence this one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

MOMENTUM = 0.95
# The size of AdamW's updates, so that one learning rate serves both (Liu et al. 2025).
UPDATE_RMS = 0.2
# Odd polynomial, steep at zero: five rounds bring singular values of 0.003 to 1 near to 1.
QUINTIC = 3.4445, -4.7750, 2.0315
ROUNDS = 5
LEAST_NORM = 1e-12


class Muon(torch.optim.Optimizer):
    """Momentum whose every direction is made equally long (K. Jordan et al., *Muon*, 2024).

    The weights of a convolution are a matrix, its output channels by all else. The first and the
    last convolution, biases and norms are AdamW's, as there.

    Args:
        parameters: of a network, in the order in which it runs.
        weight_decay: of both, times the learning rate.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], lr: float, weight_decay: float
    ) -> None:
        inner = [p for p in parameters if p.ndim > 2][1:-1]
        known = {id(p) for p in inner}
        others = [p for p in parameters if id(p) not in known]
        super().__init__(
            [{"params": inner}, {"params": others}], {"lr": lr, "weight_decay": weight_decay}
        )
        self.adamw = torch.optim.AdamW(others, lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient."""
        inner, others = self.param_groups
        self.adamw.param_groups[0]["lr"] = others["lr"]
        self.adamw.step()
        weights = [weight for weight in inner["params"] if weight.grad is not None]
        directions = orthogonal([self._ahead(weight, weight.grad) for weight in weights])
        for weight, direction in zip(weights, directions, strict=True):
            length = UPDATE_RMS * max(direction.shape) ** 0.5
            weight.mul_(1 - inner["lr"] * inner["weight_decay"])
            weight.sub_(direction.view_as(weight), alpha=inner["lr"] * length)

    def _ahead(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient after a step of momentum, as a matrix."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM).flatten(1)

    def state_dict(self) -> dict[str, Any]:
        """Momenta of both parts, for `last.pth`."""
        return {"muon": super().state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        super().load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])


def orthogonal(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Near to the U V^T of each matrix U S V^T: its singular values become 0.7 to 1.2.

    Newton-Schulz iteration on the smaller Gram matrix G = X X^T: each round multiplies X by a
    polynomial of G, and all of these commute, so that X itself is multiplied once. Gram matrices of
    one size go through the rounds together: a GPU takes as long for one as for all.
    """
    wide = [m if m.shape[0] <= m.shape[1] else m.T for m in matrices]
    wide = [x / x.norm().clamp(min=LEAST_NORM) for x in wide]
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, x in enumerate(wide):
        by_size[len(x)].append(index)
    found = list(wide)
    for indices in by_size.values():
        grams = torch.stack([wide[i] @ wide[i].T for i in indices]).double()
        for i, product in zip(indices, _rounds(grams), strict=True):
            found[i] = product.to(wide[i]) @ wide[i]
    return [x if m.shape[0] <= m.shape[1] else x.T for x, m in zip(found, matrices, strict=True)]


def _rounds(grams: torch.Tensor) -> torch.Tensor:
    """(N, n, n) the products of all rounds' polynomials of (N, n, n) Gram matrices."""
    product = torch.eye(grams.shape[-1], dtype=grams.dtype, device=grams.device)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        factor = b * grams + c * grams @ grams
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor @ product
        grams = factor @ grams @ factor
    return product
