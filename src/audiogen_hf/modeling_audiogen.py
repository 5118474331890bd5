"""The decoder over K streams of codes, and the model that joins it to a text encoder and a tokenizer of sound.

Forward passes and the training loss; sampling lives in `generation_audiogen.py`, delays in `delay_pattern.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModel, AutoModelForTextEncoding
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_audiogen import AudioGenConfig, AudioGenDecoderConfig
from .delay_pattern import apply_delay_pattern
from .generation_audiogen import AudioGenGenerationMixin, default_generation_config
from .model_card import write_model_card, write_model_card_for_upload
from .packaged_models import resolve_model_name

IGNORE_INDEX = -100


@dataclass
class AudioGenOutput(ModelOutput):
    """
    Output of [`AudioGenForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `labels`):
            Mean over the codebooks of their mean cross entropy, in nats.
        loss_per_codebook (`torch.FloatTensor` of shape `(K,)`, *optional*, returned with `labels`):
            Cross entropy of each codebook, averaged over its valid cells.
        logits (`torch.FloatTensor` of shape `(B * K, S, vocab_size)`):
            Scores of the column that follows each of the S columns read, one row a codebook;
            `logits.unflatten(0, (B, K))` separates prompts and codebooks.
        cache (`EncoderDecoderCache`, *optional*): Keys and values to go on from.
        decoder_hidden_states, decoder_attentions, cross_attentions (`tuple[torch.FloatTensor]`, *optional*):
            Returned with `output_hidden_states=True` or `output_attentions=True`.
        encoder_last_hidden_state (`torch.FloatTensor` of shape `(B, L, text width)`): States of the text encoder.
    """

    loss: torch.FloatTensor | None = None
    loss_per_codebook: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cache: EncoderDecoderCache | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None


class AudioGenSinusoidalPositionalEmbedding(nn.Module):
    """Cosines, then sines, of `position / 10000 ** (i / (half - 1))`, in float32."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.half = hidden_size // 2

    def forward(self, position_ids: torch.LongTensor) -> torch.Tensor:
        # The power itself rather than exp(-log): their float32 phases differ by 1e-4 at 1,500 positions.
        exponents = torch.arange(self.half, device=position_ids.device, dtype=torch.float32) / (self.half - 1)
        phases = position_ids[..., None].float() / (10_000.0**exponents)
        return torch.cat([phases.cos(), phases.sin()], dim=-1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


class AudioGenLinear(nn.Linear):
    """A linear layer without bias that also reads its weight at the speed of memory when decoding on a CPU.

    Float32 matrix products with a few rows are bound by their kernel (8 GB/s where memory gives 40); the transposed
    product, `weight @ x.T`, is not. Precision and result are those of `nn.Linear`, up to the order of summation.
    """

    FEW_ROWS = 2  # one prompt with guidance; from four on it gains nothing

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        few_rows = hidden_states.numel() <= self.FEW_ROWS * self.in_features
        # A quantised weight is of a class of its own, which knows only `nn.functional.linear`.
        plain = type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.is_cpu
        if few_rows and plain and not torch.is_grad_enabled():
            # Rows that do not lie in one piece cost five times as much here, and attention its fast kernel.
            rows = hidden_states.reshape(-1, self.in_features).contiguous()
            product = torch.mm(weight, rows.t()).t().contiguous()
            return product.view(*hidden_states.shape[:-1], self.out_features)
        return super().forward(hidden_states)


class AudioGenAttention(nn.Module):
    """What self- and cross-attention share: heads, the attention interface and the output projection."""

    def __init__(self, config: AudioGenDecoderConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.out_proj = AudioGenLinear(config.hidden_size, config.hidden_size)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, heads, S, head_dim)"""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(self, query, key, value, attention_mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(attn_output.flatten(2)), attn_weights


class AudioGenSelfAttention(AudioGenAttention):
    def __init__(self, config: AudioGenDecoderConfig, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=True)
        self.qkv_proj = AudioGenLinear(config.hidden_size, 3 * config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, S, D)
        attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (self.split_heads(states) for states in self.qkv_proj(hidden_states).chunk(3, dim=-1))
        if cache is not None:
            key, value = cache.self_attention_cache.update(key, value, self.layer_idx)
        return self.attend(query, key, value, attention_mask, **kwargs)


class AudioGenCrossAttention(AudioGenAttention):
    def __init__(self, config: AudioGenDecoderConfig, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=False)
        self.q_proj = AudioGenLinear(config.hidden_size, config.hidden_size)
        self.kv_proj = AudioGenLinear(config.hidden_size, 2 * config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, S, D)
        encoder_hidden_states: torch.Tensor,  # (B, L, D)
        attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.split_heads(self.q_proj(hidden_states))
        if cache is not None and cache.is_updated.get(self.layer_idx):
            # The text does not change while decoding: its keys and values are computed at the first step only.
            cached = cache.cross_attention_cache.layers[self.layer_idx]
            key, value = cached.keys, cached.values
        else:
            key, value = (self.split_heads(states) for states in self.kv_proj(encoder_hidden_states).chunk(2, dim=-1))
            if cache is not None:
                key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
                cache.is_updated[self.layer_idx] = True
        return self.attend(query, key, value, attention_mask, **kwargs)


class AudioGenDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: AudioGenDecoderConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = AudioGenSelfAttention(config, layer_idx)
        self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = AudioGenCrossAttention(config, layer_idx)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = AudioGenLinear(config.hidden_size, config.intermediate_size)
        self.fc2 = AudioGenLinear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, S, D)
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,  # (B, L, D)
        encoder_attention_mask: torch.Tensor | None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.self_attn(self.self_attn_layer_norm(hidden_states), attention_mask, cache, **kwargs)
        hidden_states = hidden_states + self.dropout(attn_output)
        attn_output, _ = self.cross_attn(
            self.cross_attn_layer_norm(hidden_states),
            encoder_hidden_states,
            encoder_attention_mask,
            cache,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attn_output)
        feed_forward = self.dropout(nn.functional.gelu(self.fc1(self.final_layer_norm(hidden_states))))
        return hidden_states + self.dropout(self.fc2(feed_forward))


class AudioGenPreTrainedModel(PreTrainedModel):
    config: AudioGenConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text", "audio")
    output_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["AudioGenDecoderLayer", "T5Block", "EncodecEncoder", "EncodecDecoder"]
    # The text encoder overflows in float16, and the tokenizer is slow and coarse in half precision.
    _keep_in_fp32_modules_strict = ["text_encoder", "audio_encoder"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _initialize_weights(self, module, *args, **kwargs):
        # Where code is not transformers' own, a module without parameters of its own is taken for a loaded one. Ours
        # draw through `transformers.initialization`, which knows what has been loaded.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module):
        """Draws weights as AudioCraft does: Gaussians of variance 1 / fan-in cut at three deviations, the outputs of
        layer `i` divided by sqrt(2 * i), uniform attention inputs and text projection."""
        if isinstance(module, AudioGenDecoder):
            _init_gaussian(module.embed_tokens.weight, fan_in=module.config.hidden_size)
        elif isinstance(module, AudioGenDecoderLayer):
            depth = module.layer_idx + 1
            linears = (module.self_attn.out_proj, module.cross_attn.out_proj, module.fc1, module.fc2)
            for linear in linears:
                _init_gaussian(linear.weight, fan_in=linear.in_features, depth=depth)
            for linear in (module.self_attn.qkv_proj, module.cross_attn.q_proj, module.cross_attn.kv_proj):
                bound = linear.in_features**-0.5
                init.uniform_(linear.weight, -bound, bound)
        elif isinstance(module, AudioGenForConditionalGeneration):
            _init_gaussian(module.lm_head.weight, fan_in=module.lm_head.in_features)
            bound = module.enc_to_dec_proj.in_features**-0.5
            init.uniform_(module.enc_to_dec_proj.weight, -bound, bound)
            init.uniform_(module.enc_to_dec_proj.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


def _init_gaussian(weight: torch.Tensor, fan_in: int, depth: int | None = None):
    std = fan_in**-0.5
    if depth is not None:
        std = std / (2 * depth) ** 0.5
    init.trunc_normal_(weight, mean=0.0, std=std, a=-3 * std, b=3 * std)


class AudioGenDecoder(AudioGenPreTrainedModel):
    """The transformer over delayed columns: K embeddings summed, sinusoidal positions, pre-norm layers, a norm."""

    config: AudioGenDecoderConfig
    main_input_name = "input_ids"
    _can_record_outputs = {
        "hidden_states": AudioGenDecoderLayer,
        "attentions": OutputRecorder(AudioGenSelfAttention, index=1),
        "cross_attentions": OutputRecorder(AudioGenCrossAttention, index=1),
    }

    def __init__(self, config: AudioGenDecoderConfig):
        super().__init__(config)
        # One table for all codebooks: codebook k starts at row k * (vocab_size + 1).
        self.embed_tokens = nn.Embedding(config.num_codebooks * (config.vocab_size + 1), config.hidden_size)
        self.embed_positions = AudioGenSinusoidalPositionalEmbedding(config.hidden_size)
        self.layers = nn.ModuleList(AudioGenDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def embed(self, input_ids: torch.LongTensor, position_ids: torch.LongTensor) -> torch.Tensor:
        """Columns (B, S, K) at positions (S,) to (B, S, D)."""
        offsets = torch.arange(self.config.num_codebooks, device=input_ids.device) * (self.config.vocab_size + 1)
        hidden_states = self.embed_tokens(input_ids + offsets).sum(dim=2)
        return hidden_states + self.embed_positions(position_ids).to(hidden_states.dtype)

    @merge_with_config_defaults
    @capture_outputs
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.LongTensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S, K)`): Delayed columns of codes.
            encoder_hidden_states (`torch.FloatTensor` of shape `(B, L, hidden_size)`): Projected text.
            attention_mask (`torch.Tensor` of shape `(B, past + S)`, *optional*): 0 for columns not to attend to.
            encoder_attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 0 for text not to attend to.
            cache (`EncoderDecoderCache`, *optional*): Keys and values of the columns before these.
            use_cache (`bool`, *optional*): Whether to return `cache`.
        """
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        past_length = cache.get_seq_length() if cache is not None else 0
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device) + past_length
        hidden_states = self.embed(input_ids, position_ids)

        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            cache=cache,
            position_ids=position_ids[None],
        )
        cross_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, causal_mask, encoder_hidden_states, cross_mask, cache, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states),
            cache=cache if use_cache else None,
        )


def _mean_state(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mean over the tokens of each row, (B, 1, width), and its mask (B, 1): 0 for rows without any token."""
    if attention_mask is None:
        return hidden_states.mean(dim=1, keepdim=True), None
    is_token = (attention_mask != 0)[..., None]
    total = hidden_states.masked_fill(~is_token, 0.0).sum(dim=1, keepdim=True)
    mean = total / is_token.sum(dim=1, keepdim=True).clamp(min=1)
    return mean, is_token.any(dim=1).to(attention_mask.dtype)


class AudioGenForConditionalGeneration(AudioGenPreTrainedModel, AudioGenGenerationMixin):
    """Text to sound: a text encoder, a decoder over delayed EnCodec codes, and the EnCodec tokenizer.

    ```python
    >>> from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor

    >>> processor = AudioGenProcessor.from_pretrained("facebook/audiogen-medium")  # doctest: +SKIP
    >>> model = AudioGenForConditionalGeneration.from_pretrained("facebook/audiogen-medium")  # doctest: +SKIP
    >>> inputs = processor(text=["a dog barks"])  # doctest: +SKIP
    >>> audio = model.generate(**inputs, audio_length_in_s=5)  # (1, 1, 80000)  # doctest: +SKIP
    ```
    """

    # The loss is a mean over codebooks, which `transformers.Trainer` cannot average over accumulated steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: AudioGenConfig):
        super().__init__(config)
        # `attn_implementation` is a choice for the decoder: the tokenizer has no attention and refuses any.
        config.text_encoder._attn_implementation = None
        config.audio_encoder._attn_implementation = None
        self.text_encoder = AutoModelForTextEncoding.from_config(config.text_encoder)
        self.audio_encoder = AutoModel.from_config(config.audio_encoder)
        self.decoder = AudioGenDecoder(config.decoder)
        self.enc_to_dec_proj = nn.Linear(self.text_encoder.config.hidden_size, config.decoder.hidden_size)
        # The K heads in one matrix: rows k * vocab_size to (k + 1) * vocab_size score codebook k.
        self.lm_head = AudioGenLinear(
            config.decoder.hidden_size, config.decoder.num_codebooks * config.decoder.vocab_size
        )
        self.generation_config = default_generation_config(config)
        self.post_init()

    def get_encoder(self, *args, **kwargs):
        return self.text_encoder

    def get_input_embeddings(self):
        return self.text_encoder.get_input_embeddings()

    def freeze_text_encoder(self):
        """Takes the text encoder out of training, as AudioCraft does."""
        self.text_encoder.requires_grad_(False)

    def freeze_audio_encoder(self):
        """Takes the tokenizer of sound out of training; the decoder's loss never reaches it anyway."""
        self.audio_encoder.requires_grad_(False)

    def project_text(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Projects states of the text encoder to the decoder's width, padding to zero.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(B, L, text width)`): States of the text encoder.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 0 for padding; a row of zeros is the null
                prompt of unconditional generation.

        Returns:
            The states `(B, L, D)` and the mask `(B, L)` for cross-attention, `None` where all of it is attended to.
            L is 1 with `config.text_pooling`.
        """
        if self.config.text_pooling == "mean":
            hidden_states, attention_mask = _mean_state(hidden_states, attention_mask)
        hidden_states = hidden_states.to(self.enc_to_dec_proj.weight.dtype)
        if attention_mask is None:
            return self.enc_to_dec_proj(hidden_states), None
        padding = attention_mask == 0
        # Zero before the projection too: a text encoder may return NaN for rows without any text, and the gradient
        # of the projection multiplies its inputs by zero.
        hidden_states = self.enc_to_dec_proj(hidden_states.masked_fill(padding[..., None], 0.0))
        hidden_states = hidden_states.masked_fill(padding[..., None], 0.0)
        if self.config.attend_to_text_padding:
            return hidden_states, None
        # A null prompt attends to its zeros, which give zero, as the projections have no bias.
        return hidden_states, ~padding | padding.all(dim=-1, keepdim=True)

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: Cache | None = None,
        labels: torch.LongTensor | None = None,
        num_targets: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AudioGenOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): The texts.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 0 for padding of the texts. A row of zeros
                is the null prompt.
            decoder_input_ids (`torch.LongTensor` of shape `(B, S, K)`, *optional*): Delayed columns, see
                `delay_pattern.py`. With `labels` they are made here.
            decoder_attention_mask (`torch.Tensor`, *optional*): 0 for columns not to attend to.
            encoder_outputs (`BaseModelOutput` or `tuple`, *optional*): States of the text encoder, in place of
                `input_ids`.
            cache (`EncoderDecoderCache`, *optional*): Keys and values of earlier columns.
            labels (`torch.LongTensor` of shape `(B, K, T)`, *optional*): Codes of the sounds, without delay. -100
                and `vocab_size` mark padding, which is read as the special token and is no target.
            num_targets (`torch.Tensor` of shape `(K,)`, *optional*): Cells of each codebook to average the loss over,
                in place of those of `labels`: of the whole batch, where it is spread over steps or processes.
            use_cache (`bool`, *optional*): Whether to return `cache`.
            logits_to_keep (`int`, *optional*, defaults to 0): Score only that many last columns; 0 for all.

        Returns:
            [`AudioGenOutput`]. With `labels`, the T columns from the start column on are read, so that the last
            `delays[k]` frames of codebook `k` are no targets, as in AudioCraft.

        Raises:
            `ValueError`: if neither text nor text states, or neither codes nor columns are given.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError(
                    "`forward` takes `input_ids` (texts) or `encoder_outputs` (their states), got neither."
                )
            encoder_outputs = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            labels = self._check_labels(labels)
            decoder_input_ids = self._shift_labels(labels)
            use_cache = False
        elif decoder_input_ids is None:
            raise ValueError("`forward` takes `labels` (codes) or `decoder_input_ids` (delayed columns), got neither.")

        encoder_hidden_states, encoder_attention_mask = self.project_text(encoder_outputs[0], attention_mask)
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=decoder_attention_mask,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(outputs.last_hidden_state[:, -logits_to_keep:])
        loss, loss_per_codebook = None, None
        if labels is not None:
            loss, loss_per_codebook = self._cross_entropy(logits, labels, num_targets)
        return AudioGenOutput(
            loss=loss,
            loss_per_codebook=loss_per_codebook,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
        )

    def score(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States of the decoder (B, S, D) to logits (B * K, S, V)."""
        logits = self.lm_head(hidden_states).unflatten(-1, (self.config.decoder.num_codebooks, -1))
        return logits.transpose(1, 2).flatten(0, 1)

    def _check_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """(B, K, T) codes, padding as `IGNORE_INDEX`."""
        if labels.ndim != 3 or labels.shape[1] != self.config.decoder.num_codebooks or labels.shape[2] == 0:
            raise ValueError(
                f"`labels` takes codes of shape (batch, {self.config.decoder.num_codebooks}, frames), "
                f"got {tuple(labels.shape)}."
            )
        return labels.masked_fill(labels == self.config.decoder.special_token_id, IGNORE_INDEX)

    def _shift_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Codes (B, K, T) to the columns (B, T, K) from which they are predicted."""
        decoder = self.config.decoder
        codes = labels.masked_fill(labels == IGNORE_INDEX, decoder.special_token_id)
        columns = apply_delay_pattern(codes, decoder.codebook_delays, decoder.special_token_id)
        return columns[..., : labels.shape[-1]].transpose(1, 2)

    def count_targets(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Cells of each codebook (K,) that `labels` (B, K, T) make the model learn."""
        return (self._targets(self._check_labels(labels)) != IGNORE_INDEX).sum(dim=(0, 2))

    def _targets(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Codes (B, K, T) to what the T columns read shall predict: column s + 1 from column s."""
        columns = apply_delay_pattern(labels, self.config.decoder.codebook_delays, IGNORE_INDEX)
        return columns[..., 1 : labels.shape[-1] + 1]

    def _cross_entropy(
        self, logits: torch.Tensor, labels: torch.LongTensor, num_targets: torch.Tensor | None
    ) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """Mean over the codebooks of the mean cross entropy of their valid cells, and its K terms."""
        num_codebooks, num_frames = labels.shape[1:]
        targets = self._targets(labels)
        cross_entropy = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        )
        cross_entropy = cross_entropy.view(-1, num_codebooks, num_frames).sum(dim=(0, 2))
        if num_targets is None:
            num_targets = (targets != IGNORE_INDEX).sum(dim=(0, 2))
        loss_per_codebook = cross_entropy / num_targets.clamp(min=1)
        return loss_per_codebook.mean(), loss_per_codebook.detach()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, text_encoder=None, **kwargs):
        """Loads a model from a Hub repository or folder, in this library's layout or AudioCraft's.

        An AudioCraft checkpoint is converted once, into the Hugging Face cache. Its decoder runs in float32 unless
        `dtype` says otherwise.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): `"audiogen-tiny"`, which comes with the package, a
                Hub id such as `"facebook/audiogen-medium"`, or a folder.
            text_encoder (`str`, *optional*): For AudioCraft's layout, a folder or Hub id that overrides the text
                encoder which the checkpoint names.
            kwargs: As in `PreTrainedModel.from_pretrained`: `dtype`, `device_map`, `revision`, `token`, `cache_dir`,
                `local_files_only`, ... and attributes of [`AudioGenConfig`].

        Raises:
            `ValueError`: if an AudioCraft checkpoint is damaged or is not an AudioGen.
        """
        from .convert_audiocraft import converted_checkpoint

        pretrained_model_name_or_path = resolve_model_name(pretrained_model_name_or_path)
        folder = converted_checkpoint(pretrained_model_name_or_path, text_encoder=text_encoder, **kwargs)
        if folder is not None:
            pretrained_model_name_or_path = folder
            for name in ("revision", "code_revision", "subfolder"):
                kwargs.pop(name, None)
        elif text_encoder is not None:
            raise ValueError(
                "`text_encoder` overrides the text encoder that an AudioCraft checkpoint names; "
                f"{pretrained_model_name_or_path!r} is not in AudioCraft's layout and carries its own."
            )
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(self, save_directory, is_main_process: bool = True, *args, **kwargs):
        """Saves the model as `PreTrainedModel.save_pretrained` does, and a model card where there is no README yet."""
        if getattr(self, "cpu_precision", None):
            raise ValueError("A model is not saved after `optimize_for_cpu`: save it before, optimise after loading.")
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            write_model_card(save_directory, self.config)

    def _upload_modified_files(self, working_dir, repo_id, *args, token=None, **kwargs):
        # `push_to_hub` and `save_pretrained(push_to_hub=True)` both end here, with a blank card of transformers.
        write_model_card_for_upload(working_dir, self.config, repo_id, token=token)
        return super()._upload_modified_files(working_dir, repo_id, *args, token=token, **kwargs)


__all__ = ["AudioGenDecoder", "AudioGenForConditionalGeneration", "AudioGenOutput", "AudioGenPreTrainedModel"]
