"""The average of the weights, what last.pth holds of it, and the plan of a training."""

from __future__ import annotations

import pytest
import torch

from multipass.geometry.windows import COARSE_GRID_SIZE, GRID_SIZE
from multipass.training.plan import Plan, cosine
from multipass.training.state import State

CPU = torch.device("cpu")


class Line(torch.nn.Module):
    """A weight of one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(1, 1, bias=False)
        self.set(value)

    def set(self, value: float) -> None:
        torch.nn.init.constant_(self.inner.weight, value)


def averages(state: State, values: list[float]) -> list[float]:
    found = []
    for value in values:
        state.network.set(value)
        state.average.update_parameters(state.network)
        found.append(state.averaged_network.inner.weight.item())
    return found


def expected(decay: float, first: float, values: list[float]) -> list[float]:
    """The weights before the first update count; decay grows with the number of updates."""
    average, found = first, []
    for number, value in enumerate(values, start=1):
        kept = min(decay, (1 + number) / (10 + number))
        average = kept * average + (1 - kept) * value
        found.append(average)
    return found


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_follows_closely_at_first(decay):
    values = [3.0, -1.0, 4.0, 1.0, 5.0]
    state = State(Line(2.0), 0.1, 0.0, decay, CPU)
    assert averages(state, values) == pytest.approx(expected(decay, 2.0, values), rel=1e-6)
    weight = state.averaged_network.inner.weight
    assert not weight.requires_grad and not state.averaged_network.training


def test_the_average_of_a_resumed_run_goes_on():
    values = [3.0, -1.0, 4.0, 1.0, 5.0]
    first = State(Line(2.0), 0.1, 0.0, 0.9, CPU)
    averages(first, values[:2])
    held = first.state_dict()
    assert held["updates"] == 2 and list(held["average"]) == ["inner.weight"]
    second = State(Line(0.0), 0.1, 0.0, 0.9, CPU)
    second.load_state_dict(held)
    assert averages(second, values[2:]) == averages(first, values[2:])


def test_a_plan_goes_by_epochs_or_by_the_clock_whichever_is_further():
    state = State(Line(2.0), 0.1, 0.0, 0.9, CPU)
    plan = Plan(epochs=4, minutes=2.0, lr=0.5, coarse=0.5)
    state.epoch, state.seconds = 1, 30.0
    assert plan.done(state) == 0.25 and plan.done(state, 0.5) == 0.375
    state.seconds = 90.0
    assert plan.done(state) == 0.75 and not plan.is_over(state)
    plan.set_lr(state, 0.75)
    assert state.lr == pytest.approx(0.5 * cosine(0.75))
    assert [plan.window_size(d) for d in (0.49, 0.5)] == [COARSE_GRID_SIZE, GRID_SIZE]
    state.seconds = 120.0
    assert plan.is_over(state) and plan.out_of_time(state)
    assert Plan(epochs=1).is_over(state) and not Plan(epochs=2).is_over(state)
