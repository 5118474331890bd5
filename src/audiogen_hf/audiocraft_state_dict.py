"""Names and packing of tensors: AudioCraft's state dicts to ours, and back."""

import re
from collections.abc import Iterable

# AudioCraft's names, right, as ours, left.
LAYER_KEYS = {
    "self_attn_layer_norm.weight": "norm1.weight",
    "self_attn_layer_norm.bias": "norm1.bias",
    "self_attn.qkv_proj.weight": "self_attn.in_proj_weight",
    "self_attn.out_proj.weight": "self_attn.out_proj.weight",
    "cross_attn_layer_norm.weight": "norm_cross.weight",
    "cross_attn_layer_norm.bias": "norm_cross.bias",
    "cross_attn.out_proj.weight": "cross_attention.out_proj.weight",
    "final_layer_norm.weight": "norm2.weight",
    "final_layer_norm.bias": "norm2.bias",
    "fc1.weight": "linear1.weight",
    "fc2.weight": "linear2.weight",
}
CROSS_IN_PROJ = "cross_attention.in_proj_weight"  # our q_proj, then kv_proj
TOP_KEYS = {
    "decoder.norm.weight": "out_norm.weight",
    "decoder.norm.bias": "out_norm.bias",
    "enc_to_dec_proj.weight": "condition_provider.conditioners.description.output_proj.weight",
    "enc_to_dec_proj.bias": "condition_provider.conditioners.description.output_proj.bias",
}
# Codec: our pattern and AudioCraft's template. Weight norm keeps its gain and direction under either name.
CODEC_RULES = [
    (r"^(encoder|decoder)\.layers\.(\d+)\.lstm\.(.+)$", r"\1.model.\2.lstm.\3"),
    (r"^(encoder|decoder)\.layers\.(\d+)\.block\.(\d+)\.conv\.(.+)$", r"\1.model.\2.block.\3.conv.conv.\4"),
    (r"^(encoder|decoder)\.layers\.(\d+)\.shortcut\.conv\.(.+)$", r"\1.model.\2.shortcut.conv.conv.\3"),
    (r"^quantizer\.layers\.(\d+)\.codebook\.(.+)$", r"quantizer.vq.layers.\1._codebook.\2"),
]
WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def lm_state_from_audiocraft(state: dict, num_layers: int, num_codebooks: int) -> dict:
    """AudioCraft's LM tensors under our names.

    Raises:
        `ValueError`: naming the keys that are missing or left over.
    """
    import torch

    state = dict(state)
    missing = []

    def take(key: str):
        if key not in state:
            missing.append(key)
            return torch.empty(0)
        return state.pop(key)

    ours = {name: take(key) for name, key in TOP_KEYS.items()}
    ours["decoder.embed_tokens.weight"] = [take(f"emb.{k}.weight") for k in range(num_codebooks)]
    ours["lm_head.weight"] = [take(f"linears.{k}.weight") for k in range(num_codebooks)]
    for i in range(num_layers):
        for name, key in LAYER_KEYS.items():
            ours[f"decoder.layers.{i}.{name}"] = take(f"transformer.layers.{i}.{key}")
        in_proj = take(f"transformer.layers.{i}.{CROSS_IN_PROJ}")
        width = in_proj.shape[0] // 3
        ours[f"decoder.layers.{i}.cross_attn.q_proj.weight"] = in_proj[:width]
        ours[f"decoder.layers.{i}.cross_attn.kv_proj.weight"] = in_proj[width:]
    raise_for_keys("language model", missing, state)
    return {name: torch.cat(value) if isinstance(value, list) else value for name, value in ours.items()}


def lm_state_to_audiocraft(state: dict, num_layers: int, num_codebooks: int) -> dict:
    """The inverse of [`lm_state_from_audiocraft`]."""
    import torch

    theirs = {key: state[name] for name, key in TOP_KEYS.items()}
    for k, weight in enumerate(state["decoder.embed_tokens.weight"].chunk(num_codebooks)):
        theirs[f"emb.{k}.weight"] = weight
    for k, weight in enumerate(state["lm_head.weight"].chunk(num_codebooks)):
        theirs[f"linears.{k}.weight"] = weight
    for i in range(num_layers):
        for name, key in LAYER_KEYS.items():
            theirs[f"transformer.layers.{i}.{key}"] = state[f"decoder.layers.{i}.{name}"]
        theirs[f"transformer.layers.{i}.{CROSS_IN_PROJ}"] = torch.cat(
            [state[f"decoder.layers.{i}.cross_attn.{name}.weight"] for name in ("q_proj", "kv_proj")]
        )
    return theirs


def _codec_key_to_audiocraft(name: str) -> str:
    for ours, theirs in WEIGHT_NORM.items():
        name = name.replace(ours, theirs)
    for pattern, template in CODEC_RULES:
        if re.match(pattern, name):
            return re.sub(pattern, template, name)
    # Plain convolutions: AudioCraft wraps those that go up as `convtr`, the others as `conv`.
    match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.conv\.(.+)", name)
    side, layer, rest = match.groups()
    return f"{side}.model.{layer}.CONV.CONV.{rest}"


def codec_state_to_audiocraft(state: dict) -> dict:
    """An `EncodecModel`'s tensors under AudioCraft's names."""
    theirs = {}
    last = max(int(name.split(".")[2]) for name in state if name.startswith("decoder.layers."))
    for name, tensor in state.items():
        key = _codec_key_to_audiocraft(name)
        if "CONV" in key:
            side, _, layer = key.split(".")[:3]
            goes_up = side == "decoder" and int(layer) not in (0, last)
            key = key.replace("CONV", "convtr" if goes_up else "conv")
        theirs[key] = tensor
    return theirs


def codec_state_from_audiocraft(state: dict) -> dict:
    """AudioCraft's codec tensors under the names of `EncodecModel`; keys that fit none keep theirs."""
    ours = {}
    for key, tensor in state.items():
        name = key.replace("_codebook", "codebook").replace("quantizer.vq.", "quantizer.")
        name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
        name = name.replace("conv.conv.", "conv.").replace("convtr.convtr.", "conv.")
        for new, old in WEIGHT_NORM.items():
            name = re.sub(rf"{old}$", new, name)
        ours[name] = tensor
    return ours


def raise_for_keys(what: str, missing: Iterable[str], unexpected: Iterable[str]):
    missing, unexpected = sorted(missing), sorted(unexpected)
    if missing or unexpected:
        raise ValueError(
            f"The {what} does not fit its `xp.cfg`. Missing keys: {missing or 'none'}. "
            f"Keys that nothing takes: {unexpected or 'none'}."
        )


def check_shapes(what: str, state: dict, expected: dict):
    raise_for_keys(what, expected.keys() - state.keys(), state.keys() - expected.keys())
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"The {what} does not fit its `xp.cfg`: {name} takes shape {tuple(expected[name].shape)}, "
                f"got {tuple(tensor.shape)}."
            )
