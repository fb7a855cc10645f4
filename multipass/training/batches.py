"""Batches of augmented samples, the same for the same seed, epoch and position."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from multipass.data.cohort import Cohort, Sample
from multipass.geometry.windows import GRID_SIZE
from multipass.model.passes import View
from multipass.structures import mirror_partners
from multipass.training.augment import Placement, RandPlacement, Space, look
from multipass.training.contexts import ContextOdds, RandContext
from multipass.training.intensity import RandIntensity
from multipass.training.loss import with_background, without_extra
from multipass.training.processes import rank, world_size
from multipass.training.shelf import Shelf

THREADS = 2  # that make batches for a GPU
# Of the batches that show no structure: inference stops where the first pass finds none, and the
# passes after it cost two thirds of a step.
STOPPED = 0.75
FEWEST_STEPS = 20  # an epoch of a small cohort, so that validation does not take most of the time
Size = tuple[int, int, int]


def whole(step: int) -> Size:
    """Windows of full resolution at every step."""
    return GRID_SIZE


@dataclass(frozen=True)
class Batch:
    """Views and targets of a batch, one for each window.

    Attributes:
        targets: (N, 1 + C, X, Y, Z) fractions, background first, of the cohort's channels.
        known: (N, C).
        contexts: of each sample, () in validation.
        stops: whether the passes after the first are left out, see STOPPED.
    """

    views: list[View]
    targets: list[torch.Tensor]
    known: torch.Tensor
    contexts: Sequence[RandContext] = ()
    stops: bool = False

    def hand_on(self, index: int, found: torch.Tensor) -> torch.Tensor:
        """What the next pass is told of pass `index`, (N, 1 + K, X, Y, Z)."""
        if not self.contexts:
            return found
        reference = without_extra(self.target(index), found.shape[1])
        told = zip(self.contexts, found, reference, strict=True)
        return torch.stack([context(index, *maps) for context, *maps in told])

    def target(self, index: int) -> torch.Tensor:
        """What pass `index` is to find: the last window's for all further passes."""
        return self.targets[min(index, len(self.targets) - 1)]


def random_state(*keys: int) -> np.random.RandomState:
    """A generator of its own for any (seed, epoch, position): what resuming needs."""
    return np.random.RandomState(np.random.SeedSequence(keys).generate_state(4))


class Batches:
    """Augmented batches of a cohort; the same for the same seed, epoch and position.

    Args:
        windows: 'scan', 'pelvis' or 'parts', what each pass sees.
        batch_size: over all processes, each of which makes its part.
        steps: batches an epoch; 0 for each patient once, and for at least 20 batches.
        strength: of the augmentation; 1 as designed, 0 none but the mirror, fields of view and
            displaced boxes.
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
        self.partners = mirror_partners(cohort.channels)
        self.place = RandPlacement(Space().scaled(strength), cohort.mirror_allowed)
        self.intensity = RandIntensity(strength)
        self.context_odds = ContextOdds()
        self.shelf = Shelf(device)

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
        made = (partial(self._batch, epoch, order, step, size(step)) for step in range(self.steps))
        return ahead(made) if self.device.type == "cuda" else (make() for make in made)

    def _batch(self, epoch: int, order: Sequence[int], step: int, size: Size) -> Batch:
        share = self.batch_size // world_size()
        first = step * self.batch_size + rank() * share
        places = range(first, first + share)
        batch = collate([self._draw(epoch, at, self.ids[order[at]], size) for at in places])
        structures = slice(1, 1 + len(self.cohort.structures))
        shows_none = not any(bool(target[:, structures].any()) for target in batch.targets)
        stops = shows_none and random_state(self.seed, epoch, step, 1).rand() < STOPPED
        return replace(batch, stops=stops)

    def _draw(self, epoch: int, at: int, patient_id: str, size: Size) -> tuple:
        state = random_state(self.seed, epoch, at + 1)
        sample = self.shelf.sample(self.cohort, patient_id)
        placement, intensity = copy.deepcopy((self.place, self.intensity))
        placement.set_random_state(state=state)
        place = placement(sample)
        seen, known = seen_through(sample, place, self.windows, size, self.shelf, self.partners)
        boxes = [place.boxes[window] for window in self.windows]
        intensity.set_random_state(state=state)
        images, fractions = intensity(seen, boxes)
        context = RandContext(self.context_odds, self.partners[: len(self.cohort.structures)])
        context.set_random_state(state=state)
        return images, fractions, boxes, known, context


def seen_through(
    sample: Sample,
    place: Placement,
    windows: Sequence[str],
    size: Size,
    shelf: Shelf,
    partners: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(W, 1 + C, X, Y, Z) image and fractions of each window, and (C,) which channels are known;
    left and right exchanged where the placement mirrors."""
    seen = torch.stack([look(sample, place, window, size, shelf) for window in windows])
    known = torch.as_tensor(sample.known, device=seen.device)
    if place.mirrored:
        order = torch.tensor(partners, device=seen.device)
        seen[:, 1:] = seen[:, 1:][:, order]
        known = known[order]
    return seen, known


def ahead(makers: Iterator[Callable[[], Batch]]) -> Iterator[Batch]:
    """Makes the next batches while one is used; on a CPU they would only share its cores.

    What a batch depends on is asked for (`next(makers)`) in the order of use, one thread's work
    before it is needed.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        following: deque[Future[Batch]] = deque()
        for make in makers:
            following.append(threads.submit(make))
            if len(following) > THREADS:
                yield following.popleft().result()
        while following:
            yield following.popleft().result()


def collate(rows: Sequence[tuple]) -> Batch:
    """Stacks samples, rows of (images, fractions, boxes, known, context), window by window."""
    images, fractions, boxes, known, contexts = zip(*rows, strict=True)
    views, targets = [], []
    for w in range(len(boxes[0])):
        box = torch.as_tensor(np.stack([b[w] for b in boxes]))
        views.append(View(torch.stack([i[w] for i in images])[:, None], box))
        targets.append(with_background(torch.stack([f[w] for f in fractions])))
    given = tuple(context for context in contexts if context is not None)
    return Batch(views, targets, torch.stack(known), given)
