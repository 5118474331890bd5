"""Evaluation of a folder of generated sounds against a folder of references and captions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from tqdm import tqdm

from ..audio_utils import normalize_audio
from .backbones import AudioFeatures, Backbone, BackboneUnavailableError, load_backbone
from .bootstrap import bootstrap_mean_interval
from .consistency import text_consistency
from .divergence import kl_divergence
from .frechet import (
    GroupedMoments,
    bootstrap_frechet_interval,
    extrapolate_frechet_distance,
    frechet_distance,
)
from .presets import METRICS, FeatureSettings, Preset, get_preset
from .sounds import Exclusions, Sound, find_sounds, read_captions, read_usable

SIDES = ("generated", "references")
VERSIONED_PACKAGES = (
    "audiogen_hf",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "torchvggish",
    "hear21passt",
    "laion_clap",
)
Backbones = dict[tuple[str, str | None], Backbone]  # by name and checkpoint


@dataclasses.dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: Metrics, counts, preset, versions and warnings; JSON types only.
        clips: One dict a clip: its name, caption, paths, and its own KLD and consistency where they were computed.
    """

    results: dict
    clips: list[dict]

    def save(self, folder: str | Path) -> None:
        """Write `results.json` and `clips.jsonl` into `folder`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "results.json", json.dumps(self.results, indent=2, allow_nan=False) + "\n")
        write_text(folder / "clips.jsonl", "".join(json.dumps(clip, allow_nan=False) + "\n" for clip in self.clips))


def evaluate_folders(
    generated: str | Path,
    references: str | Path | None = None,
    *,
    preset: str | Preset = "default",
    metrics: list[str] | None = None,
    captions: dict[str, str] | None = None,
    backbones: Backbones | None = None,
    device: str | torch.device | None = None,
    allow_resampling: bool = True,
    progress: bool = False,
) -> Evaluation | None:
    """Compare a folder of sounds with a folder of references and with captions.

    Sounds pair up by their path in the folder without suffix. FAD compares the two sets and needs no pairs; KLD
    compares pairs; consistency compares each generated sound with its caption. Runs under `accelerate launch` with
    many processes: each takes a share of the clips.

    Args:
        generated: Folder of sounds to judge.
        references: Folder of real sounds. FAD and KLD need it.
        preset: Name of a preset, or settings of your own.
        metrics: Some of "fad", "kld", "text_consistency". By default those that the folders allow: FAD with
            references, KLD if each generated sound has a reference, consistency if each has a caption.
        captions: Caption by name. By default from `metadata.jsonl` or `metadata.csv` in `generated`, else in
            `references`.
        backbones: What [`load_backbones`] returned, to load them only once for several folders.
        device: Where backbones loaded here run. By default the accelerator, if there is one.
        allow_resampling: Whether a sound whose rate is not the backbone's may be resampled. If not, it is an error.
        progress: Whether to show a progress bar.

    Returns:
        The evaluation; None on every process but the main one.

    Raises:
        ValueError: An empty folder, a metric whose inputs are missing, no usable sound, or a rate that is not allowed.
        BackboneUnavailableError: A backbone of the preset cannot be loaded.
    """
    # 1. What there is, and what can be asked of it
    preset = get_preset(preset) if isinstance(preset, str) else preset
    sounds = {"generated": find_sounds(generated)}
    if references is not None:
        sounds["references"] = find_sounds(references)
    if captions is None:
        captions = read_captions(generated) or (read_captions(references) if references is not None else {})
    reasons = choose_metrics(metrics, sounds, captions)

    # 2. Features of this process's share of the clips
    state = process_state(device)
    if backbones is None:
        chosen = [metric for metric, reason in reasons.items() if reason is None]
        backbones = load_backbones(preset, chosen, device or state.device)
    collector = FeatureCollector(preset, reasons, captions, backbones, allow_resampling)
    names = sorted(set().union(*sounds.values()))
    share = range(state.process_index, len(names), state.num_processes)
    for index in tqdm(share, desc="evaluating", disable=not (progress and state.is_main_process)):
        collector.add(index, names[index], {side: files.get(names[index]) for side, files in sounds.items()})

    # 3. One account of all processes
    collector.reduce(state)
    if not state.is_main_process:
        return None
    return Evaluation(summarize(collector, {side: len(files) for side, files in sounds.items()}), collector.clips)


def process_state(device: str | torch.device | None) -> PartialState:
    """Return this process's place among those launched; on CPUs they find each other only when told to."""
    on_cpu = torch.device(device).type == "cpu" if device is not None else not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu)


def choose_metrics(
    metrics: list[str] | None, sounds: dict[str, dict[str, Path]], captions: dict[str, str]
) -> dict[str, str | None]:
    """Return, by metric, None if it is to be computed, else why not.

    Raises:
        ValueError: A metric asked for is unknown or lacks its inputs, or none is left.
    """
    names = sounds["generated"]
    reasons: dict[str, str | None] = dict.fromkeys(METRICS)
    if "references" not in sounds:
        reasons["fad"] = reasons["kld"] = "there are no references"
    elif unpaired := [name for name in names if name not in sounds["references"]]:
        reasons["kld"] = (
            f"{len(unpaired)} of {len(names)} generated sounds have no reference of their name, such as {unpaired[0]}"
        )
    if uncaptioned := [name for name in names if not captions.get(name)]:
        reasons["text_consistency"] = (
            f"{len(uncaptioned)} of {len(names)} generated sounds have no caption, such as {uncaptioned[0]}"
        )

    if metrics is not None:
        for metric in check_metrics(metrics):
            if reasons[metric]:
                raise ValueError(f"{metric} cannot be computed: {reasons[metric]}")
        for metric in set(METRICS) - set(metrics):
            reasons[metric] = "not asked for"
    if all(reasons.values()):
        raise ValueError(
            "nothing can be computed: " + "; ".join(f"{metric}: {reason}" for metric, reason in reasons.items())
        )
    return reasons


def check_metrics(metrics: list[str] | None) -> list[str]:
    """Return the metrics asked for, all for None. Raises `ValueError` if one is unknown or none is left."""
    metrics = list(METRICS) if metrics is None else metrics
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must be some of {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}")
    return metrics


def load_backbones(preset: Preset, metrics: list[str], device: str | torch.device) -> Backbones:
    """Load what a preset needs for some metrics, by name and checkpoint.

    Raises:
        BackboneUnavailableError: One cannot be loaded; the message says what for and how to get it.
    """
    backbones: Backbones = {}
    for metric in metrics:
        setting: FeatureSettings = getattr(preset, metric)
        key = (setting.backbone, setting.checkpoint)
        if key not in backbones:
            try:
                backbones[key] = load_backbone(*key, device=device)
            except BackboneUnavailableError as error:
                raise BackboneUnavailableError(f"{metric} (or choose other metrics): {error}") from error
    return backbones


class FeatureCollector:
    """Runs the backbones over clips and keeps what the metrics need: moments of both sets, and one row a clip."""

    def __init__(
        self,
        preset: Preset,
        metrics: dict[str, str | None],
        captions: dict[str, str],
        backbones: Backbones,
        allow_resampling: bool,
    ):
        self.preset = preset
        self.metrics = metrics
        self.captions = captions
        self.allow_resampling = allow_resampling
        self.settings: dict[str, FeatureSettings] = {
            metric: getattr(preset, metric) for metric, reason in metrics.items() if reason is None
        }
        self.backbones = backbones
        self.moments = {side: GroupedMoments() for side in SIDES}
        self.exclusions = {side: Exclusions() for side in SIDES}
        self.clips: list[dict] = []

    def add(self, index: int, name: str, paths: dict[str, Path | None]) -> None:
        """Take in one clip: the generated sound, its reference, or both."""
        sounds: dict[str, Sound] = {}
        for side, path in paths.items():
            if path is not None:
                sound = read_usable(path, name, self.preset.min_seconds, self.exclusions[side])
                if sound is not None:
                    sounds[side] = sound
        length = min([self.preset.clip_seconds, *(sound.seconds for sound in sounds.values())])
        features = {side: self._features(sound.cut(length), f"{side} {name}") for side, sound in sounds.items()}

        if "fad" in self.settings:
            for side, by_setting in features.items():
                self.moments[side].update(by_setting[self.settings["fad"]].embeddings, index)
        clip = {"index": index, "name": name, "caption": self.captions.get(name)}
        clip |= {side: str(path) for side, path in paths.items() if path is not None}
        if "kld" in self.settings and len(features) == 2:
            target, generated = (features[side][self.settings["kld"]] for side in ("references", "generated"))
            clip["kld"] = float(kl_divergence(target.probabilities[None], generated.probabilities[None])[0])
        if "text_consistency" in self.settings and "generated" in features:
            setting = self.settings["text_consistency"]
            audio = features["generated"][setting].embeddings.mean(axis=0, keepdims=True)
            text = self.backbones[setting.backbone, setting.checkpoint].text_features([self.captions[name]])
            clip["text_consistency"] = float(text_consistency(text, audio)[0])
        if "generated" in paths and paths["generated"] is not None:
            self.clips.append(clip)

    def _features(self, sound: Sound, label: str) -> dict[FeatureSettings, AudioFeatures]:
        features = {}
        for setting in set(self.settings.values()):
            backbone = self.backbones[setting.backbone, setting.checkpoint]
            samples = sound.samples_for(backbone.info, self.allow_resampling, label)
            if setting.normalization != "none":
                samples = normalize_audio(samples, backbone.info.sampling_rate, setting.normalization)
            features[setting] = backbone.audio_features(samples, backbone.info.sampling_rate)
        return features

    def reduce(self, state: PartialState) -> None:
        """Join what the processes collected; afterwards each holds the whole."""
        if state.num_processes == 1:
            return

        def sum_over_processes(array: np.ndarray) -> np.ndarray:
            return reduce(torch.from_numpy(array).to(state.device), "sum").cpu().numpy()

        if "fad" in self.settings:
            for moments in self.moments.values():
                dims = gather_object([0 if moments.means is None else moments.means.shape[1]])
                if any(dims):
                    moments.reduce(sum_over_processes, max(dims))
        self.clips = sorted(gather_object(self.clips), key=lambda clip: clip["index"])
        for side, parts in zip(
            SIDES, zip(*gather_object([tuple(self.exclusions.values())]), strict=True), strict=True
        ):
            self.exclusions[side] = Exclusions(
                *(
                    sorted(name for part in parts for name in getattr(part, field.name))
                    for field in dataclasses.fields(Exclusions)
                )
            )


def summarize(collector: FeatureCollector, counts: dict[str, int]) -> dict:
    """Return the results of a collector that has seen all clips.

    Raises:
        ValueError: No clip was usable.
    """
    used = {side: count - collector.exclusions[side].count for side, count in counts.items()}
    for side, count in used.items():
        if count == 0:
            raise ValueError(f"none of the {counts[side]} {side} sounds can be used: {collector.exclusions[side]}")
    metrics: dict[str, dict] = {}
    if "fad" in collector.settings:
        if min(used.values()) < 2:
            raise ValueError(f"fad needs at least two usable clips in each set, got {used}")
        metrics["fad"] = summarize_fad(collector.moments["generated"], collector.moments["references"])
    for metric in ("kld", "text_consistency"):
        if metric in collector.settings:
            values = [clip[metric] for clip in collector.clips if metric in clip]
            if not values:
                raise ValueError(f"{metric} cannot be computed: no usable sound has a usable partner")
            metrics[metric] = {
                "value": float(np.mean(values)),
                "confidence_interval": bootstrap_mean_interval(np.array(values)),
                "clips": len(values),
            }
    return {
        "metrics": metrics,
        "not_computed": {metric: reason for metric, reason in collector.metrics.items() if reason},
        "clips": {
            side: {
                "found": counts[side],
                "used": used[side],
                "excluded": dataclasses.asdict(collector.exclusions[side]),
            }
            for side in counts
        },
        "warnings": find_warnings(collector, metrics, used),
        "preset": collector.preset.to_dict(),
        "backbones": {
            backbone.info.name: {
                "checkpoint": backbone.checkpoint,
                "sampling_rate": backbone.info.sampling_rate,
                "licence": backbone.info.licence,
                "source": backbone.info.source,
            }
            for backbone in collector.backbones.values()
        },
        "versions": installed_versions(),
    }


def summarize_fad(generated: GroupedMoments, references: GroupedMoments) -> dict:
    """Return the distance, its interval and its extrapolation, and what they were taken from."""
    first, second = generated.total(), references.total()
    limit = extrapolate_frechet_distance(generated, second)
    return {
        "value": frechet_distance(first, second),
        "confidence_interval": bootstrap_frechet_interval(generated, references),
        "infinity": None if limit is None else limit.value,
        "infinity_r_squared": None if limit is None else limit.r_squared,
        "windows": {"generated": first.count, "references": second.count},
        "dimensions": len(first.mean),
    }


def find_warnings(collector: FeatureCollector, metrics: dict[str, dict], used: dict[str, int]) -> list[str]:
    """Return what a reader must know before comparing the figures with others."""
    warnings = []
    for side, exclusions in collector.exclusions.items():
        if exclusions.count:
            warnings.append(
                f"{exclusions.count} {side} sounds are left out: {len(exclusions.silent)} silent, "
                f"{len(exclusions.unreadable)} unreadable, {len(exclusions.short)} too short"
            )
    expected = collector.preset.num_clips
    if expected is not None and used["generated"] < expected:
        warnings.append(f"the preset's figures were taken on {expected} clips, these on {used['generated']}")
    if "fad" in metrics and min(metrics["fad"]["windows"].values()) < metrics["fad"]["dimensions"]:
        warnings.append(
            "FAD is taken on fewer windows than the embedding has dimensions: it is far too large, compare "
            "it only with sets of the same size"
        )
    return warnings


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a figure, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that it is whole or absent."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
