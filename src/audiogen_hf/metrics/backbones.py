"""The models that turn sound into embeddings, tags or a space shared with text; each by name, with licence and source.

Only YAMNet ships with the package. The others are fetched by the packages they come from, when first asked for.
"""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

MIN_SECONDS = 0.15  # PaSST fails under it; a shorter rest of a longer sound is left out


class BackboneUnavailableError(OSError):
    """A backbone's package or weights are not here; the message says how to get them."""


@dataclass(frozen=True)
class AudioFeatures:
    """What a backbone says of one sound.

    Attributes:
        embeddings: (windows, D) float32, one a window of sound.
        probabilities: (C,) float32 distribution over the classes (softmax of the logits, mean over windows), or None
            for a backbone without classes.
    """

    embeddings: np.ndarray
    probabilities: np.ndarray | None


class Backbone:
    """A loaded backbone: sound in, [`AudioFeatures`] out; texts in, embeddings out, where it knows texts."""

    def __init__(self, info: BackboneInfo, model: Embedder, checkpoint: str):
        self.info = info
        self.model = model
        self.checkpoint = checkpoint

    def audio_features(self, waveform: np.ndarray, sampling_rate: int) -> AudioFeatures:
        """Embed and tag one sound; what is longer than the backbone hears at once is cut in segments of that length.

        Args:
            waveform: (N,) float samples in [-1, 1].
            sampling_rate: Its rate in Hz, which must be `info.sampling_rate`: nothing is resampled here.

        Raises:
            ValueError: Wrong rate or shape, samples that are not finite, or less than 0.15 s.
        """
        info = self.info
        if sampling_rate != info.sampling_rate:
            raise ValueError(f"{info.name} takes sound at {info.sampling_rate} Hz, got {sampling_rate} Hz")
        waveform = np.asarray(waveform, dtype=np.float32)
        min_samples = int(MIN_SECONDS * sampling_rate)
        if waveform.ndim != 1 or len(waveform) < min_samples:
            raise ValueError(f"waveform must have shape (N,) with N >= {min_samples}, got {waveform.shape}")
        if not np.isfinite(waveform).all():
            raise ValueError("waveform holds NaN or infinite samples")

        length = len(waveform) if info.max_seconds is None else int(info.max_seconds * sampling_rate)
        segments = [waveform[start : start + length] for start in range(0, len(waveform), length)]
        with torch.inference_mode():
            outputs = [self.model.embed_audio(segment) for segment in segments if len(segment) >= min_samples]
        embeddings = torch.cat([embeddings for embeddings, _ in outputs])
        probabilities = None
        if info.has_classes:
            probabilities = torch.cat([logits for _, logits in outputs]).float().softmax(dim=-1).mean(dim=0)
        return AudioFeatures(
            embeddings.float().cpu().numpy(), None if probabilities is None else probabilities.cpu().numpy()
        )

    def text_features(self, texts: list[str]) -> np.ndarray:
        """Embed texts: (B, D) float32. Raises `ValueError` if this backbone knows no texts."""
        if not self.info.has_text:
            raise ValueError(f"{self.info.name} embeds no texts; use {', '.join(backbones_with('has_text'))}")
        with torch.inference_mode():
            return self.model.embed_text(list(texts)).float().cpu().numpy()


@dataclass(frozen=True)
class BackboneInfo:
    """What must be known of a backbone to repeat a figure taken with it.

    Attributes:
        name: Name in this registry.
        sampling_rate: Rate it takes, in Hz.
        checkpoint: Its default weights.
        licence: Licence of the weights.
        source: Where model and weights come from.
        loader: Makes the embedder from a checkpoint and a device.
        max_seconds: What it hears at once; None if any length.
        has_classes: Whether it tags (KLD).
        has_text: Whether it embeds texts (consistency).
        requirement: How to install what it needs beyond this package's evaluation extra.
    """

    name: str
    sampling_rate: int
    checkpoint: str
    licence: str
    source: str
    loader: Callable[[str, torch.device], Embedder]
    max_seconds: float | None = None
    has_classes: bool = False
    has_text: bool = False
    requirement: str = ""


class Embedder(ABC):
    """One family of models, behind [`Backbone`]."""

    @abstractmethod
    def embed_audio(self, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N,) samples -> (windows, D) embeddings and (windows, C) logits or None."""


class TextEmbedder(Embedder):
    """A family that embeds texts beside sounds."""

    @abstractmethod
    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """B texts -> (B, D) embeddings."""


class YAMNetEmbedder(Embedder):
    def __init__(self, checkpoint: str, device: torch.device):
        from .yamnet import load_yamnet

        self.device = device
        self.model = load_yamnet().to(device)

    def embed_audio(self, waveform):
        logits, embeddings = self.model(torch.from_numpy(waveform).to(self.device))
        return embeddings, logits


class VGGishEmbedder(Embedder):
    """The 128 outputs before the last ReLU, neither whitened nor quantized: what Google's FAD takes."""

    def __init__(self, checkpoint: str, device: torch.device):
        from torchvggish.torchvggish import vggish

        from .yamnet import LogMel

        self.device = device
        self.log_mel = LogMel(log_offset=0.01).to(device)
        self.model = vggish(postprocess=False).eval().to(device)
        self.model.embeddings = self.model.embeddings[:-1]

    def embed_audio(self, waveform):
        samples = torch.from_numpy(waveform).to(self.device)
        samples = torch.nn.functional.pad(samples, (0, max(15_600 - len(samples), 0)))
        patches = self.log_mel(samples).unfold(0, 96, 96).transpose(1, 2)
        return self.model(patches.unsqueeze(1)), None


class PaSSTEmbedder(Embedder):
    def __init__(self, checkpoint: str, device: torch.device):
        from hear21passt.base import get_basic_model

        self.device = device
        with quiet():
            self.model = get_basic_model(mode="all", arch=checkpoint).eval().to(device)

    def embed_audio(self, waveform):
        with quiet():
            output = self.model(torch.from_numpy(waveform)[None].to(self.device))
        return output[:, 527:], output[:, :527]


class ASTEmbedder(Embedder):
    def __init__(self, checkpoint: str, device: torch.device):
        from transformers import ASTForAudioClassification, AutoFeatureExtractor

        self.feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
        self.model = ASTForAudioClassification.from_pretrained(checkpoint).eval().to(device)

    def embed_audio(self, waveform):
        inputs = self.feature_extractor(waveform, sampling_rate=16_000, return_tensors="pt").to(self.model.device)
        embeddings = self.model.audio_spectrogram_transformer(**inputs).pooler_output
        return embeddings, self.model.classifier(embeddings)


class CLAPEmbedder(TextEmbedder):
    def __init__(self, checkpoint: str, device: torch.device):
        from transformers import AutoProcessor, ClapModel

        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = ClapModel.from_pretrained(checkpoint).eval().to(device)

    def embed_audio(self, waveform):
        inputs = self.processor.feature_extractor(waveform, sampling_rate=48_000, return_tensors="pt")
        return self.model.get_audio_features(**inputs.to(self.model.device)).pooler_output, None

    def embed_text(self, texts):
        inputs = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**inputs.to(self.model.device)).pooler_output


class LaionCLAPEmbedder(TextEmbedder):
    """LAION's own code, for the checkpoints that transformers does not have."""

    def __init__(self, checkpoint: str, device: torch.device):
        import laion_clap

        with quiet():
            self.model = laion_clap.CLAP_Module(enable_fusion=False, amodel="HTSAT-base", device=str(device))
        self.model.model.load_state_dict(read_laion_checkpoint(checkpoint))
        self.device = device

    def embed_audio(self, waveform):
        samples = torch.from_numpy(waveform)[None].to(self.device)
        return self.model.get_audio_embedding_from_data(samples, use_tensor=True), None

    def embed_text(self, texts):
        return self.model.get_text_embedding(texts, use_tensor=True)


def read_laion_checkpoint(path: str) -> dict[str, torch.Tensor]:
    """Read a checkpoint of LAION's training code without running what a pickle may hold."""
    # Beside tensors these files hold the scores of their epoch, as numpy numbers.
    harmless = [
        np._core.multiarray.scalar,
        (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
        np.dtype,
        type(np.dtype(np.float64)),
    ]
    with torch.serialization.safe_globals(harmless):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    state = {name.removeprefix("module."): tensor for name, tensor in checkpoint["state_dict"].items()}
    state.pop("text_branch.embeddings.position_ids", None)  # a buffer until transformers 4.31
    return state


@contextlib.contextmanager
def quiet():
    """Swallow what hear21passt and laion_clap print for every sound."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


BACKBONES = {
    info.name: info
    for info in (
        BackboneInfo(
            name="yamnet",
            sampling_rate=16_000,
            checkpoint="yamnet.safetensors",
            licence="Apache-2.0",
            source="https://github.com/tensorflow/models/tree/master/research/audioset/yamnet",
            loader=YAMNetEmbedder,
            has_classes=True,
        ),
        BackboneInfo(
            name="vggish",
            sampling_rate=16_000,
            checkpoint="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
            licence="Apache-2.0",
            source="https://github.com/harritaylor/torchvggish",
            loader=VGGishEmbedder,
            requirement="pip install torchvggish resampy",
        ),
        BackboneInfo(
            name="passt",
            sampling_rate=32_000,
            checkpoint="passt_s_swa_p16_128_ap476",
            licence="Apache-2.0",
            source="https://github.com/kkoutini/PaSST",
            loader=PaSSTEmbedder,
            max_seconds=10.0,
            has_classes=True,
            requirement="pip install hear21passt",
        ),
        BackboneInfo(
            name="ast",
            sampling_rate=16_000,
            checkpoint="MIT/ast-finetuned-audioset-10-10-0.4593",
            licence="BSD-3-Clause",
            source="https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593",
            loader=ASTEmbedder,
            max_seconds=10.0,
            has_classes=True,
        ),
        BackboneInfo(
            name="clap",
            sampling_rate=48_000,
            checkpoint="laion/clap-htsat-unfused",
            licence="Apache-2.0",
            source="https://huggingface.co/laion/clap-htsat-unfused",
            loader=CLAPEmbedder,
            max_seconds=10.0,
            has_text=True,
        ),
        BackboneInfo(
            name="laion_clap",
            sampling_rate=48_000,
            checkpoint="music_audioset_epoch_15_esc_90.14.pt",
            licence="CC0-1.0",
            source="https://huggingface.co/lukewys/laion_clap",
            loader=LaionCLAPEmbedder,
            max_seconds=10.0,
            has_text=True,
            requirement="pip install laion_clap",
        ),
    )
}


def backbones_with(ability: str) -> list[str]:
    """Return the names of the backbones whose info has `ability` ("has_classes" or "has_text")."""
    return [name for name, info in BACKBONES.items() if getattr(info, ability)]


def load_backbone(name: str, checkpoint: str | None = None, device: str | torch.device = "cpu") -> Backbone:
    """Load a backbone by name.

    Args:
        name: One of `BACKBONES`.
        checkpoint: Other weights than its default: a repository of the Hub or a folder for "ast" and "clap", a file
            for "laion_clap", an architecture's name for "passt". "yamnet" and "vggish" have one set of weights.
        device: Where it runs.

    Raises:
        ValueError: There is no backbone of this name, or it has no other checkpoints.
        BackboneUnavailableError: Its package is not installed or its weights are not reachable.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {name!r}")
    info = BACKBONES[name]
    if checkpoint is not None and name in ("yamnet", "vggish"):
        raise ValueError(f"{name} has one set of weights and takes no checkpoint, got {checkpoint!r}")
    checkpoint = checkpoint or info.checkpoint
    try:
        model = info.loader(checkpoint, torch.device(device))
    except ImportError as error:
        raise BackboneUnavailableError(f"backbone {name} needs a package: {info.requirement} ({error})") from error
    except OSError as error:
        raise BackboneUnavailableError(
            f"backbone {name} cannot reach its weights {checkpoint!r}: be online once, or fetch them from "
            f"{info.source} and pass their place as its checkpoint "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    return Backbone(info, model, checkpoint)
