"""Muon, against torch's own where that computes in bfloat16, and against AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import Parameter

from multipass.model.network import MultiPassUNet
from multipass.training.optimizer import MOMENTUM, UPDATE_RMS, Muon, orthogonal

LR, DECAY = 0.01, 0.1
BFLOAT16 = 0.03  # what 8 bits of mantissa leave of an update of about 1, after five rounds


def with_gradients(parameters: list[Parameter], seed: int) -> list[Parameter]:
    draw = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    return parameters


def network() -> list[Parameter]:
    torch.manual_seed(0)
    return list(MultiPassUNet(3, (4, 4, 8, 8)).parameters())


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (7, 7), (1, 9)])
def test_directions_become_equally_long_and_keep_their_sides(shape):
    torch.manual_seed(1)
    (found,) = orthogonal([matrix := torch.randn(shape)])
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ found @ vt.T
    assert turned.diagonal().min() > 0.6 and turned.diagonal().max() < 1.3
    assert torch.allclose(turned, turned.diagonal().diag(), atol=1e-4)


def test_orthogonal_knows_no_scale_and_stands_zeros():
    torch.manual_seed(2)
    matrix = torch.randn(6, 30)
    one, other, nothing = orthogonal([matrix, 1e-4 * matrix, torch.zeros(6, 30)])
    assert torch.allclose(one, other, atol=1e-4)
    assert torch.equal(nothing, torch.zeros(6, 30))


def test_matrices_of_any_shapes_together_are_as_each_alone():
    torch.manual_seed(4)
    matrices = [torch.randn(shape) for shape in ((6, 30), (30, 6), (4, 9), (6, 6), (12, 7))]
    for together, matrix in zip(orthogonal(matrices), matrices, strict=True):
        torch.testing.assert_close(together, orthogonal([matrix])[0])
        assert together.shape == matrix.shape


def test_it_steps_as_the_muon_of_torch():
    first, weight, last = with_gradients([Parameter(torch.randn(8, 2, 3, 3, 3)) for _ in "abc"], 3)
    matrix = Parameter(weight.detach().flatten(1).clone())
    theirs = torch.optim.Muon([matrix], LR, DECAY, MOMENTUM, adjust_lr_fn="match_rms_adamw")
    ours = Muon([first, weight, last], LR, DECAY)
    for seed in range(3):
        with_gradients([first, weight, last], seed)
        matrix.grad = weight.grad.flatten(1)
        before = matrix.detach().clone()
        ours.step()
        theirs.step()
        size = (matrix - before).detach().square().mean().sqrt()
        assert size.item() == pytest.approx(LR * UPDATE_RMS, rel=0.3)
        assert (weight.flatten(1) - matrix).abs().max() < BFLOAT16 * LR * UPDATE_RMS * 54**0.5


def test_the_first_and_last_convolution_and_all_vectors_are_adamws():
    ours, theirs = network(), network()
    muon = Muon(ours, LR, DECAY)
    adamw = torch.optim.AdamW(theirs, LR, weight_decay=DECAY)
    for seed in range(3):
        with_gradients(ours, seed)
        with_gradients(theirs, seed)
        muon.step()
        adamw.step()
    convolutions = [i for i, parameter in enumerate(ours) if parameter.ndim > 2]
    inner = set(convolutions[1:-1])
    assert len(inner) > 10
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b) == (i not in inner)


def test_it_goes_on_from_its_state():
    straight = network()
    optimizer = Muon(straight, LR, DECAY)
    with_gradients(straight, 0)
    optimizer.step()
    stopped = copy.deepcopy(straight)
    again = Muon(stopped, 1.0, 0.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameters, steps in ((straight, optimizer), (stopped, again)):
        with_gradients(parameters, 1)
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped, strict=True))
