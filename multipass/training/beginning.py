"""The beginning of a run: what it is, and the state that it starts from."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from multipass.data.cohort import Cohort
from multipass.model import checkpoint
from multipass.model.network import MultiPassUNet
from multipass.training.optimizer import Muon
from multipass.training.processes import rank, say
from multipass.training.runlog import RunLog
from multipass.training.state import State, resume, start_from

# Must be the same in an interrupted run and its continuation.
SETTINGS = (
    *("seed", "passes", "window", "folds", "fold", "batch_size", "epochs", "steps_per_epoch"),
    *("minutes", "filters", "lr", "weight_decay", "schedule", "coarse", "augmentation", "ema"),
)


def describe(options: Any, cohort: Cohort, train_ids: list[str], val_ids: list[str]) -> dict:
    """What the run is, for last.pth and runs/<name>/."""
    data_sha256 = cohort.sha256()
    settings = {k: getattr(options, k) for k in SETTINGS} | {"optimizer": Muon.__name__}
    settings |= {"data_sha256": data_sha256, "validation": ", ".join(val_ids)}
    return {
        "name": options.name or time.strftime("%Y-%m-%d_%H-%M-%S"),
        "settings": settings,
        "trained_on": {
            "patients": len(train_ids),
            "training": train_ids,
            "validation": val_ids,
            "data_sha256": data_sha256,
        },
    }


def begin(
    options: Any, cohort: Cohort, origin: dict, device: torch.device
) -> tuple[State, RunLog | None]:
    """The state to train from, new or resumed, and the first process's log.

    A resumed run keeps its name: `origin` gets it.
    """
    classes, extra = 1 + len(cohort.structures), len(cohort.extra)
    network = MultiPassUNet(classes, options.filters, options.passes, extra).to(device)
    if options.init:
        new = start_from(network, cohort.structures, options.init)
        say(f"Weights of {options.init}; new structures: {', '.join(new) or 'none'}.")
    state = State(network, options.lr, options.weight_decay, options.ema, device)
    last = options.output / "last.pth"
    if options.resume and (name := resume(state, last, origin["settings"])):
        origin["name"] = name
        say(f"Going on after epoch {state.epoch} of run {name}.")
    elif options.resume:
        say(f"Nothing to go on with: there is no {last}. A new run starts.")
    if rank() > 0:
        return state, None
    facts = {**origin, "options": asdict(options), "device": str(device)}
    facts["versions"] = checkpoint.versions()
    return state, RunLog(options.output / "runs" / origin["name"], facts, state.epoch)
