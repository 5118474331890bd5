"""Losses agree with closed forms, with torch.stft and transformers' mel filters, and with AudioCraft's own values.

AudioCraft's values were computed once by AudioCraft 1.3.0 (its main branch; torch 2.13, torchaudio 2.11, CPU)
on the signals of `signals()`, with the classes and settings named beside each.
"""

import math
import warnings

import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from audiogen_hf.training.codec.losses import (
    MelDistance,
    MelSpectrogram,
    MultiScaleMelLoss,
    discriminator_hinge_loss,
    feature_matching_loss,
    generator_hinge_loss,
    si_snr,
)

RATE = 16000


def signals():
    """A chirp of one second, and the same with a tone of 3 kHz added; (1, 1, samples) each."""
    t = torch.arange(RATE) / RATE
    target = 0.1 * torch.sin(2 * math.pi * (200 * t + 1500 * t**2))
    estimate = target + 0.03 * torch.cos(2 * math.pi * 3000 * t)
    return estimate[None, None], target[None, None]


def test_losses_have_audiocrafts_values():
    # MultiScaleMelSpectrogramLoss(range 6 to 11, n_mels 64, f_min 64, normalized, no alphas), MelSpectrogramL1Loss
    # (n_fft 1024, hop 256, n_mels 64, f_min 64) and SISNR over the whole second.
    assert MultiScaleMelLoss(RATE)(*signals()).item() == pytest.approx(0.18983144, rel=1e-5)
    assert MelDistance(RATE)(*signals()).item() == pytest.approx(0.19676481, rel=1e-5)
    assert si_snr(*signals()).item() == pytest.approx(10.466542, rel=1e-5)


def test_the_mel_loss_is_the_mean_over_its_windows_each_with_filters_of_its_own():
    both = MultiScaleMelLoss(RATE, [512, 2048], [32, 200])(*signals())
    alone = [MultiScaleMelLoss(RATE, [n_fft], bins)(*signals()) for n_fft, bins in ((512, 32), (2048, 200))]
    torch.testing.assert_close(both, sum(alone) / 2)


def test_the_log_mel_loss_hears_a_quiet_part_as_well_as_a_loud_one():
    generator = torch.Generator().manual_seed(0)
    loud, other = 0.3 * torch.randn(2, 1, 1, RATE, generator=generator)
    ratios = {}
    for kind in ("msspec", "log_l1"):
        loss = MultiScaleMelLoss(RATE, [512], 32, floor=1e-9, kind=kind)
        ratios[kind] = (loss(other / 30, loud / 30) / loss(other, loud)).item()
    assert ratios["log_l1"] == pytest.approx(1, rel=1e-3) and ratios["msspec"] < 0.6


def test_the_log_mel_loss_of_another_level_is_the_difference_in_log10_of_power():
    noise = torch.randn(1, 1, RATE, generator=torch.Generator().manual_seed(0))
    loss = MultiScaleMelLoss(RATE, [256, 1024], 32, floor=1e-12, kind="log_l1")
    assert loss(noise / 10, noise).item() == pytest.approx(2, rel=1e-4)
    with pytest.raises(ValueError, match="kind: got 'l2', takes msspec or log_l1"):
        MultiScaleMelLoss(RATE, kind="l2")


def test_long_windows_hear_noise_that_repeats_itself_from_frame_to_frame():
    generator = torch.Generator().manual_seed(0)
    noise, other = 0.1 * torch.randn(2, 1, 1, RATE, generator=generator)
    repeated = other[..., :320].repeat(1, 1, 50)

    def ratio(n_fft, bins):
        loss = MultiScaleMelLoss(RATE, [n_fft], bins)
        return loss(repeated, noise) / loss(other, noise)

    assert ratio(256, 32) < 1.5 < 3 < ratio(4096, 512)


def test_the_mel_spectrogram_is_stft_power_through_the_librarys_filters():
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(2, 1, 1024, generator=generator)
    padded = torch.nn.functional.pad(audio, (96, 96), mode="reflect")[:, 0]  # (256 - 64) / 2 on either side
    power = torch.stft(padded, 256, 64, window=torch.hann_window(256), center=False, return_complex=True).abs() ** 2
    filters = torch.from_numpy(mel_filter_bank(129, 20, 64.0, 8000.0, RATE)).float()
    expected = torch.einsum("bft,fm->bmt", power, filters)
    torch.testing.assert_close(MelSpectrogram(RATE, 256, num_mels=20)(audio), expected)


def test_a_tone_lights_the_filter_of_its_frequency_with_the_power_of_its_window():
    t = torch.arange(RATE) / RATE
    mel = MelSpectrogram(RATE, 1024, num_mels=64, normalized=True)
    tone = torch.cos(2 * math.pi * 1000 * t)[None, None]
    spectrogram = mel(tone)[0, :, 20]
    centres = 700 * (10 ** (torch.linspace(mel_of(64), mel_of(8000), 66)[1:-1] / 2595) - 1)
    assert spectrogram.argmax() == (centres - 1000).abs().argmin()
    # A cosine of amplitude 1 has the power (sum of the window / 2)^2 at its bin, here over the window's energy.
    window = torch.hann_window(1024)
    bin_power = (window.sum() / 2) ** 2 / window.pow(2).sum()
    # Filters are triangles that sum to 1 at a bin between two centres; leakage of the Hann window adds 2 * (1/2)^2.
    assert spectrogram.sum() == pytest.approx(1.5 * bin_power.item(), rel=0.02)


def mel_of(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


@pytest.mark.parametrize("samples", [16000, 15999, 15873, 1025])
def test_every_hop_that_a_waveform_begins_has_a_frame(samples):
    assert MelSpectrogram(RATE, 1024)(torch.randn(1, 1, samples)).shape == (1, 64, math.ceil(samples / 256))


def test_distances_vanish_for_equal_sounds_and_scale_as_logarithms():
    estimate, target = signals()
    assert MultiScaleMelLoss(RATE)(target, target).item() == 0
    assert MelDistance(RATE, floor=1e-20)(10 * estimate, estimate).item() == pytest.approx(2.0, rel=1e-4)
    assert MelDistance(RATE)(torch.cat([estimate, target]), torch.cat([target, target])).shape == (2,)


def test_the_loss_has_a_finite_gradient_at_silence():
    silence = torch.zeros(1, 1, RATE, requires_grad=True)
    MultiScaleMelLoss(RATE)(silence, signals()[1]).backward()
    assert torch.isfinite(silence.grad).all()


def test_si_snr_is_the_ratio_of_powers_and_ignores_scale_and_offset():
    t = torch.arange(RATE) / RATE
    target = torch.sin(2 * math.pi * 100 * t)[None, None]
    noise = torch.cos(2 * math.pi * 100 * t)[None, None]  # orthogonal to the target and of equal power
    for ratio_db in (-10.0, 0.0, 25.0):
        estimate = target + 10 ** (-ratio_db / 20) * noise
        assert si_snr(estimate, target).item() == pytest.approx(ratio_db, abs=0.01)
        assert si_snr(3 * estimate + 0.5, target).item() == pytest.approx(ratio_db, abs=0.01)


def test_si_snr_of_silence_is_finite():
    silence, (estimate, target) = torch.zeros(1, 1, RATE), signals()
    assert si_snr(silence, silence).item() == pytest.approx(0)
    assert math.isfinite(si_snr(silence, target).item())
    assert -60 < si_snr(estimate, silence).item() < 0


def test_hinge_losses_have_their_closed_form():
    real = [torch.tensor([2.0, 0.5]), torch.tensor([-1.0])]
    fake = [torch.tensor([-2.0, 0.5]), torch.tensor([3.0])]
    # First scale: mean(0, 0.5) + mean(0, 1.5) = 1; second: 2 + 4 = 6.
    assert discriminator_hinge_loss(real, fake).item() == pytest.approx(3.5)
    assert generator_hinge_loss(fake).item() == pytest.approx(-(-0.75 + 3.0) / 2)


def test_feature_matching_averages_layers_then_scales():
    real = [[torch.zeros(4), torch.ones(2)], [torch.zeros(1)]]
    fake = [[torch.full((4,), 0.5), torch.ones(2)], [torch.tensor([-3.0])]]
    assert feature_matching_loss(real, fake).item() == pytest.approx(((0.5 + 0) / 2 + 3) / 2)


def test_short_windows_build_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = MultiScaleMelLoss(RATE)
    silence = torch.zeros(1, 1, RATE)
    assert loss(silence, silence).item() == 0
