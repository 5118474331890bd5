"""SI-SNR and codebook statistics against values computed by hand."""

import math

import numpy as np
import pytest

from audiogen_hf.metrics import CodebookStatistics, si_snr


def test_si_snr_is_the_ratio_that_was_mixed_whatever_gain_and_offset():
    time = np.arange(1600) / 1600
    sound, noise = np.sin(2 * np.pi * 10 * time), np.cos(2 * np.pi * 10 * time)  # orthogonal, of equal energy
    for decibels in (-5, 0, 20):
        estimate = sound + noise * 10 ** (-decibels / 20)
        assert si_snr(0.3 * estimate + 2, sound - 1) == pytest.approx(decibels, abs=1e-9)
    assert si_snr(sound, sound) > 200
    assert si_snr(np.stack([sound + noise, sound + noise / 10]), np.stack([sound, sound])) == pytest.approx([0, 20])


@pytest.mark.parametrize(
    ("estimate", "reference", "message"),
    [
        (np.ones(4), np.ones(5), r"same shape, got \(4,\), \(5,\)"),
        (np.ones(4), np.ones(4), "reference is silent"),
        (np.array([np.nan, 0]), np.ones(2), "NaN"),
    ],
)
def test_si_snr_refuses_what_has_no_ratio(estimate, reference, message):
    with pytest.raises(ValueError, match=message):
        si_snr(estimate, reference)


def test_codebook_usage_is_counted_over_a_stream():
    statistics = CodebookStatistics(num_codebooks=2, codebook_size=8)
    statistics.update(np.array([[[0, 1, 2, 3], [5, 5, 5, 5]]]))  # (B, K, T)
    statistics.update(np.array([[0, 1, 2, 3], [5, 5, 5, 6]]))  # (K, T)
    even, peaked = statistics.compute()
    assert (even.entropy_bits, even.perplexity, even.used) == pytest.approx((2, 4, 0.5))
    entropy = -(7 / 8 * math.log2(7 / 8) + 1 / 8 * math.log2(1 / 8))
    assert (peaked.entropy_bits, peaked.used) == pytest.approx((entropy, 0.25))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((3, 4), dtype=int), r"shape \(..., 2, T\)"),
        (np.full((2, 4), 8), "0 ... 7, got 8"),
        (np.full((2, 4), -1), "0 ... 7, got -1"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, message):
    statistics = CodebookStatistics(num_codebooks=2, codebook_size=8)
    with pytest.raises(ValueError, match=message):
        statistics.update(codes)
    with pytest.raises(ValueError, match="no codes were counted"):
        statistics.compute()
