"""The fast decoding loop: the codes of transformers' `_sample`, without what costs time between the products.

The decoder's modules are called directly, on buffers of keys and values of the final length; nothing waits for the
device, and on a GPU the decoder's part of a step is one CUDA graph. Requests that it cannot serve are left to
transformers' loop, which stays the oracle: tests compare the two by value.
"""

import threading

import torch
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers.cache_utils import Cache
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


class _Decoder:
    """The decoder's passes over new columns of one window: the modules of `AudioGenDecoder`, called directly.

    Keys and values lie in buffers `(rows, heads, columns, head_dim)` of the final length. Those of the text are
    computed once; where it is a single state, which then is all that there is to attend to, even its attention is.
    """

    def __init__(self, model, states: torch.Tensor, cross_mask: torch.Tensor | None, num_columns: int):
        self.model = model
        self.layers = model.decoder.layers
        self.cross_mask = cross_mask
        self.positions = torch.arange(num_columns, device=states.device)
        self.text = [self._read_text(layer.cross_attn, states) for layer in self.layers]
        attention = self.layers[0].self_attn
        shape = (states.shape[0], attention.config.num_attention_heads, num_columns, attention.head_dim)
        # Zeros, as a step of fixed shapes multiplies the columns to come by weights of zero.
        dtype = self.text[0][-1].dtype
        self.keys = [states.new_zeros(shape, dtype=dtype) for _ in self.layers]
        self.values = [states.new_zeros(shape, dtype=dtype) for _ in self.layers]

    def _read_text(self, attention, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values of the text, or the outcome of attending to a single state."""
        key, value = attention.kv_proj(states).chunk(2, dim=-1)
        if states.shape[1] == 1:
            return (attention.out_proj(value.contiguous()),)
        return attention.split_heads(key).contiguous(), attention.split_heads(value).contiguous()

    def __call__(
        self,
        columns: torch.LongTensor,  # (rows, S, K)
        positions: slice | torch.LongTensor,  # S of them
        length: int,
        causal_mask: torch.Tensor | None = None,  # (S, length)
    ) -> torch.Tensor:
        """Logits (rows * K, V) of the column after the last of these, which attend to the first `length` columns."""
        decoder = self.model.decoder
        hidden_states = decoder.embed(columns, self.positions[positions])
        for layer, keys, values, text in zip(self.layers, self.keys, self.values, self.text, strict=True):
            attention = layer.self_attn
            qkv = attention.qkv_proj(layer.self_attn_layer_norm(hidden_states))
            query, key, value = qkv.unflatten(-1, (3, -1, attention.head_dim)).permute(2, 0, 3, 1, 4)
            keys[:, :, positions] = key
            values[:, :, positions] = value
            attended = scaled_dot_product_attention(query, keys[:, :, :length], values[:, :, :length], causal_mask)
            hidden_states = hidden_states + attention.out_proj(attended.transpose(1, 2).flatten(2))

            if len(text) == 1:
                hidden_states = hidden_states + text[0]
            else:
                attention = layer.cross_attn
                query = attention.split_heads(attention.q_proj(layer.cross_attn_layer_norm(hidden_states)))
                attended = scaled_dot_product_attention(query, *text, self.cross_mask)
                hidden_states = hidden_states + attention.out_proj(attended.transpose(1, 2).flatten(2))

            hidden_states = hidden_states + layer.fc2(gelu(layer.fc1(layer.final_layer_norm(hidden_states))))
        return self.model.score(decoder.norm(hidden_states[:, -1:]))[:, 0].float()

    def read(self, columns: torch.LongTensor, start: int, end: int) -> torch.Tensor:
        """Logits after the columns `start` to `end`, attending to those that are there."""
        causal_mask = None
        if end > start + 1:
            causal_mask = self.positions[:end] <= self.positions[start:end, None]
        return self(columns, slice(start, end), end, causal_mask)


class _StaticStep:
    """Reads one column a call by the same operations on the same memory, so that a GPU replays them as one CUDA graph.

    Positions are data here. Columns to come are read and masked, up to a length in buckets: the graph is captured
    anew where the sound outgrows one.
    """

    BUCKET = 256  # columns: larger ones are captured less often, and read more in vain
    capture_lock = threading.Lock()  # PyTorch captures one graph at a time

    def __init__(self, decoder: _Decoder, columns: torch.LongTensor):
        """`columns` (rows, 1, K) are like those that will be read."""
        self.decoder = decoder
        self.columns = torch.empty_like(columns)
        self.position = torch.zeros(1, dtype=torch.long, device=columns.device)
        self.length = 0

    def read(self, columns: torch.LongTensor, start: int, end: int) -> torch.Tensor:
        """As [`_Decoder.read`], for one column. The logits are overwritten by the next call."""
        self.columns.copy_(columns)
        self.position.fill_(start)
        if end > self.length:
            self.length = min(-(-end // self.BUCKET) * self.BUCKET, len(self.decoder.positions))
            self.replay = self._capture() if columns.is_cuda else self._run
        self.replay()
        return self.logits

    def _run(self):
        causal_mask = self.decoder.positions[: self.length] <= self.position[:, None]
        self.logits = self.decoder(self.columns, self.position, self.length, causal_mask)

    def _capture(self):
        with self.capture_lock, torch.cuda.device(self.columns.device):
            # Once as it is, on a stream of its own: what libraries set up at their first call cannot be captured.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._run()
        return graph.replay


def can_sample_fast(
    model,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer=None,
    synced_gpus: bool = False,
    cache: Cache | None = None,
    use_cache: bool | None = True,
    **model_kwargs,
) -> bool:
    """Whether [`fast_sample`] can serve a request; the arguments are those of `_sample`."""
    wants_more = any(
        getattr(generation_config, name)
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    )
    own_cache = generation_config.cache_implementation not in (None, "dynamic") or (
        cache is not None and getattr(cache, "_is_user_defined", False)
    )
    return (
        streamer is None
        and not synced_gpus
        and bool(use_cache)
        and not own_cache
        and not wants_more
        and generation_config.prefill_chunk_size is None
        and model.config.decoder._attn_implementation == "sdpa"
        and not model.training
        and not _has_hooks(model.decoder)
        and len(set(getattr(model, "hf_device_map", {}).values())) <= 1
        and all(isinstance(processor, SERVED_PROCESSORS) for processor in logits_processor)
        and all(isinstance(criterion, SERVED_CRITERIA) for criterion in stopping_criteria)
    )


def _has_hooks(decoder) -> bool:
    """Whether something watches or replaces calls that the fast loop leaves out: those of layers and attentions."""
    left_out = [decoder]
    for layer in decoder.layers:
        left_out += [layer, layer.self_attn, layer.cross_attn]
    hooks = [
        hook for module in left_out for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    # transformers' recorders stay after a request for hidden states, and are idle where none are asked for.
    watched = any(getattr(hook, "__module__", None) != "transformers.utils.output_capturing" for hook in hooks)
    return watched or any("forward" in vars(module) for module in left_out)


def _captures_steps(model, device: torch.device) -> bool:
    """Whether steps are replayed as CUDA graphs. Kernels of quantised weights may wait for the host: not those."""
    return device.type == "cuda" and getattr(model, "hf_quantizer", None) is None


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
    batch_size, num_columns, num_codebooks = delay_cells.shape
    columns = delay_cells.clone()
    states, cross_mask = model.project_text(encoder_outputs[0], attention_mask)
    if cross_mask is not None:
        cross_mask = None if bool(cross_mask.all()) else cross_mask[:, None, None]  # (rows, heads, queries, L)
    copies = states.shape[0] // batch_size  # two where guided
    progress_bars = [criterion for criterion in stopping_criteria if isinstance(criterion, ProgressBar)]
    decoder = _Decoder(model, states, cross_mask, num_columns)
    read_one = decoder.read
    if _captures_steps(model, columns.device):
        read_one = _StaticStep(decoder, columns[:, :1].repeat(copies, 1, 1)).read

    previous = 0
    for step in range(input_ids.shape[1], num_columns):
        # The start column and the sound prompt at the first step, one column at the others.
        read = decoder.read if previous == 0 else read_one
        logits = read(columns[:, previous:step].repeat(copies, 1, 1), previous, step)
        scores = logits_processor(columns[:, :step].transpose(1, 2).flatten(0, 1), logits)
        if generation_config.do_sample:
            # The exponential race of `torch.multinomial`, which would wait for the device to check its input.
            probabilities = scores.softmax(dim=-1)
            scores = probabilities / torch.empty_like(probabilities).exponential_()
        drawn = scores.argmax(dim=-1)
        cells = delay_cells[:, step]
        columns[:, step] = torch.where(cells == UNKNOWN, drawn.view(batch_size, num_codebooks), cells)
        for bar in progress_bars:
            bar(input_ids, scores)
        previous = step
    # Once for all steps: what is no number stays in the keys and values of those that follow.
    if generation_config.do_sample and bool(probabilities.isnan().any()):
        raise RuntimeError("The decoder's scores are not numbers. In float16 they may overflow: try bfloat16.")
    return GenerateEncoderDecoderOutput(sequences=columns.transpose(1, 2).flatten(0, 1))
