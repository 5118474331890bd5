"""The training loop of EnCodec tokenizers, and what a run keeps: checkpoints, averages, exported models."""

import dataclasses
import logging
import math
import time
from pathlib import Path

import torch
import yaml
from accelerate.utils import DistributedType, reduce, set_seed
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import EncodecConfig, EncodecFeatureExtractor, EncodecModel

from ...data import (
    ClipCollator,
    ClipDataset,
    ClipLoader,
    ClipReader,
    frame_mask,
    is_token_cache,
    load_audio_text_dataset,
    load_coded_sound,
)
from ..checkpointing import atomic_folder, find_checkpoint, rotate_checkpoints, write_checkpoint
from ..distributed import build_accelerator
from ..ema import ExponentialMovingAverage
from ..schedules import build_schedule
from ..tracking import RunLog
from .arguments import EncodecTrainingArguments
from .balancer import LossBalancer
from .discriminator import MultiScaleSTFTDiscriminator
from .losses import (
    MelDistance,
    MultiScaleMelLoss,
    discriminator_hinge_loss,
    feature_matching_loss,
    generator_hinge_loss,
    si_snr,
)
from .modeling import EncodecForTraining, build_encodec
from .quantization import QuantizerTrainer

logger = logging.getLogger(__name__)

KMEANS_VECTORS_PER_CODE = 4
BEST_METRIC = "mel_distance"
LOGGED_SOUNDS = 4


class EncodecTrainer:
    """Trains an `EncodecModel` (Défossez et al. 2022, arXiv 2210.13438; settings of AudioCraft).

    A step trains the discriminator on the present reconstruction and the model on L1, mel, adversarial and feature
    matching losses, balanced by the gradient they send into the waveform, plus the commitment loss; then the codebooks
    and the averaged weights follow. Weights are float32.

    A run with several processes gives what one process gives with the whole batch.

    Args:
        args: the options.

    Raises:
        ValueError: the options, the data or the model to continue from do not fit; the message names which.
    """

    def __init__(self, args: EncodecTrainingArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.accelerator = build_accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=1,
            report_to=args.report_to,
            project_dir=args.output_dir,
        )
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("the codec trains with data parallelism alone; use an accelerate config without sharding")
        self.device = self.accelerator.device
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        set_seed(args.seed)

        self.codec = self._build_codec()
        self.sampling_rate = self.codec.config.sampling_rate
        self.train_loader = self._build_loader(args.train_data, args.train_split, args.segment_duration, training=True)
        self.validation_loader = None
        if args.validation_data is not None:
            self.validation_loader = self._build_loader(
                args.validation_data, args.validation_split, args.validation_segment_duration, training=False
            )

        self.quantizer = QuantizerTrainer(
            self.codec.quantizer, args.codebook_decay, args.dead_code_ratio, seed=args.seed
        )
        self.codec.encoder.requires_grad_(args.train_encoder)
        self.model, self.optimizer, self.schedule = self._prepare(
            EncodecForTraining(self.codec, self.quantizer), args.learning_rate
        )
        self.discriminator = None
        if args.discriminator:
            self.discriminator, self.discriminator_optimizer, self.discriminator_schedule = self._prepare(
                MultiScaleSTFTDiscriminator(
                    args.discriminator_filters,
                    args.discriminator_windows,
                    args.discriminator_compression,
                    args.discriminator_overlap,
                ),
                args.discriminator_learning_rate,
            )
        num_mels = args.mel_bins[0] if len(args.mel_bins) == 1 else args.mel_bins
        self.mel_loss = MultiScaleMelLoss(self.sampling_rate, args.mel_windows, num_mels, kind=args.mel_loss)
        self.mel_loss.to(self.device)
        self.mel_distance = MelDistance(self.sampling_rate).to(self.device)
        weights = {
            "adversarial": args.adversarial_weight,
            "feature": args.feature_weight,
            "l1": args.l1_weight,
            "mel": args.mel_weight,
        }
        self.balancer = LossBalancer(weights, args.balancer_decay)
        self.ema = ExponentialMovingAverage(self.codec, args.ema_decay)
        self.step = 0
        self.best: float | None = None
        self._resume()

    # ---------------------------------------------------------------------------------------------- setting up

    def _build_codec(self) -> EncodecModel:
        if self.args.model_name_or_path is None:
            return build_encodec(self.args)
        try:
            codec = EncodecModel.from_pretrained(self.args.model_name_or_path)
        except OSError as error:
            raise ValueError(f"model_name_or_path: {error}") from error
        config = codec.config
        if config.normalize or config.chunk_length_s is not None or config.audio_channels != 1:
            raise ValueError(
                "model_name_or_path: takes a model of mono sound without chunks and without normalization"
            )
        if any(layer.codebook.cluster_size.sum() == 0 for layer in codec.quantizer.layers):
            raise ValueError("model_name_or_path: its codebooks have no cluster sizes, they cannot be trained further")
        for layer in codec.quantizer.layers:  # their averages may have been rounded apart in storage
            layer.codebook.embed_avg.copy_(layer.codebook.embed * layer.codebook.cluster_size[:, None])
        return codec

    def _build_loader(self, data: str, split: str, duration: float, training: bool) -> ClipLoader:
        args = self.args
        reader = ClipReader(self.sampling_rate, duration, args.min_segment_ratio)
        longest_window = max(*args.mel_windows, *args.discriminator_windows)
        if reader.num_samples < longest_window:
            shortest = longest_window / self.sampling_rate
            name = "segment_duration" if training else "validation_segment_duration"
            raise ValueError(f"{name}: got {duration}, takes at least {shortest} s, the longest window of the losses")
        if is_token_cache(data):
            if args.train_encoder or not training:
                name = "train_data" if training else "validation_data"
                raise ValueError(
                    f"{name}: got the token cache {data}; one is taken as train_data alone, with train_encoder false"
                )
            rows, reader = load_coded_sound(data, self.codec, duration)
        else:
            rows = load_audio_text_dataset(data, split=split, with_text=False)
        make_loader = ClipLoader if training else ClipLoader.evaluation
        return make_loader(
            ClipDataset(rows, reader, seed=args.seed, shuffle=training),
            ClipCollator(),
            args.batch_size,
            num_workers=args.num_workers,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        )

    def _prepare(self, module: nn.Module, learning_rate: float):
        """The module on its device (and in DDP), its Adam, and the schedule of its learning rate."""
        args = self.args
        betas = (args.adam_beta1, args.adam_beta2)
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(learning, lr=learning_rate, betas=betas)
        schedule = build_schedule(optimizer, args.lr_schedule, args.warmup_steps, args.max_steps)
        return self.accelerator.prepare(module, optimizer, schedule)

    # ------------------------------------------------------------------------------------------------ training

    def train(self) -> None:
        """Train up to `max_steps`, log, validate and save on the way."""
        args = self.args
        log = RunLog(self.accelerator, self.output_dir, "encodec", dataclasses.asdict(args))
        if self.accelerator.is_main_process:
            partial = self.output_dir / ".arguments.yaml.partial"
            partial.write_text(yaml.safe_dump(dataclasses.asdict(args), sort_keys=False), encoding="utf-8")
            partial.replace(self.output_dir / "arguments.yaml")
        if self.step == 0 and args.model_name_or_path is None:
            self.initialize_codebooks()
        self.model.train()
        window = _Window(self.codec.config, self.device)
        for batch in self.train_loader if self.step < args.max_steps else ():
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
            window.add(*self.training_step(batch["input_values"], batch.get("audio_codes")))
            if self.step % args.logging_steps == 0:
                figures = window.close(clips_per_step=args.batch_size)
                figures["skipped_clips"] = self.train_loader.num_skipped
                log.write(self.step, {f"train/{name}": value for name, value in figures.items()})
            if self.step % args.save_steps == 0 or self.step == args.max_steps:
                metrics = self.validate() if self.validation_loader is not None else {}
                if metrics:
                    log.write(self.step, {f"validation/{name}": value for name, value in metrics.items()})
                    self._log_sounds(log)
                self.save(metrics)
                window = _Window(self.codec.config, self.device)  # its clock leaves validation out
            if self.step == args.max_steps:
                break
        log.close()

    @torch.no_grad()
    def initialize_codebooks(self) -> None:
        """Start the codebooks by k-means on what the encoder makes of the first batches; training sees those again."""
        place = self.train_loader.state_dict()
        wanted = KMEANS_VECTORS_PER_CODE * self.codec.config.codebook_size
        vectors = []
        for batch in self.train_loader:
            hidden_states = self.codec.encoder(batch["input_values"].to(self.device))
            vectors.append(hidden_states.transpose(1, 2).flatten(0, 1))
            per_update = len(vectors[0]) * self.accelerator.num_processes
            if per_update * len(vectors) >= wanted:
                break
        self.train_loader.load_state_dict(place)
        self.quantizer.initialize_codebooks(torch.cat(vectors), per_update, self.args.kmeans_iterations)

    def training_step(
        self, audio: torch.Tensor, codes: torch.Tensor | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """One update of discriminator, model, codebooks and averages.

        Args:
            audio: (batch, 1, samples) of this process.
            codes: (batch, codebooks, frames) of `audio`, where they are known and the encoder does not train.

        Returns:
            losses by name, detached, and the codes chosen, (batch, codebooks, frames).
        """
        output = self.model(audio, codes)
        losses = {"l1": F.l1_loss(output.audio, audio), "mel": self.mel_loss(output.audio, audio)}
        figures = {"commitment": output.commitment_loss}
        is_adversarial = self.discriminator is not None and self.step >= self.args.discriminator_start_step
        if is_adversarial:
            figures["discriminator"], adversarial_losses = self._compare(audio, output.audio)
            losses = adversarial_losses | losses
            # One pass through the discriminator serves both: its weights get the gradient of its own loss alone, the
            # waveform that of the model's losses.
            weights = list(self.discriminator.parameters())
            self.accelerator.backward(figures["discriminator"], inputs=weights, retain_graph=True)

        measure_norms = self.step % self.args.balancer_interval == 0
        gradient = self.balancer.gradient(losses, output.audio, measure_norms)
        # Balanced gradients add up over clips, and DDP takes the mean over processes: undo its division.
        gradient *= self.accelerator.num_processes
        if self.args.train_encoder:
            commitment_gradient = torch.full_like(output.commitment_loss, self.args.commitment_weight)
            # One pass through the model for both, as DDP needs it.
            torch.autograd.backward([output.audio, output.commitment_loss], [gradient, commitment_gradient])
        else:
            output.audio.backward(gradient)
        self._take_step(self.optimizer, self.schedule)
        if is_adversarial:
            self._take_step(self.discriminator_optimizer, self.discriminator_schedule)

        self.step += 1
        if self.args.train_encoder:
            self.quantizer.update_codebooks(output.codes, output.residuals, self.step)
        self.ema.update(self.codec)
        return {name: loss.detach() for name, loss in (losses | figures).items()}, output.codes

    def _compare(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The discriminator's loss, and those that it gives the model."""
        logits, features = self.discriminator(torch.cat([real, fake]))
        real_logits, fake_logits = zip(*(scale.chunk(2) for scale in logits), strict=True)
        pairs = [[layer.chunk(2) for layer in scale] for scale in features]
        return discriminator_hinge_loss(real_logits, fake_logits), {
            "adversarial": generator_hinge_loss(fake_logits),
            "feature": feature_matching_loss(
                [[real.detach() for real, _ in scale] for scale in pairs],
                [[fake for _, fake in scale] for scale in pairs],
            ),
        }

    @staticmethod
    def _take_step(optimizer, schedule) -> None:
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    # ---------------------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Reconstruct the validation clips with the averaged weights, through the stock `encode` and `decode`.

        Returns:
            `si_snr` in dB, the mean over clips; `mel_distance`, the mean over time; `codebook_use`, the share of codes
            that occur; `codebook_perplexity`, the exponential of the entropy of their frequencies; the last two are
            means over codebooks.
        """
        config = self.codec.config
        self.codec.eval()
        totals = torch.zeros(4, device=self.device)
        counts = torch.zeros(config.num_quantizers, config.codebook_size, dtype=torch.int64, device=self.device)
        with self.ema.applied_to(self.codec):
            for batch in self.validation_loader:
                audio, mask = batch["input_values"].to(self.device), batch["padding_mask"].to(self.device)
                estimate, codes = self._reconstruct(audio)
                estimate = estimate * mask[:, None]
                is_real = mask.any(dim=1)
                ratio = si_snr(estimate, audio) * is_real
                # Padding is silent in both and adds no distance, so the sum over all time is that over real time.
                distance = self.mel_distance(estimate, audio) * audio.shape[-1] / self.sampling_rate
                seconds = mask.sum() / self.sampling_rate
                totals += torch.stack([ratio.sum(), is_real.sum(), distance.sum(), seconds])
                frames = frame_mask(mask, config.hop_length)
                counts += count_codes(codes, config.codebook_size, frames)
        self.codec.train()
        ratios, clips, distances, seconds = reduce(totals, reduction="sum").tolist()
        if clips == 0:
            raise ValueError(f"validation_data: no usable sound in {self.args.validation_data}")
        use, perplexity = codebook_statistics(reduce(counts, reduction="sum"))
        return {
            "si_snr": ratios / clips,
            "mel_distance": distances / seconds,
            "codebook_use": use,
            "codebook_perplexity": perplexity,
        }

    def _reconstruct(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, 1, samples) -> the same shape, and codes (batch, codebooks, frames), by the stock methods."""
        encoded = self.codec.encode(audio, bandwidth=self.codec.config.target_bandwidths[-1])
        decoded = self.codec.decode(encoded.audio_codes, encoded.audio_scales).audio_values
        return decoded[..., : audio.shape[-1]], encoded.audio_codes[0]

    @torch.no_grad()
    def _log_sounds(self, log: RunLog) -> None:
        """Give the trackers, if there are any, the first sounds of the validation data and their reconstructions."""
        if not self.accelerator.trackers or not self.accelerator.is_main_process:
            return
        clips = self.validation_loader.clips
        with self.ema.applied_to(self.codec):
            for number in range(min(LOGGED_SOUNDS, len(clips))):
                audio = torch.from_numpy(clips[number]["audio"])[None, None].to(self.device)
                estimate, _ = self._reconstruct(audio)
                log.write_audio(self.step, f"original/{number}", audio[0], self.sampling_rate, "original")
                log.write_audio(
                    self.step, f"reconstruction/{number}", estimate[0], self.sampling_rate, "reconstruction"
                )

    # ------------------------------------------------------------------------------------ checkpoints and models

    def save(self, metrics: dict[str, float]) -> None:
        """Write a checkpoint, export the averaged model as `last` (and `best`), remove old checkpoints."""
        distance = metrics.get(BEST_METRIC, math.nan)
        improved = distance < (math.inf if self.best is None else self.best)
        if improved:
            self.best = distance
        state = {
            "balancer": self.balancer.state_dict(),
            "train_loader": self.train_loader.state_dict(),
            "best": self.best,
        }
        with write_checkpoint(self.output_dir, self.step, metrics, state) as folder:
            self.accelerator.save_state(str(folder))
            if self.accelerator.is_main_process:
                save_file(self.ema.state_dict(), folder / "ema.safetensors")
        with self.ema.applied_to(self.codec):
            self._export("last")
            if improved:
                self._export("best")
        if self.accelerator.is_main_process:
            rotate_checkpoints(self.output_dir, self.args.save_total_limit, BEST_METRIC)
        self.accelerator.wait_for_everyone()

    def _export(self, name: str) -> None:
        with atomic_folder(self.output_dir / name) as folder:
            if self.accelerator.is_main_process:
                self.codec.save_pretrained(folder)
                EncodecFeatureExtractor(sampling_rate=self.sampling_rate).save_pretrained(folder)

    def _resume(self) -> None:
        checkpoint = find_checkpoint(self.args.resume_from_checkpoint, self.output_dir)
        if checkpoint is None:
            return
        self.accelerator.load_state(str(checkpoint.path))
        self.ema.load_state_dict(load_file(checkpoint.path / "ema.safetensors", device=str(self.device)))
        self.balancer.load_state_dict(checkpoint.state["balancer"], self.device)
        self.train_loader.load_state_dict(checkpoint.state["train_loader"])
        self.best = checkpoint.state["best"]
        self.step = checkpoint.step
        logger.info("Resumed from %s", checkpoint.path)


def count_codes(codes: torch.Tensor, codebook_size: int, frames: torch.Tensor | None = None) -> torch.Tensor:
    """How often each code occurs: (batch, codebooks, frames) -> (codebooks, codebook_size) int64.

    Args:
        frames: (batch, frames) bool, the frames that count; default all.
    """
    if frames is None:
        frames = torch.ones_like(codes[:, 0], dtype=torch.bool)
    return torch.stack([torch.bincount(k[frames], minlength=codebook_size) for k in codes.unbind(1)])


def codebook_statistics(counts: torch.Tensor) -> tuple[float, float]:
    """Share of codes that occur, and perplexity of their frequencies, for (codebooks, codes); means over codebooks."""
    counts = counts.cpu().double()
    probabilities = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    entropy = torch.special.entr(probabilities).sum(dim=1)
    return (counts > 0).double().mean().item(), entropy.exp().mean().item()


class _Window:
    """Means of the losses, use of the codes and speed, since the last line of the log."""

    def __init__(self, config: EncodecConfig, device: torch.device):
        self.codebook_size = config.codebook_size
        self.counts = torch.zeros(config.num_quantizers, config.codebook_size, dtype=torch.int64, device=device)
        self._restart()

    def _restart(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.num_steps = 0
        self.counts.zero_()
        self.start = time.perf_counter()

    def add(self, losses: dict[str, torch.Tensor], codes: torch.Tensor) -> None:
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss
        self.counts += count_codes(codes, self.codebook_size)
        self.num_steps += 1

    def close(self, clips_per_step: int) -> dict[str, float]:
        """The figures, over all processes; the window starts anew."""
        figures = {name: (reduce(total, "mean") / self.num_steps).item() for name, total in self.sums.items()}
        use, perplexity = codebook_statistics(reduce(self.counts, reduction="sum"))
        figures |= {"codebook_use": use, "codebook_perplexity": perplexity}
        figures["clips_per_second"] = self.num_steps * clips_per_step / (time.perf_counter() - self.start)
        self._restart()
        return figures
