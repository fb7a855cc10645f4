"""What can be known before a training starts: options that make no sense or follow from others,
structures that the training patients do not show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from multipass.data.cohort import Cohort
from multipass.site_rules import read_rules
from multipass.structures import Structure
from multipass.training.processes import say, world_size

COARSE = 0.5
LR, FINE_TUNING_LR = 5e-3, 1e-3

# Least and greatest value of the options of training.py.
_RANGES = {
    **dict.fromkeys(("epochs", "passes"), (1, math.inf)),
    **dict.fromkeys(("steps_per_epoch", "batch_size", "minutes"), (0, math.inf)),
    **dict.fromkeys(("lr", "weight_decay"), (0, math.inf)),
    **dict.fromkeys(("coarse", "augmentation", "ema"), (0, 1)),
    "folds": (2, math.inf),
    "seed": (0, 2**63 - 1),
}


def complete(options: Any) -> Any:
    """The options of training.py with those that follow from others.

    Raises:
        ValueError: options that make no sense together.
    """
    check_options(options)
    coarse = options.coarse
    if coarse is None:
        coarse = 0.0 if options.init else COARSE
    lr = options.lr or (FINE_TUNING_LR if options.init else LR)
    batch_size = options.batch_size or world_size()
    options = replace(options, batch_size=batch_size, coarse=coarse, lr=lr)
    read_rules(options.structures)
    if options.batch_size % world_size():
        raise ValueError(
            f"--batch-size {options.batch_size} does not divide among {world_size()} processes."
        )
    if (options.output / "best_model.pth.sha256").exists():
        raise ValueError(f"{options.output} holds a published network; give another --output.")
    return options


def check_options(options: Any) -> None:
    """Options as a person gave them, before anything is filled in.

    Raises:
        ValueError: one is out of its range; it is named.
    """
    for key, (low, high) in _RANGES.items():
        value = getattr(options, key)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            wanted = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise ValueError(f"--{key.replace('_', '-')} {value}: {wanted}.")
    if min(options.filters) < 1:
        raise ValueError(f"--filters {' '.join(map(str, options.filters))}: each at least 1.")
    if not 0 <= options.fold < options.folds:
        raise ValueError(f"--fold {options.fold}: there are folds 0 to {options.folds - 1}.")
    if options.name.startswith(".") or set(options.name) & set('/\\:*?"<>|\0'):
        raise ValueError(f"--name {options.name!r}: not the name of a folder.")


def parted(cohort: Cohort, folds: int, fold: int) -> tuple[list[str], list[str]]:
    """Training and validation patients; says what is left out or shown by none of them.

    Raises:
        ValueError: see `check_annotations`.
    """
    for file in cohort.left_out:
        say(f"Left out: {file}, which the last run of processing.py did not make.")
    train_ids, val_ids = cohort.split(folds, fold)
    for sentence in check_annotations(cohort, train_ids, val_ids):
        say(sentence)
    return train_ids, val_ids


def check_annotations(
    cohort: Cohort, training: Sequence[str], validation: Sequence[str]
) -> list[str]:
    """Sentences on structures that no training or no validation patient shows.

    Raises:
        ValueError: no training patient shows any, so that there is nothing to learn, or no
            validation patient does, so that no model can be chosen.
    """
    in_training, in_validation = (_shown(cohort, ids) for ids in (training, validation))
    if not in_training:
        raise ValueError(
            f"no structure lies in any of the {len(training)} training patients: nothing to learn."
        )
    if not in_validation:
        raise ValueError(
            f"no structure lies in any validation patient ({', '.join(validation)}): no model "
            "could be chosen; another --fold, or other --folds."
        )
    unseen = ", ".join(s.name for s in cohort.structures if s not in in_training)
    unjudged = ", ".join(s.name for s in cohort.structures if s not in in_validation)
    sentences = []
    if unseen:
        sentences.append(f"In NO training patient, so that the network cannot find it: {unseen}.")
    if unjudged:
        sentences.append(f"In no validation patient, so that no score counts it: {unjudged}.")
    return sentences


def _shown(cohort: Cohort, ids: Sequence[str]) -> list[Structure]:
    keys = set().union(*(cohort.shown[i] for i in ids))
    return [structure for structure in cohort.structures if structure.key in keys]
