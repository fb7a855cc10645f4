"""Validation: Dice of every pass on whole windows, always the same ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from multipass.data.cohort import Cohort
from multipass.geometry.windows import GRID_SIZE
from multipass.model.network import MultiPassUNet
from multipass.model.passes import run
from multipass.training.augment import RandPlacement, Space
from multipass.training.batches import Batch, collate, seen_through
from multipass.training.loss import hard_dice, without_extra
from multipass.training.processes import gathered, rank, world_size
from multipass.training.shelf import Shelf


class Validation:
    """Batches of a patient without augmentation, its windows displaced as inference may err: always
    the same ones."""

    PLACES = 2  # a patient

    def __init__(self, cohort: Cohort, windows: Sequence[str], device: torch.device) -> None:
        self.cohort, self.windows = cohort, tuple(windows)
        self.place = RandPlacement(replace(Space().scaled(0), mirror=0.0), False, crops=0.0)
        self.shelf = Shelf(device)

    def batches(self, patient_id: str) -> list[Batch]:
        """The patient's batches of one sample each, the same in every epoch."""
        sample = self.shelf.sample(self.cohort, patient_id)
        self.place.set_random_state(seed=zlib.crc32(patient_id.encode()))
        made = []
        for _ in range(self.PLACES):
            place = self.place(sample)
            seen, known = seen_through(sample, place, self.windows, GRID_SIZE, self.shelf, ())
            boxes = [place.boxes[window] for window in self.windows]
            made.append(collate([(seen[:, 0], seen[:, 1:], boxes, known, None)]))
        return made


def validate(
    network: MultiPassUNet, validation: Validation, ids: Sequence[str], amp: torch.autocast
) -> np.ndarray:
    """(patients, passes, K) Dice on the windows' grids.

    Each process does its part of the ids.
    """
    dice = np.full((len(ids), len(validation.windows), len(validation.cohort.structures)), np.nan)
    for i in range(rank(), len(ids), world_size()):
        dice[i] = patient_dice(network, validation, ids[i], amp)
    return gathered(dice)


@torch.no_grad()
def patient_dice(
    network: MultiPassUNet, validation: Validation, patient_id: str, amp: torch.autocast
) -> np.ndarray:
    """(passes, K) Dice on the windows' grids, those of one pass taken together; NaN as in
    `hard_dice`."""
    batches = validation.batches(patient_id)
    passes = len(validation.windows)
    found: list[list[torch.Tensor]] = [[] for _ in range(passes)]
    for batch in batches:
        for k, logits in enumerate(run(network, batch.views, passes, amp)):
            found[k].append(network.merged(logits))
    scores = []
    known = batches[0].known[:, : network.classes - 1]
    for k, of_windows in enumerate(found):
        targets = [without_extra(batch.target(k), network.classes) for batch in batches]
        scores.append(hard_dice(torch.cat(of_windows, -1), torch.cat(targets, -1), known)[0])
    return torch.stack(scores).cpu().numpy()
