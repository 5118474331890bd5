"""Evaluation of a model on a dataset: its cross entropy, then sounds of its own, then their folder's evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from ..audio_utils import write_audio
from .bootstrap import bootstrap_mean_interval
from .codec import CodebookStatistics, si_snr
from .evaluation import Evaluation, check_metrics, evaluate_folders, load_backbones, process_state, write_text
from .presets import Preset, get_preset

IGNORE_INDEX = -100


@dataclass(frozen=True)
class ModelEvaluationSettings:
    """All that the sounds of an evaluation depend on.

    Attributes:
        model: Hub id or folder of the model, this library's layout or AudioCraft's.
        dataset: A source that `audiogen_hf.data.load_audio_text_dataset` opens.
        text_encoder: For AudioCraft's layout, a text encoder in place of the one it names.
        dataset_config: Configuration of a Hub dataset.
        split: Split to take.
        audio_column: Column of the sound.
        text_column: Column of the descriptions; None for the usual names.
        num_samples: Rows to take, from the first on; None for all.
        duration: Seconds of each reference to take, and of sound to generate.
        seed: The sample of row i is drawn with seed + i, whatever the batch and the number of processes.
        use_gt: Evaluate the codec: references encoded and decoded stand in for generated sounds.
        dtype: Of the model, e.g. "float16"; None for its own.
        guidance_scale, temperature, top_k, top_p: Sampling; None for the model's own.
    """

    model: str
    dataset: str
    text_encoder: str | None = None
    dataset_config: str | None = None
    split: str = "test"
    audio_column: str = "audio"
    text_column: str | None = None
    num_samples: int | None = None
    duration: float = 10.0
    seed: int = 0
    use_gt: bool = False
    dtype: str | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if self.duration <= 0:
            raise ValueError(f"duration must be positive, got {self.duration}")
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")

    @property
    def sampling(self) -> dict:
        """The sampling parameters that differ from the model's own."""
        names = ("guidance_scale", "temperature", "top_k", "top_p")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def evaluate_model(
    settings: ModelEvaluationSettings,
    output: str | Path,
    *,
    preset: str | Preset = "default",
    metrics: list[str] | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Evaluation | None:
    """Evaluate a model on a dataset of sounds with descriptions.

    Writes `output/references` (what the model was compared with, at its sampling rate), `output/samples` (its sounds,
    raw, with a metadata.jsonl, so that the folder is a dataset) and `output/generation.json` (the settings). A run
    that was interrupted goes on with the samples that are missing. Runs under `accelerate launch` with many processes.

    Args:
        settings: Model, data and sampling.
        output: Folder for all of it.
        preset, metrics: As in [`evaluate_folders`].
        batch_size: Sounds a process handles at once.
        device: Where model and backbones run; by default the accelerator, if there is one.
        progress: Whether to show progress bars.

    Returns:
        The evaluation of the folders, whose `results` also say "model" (the settings), "cross_entropy" and "codec";
        None on every process but the main one.

    Raises:
        ValueError: `output` holds sounds of other settings, a source or setting is bad, or no clip is usable.
    """
    from .. import AudioGenForConditionalGeneration, AudioGenProcessor
    from ..data import ClipDataset, ClipReader, load_audio_text_dataset

    # 1. What can fail early: the backbones, and the folder, which must be empty or of the same settings
    state = process_state(device)
    device = device or state.device
    output = Path(output)
    preset = get_preset(preset) if isinstance(preset, str) else preset
    backbones = load_backbones(preset, check_metrics(metrics), device)
    if state.is_main_process:
        claim_folder(output, settings)
    state.wait_for_everyone()

    # 2. Model and clips
    model = AudioGenForConditionalGeneration.from_pretrained(
        settings.model, text_encoder=settings.text_encoder, dtype=settings.dtype or "auto"
    )
    model = model.to(device).eval()
    processor = AudioGenProcessor.from_pretrained(settings.model, text_encoder=settings.text_encoder)
    rows = load_audio_text_dataset(
        settings.dataset,
        name=settings.dataset_config,
        split=settings.split,
        audio_column=settings.audio_column,
        text_column=settings.text_column,
    )
    if settings.num_samples is not None:
        rows = rows.select(range(min(settings.num_samples, len(rows))))
    reader = ClipReader(sampling_rate=processor.sampling_rate, segment_duration=settings.duration)
    clips = ClipDataset(rows, reader, seed=settings.seed, shuffle=False)

    # 3. This process's share: reference and sample of each clip to files, losses and codes into the account
    account = ModelAccount(model)
    share = range(state.process_index, len(clips), state.num_processes)
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    with torch.inference_mode():
        for indices in tqdm(batches, desc="sampling", disable=not (progress and state.is_main_process)):
            handle_batch(account, processor, settings, output, [(index, clips[index]) for index in indices])

    # 4. One account of all processes, and the metrics of the folders
    account.gather()
    if state.is_main_process:
        if not account.samples:
            raise ValueError(f"none of the {len(clips)} clips of {settings.dataset} is usable")
        lines = [json.dumps(sample, ensure_ascii=False) for sample in account.samples]
        write_text(output / "samples" / "metadata.jsonl", "\n".join(lines) + "\n")
    state.wait_for_everyone()
    evaluation = evaluate_folders(
        output / "samples",
        output / "references",
        preset=preset,
        metrics=metrics,
        backbones=backbones,
        device=device,
        progress=progress,
    )
    if evaluation is not None:
        evaluation.results |= {"model": asdict(settings), **account.summary()}
    return evaluation


def claim_folder(output: Path, settings: ModelEvaluationSettings) -> None:
    """Make the folders and note the settings. Raises `ValueError` if the folder holds sounds of other settings."""
    for name in ("samples", "references"):
        (output / name).mkdir(parents=True, exist_ok=True)
    record = output / "generation.json"
    if record.is_file():
        others = json.loads(record.read_text(encoding="utf-8"))
        different = [name for name, value in asdict(settings).items() if others.get(name) != value]
        if different:
            raise ValueError(f"{output} holds sounds made with another {', '.join(different)}; take another folder")
    else:
        write_text(record, json.dumps(asdict(settings), indent=2) + "\n")


class ModelAccount:
    """Sums what a model makes of clips: cross entropy, used codes, and the samples written."""

    def __init__(self, model):
        self.model = model
        decoder = model.config.decoder
        self.nats = np.zeros(decoder.num_codebooks)
        self.targets = np.zeros(decoder.num_codebooks, dtype=np.int64)
        self.codes = CodebookStatistics(decoder.num_codebooks, decoder.vocab_size)
        self.si_snr: list[float] = []
        self.samples: list[dict] = []
        self.unusable: list[int] = []

    def add_loss(self, batch: dict[str, torch.Tensor], labels: torch.LongTensor) -> None:
        """Add the cross entropy of (B, K, T) labels, padding as -100; each codebook weighs by its targets."""
        outputs = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, use_cache=False
        )
        for codebook, delay in enumerate(self.model.config.decoder.codebook_delays):
            # T columns are read, so that the last `delay` frames of a codebook are no targets.
            count = int((labels[:, codebook, : max(labels.shape[-1] - delay, 0)] != IGNORE_INDEX).sum())
            self.nats[codebook] += float(outputs.loss_per_codebook[codebook]) * count
            self.targets[codebook] += count

    def gather(self) -> None:
        """Join the accounts of all processes."""
        parts = gather_object([(self.nats, self.targets, self.codes.counts, self.si_snr, self.samples, self.unusable)])
        nats, targets, counts, ratios, samples, unusable = zip(*parts, strict=True)
        self.nats, self.targets, self.codes.counts = sum(nats), sum(targets), sum(counts)
        self.si_snr, self.unusable = list(chain(*ratios)), sorted(chain(*unusable))
        self.samples = sorted(chain(*samples), key=lambda sample: sample["file_name"])

    def summary(self) -> dict:
        """Return the results as JSON types."""
        per_codebook = self.nats / np.maximum(self.targets, 1)
        codec: dict = {"codebooks": [asdict(usage) for usage in self.codes.compute()]}
        if self.si_snr:
            codec["si_snr_db"] = {
                "value": float(np.mean(self.si_snr)),
                "confidence_interval": bootstrap_mean_interval(np.array(self.si_snr)),
                "clips": len(self.si_snr),
            }
        return {
            "cross_entropy": {
                "mean": float(per_codebook.mean()),
                "per_codebook": per_codebook.tolist(),
                "perplexity_per_codebook": np.exp(per_codebook).tolist(),
                "targets_per_codebook": self.targets.tolist(),
            },
            "codec": codec,
            "unusable_rows": self.unusable,
        }


def handle_batch(
    account: ModelAccount,
    processor,
    settings: ModelEvaluationSettings,
    output: Path,
    numbered_clips: list[tuple[int, dict]],
) -> None:
    """Write references and samples of a batch of clips, and add it to the account."""
    from ..data import ClipCollator, frame_mask

    model, rate = account.model, processor.sampling_rate
    account.unusable += [index for index, clip in numbered_clips if clip["length"] == 0]
    numbered_clips = [(index, clip) for index, clip in numbered_clips if clip["length"] > 0]
    if not numbered_clips:
        return

    # 1. What the model makes of the real sound
    batch = ClipCollator(processor)([clip for _, clip in numbered_clips])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    codes = model.encode_audio(batch["input_values"].expand(-1, model.config.decoder.audio_channels, -1))
    frames = frame_mask(batch["padding_mask"], model.config.audio_encoder.hop_length)
    account.add_loss(batch, codes.masked_fill(~frames[:, None], IGNORE_INDEX))
    for row, mask in zip(codes, frames, strict=True):
        account.codes.update(row[:, mask].cpu().numpy())

    # 2. The real sound, and what is said of its sample
    samples = []
    for index, clip in numbered_clips:
        name, reference = f"{index:06d}.wav", clip["audio"][: clip["length"]]
        write_raw(output / "references" / name, reference, rate)
        samples.append({"file_name": name, "text": clip["text"], "seed": settings.seed + index})
    account.samples += samples

    # 3. Its reconstruction, or the samples that an earlier run did not make
    if settings.use_gt:
        for (_, clip), sample, sound in zip(numbered_clips, samples, model.decode_audio(codes), strict=True):
            sound = sound[:, : clip["length"]].float().cpu().numpy()
            account.si_snr.append(float(si_snr(sound.mean(axis=0), clip["audio"][: clip["length"]])))
            write_raw(output / "samples" / sample["file_name"], sound, rate)
        return
    missing = [sample for sample in samples if not (output / "samples" / sample["file_name"]).is_file()]
    if not missing:
        return
    sounds = model.generate(
        **processor(text=[sample["text"] for sample in missing]).to(model.device),
        audio_length_in_s=settings.duration,
        generator=[torch.Generator(model.device).manual_seed(sample["seed"]) for sample in missing],
        **settings.sampling,
    )
    for sample, sound in zip(missing, sounds, strict=True):
        metadata = {"prompt": sample["text"], "seed": sample["seed"], "model": settings.model, **settings.sampling}
        write_raw(output / "samples" / sample["file_name"], sound.float().cpu().numpy(), rate, metadata)


def write_raw(path: Path, sound: np.ndarray, sampling_rate: int, metadata: dict | None = None) -> None:
    """Write a sound at its own level, as the metrics must hear it; what is beyond full scale is clipped."""
    write_audio(path, sound, sampling_rate, strategy="clip", peak_clip_headroom_db=0, metadata=metadata)
