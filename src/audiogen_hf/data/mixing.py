"""AudioCraft's mixing augmentation: two clips sound together, and their descriptions are joined.

The rule is that of AudioCraft 1.3 (`audiocraft/data/sound_dataset.py`): out of a pool of clips, a share `mix_p` leaves
as the batch; with probability `aug_p`, each of these has another clip of the pool added to it. The augmentation, the
ratio, the start and the final level are drawn once a batch. Where this differs: the batch size here is that of the
batch that leaves; clips that would not leave are never decoded; and a mix that clips is scaled by its largest
magnitude, where AudioCraft takes the largest positive sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from .clips import MASKED_CLIP, MIXING, Clip, ClipDataset, ClipReader, ClipStream, random_stream

SOURCE_LEVEL_DB = -25.0  # RMS of either clip before the ratio is applied
LEVELS_DB = (-35, -15)  # RMS of the mix: an integer from here, the end excluded
CLIPPING_THRESHOLD = 0.99
EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Mixing:
    """Settings of the augmentation; the defaults are those of AudioGen's training.

    Args:
        aug_p: Probability that a batch is mixed.
        mix_p: Size of the batch over the size of the pool that it is drawn from. AudioCraft's `batch_size` counts the
            pool: its 256 with 0.5 is a batch of 128 here.
        mix_snr_low: Least level of a clip over the one added to it, in dB.
        mix_snr_high: End of the range of levels, in dB; the level is an integer below it (or equal, if both ends are).
        mix_min_overlap: Least share of the clip in which the added one sounds too.
    """

    aug_p: float = 0.5
    mix_p: float = 0.5
    mix_snr_low: int = -5
    mix_snr_high: int = 5
    mix_min_overlap: float = 0.5

    def __post_init__(self):
        if not 0 <= self.aug_p <= 1:
            raise ValueError(f"aug_p must be in [0, 1], got {self.aug_p}")
        if not 0 < self.mix_p <= 1:
            raise ValueError(f"mix_p must be in (0, 1], got {self.mix_p}")
        if self.mix_snr_low > self.mix_snr_high:
            raise ValueError(
                f"mix_snr_low must not exceed mix_snr_high, got {self.mix_snr_low} and {self.mix_snr_high}"
            )
        if not 0 <= self.mix_min_overlap <= 1:
            raise ValueError(f"mix_min_overlap must be in [0, 1], got {self.mix_min_overlap}")


@dataclass(frozen=True)
class MixingPlan:
    """What happens to one batch: `sources` and `partners` are places in its pool, a pair for each clip that leaves."""

    pool_size: int
    sources: np.ndarray
    partners: np.ndarray | None  # None: the batch stays as it is
    snr_db: int
    start_share: float  # where the partner sets in, as a share of the clip
    level_db: int

    def apply(self, row: int, get_clip) -> Clip:
        """Clip `row` of the batch; `get_clip(place)` gives a clip of the pool."""
        clip = get_clip(self.sources[row])
        if self.partners is None:
            return clip
        return mix_clips(clip, get_clip(self.partners[row]), self.snr_db, self.start_share, self.level_db)


def plan_mixing(mixing: Mixing, seed: int, batch: int, batch_size: int) -> MixingPlan:
    """Draw what happens to a batch of `batch_size` clips; the same arguments give the same plan."""
    rng = random_stream(seed, MIXING, batch)
    pool_size = round(batch_size / mixing.mix_p)
    is_mixed = rng.random() < mixing.aug_p
    sources = rng.permutation(pool_size)[:batch_size]
    partners = rng.permutation(pool_size)[:batch_size]
    low, high = mixing.mix_snr_low, mixing.mix_snr_high
    return MixingPlan(
        pool_size=pool_size,
        sources=sources,
        partners=partners if is_mixed else None,
        snr_db=low if low == high else int(rng.integers(low, high)),
        start_share=rng.random() * (1 - mixing.mix_min_overlap),
        level_db=int(rng.integers(*LEVELS_DB)),
    )


def mix_clips(clip: Clip, partner: Clip, snr_db: float, start_share: float, level_db: float) -> Clip:
    """Add `partner` to `clip`, `snr_db` below it and from `start_share` of its length on.

    The levels are RMS over the whole clip, padding included. The mix is brought to `level_db` and, where a sample then
    exceeds 0.99 in magnitude, scaled down to it. It is as long as the last sound in it.
    """
    audio = _to_level(clip["audio"], SOURCE_LEVEL_DB)
    num_samples = len(audio)
    added = _to_level(_fit(partner["audio"], num_samples), SOURCE_LEVEL_DB - snr_db)
    start = int(start_share * num_samples)
    audio[start:] += added[: num_samples - start]

    audio = _to_level(audio, level_db)
    peak = np.abs(audio).max()
    if peak > CLIPPING_THRESHOLD:
        audio *= CLIPPING_THRESHOLD / peak
    same_text = clip["text"] == partner["text"]
    return {
        "audio": audio,
        "length": max(clip["length"], min(num_samples, start + partner["length"])),
        "text": clip["text"] if same_text else f"{clip['text']} {partner['text']}".strip(),
        "num_skipped": clip["num_skipped"] + partner["num_skipped"],
    }


def _to_level(audio: np.ndarray, level_db: float) -> np.ndarray:
    rms = np.sqrt(np.mean(np.square(audio, dtype=np.float64)))
    return audio * np.float32(10 ** (level_db / 20) / (rms + EPS))


def _fit(audio: np.ndarray, num_samples: int) -> np.ndarray:
    return np.pad(audio[:num_samples], (0, max(0, num_samples - len(audio))))


class MixedClips(torch.utils.data.Dataset):
    """`ClipDataset` with the augmentation: number n is clip `n % batch_size` of batch `n // batch_size`.

    Args:
        clips: The clips to mix; their seed is used here too.
        mixing: The settings.
        batch_size: Clips that leave for one batch, in all processes (and accumulation steps) together.
    """

    def __init__(self, clips: ClipDataset, mixing: Mixing, batch_size: int):
        _check(clips, batch_size)
        self.clips = clips
        self.mixing = mixing
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Clips that leave while the pools pass over the dataset once."""
        return max(1, int(len(self.clips) * self.mixing.mix_p))

    def __iter__(self) -> Iterator[Clip]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Clip:
        if number == MASKED_CLIP:
            return self.clips[number]
        batch, row = divmod(number, self.batch_size)
        plan = plan_mixing(self.mixing, self.clips.seed, batch, self.batch_size)
        return plan.apply(row, lambda place: self.clips[batch * plan.pool_size + int(place)])


class MixedStream(torch.utils.data.IterableDataset):
    """`ClipStream` with the augmentation; `batch_size` counts the clips of this process.

    `state_dict()` is exact between batches.
    """

    def __init__(self, clips: ClipStream, mixing: Mixing, batch_size: int):
        _check(clips, batch_size)
        self.clips = clips
        self.mixing = mixing
        self.batch_size = batch_size
        self._batch = 0

    def state_dict(self) -> dict[str, int]:
        return {"batch": self._batch, **self.clips.state_dict()}

    def load_state_dict(self, state: dict[str, int]):
        self._batch = state["batch"]
        self.clips.load_state_dict(state)

    def __iter__(self) -> Iterator[Clip]:
        clips = iter(self.clips)
        while True:
            plan = plan_mixing(self.mixing, self.clips.seed, self._batch, self.batch_size)
            pool = list(islice(clips, plan.pool_size))
            self._batch += 1
            num_skipped = sum(clip["num_skipped"] for clip in pool)  # also of clips that do not leave the pool
            for row in range(self.batch_size):
                yield {**plan.apply(row, pool.__getitem__), "num_skipped": num_skipped if row == 0 else 0}


def _check(clips: ClipDataset | ClipStream, batch_size: int):
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not isinstance(clips.reader, ClipReader):
        raise ValueError(
            f"mixing takes clips of sound, got clips of {type(clips.reader).__name__}: codes cannot be mixed"
        )
