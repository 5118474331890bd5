"""The model of a run: a pretrained one or one from scratch, the part of it that learns, and its export."""

import json
import tempfile
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer, EncodecConfig, EncodecModel

from ...configuration_audiogen import MODEL_SCALES, AudioGenConfig, AudioGenDecoderConfig
from ...convert_audiocraft import AudioCraftCheckpoint, is_audiocraft_checkpoint
from ...generation_audiogen import default_generation_config
from ...modeling_audiogen import AudioGenForConditionalGeneration
from ...packaged_models import resolve_model_name
from ...processing_audiogen import AudioGenProcessor
from .arguments import AudioGenTrainingArguments

DEFAULT_TEXT_ENCODER = "t5-large"  # of AudioCraft's `conditioner/text2sound`
DEFAULT_SEGMENT_DURATION = 10.0
FROZEN_PARTS = ("text_encoder.", "audio_encoder.")


def build_model(args: AudioGenTrainingArguments) -> tuple[AudioGenForConditionalGeneration, AudioGenProcessor]:
    """The model in float32, its encoders frozen, with an adapter if the options ask for one, and its processor.

    Raises:
        ValueError: the parts do not fit together, or the model is not one that can be trained here.
        OSError: a part cannot be found.
    """
    model, processor = _load(args)
    if args.uses_adapter:
        model.requires_grad_(False)
        _add_adapter(model, args)
    else:
        model.freeze_text_encoder()
        model.freeze_audio_encoder()
    return model, processor


def _load(args: AudioGenTrainingArguments) -> tuple[AudioGenForConditionalGeneration, AudioGenProcessor]:
    model, processor = _from_scratch(args) if args.model_name_or_path is None else _from_pretrained(args)
    if model.config.decoder.audio_channels != 1:
        raise ValueError("model_name_or_path: a stereo model, and training reads mono sound")
    model.config.attend_to_text_padding |= args.attend_to_text_padding
    if args.segment_duration is not None:
        model.config.segment_duration = args.segment_duration
    return model.eval(), processor


def _from_pretrained(args: AudioGenTrainingArguments):
    name = args.model_name_or_path
    model = AudioGenForConditionalGeneration.from_pretrained(name, text_encoder=args.text_encoder, dtype=torch.float32)
    if not Path(name).exists():
        model.config.base_model = name
    if args.tokenizer_model is not None:
        _replace_codec(model, load_codec(args.tokenizer_model))
    return model, AudioGenProcessor.from_pretrained(name, text_encoder=args.text_encoder)


def _from_scratch(args: AudioGenTrainingArguments):
    name = args.text_encoder or DEFAULT_TEXT_ENCODER
    text_encoder = AutoModelForTextEncoding.from_pretrained(name, dtype=torch.float32)
    codec = load_codec(args.tokenizer_model)
    try:
        config = AudioGenConfig(
            text_encoder=text_encoder.config.to_dict(),
            audio_encoder=codec.config.to_dict(),
            decoder=_decoder_config(args.model_scale, codec.config).to_dict(),
            segment_duration=args.segment_duration or DEFAULT_SEGMENT_DURATION,
            text_pooling=args.text_pooling,
        )
    except StrictDataclassError as error:
        raise ValueError(f"model_scale {args.model_scale}: {error.__cause__ or error}") from error
    model = AudioGenForConditionalGeneration(config)
    model.text_encoder, model.audio_encoder = text_encoder, codec
    model.generation_config = default_generation_config(config)
    return model, AudioGenProcessor.from_config(config, AutoTokenizer.from_pretrained(name))


def load_codec(name_or_path: str) -> EncodecModel:
    """An EnCodec tokenizer in float32: an `EncodecModel`, or that of an AudioGen in either layout."""
    name_or_path = resolve_model_name(name_or_path)
    if is_audiocraft_checkpoint(name_or_path):
        arguments, state = AudioCraftCheckpoint(name_or_path).read_codec()
        codec = EncodecModel(EncodecConfig.from_dict(arguments))
        codec.load_state_dict(state)
        return codec.float().eval()
    if AutoConfig.from_pretrained(name_or_path).model_type == AudioGenConfig.model_type:
        return AudioGenForConditionalGeneration.from_pretrained(name_or_path, dtype=torch.float32).audio_encoder
    return EncodecModel.from_pretrained(name_or_path, dtype=torch.float32)


def _replace_codec(model: AudioGenForConditionalGeneration, codec: EncodecModel) -> None:
    for name in ("sampling_rate", "hop_length", "num_quantizers", "codebook_size"):
        own, new = getattr(model.config.audio_encoder, name), getattr(codec.config, name)
        if own != new:
            raise ValueError(f"tokenizer_model: its {name} is {new}, that of the model's own tokenizer {own}")
    model.audio_encoder, model.config.audio_encoder = codec, codec.config


def _decoder_config(model_scale: str, codec: EncodecConfig) -> AudioGenDecoderConfig:
    if model_scale in MODEL_SCALES:
        options = MODEL_SCALES[model_scale]
    else:
        try:
            options = json.loads(Path(model_scale).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"model_scale: {model_scale} is no JSON ({error})") from error
    codes = {"vocab_size": codec.codebook_size, "num_codebooks": codec.num_quantizers}
    return AudioGenDecoderConfig(**{**codes, **options})


def _add_adapter(model: AudioGenForConditionalGeneration, args: AudioGenTrainingArguments):
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model

    if args.peft_config is not None:
        config = PeftConfig.from_pretrained(args.peft_config)
    else:
        config = LoraConfig(
            r=args.lora_rank,
            lora_alpha=args.lora_alpha or 2 * args.lora_rank,
            lora_dropout=args.lora_dropout,
            target_modules=args.lora_target_modules,
        )
    config.base_model_name_or_path = args.model_name_or_path
    config.inference_mode = False  # PEFT writes `true` beside an adapter that it has trained
    # By PEFT itself, here and in `_save_adapter`: transformers' methods may ask for a PEFT that is not out yet.
    inject_adapter_in_model(config, model)
    reached = [name for name, p in model.named_parameters() if p.requires_grad and name.startswith(FROZEN_PARTS)]
    if reached:
        raise ValueError(f"peft_config: its target_modules reach into the encoders, which stay frozen: {reached[0]}")


class LanguageModel(nn.Module):
    """The part of an AudioGen that learns: decoder, projection of the text, heads.

    Its encoders are used but not registered here: no wrapper shards or copies them, no checkpoint holds them. The
    parts are shared with the model, which stays whole for sampling and export.
    """

    def __init__(self, model: AudioGenForConditionalGeneration):
        super().__init__()
        self.decoder = model.decoder
        self.enc_to_dec_proj = model.enc_to_dec_proj
        self.lm_head = model.lm_head
        self._whole = (model,)  # in a tuple, so that it is no submodule

    def forward(self, text_states, attention_mask, labels, num_targets=None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            text_states: (B, L, text width) float, states of the text encoder.
            attention_mask: (B, L), 0 for padding of the texts.
            labels: (B, K, T) int64 codes, -100 for padding.
            num_targets: (K,), see `AudioGenForConditionalGeneration.forward`.

        Returns:
            The loss, and the cross entropy of each codebook (K,), detached.
        """
        outputs = self._whole[0](
            encoder_outputs=(text_states,), attention_mask=attention_mask, labels=labels, num_targets=num_targets
        )
        return outputs.loss, outputs.loss_per_codebook


def reshard(language_model: nn.Module) -> None:
    """Give up the whole weights that FSDP has gathered, so that changes of its shards are seen at the next use."""
    for module in language_model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def unshard_root(language_model: nn.Module) -> None:
    """Gather the weights that FSDP keeps outside the layers, so that the parts can be called without their root."""
    if isinstance(language_model, FSDPModule):
        language_model.unshard()


def export_model(
    model: AudioGenForConditionalGeneration,
    processor: AudioGenProcessor,
    state: dict[str, torch.Tensor],
    folder: Path,
    args: AudioGenTrainingArguments,
):
    """Write what a run gives: the whole model with its processor, or the adapter alone.

    Args:
        state: weights of the `LanguageModel`, whole, on the CPU.
        folder: an existing folder.
    """
    if not args.uses_adapter:
        frozen = {name: p for name, p in model.state_dict().items() if name.startswith(FROZEN_PARTS)}
        model.save_pretrained(folder, state_dict={**state, **frozen})
        processor.save_pretrained(folder)
    elif not args.merge_adapter:
        _save_adapter(model, state, folder)
    else:
        from peft import PeftModel

        with tempfile.TemporaryDirectory(dir=folder) as adapter:
            _save_adapter(model, state, adapter)
            # A fresh copy of the base, since merging changes the weights that go on training.
            base, _ = _load(args)
            merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)


def _save_adapter(model: AudioGenForConditionalGeneration, state: dict[str, torch.Tensor], folder: str | Path):
    """In PEFT's format: names are those in a `PeftModel`."""
    from peft import get_peft_model_state_dict

    adapter = get_peft_model_state_dict(model, state_dict=state)
    adapter = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in adapter.items()}
    save_file(adapter, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(folder)
