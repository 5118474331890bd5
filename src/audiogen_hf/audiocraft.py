"""AudioCraft's API for AudioGen over this library: its names and its results, for programs written against it.

    from audiogen_hf.audiocraft import AudioGen, audio_write

Names, defaults and order of arguments are those of AudioCraft 1.3 (`audiocraft.models.AudioGen`,
`audiocraft.data.audio.audio_write`).
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import StoppingCriteria

from .audio_utils import write_audio
from .convert_audiocraft import AudioCraftCheckpoint, is_audiocraft_checkpoint
from .generation_audiogen import GENERATION_DEFAULTS
from .modeling_audiogen import AudioGenForConditionalGeneration
from .processing_audiogen import AudioGenProcessor

ProgressCallback = Callable[[int, int], None]


class AudioGen:
    """AudioGen as AudioCraft's users know it.

    Args:
        name (`str`): What the model was loaded from.
        model ([`AudioGenForConditionalGeneration`]): The model.
        processor ([`AudioGenProcessor`]): Its processor.
        inference_coef (`float`, *optional*, defaults to 3.0): The guidance coefficient of the checkpoint, which
            `two_step_cfg` uses.

    Attributes: `max_duration`, seconds of a window; `duration`, seconds that are generated; `extend_stride`, seconds
    by which windows move; `generation_params`, the other parameters; `model` and `processor`, this library's own.
    """

    def __init__(
        self,
        name: str,
        model: AudioGenForConditionalGeneration,
        processor: AudioGenProcessor,
        inference_coef: float = GENERATION_DEFAULTS["guidance_scale"],
    ):
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.inference_coef = inference_coef
        self.max_duration = model.config.segment_duration
        self.set_custom_progress_callback(None)
        self.set_generation_params(duration=5.0)

    @staticmethod
    def get_pretrained(
        name: str | os.PathLike = "facebook/audiogen-medium",
        device: str | torch.device | None = None,
        text_encoder: str | os.PathLike | None = None,
    ) -> "AudioGen":
        """Loads a model, attending to the padding of texts as AudioCraft does.

        Args:
            name (`str`): A Hub id or folder, in AudioCraft's layout or this library's.
            device (`str`, *optional*): By default the GPU, if there is one. The transformer runs in half precision on
                a GPU.
            text_encoder (`str`, *optional*): A folder or Hub id in place of the text encoder that an AudioCraft
                checkpoint names. AudioCraft has no such argument.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = AudioGenForConditionalGeneration.from_pretrained(
            name,
            text_encoder=text_encoder,
            attend_to_text_padding=True,
            dtype=torch.float32 if device.type == "cpu" else torch.float16,
        )
        processor = AudioGenProcessor.from_pretrained(name, text_encoder=text_encoder)
        inference_coef = model.generation_config.guidance_scale
        if is_audiocraft_checkpoint(name):
            guidance = AudioCraftCheckpoint(name, text_encoder=text_encoder).xp.get("classifier_free_guidance") or {}
            inference_coef = guidance.get("inference_coef", inference_coef)
        return AudioGen(str(name), model.to(device), processor, inference_coef)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def frame_rate(self) -> float:
        """Columns of codes per second."""
        return self.model.config.frame_rate

    @property
    def sample_rate(self) -> int:
        """Samples per second of the sound."""
        return self.model.config.sampling_rate

    @property
    def audio_channels(self) -> int:
        return self.model.config.decoder.audio_channels

    def set_generation_params(
        self,
        use_sampling: bool = True,
        top_k: int = 250,
        top_p: float = 0.0,
        temperature: float = 1.0,
        duration: float = 10.0,
        cfg_coef: float | None = 3.0,
        two_step_cfg: bool = False,
        extend_stride: float = 2.0,
    ):
        """Sets what the next calls generate; what is not given goes back to its default.

        Args:
            use_sampling (`bool`): Whether to draw codes; otherwise the likeliest is taken.
            top_k (`int`): Draw from that many likeliest codes; 0 for all.
            top_p (`float`): Where it is above 0, draw from the likeliest codes of that total probability instead.
            temperature (`float`): Divides the logits; 0 takes the likeliest code.
            duration (`float`): Seconds to generate, a prompt included.
            cfg_coef (`float`): Coefficient of classifier-free guidance; `None` for the checkpoint's own.
            two_step_cfg (`bool`): AudioCraft then runs the two halves of guidance apart, with the same result, and
                takes the checkpoint's own coefficient, whatever `cfg_coef` says. So does this.
            extend_stride (`float`): Seconds by which the window moves where `duration` exceeds `max_duration`.
        """
        self.duration = duration
        self.extend_stride = extend_stride
        self.generation_params = {
            "use_sampling": use_sampling,
            "temp": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "cfg_coef": cfg_coef,
            "two_step_cfg": two_step_cfg,
        }

    def set_custom_progress_callback(self, progress_callback: ProgressCallback | None = None):
        """Sets what is called with `(steps done, steps to do)` after each step where `progress=True`.

        As in AudioCraft the first counts all windows and the second the current one. Without it there is a progress
        bar.
        """
        self._progress_callback = progress_callback

    def generate(self, descriptions: Sequence[str | None], progress: bool = False, return_tokens: bool = False):
        """Makes sounds of descriptions.

        Args:
            descriptions (`list[str]`): B texts.
            progress (`bool`): Whether to show progress.
            return_tokens (`bool`): Whether to return the codes, too.

        Returns:
            `torch.FloatTensor` of shape `(B, channels, N)`; with `return_tokens`, that and a `torch.LongTensor` of
            shape `(B, K, T)`.
        """
        return self._generate(self.processor(text=list(descriptions)), progress, return_tokens)

    def generate_unconditional(self, num_samples: int, progress: bool = False, return_tokens: bool = False):
        """Makes `num_samples` sounds of no description. Returns as [`~AudioGen.generate`]."""
        return self._generate(self.model.get_unconditional_inputs(num_samples), progress, return_tokens)

    def generate_continuation(
        self,
        prompt: torch.Tensor,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
    ):
        """Continues sounds.

        Args:
            prompt (`torch.Tensor` of shape `(B, channels, N)` or `(channels, N)`): Sounds, resampled and mixed down as
                the model needs.
            prompt_sample_rate (`int`): Their samples per second.
            descriptions (`list[str]`, *optional*): B texts.
            progress, return_tokens: As in [`~AudioGen.generate`].

        Returns:
            As [`~AudioGen.generate`]: `duration` seconds, of which the first are the prompt.

        Raises:
            `ValueError`: for a prompt of another shape, as long as `duration`, or of another count than the texts.
        """
        if prompt.ndim not in (2, 3):
            raise ValueError(
                f"`prompt` takes shape (sounds, channels, samples) or (channels, samples), got {tuple(prompt.shape)}."
            )
        sounds = list(prompt if prompt.ndim == 3 else prompt[None])
        if descriptions is None:
            descriptions = [None] * len(sounds)
        inputs = self.processor(text=list(descriptions), audio=sounds, sampling_rate=prompt_sample_rate)
        return self._generate(inputs, progress, return_tokens)

    def generate_audio(self, gen_tokens: torch.LongTensor) -> torch.FloatTensor:
        """Codes `(B, K, T)` to sound `(B, channels, N)`."""
        with torch.no_grad():
            return self.model.decode_audio(gen_tokens.to(self.device))

    def _generate(self, inputs: dict, progress: bool, return_tokens: bool):
        stopping_criteria = []
        if progress and self._progress_callback is not None:
            stopping_criteria.append(_CallProgress(self))
        outputs = self.model.generate(
            **inputs,
            **self._generate_kwargs(),
            audio_length_in_s=self.duration,
            progress=progress and self._progress_callback is None,
            stopping_criteria=stopping_criteria,
            return_dict_in_generate=True,
        )
        return (outputs.audio, outputs.audio_codes) if return_tokens else outputs.audio

    def _generate_kwargs(self) -> dict:
        """The parameters under this library's names."""
        params = self.generation_params
        uses_own_coefficient = params["two_step_cfg"] or params["cfg_coef"] is None
        kwargs = {"guidance_scale": self.inference_coef if uses_own_coefficient else params["cfg_coef"]}
        if self.duration > self.max_duration:
            kwargs["extend_stride"] = self.extend_stride
        if not params["use_sampling"] or params["temp"] <= 0:
            return {**kwargs, "do_sample": False}
        top_p = params["top_p"] if params["top_p"] > 0 else 1.0
        top_k = params["top_k"] if params["top_p"] <= 0 else 0
        return {**kwargs, "do_sample": True, "temperature": params["temp"], "top_k": top_k, "top_p": top_p}


class _CallProgress(StoppingCriteria):
    """Tells a callback after each step how far it is, counted as AudioCraft does; stops nothing."""

    def __init__(self, audiogen: AudioGen):
        self.callback = audiogen._progress_callback
        self.num_frames = int(audiogen.duration * audiogen.frame_rate)
        self.window = int(audiogen.max_duration * audiogen.frame_rate)
        self.stride = int(audiogen.extend_stride * audiogen.frame_rate)
        self.max_delay = audiogen.model.config.decoder.max_delay
        self.offset = -self.stride
        self.length = math.inf

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        length = input_ids.shape[1]
        if length <= self.length:  # a new window
            self.offset += self.stride
            self.first_column = length - 1
        self.length = length
        num_columns = 1 + min(self.num_frames - self.offset, self.window) + self.max_delay
        self.callback(self.offset + length - self.first_column, num_columns - self.first_column)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def audio_write(
    stem_name: str | os.PathLike,
    wav: torch.Tensor,
    sample_rate: int,
    format: str = "wav",
    *,
    mp3_rate: int = 320,
    normalize: bool = True,
    strategy: str = "peak",
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
    loudness_compressor: bool = False,
    log_clipping: bool = True,
    add_suffix: bool = True,
) -> Path:
    """Writes a sound to a file as AudioCraft does; see [`write_audio`] for what differs at the edges.

    Args:
        stem_name (`str` or `os.PathLike`): The path without its suffix. Missing folders are made.
        wav (`torch.Tensor` of shape `(channels, N)` or `(N,)`): Floating samples.
        sample_rate (`int`): Samples per second.
        format (`str`): `"wav"`, `"mp3"`, `"ogg"` or `"flac"`.
        normalize (`bool`): If not, `"peak"` and `"rms"` only attenuate.
        strategy (`str`): `"peak"`, `"clip"`, `"rms"`, `"loudness"` or `"none"`.
        add_suffix (`bool`): Whether to append the suffix of `format`.
        mp3_rate, peak_clip_headroom_db, rms_headroom_db, loudness_headroom_db, loudness_compressor, log_clipping:
            As in [`write_audio`] and [`normalize_audio`].

    Returns:
        The path of the file written.
    """
    return write_audio(
        f"{stem_name}.{format}" if add_suffix else stem_name,
        wav,
        sample_rate,
        format=format,
        add_suffix=False,
        mp3_rate=mp3_rate,
        only_attenuate=not normalize,
        strategy=strategy or "none",
        peak_clip_headroom_db=peak_clip_headroom_db,
        rms_headroom_db=rms_headroom_db,
        loudness_headroom_db=loudness_headroom_db,
        loudness_compressor=loudness_compressor,
        log_clipping=log_clipping,
    )


__all__ = ["AudioGen", "audio_write"]
