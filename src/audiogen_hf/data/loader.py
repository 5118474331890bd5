"""From clips to the batches of one process, resumable at any batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .clips import MASKED_CLIP, Clip

Batch = dict[str, torch.Tensor]


def frame_mask(padding_mask: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Which frames of the codes are real: those without a padded sample, as in AudioCraft.

    Args:
        padding_mask: (B, N) bool, True on real samples, padding at the end.
        hop_length: Samples in a frame.

    Returns:
        (B, T) bool with T = ceil(N / hop_length), the frames that the codec makes of N samples. A last frame that N
        cuts short is real if all its samples are, so that a clip without padding has no masked frame.
    """
    num_samples = padding_mask.shape[-1]
    last_sample = torch.arange(1, math.ceil(num_samples / hop_length) + 1, device=padding_mask.device) * hop_length
    lengths = padding_mask.sum(dim=-1, keepdim=True)
    return last_sample.clamp(max=num_samples) <= lengths


class ClipCollator:
    """Stacks clips into a batch (see the table in `audiogen_hf.data`).

    Args:
        processor: What turns texts into `input_ids` and `attention_mask`: an `AudioGenProcessor` or a tokenizer. None
            leaves them out.
    """

    def __init__(self, processor: Callable[..., Any] | None = None):
        self.processor = processor

    def __call__(self, clips: list[Clip]) -> Batch:
        batch = _collate_codes(clips) if "codes" in clips[0] else collate_audio(clips)
        if "text_states" in clips[0]:
            batch |= _collate_text_states(clips)
        elif self.processor is not None:
            texts = self.processor(text=[clip["text"] for clip in clips], padding=True, return_tensors="pt")
            batch |= {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
        return batch


def collate_audio(clips: list[Clip]) -> Batch:
    """`input_values` (B, 1, N) and `padding_mask` (B, N) of clips of sound, padded to the longest."""
    audio = pad_sequence([torch.from_numpy(clip["audio"]) for clip in clips], batch_first=True)
    return {"input_values": audio[:, None], "padding_mask": _length_mask(clips, audio.shape[-1])}


def _collate_codes(clips: list[Clip]) -> Batch:
    codes = torch.from_numpy(np.stack([clip["codes"] for clip in clips]))
    batch = {"audio_codes": codes, "frame_mask": _length_mask(clips, codes.shape[-1])}
    if "audio" in clips[0]:
        batch["input_values"] = torch.from_numpy(np.stack([clip["audio"] for clip in clips]))[:, None]
    return batch


def _collate_text_states(clips: list[Clip]) -> Batch:
    states = [torch.from_numpy(clip["text_states"]) for clip in clips]
    lengths = torch.tensor([[len(each)] for each in states])
    hidden_states = pad_sequence(states, batch_first=True)
    if hidden_states.shape[1] == 0:  # empty texts alone still are one position, masked
        hidden_states = hidden_states.new_zeros(len(clips), 1, hidden_states.shape[2])
    attention_mask = torch.arange(hidden_states.shape[1]) < lengths
    return {"encoder_hidden_states": hidden_states, "attention_mask": attention_mask.long()}


def _length_mask(clips: list[Clip], size: int) -> torch.Tensor:
    return torch.arange(size) < torch.tensor([[clip["length"]] for clip in clips])


class ClipLoader:
    """The batches of one process.

    Batch b is made of the clips numbered from `b * batch_size` on; process r of W holds the r-th of W equal parts. On
    a stream, batches follow each other, and the stream must hold this process's rows. Iterating goes on from the place
    reached; `num_batches` ends it, and the next iteration starts again from the first batch.

    Args:
        clips: `ClipDataset`, `MixedClips`, `ClipStream`, `MixedStream`.
        collate: Makes a batch of a list of clips, usually a `ClipCollator`.
        batch_size: Clips in a batch, all processes together.
        num_processes: Processes that share a batch.
        process_index: Which of them this is.
        num_workers: Worker processes that decode; streams decode in threads of their own.
        num_batches: Batches in one iteration; None is without end.

    Attributes:
        num_skipped: Corrupt, empty or silent clips met so far by this process.

    Raises:
        ValueError: The batch does not divide among the processes, or a number is out of range.
    """

    def __init__(
        self,
        clips,
        collate: Callable[[list[Clip]], Batch],
        batch_size: int,
        *,
        num_processes: int = 1,
        process_index: int = 0,
        num_workers: int = 0,
        num_batches: int | None = None,
    ):
        if batch_size < 1 or batch_size % num_processes:
            raise ValueError(f"batch_size {batch_size} must be a positive multiple of the {num_processes} processes")
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must be in [0, {num_processes}), got {process_index}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        if num_batches is not None and num_batches < 1:
            raise ValueError(f"num_batches must be at least 1 or None, got {num_batches}")
        self.clips = clips
        self.collate = collate
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.num_workers = num_workers
        self.num_batches = num_batches
        self.num_skipped = 0
        self._next_batch = 0
        self._num_clips: int | None = None

    @classmethod
    def evaluation(cls, clips, collate, batch_size: int, **kwargs) -> ClipLoader:
        """A loader that passes once over the clips, each exactly once over all processes.

        Every process gets the same number of batches of the same size: what is missing from the last batch is filled
        with clips that are padding throughout, so weigh results by real frames and not by batches.
        """
        loader = cls(clips, collate, batch_size, num_batches=math.ceil(len(clips) / batch_size), **kwargs)
        loader._num_clips = len(clips)
        return loader

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("a ClipLoader without num_batches has no end")
        return self.num_batches

    def state_dict(self) -> dict[str, Any]:
        state = {"next_batch": self._next_batch, "num_skipped": self.num_skipped}
        return state | ({"clips": self.clips.state_dict()} if self._is_stream else {})

    def load_state_dict(self, state: dict[str, Any]):
        self._next_batch, self.num_skipped = state["next_batch"], state["num_skipped"]
        if self._is_stream:
            self.clips.load_state_dict(state["clips"])

    def __iter__(self) -> Iterator[Batch]:
        for num_skipped, batch in self._read_stream() if self._is_stream else self._read_numbered():
            self._next_batch += 1
            self.num_skipped += num_skipped
            yield batch
            if self._next_batch == self.num_batches:
                break
        self._next_batch = 0

    @property
    def _is_stream(self) -> bool:
        return isinstance(self.clips, torch.utils.data.IterableDataset)

    @property
    def _clips_per_process(self) -> int:
        return self.batch_size // self.num_processes

    def _read_stream(self) -> Iterator[tuple[int, Batch]]:
        clips = iter(self.clips)
        while True:
            yield self._collate(list(islice(clips, self._clips_per_process)))

    def _read_numbered(self) -> Iterator[tuple[int, Batch]]:
        return iter(
            torch.utils.data.DataLoader(
                self.clips,
                batch_sampler=_NumberSampler(self),
                collate_fn=self._collate,
                num_workers=self.num_workers,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # or each start of an iteration would move the global random stream
            )
        )

    def _collate(self, clips: list[Clip]) -> tuple[int, Batch]:
        return sum(clip["num_skipped"] for clip in clips), self.collate(clips)


class _NumberSampler:
    """The numbers of this process's clips, batch after batch, from the loader's place on."""

    def __init__(self, loader: ClipLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        loader = self.loader
        batch = loader._next_batch
        while loader.num_batches is None or batch < loader.num_batches:
            first = batch * loader.batch_size + loader.process_index * loader._clips_per_process
            numbers = range(first, first + loader._clips_per_process)
            end = math.inf if loader._num_clips is None else loader._num_clips
            yield [number if number < end else MASKED_CLIP for number in numbers]
            batch += 1
