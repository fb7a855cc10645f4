"""The state of a training run, from its beginning or from `last.pth` on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from multipass.model import checkpoint
from multipass.model.network import MultiPassUNet, transfer
from multipass.structures import Structure
from multipass.training.optimizer import Muon
from multipass.training.processes import from_first, mean_over_processes, rank

Weights = tuple[torch.Tensor, ...] | list[torch.Tensor]
PLATEAU_EPOCHS = 10  # without a better validation Dice: half the learning rate


def averaged(network: torch.nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a network's weights; it follows closely at first. The weights
    that it starts from count as the first."""

    def follow(own: Weights, new: Weights, count: torch.Tensor | int) -> None:
        part = (1 + int(count)) / (10 + int(count))
        get_ema_multi_avg_fn(min(decay, part))(own, new, count)

    average = AveragedModel(network, multi_avg_fn=follow)
    average.module.requires_grad_(False).eval()
    average.n_averaged.fill_(1)
    return average


class State:
    """All that a run has become: what `last.pth` holds and `--resume` reads.

    Attributes:
        average: of the network's weights.
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
        self.average = averaged(network, ema)
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

    @property
    def averaged_network(self) -> MultiPassUNet:
        """With the average of the weights, which is what is validated and saved."""
        return cast(MultiPassUNet, self.average.module)

    def state_dict(self) -> dict[str, Any]:
        """All that `--resume` needs, as tensors and plain types."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.module.state_dict(),
            "updates": int(self.average.n_averaged) - 1,
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
        self.average.module.load_state_dict(state["average"])
        self.average.n_averaged.fill_(1 + state["updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        if state["scaler"]:  # empty where the run began without fp16
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best, self.seconds = state["epoch"], state["best"], state["seconds"]
        self.history = list(state["history"])


def check_finite(state: State, what: str, value: float) -> None:
    """Raise ValueError for a loss or a gradient that is no number."""
    if not math.isfinite(value):
        saved = state.epoch > 0 or state.best >= 0
        kept = "; best_model.pth and last.pth hold the last good weights" if saved else ""
        raise ValueError(
            f"the {what} became {value} in epoch {state.epoch + 1}{kept}. A lower --lr may help."
        )


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
