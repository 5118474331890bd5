"""From the options to the clips of a run, and from a batch of clips to what the language model reads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import datasets
import torch
from accelerate import Accelerator
from datasets.distributed import split_dataset_by_node

from ...data import (
    ClipCollator,
    ClipDataset,
    ClipLoader,
    ClipReader,
    ClipStream,
    CodesReader,
    MixedClips,
    MixedStream,
    Mixing,
    frame_mask,
    is_token_cache,
    load_audio_text_dataset,
    load_token_cache,
)
from ...modeling_audiogen import IGNORE_INDEX, AudioGenForConditionalGeneration
from ...processing_audiogen import AudioGenProcessor
from .arguments import AudioGenTrainingArguments


def open_clips(
    source: str, split: str, args: AudioGenTrainingArguments, model: AudioGenForConditionalGeneration, streaming: bool
) -> tuple[datasets.Dataset | datasets.IterableDataset, ClipReader | CodesReader]:
    """Rows and their reader, of a token cache or of sounds.

    Raises:
        ValueError: there is no such source, it has no descriptions, it is empty, or it is a token cache of another
            tokenizer or of clips of another length.
    """
    config = model.config
    if not is_token_cache(source):
        rows = load_audio_text_dataset(
            source,
            name=args.dataset_config,
            split=split,
            streaming=streaming,
            audio_column=args.audio_column,
            text_column=args.text_column,
            external_metadata_source=args.external_metadata_source,
        )
        return rows, ClipReader(config.sampling_rate, config.segment_duration, args.min_segment_ratio)

    rows, reader = load_token_cache(
        source,
        model.audio_encoder,
        model.text_encoder,
        num_codebooks=config.decoder.num_codebooks,
        streaming=streaming,
    )
    num_frames = math.ceil(int(config.segment_duration * config.sampling_rate) / config.audio_encoder.hop_length)
    if reader.num_frames != num_frames:
        raise ValueError(
            f"segment_duration: {config.segment_duration} s make {num_frames} frames, the clips of the token cache "
            f"{source} have {reader.num_frames}"
        )
    return rows, reader


def build_train_loader(
    args: AudioGenTrainingArguments,
    model: AudioGenForConditionalGeneration,
    processor: AudioGenProcessor,
    accelerator: Accelerator,
) -> ClipLoader:
    """This process's share of the batches, one an optimizer step, without end."""
    processes, index = accelerator.num_processes, accelerator.process_index
    rows, reader = open_clips(args.train_data, args.train_split, args, model, args.streaming)
    mixing = Mixing(args.aug_p, args.mix_p, args.mix_snr_low, args.mix_snr_high, args.mix_min_overlap)
    if args.streaming:
        clips = ClipStream(split_dataset_by_node(rows, index, processes), reader, seed=args.seed)
        if args.aug_p > 0:
            clips = MixedStream(clips, mixing, args.batch_size // processes)
    else:
        clips = ClipDataset(rows, reader, seed=args.seed)
        if args.aug_p > 0:
            clips = MixedClips(clips, mixing, args.batch_size)
    return ClipLoader(
        clips,
        ClipCollator(processor),
        args.batch_size,
        num_processes=processes,
        process_index=index,
        num_workers=0 if args.streaming else args.num_workers,
    )


def open_validation_clips(args: AudioGenTrainingArguments, model: AudioGenForConditionalGeneration) -> ClipDataset:
    """The clips of `validation_data`, always the same."""
    rows, reader = open_clips(args.validation_data, args.validation_split, args, model, streaming=False)
    if args.max_validation_clips is not None:
        rows = rows.select(range(min(len(rows), args.max_validation_clips)))
    return ClipDataset(rows, reader, seed=args.seed, shuffle=False)


@dataclass
class Inputs:
    """What the language model reads of a batch, on its device; the names are those of `LanguageModel.forward`."""

    text_states: torch.Tensor  # (B, L, text width)
    attention_mask: torch.Tensor  # (B, L)
    labels: torch.Tensor  # (B, K, T), -100 for padding

    def split(self, num_parts: int) -> Iterator[dict[str, torch.Tensor]]:
        """As keyword arguments, in parts of equal size (the last may be smaller)."""
        parts = [getattr(self, field.name).chunk(num_parts) for field in fields(self)]
        for part in zip(*parts, strict=True):
            yield dict(zip((field.name for field in fields(self)), part, strict=True))


@torch.no_grad()
def encode_batch(
    model: AudioGenForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    device: torch.device,
    *,
    num_parts: int = 1,
    with_text: bool = True,
) -> Inputs:
    """Encode sounds and texts of a batch (see `audiogen_hf.data`), both in float32, unless the batch holds their codes
    and states already.

    Args:
        num_parts: parts in which the sounds are encoded, to bound memory.
        with_text: without it, every text is the null prompt.
    """
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    if "audio_codes" in batch:
        codes, mask = batch["audio_codes"], batch["frame_mask"]
    else:
        codes = torch.cat([model.encode_audio(part) for part in batch["input_values"].chunk(num_parts)])
        mask = frame_mask(batch["padding_mask"], model.config.audio_encoder.hop_length)
    labels = codes.masked_fill(~mask[:, None], IGNORE_INDEX)

    if not with_text:
        states = torch.zeros(len(labels), 1, model.text_encoder.config.hidden_size, device=device)
        attention_mask = torch.zeros(len(labels), 1, dtype=torch.long, device=device)
    elif "encoder_hidden_states" in batch:
        states, attention_mask = batch["encoder_hidden_states"], batch["attention_mask"]
    else:
        attention_mask = batch["attention_mask"]
        states = model.text_encoder(input_ids=batch["input_ids"], attention_mask=attention_mask)[0]
    return Inputs(states, attention_mask, labels)
