"""Judges a trained audiogen-tiny by this library's own metrics, and writes a report for people and one for programs.

    python examples/tiny/evaluate.py --data data/tiny --output evaluation
    python examples/tiny/evaluate.py --model runs/tiny/last --data data/tiny --output evaluation --parts generation

A sound shows its class if one of the AudioSet classes that expected_audioset.csv gives for the class is among the five
that YAMNet scores highest over the whole clip. Every class of captions.yaml is judged that this table covers and that
has training clips. Figures are given over all of them, and over the known ones: those that YAMNet hears in at least
half of the real clips that the model learned from. What it misses there, no copy could show.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.dataset
import torch
import yaml
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor, optimize_for_cpu
from audiogen_hf.audio_utils import read_audio
from audiogen_hf.data.clips import draw_text, random_stream
from audiogen_hf.metrics import bootstrap_mean_interval, frechet_audio_distance, kl_divergence, load_backbone
from audiogen_hf.metrics.evaluation import installed_versions, write_text
from audiogen_hf.metrics.yamnet import class_names
from audiogen_hf.training.codec.losses import MelDistance, si_snr
from audiogen_hf.training.codec.trainer import codebook_statistics, count_codes

HERE = Path(__file__).parent
SECONDS = 5.0  # of every clip of the language model
TOP = 5
PROMPTS = {"caption": "phrase", "paraphrase": "held_out"}  # kind of prompt: its key in captions.yaml
LEARNED_CLIPS = 4  # of each class, judged as the model's ideal; the first ones are windows as they are
KNOWN_SHARE = 0.5  # of these, in which the judge hears a class that it knows
MEMORY_CLASSES = 10
TIMED_RUNS = 3

# arXiv 2210.13438, table 3: 24 kHz, 6 kbit/s, an equal mix of speech and music. It gives no mel distance.
ENCODEC_PAPER = {"streamable": 6.67, "not streamable": 7.46}

# Runs a command and prints its seconds and peak memory. A process of its own, because a child's peak counts from that
# of the process that starts it.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10)}))
sys.exit(done.returncode)
"""


# ------------------------------------------------------------------------------------------------------------ the data


@dataclass(frozen=True)
class SoundClass:
    """A class of sounds, what to prompt it with, and what YAMNet may call it."""

    name: str
    prompts: dict[str, str]  # by kind
    expected: frozenset[str]  # AudioSet classes
    confirmed: bool
    num_recordings: int  # files in the training data


@dataclass(frozen=True)
class Clip:
    """A real recording: (N,) float32 samples."""

    sound_class: str
    file_id: str  # the package and the file
    captions: list[str]
    samples: np.ndarray


def read_rows(path: Path, columns: list[str], classes: Iterable[str] | None = None) -> Iterator[dict]:
    """Yields rows of a parquet file, those of some classes or all."""
    chosen = None if classes is None else pyarrow.dataset.field("sound_class").isin(list(classes))
    for batch in pyarrow.dataset.dataset(path).to_batches(columns=columns, filter=chosen, batch_size=100):
        yield from batch.to_pylist()


def read_clips(path: Path, sampling_rate: int, classes: Iterable[str] | None = None) -> Iterator[Clip]:
    for row in read_rows(path, ["sound_class", "file_id", "description", "audio"], classes):
        samples, _ = read_audio(BytesIO(row["audio"]["bytes"]), sampling_rate)
        yield Clip(row["sound_class"], row["file_id"], row["description"], samples)


def read_classes(data: Path) -> list[SoundClass]:
    """The classes to judge, in alphabetical order.

    Raises:
        ValueError: there is none, or a paraphrase that should be new to the model was trained on.
    """
    with open(HERE / "expected_audioset.csv", newline="", encoding="utf-8") as file:
        expected = defaultdict(set)
        for row in csv.DictReader(file):
            expected[row["sound_class"]].add(row["audioset_class"])
    captions = yaml.safe_load((HERE / "captions.yaml").read_text(encoding="utf-8"))
    files, confirmed, trained_on = defaultdict(set), set(), set()
    train = data / "lm" / "train.parquet"
    for row in read_rows(train, ["sound_class", "file_id", "confirmed", "description"]):
        files[row["sound_class"]].update(row["file_id"].split(" + "))
        trained_on.update(row["description"])
        if row["confirmed"]:
            confirmed.add(row["sound_class"])
    classes = [
        SoundClass(
            name,
            {kind: entry[key] for kind, key in PROMPTS.items()},
            frozenset(expected[name]),
            name in confirmed,
            len(files[name]),
        )
        for name, entry in sorted(captions.items())
        if name in expected and name in files
    ]
    if not classes:
        raise ValueError(f"{train} has no clip of a class that captions.yaml and expected_audioset.csv describe")
    for sound_class in classes:
        if sound_class.prompts["paraphrase"] in trained_on:
            raise ValueError(f"{train}: the held-out paraphrase of {sound_class.name} is a caption of a training clip")
    return classes


# ------------------------------------------------------------------------------------------------ listening, making


@dataclass(frozen=True)
class Heard:
    """What YAMNet says of a sound.

    scores: (521,) sigmoid scores, the mean over frames.
    tags: (521,) distribution over the classes, of which the KL divergence is taken.
    embeddings: (frames, 1024), of which the Fréchet distance is taken.
    """

    scores: np.ndarray
    tags: np.ndarray
    embeddings: np.ndarray

    def top(self, count: int = TOP) -> list[str]:
        """The AudioSet classes that score highest, best first."""
        return [class_names()[index] for index in np.argsort(-self.scores, kind="stable")[:count]]

    def judge(self, sound_class: SoundClass) -> dict:
        """Whether the sound shows its class, and what YAMNet hears first."""
        top = self.top()
        return {"shown": not sound_class.expected.isdisjoint(top), "heard": top[0]}

    @property
    def direction(self) -> np.ndarray:
        """(1024,) the embedding pooled over time, of length 1: products of two are cosines."""
        pooled = self.embeddings.mean(axis=0)
        return pooled / max(np.linalg.norm(pooled), 1e-12)


class Listener:
    """YAMNet, as the metrics load it."""

    def __init__(self):
        self.backbone = load_backbone("yamnet")

    def __call__(self, samples: np.ndarray) -> Heard:
        features = self.backbone.audio_features(samples, self.backbone.info.sampling_rate)
        logits = self.backbone.model.model.classifier(torch.from_numpy(features.embeddings))
        return Heard(logits.sigmoid().mean(dim=0).numpy(), features.probabilities, features.embeddings)


@dataclass(frozen=True)
class Take:
    """A sound that a model made or encoded: its (K, T) codes, and what YAMNet hears in it."""

    codes: np.ndarray
    heard: Heard


class SoundMaker:
    """Makes sounds with one model; a sound that was made before is not made again."""

    def __init__(self, label: str, model, processor, listener: Listener, batch_size: int, sampling: dict):
        self.label = label
        self.model = model
        self.processor = processor
        self.listener = listener
        self.batch_size = batch_size
        self.sampling = sampling
        self._takes: dict[tuple[str, int], Take] = {}

    def takes(self, requests: Sequence[tuple[str, int]]) -> list[Take]:
        """A take of each (prompt, seed); the same as `audiogen-hf generate PROMPT --seed SEED` makes."""
        missing = [request for request in dict.fromkeys(requests) if request not in self._takes]
        with tqdm(total=len(missing), desc=self.label, disable=None) as progress:
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                output = self.model.generate(
                    **self.processor(text=[prompt for prompt, _ in batch]),
                    audio_length_in_s=SECONDS,
                    generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                    return_dict_in_generate=True,
                    **self.sampling,
                )
                for request, codes, audio in zip(batch, output.audio_codes, output.audio, strict=True):
                    self._takes[request] = Take(codes.numpy(), self.listener(audio[0].numpy()))
                progress.update(len(batch))
        return [self._takes[request] for request in requests]


class Bench:
    """All that the parts of the evaluation share: options, data and models, each loaded when first asked for."""

    def __init__(self, options: argparse.Namespace):
        self.name, self.data, self.batch_size = options.model, options.data, options.batch_size
        self.seeds = range(options.seeds)
        self.splits = options.splits
        sampling = {name: getattr(options, name) for name in ("guidance_scale", "temperature", "top_k")}
        self.sampling = {name: value for name, value in sampling.items() if value is not None}
        self.classes = read_classes(self.data)[: options.max_classes]

    @cached_property
    def listener(self) -> Listener:
        return Listener()

    @cached_property
    def trained(self) -> SoundMaker:
        model = AudioGenForConditionalGeneration.from_pretrained(self.name).eval()
        if model.config.sampling_rate != self.listener.backbone.info.sampling_rate:
            raise ValueError(f"{self.name} makes sound at {model.config.sampling_rate} Hz, YAMNet hears 16000 Hz")
        processor = AudioGenProcessor.from_pretrained(self.name)
        optimize_for_cpu(model)  # as the command does
        return SoundMaker("trained", model, processor, self.listener, self.batch_size, self.sampling)

    @cached_property
    def untrained(self) -> SoundMaker:
        """A model of the same shape with a new decoder; text encoder and tokenizer are the trained ones."""
        trained = self.trained.model
        torch.manual_seed(0)
        model = AudioGenForConditionalGeneration(trained.config).eval()
        model.text_encoder, model.audio_encoder = trained.text_encoder, trained.audio_encoder
        model.generation_config = trained.generation_config
        optimize_for_cpu(model)
        return SoundMaker("untrained", model, self.trained.processor, self.listener, self.batch_size, self.sampling)

    @cached_property
    def held_out(self) -> list[Clip]:
        """The real clips of the judged classes that the model was not trained on."""
        names = [sound_class.name for sound_class in self.classes]
        paths = [self.data / "lm" / f"{split}.parquet" for split in self.splits]
        return [clip for path in paths for clip in read_clips(path, self.sampling_rate, names)]

    @cached_property
    def learned(self) -> list[Clip]:
        """The first training clips of each class."""
        clips = defaultdict(list)
        names = [sound_class.name for sound_class in self.classes]
        for clip in read_clips(self.data / "lm" / "train.parquet", self.sampling_rate, names):
            if len(clips[clip.sound_class]) < LEARNED_CLIPS:
                clips[clip.sound_class].append(clip)
        return [clip for name in names for clip in clips[name]]

    @cached_property
    def held_out_heard(self) -> list[Heard]:
        return [self.listener(clip.samples) for clip in self.held_out]

    @cached_property
    def reconstructed_heard(self) -> list[Heard]:
        """The held-out clips after the tokenizer: the best that a model of its codes can do."""
        return [self.listener(self.reconstruct(clip.samples)[0]) for clip in self.held_out]

    @property
    def sampling_rate(self) -> int:
        return self.trained.model.config.sampling_rate

    def encode(self, samples: np.ndarray) -> torch.Tensor:
        """(N,) samples -> (1, K, T) codes."""
        return self.trained.model.encode_audio(torch.from_numpy(samples)[None, None])

    def reconstruct(self, samples: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """(N,) samples -> the same through the tokenizer, and its codes (1, K, T)."""
        codes = self.encode(samples)
        return self.trained.model.decode_audio(codes)[0, 0, : len(samples)].numpy(), codes


# ----------------------------------------------------------------------------------------------------------- the parts


def measure_speed(bench: Bench) -> dict:
    """The command from a cold start to a file of 5 s, and generation alone; one prompt at a time."""
    prompt = bench.classes[0].prompts["caption"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [prompt, "--duration", SECONDS, "--model", bench.name, "--output", folder, "--quiet"]
        command = [sys.executable, "-m", "audiogen_hf", "generate", *map(str, arguments)]
        done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"audiogen-hf generate failed: {(done.stderr.strip() or 'no reason').splitlines()[-1]}")
    maker = bench.trained
    inputs = maker.processor(text=[prompt])
    times = []
    for _ in range(1 + TIMED_RUNS):
        start = time.perf_counter()
        maker.model.generate(**inputs, audio_length_in_s=SECONDS, **bench.sampling)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])  # the first one warms up
    return {
        "cold_start": json.loads(done.stdout),
        "generation_seconds": seconds,
        "real_time_factor": SECONDS / seconds,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def judge_generation(bench: Bench) -> dict:
    """What YAMNet hears in sounds of each class's caption and paraphrase."""
    return judge_prompts(bench, bench.trained, bench.seeds)


def judge_floor(bench: Bench) -> dict:
    """The same of an untrained model, with one seed."""
    return judge_prompts(bench, bench.untrained, bench.seeds[:1])


def judge_prompts(bench: Bench, maker: SoundMaker, seeds: Sequence[int]) -> dict:
    """Kind of prompt -> class -> a verdict a seed."""
    prompts = [(c, kind) for kind in PROMPTS for c in bench.classes]
    takes = iter(maker.takes([(c.prompts[kind], seed) for c, kind in prompts for seed in seeds]))
    verdicts = {kind: {} for kind in PROMPTS}
    for sound_class, kind in prompts:
        verdicts[kind][sound_class.name] = [next(takes).heard.judge(sound_class) for _ in seeds]
    return verdicts


def judge_ceiling(bench: Bench) -> dict:
    """What YAMNet hears in real clips, as they are and after the tokenizer: kind -> class -> a verdict a clip."""
    classes = {sound_class.name: sound_class for sound_class in bench.classes}
    heard = {
        "learned": (bench.learned, [bench.listener(clip.samples) for clip in bench.learned]),
        "learned, reconstructed": (
            bench.learned,
            [bench.listener(bench.reconstruct(clip.samples)[0]) for clip in bench.learned],
        ),
        "real": (bench.held_out, bench.held_out_heard),
        "reconstructed": (bench.held_out, bench.reconstructed_heard),
    }
    verdicts = {kind: defaultdict(list) for kind in heard}
    for kind, (clips, all_heard) in heard.items():
        for clip, one_heard in zip(clips, all_heard, strict=True):
            verdicts[kind][clip.sound_class].append(one_heard.judge(classes[clip.sound_class]))
    return verdicts


def measure_distances(bench: Bench) -> dict:
    """FAD and KLD against the held-out clips, of sounds generated from their captions and of what bounds these."""
    if len(bench.held_out) < 2:
        raise ValueError(f"FAD needs two held-out clips at least, {bench.data / 'lm'} has {len(bench.held_out)}")
    requests = [
        (draw_text(clip.captions, random_stream(0, 0, index)), index) for index, clip in enumerate(bench.held_out)
    ]
    sounds = {
        "generated": [take.heard for take in bench.trained.takes(requests)],
        "reconstructed": bench.reconstructed_heard,
        "untrained": [take.heard for take in bench.untrained.takes(requests)],
    }
    target_embeddings = np.concatenate([heard.embeddings for heard in bench.held_out_heard])
    target_tags = np.stack([heard.tags for heard in bench.held_out_heard])
    result = {"clips": len(bench.held_out), "windows": len(target_embeddings)}
    for name, all_heard in sounds.items():
        divergences = kl_divergence(target_tags, np.stack([heard.tags for heard in all_heard]))
        result[name] = {
            "fad": frechet_audio_distance(np.concatenate([h.embeddings for h in all_heard]), target_embeddings),
            "kld": float(divergences.mean()),
            "kld_interval": bootstrap_mean_interval(divergences),
        }
    return result


def measure_reconstruction(bench: Bench) -> dict:
    """The tokenizer on its held-out clips, each as a whole, by the measures that its training reports."""
    config = bench.trained.model.config
    mel_distance = MelDistance(config.sampling_rate)
    distances, seconds, ratios = 0.0, 0.0, []
    counts = {}
    for split in ("test", "train"):
        clips = read_clips(bench.data / "codec" / f"{split}.parquet", config.sampling_rate)
        counts[split] = torch.zeros(config.decoder.num_codebooks, config.decoder.vocab_size, dtype=torch.int64)
        for clip in tqdm(clips, desc=f"codec/{split}", disable=None):
            if split == "train":
                codes = bench.encode(clip.samples)
            else:
                samples, codes = bench.reconstruct(clip.samples)
                pair = torch.from_numpy(samples)[None, None], torch.from_numpy(clip.samples)[None, None]
                duration = len(samples) / config.sampling_rate
                distances += mel_distance(*pair).item() * duration
                seconds += duration
                ratios.append(si_snr(*pair).item())
            counts[split] += count_codes(codes, config.decoder.vocab_size)
    if not ratios:
        raise ValueError(f"{bench.data / 'codec' / 'test.parquet'} has no clip")
    codes = {}
    for split, count in counts.items():
        use, perplexity = codebook_statistics(count)
        shares = [codebook_statistics(codebook[None])[0] for codebook in count]
        codes[split] = {"use": use, "use_per_codebook": shares, "perplexity": perplexity}
    return {
        "kbit_per_second": config.audio_encoder.target_bandwidths[-1],
        "clips": len(ratios),
        "seconds": seconds,
        "mel_distance": distances / seconds,
        "si_snr": statistics.mean(ratios),
        "si_snr_median": statistics.median(ratios),
        "codes": codes,
    }


def check_memory(bench: Bench) -> dict:
    """How near sounds come to the training clips of their class, and seeds to each other.

    For the classes with the most training recordings: the nearest training clip of each generated sound and of each
    real held-out clip, by YAMNet's embedding and by codes; and how alike two seeds of a prompt are, beside two
    training clips of different recordings.
    """
    classes = sorted(bench.classes, key=lambda c: (-c.num_recordings, c.name))[:MEMORY_CLASSES]
    names = [sound_class.name for sound_class in classes]
    clips = read_clips(bench.data / "lm" / "train.parquet", bench.sampling_rate, names)
    training = defaultdict(list)  # class -> (file, take)
    for clip in tqdm(clips, desc="training clips", disable=None):
        take = Take(bench.encode(clip.samples)[0].numpy(), bench.listener(clip.samples))
        training[clip.sound_class].append((clip.file_id, take))
    held_out = defaultdict(list)
    for clip, heard in zip(bench.held_out, bench.held_out_heard, strict=True):
        if clip.sound_class in training:
            held_out[clip.sound_class].append(Take(bench.encode(clip.samples)[0].numpy(), heard))
    requests = [(c.prompts[kind], seed) for c in classes for kind in PROMPTS for seed in bench.seeds]
    made = dict(zip(requests, bench.trained.takes(requests), strict=True))

    result = {}
    for sound_class in classes:
        known = training[sound_class.name]
        prompts = [[made[sound_class.prompts[kind], seed] for seed in bench.seeds] for kind in PROMPTS]
        pairs = [(a, b) for (file, a), (other_file, b) in combinations(known, 2) if file != other_file]
        result[sound_class.name] = {
            "recordings": sound_class.num_recordings,
            "training_clips": len(known),
            "generated": [nearest(take, known) for takes in prompts for take in takes],
            "held_out": [nearest(take, known) for take in held_out[sound_class.name]],
            "two_seeds": average([compare(*pair) for takes in prompts for pair in combinations(takes, 2)]),
            "two_training_clips": average([compare(*pair) for pair in pairs]),
        }
    return result


def nearest(take: Take, others: list[tuple[str, Take]]) -> dict:
    """The largest cosine of embeddings, the largest share of equal codes at the best alignment, and whose they are."""
    cosines = np.stack([other.heard.direction for _, other in others]) @ take.heard.direction
    shares = aligned_share(take.codes, np.stack([other.codes for _, other in others]))
    return {
        "cosine": float(cosines.max()),
        "equal_codes": float(shares.max()),
        "nearest_by_cosine": others[cosines.argmax()][0],
        "nearest_by_codes": others[shares.argmax()][0],
    }


def compare(first: Take, second: Take) -> dict[str, float]:
    """Cosine of embeddings, and share of equal codes at equal times."""
    return {
        "cosine": float(first.heard.direction @ second.heard.direction),
        "equal_codes": float((first.codes == second.codes).mean()),
    }


def average(pairs: list[dict]) -> dict[str, float] | None:
    """The mean of both figures; None of none."""
    return {key: statistics.mean(p[key] for p in pairs) for key in ("cosine", "equal_codes")} if pairs else None


def aligned_share(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest share of equal codes over all shifts that leave half of the frames in common.

    Args:
        codes: (K, T).
        others: (N, K, T).

    Returns:
        (N,)
    """
    length = codes.shape[-1]
    shares = []
    for shift in range(-(length // 2), length // 2 + 1):
        mine = codes[:, max(0, shift) : length + min(0, shift)]
        theirs = others[:, :, max(0, -shift) : length - max(0, shift)]
        shares.append((mine == theirs).mean(axis=(1, 2)))
    return np.max(shares, axis=0)


# ---------------------------------------------------------------------------------------------------------- the report


def summarize(results: dict) -> dict:
    """Column -> group of classes -> the mean over classes of the share of sounds that show their class.

    A column tells of the groups of which it has every class: real clips are not held out of all.
    """
    columns = shares_by_class(results)
    held_out = set(columns.get("real", ()))
    known = {name for name, share in columns.get("learned", {}).items() if share >= KNOWN_SHARE}
    groups = {
        "all": set(results["classes"]),
        "known": known,
        "with held-out clips": held_out,
        "known, with held-out clips": known & held_out,
    }
    summary = {}
    for column, shares in columns.items():
        summary[column] = {}
        for group, names in groups.items():
            if names and names <= shares.keys():
                values = np.array([shares[name] for name in sorted(names)])
                interval = bootstrap_mean_interval(values)
                summary[column][group] = {"share": values.mean(), "interval": interval, "classes": len(values)}
    return summary


def shares_by_class(results: dict) -> dict[str, dict[str, float]]:
    """Column -> class -> share of sounds that show it."""
    columns = {}
    for part, prefix in (("ceiling", ""), ("generation", ""), ("floor", "untrained, ")):
        kinds = results.get(part, {})
        for kind, verdicts in kinds.items():
            columns[prefix + kind] = {
                name: statistics.mean(verdict["shown"] for verdict in sounds) for name, sounds in verdicts.items()
            }
        if part == "generation" and kinds:
            both = [columns[kind] for kind in PROMPTS]
            columns["overall"] = {name: statistics.mean(kind[name] for kind in both) for name in both[0]}
    return columns


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def render_speed(results: dict) -> str:
    speed = results["speed"]
    cold = speed["cold_start"]
    return (
        f"`audiogen-hf generate` from a cold start to a file of {SECONDS:g} s: {cold['seconds']:.1f} s, "
        f"{cold['peak_mib']:.0f} MiB at most. Generation alone, one sound of {SECONDS:g} s after loading: "
        f"{speed['generation_seconds']:.2f} s, {speed['real_time_factor']:.1f} times real time "
        f"(median of {TIMED_RUNS}; {speed['threads']} threads on {speed['cpus']} cores)."
    )


def render_judged(results: dict) -> str:
    """One table for generation, floor and ceiling, then the classes, worst first."""
    summary = results["summary"]
    groups = list(max(summary.values(), key=len))  # generated sounds have all of them

    def cell(entry: dict | None) -> str:
        if entry is None:
            return "–"
        interval = entry["interval"]
        return percent(entry["share"]) + (f" ({percent(interval[0])} … {percent(interval[1])})" if interval else "")

    sizes = [max(column[group]["classes"] for column in summary.values() if group in column) for group in groups]
    header = ["sounds of", *(f"{group} ({size})" for group, size in zip(groups, sizes, strict=True))]
    lines = [
        f"Share of sounds with an expected AudioSet class among YAMNet's first {TOP}: mean over classes, and 95% "
        f"interval over classes. Known are those that YAMNet hears in {percent(KNOWN_SHARE)} or more of the "
        f"{LEARNED_CLIPS} training clips of a class that it was given (learned); the real clips were held out.",
        "",
        table(header, ([name, *(cell(column.get(group)) for group in groups)] for name, column in summary.items())),
    ]
    if "generation" in results:
        lines += ["", render_classes(results)]
    return "\n".join(lines)


def render_classes(results: dict) -> str:
    """A line a class, those that fail most first."""
    shares = shares_by_class(results)
    ceiling = results.get("ceiling")

    def real(name: str) -> str:
        if name not in ceiling["real"]:
            return "none held out"
        pair = " / ".join(percent(shares[kind][name]) for kind in ("real", "reconstructed"))
        return f"{pair} of {len(ceiling['real'][name])}"

    rows = []
    for name in sorted(shares["overall"], key=lambda name: (shares["overall"][name], name)):
        sounds = [sound for kind in PROMPTS for sound in results["generation"][kind][name]]
        misses = dict.fromkeys(sound["heard"] for sound in sounds if not sound["shown"])
        label = name if results["classes"][name]["confirmed"] else f"{name} (not confirmed)"
        prompts = [percent(shares[kind][name]) for kind in PROMPTS]
        rows.append([label, *prompts, *([real(name)] if ceiling else []), ", ".join(misses)])
    columns = ["class", *PROMPTS, *(["real clips / after the tokenizer"] if ceiling else []), "heard instead"]
    return table(columns, rows)


def render_distance(results: dict) -> str:
    distance = results["distance"]
    rows = [
        [name, f"{distance[name]['fad']:.2f}", f"{distance[name]['kld']:.2f}"]
        for name in ("reconstructed", "generated", "untrained")
    ]
    return (
        f"Against {distance['clips']} held-out clips, each prompted with one of its captions. YAMNet's embeddings "
        f"({distance['windows']} windows: compare only with sets of this size) and tags.\n\n"
        + table(["sounds", "FAD", "KLD"], rows)
    )


def render_reconstruction(results: dict) -> str:
    figures = results["reconstruction"]
    rows = [[f"this tokenizer, {figures['kbit_per_second']:g} kbit/s", f"{figures['si_snr']:.2f} dB"]]
    rows += [[f"EnCodec, 24 kHz, 6 kbit/s, {name}", f"{value:.2f} dB"] for name, value in ENCODEC_PAPER.items()]
    uses = [
        [split, percent(codes["use"]), percent(min(codes["use_per_codebook"])), f"{codes['perplexity']:.0f}"]
        for split, codes in figures["codes"].items()
    ]
    return (
        f"{figures['clips']} held-out clips, {figures['seconds'] / 60:.1f} minutes. Mel distance "
        f"{figures['mel_distance']:.3f} (mean absolute difference of log10 mel power); median SI-SNR "
        f"{figures['si_snr_median']:.2f} dB.\n\n"
        + table(["mean SI-SNR", ""], rows)
        + "\n\nEnCodec's figures are those of arXiv 2210.13438, table 3, on speech and music.\n\n"
        + table(["clips", "codes used", "in the least used codebook", "perplexity"], uses)
    )


def render_memory(results: dict) -> str:
    def cell(pair: dict | None) -> str:
        return f"{pair['cosine']:.2f} / {percent(pair['equal_codes'])}" if pair else "–"

    memory = results["memory"]
    lines = {
        f"{name} ({entry['recordings']})": [
            average(entry["generated"]),
            average(entry["held_out"]),
            entry["two_seeds"],
            entry["two_training_clips"],
        ]
        for name, entry in memory.items()
    }
    lines["mean"] = [average([pair for pair in column if pair]) for column in zip(*lines.values(), strict=True)]
    pairs = [(pair, name) for name, entry in memory.items() for pair in entry["generated"]]
    closest, name = max(pairs, key=lambda pair: pair[0]["equal_codes"])
    header = ["class (recordings)", "generated → nearest", "held-out → nearest", "two seeds", "two training clips"]
    return (
        "Cosine of YAMNet's embeddings pooled over time / share of equal codes; means over sounds. To the nearest "
        "training clip of the class codes are compared at the best alignment, else at equal times.\n\n"
        + table(header, ([line, *map(cell, cells)] for line, cells in lines.items()))
        + f"\n\nThe generated sound nearest to a training clip by codes ({name}) shares "
        f"{percent(closest['equal_codes'])} of them with `{closest['nearest_by_codes']}`; results.json names the "
        "nearest clip of every sound."
    )


# Part: what measures it, the heading of its section, what renders it. Those of one section follow each other.
PARTS = {
    "speed": (measure_speed, "Speed", render_speed),
    "reconstruction": (measure_reconstruction, "Reconstruction", render_reconstruction),
    "ceiling": (judge_ceiling, "Sounds judged by YAMNet", render_judged),
    "generation": (judge_generation, "Sounds judged by YAMNet", render_judged),
    "floor": (judge_floor, "Sounds judged by YAMNet", render_judged),
    "distance": (measure_distances, "Distance from real sounds", render_distance),
    "memory": (check_memory, "Not only memory", render_memory),
}


def write_reports(results: dict, output: Path) -> None:
    """Writes OUTPUT/results.json and OUTPUT/report.md, each whole or not at all."""
    settings = results["settings"]
    sampling = ", ".join(f"{name} {value:g}" for name, value in settings["sampling"].items())
    sections = [
        f"# Evaluation of {settings['model']}",
        f"{len(results['classes'])} classes, {sum(entry['confirmed'] for entry in results['classes'].values())} of "
        f"them confirmed by a classifier; {settings['seeds']} seeds a prompt, {SECONDS:g} s each; {sampling}; real "
        f"clips of the splits {', '.join(settings['splits'])}.",
    ]
    renderers = {heading: render for part, (_, heading, render) in PARTS.items() if part in results}
    for heading, render in renderers.items():
        sections += [f"## {heading}", render(results)]
    write_text(output / "report.md", "\n\n".join(sections) + "\n")
    write_text(output / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")


def evaluate(options: argparse.Namespace) -> None:
    """Runs the parts that were asked for; the reports are written after each, so that a stopped run leaves some."""
    options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    results = {
        "settings": {
            "model": options.model,
            "seeds": options.seeds,
            "splits": options.splits,
            "seconds_a_part": {},
        },
        "versions": installed_versions(),
        "classes": {
            sound_class.name: {
                "confirmed": sound_class.confirmed,
                "recordings": sound_class.num_recordings,
                "expected": sorted(sound_class.expected),
                **sound_class.prompts,
            }
            for sound_class in bench.classes
        },
    }
    for part, (measure, _, _) in PARTS.items():
        if part in options.parts:
            start = time.perf_counter()
            with torch.inference_mode():
                results[part] = measure(bench)
            results["settings"]["seconds_a_part"][part] = time.perf_counter() - start
            defaults = bench.trained.model.generation_config
            results["settings"]["sampling"] = {
                name: bench.sampling.get(name, getattr(defaults, name))
                for name in ("guidance_scale", "temperature", "top_k")
            }
            results["summary"] = summarize(results)
            write_reports(results, options.output)
    print((options.output / "report.md").read_text(encoding="utf-8"))


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number of at least 1, got {text!r}")
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="audiogen-tiny", help="name or folder (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="the folder that build_dataset.py made")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.md and results.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do (default: all)")
    parser.add_argument("--seeds", type=at_least_one, default=3, help="sounds a prompt (default: %(default)s)")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=("test", "validation"),
        default=["test"],
        help="real clips to compare with (default: test)",
    )
    parser.add_argument("--batch-size", type=at_least_one, default=48, help="sounds at once (default: %(default)s)")
    parser.add_argument("--max-classes", type=at_least_one, help="only the first classes, for a try (default: all)")
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own")
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument("--top-k", type=int, help="default: the model's own")
    options = parser.parse_args(arguments)
    disable_progress_bar()  # of loading
    try:
        evaluate(options)
    except (ValueError, OSError) as error:
        print(f"evaluate: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
