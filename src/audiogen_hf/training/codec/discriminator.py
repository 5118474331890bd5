"""The multi-scale STFT discriminator of EnCodec (Défossez et al. 2022, arXiv 2210.13438, section 3.4 and figure 2)."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

QUIETEST_POWER = 1e-7  # of a bin; below it compression tends to a constant gain


class STFTDiscriminator(nn.Module):
    """Convolutions over the complex spectrogram of one resolution; frequency halves three times, time is dilated.

    Args:
        n_fft: window length in samples.
        num_filters: channels of every hidden layer.
        compression: exponent of the magnitudes, their phases stay. With 1, as in the paper, what is quiet hardly moves
            the convolutions, and they need many steps to tell noise from its smooth copy.
        overlap: windows that hear each sample; the hop is `n_fft // overlap`.
    """

    def __init__(self, n_fft: int, num_filters: int = 32, compression: float = 1.0, overlap: int = 4):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = n_fft // overlap
        self.compression = compression
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        # Kernels, strides and dilations are (time, frequency).
        self.convs = nn.ModuleList([nn.Conv2d(2, num_filters, (3, 9), padding=(1, 4))])
        for dilation in (1, 2, 4):
            conv = nn.Conv2d(
                num_filters, num_filters, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4)
            )
            self.convs.append(weight_norm(conv))
        self.convs.append(weight_norm(nn.Conv2d(num_filters, num_filters, (3, 3), padding=1)))
        self.output = weight_norm(nn.Conv2d(num_filters, 1, (3, 3), padding=1))

    def forward(self, audio: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, 1, samples) -> logits (batch, 1, frames, frequencies / 8) and the five hidden feature maps."""
        spectrum = torch.stft(
            audio[:, 0], self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True
        )
        # The energy of the window is taken out: (batch, 2, frames, frequencies), real and imaginary parts.
        hidden = torch.view_as_real(spectrum / self.window.norm()).permute(0, 3, 2, 1)
        if self.compression != 1:
            power = hidden.pow(2).sum(dim=1, keepdim=True)
            hidden = hidden * (power + QUIETEST_POWER).pow((self.compression - 1) / 2)
        features = []
        for conv in self.convs:
            hidden = F.leaky_relu(conv(hidden), 0.3)
            features.append(hidden)
        return self.output(hidden), features


class MultiScaleSTFTDiscriminator(nn.Module):
    """One `STFTDiscriminator` for each window length; the defaults are AudioCraft's for EnCodec at 16 kHz."""

    def __init__(
        self,
        num_filters: int = 32,
        n_ffts: Sequence[int] = (1024, 2048, 512, 256, 128),
        compression: float = 1.0,
        overlap: int = 4,
    ):
        super().__init__()
        self.scales = nn.ModuleList(STFTDiscriminator(n_fft, num_filters, compression, overlap) for n_fft in n_ffts)

    def forward(self, audio: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """(batch, 1, samples) -> for every scale its logits, and its list of feature maps."""
        outputs = [scale(audio) for scale in self.scales]
        return [logits for logits, _ in outputs], [features for _, features in outputs]
