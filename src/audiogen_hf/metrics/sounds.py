"""Folders of sounds for evaluation: which files pair up, what is said of them, and which cannot be used."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..audio_utils import read_audio, resample
from .backbones import Backbone, BackboneInfo

SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"}
CAPTION_COLUMNS = ("text", "caption", "description")
SILENCE_PEAK = 1e-4  # -80 dB of full scale


def find_sounds(folder: str | Path) -> dict[str, Path]:
    """Return the sound files under `folder`, by their path in it without suffix.

    Raises:
        ValueError: The folder does not exist, holds no sound, or holds two sounds of one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    sounds: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in sounds:
            raise ValueError(f"{folder} holds {sounds[name].name} and {path.name}: which one is meant?")
        sounds[name] = path
    if not sounds:
        raise ValueError(f"{folder} holds no sound ({', '.join(sorted(SUFFIXES))})")
    return sounds


def read_captions(folder: str | Path) -> dict[str, str]:
    """Return the captions in `metadata.jsonl` or `metadata.csv` of `folder`, by name as in [`find_sounds`].

    The columns are those of the `datasets` audio folder: `file_name` and one of `text`, `caption`, `description`.
    Empty without such a file.

    Raises:
        ValueError: A row lacks one of the columns, or a line is no JSON.
    """
    for path in (Path(folder) / "metadata.jsonl", Path(folder) / "metadata.csv"):
        if path.is_file():
            break
    else:
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        try:
            rows = (
                list(csv.DictReader(file))
                if path.suffix == ".csv"
                else [json.loads(line) for line in file if line.strip()]
            )
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON, one object a line: {error}") from error
    captions = {}
    for number, row in enumerate(rows, 1):
        column = next((column for column in CAPTION_COLUMNS if row.get(column)), None)
        if column is None or not row.get("file_name"):
            raise ValueError(f"{path}, row {number}: needs file_name and one of {', '.join(CAPTION_COLUMNS)}")
        captions[Path(row["file_name"]).with_suffix("").as_posix()] = row[column]
    return captions


@dataclass
class Exclusions:
    """Names of the sounds of one set that no metric used, by reason."""

    unreadable: list[str] = field(default_factory=list)  # not decodable, empty, or samples that are not finite
    silent: list[str] = field(default_factory=list)  # peak under -80 dB of full scale
    short: list[str] = field(default_factory=list)  # under the preset's min_seconds

    @classmethod
    def union(cls, parts: list[Exclusions]) -> Exclusions:
        """Return what several processes excluded, names in order."""
        return cls(
            unreadable=sorted(name for part in parts for name in part.unreadable),
            silent=sorted(name for part in parts for name in part.silent),
            short=sorted(name for part in parts for name in part.short),
        )

    @property
    def count(self) -> int:
        return len(self.unreadable) + len(self.silent) + len(self.short)


@dataclass(frozen=True)
class Sound:
    """(N,) float32 mono samples and their rate in Hz."""

    samples: np.ndarray
    sampling_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sampling_rate

    def cut(self, seconds: float) -> Sound:
        """Return the first `seconds`, or all of a shorter sound."""
        return Sound(self.samples[: round(seconds * self.sampling_rate)], self.sampling_rate)

    def samples_for(self, backbone: BackboneInfo, allow_resampling: bool, label: str) -> np.ndarray:
        """Return the samples at a backbone's rate; a `ValueError` if that needs resampling, which is not allowed."""
        if self.sampling_rate != backbone.sampling_rate and not allow_resampling:
            raise ValueError(
                f"{label} has {self.sampling_rate} Hz, {backbone.name} takes {backbone.sampling_rate} Hz, and "
                "resampling is not allowed"
            )
        return resample(self.samples, self.sampling_rate, backbone.sampling_rate)


def check_waveform(
    samples: np.ndarray, label: str, sampling_rate: int | None, backbone: Backbone, allow_resampling: bool
) -> np.ndarray:
    """Return one sound at a backbone's rate.

    Raises:
        ValueError: The rate is missing or not allowed, or the samples are empty, silent or not finite. The message
            begins with `label`.
    """
    samples = np.asarray(samples, dtype=np.float32)
    if sampling_rate is None:
        raise ValueError("sampling_rate must be given with sounds")
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"{label} must have shape (N,) with N > 0, got {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{label} holds NaN or infinite samples")
    if np.abs(samples).max() < SILENCE_PEAK:
        raise ValueError(f"{label} is silent, which no classifier has learnt; leave it out and say so")
    return Sound(samples, sampling_rate).samples_for(backbone.info, allow_resampling, label)


def read_usable(path: Path, name: str, min_seconds: float, exclusions: Exclusions) -> Sound | None:
    """Read a sound as mono, or note in `exclusions` why it cannot be used and return None."""
    try:
        sound = Sound(*read_audio(path))
    except ValueError:
        exclusions.unreadable.append(name)
        return None
    if np.abs(sound.samples).max() < SILENCE_PEAK:
        exclusions.silent.append(name)
        return None
    if sound.seconds < min_seconds:
        exclusions.short.append(name)
        return None
    return sound
