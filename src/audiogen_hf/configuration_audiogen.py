"""The configuration of AudioGen: a text encoder, an EnCodec tokenizer and the decoder between them."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig

# Width, layers and heads of AudioCraft's model scales (its configurations `model/lm/model_scale/*.yaml`).
MODEL_SCALES = {
    "xsmall": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "small": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "medium": {"hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24},
    "large": {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32},
}


@strict
class AudioGenDecoderConfig(PreTrainedConfig):
    r"""
    The configuration of the autoregressive decoder over `num_codebooks` streams of EnCodec codes. The defaults are
    those of `facebook/audiogen-medium`.

    Args:
        vocab_size (`int`, *optional*, defaults to 2048):
            Codes of one codebook. The id `vocab_size` itself is the special token of the delay pattern.
        num_codebooks (`int`, *optional*, defaults to 4):
            Parallel streams. Stereo interleaves the codebooks of both channels: left 0, right 0, left 1, right 1, ...
        codebook_delays (`list[int]`, *optional*):
            Columns by which each codebook lags; `[0, 1, ..., num_codebooks - 1]` where it is not given, and
            `[0, 0, 1, 1, ...]` for stereo.
        audio_channels (`int`, *optional*, defaults to 1):
            1 for mono. 2 for stereo by interleaved codebooks of a mono tokenizer.
        hidden_size (`int`, *optional*, defaults to 1536): Width of the layers.
        num_hidden_layers (`int`, *optional*, defaults to 48): Layers.
        num_attention_heads (`int`, *optional*, defaults to 24): Heads of self- and cross-attention.
        intermediate_size (`int`, *optional*): Width of the feed-forward; four times `hidden_size` if not given.
        dropout (`float`, *optional*, defaults to 0.0): Dropout after attention and in the feed-forward, in training.
        attention_dropout (`float`, *optional*, defaults to 0.0): Dropout of the attention weights, in training.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Added to the variance in every LayerNorm.
        use_cache (`bool`, *optional*, defaults to `True`): Whether decoding keeps keys and values.

    | scale | width | layers | heads |
    |---|---|---|---|
    | xsmall | 64 | 2 | 2 |
    | small | 1024 | 24 | 16 |
    | medium | 1536 | 48 | 24 |
    | large | 2048 | 48 | 32 |

    ```python
    >>> from audiogen_hf import AudioGenDecoderConfig

    >>> AudioGenDecoderConfig.from_scale("small").hidden_size
    1024
    ```
    """

    model_type: ClassVar[str] = "audiogen_decoder"
    base_config_key = "decoder"

    vocab_size: int = 2048
    num_codebooks: int = 4
    codebook_delays: list[int] | tuple[int, ...] | None = None
    audio_channels: int = 1
    hidden_size: int = 1536
    num_hidden_layers: int = 48
    num_attention_heads: int = 24
    intermediate_size: int | None = None
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    is_decoder: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.codebook_delays is None:
            self.codebook_delays = [k // self.audio_channels for k in range(self.num_codebooks)]
        self.codebook_delays = list(self.codebook_delays)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)

    @classmethod
    def from_scale(cls, scale: str, **kwargs) -> "AudioGenDecoderConfig":
        """The configuration of one of AudioCraft's scales: `"xsmall"`, `"small"`, `"medium"` or `"large"`.

        Raises:
            `ValueError`: if `scale` is none of these.
        """
        if scale not in MODEL_SCALES:
            raise ValueError(f"`scale` must be one of {', '.join(MODEL_SCALES)}, got {scale!r}.")
        return cls(**{**MODEL_SCALES[scale], **kwargs})

    @property
    def special_token_id(self) -> int:
        """The id that fills the cells outside the delay pattern."""
        return self.vocab_size

    @property
    def max_delay(self) -> int:
        """Columns by which the slowest codebook lags."""
        return max(self.codebook_delays)

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        if self.audio_channels not in (1, 2):
            raise ValueError(f"`audio_channels` must be 1 (mono) or 2 (stereo), got {self.audio_channels}.")
        if self.num_codebooks % self.audio_channels:
            raise ValueError(f"Stereo needs an even `num_codebooks`, got {self.num_codebooks}.")
        if len(self.codebook_delays) != self.num_codebooks or min(self.codebook_delays) < 0:
            raise ValueError(
                f"`codebook_delays` takes {self.num_codebooks} non-negative numbers, one a codebook, "
                f"got {self.codebook_delays}."
            )
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise ValueError(
                f"`hidden_size` must be even and a multiple of `num_attention_heads`, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )


@strict
class AudioGenConfig(PreTrainedConfig):
    r"""
    The configuration of [`AudioGenForConditionalGeneration`]: three sub-configurations and what ties them together.

    Args:
        text_encoder (`dict` or `PreTrainedConfig`, *optional*): The text encoder, a T5 by default.
        audio_encoder (`dict` or `PreTrainedConfig`, *optional*): The tokenizer of sound, an EnCodec by default.
        decoder (`dict` or `AudioGenDecoderConfig`, *optional*): The decoder.
        segment_duration (`float`, *optional*, defaults to 10.0):
            Seconds of sound that the decoder was trained on. Longer sounds are generated window by window.
        attend_to_text_padding (`bool`, *optional*, defaults to `False`):
            Whether cross-attention sees the padding of shorter prompts, as zeros, as AudioCraft does. Then a sound
            depends on the other prompts in its batch; by default it does not. Prompts of equal length, and single
            prompts, give the same result either way.
        text_pooling (`str`, *optional*):
            `"mean"` conditions on the mean of the text encoder's states over a prompt's tokens, as a single state;
            meant for sentence encoders, which are trained to tell the meaning by it. By default the decoder attends
            to the state of each token.
        base_model (`str`, *optional*): Hub id of the weights that these were converted from or trained from.
        license (`str`, *optional*): Id of the licence of the weights, for the model card.

    ```python
    >>> from audiogen_hf import AudioGenConfig

    >>> config = AudioGenConfig(decoder={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2})
    >>> config.sampling_rate, config.frame_rate
    (16000, 50)
    ```
    """

    model_type: ClassVar[str] = "audiogen"
    sub_configs_defaults: ClassVar[dict] = {
        "text_encoder": SubConfigSpec(config_class=AutoConfig, model_type="t5"),
        "audio_encoder": SubConfigSpec(
            config_class=AutoConfig,
            model_type="encodec",
            # The 16 kHz tokenizer of AudioGen: 4 codebooks of 11 bits, 50 times a second, are 2.2 kbit/s.
            init_kwargs={
                "sampling_rate": 16_000,
                "upsampling_ratios": [8, 5, 4, 2],
                "num_filters": 64,
                "codebook_size": 2048,
                "target_bandwidths": [2.2],
                "pad_mode": "constant",
                "use_causal_conv": False,
                "use_conv_shortcut": False,
                "normalize": False,
            },
        ),
        "decoder": AudioGenDecoderConfig,
    }

    text_encoder: dict | PreTrainedConfig | None = None
    audio_encoder: dict | PreTrainedConfig | None = None
    decoder: dict | PreTrainedConfig | None = None
    segment_duration: float | int = 10.0
    attend_to_text_padding: bool = False
    text_pooling: str | None = None
    base_model: str | None = None
    license: str | None = None
    is_encoder_decoder: bool = True

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the generated sound."""
        return self.audio_encoder.sampling_rate

    @property
    def frame_rate(self) -> int:
        """Frames (columns of codes) per second."""
        return self.audio_encoder.frame_rate

    def get_text_config(self, *args, **kwargs):
        """The decoder's configuration: caches, masks and vocabulary checks of `generate` are about it."""
        return self.decoder

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        if self.segment_duration <= 0:
            raise ValueError(f"`segment_duration` must be positive, got {self.segment_duration} seconds.")
        if self.text_pooling not in (None, "mean"):
            raise ValueError(f"`text_pooling` must be None or 'mean', got {self.text_pooling!r}.")
        if self.audio_encoder.codebook_size != self.decoder.vocab_size:
            raise ValueError(
                f"The tokenizer has {self.audio_encoder.codebook_size} codes a codebook "
                f"(`audio_encoder.codebook_size`) but the decoder {self.decoder.vocab_size} (`decoder.vocab_size`)."
            )
        codebooks_a_channel = self.decoder.num_codebooks // self.decoder.audio_channels
        if codebooks_a_channel > self.audio_encoder.num_quantizers:
            raise ValueError(
                f"The decoder models {codebooks_a_channel} codebooks a channel (`decoder.num_codebooks`), the "
                f"tokenizer has {self.audio_encoder.num_quantizers} (`audio_encoder.target_bandwidths`)."
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, text_encoder=None, **kwargs):
        """Reads the configuration of a Hub repository or folder, in this library's layout or AudioCraft's.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): As of the model.
            text_encoder (`str`, *optional*): For AudioCraft's layout, a folder or Hub id that overrides the text
                encoder which the checkpoint names.
            kwargs: As in `PreTrainedConfig.from_pretrained`; unknown ones set attributes.
        """
        from .convert_audiocraft import HUB_OPTIONS, is_audiocraft_checkpoint, read_audiocraft_config
        from .packaged_models import resolve_model_name

        pretrained_model_name_or_path = resolve_model_name(pretrained_model_name_or_path)
        if is_audiocraft_checkpoint(pretrained_model_name_or_path, **kwargs):
            hub_kwargs = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
            config = read_audiocraft_config(pretrained_model_name_or_path, text_encoder=text_encoder, **hub_kwargs)
            return cls.from_dict(config.to_dict(), **kwargs)
        if text_encoder is not None:
            kwargs["text_encoder"] = text_encoder
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)


__all__ = ["MODEL_SCALES", "AudioGenConfig", "AudioGenDecoderConfig"]
