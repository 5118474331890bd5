"""From rows to clips: one decoded segment of sound and one description, by number or as a stream.

The random choices of a clip follow from its place alone, (seed, epoch, position), never from a worker or a process.
"""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import fsspec
import numpy as np
import soundfile
import torch
from datasets import IterableDataset
from transformers.utils import logging

from ..audio_utils import resample

logger = logging.get_logger(__name__)

Clip = dict[str, Any]
Reader = Callable[[dict[str, Any], np.random.Generator], Clip]

SILENCE_PEAK = 1e-4  # -80 dBFS, three steps of 16-bit sound
MAX_REPLACEMENTS = 10  # unusable clips in a row that stop training, AudioCraft's `max_read_retry`
MASKED_CLIP = -1  # the number of a clip that is padding throughout; fills the last batch of an evaluation

# Every use of random numbers has its own streams.
_ORDER, _CLIP, MIXING = range(3)


def random_stream(seed: int, purpose: int, *place: int) -> np.random.Generator:
    """The random stream of one purpose at one place, e.g. (epoch, position)."""
    return np.random.default_rng((seed, purpose, *place))


class UnusableClipError(Exception):
    """A clip cannot be decoded, or holds nothing to learn from: no samples, silence, or values that are not finite."""


@dataclass(frozen=True)
class ClipReader:
    """Decodes one segment of a row's sound and draws one of its descriptions.

    Args:
        sampling_rate: Rate of the clips, in Hz. Sound of another rate is resampled, several channels are averaged.
        segment_duration: Length of a clip, in seconds, or None for the whole sound.
        min_segment_ratio: A segment starts anywhere in the sound as long as this share of it holds sound (as far as
            the sound is that long); the rest is padding. AudioGen trains with 1.0.
    """

    sampling_rate: int = 16000
    segment_duration: float | None = 10.0
    min_segment_ratio: float = 1.0

    def __post_init__(self):
        if self.sampling_rate <= 0:
            raise ValueError(f"sampling_rate must be positive, got {self.sampling_rate}")
        if self.segment_duration is not None and self.segment_duration <= 0:
            raise ValueError(f"segment_duration must be positive or None, got {self.segment_duration}")
        if self.num_samples == 0:
            raise ValueError(f"segment_duration {self.segment_duration} is less than a sample")
        if not 0 < self.min_segment_ratio <= 1:
            raise ValueError(f"min_segment_ratio must be in (0, 1], got {self.min_segment_ratio}")

    @property
    def num_samples(self) -> int | None:
        """Samples in a clip, padding included; None for whole sounds."""
        return None if self.segment_duration is None else int(self.segment_duration * self.sampling_rate)

    def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> Clip:
        """Read a clip.

        Returns:
            A dict of "audio" (float32, (num_samples,)), "length" (real samples, before the padding) and "text".

        Raises:
            UnusableClipError: The sound cannot be decoded, or there is nothing in it.
        """
        with _decoder(row["audio"]) as decoder:
            audio = self._read(decoder, start=rng.random() * self._latest_start(decoder))
        return self._clip(audio, draw_text(row.get("text"), rng))

    def windows(self, row: dict[str, Any]) -> Iterator[Clip | None]:
        """The segments of a row's sound that follow one another, "text" being all descriptions; None for a silent one.

        A last segment that holds less sound than `min_segment_ratio` is left out, unless it is the only one.

        Raises:
            UnusableClipError: The sound cannot be decoded.
        """
        with _decoder(row["audio"]) as decoder:
            latest = self._latest_start(decoder)
            num_windows = 1 if self.segment_duration is None else 1 + int(latest / self.segment_duration)
            for number in range(num_windows):
                try:
                    audio = self._read(decoder, start=number * (self.segment_duration or 0.0))
                except UnusableClipError:
                    yield None
                else:
                    yield self._clip(audio, all_texts(row.get("text")))

    def masked_clip(self) -> Clip:
        """A clip that is padding throughout."""
        return {"audio": np.zeros(self.num_samples or 1, dtype=np.float32), "length": 0, "text": ""}

    def _latest_start(self, decoder: soundfile.SoundFile) -> float:
        if self.segment_duration is None:
            return 0.0
        return max(0.0, decoder.frames / decoder.samplerate - self.segment_duration * self.min_segment_ratio)

    def _read(self, decoder: soundfile.SoundFile, start: float) -> np.ndarray:
        """(samples,) from `start` seconds on, mono, at the reader's rate; no more than a segment."""
        rate = decoder.samplerate
        decoder.seek(int(start * rate))
        num_frames = -1 if self.num_samples is None else -(-self.num_samples * rate // self.sampling_rate)
        audio = decoder.read(num_frames, dtype="float32", always_2d=True).mean(axis=1)
        if not np.isfinite(audio).all():
            raise UnusableClipError("samples that are not finite")
        if len(audio) == 0 or np.abs(audio).max() < SILENCE_PEAK:
            raise UnusableClipError("silence" if len(audio) else "no samples")
        return resample(audio, rate, self.sampling_rate)[: self.num_samples]

    def _clip(self, audio: np.ndarray, text: str | list[str]) -> Clip:
        num_padded = 0 if self.num_samples is None else self.num_samples - len(audio)
        return {"audio": np.pad(audio, (0, num_padded)), "length": len(audio), "text": text}


def all_texts(text: str | list[str] | None) -> list[str]:
    """The alternative descriptions; no description is the empty one."""
    alternatives = [text] if isinstance(text, str) else text or []
    return [each.strip() for each in alternatives if each and each.strip()] or [""]


def draw_text(text: str | list[str] | None, rng: np.random.Generator) -> str:
    """One of the alternative descriptions."""
    alternatives = all_texts(text)
    return alternatives[rng.integers(len(alternatives))]


class ClipDataset(torch.utils.data.Dataset):
    """Numbered clips: `clips[number]`.

    With `shuffle`, numbers have no end: number n is clip n % len(clips) of epoch n // len(clips), each epoch in its
    own order. An unusable clip is replaced by another one, drawn from the same random stream. Without `shuffle`, clips
    keep the order of the rows, a row always gives the same segment and description, and an unusable one becomes a clip
    that is padding throughout. Either way `clip["num_skipped"]` counts the unusable ones met.

    Args:
        rows: What `load_audio_text_dataset` or `load_token_cache` gave.
        reader: `ClipReader` or `CodesReader`.
        seed: Seed of everything random.
        shuffle: True for training, False for evaluation.
    """

    def __init__(self, rows, reader: Reader, *, seed: int = 0, shuffle: bool = True):
        if isinstance(rows, IterableDataset):
            raise ValueError("rows are a stream: take a ClipStream")
        if len(rows) == 0:
            raise ValueError("the dataset is empty")
        _check_seed(seed)
        self.rows = rows
        self.reader = reader
        self.seed = seed
        self.shuffle = shuffle
        self._epoch_order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Clip]:
        """The clips of the first epoch."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Clip:
        if number == MASKED_CLIP:
            return {**self.reader.masked_clip(), "num_skipped": 0}
        epoch, position = divmod(number, len(self.rows))
        if not self.shuffle:
            epoch = 0
        rng = random_stream(self.seed, _CLIP, epoch, position)
        index = self._index(epoch, position)
        for num_skipped in range(MAX_REPLACEMENTS):
            row = self.rows[int(index)]
            try:
                return {**self.reader(row, rng), "num_skipped": num_skipped}
            except UnusableClipError as error:
                _warn(row, error)
                if not self.shuffle:
                    return {**self.reader.masked_clip(), "num_skipped": 1}
            index = rng.integers(len(self.rows))
        raise ValueError(f"{MAX_REPLACEMENTS} unusable clips in a row; the last: {_name(row)}")

    def _index(self, epoch: int, position: int) -> int:
        if not self.shuffle:
            return position
        if self._epoch_order[0] != epoch:
            self._epoch_order = epoch, random_stream(self.seed, _ORDER, epoch).permutation(len(self.rows))
        return self._epoch_order[1][position]


class ClipStream(torch.utils.data.IterableDataset):
    """Clips of a streamed dataset, epoch after epoch, without end.

    Unusable clips are left out; `clip["num_skipped"]` counts those since the clip before. Sound is decoded ahead by
    threads of this process, in order, so that their number changes nothing; workers of a `DataLoader` are refused, for
    they would deal out the rows among themselves.

    `state_dict()` is the place after the last clip taken. Continuing there reads the rows of the epoch up to it again,
    without decoding them.

    Args:
        rows: An `IterableDataset`; for several processes, the part of one that
            `datasets.distributed.split_dataset_by_node` gives.
        reader: `ClipReader`.
        seed: Seed of everything random.
        shuffle_buffer: Rows among which the next is drawn; 0 keeps their order.
        num_threads: Threads that decode.
    """

    def __init__(
        self, rows: IterableDataset, reader: Reader, *, seed: int = 0, shuffle_buffer: int = 1000, num_threads: int = 4
    ):
        if not isinstance(rows, IterableDataset):
            raise ValueError("rows are no stream: take a ClipDataset")
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer must not be negative, got {shuffle_buffer}")
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        _check_seed(seed)
        self.rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else rows
        self.reader = reader
        self.seed = seed
        self.num_threads = num_threads
        self._epoch, self._position = 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]):
        self._epoch, self._position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Clip]:
        if torch.utils.data.get_worker_info() is not None:
            raise ValueError("a ClipStream decodes in its own threads: num_workers of its DataLoader must be 0")
        num_skipped = 0
        while True:
            found_usable = self._position > 0
            for position, clip in self._read_epoch(self._epoch, self._position):
                if clip is None:
                    num_skipped += 1
                    continue
                found_usable = True
                self._position = position + 1
                yield {**clip, "num_skipped": num_skipped}
                num_skipped = 0
            if not found_usable:
                raise ValueError("the streamed dataset is empty or has no usable clip")
            self._epoch, self._position = self._epoch + 1, 0

    def _read_epoch(self, epoch: int, first: int) -> Iterator[tuple[int, Clip | None]]:
        """(position, clip, or None where it is unusable) of an epoch, decoded ahead of the consumer."""
        self.rows.set_epoch(epoch)
        with ThreadPoolExecutor(self.num_threads) as pool:
            ahead: deque = deque()
            for position, row in islice(enumerate(self.rows), first, None):
                ahead.append((position, pool.submit(self._read, row, epoch, position)))
                if len(ahead) > 4 * self.num_threads:
                    position, future = ahead.popleft()
                    yield position, future.result()
            for position, future in ahead:
                yield position, future.result()

    def _read(self, row: dict[str, Any], epoch: int, position: int) -> Clip | None:
        try:
            return self.reader(row, random_stream(self.seed, _CLIP, epoch, position))
        except UnusableClipError as error:
            _warn(row, error)
            return None


@contextlib.contextmanager
def _decoder(sound: dict[str, Any] | None) -> Iterator[soundfile.SoundFile]:
    """Open encoded sound; whatever goes wrong while it is open makes the clip unusable."""
    path, encoded = (sound["path"], sound["bytes"]) if sound else (None, None)
    if path is None and encoded is None:
        raise UnusableClipError("no sound")
    if encoded is not None:
        source = contextlib.nullcontext(io.BytesIO(encoded))
    elif "://" in path:  # hf://, https://, zip://
        source = fsspec.open(path, "rb")
    else:
        source = contextlib.nullcontext(path)
    try:
        with source as file, soundfile.SoundFile(file) as decoder:
            yield decoder
    except (soundfile.SoundFileError, OSError) as error:
        raise UnusableClipError(str(error)) from error


def _check_seed(seed: int):
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")


def _name(row: dict[str, Any]) -> str:
    return (row["audio"] or {}).get("path") or "a sound without a path"


def _warn(row: dict[str, Any], error: UnusableClipError):
    logger.warning_once(f"skipped {_name(row)}: {error}")
