"""The plan of a training: how long it is, and what changes on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from multipass.geometry.windows import COARSE_GRID_SIZE, GRID_SIZE
from multipass.training.state import State

WARM_UP = 0.05  # part of training in which the learning rate rises
FINAL_LR = 0.01  # of the peak


@dataclass(frozen=True)
class Plan:
    """How a training goes on.

    Attributes:
        epochs: rounds over the patients.
        minutes: of training; 0 for all epochs, else whichever ends first.
        lr: peak of the learning rate.
        schedule: 'cosine' or 'plateau', how the learning rate falls.
        coarse: first part of the training, on windows of half the resolution.
    """

    epochs: int
    minutes: float = 0.0
    lr: float = 0.0
    schedule: str = "cosine"
    coarse: float = 0.0

    def done(self, state: State, part_of_epoch: float = 0.0) -> float:
        """The part of the training that is done, by epochs or by the clock, whichever is
        further."""
        by_clock = state.seconds / 60 / self.minutes if self.minutes else 0.0
        return max((state.epoch + part_of_epoch) / self.epochs, by_clock)

    def window_size(self, done: float) -> tuple[int, int, int]:
        """Voxels of the windows when this part of the training is done."""
        return COARSE_GRID_SIZE if done < self.coarse else GRID_SIZE

    def out_of_time(self, state: State) -> bool:
        return bool(self.minutes) and state.seconds >= 60 * self.minutes

    def is_over(self, state: State) -> bool:
        return state.epoch >= self.epochs or self.out_of_time(state)

    def set_lr(self, state: State, done: float) -> None:
        """The learning rate of a step; that of a plateau follows validation instead."""
        if self.schedule == "cosine":
            state.lr = self.lr * cosine(done)

    def judge(self, state: State, dice: float) -> None:
        """Cuts the learning rate of a plateau where validation stands still, as it does in the
        coarse part, being on whole windows, while the network learns."""
        if self.schedule == "plateau" and self.done(state) > self.coarse:
            state.plateau.step(dice)


def cosine(progress: float) -> float:
    """Factor of the learning rate after this part of the training: a linear rise, half a cosine."""
    if progress < WARM_UP:
        return 0.05 + 0.95 * progress / WARM_UP
    fall = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * fall)) / 2
