"""The fast decoding loop: the codes of transformers' `_sample`, without what costs time between the layers.

Keys and values lie in buffers of the final length and are read up to the current column only, instead of being
concatenated at every step; masks, caches and inputs are made once; nothing waits for the device. Requests that it
cannot serve are left to transformers' loop, which stays the oracle: tests compare the two by value.
"""

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache, StaticCache, StaticLayer
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitNormalization,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.utils import GenerateEncoderDecoderOutput

from .delay_pattern import UNKNOWN
from .logits_process import GeneratorLogitsProcessor, GuidanceLogitsProcessor, ProgressBar

# They look at the scores alone, so that it does not matter which ids stand in the cells outside the pattern.
SERVED_PROCESSORS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GeneratorLogitsProcessor,
    GuidanceLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
SERVED_CRITERIA = (MaxLengthCriteria, ProgressBar)


class _SlicedLayer(StaticLayer):
    """A buffer of keys and values of the final length, read up to its last written column."""

    is_compileable = False

    def __init__(self, max_cache_len: int):
        super().__init__(max_cache_len)
        self.length = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length


def can_sample_fast(
    model,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer=None,
    synced_gpus: bool = False,
    past_key_values: Cache | None = None,
    use_cache: bool | None = True,
    **model_kwargs,
) -> bool:
    """Whether [`fast_sample`] can serve a request; the arguments are those of `_sample`."""
    wants_more = any(
        getattr(generation_config, name)
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    )
    own_cache = generation_config.cache_implementation not in (None, "dynamic") or (
        past_key_values is not None and getattr(past_key_values, "_is_user_defined", False)
    )
    return (
        streamer is None
        and not synced_gpus
        and bool(use_cache)
        and not own_cache
        and not wants_more
        and generation_config.prefill_chunk_size is None
        and model.config.decoder._attn_implementation == "sdpa"
        and len(set(getattr(model, "hf_device_map", {}).values())) <= 1
        and all(isinstance(processor, SERVED_PROCESSORS) for processor in logits_processor)
        and all(isinstance(criterion, SERVED_CRITERIA) for criterion in stopping_criteria)
    )


@torch.no_grad()
def fast_sample(
    model,
    input_ids: torch.LongTensor,  # (B * K, S) known columns
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    delay_cells: torch.LongTensor,  # (B, S in all, K)
    encoder_outputs,
    attention_mask: torch.Tensor,
    **model_kwargs,
) -> GenerateEncoderDecoderOutput:
    """A drop-in for `_sample`: `sequences` of shape `(B * K, S in all)`."""
    decoder = model.decoder
    batch_size, num_columns, num_codebooks = delay_cells.shape
    columns = delay_cells.clone()
    states, cross_mask = model.project_text(encoder_outputs[0], attention_mask)
    if cross_mask is not None:
        cross_mask = None if bool(cross_mask.all()) else cross_mask[:, None, None]  # (rows, heads, queries, L)
    guided = states.shape[0] == 2 * batch_size
    progress_bars = [criterion for criterion in stopping_criteria if isinstance(criterion, ProgressBar)]
    cache = EncoderDecoderCache(
        Cache(layers=[_SlicedLayer(num_columns) for _ in decoder.layers]),
        StaticCache(config=decoder.config, max_cache_len=states.shape[1]),
    )
    positions = torch.arange(num_columns, device=columns.device)

    previous = 0
    for step in range(input_ids.shape[1], num_columns):
        # The sound prompt at the first step, one column at the others.
        new = columns[:, previous:step]
        hidden_states = decoder.embed(torch.cat([new, new]) if guided else new, positions[previous:step])
        causal_mask = None if step == previous + 1 else positions[:step] <= positions[previous:step, None]
        for layer in decoder.layers:
            hidden_states = layer(hidden_states, causal_mask, states, cross_mask, cache)
        logits = model.score(decoder.norm(hidden_states[:, -1:]))[:, 0].float()
        scores = logits_processor(columns[:, :step].transpose(1, 2).flatten(0, 1), logits)
        if generation_config.do_sample:
            drawn = torch.multinomial(scores.softmax(dim=-1), num_samples=1)
        else:
            drawn = scores.argmax(dim=-1)
        cells = delay_cells[:, step]
        columns[:, step] = torch.where(cells == UNKNOWN, drawn.view(batch_size, num_codebooks), cells)
        for bar in progress_bars:
            bar(input_ids, scores)
        previous = step
    return GenerateEncoderDecoderOutput(sequences=columns.transpose(1, 2).flatten(0, 1))
