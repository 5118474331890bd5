"""Learning rates follow the formulas of the options' documentation."""

import math

import pytest
import torch

from audiogen_hf.training.schedules import build_schedule


def learning_rates(name, warmup_steps, max_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = build_schedule(optimizer, name, warmup_steps, max_steps)
    rates = []
    for _ in range(max_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("constant", lambda step: 1.0),
        ("cosine", lambda step: 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))),
        ("inverse_sqrt", lambda step: math.sqrt(4 / step)),
    ],
)
def test_schedules_warm_up_linearly_and_follow_their_formula(name, rate):
    expected = [2.0 * (step / 4 if step < 4 else rate(step)) for step in range(21)]
    assert learning_rates(name, 4, 20) == pytest.approx(expected, abs=1e-9)


def test_no_warm_up_starts_at_the_peak():
    assert learning_rates("constant", 0, 3) == [2.0] * 4


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="lr_schedule: got 'linear', takes one of constant, cosine, inverse_sqrt"):
        learning_rates("linear", 0, 3)
    with pytest.raises(ValueError, match="warmup_steps: got 0"):
        learning_rates("inverse_sqrt", 0, 3)
