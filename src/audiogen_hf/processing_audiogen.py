"""Text and sound to the inputs of AudioGen, and generated sound to files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .audio_utils import convert_audio, write_audio
from .packaged_models import resolve_model_name


class AudioGenProcessor(ProcessorMixin):
    """
    A tokenizer of texts and a feature extractor of sounds in one.

    Args:
        feature_extractor (`EncodecFeatureExtractor`): Pads sounds; knows their sampling rate and channels.
        tokenizer (`PreTrainedTokenizerBase`): The text encoder's tokenizer.

    ```python
    >>> from audiogen_hf import AudioGenProcessor

    >>> processor = AudioGenProcessor.from_pretrained("facebook/audiogen-medium")  # doctest: +SKIP
    >>> inputs = processor(text=["a dog barks", "rain on a tin roof"])  # doctest: +SKIP
    >>> processor.save_audio("dog.wav", model.generate(**inputs)[0])  # doctest: +SKIP
    ```
    """

    def __init__(self, feature_extractor, tokenizer):
        super().__init__(feature_extractor, tokenizer)

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the sounds that the model reads and makes."""
        return self.feature_extractor.sampling_rate

    @classmethod
    def from_config(cls, config, tokenizer) -> "AudioGenProcessor":
        """The processor of an [`AudioGenConfig`] with a given tokenizer."""
        from transformers import EncodecFeatureExtractor

        feature_extractor = EncodecFeatureExtractor(
            feature_size=config.decoder.audio_channels, sampling_rate=config.sampling_rate
        )
        return cls(feature_extractor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, text_encoder=None, **kwargs):
        """Loads a processor from a Hub repository or folder, in this library's layout or AudioCraft's.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): As of the model.
            text_encoder (`str`, *optional*): For AudioCraft's layout, a folder or Hub id that overrides the text
                encoder which the checkpoint names.
            kwargs: As in `ProcessorMixin.from_pretrained`.
        """
        from .convert_audiocraft import AudioCraftCheckpoint, is_audiocraft_checkpoint

        pretrained_model_name_or_path = resolve_model_name(pretrained_model_name_or_path)
        if is_audiocraft_checkpoint(pretrained_model_name_or_path, **kwargs):
            checkpoint = AudioCraftCheckpoint(pretrained_model_name_or_path, text_encoder=text_encoder, **kwargs)
            return cls.from_config(checkpoint.config(), checkpoint.load_tokenizer())
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def __call__(
        self,
        text: str | Sequence[str | None] | None = None,
        audio: np.ndarray | Sequence[np.ndarray] | None = None,
        sampling_rate: int | None = None,
        negative_text: str | Sequence[str] | None = None,
        padding: bool | str = True,
        return_tensors: str = "pt",
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            text (`str` or `list[str]`): Descriptions. `None` and `""` describe nothing: the null prompt.
            audio (`np.ndarray`, `torch.Tensor` or a list of them, *optional*): Sounds to continue, one a text, of
                shape `(N,)` or `(channels, N)`; of any lengths, resampled and mixed down as the model needs.
            sampling_rate (`int`, *optional*): Samples per second of `audio`; required with it.
            negative_text (`str` or `list[str]`, *optional*): What the sounds shall not be: one for all, or one a text.
            padding (`bool` or `str`, *optional*, defaults to `True`): As in tokenizers.
            return_tensors (`str`, *optional*, defaults to `"pt"`): As in tokenizers; `"pt"` or `"np"` with `audio`.
            kwargs: For the tokenizer.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` of shape `(B, L)`; with `audio`, `input_values` of
            shape `(B, channels, N)` and `padding_mask` of shape `(B, N)`; with `negative_text`, `negative_prompt_ids`
            and `negative_prompt_attention_mask`.

        Raises:
            `ValueError`: for no text, sounds that are empty, not finite, or of another count than the texts, or a
                missing sampling rate.
        """
        if text is None:
            raise ValueError(
                "`text` takes a description, or a list of them; for no description pass '' or None in a list."
            )
        tokenize = {"padding": padding, "return_tensors": return_tensors, **kwargs}
        features = dict(self._tokenize("text", text, **tokenize))
        num_texts = len(features["input_ids"])
        if negative_text is not None:
            negative = self._tokenize("negative_text", negative_text, **tokenize)
            if len(negative["input_ids"]) not in (1, num_texts):
                raise ValueError(
                    f"`negative_text` takes one text, or one for each of the {num_texts} texts, "
                    f"got {len(negative['input_ids'])}."
                )
            features["negative_prompt_ids"] = negative["input_ids"]
            features["negative_prompt_attention_mask"] = negative["attention_mask"]
        if audio is not None:
            sounds = self._prepare_sounds(audio, sampling_rate)
            if len(sounds) != num_texts:
                raise ValueError(f"`audio` takes one sound for each of the {num_texts} texts, got {len(sounds)}.")
            features.update(
                self.feature_extractor(
                    [sound.squeeze(0) if len(sound) == 1 else sound for sound in sounds],
                    sampling_rate=self.sampling_rate,
                    padding=True,
                    return_tensors=return_tensors,
                )
            )
        return BatchFeature(features)

    def _tokenize(self, name: str, text: str | Sequence[str | None], **kwargs):
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError(f"`{name}` takes at least one description, got an empty list.")
        if not all(one is None or isinstance(one, str) for one in texts):
            raise ValueError(f"`{name}` takes strings, got {[type(one).__name__ for one in texts]}.")
        # No text encoder here tells segments apart, though the tokenizers of some mark them.
        encoded = self.tokenizer([one or "" for one in texts], **{"return_token_type_ids": False, **kwargs})
        for row, one in enumerate(texts):
            if not one:  # the null prompt: the end-of-text token is not attended to either
                encoded["attention_mask"][row] = 0 * encoded["attention_mask"][row]
        return encoded

    def _prepare_sounds(self, audio, sampling_rate: int | None) -> list[np.ndarray]:
        """Sounds of shape (channels, N) at the model's rate."""
        if sampling_rate is None:
            raise ValueError("`sampling_rate` (samples per second of `audio`) must be given with `audio`.")
        if sampling_rate <= 0:
            raise ValueError(f"`sampling_rate` must be positive, got {sampling_rate}.")
        sounds = list(audio) if isinstance(audio, (list, tuple)) else _split_batch(audio)
        channels = self.feature_extractor.feature_size
        prepared = []
        for index, sound in enumerate(sounds):
            sound = np.atleast_2d(np.asarray(_to_numpy(sound), dtype=np.float32))
            if sound.ndim != 2 or sound.shape[-1] == 0:
                raise ValueError(
                    f"`audio` takes sounds of shape (N,) or (channels, N), not empty; "
                    f"number {index} has {sound.shape}."
                )
            if not np.isfinite(sound).all():
                raise ValueError(f"`audio` takes finite samples; number {index} has NaN or infinity.")
            prepared.append(convert_audio(sound, sampling_rate, self.sampling_rate, channels))
        return prepared

    def save_audio(self, path: str | Path, audio, **kwargs) -> Path:
        """Writes one generated sound to a file, at the model's sampling rate.

        Args:
            path (`str` or `Path`): The file; its ending says the format (wav, flac, ogg or mp3).
            audio (`np.ndarray` or `torch.Tensor` of shape `(channels, N)` or `(N,)`): The sound.
            kwargs: As in [`write_audio`]: `strategy`, `metadata`, ...

        Returns:
            `Path`: The file written.
        """
        return write_audio(path, audio, self.sampling_rate, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "input_values", "padding_mask"]


def _to_numpy(sound) -> np.ndarray:
    return sound.detach().cpu().numpy() if hasattr(sound, "detach") else sound


def _split_batch(audio) -> list:
    """An array of one sound, (N,) or (channels, N), or of a batch, (B, channels, N), as a list of sounds."""
    audio = _to_numpy(audio)
    return list(audio) if audio.ndim == 3 else [audio]


__all__ = ["AudioGenProcessor"]
