"""The token cache: a dataset encoded once, as shards of parquet with codes and texts, and read back in place of sound.

folder/token_cache.json      what it was made with, and how many shards make it complete
folder/shard-00000.parquet   codes: list of K lists of uint16; text: list of strings; path; start (seconds);
                             text_states (optional): for each text the bytes of (L, D) float32;
                             sound (optional): the bytes of (N,) int16, mono at the tokenizer's rate
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import EncodecModel, PreTrainedModel
from transformers.utils import logging

from .clips import Clip, ClipReader, UnusableClipError, draw_text
from .loader import collate_audio, frame_mask

logger = logging.get_logger(__name__)

DESCRIPTION_FILE = "token_cache.json"
INT16_SCALE = 2**15 - 1
NUM_CLIPS, NUM_SKIPPED = "audiogen_hf.num_clips", "audiogen_hf.num_skipped"  # in the metadata of a shard

# The settings of an EnCodec model that its codes depend on; the weights follow.
_CODEC_SETTINGS = (
    "audio_channels", "chunk_length_s", "codebook_dim", "codebook_size", "compress", "dilation_growth_rate",
    "kernel_size", "last_kernel_size", "norm_type", "normalize", "num_lstm_layers", "num_residual_layers", "overlap",
    "pad_mode", "residual_kernel_size", "sampling_rate", "target_bandwidths", "upsampling_ratios", "use_causal_conv",
    "use_conv_shortcut",
)  # fmt: skip


def tokenizer_fingerprint(codec: EncodecModel) -> str:
    """Hash (sha256) of all that the codes of a codec depend on: settings, encoder weights and codebooks.

    Two codecs that differ in the decoder alone share their codes and this value. The weights count as they are: one
    cast to another dtype is another tokenizer.
    """
    settings = {name: getattr(codec.config, name, None) for name in _CODEC_SETTINGS}
    weights = {
        name: tensor
        for name, tensor in codec.state_dict().items()
        if name.startswith("encoder.") or (name.startswith("quantizer.") and name.endswith(".embed"))
    }
    return _fingerprint(settings, weights)


def text_encoder_fingerprint(text_encoder: PreTrainedModel) -> str:
    """Hash (sha256) of the weights of a text encoder."""
    return _fingerprint({}, text_encoder.state_dict())


def _fingerprint(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def write_token_cache(
    folder: str | os.PathLike,
    rows: datasets.Dataset | datasets.IterableDataset,
    codec: EncodecModel,
    *,
    source: str = "",
    segment_duration: float = 10.0,
    min_segment_ratio: float = 1.0,
    num_codebooks: int | None = None,
    text_encoder: PreTrainedModel | None = None,
    processor: Callable[..., Any] | None = None,
    with_sound: bool = False,
    batch_size: int = 16,
    rows_per_shard: int = 500,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode a dataset into a folder of shards.

    A sound longer than `segment_duration` becomes several clips that follow one another. All processes of an
    `accelerate launch` share the work by shards, in one file system. A shard appears under its name when it is
    complete; after an interruption the same call, with any number of processes, goes on with the missing ones.

    Args:
        folder: Where to write; made if missing.
        rows: What `load_audio_text_dataset` gave.
        codec: The tokenizer, on the device that is to encode.
        source: Name of the dataset, kept in the description of the cache.
        segment_duration: Length of a clip, in seconds.
        min_segment_ratio: Share of a last segment that must hold sound (see `ClipReader.windows`).
        num_codebooks: Codebooks to keep, from the first on. Default: all of the codec.
        text_encoder: Keep the states of this encoder for each text, too.
        processor: `AudioGenProcessor` or tokenizer of the text encoder.
        with_sound: Keep the sound beside its codes, in 16 bits, so that a decoder can learn from them
            (`load_coded_sound`).
        batch_size: Clips encoded at once.
        rows_per_shard: Rows of the dataset that make a shard.
        progress: Show a progress bar.

    Returns:
        The description, as written to `token_cache.json`: settings, and "num_shards", "num_clips", "num_skipped".

    Raises:
        ValueError: The folder cannot be written or holds a cache made with other settings, or no clip was usable.
    """
    if text_encoder is not None and processor is None:
        raise ValueError("text_encoder needs a processor (or its tokenizer) too")
    if batch_size < 1 or rows_per_shard < 1:
        raise ValueError(f"batch_size and rows_per_shard must be at least 1, got {batch_size} and {rows_per_shard}")
    config = codec.config
    num_codebooks = config.num_quantizers if num_codebooks is None else num_codebooks
    if not 1 <= num_codebooks <= config.num_quantizers:
        raise ValueError(f"num_codebooks must be in [1, {config.num_quantizers}], got {num_codebooks}")
    if config.audio_channels != 1:
        raise ValueError(f"codec must take 1 channel of sound, it takes {config.audio_channels}")
    if config.codebook_size > 2**16:
        raise ValueError(f"codes of {config.codebook_size} values do not fit 16 bits")
    state = PartialState()
    folder = Path(folder)
    reader = ClipReader(config.sampling_rate, segment_duration, min_segment_ratio)
    num_rows = len(rows) if isinstance(rows, datasets.Dataset) else None
    description = {
        "source": source,
        "num_rows": num_rows,
        "rows_per_shard": rows_per_shard,
        "segment_duration": segment_duration,
        "min_segment_ratio": min_segment_ratio,
        "sampling_rate": config.sampling_rate,
        "hop_length": config.hop_length,
        "num_frames": -(-reader.num_samples // config.hop_length),
        "codebook_size": config.codebook_size,
        "num_codebooks": num_codebooks,
        "tokenizer_fingerprint": tokenizer_fingerprint(codec),
        "text_encoder_fingerprint": None if text_encoder is None else text_encoder_fingerprint(text_encoder),
        "text_dim": None if text_encoder is None else text_encoder.config.hidden_size,
        "with_sound": with_sound,
    }

    # 1. Say what this folder is to hold, or check that it is the same
    if (folder / DESCRIPTION_FILE).exists():
        _check_same_plan(folder, description)
    state.wait_for_everyone()
    if state.is_main_process and not (folder / DESCRIPTION_FILE).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(folder / DESCRIPTION_FILE, description)
        except OSError as error:
            raise ValueError(f"folder {folder} cannot be written: {error}") from error
    state.wait_for_everyone()

    # 2. Write the missing shards of this process
    encoder = _Encoder(codec, num_codebooks, batch_size, text_encoder, processor, with_sound)
    num_shards = 0
    show_progress = progress and state.is_local_main_process
    for shard, shard_rows in enumerate(_shards_of_rows(rows, rows_per_shard, show_progress)):
        num_shards += 1
        path = _shard_path(folder, shard)
        if shard % state.num_processes == state.process_index and not path.exists():
            _write_shard(path, shard_rows(), reader, encoder)
    state.wait_for_everyone()

    # 3. Complete the description
    description |= {"num_shards": num_shards, **_count(folder, num_shards)}
    if description["num_clips"] == 0:
        raise ValueError(f"no clip of the dataset could be used: {description['num_skipped']} are corrupt or silent")
    if state.is_main_process:
        _write_json(folder / DESCRIPTION_FILE, description)
    state.wait_for_everyone()
    return description


def load_token_cache(
    folder: str | os.PathLike,
    codec: EncodecModel,
    text_encoder: PreTrainedModel | None = None,
    *,
    num_codebooks: int | None = None,
    streaming: bool = False,
) -> tuple[datasets.Dataset | datasets.IterableDataset, CodesReader]:
    """Open a token cache for the model that is to learn from it.

    Args:
        folder: What `write_token_cache` filled.
        codec: The model's tokenizer; its codes must be those of the cache.
        text_encoder: The model's text encoder; looked at where the cache holds its states.
        num_codebooks: Codebooks that the model learns, the first of the cache. Default: all.
        streaming: Read while training; gives an `IterableDataset`.

    Returns:
        The rows and their reader, for `ClipDataset` or `ClipStream`.

    Raises:
        ValueError: There is no complete cache, or it was made with another tokenizer or text encoder.
    """
    description, paths = _open(Path(folder), codec)
    if description["text_encoder_fingerprint"] is not None and text_encoder is not None:
        fingerprint = text_encoder_fingerprint(text_encoder)
        if fingerprint != description["text_encoder_fingerprint"]:
            raise ValueError(
                f"the token cache {folder} holds states of another text encoder (fingerprint "
                f"{description['text_encoder_fingerprint'][:12]}) than the model's ({fingerprint[:12]})"
            )
    if num_codebooks is not None and num_codebooks > description["num_codebooks"]:
        raise ValueError(f"the token cache {folder} has {description['num_codebooks']} codebooks, not {num_codebooks}")
    rows = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=streaming)
    reader = CodesReader(
        num_codebooks=num_codebooks or description["num_codebooks"],
        num_frames=description["num_frames"],
        text_dim=description["text_dim"],
    )
    return rows, reader


def load_coded_sound(
    folder: str | os.PathLike, codec: EncodecModel, segment_duration: float
) -> tuple[datasets.Dataset, CodedSoundReader]:
    """Open a token cache that keeps the sound (`with_sound`), for the decoder that is to make it of the codes.

    Args:
        folder: What `write_token_cache` filled.
        codec: The tokenizer; its codes must be those of the cache.
        segment_duration: Length of a clip, in seconds; shorter ones are left out.

    Returns:
        The rows and their reader, for `ClipDataset`.

    Raises:
        ValueError: There is no complete cache of this tokenizer with sound and all codes, or all clips are shorter.
    """
    description, paths = _open(Path(folder), codec)
    if not description.get("with_sound") or description["num_codebooks"] != codec.config.num_quantizers:
        raise ValueError(f"the token cache {folder} lacks the sound, or some of its codes: encode with with_sound")
    hop_length = description["hop_length"]
    num_frames = int(segment_duration * description["sampling_rate"]) // hop_length
    rows = datasets.load_dataset("parquet", data_files=paths, split="train")
    lengths = pc.list_value_length(pc.list_element(rows.data.column("codes"), 0)).to_numpy()
    long_enough = np.flatnonzero(lengths >= num_frames)
    if not len(long_enough) or num_frames < 1:
        raise ValueError(
            f"segment_duration: got {segment_duration} s, takes at least a frame ({hop_length} samples) and at most "
            f"{lengths.max() * hop_length / description['sampling_rate']:g} s, the longest clip of {folder}"
        )
    return rows.select(long_enough), CodedSoundReader(num_frames, hop_length)


def is_token_cache(source: str | os.PathLike) -> bool:
    """Whether `source` is a folder that `write_token_cache` filled, or began to."""
    return (Path(source) / DESCRIPTION_FILE).is_file()


def _open(folder: Path, codec: EncodecModel) -> tuple[dict[str, Any], list[str]]:
    """The description of a complete cache that holds codes of `codec`, and the paths of its shards."""
    description = _read_description(folder)
    if "num_shards" not in description:
        raise ValueError(f"the token cache {folder} is not complete: run the command that made it again")
    paths = [_shard_path(folder, number) for number in range(description["num_shards"])]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"the token cache {folder} lacks {len(missing)} of {len(paths)} shards, first {missing[0]}")
    fingerprint = tokenizer_fingerprint(codec)
    if fingerprint != description["tokenizer_fingerprint"]:
        raise ValueError(
            f"the token cache {folder} holds codes of another tokenizer ({description['sampling_rate']} Hz, "
            f"{description['num_codebooks']} codebooks of {description['codebook_size']}, fingerprint "
            f"{description['tokenizer_fingerprint'][:12]}) than the model's ({codec.config.sampling_rate} Hz, "
            f"codebooks of {codec.config.codebook_size}, fingerprint {fingerprint[:12]}): encode the dataset again"
        )
    return description, [str(path) for path in paths]


@dataclass(frozen=True)
class CodesReader:
    """A row of a token cache to a clip, as `ClipReader` does for sound.

    Args:
        num_codebooks: K, codebooks to keep.
        num_frames: T, frames of a clip, padding included.
        text_dim: Size D of the cached states of the text encoder, None where there are none.
    """

    num_codebooks: int
    num_frames: int
    text_dim: int | None = None

    def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> Clip:
        """Read a clip.

        Returns:
            A dict of "codes" (int64, (K, T), zeros after the end), "length" (real frames), "text" and, where the cache
            has them, "text_states" (float32, (L, D)).
        """
        codes = np.asarray(row["codes"], dtype=np.int64)[: self.num_codebooks]
        length = codes.shape[1]
        choice = rng.integers(len(row["text"]))
        clip = {
            "codes": np.pad(codes, ((0, 0), (0, self.num_frames - length))),
            "length": length,
            "text": row["text"][choice],
        }
        if self.text_dim is not None:
            states = np.frombuffer(row["text_states"][choice], dtype="<f4")
            clip["text_states"] = states.reshape(-1, self.text_dim).copy()  # the buffer is read-only, tensors are not
        return clip

    def masked_clip(self) -> Clip:
        """A clip that is padding throughout."""
        clip = {"codes": np.zeros((self.num_codebooks, self.num_frames), dtype=np.int64), "length": 0, "text": ""}
        if self.text_dim is not None:
            clip["text_states"] = np.zeros((0, self.text_dim), dtype=np.float32)
        return clip


@dataclass(frozen=True)
class CodedSoundReader:
    """A row of a token cache with sound to a segment of both, as a decoder learns from.

    The codes are those of the whole clip, and the segment begins on one of its frames: an encoder that hears a segment
    alone, or from between two frames, makes other codes of it than those that a language model learns.

    Args:
        num_frames: T, frames of a segment.
        hop_length: Samples in a frame.
    """

    num_frames: int
    hop_length: int

    def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> Clip:
        """Read a segment.

        Returns:
            A dict of "codes" (int64, (K, T)), "audio" (float32, (T * hop_length,), zeros after the end of the sound),
            "length" (T) and "text".
        """
        codes = np.asarray(row["codes"], dtype=np.int64)
        start = rng.integers(codes.shape[1] - self.num_frames + 1)
        num_samples = self.num_frames * self.hop_length
        sound = np.frombuffer(row["sound"], dtype="<i2")[start * self.hop_length :][:num_samples]
        return {
            "codes": codes[:, start : start + self.num_frames],
            "audio": np.pad(sound.astype(np.float32) / INT16_SCALE, (0, num_samples - len(sound))),
            "length": self.num_frames,
            "text": draw_text(row["text"], rng),
        }


@dataclass(frozen=True)
class _Encoder:
    """Clips to the columns of a shard."""

    codec: EncodecModel
    num_codebooks: int
    batch_size: int
    text_encoder: PreTrainedModel | None
    processor: Callable[..., Any] | None
    with_sound: bool

    def codes(self, clips: list[Clip]) -> list[np.ndarray]:
        """(K, T) uint16 each, with the real frames alone."""
        batch = collate_audio(clips)
        # As the model encodes: the codec as one pass over the clip, neither normalised nor cut in chunks.
        embeddings = self.codec.encoder(batch["input_values"].to(self.codec.device))
        codes = self.codec.quantizer.encode(embeddings)[: self.num_codebooks]  # (K, B, T)
        codes = codes.transpose(0, 1).cpu().numpy().astype(np.uint16)
        lengths = frame_mask(batch["padding_mask"], self.codec.config.hop_length).sum(dim=1).tolist()
        return [each[:, :length] for each, length in zip(codes, lengths, strict=True)]

    def text_states(self, texts: list[str]) -> list[bytes]:
        """The bytes of (L, D) float32 each, without padding."""
        device = self.text_encoder.device
        inputs = self.processor(text=texts, padding=True, return_tensors="pt")
        input_ids, attention_mask = inputs["input_ids"].to(device), inputs["attention_mask"].to(device)
        states = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return [
            each[mask.bool()].float().cpu().numpy().astype("<f4").tobytes()
            for each, mask in zip(states, attention_mask, strict=True)
        ]

    def columns(self, clips: list[Clip]) -> dict[str, list]:
        columns = {
            "codes": [codes.tolist() for codes in self.codes(clips)],
            "text": [clip["text"] for clip in clips],
            "path": [clip["path"] for clip in clips],
            "start": [clip["start"] for clip in clips],
        }
        if self.text_encoder is not None:
            states = iter(self.text_states([text for texts in columns["text"] for text in texts]))
            columns["text_states"] = [list(islice(states, len(texts))) for texts in columns["text"]]
        if self.with_sound:
            columns["sound"] = [_to_int16(clip["audio"][: clip["length"]]) for clip in clips]
        return columns


def _to_int16(audio: np.ndarray) -> bytes:
    return np.round(audio.clip(-1, 1) * INT16_SCALE).astype("<i2").tobytes()


def _shards_of_rows(
    rows: datasets.Dataset | datasets.IterableDataset, rows_per_shard: int, show_progress: bool
) -> Iterator[Callable[[], Iterable[dict]]]:
    """For each shard a function that gives its rows; only a stream has read them by then."""
    if isinstance(rows, datasets.Dataset):
        starts = range(0, len(rows), rows_per_shard)
        for start in tqdm(starts, unit="shard", disable=not show_progress):
            yield partial(rows.select, range(start, min(start + rows_per_shard, len(rows))))
    else:
        stream = iter(tqdm(rows, unit="row", disable=not show_progress))
        while shard_rows := list(islice(stream, rows_per_shard)):
            yield lambda shard_rows=shard_rows: shard_rows


def _write_shard(path: Path, rows: Iterable[dict], reader: ClipReader, encoder: _Encoder):
    fields = [
        ("codes", pa.list_(pa.list_(pa.uint16()))),
        ("text", pa.list_(pa.string())),
        ("path", pa.string()),
        ("start", pa.float64()),
    ]
    if encoder.text_encoder is not None:
        fields.append(("text_states", pa.list_(pa.binary())))
    if encoder.with_sound:
        fields.append(("sound", pa.binary()))
    schema = pa.schema(fields)
    num_clips = num_skipped = 0
    temporary = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        clips = _windows(rows, reader)
        while batch := list(islice(clips, encoder.batch_size)):
            usable = [clip for clip in batch if clip is not None]
            num_clips, num_skipped = num_clips + len(usable), num_skipped + len(batch) - len(usable)
            if usable:
                writer.write_table(pa.table(encoder.columns(usable), schema=schema))
        writer.add_key_value_metadata({NUM_CLIPS: str(num_clips), NUM_SKIPPED: str(num_skipped)})
    temporary.replace(path)


def _windows(rows: Iterable[dict], reader: ClipReader) -> Iterator[Clip | None]:
    """The clips of the rows, with their origin; None for each corrupt sound or silent segment."""
    for row in rows:
        path = (row["audio"] or {}).get("path")
        try:
            for number, clip in enumerate(reader.windows(row)):
                if clip is None:
                    logger.warning(f"skipped a silent segment of {path}")
                    yield None
                else:
                    yield {**clip, "path": path, "start": number * reader.segment_duration}
        except UnusableClipError as error:
            logger.warning(f"skipped {path}: {error}")
            yield None


def _count(folder: Path, num_shards: int) -> dict[str, int]:
    counts = [pq.read_metadata(_shard_path(folder, shard)).metadata for shard in range(num_shards)]
    return {
        "num_clips": sum(int(count[NUM_CLIPS.encode()]) for count in counts),
        "num_skipped": sum(int(count[NUM_SKIPPED.encode()]) for count in counts),
    }


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.parquet"


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is no token cache: it has no {DESCRIPTION_FILE}")
    return json.loads(path.read_text(encoding="utf-8"))


def _check_same_plan(folder: Path, description: dict[str, Any]):
    written = _read_description(folder)
    different = [key for key in description if written.get(key) != description[key]]
    if different:
        changes = ", ".join(f"{key} {written.get(key)!r} instead of {description[key]!r}" for key in different)
        raise ValueError(f"{folder} holds a token cache made with {changes}: take another folder, or remove it")


def _write_json(path: Path, content: dict[str, Any]):
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
