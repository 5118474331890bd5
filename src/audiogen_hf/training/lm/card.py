"""The card of a trained model: data, settings, steps and results."""

import dataclasses
from importlib.metadata import version
from pathlib import Path

from ... import __version__
from ...configuration_audiogen import AudioGenConfig
from ...model_card import CARD_FILE, make_model_card
from .arguments import AudioGenTrainingArguments

ADAPTER_TEXT = """
# {title}

An adapter of AudioGen, which turns a description into sound. It belongs to the model `{base_model}`.

```python
from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor

processor = AudioGenProcessor.from_pretrained("{base_model}")
model = AudioGenForConditionalGeneration.from_pretrained("{base_model}")
model.load_adapter("{adapter}")
audio = model.generate(**processor(text=["a dog barks"]), audio_length_in_s=5.0)
processor.save_audio("dog.wav", audio[0])
```
"""

# Options that the table leaves out: what changes no result.
NOT_TOLD = (
    *("train_data", "validation_data", "external_metadata_source"),  # told in words
    *("output_dir", "num_workers", "logging_steps", "save_steps", "save_total_limit", "resume_from_checkpoint"),
    *("report_to", "push_to_hub", "hub_model_id", "hub_private"),
    *("sample_steps", "num_samples", "sample_kinds", "sample_duration", "sample_prompt_duration"),
    *("do_sample", "temperature", "top_k", "top_p", "guidance_scale"),
)


def write_training_card(
    folder: Path,
    config: AudioGenConfig,
    args: AudioGenTrainingArguments,
    *,
    step: int,
    num_train_clips: int | None,
    num_validation_clips: int | None,
    metrics: dict[str, float],
) -> None:
    """Write README.md.

    Args:
        folder: where the exported model or adapter lies.
        config: the model's.
        args: the run's.
        step: optimizer steps taken.
        num_train_clips: sounds (of a token cache: clips) trained on; None for a stream.
        num_validation_clips: as many validated on; None without validation.
        metrics: of the last validation; empty without.
    """
    card = make_model_card(config, args.hub_model_id)
    if args.uses_adapter and not args.merge_adapter:
        card.data.library_name = "peft"
        card.data.base_model = args.model_name_or_path
        card.text = ADAPTER_TEXT.format(
            title=args.hub_model_id or "An AudioGen adapter",
            base_model=args.model_name_or_path,
            adapter=args.hub_model_id or "path/to/this/folder",
        )
    sections = [
        "## Training\n",
        _data_line("Trained on", args.train_data, num_train_clips),
        f"{step} optimizer steps of {args.batch_size} clips of {config.segment_duration:g} s, "
        f"{step * args.batch_size} clips in all.\n",
        _table(["option", "value"], _told_options(args)),
    ]
    if metrics:
        sections += [
            "## Results\n",
            _data_line("Measured on", args.validation_data, num_validation_clips)
            + " Cross entropy (`ce`, in nats) and perplexity (`ppl`), the mean over codebooks and each of them.\n",
            _table(["measure", "value"], [(name, f"{value:.4f}") for name, value in metrics.items()]),
        ]
    libraries = [(name, version(name)) for name in ("torch", "transformers", "accelerate", "datasets")]
    sections.append(_table(["library", "version"], [("audiogen_hf", __version__), *libraries]))
    card.text = "\n".join([card.text.rstrip() + "\n", *sections])
    card.save(folder / CARD_FILE)


def _data_line(verb: str, source: str, num_clips: int | None) -> str:
    return f"{verb} `{_name(source)}`" + (f", {num_clips} clips." if num_clips is not None else ", streamed.")


def _told_options(args: AudioGenTrainingArguments) -> list[tuple[str, object]]:
    options = {name: value for name, value in dataclasses.asdict(args).items() if name not in NOT_TOLD}
    return [(f"`{name}`", _name(value)) for name, value in options.items() if value is not None]


def _name(value):
    """Of a path its last part: the rest tells nothing to a reader elsewhere."""
    return Path(value).name if isinstance(value, str) and Path(value).exists() else value


def _table(header: list[str], rows: list[tuple]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
