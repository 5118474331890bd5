"""The balancer gives each loss its share of the gradient, whatever its scale."""

import json

import pytest
import torch

from audiogen_hf.training.codec.balancer import LossBalancer


def losses_of(output, scale=1.0):
    return {"big": 1000 * scale * output[:, 0].sum(), "small": 1e-3 * output[:, 1].sum()}


def test_gradients_get_the_shares_of_their_weights_in_the_first_call():
    output = torch.randn(4, 2, 8, requires_grad=True)
    gradient = LossBalancer({"big": 1.0, "small": 3.0}).gradient(losses_of(output), output)
    # Each loss's gradient has an equal norm for every item, so it leaves with norm weight / sum of weights.
    assert gradient[:, 0].norm(dim=1).tolist() == pytest.approx([0.25] * 4)
    assert gradient[:, 1].norm(dim=1).tolist() == pytest.approx([0.75] * 4)


def test_norms_are_averaged_over_calls_without_bias():
    balancer = LossBalancer({"big": 1.0, "small": 1.0}, decay=0.5)
    output = torch.randn(1, 2, 1, requires_grad=True)
    balancer.gradient(losses_of(output), output)
    gradient = balancer.gradient(losses_of(output, scale=4.0), output)
    average = (0.5 * 1000 + 4000) / 1.5
    assert gradient[0, 0, 0].item() == pytest.approx(0.5 * 4000 / average)
    assert gradient[0, 1, 0].item() == pytest.approx(0.5)


def test_a_loss_that_joins_later_starts_its_own_average_and_shares_are_of_those_present():
    balancer = LossBalancer({"big": 1.0, "small": 3.0}, decay=0.9)
    output = torch.randn(2, 2, 4, requires_grad=True)
    alone = balancer.gradient({"big": losses_of(output)["big"]}, output)
    assert alone[:, 0].norm(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert alone[:, 1].abs().max() == 0
    both = balancer.gradient(losses_of(output), output)
    assert both[:, 1].norm(dim=1).tolist() == pytest.approx([0.75, 0.75])


def test_without_measuring_the_gradient_is_that_of_the_averages_and_these_stay():
    measured, other = (LossBalancer({"big": 1.0, "small": 3.0}, decay=1.0) for _ in range(2))
    output = torch.randn(3, 2, 5, requires_grad=True)
    for balancer in (measured, other):
        # A loss that was never measured is, all the same.
        balancer.gradient(losses_of(output), output, measure_norms=balancer is measured)
    state = other.state_dict()
    # With a decay of 1, measuring the same norms again does not change their averages.
    expected = measured.gradient(losses_of(output), output)
    torch.testing.assert_close(other.gradient(losses_of(output), output, measure_norms=False), expected)
    assert other.state_dict() == state


def test_a_loss_without_gradient_gives_no_nan():
    output = torch.randn(2, 2, 4, requires_grad=True)
    gradient = LossBalancer({"big": 1.0, "small": 1.0}).gradient(losses_of(output, scale=0.0), output)
    assert torch.isfinite(gradient).all()


def test_state_survives_json_exactly():
    balancer, resumed = (LossBalancer({"big": 1.0, "small": 3.0}) for _ in range(2))
    output = torch.randn(3, 2, 5, requires_grad=True)
    balancer.gradient(losses_of(output, scale=0.1), output)
    resumed.load_state_dict(json.loads(json.dumps(balancer.state_dict())))
    assert torch.equal(balancer.gradient(losses_of(output), output), resumed.gradient(losses_of(output), output))
