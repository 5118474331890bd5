"""The average of weights has its closed form, covers what a model saves, and is exact after a reload."""

import pytest
import torch
from torch import nn

from audiogen_hf.training.ema import ExponentialMovingAverage


def module_with(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    module.register_buffer("codebook", torch.zeros(2))
    module.register_buffer("count", torch.zeros(1, dtype=torch.int64))
    module.register_buffer("scratch", torch.zeros(1), persistent=False)
    set_to(module, value)
    return module


def set_to(module, value):
    with torch.no_grad():
        module.weight.fill_(value)
        module.codebook.fill_(10 * value)


def test_the_average_is_the_unbiased_weighted_mean_of_the_updates():
    module = module_with(-5.0)  # the starting value must leave no trace
    ema = ExponentialMovingAverage(module, decay=0.5)
    for value in (1.0, 2.0, 4.0):
        set_to(module, value)
        ema.update(module)
    expected = (0.25 * 1 + 0.5 * 2 + 1 * 4) / 1.75
    assert ema.averages.keys() == {"weight", "codebook"}
    assert ema.averages["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert ema.averages["codebook"].tolist() == pytest.approx([10 * expected] * 2, rel=1e-6)


def test_applied_weights_last_for_the_block_and_the_own_ones_come_back_even_after_an_error():
    module = module_with(1.0)
    ema = ExponentialMovingAverage(module, decay=0.9)
    ema.update(module)
    set_to(module, 3.0)
    with pytest.raises(RuntimeError), ema.applied_to(module):
        assert module.weight.item() == 1.0
        assert module.codebook.tolist() == [10.0, 10.0]
        raise RuntimeError
    assert module.weight.item() == 3.0
    assert module.codebook.tolist() == [30.0, 30.0]
    assert module.weight.requires_grad


def test_a_reloaded_average_goes_on_exactly():
    module = module_with(0.1)
    first, second = (ExponentialMovingAverage(module, decay=0.99) for _ in range(2))
    for value in (0.3, 0.7):
        set_to(module, value)
        first.update(module)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    set_to(module, 1.3)
    first.update(module)
    second.update(module)
    assert all(torch.equal(first.averages[name], second.averages[name]) for name in first.averages)


def test_another_models_average_and_a_bad_decay_are_refused():
    module = module_with(0.1)
    ema = ExponentialMovingAverage(module, decay=0.5)
    with pytest.raises(ValueError, match="of another model; the first name that differs: bias"):
        ema.load_state_dict({**ema.state_dict(), "bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"ema_decay: got 1\.0"):
        ExponentialMovingAverage(module, decay=1.0)
