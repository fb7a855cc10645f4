"""The network that every pass runs: a MONAI U-Net behind a space-to-depth stem."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DynUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn

FILTERS = (32, 64, 128, 256)
STEM = 2  # the backbone works on 64x64x36: a window has more voxels than a bone has shape
BLOCK = STEM**3
# 36 = 4 x 9: the third halving leaves z alone.
STRIDES = (1, 2, 2, (2, 2, 1))


class MultiPassUNet(nn.Module):
    """Image and context of one window in, class logits of the same window out.

    Args:
        classes: background and K structures, 1 + K.
        filters: channels of the backbone's levels.
    """

    def __init__(self, classes: int, filters: Sequence[int] = FILTERS) -> None:
        super().__init__()
        self.classes, self.filters = classes, tuple(filters)
        self.backbone = DynUNet(
            spatial_dims=3,
            in_channels=(1 + classes) * BLOCK,
            out_channels=classes * BLOCK,
            kernel_size=[3] * len(STRIDES),
            strides=STRIDES,
            upsample_kernel_size=STRIDES[1:],
            filters=self.filters,
        )

    @property
    def config(self) -> dict:
        """What `MultiPassUNet(**config)` needs, as plain types."""
        return {"classes": self.classes, "filters": list(self.filters)}

    def forward(self, image: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """One pass.

        Args:
            image: (N, 1, X, Y, Z) in [0, 1].
            context: (N, classes, X, Y, Z) probabilities of the pass before, zeros if there is none;
                in 16 bits where the convolutions compute in them.

        Returns:
            (N, classes, X, Y, Z) logits.
        """
        seen = pixelunshuffle(torch.cat([image.to(context.dtype), context], dim=1), 3, STEM)
        return pixelshuffle(self.backbone(seen), 3, STEM)


@torch.no_grad()
def transfer(network: MultiPassUNet, trained: MultiPassUNet, kept: Sequence[int]) -> None:
    """Starts `network` from one trained on other structures (fine-tuning).

    Args:
        network: changed in place; the channels of classes it does not share start from zero.
        trained: of the same filters.
        kept: for each class of `network` the class of `trained`, or -1 where it is new.

    Raises:
        ValueError: the filters differ.
    """
    if network.filters != trained.filters:
        raise ValueError(
            f"The checkpoint's network has {trained.filters} filters, not {network.filters}."
        )
    for own, old in zip(network.parameters(), trained.parameters(), strict=True):
        if own.shape == old.shape:
            own.copy_(old)
    classes = [(new, old) for new, old in enumerate(kept) if old >= 0]
    inputs = [(0, 0)] + [(1 + new, 1 + old) for new, old in classes]
    new_first, old_first = (n.backbone.input_block.conv1.conv.weight for n in (network, trained))
    _copy_blocks(new_first.transpose(0, 1), old_first.transpose(0, 1), inputs)
    new_last, old_last = (n.backbone.output_block.conv.conv for n in (network, trained))
    _copy_blocks(new_last.weight, old_last.weight, classes)
    _copy_blocks(new_last.bias, old_last.bias, classes)


def _copy_blocks(new: torch.Tensor, old: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """Copies the BLOCK rows of each (new, old) channel; the rows of all others become zero."""
    new.zero_()
    for to, source in pairs:
        new[to * BLOCK : (to + 1) * BLOCK] = old[source * BLOCK : (source + 1) * BLOCK]
