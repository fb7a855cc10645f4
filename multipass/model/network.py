"""The network that every pass runs: a MONAI U-Net behind a space-to-depth stem."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn

FILTERS = (32, 64, 128, 256)
STEM = 2  # the backbone works on 64x64x36: a window has more voxels than a bone has shape
BLOCK = STEM**3
# 36 = 4 x 9: the third halving leaves z alone.
STRIDES = (1, 2, 2, (2, 2, 1))
AT_A_TIME = 8  # channels of a whole scan's window, of which there may be hundreds

# The map (X, Y, Z) of a class, background 0.
Maps = Callable[[int], torch.Tensor]


class Network(nn.Module):
    """What a pass runs: `forward` in training, `look` where the classes may be many."""

    classes: int

    def look(self, image: torch.Tensor, context: Maps | None, pass_index: int = 0) -> Maps:
        """One pass over one window, its classes one at a time.

        Args:
            image: (1, 1, X, Y, Z) in [0, 1].
            context: the probabilities of the pass before; None if there is none.
            pass_index: 0 for the first pass.

        Returns:
            float32 probabilities.
        """
        maps = image.new_zeros((1, self.classes, *image.shape[2:]))
        if context is not None:
            maps[0] = torch.stack([context(c) for c in range(self.classes)])
        return torch.softmax(self(image, maps, pass_index).float(), 1)[0].__getitem__


class ScaleNorm(nn.Module):
    """Instance normalisation with a weight and a bias of its own for each pass.

    Attributes:
        weight, bias: (scales, channels).
        scale: the row in use.
    """

    def __init__(self, scales: int, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(scales, norm.num_features))
        self.bias = nn.Parameter(torch.zeros(scales, norm.num_features))
        self.eps, self.scale = norm.eps, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row = self.weight[self.scale], self.bias[self.scale]
        return F.instance_norm(x, weight=row[0], bias=row[1], eps=self.eps)


class MultiPassUNet(Network):
    """Image and context of one window in, class logits of the same window out.

    Args:
        classes: background and K structures, 1 + K.
        filters: channels of the backbone's levels.
        scales: passes whose normalisation has weights of its own, later ones sharing the last; all
            other weights are the same in all passes.
        extra: classes known in training alone, after the others. They are parts of the background
            to all but the loss.
    """

    def __init__(
        self, classes: int, filters: Sequence[int] = FILTERS, scales: int = 1, extra: int = 0
    ) -> None:
        super().__init__()
        self.classes, self.filters = classes, tuple(filters)
        self.scales, self.extra = scales, extra
        self.backbone = DynUNet(
            spatial_dims=3,
            in_channels=(1 + classes) * BLOCK,
            out_channels=(classes + extra) * BLOCK,
            kernel_size=[3] * len(STRIDES),
            strides=STRIDES,
            upsample_kernel_size=STRIDES[1:],
            filters=self.filters,
        )
        self._norms: list[ScaleNorm] = []
        if scales > 1:
            self._give_each_pass_its_norms()

    def _give_each_pass_its_norms(self) -> None:
        for module in list(self.backbone.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.InstanceNorm3d):
                    # A layer that stands at two places of the backbone is one object at both.
                    setattr(module, name, ScaleNorm(self.scales, child))
        norms = {id(m): m for m in self.backbone.modules() if isinstance(m, ScaleNorm)}
        self._norms = list(norms.values())

    @property
    def config(self) -> dict:
        """What `MultiPassUNet(**config)` needs, as plain types."""
        shape = {"classes": self.classes, "filters": list(self.filters)}
        return shape | {"scales": self.scales, "extra": self.extra}

    def _at_scale(self, index: int) -> None:
        for norm in self._norms:
            norm.scale = min(index, self.scales - 1)

    def forward(
        self, image: torch.Tensor, context: torch.Tensor, pass_index: int = 0
    ) -> torch.Tensor:
        """One pass.

        Args:
            image: (N, 1, X, Y, Z) in [0, 1].
            context: (N, classes, X, Y, Z) probabilities of the pass before, zeros if there is none;
                in 16 bits where the convolutions compute in them.
            pass_index: 0 for the first pass.

        Returns:
            (N, classes + extra, X, Y, Z) logits.
        """
        self._at_scale(pass_index)
        seen = pixelunshuffle(torch.cat([image.to(context.dtype), context], dim=1), 3, STEM)
        return pixelshuffle(self.backbone(seen), 3, STEM)

    def merged(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, classes, X, Y, Z) logits in which the extra classes are background."""
        if not self.extra:
            return logits
        last = self.classes
        background = torch.logsumexp(torch.cat([logits[:, :1], logits[:, last:]], 1).float(), 1)
        return torch.cat([background[:, None].to(logits), logits[:, 1:last]], 1)

    def look(self, image: torch.Tensor, context: Maps | None, pass_index: int = 0) -> Maps:
        """As `forward` and `merged`, but memory does not grow with the classes: the first
        convolution adds up over its channels and the last one is taken channel by channel."""
        self._at_scale(pass_index)
        block, levels = self.backbone.input_block, self.backbone.skip_layers
        entered = torch.zeros((), device=image.device)
        channels = 1 if context is None else 1 + self.classes
        for start in range(0, channels, AT_A_TIME):
            some = range(start, min(start + AT_A_TIME, channels))
            seen = torch.stack([context(c - 1) if c and context else image[0, 0] for c in some])
            weight = block.conv1.conv.weight[:, start * BLOCK : some.stop * BLOCK]
            entered = entered + F.conv3d(pixelunshuffle(seen[None], 3, STEM), weight, padding=1)
        inner = block.lrelu(block.norm2(block.conv2(block.lrelu(block.norm1(entered)))))
        features = levels.upsample(levels.next_layer(inner), inner)
        last = self.backbone.output_block.conv.conv

        def logits(c: int) -> torch.Tensor:
            rows = slice(c * BLOCK, (c + 1) * BLOCK)
            found = F.conv3d(features, last.weight[rows], last.bias[rows])
            return pixelshuffle(found, 3, STEM)[0, 0].float()

        background = logits(0)
        for c in range(self.classes, self.classes + self.extra):
            background = torch.logaddexp(background, logits(c))
        total = background
        for c in range(1, self.classes):
            total = torch.logaddexp(total, logits(c))
        return lambda c: torch.exp((logits(c) if c else background) - total)


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
        elif own.dim() == 2 and own.shape[1:] == old.shape:  # a row for each pass
            own.copy_(old.expand_as(own))
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
