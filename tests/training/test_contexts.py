"""What passes are told of the ones before them in training."""

from __future__ import annotations

import pytest
import torch

from multipass.training.batches import random_state
from multipass.training.contexts import ContextOdds, RandContext

PARTNERS = [1, 0, 2]


def maps(sharpness: float = 4.0) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.softmax(torch.randn(4, 16, 16, 8) * sharpness, 0)


def context(seed: int, **odds: float) -> RandContext:
    never = dict.fromkeys(("blank", "corrupted", "blur", "shift", "remove"), 0.0)
    made = RandContext(ContextOdds(**never | odds), PARTNERS)
    made.set_random_state(state=random_state(seed))
    return made


@pytest.mark.parametrize("seed", range(30))
def test_every_context_is_a_distribution_or_blank(seed):
    odds = {"blank": 0.3, "corrupted": 0.4, "blur": 0.5, "shift": 0.5, "remove": 0.5}
    out = context(seed, **odds)(seed % 2, maps(), maps(9.0))
    assert out.min() >= -1e-5 and out.max() <= 1 + 1e-5
    assert not out.any() or out.sum(0).allclose(torch.ones(()), atol=1e-4)


def test_a_part_of_the_pelvis_always_has_a_context():
    told = [
        context(seed, blank=1.0)(index, maps(), maps()) for seed in range(9) for index in (0, 1)
    ]
    assert not any(out.any() for out in told[::2])
    assert all(torch.equal(out, maps()) for out in told[1::2])


@pytest.mark.parametrize("kind", ["blur", "shift", "remove", "corrupted"])
def test_each_disturbance_does_what_its_name_says(kind):
    found, reference = maps(), maps(9.0)
    out = context(1, **{kind: 1.0})(0, found, reference)
    assert not torch.equal(out, found)
    if kind == "blur":
        assert out.std() < 0.7 * found.std()
    elif kind == "remove":
        (gone,) = (c for c in (1, 2, 3) if not out[c].any())
        torch.testing.assert_close(out[0], found[0] + found[gone])
    elif kind == "corrupted":
        assert not torch.equal(out, reference)


def test_nothing_wraps_around_in_a_shift():
    """What comes in from outside is background, on whichever side."""
    found = torch.zeros(4, 16, 16, 8)
    found[1] = 1.0
    for seed in range(12):
        out = context(seed, shift=1.0)(0, found, found)
        shown = out[1].sum() / out[1].numel()
        empty = (out[0] == 1).float().mean()
        assert shown + empty == pytest.approx(1.0)
        assert shown < 1 or torch.equal(out, found)


def test_corrupted_references_have_each_kind_of_error():
    """Grown or shrunken bones, a swapped part: the sums of left and right change apart."""
    reference = torch.zeros(4, 32, 32, 16)
    reference[1, 4:12, 8:24, 4:12] = 1
    reference[2, 20:28, 8:24, 4:12] = 1
    reference[0] = 1 - reference[1:].sum(0)
    volumes = torch.stack(
        [context(s, corrupted=1.0)(1, reference, reference).sum((1, 2, 3)) for s in range(40)]
    )
    left, right = volumes[:, 1] / reference[1].sum(), volumes[:, 2] / reference[2].sum()
    assert left.min() < 0.8 < 1.2 < left.max()
    assert (left - right).abs().max() > 0.1
