"""Losses and distances between a reconstruction and its target; all take (batch, 1, samples) waveforms."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

MEL_LOSSES = ("msspec", "log_l1")


class MelSpectrogram(nn.Module):
    """Power spectrogram on the HTK mel scale, with triangular filters of height 1 and a frame every quarter window.

    Args:
        sampling_rate: in Hz.
        n_fft: length of the Hann window and of the transform, in samples.
        num_mels: number of filters. Where `n_fft` is small, filters narrower than a bin stay zero.
        min_frequency: lower edge of the first filter, in Hz; the last one ends at half the sampling rate.
        normalized: divide the power by the energy of the window.
    """

    def __init__(
        self, sampling_rate: int, n_fft: int, num_mels: int = 64, min_frequency: float = 64.0, normalized: bool = False
    ):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = n_fft // 4
        window = torch.hann_window(n_fft)
        filters = _mel_filters(sampling_rate, n_fft, num_mels, min_frequency)
        if normalized:
            filters = filters / window.pow(2).sum()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """(batch, 1, samples) -> (batch, num_mels, frames), one frame for each hop that the waveform begins."""
        padding = (self.n_fft - self.hop_length) // 2
        frames = math.ceil(audio.shape[-1] / self.hop_length)
        audio = F.pad(audio, (padding, padding), mode="reflect")[:, 0]
        audio = F.pad(audio, (0, (frames - 1) * self.hop_length + self.n_fft - audio.shape[-1]))
        spectrum = torch.stft(
            audio, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True
        )
        return self.filters @ torch.view_as_real(spectrum).pow(2).sum(-1)


def _mel_filters(sampling_rate: int, n_fft: int, num_mels: int, min_frequency: float) -> torch.Tensor:
    """(num_mels, n_fft // 2 + 1) float32."""
    with warnings.catch_warnings():
        # Short windows leave some filters without a bin; that is part of the loss's definition.
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        filters = mel_filter_bank(n_fft // 2 + 1, num_mels, min_frequency, sampling_rate / 2, sampling_rate)
    return torch.from_numpy(filters).float().T.contiguous()


class MultiScaleMelLoss(nn.Module):
    """Distance of mel spectrograms at several resolutions, averaged over them.

    Args:
        sampling_rate: in Hz.
        n_ffts: window lengths, in samples. Windows longer than a frame of codes, with filters enough, hear the buzz of
            a decoder that repeats itself from frame to frame (Kumar et al. 2023, arXiv 2306.06546).
        num_mels: filters, one number for all windows or one for each.
        min_frequency: see `MelSpectrogram`.
        floor: added to the power before the logarithm.
        kind: "msspec", AudioCraft's, is half the mean absolute difference of power plus half the mean squared one of
            its log10; loud parts decide it. "log_l1", the mean absolute difference of log10 power alone, hears quiet
            parts as well (Kumar et al. 2023, arXiv 2306.06546).
    """

    def __init__(
        self,
        sampling_rate: int,
        n_ffts: Sequence[int] = (64, 128, 256, 512, 1024),
        num_mels: int | Sequence[int] = 64,
        min_frequency: float = 64.0,
        floor: float = 1e-5,
        kind: str = "msspec",
    ):
        super().__init__()
        if kind not in MEL_LOSSES:
            raise ValueError(f"kind: got {kind!r}, takes {' or '.join(MEL_LOSSES)}")
        self.floor = floor
        self.kind = kind
        if isinstance(num_mels, int):
            num_mels = [num_mels] * len(n_ffts)
        self.scales = nn.ModuleList(
            MelSpectrogram(sampling_rate, n_fft, bins, min_frequency, normalized=True)
            for n_fft, bins in zip(n_ffts, num_mels, strict=True)
        )

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = 0.0
        for scale in self.scales:
            mel, target_mel = scale(estimate), scale(target)
            log_mel, log_target = torch.log10(self.floor + mel), torch.log10(self.floor + target_mel)
            if self.kind == "log_l1":
                loss = loss + F.l1_loss(log_mel, log_target)
            else:
                loss = loss + (F.l1_loss(mel, target_mel) + F.mse_loss(log_mel, log_target)) / 2
        return loss / len(self.scales)


class MelDistance(nn.Module):
    """Mean absolute difference of log10 mel power: 64 mels from 64 Hz, windows of 1024 samples; one value an item."""

    def __init__(self, sampling_rate: int, floor: float = 1e-5):
        super().__init__()
        self.floor = floor
        self.mel = MelSpectrogram(sampling_rate, n_fft=1024)

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(batch, 1, samples) twice -> (batch,)."""
        difference = torch.log10(self.floor + self.mel(estimate)) - torch.log10(self.floor + self.mel(target))
        return difference.abs().mean(dim=(1, 2))


def si_snr(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-noise ratio in dB (Le Roux et al. 2019, arXiv 1811.02508), higher is better.

    Both are centred first. A small constant keeps silence finite: a silent target gives about 0 or less.

    Returns:
        (batch,) for waveforms of (batch, 1, samples).
    """
    target = target[:, 0] - target[:, 0].mean(dim=-1, keepdim=True)
    estimate = estimate[:, 0] - estimate[:, 0].mean(dim=-1, keepdim=True)
    epsilon = torch.finfo(torch.float32).eps * target.shape[-1]
    scale = (estimate * target).sum(-1, keepdim=True) / (target.pow(2).sum(-1, keepdim=True) + epsilon)
    signal = scale * target
    noise = estimate - signal
    return 10 * torch.log10((signal.pow(2).sum(-1) + epsilon) / (noise.pow(2).sum(-1) + epsilon))


def discriminator_hinge_loss(real: Sequence[torch.Tensor], fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """Hinge loss of the discriminators: real logits should exceed 1, fake ones stay below -1; averaged over scales."""
    losses = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_hinge_loss(fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """Adversarial loss of the generator: minus the mean logit of its output, averaged over scales."""
    return -torch.stack([logits.mean() for logits in fake]).mean()


def feature_matching_loss(
    real: Sequence[Sequence[torch.Tensor]], fake: Sequence[Sequence[torch.Tensor]]
) -> torch.Tensor:
    """Mean absolute difference of the discriminators' feature maps, averaged over layers and then over scales."""
    scales = [
        torch.stack([F.l1_loss(f, r) for r, f in zip(real_maps, fake_maps, strict=True)]).mean()
        for real_maps, fake_maps in zip(real, fake, strict=True)
    ]
    return torch.stack(scales).mean()
