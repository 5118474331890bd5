"""Options of the EnCodec trainer; the defaults are AudioCraft's `compression/encodec_audiogen_16khz`."""

from dataclasses import dataclass, field

from ..schedules import SCHEDULES
from .losses import MEL_LOSSES


def option(default, help: str):
    """A field with its line of `--help`."""
    return field(default=default, metadata={"help": help})


@dataclass
class EncodecTrainingArguments:
    """Everything that decides a run, besides what `accelerate launch` is told."""

    train_data: str = field(
        metadata={
            "help": "folder of sounds, AudioCraft manifest, parquet, or dataset on the Hub; where the encoder stays, "
            "also a token cache that keeps the sound"
        }
    )
    output_dir: str = field(metadata={"help": "folder of checkpoints, logs and the trained models"})
    validation_data: str | None = option(None, "as train_data, no token cache; without it nothing is validated")
    train_split: str = option("train", "split of train_data, where it has splits")
    validation_split: str = option("train", "split of validation_data, where it has splits")
    segment_duration: float = option(1.0, "seconds of a training clip")
    min_segment_ratio: float = option(0.5, "share of a training clip that a short sound must fill before its end")
    validation_segment_duration: float = option(1.0, "seconds of a validation clip; one is taken from each sound")
    num_workers: int = option(0, "worker processes that decode sound, for each training process")

    model_name_or_path: str | None = option(None, "EncodecModel to continue from; the next seven options are then its")
    sampling_rate: int = option(16000, "of the sound, in Hz")
    num_filters: int = option(64, "channels of the first convolution; they double at each stride")
    hidden_size: int = option(128, "size of the vectors that are quantized")
    num_lstm_layers: int = option(2, "in the encoder and in the decoder")
    upsampling_ratios: list[int] = field(
        default_factory=lambda: [8, 5, 4, 2], metadata={"help": "strides of the decoder; their product makes a frame"}
    )
    num_codebooks: int = option(4, "residual codebooks")
    codebook_size: int = option(2048, "codes in each, a power of two")

    train_encoder: bool = option(True, "otherwise encoder and codebooks stay as they are, and so do the codes")
    codebook_decay: float = option(0.99, "decay of the codebooks' moving averages")
    kmeans_iterations: int = option(50, "of the start of the codebooks, on the first batches")
    dead_code_ratio: float = option(0.1, "a code used less than this share of even use is replaced; 0: never")

    l1_weight: float = option(0.1, "share of the L1 loss in the gradient of the waveform")
    mel_weight: float = option(2.0, "share of the multi-scale mel loss")
    mel_loss: str = field(
        default="msspec",
        metadata={"help": "AudioCraft's, or L1 of log mel, which hears quiet parts too", "choices": list(MEL_LOSSES)},
    )
    mel_windows: list[int] = field(
        default_factory=lambda: [64, 128, 256, 512, 1024],
        metadata={"help": "lengths of the mel loss's windows, in samples"},
    )
    mel_bins: list[int] = field(
        default_factory=lambda: [64], metadata={"help": "mel filters: one number for all windows, or one for each"}
    )
    adversarial_weight: float = option(4.0, "share of the hinge loss")
    feature_weight: float = option(4.0, "share of the feature matching loss")
    commitment_weight: float = option(1.0, "factor of the commitment loss, which is not balanced")
    balancer_decay: float = option(0.999, "decay of the loss balancer's averages")
    balancer_interval: int = option(1, "steps between two measurements of the gradients' norms; they cost time")
    discriminator: bool = option(True, "train against the MS-STFT discriminator")
    discriminator_filters: int = option(32, "channels of the discriminator")
    discriminator_windows: list[int] = field(
        default_factory=lambda: [1024, 2048, 512, 256, 128],
        metadata={"help": "lengths of the windows whose spectrograms it sees, in samples; a discriminator for each"},
    )
    discriminator_overlap: int = option(4, "windows that hear each sample; with 2, a step takes less time")
    discriminator_compression: float = option(
        1.0, "exponent of the magnitudes that it sees; below 1 it hears the quiet parts, and learns in far fewer steps"
    )
    discriminator_learning_rate: float | None = option(None, "of its Adam; by default as learning_rate")
    discriminator_start_step: int = option(0, "steps with reconstruction losses alone, before it joins")

    max_steps: int = option(400_000, "optimizer steps")
    batch_size: int = option(64, "clips in a batch, all processes together")
    learning_rate: float = option(3e-4, "of Adam")
    adam_beta1: float = option(0.5, "decay of Adam's first moment")
    adam_beta2: float = option(0.9, "decay of Adam's second moment")
    lr_schedule: str = field(default="constant", metadata={"help": "after the warm-up", "choices": list(SCHEDULES)})
    warmup_steps: int = option(0, "steps in which the learning rate rises from 0")
    ema_decay: float = option(0.99, "of the averaged weights, which are validated and exported")
    mixed_precision: str = field(
        default="no", metadata={"help": "of encoder, decoder and discriminator: no or bf16", "choices": ["no", "bf16"]}
    )

    seed: int = option(0, "of weights, data and code replacement")
    logging_steps: int = option(50, "steps between two lines of the log")
    save_steps: int = option(2000, "steps between two validations, each followed by a checkpoint")
    save_total_limit: int = option(2, "newest checkpoints kept, besides the best one")
    resume_from_checkpoint: str | None = option(None, '"latest", or a checkpoint folder')
    report_to: list[str] = field(default_factory=list, metadata={"help": "trackers: tensorboard, trackio, wandb, ..."})

    def __post_init__(self):
        positive = (
            *("segment_duration", "validation_segment_duration", "sampling_rate", "num_filters", "hidden_size"),
            *("num_lstm_layers", "num_codebooks", "kmeans_iterations", "discriminator_filters", "max_steps"),
            *("batch_size", "learning_rate", "logging_steps", "save_steps", "save_total_limit", "mel_weight"),
            *("balancer_interval", "discriminator_overlap"),
        )
        not_negative = (
            *("dead_code_ratio", "l1_weight", "adversarial_weight", "feature_weight", "commitment_weight"),
            *("discriminator_start_step", "num_workers", "seed"),
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes more than 0")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes 0 or more")
        for name in ("codebook_decay", "balancer_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes a number of at least 0 and below 1")
        if not self.mel_windows or min(self.mel_windows) < 16:
            raise ValueError(f"mel_windows: got {self.mel_windows}, takes lengths of at least 16 samples")
        if len(self.mel_bins) not in (1, len(self.mel_windows)) or min(self.mel_bins) < 1:
            raise ValueError(
                f"mel_bins: got {self.mel_bins}, takes one positive number, or one for each of {self.mel_windows}"
            )
        if not self.discriminator_windows or min(self.discriminator_windows) < 16:
            raise ValueError(
                f"discriminator_windows: got {self.discriminator_windows}, takes lengths of at least 16 samples"
            )
        if not 0 < self.discriminator_compression <= 1:
            raise ValueError(
                f"discriminator_compression: got {self.discriminator_compression}, takes more than 0 and at most 1"
            )
        if self.discriminator_learning_rate is None:
            self.discriminator_learning_rate = self.learning_rate
        if self.discriminator_learning_rate <= 0:
            raise ValueError(f"discriminator_learning_rate: got {self.discriminator_learning_rate}, takes more than 0")
        if not self.train_encoder and self.model_name_or_path is None:
            raise ValueError("train_encoder: a model from scratch has no encoder to keep, give model_name_or_path")
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size: got {self.codebook_size}, takes a power of two")
        if self.dead_code_ratio >= 1:
            raise ValueError(f"dead_code_ratio: got {self.dead_code_ratio}, takes less than 1, the even use itself")
