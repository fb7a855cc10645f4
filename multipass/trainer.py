"""Parts of the training loop: batches, schedule, weight average, processes, validation."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from multipass.augment import RandPlacement, Space, look, undeformed
from multipass.cohort import Cohort
from multipass.intensity import ContextOdds, RandContext, RandIntensity
from multipass.loss import hard_dice, with_background
from multipass.network import MultiPassUNet
from multipass.passes import View, run
from multipass.structures import mirror_partners

WARM_UP = 0.05  # part of training in which the learning rate rises
FINAL_LR = 0.01  # of the peak


@dataclass(frozen=True)
class Batch:
    """Views and targets of a batch, one for each window; `disturb` is for its contexts."""

    views: list[View]
    targets: list[torch.Tensor]
    known: torch.Tensor
    contexts: Sequence[RandContext] = ()

    def disturb(self, context: torch.Tensor) -> torch.Tensor:
        return torch.stack([d(c) for d, c in zip(self.contexts, context, strict=True)])

    def target(self, index: int) -> torch.Tensor:
        return self.targets[min(index, len(self.targets) - 1)]


def random_state(*keys: int) -> np.random.RandomState:
    """A generator of its own for any (seed, epoch, position): what resuming needs."""
    return np.random.RandomState(np.random.SeedSequence(keys).generate_state(4))


class Batches:
    """Augmented batches of a cohort; the same for the same seed, epoch and position.

    Args:
        windows: ('scan', 'pelvis') or ('scan',), what the passes see.
        batch_size: over all processes.
    """

    def __init__(
        self,
        cohort: Cohort,
        ids: Sequence[str],
        windows: Sequence[str],
        batch_size: int,
        seed: int,
        device: torch.device,
        steps: int | None = None,
    ) -> None:
        self.cohort, self.ids, self.windows = cohort, list(ids), tuple(windows)
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.steps = steps or math.ceil(len(ids) / batch_size)
        self.partners = mirror_partners(cohort.structures)
        self.place = RandPlacement(Space(), cohort.mirror_allowed)
        self.intensity = RandIntensity()

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's part of each batch of an epoch."""
        draws = self.steps * self.batch_size
        order: list[int] = []
        shuffle = random_state(self.seed, epoch)
        while len(order) < draws:
            order += shuffle.permutation(len(self.ids)).tolist()
        share = self.batch_size // world_size()
        for step in range(self.steps):
            first = step * self.batch_size + rank() * share
            yield self._batch([(epoch, at, order[at]) for at in range(first, first + share)])

    def _batch(self, draws: Sequence[tuple[int, int, int]]) -> Batch:
        rows = [self._draw(epoch, at, self.ids[patient]) for epoch, at, patient in draws]
        return collate(rows)

    def _draw(self, epoch: int, at: int, patient_id: str) -> tuple:
        state = random_state(self.seed, epoch, at + 1)
        sample = self.cohort.sample(patient_id, self.device)
        self.place.set_random_state(state=state)
        place = self.place(sample)
        boxes = [place.scan_box, place.pelvis_box][: len(self.windows)]
        seen = torch.stack([look(sample, place, window) for window in self.windows])
        known = sample.known
        if place.mirrored:
            order = torch.tensor(self.partners, device=seen.device)
            seen[:, 1:] = seen[:, 1:][:, order]
            known = known[order]
        self.intensity.set_random_state(state=state)
        images = self.intensity(seen[:, 0].contiguous(), boxes)
        context = RandContext(ContextOdds())
        context.set_random_state(state=state)
        return images, seen[:, 1:], boxes, known, context


def collate(rows: Sequence[tuple]) -> Batch:
    images, fractions, boxes, known, contexts = zip(*rows, strict=True)
    views, targets = [], []
    for w in range(len(boxes[0])):
        box = torch.as_tensor(np.stack([b[w] for b in boxes]))
        views.append(View(torch.stack([i[w] for i in images])[:, None], box))
        targets.append(with_background(torch.stack([f[w] for f in fractions])))
    return Batch(views, targets, torch.stack(known), contexts)


def as_it_is(cohort: Cohort, patient_id: str, windows: Sequence[str], device) -> Batch:
    """One patient without augmentation, through the windows of its reference: for validation."""
    sample = cohort.sample(patient_id, device)
    place = undeformed(sample)
    seen = torch.stack([look(sample, place, window) for window in windows])
    boxes = [place.scan_box, place.pelvis_box][: len(windows)]
    return collate([(seen[:, 0], seen[:, 1:], boxes, sample.known, None)])


@torch.no_grad()
def validate(
    network: MultiPassUNet,
    cohort: Cohort,
    ids: Sequence[str],
    windows: Sequence[str],
    passes: int,
    amp: AbstractContextManager,
    device: torch.device,
) -> np.ndarray:
    """(patients, passes, K) Dice on the windows' grids; this process does its part of the ids."""
    dice = np.full((len(ids), passes, len(cohort.structures)), np.nan)
    network.eval()
    for i in range(rank(), len(ids), world_size()):
        batch = as_it_is(cohort, ids[i], windows, device)
        for k, logits in enumerate(run(network, batch.views, passes, amp)):
            dice[i, k] = hard_dice(logits, batch.target(k), batch.known)[0].cpu().numpy()
    network.train()
    return gathered(dice)


class Average:
    """Exponential moving average of a network's weights; it follows closely at first."""

    def __init__(self, network: MultiPassUNet, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: MultiPassUNet) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, new = list(self.network.parameters()), list(network.parameters())
        torch._foreach_lerp_(own, new, 1 - decay)


def cosine(progress: float) -> float:
    """Factor of the learning rate after this part of the training: a linear rise, half a cosine."""
    if progress < WARM_UP:
        return 0.05 + 0.95 * progress / WARM_UP
    fall = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * fall)) / 2


# ------------------------------------------------------------------- processes


def start_processes(device: torch.device) -> None:
    """Joins the processes that torchrun started; without torchrun there is one."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(network: torch.nn.Module) -> None:
    """Gradients of the whole batch from those of each process's part."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        dist.all_reduce(values)
        values = values / world_size()
    return values


def gathered(rows: np.ndarray) -> np.ndarray:
    """Joins arrays of which each process has filled its own rows, the others being NaN."""
    if world_size() == 1:
        return rows
    parts: list = [None] * world_size()
    dist.all_gather_object(parts, rows)
    for other, part in enumerate(parts):
        rows[other :: world_size()] = part[other :: world_size()]
    return rows
