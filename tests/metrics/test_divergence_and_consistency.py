"""KL divergence, text consistency and their interval against values computed by hand."""

import math

import numpy as np
import pytest

from audiogen_hf.metrics import bootstrap_mean_interval, kl_divergence, text_consistency


def test_kl_is_that_of_the_target_against_the_generated():
    target = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    generated = np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]])
    expected = [0.5 * math.log(2), math.log(10)]  # the other direction would be infinite
    np.testing.assert_allclose(kl_divergence(target, generated), expected, atol=2e-5)
    np.testing.assert_allclose(kl_divergence(target, generated, epsilon=0), expected, rtol=1e-12)


def test_a_class_that_is_not_generated_costs_what_epsilon_says():
    value = kl_divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    assert value[0] == pytest.approx(-math.log(1e-6))


def test_equal_distributions_diverge_by_no_more_than_epsilon():
    tags = np.full((1, 521), 1 / 521)
    assert -1e-3 < kl_divergence(tags, tags)[0] <= 0


@pytest.mark.parametrize(
    ("target", "generated", "message"),
    [
        (np.full((2, 4), 0.25), np.full((3, 4), 0.25), r"same shape, got \(2, 4\) and \(3, 4\)"),
        (np.full((1, 4), 0.25), np.full((1, 4), 0.5), "generated must hold probabilities.*row 0 sums to 2"),
        (np.array([[1.5, -0.5]]), np.array([[0.5, 0.5]]), "target must hold probabilities.*minimum of -0.5"),
        (np.array([[np.nan, 1.0]]), np.array([[0.5, 0.5]]), "target must hold probabilities"),
        (np.zeros((0, 4)), np.zeros((0, 4)), "N > 0"),
    ],
)
def test_kl_refuses_what_is_no_pair_of_distributions(target, generated, message):
    with pytest.raises(ValueError, match=message):
        kl_divergence(target, generated)


def test_consistency_is_the_cosine_of_each_pair():
    text = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    audio = np.array([[3.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_allclose(text_consistency(text, audio), [1, -1, math.sqrt(0.5)], rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "audio", "message"),
    [
        (np.ones((2, 3)), np.ones((1, 3)), "same shape"),
        (np.ones((1, 3)), np.zeros((1, 3)), "audio_embeddings .* row 0"),
        (np.full((1, 3), np.inf), np.ones((1, 3)), "text_embeddings .* row 0"),
        (np.ones(3), np.ones(3), r"shape \(N, D\)"),
    ],
)
def test_consistency_refuses_what_has_no_direction(text, audio, message):
    with pytest.raises(ValueError, match=message):
        text_consistency(text, audio)


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).exponential(size=400)
    low, high = bootstrap_mean_interval(values, num_resamples=4000)
    margin = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert high == pytest.approx(values.mean() + margin, abs=0.1 * margin)
    assert bootstrap_mean_interval(values[:1]) is None
