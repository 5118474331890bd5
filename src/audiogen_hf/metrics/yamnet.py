"""YAMNet: AudioSet tags and embeddings of mono sound at 16 kHz, with its weights in the package.

A MobileNet v1 over log-mel patches of 0.96 s, trained on AudioSet by Google. The front end and the layers follow
https://github.com/tensorflow/models/tree/master/research/audioset/yamnet (Apache-2.0); the weights are converted by
utils/convert_yamnet.py, and their notice lies beside them in assets/.
"""

import csv
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import pad

ASSETS = Path(__file__).parent / "assets"

SAMPLING_RATE = 16_000
FRAME_LENGTH, FRAME_STEP, FFT_LENGTH = 400, 160, 512  # 25 ms windows every 10 ms
NUM_MEL_BANDS = 64
PATCH_FRAMES, PATCH_STEP = 96, 48  # 0.96 s every 0.48 s
LOG_OFFSET = 1e-3
MIN_SAMPLES = (PATCH_FRAMES - 1) * FRAME_STEP + FRAME_LENGTH  # one patch

# (stride, channels out) of the thirteen depthwise-separable blocks after the first convolution
BLOCKS = [(1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024)]


def mel_filters(num_bins: int = FFT_LENGTH // 2 + 1, low_hz: float = 125.0, high_hz: float = 7500.0) -> np.ndarray:
    """Return the (num_bins, 64) triangular filters of the HTK mel scale, as float32.

    The triangles are drawn over mels, not Hertz, and the bin of 0 Hz belongs to none.
    """

    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0.0, SAMPLING_RATE / 2, num_bins))[:, None]
    edges = np.linspace(mel(low_hz), mel(high_hz), NUM_MEL_BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    filters = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    filters[0] = 0.0
    return filters.astype(np.float32)


class LogMel(nn.Module):
    """(N,) samples -> (frames, 64) logarithms of the mel-weighted magnitude spectrum."""

    def __init__(self, log_offset: float):
        super().__init__()
        self.log_offset = log_offset
        self.register_buffer("window", torch.hann_window(FRAME_LENGTH, periodic=True), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters()), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        frames = waveform.unfold(0, FRAME_LENGTH, FRAME_STEP) * self.window
        return torch.log(torch.fft.rfft(frames, FFT_LENGTH).abs() @ self.filters + self.log_offset)


class ConvolutionBlock(nn.Module):
    """Convolution, batch normalization without a scale, ReLU; padded as TensorFlow's "SAME" pads."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels_out, kernel_size, stride, groups=groups, bias=False)
        self.normalization = nn.BatchNorm2d(channels_out, eps=1e-4)
        # For the even inputs here, "SAME" puts the odd cell of padding at the end: (0, 1) for stride 2.
        total = kernel_size - stride
        self.padding = (total // 2, total - total // 2) * 2 if kernel_size > 1 else (0, 0, 0, 0)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.normalization(self.convolution(pad(hidden_states, self.padding))))


class YAMNet(nn.Module):
    """The network: (N,) samples at 16 kHz -> (patches, 521) logits and (patches, 1024) embeddings."""

    def __init__(self):
        super().__init__()
        self.log_mel = LogMel(LOG_OFFSET)
        self.layers = nn.Sequential(ConvolutionBlock(1, 32, kernel_size=3, stride=2))
        channels = 32
        for stride, channels_out in BLOCKS:
            self.layers.append(ConvolutionBlock(channels, channels, kernel_size=3, stride=stride, groups=channels))
            self.layers.append(ConvolutionBlock(channels, channels_out, kernel_size=1))
            channels = channels_out
        self.classifier = nn.Linear(channels, 521)

    def patches(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return (patches, 96, 64) log-mel patches; the end is padded with zeros to a whole step, as YAMNet does."""
        missing = max(MIN_SAMPLES - len(waveform), 0)
        if not missing:
            step = PATCH_STEP * FRAME_STEP
            missing = math.ceil((len(waveform) - MIN_SAMPLES) / step) * step - (len(waveform) - MIN_SAMPLES)
        log_mel = self.log_mel(pad(waveform, (0, missing)))
        return log_mel.unfold(0, PATCH_FRAMES, PATCH_STEP).transpose(1, 2)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tag one sound.

        Args:
            waveform: (N,) float32 samples in [-1, 1] at 16 kHz, N > 0.

        Returns:
            logits: (patches, 521), whose sigmoid is YAMNet's score of each AudioSet class.
            embeddings: (patches, 1024), the average over time and frequency of the last layer.
        """
        embeddings = self.layers(self.patches(waveform).unsqueeze(1)).mean(dim=(2, 3))
        return self.classifier(embeddings), embeddings


def load_yamnet() -> YAMNet:
    """Return YAMNet with its released weights, in float32, for evaluation."""
    model = YAMNet()
    state = {name: tensor.float() for name, tensor in load_file(ASSETS / "yamnet.safetensors").items()}
    for name, parameter in model.state_dict().items():
        if name.endswith("normalization.weight"):  # the original has no scale
            state[name] = torch.ones_like(parameter)
        elif name.endswith("num_batches_tracked"):
            state[name] = parameter
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@cache
def class_names() -> tuple[str, ...]:
    """Return the 521 AudioSet class names in the order of YAMNet's logits."""
    with open(ASSETS / "yamnet_class_map.csv", newline="", encoding="utf-8") as file:
        return tuple(row["display_name"] for row in csv.DictReader(file))
