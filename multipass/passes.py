"""Passes through windows: one function, called once a pass, in training and in inference.

A `View` is what a pass sees: the image in a window and where the window lies. Each pass gets the
class probabilities of the pass before, resampled from its window into the new one, as context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from multipass.network import MultiPassUNet

Disturb = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class View:
    """A window of each scan of a batch.

    Attributes:
        image: (N, 1, X, Y, Z) in [0, 1].
        box: (N, 2, 3) float64 on the CPU, lower and upper edges in mm.
    """

    image: torch.Tensor
    box: torch.Tensor


def linear_rows(source: torch.Tensor, target: torch.Tensor, n_source: int, n_target: int):
    """Linear interpolation along one axis, as matrices.

    Args:
        source, target: (N, 2) edges in mm of the n_source and n_target voxels.

    Returns:
        (N, n_target, n_source) weights; rows of voxels outside the source are zero.
    """
    centres = (torch.arange(n_target, dtype=torch.float64) + 0.5) / n_target
    centres = target[:, :1] + centres * (target[:, 1:] - target[:, :1])
    at = (centres - source[:, :1]) / (source[:, 1:] - source[:, :1]) * n_source - 0.5
    inside = (at >= -0.5) & (at <= n_source - 0.5)
    distance = at.clamp(0, n_source - 1)[:, :, None] - torch.arange(n_source, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0) * inside[:, :, None]


def between(maps: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Resamples (N, C, X, Y, Z) maps from windows over one box into windows over another."""
    if torch.equal(source, target):
        return maps
    x, y, z = (
        linear_rows(source[:, :, a], target[:, :, a], n, n).to(maps)
        for a, n in enumerate(maps.shape[2:])
    )
    n, c, *size = maps.shape
    maps = torch.matmul(x[:, None], maps.reshape(n, c, size[0], -1)).view(n, c, *size)
    maps = torch.matmul(y[:, None, None], maps)
    return torch.matmul(maps, z.transpose(1, 2)[:, None, None])


def run(
    network: MultiPassUNet,
    views: Sequence[View],
    passes: int,
    amp: AbstractContextManager,
    disturb: Disturb | None = None,
) -> Iterator[torch.Tensor]:
    """Runs passes over windows that are known beforehand, and yields each pass's logits.

    Pass k looks at views[k], or at the last view if there are fewer. The context carries no
    gradient, so that each pass's loss can go backward before the next pass starts.

    Args:
        amp: the precision, `torch.autocast(...)`.
        disturb: applied to each context (training).
    """
    first = views[0]
    context = torch.zeros(
        (len(first.image), network.classes, *first.image.shape[2:]), device=first.image.device
    )
    for index in range(passes):
        view = views[min(index, len(views) - 1)]
        with amp:
            logits = network(view.image, context)
        yield logits
        if index + 1 < passes:
            following = views[min(index + 1, len(views) - 1)]
            context = torch.softmax(logits.detach().float(), 1)
            context = between(context, view.box, following.box)
            if disturb is not None:
                context = disturb(context)
