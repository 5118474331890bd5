"""YAMNet in torch against TensorFlow's own output and against a second implementation in NumPy."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import load_file
from testing_utils import FIXTURES

from audiogen_hf.audio_utils import read_audio
from audiogen_hf.metrics.yamnet import ASSETS, MIN_SAMPLES, class_names, load_yamnet

SOUNDS = FIXTURES / "metrics"


@pytest.fixture(scope="module")
def yamnet():
    return load_yamnet()


def read(name: str) -> np.ndarray:
    return read_audio(SOUNDS / name)[0]


def numpy_log_mel(samples: np.ndarray) -> np.ndarray:
    """YAMNet's front end from its description, in float64: discrete Fourier transform by its definition."""
    time = np.arange(400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * time / 400)
    frames = sliding_window_view(samples.astype(np.float64), 400)[::160] * window
    transform = np.exp(-2j * np.pi * np.outer(time, np.arange(257)) / 512)
    magnitude = np.abs(frames @ transform)

    def mel(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    filters = np.zeros((257, 64))
    edges = np.linspace(mel(125), mel(7500), 66)
    for bin_number in range(1, 257):
        place = mel(bin_number * 16000 / 512)
        for band in range(64):
            low, centre, high = edges[band : band + 3]
            rising, falling = (place - low) / (centre - low), (high - place) / (high - centre)
            filters[bin_number, band] = max(0, min(rising, falling))
    return np.log(magnitude @ filters + 0.001)


def numpy_layers(patch: np.ndarray) -> list[np.ndarray]:
    """The layers' outputs for a (96, 64) patch, in float64, height and width before channels."""
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(ASSETS / "yamnet.safetensors").items()}
    strides = [2, *[stride for pair in ((s, 1) for s in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)) for stride in pair]]
    outputs, hidden = [], patch[..., None]
    for layer, stride in enumerate(strides):
        kernel = weights[f"layers.{layer}.convolution.weight"]
        if kernel.shape[-1] == 3:
            before = 0 if stride == 2 else 1
            padded = np.pad(hidden, ((before, 1), (before, 1), (0, 0)))
            windows = sliding_window_view(padded, (3, 3), axis=(0, 1))[::stride, ::stride]
            is_depthwise = layer > 0
            if is_depthwise:
                hidden = np.einsum("hwcij,cij->hwc", windows, kernel[:, 0])
            else:
                hidden = np.einsum("hwcij,ocij->hwo", windows, kernel)
        else:
            hidden = hidden @ kernel[:, :, 0, 0].T
        mean, variance, beta = (
            weights[f"layers.{layer}.normalization.{name}"] for name in ("running_mean", "running_var", "bias")
        )
        hidden = np.maximum((hidden - mean) / np.sqrt(variance + 1e-4) + beta, 0)
        outputs.append(hidden)
    return outputs


@pytest.mark.parametrize("name", ["car_horn", "fireworks"])
def test_scores_and_embeddings_equal_tensorflows(yamnet, name):
    expected = np.load(SOUNDS / "yamnet_tensorflow.npz")
    logits, embeddings = yamnet(torch.from_numpy(read(f"{name}.flac")))
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), expected[f"{name}.scores"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(embeddings.numpy(), expected[f"{name}.embeddings"], rtol=0, atol=1e-4)


def test_front_end_and_every_layer_equal_a_numpy_implementation(yamnet):
    samples = read("fireworks.flac")[:MIN_SAMPLES]
    log_mel = numpy_log_mel(samples)
    np.testing.assert_allclose(yamnet.log_mel(torch.from_numpy(samples)).numpy(), log_mel, rtol=0, atol=1e-4)

    expected = numpy_layers(log_mel)
    hidden = yamnet.patches(torch.from_numpy(samples)).unsqueeze(1)
    assert len(expected) == len(yamnet.layers) == 27
    for layer, output in zip(yamnet.layers, expected, strict=True):
        hidden = layer(hidden)
        np.testing.assert_allclose(hidden[0].permute(1, 2, 0).numpy(), output, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "patches"),
    [(1, 1), (MIN_SAMPLES, 1), (MIN_SAMPLES + 1, 2), (MIN_SAMPLES + 7680, 2), (MIN_SAMPLES + 7681, 3), (160_000, 20)],
)
def test_sounds_are_padded_to_whole_patches(yamnet, samples, patches):
    # The numbers of patches that TensorFlow's model returns for these lengths.
    assert yamnet.patches(torch.zeros(samples)).shape == (patches, 96, 64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("car_horn.flac", "Vehicle horn, car horn, honking"),
        ("rain_0.ogg", "Water"),
        ("engine_0.ogg", "Vehicle"),
    ],
)
def test_real_sounds_get_a_sensible_top_class(yamnet, name, expected):
    logits, _ = yamnet(torch.from_numpy(read(name)))
    assert class_names()[int(torch.sigmoid(logits).mean(dim=0).argmax())] == expected


def test_there_is_a_name_for_each_class(yamnet):
    assert len(class_names()) == len(set(class_names())) == yamnet.classifier.out_features == 521


def test_the_notice_of_the_weights_is_beside_them():
    assert "Apache License, Version 2.0" in (ASSETS / "YAMNET_NOTICE.txt").read_text(encoding="utf-8")
    assert (ASSETS / "yamnet.safetensors").stat().st_size < 8e6
