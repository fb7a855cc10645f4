"""The state of a training run, its learning rate, and validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multipass.model import checkpoint
from multipass.model.network import MultiPassUNet, transfer
from multipass.model.passes import run
from multipass.structures import Structure
from multipass.training.batches import Validation
from multipass.training.loss import hard_dice, without_extra
from multipass.training.optimizer import Muon
from multipass.training.processes import from_first, gathered, mean_over_processes, rank, world_size

WARM_UP = 0.05  # part of training in which the learning rate rises
FINAL_LR = 0.01  # of the peak
PLATEAU_EPOCHS = 10  # without a better validation Dice: half the learning rate


class Average:
    """Exponential moving average of a network's weights; it follows closely at first."""

    def __init__(self, network: MultiPassUNet, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: MultiPassUNet) -> None:
        """Takes one step of the average towards the network's weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, new = ([p.data for p in n.parameters()] for n in (self.network, network))
        torch._foreach_lerp_(own, new, 1 - decay)


class State:
    """All that a run has become: what `last.pth` holds and `--resume` reads.

    Attributes:
        epoch: epochs done.
        best: the highest validation Dice so far, -1 before the first.
        seconds: that training took, interruptions left out; the same in all processes.
        history: a row a finished epoch.
    """

    def __init__(
        self,
        network: MultiPassUNet,
        lr: float,
        weight_decay: float,
        ema: float,
        device: torch.device,
    ) -> None:
        self.network = network
        self.average = Average(network, ema)
        self.optimizer = Muon(list(network.parameters()), lr, weight_decay)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, "max", factor=0.5, patience=PLATEAU_EPOCHS
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self.epoch, self.best, self.seconds = 0, -1.0, 0.0
        self.history: list[dict[str, Any]] = []
        self._tick = time.monotonic()

    def lap(self, *values: torch.Tensor) -> list[float]:
        """Adds the time since the last lap; returns the values' means over all processes."""
        now = time.monotonic()
        passed = values[0].new_tensor(now - self._tick)
        self._tick = now
        *means, passed_mean = mean_over_processes(torch.stack([*values, passed])).tolist()
        self.seconds += passed_mean
        return means

    @property
    def lr(self) -> float:
        """Of all groups of parameters."""
        return self.optimizer.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def state_dict(self) -> dict[str, Any]:
        """All that `--resume` needs, as tensors and plain types."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "seconds": self.seconds,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.average.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        if state["scaler"]:  # empty where the run began without fp16
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best, self.seconds = state["epoch"], state["best"], state["seconds"]
        self.history = list(state["history"])


def resume(state: State, path: Path, settings: dict[str, Any]) -> str | None:
    """Goes on from `last.pth`, if there is one.

    Args:
        settings: of this run; all must be those of the interrupted one.

    Returns:
        The run's name; None where there is nothing to go on with.

    Raises:
        ValueError: the file is no `last.pth`, or of a run with other settings.
    """
    content = from_first(checkpoint.read(path) if rank() == 0 and path.exists() else None)
    if content is None:
        return None
    training = content.get("training")
    if not training:
        raise ValueError(f"{path}: a finished network, not an interrupted run.")
    for key, value in settings.items():
        if training["settings"].get(key) != value:
            raise ValueError(
                f"{path} is of a run with {key} = {training['settings'].get(key)}, not {value}; "
                "--resume goes on with the same run only, --init starts another from its weights."
            )
    state.load_state_dict(training["state"])
    return training["name"]


def start_from(network: MultiPassUNet, structures: Sequence[Structure], path: Path) -> list[str]:
    """Takes the weights of a trained network over; structures are matched by their codes.

    Returns:
        The names of the structures that are new to it.

    Raises:
        ValueError: no checkpoint, or of a network of another shape.
    """
    trained = checkpoint.load(path)
    index = {structure.key: 1 + i for i, structure in enumerate(trained.structures)}
    kept = [0] + [index.get(structure.key, -1) for structure in structures]
    device = next(network.parameters()).device
    transfer(network, trained.network.to(device), kept)
    return [s.name for s, old in zip(structures, kept[1:], strict=True) if old < 0]


def cosine(progress: float) -> float:
    """Factor of the learning rate after this part of the training: a linear rise, half a cosine."""
    if progress < WARM_UP:
        return 0.05 + 0.95 * progress / WARM_UP
    fall = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * fall)) / 2


def validate(
    state: State, validation: Validation, ids: Sequence[str], amp: torch.autocast
) -> np.ndarray:
    """(patients, passes, K) Dice of the average weights on the windows' grids.

    Each process does its part of the ids.
    """
    dice = np.full((len(ids), len(validation.windows), len(validation.cohort.structures)), np.nan)
    for i in range(rank(), len(ids), world_size()):
        dice[i] = patient_dice(state.average.network, validation, ids[i], amp)
    return gathered(dice)


@torch.no_grad()
def patient_dice(
    network: MultiPassUNet, validation: Validation, patient_id: str, amp: torch.autocast
) -> np.ndarray:
    """(passes, K) Dice on the windows' grids, those of one pass taken together; NaN where the
    structure is not annotated, or neither there nor found."""
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
