"""A folder of small sounds with descriptions, a tokenizer and a codec of tiny size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer, EncodecConfig, EncodecModel

FIXTURES = Path(__file__).parents[1] / "fixtures"
RATE = 16000


def tone(seconds: float, frequency: float = 440.0, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def ramp(seconds: float, rate: int = RATE) -> np.ndarray:
    """A sound whose samples tell where they are: 0.1 at the start, 0.9 at the end."""
    return np.linspace(0.1, 0.9, int(seconds * rate), dtype=np.float32)


def write_sound(path: Path, audio: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def write_metadata_file(folder: Path, texts: dict[str, str | list[str]]):
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in texts.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    """What `datasets` builds stays in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eight sounds of 1 to 2.4 seconds, number i a tone of 200 (i + 1) Hz described as "tone i"."""
    path = tmp_path / "sounds"
    for i in range(8):
        write_sound(path / f"{i}.wav", tone(1.0 + 0.2 * i, 200.0 * (i + 1)))
    write_metadata_file(path, {f"{i}.wav": f"tone {i}" for i in range(8)})
    return path


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(FIXTURES / "audiocraft-tiny" / "t5")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """AudioCraft's layout, to be loaded with its own text encoder (`checkpoint / "t5"`)."""
    return Path(shutil.copytree(FIXTURES / "audiocraft-tiny", tmp_path_factory.mktemp("checkpoint") / "tiny"))


def make_codec(seed: int = 0) -> EncodecModel:
    torch.manual_seed(seed)
    config = EncodecConfig(
        sampling_rate=RATE,
        upsampling_ratios=[8, 5, 4, 2],
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=64,
        target_bandwidths=[1.2],
        normalize=False,
        use_causal_conv=False,
        pad_mode="constant",
    )
    codec = EncodecModel(config).eval()
    for layer in codec.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    return codec


@pytest.fixture(scope="session")
def codec() -> EncodecModel:
    return make_codec()
