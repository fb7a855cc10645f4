"""Batches of augmented samples, the same for the same seed, epoch and position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from multipass.data.cohort import Cohort
from multipass.geometry.windows import GRID_SIZE
from multipass.model.passes import View
from multipass.structures import mirror_partners
from multipass.training.augment import RandPlacement, Space, look, undeformed
from multipass.training.intensity import ContextOdds, RandContext, RandIntensity
from multipass.training.loss import with_background
from multipass.training.processes import rank, world_size

FEWEST_STEPS = 20  # an epoch of a small cohort, so that validation does not take most of the time
Size = tuple[int, int, int]


def whole(step: int) -> Size:
    return GRID_SIZE


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
        windows: 'scan' or 'pelvis', what each pass sees.
        batch_size: over all processes, each of which makes its part.
        steps: batches an epoch; 0 for each patient once, and for at least 20 batches.
        strength: of the augmentation; 1 as designed, 0 none but the mirror and displaced boxes.
    """

    def __init__(
        self,
        cohort: Cohort,
        ids: Sequence[str],
        windows: Sequence[str],
        batch_size: int,
        seed: int,
        device: torch.device,
        steps: int = 0,
        strength: float = 1.0,
    ) -> None:
        self.cohort, self.ids, self.windows = cohort, list(ids), tuple(windows)
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.steps = steps or max(FEWEST_STEPS, math.ceil(len(ids) / batch_size))
        self.partners = mirror_partners(cohort.structures)
        self.place = RandPlacement(Space().scaled(strength), cohort.mirror_allowed)
        self.intensity = RandIntensity(strength)
        self.context_odds = ContextOdds()

    def epoch(self, epoch: int, size: Callable[[int], Size] = whole) -> Iterator[Batch]:
        """This process's part of each batch of an epoch.

        Args:
            size: voxels of the windows, of each step.
        """
        draws = self.steps * self.batch_size
        order: list[int] = []
        shuffle = random_state(self.seed, epoch)
        while len(order) < draws:
            order += shuffle.permutation(len(self.ids)).tolist()
        made = (self._batch(epoch, order, step, size(step)) for step in range(self.steps))
        return ahead(made) if self.device.type == "cuda" else made

    def _batch(self, epoch: int, order: Sequence[int], step: int, size: Size) -> Batch:
        share = self.batch_size // world_size()
        first = step * self.batch_size + rank() * share
        places = range(first, first + share)
        return collate([self._draw(epoch, at, self.ids[order[at]], size) for at in places])

    def _draw(self, epoch: int, at: int, patient_id: str, size: Size) -> tuple:
        state = random_state(self.seed, epoch, at + 1)
        sample = self.cohort.sample(patient_id, self.device, state)
        self.place.set_random_state(state=state)
        place = self.place(sample)
        boxes = [place.box(window) for window in self.windows]
        seen = torch.stack([look(sample, place, window, size) for window in self.windows])
        known = sample.known
        if place.mirrored:
            order = torch.tensor(self.partners, device=seen.device)
            seen[:, 1:] = seen[:, 1:][:, order]
            known = known[order]
        self.intensity.set_random_state(state=state)
        images, fractions = self.intensity(seen, boxes, place.scan_box)
        context = RandContext(self.context_odds)
        context.set_random_state(state=state)
        return images, fractions, boxes, known, context


def ahead(items: Iterator[Batch]) -> Iterator[Batch]:
    """Makes the next item while this one is used; on a CPU the two would only share its cores."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def collate(rows: Sequence[tuple]) -> Batch:
    images, fractions, boxes, known, contexts = zip(*rows, strict=True)
    views, targets = [], []
    for w in range(len(boxes[0])):
        box = torch.as_tensor(np.stack([b[w] for b in boxes]))
        views.append(View(torch.stack([i[w] for i in images])[:, None], box))
        targets.append(with_background(torch.stack([f[w] for f in fractions])))
    return Batch(views, targets, torch.stack(known), contexts)


def as_it_is(cohort: Cohort, patient_id: str, windows: Sequence[str], device) -> list[Batch]:
    """One patient without augmentation, through the windows of its reference, a batch for each over
    the pelvis: for validation."""
    sample = cohort.sample(patient_id, device)
    places = undeformed(sample)
    batches = []
    for place in places if "pelvis" in windows else places[:1]:
        seen = torch.stack([look(sample, place, window) for window in windows])
        boxes = [place.box(window) for window in windows]
        batches.append(collate([(seen[:, 0], seen[:, 1:], boxes, sample.known, None)]))
    return batches
