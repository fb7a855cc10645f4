"""What a run leaves behind: a line an epoch, its history, last.pth and best_model.pth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multipass.geometry.windows import HU_RANGE
from multipass.model import checkpoint
from multipass.structures import Structure
from multipass.training.batches import Batch
from multipass.training.processes import say
from multipass.training.runlog import RunLog
from multipass.training.state import State


@dataclass(frozen=True)
class Keeper:
    """Where a run's results go.

    Attributes:
        output: the folder of last.pth and best_model.pth.
        windows: what each pass sees.
        origin: what the run is, see `beginning.describe`.
        log: the first process's; None in the others.
    """

    output: Path
    structures: list[Structure]
    windows: tuple[str, ...]
    origin: dict[str, Any]
    log: RunLog | None

    def record(self, state: State, loss: float, dice: float, scores: np.ndarray) -> None:
        """Ends the epoch: adds it to the history and prints its line.

        Args:
            loss, dice: of training.
            scores: (patients, passes, K) Dice of validation.
        """
        state.epoch += 1
        by_pass = np.nanmean(scores, axis=(0, 2)).tolist()
        row: dict[str, Any] = {"epoch": state.epoch, "lr": state.lr, "seconds": state.seconds}
        row |= {"train_loss": loss, "train_dice": dice, "dice": by_pass[-1]}
        row |= {f"dice_pass{k}": value for k, value in enumerate(by_pass, start=1)}
        for k, of_pass in enumerate(np.nanmean(scores, axis=0).tolist(), start=1):
            for structure, value in zip(self.structures, of_pass, strict=True):
                row[f"dice_pass{k}_{structure.name}"] = value
        state.history.append(row)
        say(
            f"epoch {state.epoch}: training loss {loss:.4f}, Dice {dice:.4f}; validation Dice "
            f"{by_pass[-1]:.4f} (by pass {', '.join(f'{d:.4f}' for d in by_pass)}); "
            f"lr {state.lr:.1e}, {state.seconds:.0f} s"
        )

    def keep(self, state: State, dice: float) -> bool:
        """Writes last.pth, and best_model.pth if this validation Dice is the best so far; says
        whether it is. Other processes than the first write nothing."""
        if self.log is None:
            return False
        model = checkpoint.Model(
            network=state.averaged_network,
            structures=self.structures,
            hu_range=HU_RANGE,
            windows=self.windows,
            info={"dice": dice, "trained_on": self.origin["trained_on"]},
        )
        content = checkpoint.as_dict(model)
        if state.epoch <= 1 and state.best < 0:
            for name in ("best_model.pth", "last.pth"):
                if kept := checkpoint.set_aside(self.output / name):
                    say(f"{name} of an earlier run is now {kept.name}.")
        better = dice > state.best
        if better:
            path = self.output / "best_model.pth"
            checkpoint.save(path, content)
            say(f"best_model.pth: Dice {max(state.best, 0):.4f} -> {dice:.4f} ({path})")
            state.best = dice
        content["training"] = {**self.origin, "state": state.state_dict()}
        checkpoint.save(self.output / "last.pth", content)
        if state.history:
            self.log.write(state.history, self.structures)
        return better

    def show(self, state: State, batch: Batch, amp: torch.autocast) -> None:
        """Adds a picture of a validation patient to the log."""
        if self.log is not None:
            passes = len(self.windows)
            self.log.show(state.averaged_network, batch, passes, self.structures, amp)
