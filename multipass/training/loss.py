"""Soft Dice and cross-entropy against class fractions, and the Dice that people read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

# A structure that fills less of a window than this, 1 or 2 % of a bone, has no Dice worth teaching.
EMPTY_PART = 1.7e-4
LEAST_DICE = 1e-3  # bounds the logarithm
UNSEEN_LOGIT = -1e4  # finite, as -inf times a zero target is not a number

# soft_label: the Dice semimetric whose minimum is the fractions themselves (Wang et al. 2023);
# the plain product of probability and fraction would be least at hard labels.
_soft_dice = DiceLoss(include_background=False, soft_label=True, reduction="none")


def with_background(fractions: torch.Tensor) -> torch.Tensor:
    """(N, K, ...) fractions of structures to (N, 1 + K, ...), background = 1 - sum."""
    background = (1 - fractions.sum(1, keepdim=True)).clamp_(min=0)
    return torch.cat([background, fractions], dim=1)


def without_extra(target: torch.Tensor, classes: int) -> torch.Tensor:
    """(N, classes, ...) fractions in which those of all further channels are background."""
    if target.shape[1] == classes:
        return target
    background = target[:, :1] + target[:, classes:].sum(1, keepdim=True)
    return torch.cat([background, target[:, 1:classes]], 1)


def _merge_unknown(logits, target, known):
    """Adds the probability of structures nobody annotated in a scan to its background.

    Their voxels lie unmarked in the background, so that there "background or unknown structure" is
    all that the reference says.
    """
    unknown = ~known[:, :, None, None, None]
    structures = logits[:, 1:]
    hidden = structures.masked_fill(~unknown, UNSEEN_LOGIT)
    background = torch.logsumexp(torch.cat([logits[:, :1], hidden], 1), 1, keepdim=True)
    logits = torch.cat([background, structures.masked_fill(unknown, UNSEEN_LOGIT)], 1)
    taught = target[:, 1:].masked_fill(unknown, 0)
    return logits, with_background(taught)


def soft_loss(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus the mean of -log(soft Dice).

    The logarithm (Wong et al. 2018) weighs a structure's gradient by 1 / Dice: one that is hardly
    found yet gets most of it. 1 - Dice was worse in a short training (docs/method.md).

    Args:
        logits: (N, 1 + K, X, Y, Z).
        target: the same shape, fractions that sum to 1.
        known: (N, K) bool, False for structures that are not annotated in a sample.

    A structure of which the window holds next to nothing is taught by the cross-entropy alone: its
    Dice is near 0 however few voxels are wrong, and its logarithm would drown all others.
    """
    logits = logits.float()
    if not bool(known.all()):
        logits, target = _merge_unknown(logits, target, known)
    cross_entropy = F.cross_entropy(logits, target)
    dice_loss = _soft_dice(torch.softmax(logits, 1), target).flatten(1)
    counted = known & (target[:, 1:].mean((2, 3, 4)) > EMPTY_PART)
    # Mean by sample, not over the batch: the split of a batch over processes changes nothing.
    dice_loss = -torch.log((1 - dice_loss).clamp(min=LEAST_DICE))
    by_sample = (dice_loss * counted).sum(1) / counted.sum(1).clamp(min=1)
    return cross_entropy + by_sample.mean()


@torch.no_grad()
def hard_dice(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(N, K) Dice of the argmax against the argmax of the fractions.

    NaN where a structure is not annotated, or fills less than EMPTY_PART of the voxels in both.
    """
    predicted, reference = _argmax(logits), _argmax(target)
    least = EMPTY_PART * predicted[0].numel()
    dice = []
    for k in range(1, logits.shape[1]):
        masks = predicted == k, reference == k
        both, found, there = (m.flatten(1).sum(1) for m in (masks[0] & masks[1], *masks))
        value = 2 * both / (found + there)
        dice.append(value.masked_fill((found < least) & (there < least), float("nan")))
    return torch.stack(dice, 1).masked_fill(~known, float("nan"))


def _argmax(maps: torch.Tensor) -> torch.Tensor:
    """(N, ...) uint8; on the CPU ten times faster than torch.argmax across channels."""
    best = maps[:, 0]
    winner = torch.zeros_like(best, dtype=torch.uint8)
    for k in range(1, maps.shape[1]):
        winner.masked_fill_(maps[:, k] > best, k)
        best = torch.maximum(best, maps[:, k])
    return winner
