"""Options of the language model's trainer; the defaults are those of AudioCraft's `audiogen/audiogen_base_16khz`."""

from dataclasses import dataclass, field
from pathlib import Path

from ...configuration_audiogen import MODEL_SCALES
from ..schedules import SCHEDULES

SAMPLE_KINDS = ("conditional", "unconditional", "continuation")


def option(default, help: str, **metadata):
    """A field with its line of `--help`."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class AudioGenTrainingArguments:
    """Everything that decides a run, besides what `accelerate launch` is told."""

    # Data
    train_data: str = field(
        metadata={"help": "token cache, folder of sounds, AudioCraft manifest, parquet, or dataset on the Hub"}
    )
    output_dir: str = field(metadata={"help": "folder of checkpoints, logs, samples and the trained models"})
    validation_data: str | None = option(None, "as train_data; without it nothing is validated or sampled")
    train_split: str = option("train", "split of train_data, where it has splits")
    validation_split: str = option("train", "split of validation_data, where it has splits")
    dataset_config: str | None = option(None, "configuration of a dataset on the Hub")
    streaming: bool = option(False, "read train_data while training, without downloading it first")
    audio_column: str = option("audio", "column of the sounds")
    text_column: str | None = option(None, "column of the descriptions; default: text, caption or description")
    external_metadata_source: str | None = option(None, "folder of the .json files of an AudioCraft manifest")
    segment_duration: float | None = option(None, "seconds of a clip; default: those of the model, 10 from scratch")
    min_segment_ratio: float = option(1.0, "share of a clip that must hold sound, where a sound is long enough")
    max_validation_clips: int | None = option(None, "clips to validate on, the first of validation_data")
    num_workers: int = option(0, "worker processes that decode sound, for each training process")

    # Mixing of clips, for sounds (a token cache cannot be mixed)
    aug_p: float = option(0.0, "probability that the clips of a batch are mixed; AudioGen: 0.5")
    mix_p: float = option(0.5, "size of a batch over that of the pool that it is mixed from")
    mix_snr_low: int = option(-5, "least level of a clip over the one added to it, in dB")
    mix_snr_high: int = option(5, "end of the range of levels, in dB")
    mix_min_overlap: float = option(0.5, "least share of a clip in which the added one sounds too")

    # Model: a pretrained one, or one from scratch
    model_name_or_path: str | None = option(None, "AudioGen to train further, in either layout")
    model_scale: str | None = option(None, f"from scratch: {', '.join(MODEL_SCALES)}, or a JSON file of the decoder's")
    tokenizer_model: str | None = option(
        None, "EncodecModel that makes the codes; a pretrained model gets it in place of its own, and has to learn it"
    )
    text_encoder: str | None = option(
        None, "from scratch: text encoder, default t5-large; for AudioCraft's layout: in place of the one it names"
    )
    attend_to_text_padding: bool = option(False, "read the padding of shorter texts as zeros, as AudioCraft does")
    text_pooling: str | None = option(
        None, "from scratch: mean conditions on the mean state of a text, for sentence encoders", choices=["mean"]
    )

    # Adapters
    lora_rank: int = option(0, "train LoRA adapters of this rank in place of all weights; 0: none")
    lora_alpha: float | None = option(None, "scale of LoRA, times 1 / lora_rank; default: twice lora_rank")
    lora_dropout: float = option(0.0, "dropout in front of LoRA")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["qkv_proj", "q_proj", "kv_proj", "out_proj", "fc1", "fc2"],
        metadata={"help": "linear layers that get LoRA"},
    )
    peft_config: str | None = option(None, "folder of an adapter_config.json: any PEFT method, in place of lora_*")
    merge_adapter: bool = option(False, "export the model with its adapter merged, in place of the adapter")

    # Optimization
    guidance_dropout: float = option(0.1, "probability that a step trains without its texts")
    max_steps: int = option(200_000, "optimizer steps")
    batch_size: int = option(128, "clips of an optimizer step, all processes and accumulated parts together")
    gradient_accumulation_steps: int = option(1, "parts in which a process passes its share of a batch")
    learning_rate: float = option(5e-4, "peak of AdamW's learning rate")
    adam_beta1: float = option(0.9, "decay of AdamW's first moment")
    adam_beta2: float = option(0.95, "decay of AdamW's second moment")
    adam_epsilon: float = option(1e-8, "added to AdamW's denominator")
    weight_decay: float = option(0.1, "of all weights that are trained")
    max_grad_norm: float = option(1.0, "longer gradients are shortened to this norm")
    lr_schedule: str = option("inverse_sqrt", "after the warm-up", choices=list(SCHEDULES))
    warmup_steps: int = option(3000, "steps in which the learning rate rises from 0")
    ema_decay: float | None = option(None, "decay of averaged weights, which are validated and exported; none without")
    ema_steps: int = option(10, "steps between two updates of the averaged weights")

    # Computing
    mixed_precision: str | None = option(
        None, "no, bf16 or fp16; default: accelerate's", choices=["no", "bf16", "fp16"]
    )
    gradient_checkpointing: bool = option(False, "compute layers again in the backward pass, to save memory")
    torch_compile: bool = option(False, "compile the decoder's layers")

    # Samples
    sample_steps: int = option(0, "steps between two generations of samples; 0: none")
    num_samples: int = option(4, "clips of validation_data, the first, that samples are made for")
    sample_kinds: list[str] = field(
        default_factory=lambda: list(SAMPLE_KINDS), metadata={"help": f"any of {', '.join(SAMPLE_KINDS)}"}
    )
    sample_duration: float | None = option(None, "seconds of a sample; default: those of a clip")
    sample_prompt_duration: float | None = option(None, "seconds that are continued; default: a quarter of a clip")
    do_sample: bool = option(True, "draw the codes of samples; otherwise take the likeliest")
    temperature: float = option(1.0, "of the draws")
    top_k: int = option(250, "codes to draw from, the likeliest; 0: all")
    top_p: float = option(1.0, "below 1: draw from the likeliest codes of this probability, in place of top_k")
    guidance_scale: float = option(3.0, "of the samples with a text; 1: none")

    # Run
    seed: int = option(0, "of weights, data, guidance dropout and samples")
    logging_steps: int = option(50, "steps between two lines of the log")
    save_steps: int = option(2000, "steps between two validations, each followed by a checkpoint")
    save_total_limit: int = option(2, "newest checkpoints kept, besides the best one")
    resume_from_checkpoint: str | None = option(None, '"latest", or a checkpoint folder')
    report_to: list[str] = field(default_factory=list, metadata={"help": "trackers: tensorboard, trackio, wandb, ..."})
    push_to_hub: bool = option(False, "upload the best model (without validation: the last) with its card")
    hub_model_id: str | None = option(None, "repository to upload to; default: the name of output_dir")
    hub_private: bool = option(False, "make that repository private")

    def __post_init__(self):
        positive = (
            *("max_steps", "batch_size", "gradient_accumulation_steps", "learning_rate", "max_grad_norm"),
            *("ema_steps", "logging_steps", "save_steps", "save_total_limit", "num_samples"),
        )
        positive_if_given = ("segment_duration", "sample_duration", "sample_prompt_duration", "max_validation_clips")
        not_negative = ("lora_rank", "weight_decay", "sample_steps", "num_workers", "seed", "temperature", "top_k")
        for name in (*positive, *(name for name in positive_if_given if getattr(self, name) is not None)):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes more than 0")
        for name in not_negative:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes 0 or more")
        for name in ("guidance_dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes a probability, from 0 to 1")
        self._check_model()
        self._check_samples()

    def _check_model(self):
        if (self.model_name_or_path is None) == (self.model_scale is None):
            raise ValueError(
                "give either model_name_or_path, to train a model further, or model_scale, to train one from scratch"
            )
        if self.model_scale is not None:
            if self.tokenizer_model is None:
                raise ValueError("model_scale: from scratch needs tokenizer_model too, the EncodecModel of the codes")
            if self.model_scale not in MODEL_SCALES and not Path(self.model_scale).is_file():
                raise ValueError(
                    f"model_scale: got {self.model_scale!r}, takes one of {', '.join(MODEL_SCALES)}, or a JSON file"
                )
            if self.uses_adapter:
                raise ValueError("lora_rank and peft_config: adapters need model_name_or_path, a model that stays")
        elif self.tokenizer_model is not None and self.uses_adapter:
            raise ValueError("tokenizer_model: adapters are for the model as it is, with its own tokenizer")
        elif self.text_pooling is not None:
            raise ValueError("text_pooling: a model that is trained further keeps its own")
        if self.lora_rank and self.peft_config is not None:
            raise ValueError("give lora_rank or peft_config, not both")
        if self.merge_adapter and not self.uses_adapter:
            raise ValueError("merge_adapter: there is no adapter, give lora_rank or peft_config")

    def _check_samples(self):
        unknown = set(self.sample_kinds) - set(SAMPLE_KINDS)
        if unknown:
            raise ValueError(f"sample_kinds: got {', '.join(sorted(unknown))}, takes {', '.join(SAMPLE_KINDS)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, takes a probability above 0, up to 1")
        if self.sample_steps and self.validation_data is None:
            raise ValueError("sample_steps: samples are made for the clips of validation_data, which is not given")

    @property
    def uses_adapter(self) -> bool:
        """Whether an adapter is trained in place of the model's own weights."""
        return self.lora_rank > 0 or self.peft_config is not None
