"""The training loop of the language model, and what a run keeps: checkpoints, averages, samples, exported models."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import yaml
from accelerate.utils import reduce, set_seed
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from ...data import ClipCollator, ClipLoader, MixedClips
from ...data.clips import random_stream
from ..checkpointing import (
    Checkpoint,
    atomic_folder,
    best_checkpoint,
    find_checkpoint,
    list_checkpoints,
    rotate_checkpoints,
    write_checkpoint,
)
from ..distributed import build_accelerator, configure_deepspeed
from ..ema import ExponentialMovingAverage
from ..schedules import build_schedule
from ..tracking import RunLog
from .arguments import AudioGenTrainingArguments
from .card import write_training_card
from .data import Inputs, build_train_loader, encode_batch, open_validation_clips
from .evaluation import cross_entropies, evaluate
from .model import LanguageModel, build_model, export_model, reshard, unshard_root
from .sampling import Sampler

logger = logging.getLogger(__name__)

BEST_METRIC = "ce"
GUIDANCE_DROPOUT = 16  # purpose of a random stream, beside those of `audiogen_hf.data`
WEIGHTS_FILE = "trained_weights.safetensors"
EMA_FILE = "ema.safetensors"


class AudioGenTrainer:
    """Trains AudioGen's language model on pairs of sound and text, as AudioCraft does.

    A step takes `batch_size` clips, shared out among processes and accumulated parts. Its loss is the mean over
    codebooks of the mean cross entropy over all valid cells of the whole batch, so that neither processes nor parts
    change what is learned. With probability `guidance_dropout` a step goes without its texts: one draw for the whole
    batch, the same on all processes (AudioCraft draws once a batch too, its processes from equal seeds).

    Args:
        args: the options.

    Raises:
        ValueError: the options, the data or the model do not fit; the message names which.
        OSError: the output folder cannot be written, or a model cannot be found.
    """

    def __init__(self, args: AudioGenTrainingArguments):
        # 1. Processes, and a folder for what they write
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.accelerator = build_accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            report_to=args.report_to,
            project_dir=args.output_dir,
        )
        self.device = self.accelerator.device
        processes, accumulation = self.accelerator.num_processes, args.gradient_accumulation_steps
        if args.batch_size % (processes * accumulation):
            raise ValueError(
                f"batch_size: got {args.batch_size}, takes a multiple of {processes * accumulation}, "
                f"{processes} processes times {accumulation} gradient_accumulation_steps"
            )
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            options = yaml.safe_dump(dataclasses.asdict(args), sort_keys=False)
            (self.output_dir / "arguments.yaml").write_text(options, encoding="utf-8")

        # 2. The model, from the same seed on all processes
        set_seed(args.seed)
        self.model, self.processor = build_model(args)
        self.model.to(self.device)

        # 3. Data
        self.train_loader = build_train_loader(args, self.model, self.processor, self.accelerator)
        self.validation_clips = open_validation_clips(args, self.model) if args.validation_data else None
        self.sampler = self._build_sampler() if args.sample_steps else None

        # 4. What learns
        language_model = LanguageModel(self.model)
        if args.gradient_checkpointing:
            self.model.decoder.activation_checkpointing_enable()
        if args.torch_compile:
            for layer in self.model.decoder.layers:
                layer.compile()
        optimizer = torch.optim.AdamW(
            [parameter for parameter in language_model.parameters() if parameter.requires_grad],
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )
        schedule = build_schedule(optimizer, args.lr_schedule, args.warmup_steps, args.max_steps)
        configure_deepspeed(self.accelerator, args.batch_size // (processes * accumulation), args.max_grad_norm)
        self.language_model, self.optimizer, self.schedule = self.accelerator.prepare(
            language_model, optimizer, schedule
        )
        self.ema = None
        if args.ema_decay is not None:
            self.ema = ExponentialMovingAverage(self._unwrapped(), args.ema_decay)

        # 5. Where the run stands
        set_seed(args.seed, device_specific=True)
        self.accelerator.register_save_state_pre_hook(self._save_trained_weights)
        self.accelerator.register_load_state_pre_hook(self._load_trained_weights)
        self.step = 0
        self.metrics: dict[str, float] = {}
        self._resume()

    def _build_sampler(self) -> Sampler:
        collate = ClipCollator(self.processor)
        return Sampler(
            self.args, self.model, self.processor, self.validation_clips, collate, self._encode, self.accelerator
        )

    # ------------------------------------------------------------------------------------------------ training

    def train(self) -> None:
        """Train up to `max_steps`; log, validate, sample and save on the way; export and upload at the end."""
        args = self.args
        log = RunLog(self.accelerator, self.output_dir, "audiogen", dataclasses.asdict(args))
        self.language_model.train()
        window = _Window()
        for batch in self.train_loader if self.step < args.max_steps else ():
            # 1. One step
            window.add(*self.training_step(batch))
            is_last = self.step == args.max_steps

            # 2. A line of the log
            if self.step % args.logging_steps == 0 or is_last:
                figures = window.close(args.batch_size)
                if not math.isfinite(figures["ce"]):
                    raise RuntimeError(f"the loss is {figures['ce']} at step {self.step}: the model has diverged")
                figures |= {"lr": self.schedule.get_last_lr()[0], "skipped_clips": self.train_loader.num_skipped}
                log.write(self.step, {f"train/{name}": value for name, value in figures.items()})

            # 3. Validation and samples, with the averaged weights
            if self.validation_clips is not None and (self.step % args.save_steps == 0 or is_last):
                self.metrics = self.validate()
                log.write(self.step, {f"validation/{name}": value for name, value in self.metrics.items()})
                window.restart_clock()
            if self.sampler is not None and (self.step % args.sample_steps == 0 or is_last):
                self.generate_samples(log)
                window.restart_clock()

            # 4. A checkpoint
            if self.step % args.save_steps == 0 or is_last:
                self.save()
                window.restart_clock()
            if is_last:
                break
        log.close()
        if args.push_to_hub:
            self.push_to_hub()

    def training_step(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step.

        Args:
            batch: this process's share of the clips, see `audiogen_hf.data`.

        Returns:
            (K,) cross entropies: their sum over the processes is that of the whole batch. The norm of the gradient.
        """
        args = self.args
        # 1. Codes and texts, of the whole share at once: the loss needs the number of targets in the whole batch
        drop_text = random_stream(args.seed, GUIDANCE_DROPOUT, self.step).random() < args.guidance_dropout
        inputs = self._encode(batch, with_text=not drop_text)
        num_targets = reduce(self.model.count_targets(inputs.labels), reduction="sum")

        # 2. Gradients, part by part. Processes and parts are averaged by accelerate; the loss is a sum over them.
        scale = self.accelerator.num_processes * args.gradient_accumulation_steps
        cross_entropy = 0.0
        for part in inputs.split(args.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.language_model):
                loss, per_codebook = self.language_model(**part, num_targets=num_targets)
                self.accelerator.backward(loss * scale)
                cross_entropy = cross_entropy + per_codebook
                # 3. The update, once all parts are in
                if self.accelerator.sync_gradients:
                    grad_norm = self.accelerator.clip_grad_norm_(self.language_model.parameters(), args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.schedule.step()

        # 4. The average follows
        self.step += 1
        if self.ema is not None and self.step % args.ema_steps == 0:
            self.ema.update(self._unwrapped())
        return cross_entropy, grad_norm

    def _encode(self, batch: dict[str, torch.Tensor], with_text: bool = True) -> Inputs:
        num_parts = self.args.gradient_accumulation_steps
        return encode_batch(self.model, batch, self.device, num_parts=num_parts, with_text=with_text)

    def _unwrapped(self) -> LanguageModel:
        return self.accelerator.unwrap_model(self.language_model)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside the block the model has its averaged weights, if there are any yet."""
        has_average = self.ema is not None and self.ema.total_weight > 0
        reshard(self.language_model)
        with self.ema.applied_to(self._unwrapped()) if has_average else nullcontext():
            yield
            reshard(self.language_model)

    # ------------------------------------------------------------------------------------ validation and samples

    def validate(self) -> dict[str, float]:
        """Cross entropy and perplexity on the validation clips, with the averaged weights; see `evaluate`."""
        loader = ClipLoader.evaluation(
            self.validation_clips,
            ClipCollator(self.processor),
            self.args.batch_size,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            num_workers=self.args.num_workers,
        )
        with self._averaged():
            return evaluate(
                self.language_model,
                loader,
                self._encode,
                self.model.count_targets,
                num_parts=self.args.gradient_accumulation_steps,
            )

    def generate_samples(self, log: RunLog) -> None:
        """Samples for the first validation clips, with the averaged weights; see `Sampler`."""
        self.language_model.eval()
        with self._averaged():
            unshard_root(self.language_model)
            self.sampler.run(self.step, log, self.output_dir)
        self.language_model.train()

    # ------------------------------------------------------------------------------------ checkpoints and models

    def save(self) -> None:
        """Write a checkpoint, export the averaged model as `last` (and `best`), remove old checkpoints."""
        # 1. The checkpoint. A stream is at another place on each process, so each writes its own.
        with write_checkpoint(self.output_dir, self.step, self.metrics) as folder:
            self.accelerator.save_state(str(folder))
            place = json.dumps(self.train_loader.state_dict())
            (folder / _loader_file(self.accelerator.process_index)).write_text(place, encoding="utf-8")
            if self.ema is not None:
                average = self.ema.state_dict()
                if self.accelerator.is_main_process:
                    save_file(average, folder / EMA_FILE)

        # 2. Models to use, the best one by the validation's cross entropy
        best = best_checkpoint(list_checkpoints(self.output_dir), BEST_METRIC)
        with self._averaged():
            state = self.accelerator.get_state_dict(self.language_model)
            for name in ["last", "best"] if best is not None and best.step == self.step else ["last"]:
                with atomic_folder(self.output_dir / name) as folder:
                    if self.accelerator.is_main_process:
                        self._export(folder, state)

        # 3. No more checkpoints than wanted
        if self.accelerator.is_main_process:
            rotate_checkpoints(self.output_dir, self.args.save_total_limit, BEST_METRIC)
        self.accelerator.wait_for_everyone()

    def _export(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        export_model(self.model, self.processor, state, folder, self.args)
        clips = self.train_loader.clips
        if isinstance(clips, MixedClips):
            clips = clips.clips
        write_training_card(
            folder,
            self.model.config,
            self.args,
            step=self.step,
            num_train_clips=None if self.args.streaming else len(clips),
            num_validation_clips=None if self.validation_clips is None else len(self.validation_clips),
            metrics=self.metrics,
        )

    def _save_trained_weights(self, models: list, weights: list[dict], output_dir: str) -> None:
        """In place of accelerate's own file: the weights that learn, under names that fit any number of processes.
        FSDP and DeepSpeed write their own, and leave `weights` empty."""
        if weights:
            weights.clear()
            if self.accelerator.is_main_process:
                named = self._unwrapped().named_parameters()
                learned = {name: parameter.detach() for name, parameter in named if parameter.requires_grad}
                save_file(learned, Path(output_dir) / WEIGHTS_FILE)

    @torch.no_grad()
    def _load_trained_weights(self, models: list, input_dir: str) -> None:
        if models:
            models.clear()
            parameters = dict(self._unwrapped().named_parameters())
            for name, weight in load_file(Path(input_dir) / WEIGHTS_FILE).items():
                parameters[name].copy_(weight)

    def _resume(self) -> None:
        checkpoint = find_checkpoint(self.args.resume_from_checkpoint, self.output_dir)
        if checkpoint is None:
            return
        self.accelerator.load_state(str(checkpoint.path))
        if self.ema is not None:
            self.ema.load_state_dict(load_file(checkpoint.path / EMA_FILE))
        self.train_loader.load_state_dict(self._read_place(checkpoint))
        self.step = checkpoint.step
        self.metrics = checkpoint.metrics
        logger.info("Resumed from %s", checkpoint.path)

    def _read_place(self, checkpoint: Checkpoint) -> dict:
        """Where the data goes on. Numbered clips do so on any number of processes, a stream on as many as before."""
        num_written = len(list(checkpoint.path.glob(_loader_file("*"))))
        if self.args.streaming and num_written != self.accelerator.num_processes:
            raise ValueError(
                f"resume_from_checkpoint: {checkpoint.path} was written by {num_written} processes, and a stream goes "
                f"on with as many, not with {self.accelerator.num_processes}"
            )
        written_by = self.accelerator.process_index if self.accelerator.process_index < num_written else 0
        return json.loads((checkpoint.path / _loader_file(written_by)).read_text(encoding="utf-8"))

    def push_to_hub(self) -> None:
        """Upload the best model, or without validation the last."""
        if self.accelerator.is_main_process:
            best, last = self.output_dir / "best", self.output_dir / "last"
            api = HfApi()
            repo_id = api.create_repo(
                self.args.hub_model_id or self.output_dir.name, private=self.args.hub_private, exist_ok=True
            ).repo_id
            api.upload_folder(
                repo_id=repo_id,
                folder_path=best if best.is_dir() else last,
                commit_message=f"AudioGen after {self.step} steps",
            )
            logger.info("Uploaded to %s/%s", api.endpoint, repo_id)
        self.accelerator.wait_for_everyone()


def _loader_file(process_index: int | str) -> str:
    return f"train_loader-{process_index}.json"


class _Window:
    """Means since the last line of the log, and speed."""

    def __init__(self):
        self._restart()

    def _restart(self) -> None:
        self.cross_entropy = 0.0
        self.grad_norm = 0.0
        self.num_steps = 0
        self.seconds = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time since the last step."""
        self.start = time.perf_counter()

    def add(self, cross_entropy: torch.Tensor, grad_norm: torch.Tensor) -> None:
        self.cross_entropy = self.cross_entropy + cross_entropy
        self.grad_norm = self.grad_norm + grad_norm
        self.num_steps += 1
        now = time.perf_counter()
        self.seconds += now - self.start
        self.start = now

    def close(self, clips_per_step: int) -> dict[str, float]:
        """The figures, over all processes; the window starts anew."""
        figures = cross_entropies(reduce(self.cross_entropy, reduction="sum") / self.num_steps)
        grad_norm = self.grad_norm.full_tensor() if hasattr(self.grad_norm, "full_tensor") else self.grad_norm
        figures["grad_norm"] = float(grad_norm) / self.num_steps
        figures["clips_per_second"] = self.num_steps * clips_per_step / self.seconds
        if torch.cuda.is_available():
            figures["gpu_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        self._restart()
        return figures
