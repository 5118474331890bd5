"""Encode a dataset once into a token cache that training reads in place of sound.

    accelerate launch --num_processes 4 examples/tokenize_dataset.py \\
        --model facebook/audiogen-medium --dataset path/or/name --output codes/

Interrupted, the same command goes on with the shards that are missing.
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from accelerate import PartialState
from transformers import EncodecModel, HfArgumentParser
from transformers.utils import logging

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.data import load_audio_text_dataset, write_token_cache


@dataclass
class TokenizeArguments:
    dataset: str = field(metadata={"help": "Folder, AudioCraft manifest, parquet, or name of a dataset on the Hub."})
    output: str = field(metadata={"help": "Folder to write the shards to."})
    model: str | None = field(
        default=None, metadata={"help": "AudioGen checkpoint (ours or AudioCraft's) whose tokenizer encodes."}
    )
    codec: str | None = field(
        default=None, metadata={"help": "EnCodec checkpoint that encodes, instead of a model's."}
    )
    text_encoder: str | None = field(
        default=None, metadata={"help": "Text encoder for an AudioCraft checkpoint, in place of the one it names."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    split: str = field(default="train", metadata={"help": "Split to encode."})
    streaming: bool = field(default=False, metadata={"help": "Read the dataset without downloading it first."})
    audio_column: str = field(default="audio", metadata={"help": "Column of the sound."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the descriptions; default: guessed."})
    external_metadata_source: str | None = field(
        default=None, metadata={"help": "Folder of the .json files of an AudioCraft manifest."}
    )
    segment_duration: float = field(default=10.0, metadata={"help": "Length of a clip, in seconds."})
    min_segment_ratio: float = field(
        default=1.0, metadata={"help": "Share of the last clip of a long sound that must hold sound."}
    )
    num_codebooks: int | None = field(default=None, metadata={"help": "Codebooks to keep; default: the model's."})
    without_text: bool = field(
        default=False, metadata={"help": "Keep no descriptions; sound for training a decoder needs none."}
    )
    filter_column: str | None = field(
        default=None, metadata={"help": "Column of booleans; rows where it is false are left out."}
    )
    with_sound: bool = field(
        default=False, metadata={"help": "Keep the sound, too, for training a decoder on the codes."}
    )
    text_states: bool = field(default=False, metadata={"help": "Keep the states of the model's text encoder, too."})
    batch_size: int = field(default=16, metadata={"help": "Clips that a process encodes at once."})
    rows_per_shard: int = field(default=500, metadata={"help": "Rows of the dataset that make a shard."})
    device: Literal["auto", "cpu"] = field(
        default="auto", metadata={"help": "auto: the accelerator, if there is one."}
    )


def main(args: TokenizeArguments):
    if (args.model is None) == (args.codec is None):
        raise ValueError("give either --model or --codec")
    if args.text_states and args.model is None:
        raise ValueError("--text_states takes the text encoder of a --model")
    state = PartialState(cpu=args.device == "cpu")

    text_encoder = processor = None
    num_codebooks = args.num_codebooks
    if args.codec is not None:
        codec = EncodecModel.from_pretrained(args.codec)
    else:
        model = AudioGenForConditionalGeneration.from_pretrained(args.model, text_encoder=args.text_encoder)
        codec = model.audio_encoder
        num_codebooks = num_codebooks or model.config.decoder.num_codebooks
        if args.text_states:
            text_encoder = model.text_encoder.to(state.device)
            processor = AudioGenProcessor.from_pretrained(args.model, text_encoder=args.text_encoder)

    rows = load_audio_text_dataset(
        args.dataset,
        name=args.dataset_config,
        split=args.split,
        streaming=args.streaming,
        audio_column=args.audio_column,
        text_column=args.text_column,
        with_text=not args.without_text,
        filter_column=args.filter_column,
        external_metadata_source=args.external_metadata_source,
    )
    cache = write_token_cache(
        args.output,
        rows,
        codec.to(state.device).eval(),
        source=f"{args.dataset} ({args.split}" + (f", {args.filter_column})" if args.filter_column else ")"),
        segment_duration=args.segment_duration,
        min_segment_ratio=args.min_segment_ratio,
        num_codebooks=num_codebooks,
        text_encoder=text_encoder,
        processor=processor,
        with_sound=args.with_sound,
        batch_size=args.batch_size,
        rows_per_shard=args.rows_per_shard,
    )
    if state.is_main_process:
        print(
            f"{args.output}: {cache['num_clips']} clips of {cache['segment_duration']} s in {cache['num_shards']} "
            f"shards, {cache['num_skipped']} corrupt or silent ones left out"
        )


if __name__ == "__main__":
    logging.set_verbosity_warning()
    (arguments,) = HfArgumentParser(TokenizeArguments).parse_args_into_dataclasses()
    try:
        main(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
