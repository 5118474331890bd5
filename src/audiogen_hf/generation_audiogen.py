"""Generation for a delayed multi-codebook decoder: hooks into `GenerationMixin`, prompts and windows around it.

The loop itself is transformers' `_sample`, which sees K rows of ids a prompt; the model sees columns of K codes.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.generation import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateEncoderDecoderOutput
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .delay_pattern import UNKNOWN, apply_delay_pattern, revert_delay_pattern
from .fast_generation import can_sample_fast, fast_sample
from .logits_process import GeneratorLogitsProcessor, Generators, GuidanceLogitsProcessor, ProgressBar

# AudioCraft's defaults (`AudioGen.set_generation_params`), with the 5 s of a freshly loaded AudioGen.
DEFAULT_DURATION = 5.0
GENERATION_DEFAULTS = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 250,
    "guidance_scale": 3.0,
}
# Greedy search with parameters of sampling is warned of by transformers; the model's own defaults shall not be.
NEUTRAL_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}


def default_generation_config(config) -> GenerationConfig:
    """AudioCraft's generation parameters for a model of this [`AudioGenConfig`]."""
    return GenerationConfig(
        **GENERATION_DEFAULTS,
        extend_stride=default_extend_stride(config),
        max_new_tokens=int(DEFAULT_DURATION * config.frame_rate),
        decoder_start_token_id=config.decoder.special_token_id,
    )


def default_extend_stride(config) -> float:
    """AudioCraft's 2 s; half a window where windows are no longer than that."""
    return 2.0 if config.segment_duration > 2.0 else config.segment_duration / 2


@dataclass
class AudioGenGenerateOutput(ModelOutput):
    """
    Output of `generate(return_dict_in_generate=True)`. Rows of a prompt's `num_return_sequences` takes are adjacent.

    Args:
        audio (`torch.FloatTensor` of shape `(B, channels, N)`): Waveforms, -1 to 1, at `config.sampling_rate`.
        audio_codes (`torch.LongTensor` of shape `(B, K, T)`): Their codes, without delay.
        scores, logits (`tuple[torch.FloatTensor]`, *optional*): With `output_scores` or `output_logits`, a tensor of
            shape `(B * K, vocab_size)` a step, after and before the processors.
        decoder_attentions, cross_attentions, decoder_hidden_states (`tuple`, *optional*): With `output_attentions`
            or `output_hidden_states`, a tuple over the layers a step.
    """

    audio: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    scores: tuple[torch.FloatTensor, ...] | None = None
    logits: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple | None = None
    cross_attentions: tuple | None = None
    decoder_hidden_states: tuple | None = None


class _WindowStreamer(BaseStreamer):
    """Makes one stream out of the windows of a long sound: one prompt first, one end last."""

    def __init__(self, streamer: BaseStreamer):
        self.streamer = streamer
        self.started = False

    def put(self, value: torch.Tensor):
        is_prompt = value.ndim == 3
        if not (is_prompt and self.started):
            self.streamer.put(value)
        self.started = True

    def end(self):
        pass


class AudioGenGenerationMixin(GenerationMixin):
    """`generate` for AudioGen; see the guide on generation."""

    _supported_generation_modes = [GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE]

    def get_unconditional_inputs(self, num_samples: int = 1) -> dict[str, torch.LongTensor]:
        """Inputs of `generate` for sounds of no description.

        Args:
            num_samples (`int`, *optional*, defaults to 1): Sounds to make.

        Returns:
            `input_ids` and `attention_mask` of shape `(num_samples, 1)`: null prompts.
        """
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
        zeros = torch.zeros((num_samples, 1), dtype=torch.long, device=self.device)
        return {"input_ids": zeros, "attention_mask": zeros.clone()}

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        audio_length_in_s: float | None = None,
        input_values: torch.FloatTensor | None = None,
        padding_mask: torch.Tensor | None = None,
        audio_codes: torch.LongTensor | None = None,
        extend_stride: float | None = None,
        negative_prompt_ids: torch.LongTensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        generator: Generators | None = None,
        progress: bool = False,
        streamer: BaseStreamer | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
        custom_generate: str | Callable | None = None,
        **kwargs,
    ) -> torch.FloatTensor | AudioGenGenerateOutput:
        r"""
        Generates sounds.

        Args:
            inputs (`torch.LongTensor` of shape `(B, L)`, *optional*): The texts; also as `input_ids`.
            generation_config (`GenerationConfig`, *optional*): Parameters in place of the model's own.
            audio_length_in_s (`float`, *optional*): Seconds of sound, a sound prompt included. Frames are
                `int(audio_length_in_s * config.frame_rate)`.
            input_values (`torch.FloatTensor` of shape `(B, channels, N)`, *optional*): Sounds to continue, at
                `config.sampling_rate`.
            padding_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 0 after the end of shorter sounds.
            audio_codes (`torch.LongTensor` of shape `(B, K, P)`, *optional*): Codes to continue, in place of
                `input_values`.
            extend_stride (`float`, *optional*): Seconds by which the window moves for sounds longer than
                `config.segment_duration`; each window continues what it shares with the one before.
            negative_prompt_ids (`torch.LongTensor` of shape `(B, L)` or `(1, L)`, *optional*): Texts to steer away
                from, in place of the null prompt. Needs a `guidance_scale` other than 1.
            negative_prompt_attention_mask (`torch.Tensor` of that shape, *optional*): 0 for their padding.
            generator (`torch.Generator` or a list of them, *optional*): Source of randomness: one, or one a sample
                (`B * num_return_sequences`), with which a sample does not depend on its batch. Without it, torch's
                global one is used.
            progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.
            streamer (`BaseStreamer`, *optional*): Is given the columns of the prompt `(B, S, K)`, then `B * K` codes
                a step, then the end.
            stopping_criteria (`list[StoppingCriteria]`, *optional*): Are given the columns so far, `(B * K, S)`.
            custom_generate (`str` or `Callable`, *optional*): As in transformers; a callable gets rows `(B * K, S)`.
            kwargs: Of the texts: `input_ids`, `attention_mask`, `encoder_outputs`. Of the generation, as in
                transformers: `max_new_tokens` (frames after the sound prompt), `do_sample`, `temperature`, `top_k`,
                `top_p` (below 1 it replaces `top_k`), `guidance_scale`, `num_return_sequences`,
                `cache_implementation`, `logits_processor`, `max_time`, `return_dict_in_generate`, ...

        Returns:
            Waveforms, `torch.FloatTensor` of shape `(B * num_return_sequences, channels, N)`, or with
            `return_dict_in_generate=True` an [`AudioGenGenerateOutput`].

        Raises:
            `ValueError`: for lengths that are not positive, a `top_p` outside (0, 1], inputs of different counts, a
                list of generators of another length, or an argument that nothing takes.
        """
        if isinstance(custom_generate, str):
            return super().generate(inputs, generation_config, custom_generate=custom_generate, **kwargs)
        if audio_length_in_s is not None and kwargs.get("max_new_tokens") is not None:
            raise ValueError("Pass `audio_length_in_s` (seconds in all) or `max_new_tokens` (new frames), not both.")
        if kwargs.get("max_length") is not None:
            raise ValueError(
                "Pass `audio_length_in_s` (seconds) or `max_new_tokens` (frames) in place of `max_length`."
            )
        if kwargs.get("temperature") == 0:
            kwargs.update(do_sample=False, temperature=1.0)
        if kwargs.get("do_sample") is False:
            kwargs = {**NEUTRAL_SAMPLING, **kwargs}
        generation_config, model_kwargs = self._prepare_generation_config(generation_config, **kwargs)
        self._validate_sampling(generation_config)

        # 1. Texts: the text encoder runs once, whatever the number of takes, windows and steps.
        if inputs is None:
            inputs = model_kwargs.pop("input_ids", None)
        encoder_outputs, attention_mask, guided = self._encode_texts(
            inputs,
            model_kwargs.pop("attention_mask", None),
            model_kwargs.pop("encoder_outputs", None),
            negative_prompt_ids,
            negative_prompt_attention_mask,
            generation_config.guidance_scale,
        )
        batch_size = encoder_outputs[0].shape[0] // (2 if guided else 1)
        if not guided:
            generation_config.guidance_scale = 1

        # 2. Sound prompts, to codes that end in UNKNOWN where a shorter one is padded.
        if input_values is not None:
            audio_codes = self._encode_audio_prompts(input_values, padding_mask)
        if audio_codes is None:
            shape = (batch_size, self.config.decoder.num_codebooks, 0)
            audio_codes = torch.empty(shape, dtype=torch.long, device=self.device)
        self._validate_audio_prompts(audio_codes, batch_size)

        # 3. Takes: every prompt repeated, rows of one prompt adjacent.
        num_takes, generation_config.num_return_sequences = generation_config.num_return_sequences or 1, 1
        states = encoder_outputs[0].repeat_interleave(num_takes, dim=0)
        attention_mask = attention_mask.repeat_interleave(num_takes, dim=0)
        audio_codes = audio_codes.repeat_interleave(num_takes, dim=0).to(self.device)
        if isinstance(generator, Sequence) and len(generator) != audio_codes.shape[0]:
            raise ValueError(
                f"`generator` takes one `torch.Generator`, or a list of one a sample: {audio_codes.shape[0]} "
                f"({batch_size} prompts, {num_takes} takes each), got {len(generator)}."
            )
        generators = generator if isinstance(generator, Sequence) else [generator]
        if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
            raise ValueError(
                f"`generator` takes `torch.Generator`s, as of `torch.Generator().manual_seed(0)`, got {generator!r}."
            )

        # 4. Lengths, in frames.
        num_frames = self._length_in_frames(audio_length_in_s, generation_config.max_new_tokens, audio_codes.shape[-1])
        window = int(self.config.segment_duration * self.config.frame_rate)
        stride = self._stride_in_frames(extend_stride, generation_config, num_frames, window)
        shortest_prompt = int(_prompt_lengths(audio_codes).min())
        offsets = list(self._window_offsets(shortest_prompt, num_frames, window, stride))

        # 5. What watches the loop.
        stopping_criteria = StoppingCriteriaList(stopping_criteria or [])
        if generation_config.max_time is not None:
            stopping_criteria.append(MaxTimeCriteria(generation_config.max_time))
            generation_config.max_time = None  # one budget for all windows, not one a window
        progress_bar = None
        if progress:
            delays = self.config.decoder.codebook_delays
            progress_bar = ProgressBar(num_frames - shortest_prompt + len(offsets) * (max(delays) - min(delays)))
            stopping_criteria.append(progress_bar)
        if isinstance(custom_generate, Callable):
            model_kwargs["custom_generate"] = self._fold_rows(custom_generate)

        # 6. Windows: the first frames of each are the last of the one before.
        recorded = {}
        window_streamer = _WindowStreamer(streamer) if streamer is not None else None
        for offset in offsets:
            length = min(num_frames - offset, window)
            outputs = self._generate_window(
                audio_codes[..., offset:],
                length,
                generation_config,
                generator,
                inputs=states.new_zeros((audio_codes.shape[0], states.shape[1]), dtype=torch.long),
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=attention_mask,
                stopping_criteria=stopping_criteria,
                streamer=window_streamer,
                **model_kwargs,
            )
            for name in AudioGenGenerateOutput.__dataclass_fields__.keys() & outputs.keys():
                recorded[name] = (*recorded.get(name, ()), *outputs[name])
            known_later = audio_codes[..., offset + length :]  # of longer sound prompts
            audio_codes = torch.cat([audio_codes[..., :offset], outputs.sequences], dim=-1)
            if outputs.sequences.shape[-1] < length:  # stopped early
                break
            audio_codes = torch.cat([audio_codes, known_later], dim=-1)
        if streamer is not None:
            streamer.end()
        if progress_bar is not None:
            progress_bar.bar.close()

        # 7. Codes to sound.
        audio = self.decode_audio(audio_codes)
        if generation_config.return_dict_in_generate:
            return AudioGenGenerateOutput(audio=audio, audio_codes=audio_codes, **recorded)
        return audio

    def encode_audio(self, input_values: torch.FloatTensor) -> torch.LongTensor:
        """Sound to codes.

        Args:
            input_values (`torch.FloatTensor` of shape `(B, channels, N)`): Waveforms at `config.sampling_rate`.

        Returns:
            `torch.LongTensor` of shape `(B, K, ceil(N / hop))`.
        """
        channels = self.config.decoder.audio_channels
        codebooks = self.config.decoder.num_codebooks // channels
        # The tokenizer is mono: each channel is a row of its own.
        rows = input_values.to(self.audio_encoder.dtype).reshape(-1, 1, input_values.shape[-1])
        codes = self.audio_encoder.quantizer.encode(self.audio_encoder.encoder(rows))[:codebooks].transpose(0, 1)
        # (B * channels, K / channels, P) -> (B, K, P), the channels of a codebook adjacent
        return codes.unflatten(0, (-1, channels)).transpose(1, 2).flatten(1, 2)

    def decode_audio(self, audio_codes: torch.LongTensor) -> torch.FloatTensor:
        """Codes to sound, the inverse of [`encode_audio`].

        Args:
            audio_codes (`torch.LongTensor` of shape `(B, K, T)`): Codes.

        Returns:
            `torch.FloatTensor` of shape `(B, channels, T * hop)`.
        """
        channels = self.config.decoder.audio_channels
        if audio_codes.shape[-1] == 0:
            return torch.zeros((audio_codes.shape[0], channels, 0), device=self.device)
        rows = audio_codes.unflatten(1, (-1, channels)).transpose(1, 2).flatten(0, 1)
        audio = self.audio_encoder.decode(rows[None], [None]).audio_values
        return audio.view(-1, channels, audio.shape[-1])

    # What `generate` is made of

    def _validate_sampling(self, generation_config: GenerationConfig):
        top_p, top_k, temperature = generation_config.top_p, generation_config.top_k, generation_config.temperature
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1], got {top_p}.")
        if top_k is not None and top_k < 0:
            raise ValueError(f"`top_k` must be at least 0 (all codes), got {top_k}.")
        if temperature is not None and temperature < 0:
            raise ValueError(f"`temperature` must be at least 0 (greedy), got {temperature}.")
        if top_p is not None and top_p < 1:
            generation_config.top_k = 0
        if generation_config.num_return_sequences is not None and generation_config.num_return_sequences < 1:
            raise ValueError(
                f"`num_return_sequences` must be at least 1, got {generation_config.num_return_sequences}."
            )

    def _encode_texts(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        encoder_outputs: BaseModelOutput | None,
        negative_ids: torch.LongTensor | None,
        negative_mask: torch.Tensor | None,
        guidance_scale: float | None,
    ) -> tuple[BaseModelOutput, torch.Tensor, bool]:
        """States (2B, L, D) and mask (2B, L) where guided, the unconditional or negative half last; else of B rows."""
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError(
                    "`generate` takes texts: `**processor(text=[...])`, or `**model.get_unconditional_inputs(...)`."
                )
            if input_ids.ndim != 2 or input_ids.shape[0] == 0:
                raise ValueError(f"`input_ids` takes shape (prompts, tokens), got {tuple(input_ids.shape)}.")
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            encoder_outputs = self._run_text_encoder(input_ids, attention_mask)
        states = encoder_outputs[0]
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        attention_mask = attention_mask.to(states.device)

        if negative_ids is not None:
            if guidance_scale in (None, 1):
                raise ValueError(f"A negative prompt needs a `guidance_scale` other than 1, got {guidance_scale}.")
            if negative_ids.shape[0] not in (1, states.shape[0]):
                raise ValueError(
                    f"`negative_prompt_ids` takes one negative prompt, or one for each of the {states.shape[0]} "
                    f"prompts, got {negative_ids.shape[0]}."
                )
            if negative_mask is None:
                negative_mask = torch.ones_like(negative_ids)
            other_states = self._run_text_encoder(negative_ids, negative_mask)[0].expand(states.shape[0], -1, -1)
            other_mask = negative_mask.to(states.device).expand(states.shape[0], -1)
        elif guidance_scale in (None, 1) or not attention_mask.any():
            return BaseModelOutput(last_hidden_state=states), attention_mask, False
        else:
            other_states, other_mask = torch.zeros_like(states), torch.zeros_like(attention_mask)
        states = torch.cat(_pad_to_same_length(states, other_states))
        return (
            BaseModelOutput(last_hidden_state=states),
            torch.cat(_pad_to_same_length(attention_mask, other_mask)),
            True,
        )

    def _run_text_encoder(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor) -> BaseModelOutput:
        longest = getattr(self.config.text_encoder, "max_position_embeddings", None)  # T5 has no limit
        if longest is not None and input_ids.shape[1] > longest:
            raise ValueError(f"`text` takes up to {longest} tokens with this model, got {input_ids.shape[1]}.")
        device = self.text_encoder.device
        return self.text_encoder(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device))

    def _encode_audio_prompts(
        self, input_values: torch.FloatTensor, padding_mask: torch.Tensor | None
    ) -> torch.LongTensor:
        """Codes (B, K, P), UNKNOWN past the end of shorter sounds.

        Sounds are encoded one by one where their lengths differ: the tokenizer looks ahead, into the padding.
        """
        channels = self.config.decoder.audio_channels
        if input_values.ndim != 3 or input_values.shape[1] != channels or not input_values.numel():
            raise ValueError(
                f"`input_values` takes shape (sounds, {channels}, samples), got {tuple(input_values.shape)}."
            )
        if not bool(input_values.isfinite().all()):
            raise ValueError("`input_values` takes finite samples, got NaN or infinity.")
        input_values = input_values.to(self.audio_encoder.device)
        if padding_mask is None or bool(padding_mask.all()):
            return self.encode_audio(input_values)
        lengths = padding_mask.long().sum(dim=-1).tolist()
        if min(lengths) == 0:
            raise ValueError(f"`padding_mask` leaves nothing of sound number {lengths.index(0)}.")
        codes = [
            self.encode_audio(sound[None, :, :length])[0] for sound, length in zip(input_values, lengths, strict=True)
        ]
        longest = max(sound.shape[-1] for sound in codes)
        return torch.stack(
            [torch.nn.functional.pad(sound, (0, longest - sound.shape[-1]), value=UNKNOWN) for sound in codes]
        )

    def _validate_audio_prompts(self, audio_codes: torch.LongTensor, batch_size: int):
        decoder = self.config.decoder
        if audio_codes.ndim != 3 or audio_codes.shape[1] != decoder.num_codebooks:
            raise ValueError(
                f"`audio_codes` takes shape (sounds, {decoder.num_codebooks}, frames), got {tuple(audio_codes.shape)}."
            )
        if audio_codes.shape[0] != batch_size:
            raise ValueError(f"Got {audio_codes.shape[0]} sounds to continue for {batch_size} texts.")
        if (
            audio_codes.numel()
            and not UNKNOWN <= int(audio_codes.min()) <= int(audio_codes.max()) < decoder.vocab_size
        ):
            raise ValueError(
                f"`audio_codes` takes codes from 0 to {decoder.vocab_size - 1} (and {UNKNOWN} after the end of "
                f"shorter sounds), got {int(audio_codes.min())} to {int(audio_codes.max())}."
            )

    def _length_in_frames(
        self, audio_length_in_s: float | None, max_new_tokens: int | None, prompt_length: int
    ) -> int:
        if audio_length_in_s is None:
            num_frames, given = prompt_length + max_new_tokens, f"`max_new_tokens` of {max_new_tokens}"
        elif math.isfinite(audio_length_in_s):
            num_frames = int(audio_length_in_s * self.config.frame_rate)
            given = f"`audio_length_in_s` of {audio_length_in_s}"
        else:
            raise ValueError(f"`audio_length_in_s` takes seconds, got {audio_length_in_s}.")
        if num_frames <= prompt_length:
            prompt = f" and more than the sound prompt of {prompt_length}" if prompt_length else ""
            raise ValueError(
                f"The sound must be at least one frame long{prompt}, but {given} makes {num_frames} frames of "
                f"1/{self.config.frame_rate} s."
            )
        return num_frames

    def _stride_in_frames(
        self, extend_stride: float | None, generation_config: GenerationConfig, num_frames: int, window: int
    ) -> int:
        if extend_stride is None:
            extend_stride = getattr(generation_config, "extend_stride", default_extend_stride(self.config))
            if num_frames <= window:
                return window
        stride = int(extend_stride * self.config.frame_rate)
        if not 0 < stride < window:
            raise ValueError(
                f"`extend_stride` must be at least one frame and less than the {self.config.segment_duration} s of a "
                f"window, got {extend_stride} s."
            )
        return stride

    @staticmethod
    def _window_offsets(prompt_length: int, num_frames: int, window: int, stride: int) -> Iterator[int]:
        """First frames of the windows, multiples of the stride. Windows that the prompt fills are left out."""
        offset = 0
        while offset + window <= prompt_length:
            offset += stride
        yield offset
        while offset + window < num_frames:
            offset += stride
            yield offset

    def _generate_window(
        self,
        prompt_codes: torch.LongTensor,
        length: int,
        generation_config: GenerationConfig,
        generator: Generators | None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs,
    ) -> ModelOutput:
        """Fills the unknown cells of one window; `sequences` of the output are its codes `(B, K, length)`."""
        decoder = self.config.decoder
        prompt_lengths = _prompt_lengths(prompt_codes)
        prompt_codes, prompt_lengths = prompt_codes[..., :length], prompt_lengths.clamp(max=length)
        codes = torch.nn.functional.pad(prompt_codes, (0, length - prompt_codes.shape[-1]), value=UNKNOWN)
        cells = apply_delay_pattern(codes, decoder.codebook_delays, decoder.special_token_id).transpose(1, 2)
        first_columns = 1 + min(decoder.codebook_delays) + prompt_lengths
        start = int(first_columns.min())

        generation_config = copy.copy(generation_config)
        generation_config.max_length, generation_config.max_new_tokens = None, cells.shape[1] - start
        generation_config.return_dict_in_generate = True
        processors = LogitsProcessorList(logits_processor or [])
        if generator is not None and generation_config.do_sample:
            # A sample whose prompt fills the window has nothing to draw in it.
            first_columns[prompt_lengths == length] = cells.shape[1]
            processors.append(GeneratorLogitsProcessor(generator, decoder.num_codebooks, first_columns.tolist()))
        return super().generate(
            generation_config=generation_config,
            decoder_input_ids=cells[:, :start],
            delay_cells=cells,
            logits_processor=processors,
            **kwargs,
        )

    # Hooks of `GenerationMixin`

    def _prepare_decoder_input_ids_for_generation(self, batch_size, model_input_name, model_kwargs, *args, **kwargs):
        """The start column and the delayed sound prompt, (B, S, K)."""
        return model_kwargs.pop("decoder_input_ids"), model_kwargs

    def _get_logits_processor(self, generation_config: GenerationConfig, *args, **kwargs) -> LogitsProcessorList:
        """Guidance first, the draw of given generators last; the library's unbatched guidance is kept out."""
        guidance_scale, generation_config.guidance_scale = generation_config.guidance_scale, None
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        if guidance_scale not in (None, 1):
            processors.insert(0, GuidanceLogitsProcessor(guidance_scale))
        for draw in [processor for processor in processors if isinstance(processor, GeneratorLogitsProcessor)]:
            processors.remove(draw)
            processors.append(draw)
            generation_config.do_sample = False  # argmax of the one code that the draw leaves
        return processors

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,  # (B * K, S)
        next_sequence_length: int | None = None,
        attention_mask: torch.Tensor | None = None,
        delay_cells: torch.LongTensor | None = None,  # (B, S in all, K)
        **kwargs,
    ) -> dict:
        """Rows of sampled ids to columns, the known cells of the pattern written over them, doubled for guidance."""
        columns = input_ids.unflatten(0, (delay_cells.shape[0], -1)).transpose(1, 2)
        cells = delay_cells[:, : columns.shape[1]]
        if next_sequence_length is not None:
            columns, cells = columns[:, -next_sequence_length:], cells[:, -next_sequence_length:]
        columns = torch.where(cells == UNKNOWN, columns, cells)
        if attention_mask.shape[0] == 2 * columns.shape[0]:
            columns = torch.cat([columns, columns])
        return super().prepare_inputs_for_generation(columns, attention_mask=attention_mask, **kwargs)

    def _sample(self, input_ids, *args, **kwargs):
        """The fast loop where it can serve the request, else transformers'; both give the same codes."""
        loop = fast_sample if can_sample_fast(self, *args, **kwargs) else GenerationMixin._sample
        return self._fold_rows(loop)(self, input_ids, *args, **kwargs)

    @staticmethod
    def _fold_rows(loop: Callable) -> Callable:
        """A decoding loop over rows `(B * K, S)` as one from columns `(B, S, K)` to codes `(B, K, T)`."""

        @functools.wraps(loop)
        def folded(model, input_ids: torch.LongTensor, *args, delay_cells: torch.LongTensor, **kwargs):
            rows = input_ids.transpose(1, 2).flatten(0, 1)
            outputs = loop(model, rows, *args, delay_cells=delay_cells, **kwargs)
            sequences = outputs.sequences if isinstance(outputs, ModelOutput) else outputs
            columns = sequences.unflatten(0, (delay_cells.shape[0], -1))
            cells = delay_cells[:, : columns.shape[-1]].transpose(1, 2)
            columns = torch.where(cells == UNKNOWN, columns, cells)
            codes = revert_delay_pattern(columns, model.config.decoder.codebook_delays)
            if isinstance(outputs, ModelOutput):
                outputs.sequences = codes
                return outputs
            return GenerateEncoderDecoderOutput(sequences=codes)

        return folded


def _prompt_lengths(audio_codes: torch.LongTensor) -> torch.LongTensor:
    """Known frames of each sound (B,)."""
    return (audio_codes[:, 0] != UNKNOWN).sum(dim=-1)


def _pad_to_same_length(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Zeros after the end of dimension 1 of the shorter ones."""
    length = max(tensor.shape[1] for tensor in tensors)
    padding = [(0, 0) * (tensor.ndim - 2) + (0, length - tensor.shape[1]) for tensor in tensors]
    return [torch.nn.functional.pad(tensor, pad) for tensor, pad in zip(tensors, padding, strict=True)]


__all__ = ["AudioGenGenerateOutput", "AudioGenGenerationMixin", "default_generation_config"]
