"""The generate stage: samples for the first validation clips, the same clips and draws at every stage."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers.modeling_outputs import BaseModelOutput

from ...data import ClipDataset
from ...generation_audiogen import UNKNOWN
from ...modeling_audiogen import IGNORE_INDEX, AudioGenForConditionalGeneration
from ...processing_audiogen import AudioGenProcessor
from ..checkpointing import atomic_folder
from ..tracking import RunLog
from .arguments import AudioGenTrainingArguments
from .data import Inputs


class Sampler:
    """Makes, writes and logs samples.

    Kinds of samples: "conditional" on a clip's description, "unconditional", and "continuation" of a clip's first
    seconds with its description. A clip's own codes, decoded, are kept beside them as "reference".

    Args:
        args: the options.
        model: the whole model, which shares its decoder with the one in training.
        processor: writes files.
        clips: the validation clips, of which the first `num_samples` are read.
        collate: makes a batch of clips.
        encode: makes the inputs of a batch.
        accelerator: the samples are shared out among its processes.
    """

    def __init__(
        self,
        args: AudioGenTrainingArguments,
        model: AudioGenForConditionalGeneration,
        processor: AudioGenProcessor,
        clips: ClipDataset,
        collate: Callable[[list[dict]], dict[str, torch.Tensor]],
        encode: Callable[[dict[str, torch.Tensor]], Inputs],
        accelerator: Accelerator,
    ):
        self.args = args
        self.model = model
        self.processor = processor
        self.clips = [clips[number] for number in range(min(args.num_samples, len(clips)))]
        self.collate = collate
        self.encode = encode
        self.accelerator = accelerator
        self.duration = args.sample_duration or model.config.segment_duration
        self.prompt_duration = args.sample_prompt_duration or model.config.segment_duration / 4
        if "continuation" in args.sample_kinds and not self.prompt_duration < self.duration:
            raise ValueError(
                f"sample_prompt_duration: got {self.prompt_duration} s, takes less than the {self.duration} s of a "
                "sample"
            )

    @torch.no_grad()
    def run(self, step: int, log: RunLog, output_dir: Path) -> None:
        """Write `OUTPUT_DIR/samples/step-STEP/`, a sound a clip and kind and `samples.jsonl`; log all of them."""
        num_samples = len(self.clips)
        processes, index = self.accelerator.num_processes, self.accelerator.process_index

        # 1. The clips of this process; as many for each, so that collective calls fit.
        share = -(-num_samples // processes)
        mine = [number % num_samples for number in range(index * share, (index + 1) * share)]
        inputs = self.encode(self.collate([self.clips[number] for number in mine]))

        # 2. Their samples, of one shape, brought together.
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            codes = {kind: self._generate(kind, inputs, mine) for kind in self.args.sample_kinds}
        references = inputs.labels.masked_fill(inputs.labels == IGNORE_INDEX, 0)
        sounds = {kind: self.model.decode_audio(each) for kind, each in (codes | {"reference": references}).items()}
        sounds = {kind: self.accelerator.gather(sound)[:num_samples].cpu() for kind, sound in sounds.items()}

        # 3. Written and logged.
        with atomic_folder(output_dir / "samples" / f"step-{step}") as folder:
            if self.accelerator.is_main_process:
                self._write(sounds, folder)
        if self.accelerator.is_main_process:
            for number, clip in enumerate(self.clips):
                for kind, sound in sounds.items():
                    caption = "" if kind == "unconditional" else clip["text"]
                    log.write_audio(step, f"{kind}/{number}", sound[number], self.processor.sampling_rate, caption)

    def _generate(self, kind: str, inputs: Inputs, numbers: list[int]) -> torch.LongTensor:
        args, config = self.args, self.model.config
        prompts = {}
        if kind == "continuation":
            num_frames = max(1, int(self.prompt_duration * config.frame_rate))
            labels = inputs.labels[..., :num_frames]
            prompts["audio_codes"] = labels.masked_fill(labels == IGNORE_INDEX, UNKNOWN)
        mask = inputs.attention_mask
        return self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=inputs.text_states),
            attention_mask=torch.zeros_like(mask) if kind == "unconditional" else mask,
            **prompts,
            audio_length_in_s=self.duration,
            guidance_scale=args.guidance_scale,
            **self._draws(numbers),
            return_dict_in_generate=True,
        ).audio_codes

    def _draws(self, numbers: list[int]) -> dict:
        args = self.args
        if not args.do_sample or args.temperature == 0:
            return {"do_sample": False}
        # One generator a clip: a sample depends on neither its batch nor the number of processes.
        generators = [torch.Generator(self.accelerator.device).manual_seed(args.seed + number) for number in numbers]
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
        return {"do_sample": True, "generator": generators, **sampling}

    def _write(self, sounds: dict[str, torch.Tensor], folder: Path) -> None:
        args = self.args
        lines = []
        for number, clip in enumerate(self.clips):
            for kind, sound in sounds.items():
                name = f"{number:03d}_{kind}.wav"
                self.processor.save_audio(folder / name, sound[number])
                lines.append({"file_name": name, "kind": kind, "text": clip["text"]})
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
        settings = {"do_sample": args.do_sample, **sampling, "guidance_scale": args.guidance_scale, "seed": args.seed}
        with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({**line, **settings}) + "\n" for line in lines)
