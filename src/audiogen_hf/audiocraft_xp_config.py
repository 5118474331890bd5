"""AudioCraft's `xp.cfg`, the yaml that says what a checkpoint is: to our configurations, and from them."""

import re
from collections.abc import Iterable
from typing import Any

import yaml

# What this library's decoder is; an AudioCraft model that differs in one of these is another architecture.
ARCHITECTURE = {
    "lm_model": ("transformer_lm",),
    "codebooks_pattern.modeling": ("delay",),
    "codebooks_pattern.delay.flatten_first": (0, None),
    "codebooks_pattern.delay.empty_initial": (0, None),
    "transformer_lm.activation": ("gelu",),
    "transformer_lm.norm_first": (True,),
    "transformer_lm.norm": ("layer_norm",),
    "transformer_lm.bias_ff": (False,),
    "transformer_lm.bias_attn": (False,),
    "transformer_lm.bias_proj": (False,),
    "transformer_lm.causal": (True,),
    "transformer_lm.past_context": (None,),
    "transformer_lm.positional_embedding": ("sin",),
    "transformer_lm.layer_scale": (None,),
    "transformer_lm.xpos": (False, None),
    "transformer_lm.qk_layer_norm": (False, None),
    "transformer_lm.qk_layer_norm_cross": (False, None),
    "transformer_lm.kv_repeat": (1, None),
    "fuser.cross_attention_pos_emb": (False, None),
    "interleave_stereo_codebooks.per_timestep": (False, None),
}
CODEC_ARCHITECTURE = {
    "compression_model": ("encodec",),
    "encodec.autoencoder": ("seanet",),
    "encodec.quantizer": ("rvq",),
    "encodec.renormalize": (False, None),
    "seanet.activation": ("ELU",),
    "seanet.norm": ("weight_norm",),
    "seanet.true_skip": (True, False),
    "seanet.disable_norm_outer_blocks": (0, None),
    "seanet.decoder.final_activation": (None,),
}


def read_xp_config(text: str) -> dict[str, Any]:
    """An `xp.cfg`: yaml, read safely, its `${a.b}` references resolved. References to the environment
    (`${oc.env:...}`) stay as they are."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"`xp.cfg` is no yaml: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"`xp.cfg` is no yaml mapping but {type(config).__name__}.")
    return _resolve(config, config, ())


def _resolve(node: Any, root: dict, trail: tuple[str, ...]) -> Any:
    if isinstance(node, dict):
        return {key: _resolve(value, root, trail) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolve(value, root, trail) for value in node]
    if not isinstance(node, str):
        return node

    def value_of(reference: str) -> Any:
        if reference in trail:
            raise ValueError(f"`xp.cfg` refers to itself: {' -> '.join((*trail, reference))}.")
        target = root
        for key in reference.split("."):
            if not isinstance(target, dict) or key not in target:
                raise ValueError(f"`xp.cfg` refers to '{reference}', which it does not have.")
            target = target[key]
        return _resolve(target, root, (*trail, reference))

    whole = re.fullmatch(r"\$\{([\w.]+)\}", node)
    if whole:
        return value_of(whole[1])
    return re.sub(r"\$\{([\w.]+)\}", lambda match: str(value_of(match[1])), node)


def lookup(config: dict, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, dict):
            return None
        config = config.get(part)
    return config


def require(config: dict, key: str) -> Any:
    value = lookup(config, key)
    if value is None:
        raise ValueError(f"`xp.cfg` has no '{key}'.")
    return value


def _check_architecture(config: dict, architecture: dict[str, tuple], what: str):
    for key, allowed in architecture.items():
        value = lookup(config, key)
        if value not in allowed:
            raise ValueError(
                f"This {what} is not AudioGen's: `xp.cfg` has {key}={value!r}, supported is "
                f"{' or '.join(repr(option) for option in allowed if option is not None)}."
            )


def read_decoder_config(xp: dict) -> dict[str, Any]:
    """`AudioGenDecoderConfig` arguments of the LM's `xp.cfg`."""
    _check_architecture(xp, ARCHITECTURE, "language model")
    conditioners = xp.get("conditioners") or {}
    if list(conditioners) != ["description"] or lookup(xp, "fuser.cross") != ["description"]:
        raise ValueError(
            "This language model is not AudioGen's: it takes one condition, the text 'description', by "
            f"cross-attention; `xp.cfg` has {list(conditioners)}."
        )
    lm = require(xp, "transformer_lm")
    stereo = bool(lookup(xp, "interleave_stereo_codebooks.use"))
    return {
        "vocab_size": require(lm, "card"),
        "num_codebooks": require(lm, "n_q"),
        "codebook_delays": require(xp, "codebooks_pattern.delay.delays"),
        "audio_channels": 2 if stereo else 1,
        "hidden_size": require(lm, "dim"),
        "num_hidden_layers": require(lm, "num_layers"),
        "num_attention_heads": require(lm, "num_heads"),
        "intermediate_size": int(require(lm, "hidden_scale") * lm["dim"]),
        "dropout": lm.get("dropout") or 0.0,
        "attention_dropout": lm.get("attention_dropout") or 0.0,
    }


def read_codec_config(xp: dict) -> dict[str, Any]:
    """`EncodecConfig` arguments of the codec's `xp.cfg`."""
    _check_architecture(xp, CODEC_ARCHITECTURE, "compression model")
    seanet, rvq = require(xp, "seanet"), require(xp, "rvq")
    return {
        "model_type": "encodec",
        "sampling_rate": require(xp, "sample_rate"),
        "audio_channels": require(xp, "channels"),
        "hidden_size": require(seanet, "dimension"),
        "num_filters": require(seanet, "n_filters"),
        "num_residual_layers": require(seanet, "n_residual_layers"),
        "upsampling_ratios": require(seanet, "ratios"),
        "kernel_size": require(seanet, "kernel_size"),
        "last_kernel_size": require(seanet, "last_kernel_size"),
        "residual_kernel_size": require(seanet, "residual_kernel_size"),
        "dilation_growth_rate": require(seanet, "dilation_base"),
        "use_causal_conv": bool(seanet.get("causal")),
        "pad_mode": require(seanet, "pad_mode"),
        "compress": require(seanet, "compress"),
        "num_lstm_layers": require(seanet, "lstm"),
        "trim_right_ratio": float(lookup(seanet, "decoder.trim_right_ratio") or 1.0),
        "codebook_size": require(rvq, "bins"),
        "codebook_dim": seanet["dimension"],
        "use_conv_shortcut": not seanet["true_skip"],
        "normalize": False,
        "target_bandwidths": [
            _bandwidth(require(rvq, "n_q"), rvq["bins"], xp["sample_rate"], _product(seanet["ratios"]))
        ],
    }


def _product(numbers: Iterable[int]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product


def _bandwidth(num_codebooks: int, codebook_size: int, sampling_rate: int, hop_length: int) -> float:
    """kbit/s from which `EncodecConfig` derives `num_codebooks`, rounding of its division included."""
    frame_rate, bits = -(-sampling_rate // hop_length), (codebook_size - 1).bit_length()
    bandwidth = num_codebooks * frame_rate * bits / 1000
    while int(1000 * bandwidth // (frame_rate * bits)) < num_codebooks:
        bandwidth += 1e-6
    return bandwidth


def write_lm_xp_config(config, text_encoder: str) -> dict:
    decoder, codec = config.decoder, config.audio_encoder
    return {
        "solver": "audiogen",
        "device": "cpu",
        "dtype": "float32",
        "sample_rate": codec.sampling_rate,
        "channels": decoder.audio_channels,
        "compression_model_checkpoint": None,
        "compression_model_n_q": None,
        "dataset": {"segment_duration": config.segment_duration},
        "tokens": {"padding_with_special_token": False},
        "interleave_stereo_codebooks": {"use": decoder.audio_channels == 2, "per_timestep": False},
        "classifier_free_guidance": {"training_dropout": 0.1, "inference_coef": 3.0},
        "attribute_dropout": {},
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": [],
            "cross": ["description"],
            "input_interpolate": [],
        },
        "conditioners": {
            "description": {
                "model": "t5",
                "t5": {"name": text_encoder, "finetune": False, "word_dropout": 0.0, "normalize_text": False},
            }
        },
        "lm_model": "transformer_lm",
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": list(decoder.codebook_delays), "flatten_first": 0, "empty_initial": 0},
        },
        "transformer_lm": {
            "dim": decoder.hidden_size,
            "num_heads": decoder.num_attention_heads,
            "num_layers": decoder.num_hidden_layers,
            "hidden_scale": _whole(decoder.intermediate_size / decoder.hidden_size),
            "n_q": decoder.num_codebooks,
            "card": decoder.vocab_size,
            "dropout": decoder.dropout,
            "emb_lr": None,
            "activation": "gelu",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "layer_scale": None,
            "positional_embedding": "sin",
            "xpos": False,
            "checkpointing": "none",
            "weight_init": "gaussian",
            "depthwise_init": "current",
            "zero_bias_init": True,
            "norm": "layer_norm",
            "cross_attention": False,
            "qk_layer_norm": False,
            "qk_layer_norm_cross": False,
            "attention_dropout": decoder.attention_dropout or None,
            "kv_repeat": 1,
            "two_step_cfg": False,
        },
    }


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def write_codec_xp_config(config) -> dict:
    return {
        "solver": "compression",
        "device": "cpu",
        "dtype": "float32",
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": config.sampling_rate,
            "channels": config.audio_channels,
            "causal": config.use_causal_conv,
            "renormalize": config.normalize,
        },
        "seanet": {
            "dimension": config.hidden_size,
            "channels": config.audio_channels,
            "causal": config.use_causal_conv,
            "n_filters": config.num_filters,
            "n_residual_layers": config.num_residual_layers,
            "ratios": list(config.upsampling_ratios),
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": config.norm_type,
            "norm_params": {},
            "kernel_size": config.kernel_size,
            "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size,
            "dilation_base": config.dilation_growth_rate,
            "pad_mode": config.pad_mode,
            "true_skip": not config.use_conv_shortcut,
            "compress": config.compress,
            "lstm": config.num_lstm_layers,
            "disable_norm_outer_blocks": 0,
            "decoder": {
                "trim_right_ratio": config.trim_right_ratio,
                "final_activation": None,
                "final_activation_params": None,
            },
            "encoder": {},
        },
        "rvq": {
            "n_q": config.num_quantizers,
            "q_dropout": False,
            "bins": config.codebook_size,
            "decay": 0.99,
            "kmeans_init": True,
            "kmeans_iters": 50,
            "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False,
        },
    }
