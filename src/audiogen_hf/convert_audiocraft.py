"""AudioCraft's checkpoints: `state_dict.bin` and `compression_state_dict.bin`, read, converted and written back.

Each file is a pickle `{"best_state", "xp.cfg" (yaml text), "version", "exported"}`. The text encoder is not in it:
`xp.cfg` names one.
"""

import functools
import hashlib
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
# Raised whenever conversion writes something else, so that caches of earlier versions are not read.
CONVERSION = 1
# Arguments of `from_pretrained` that say how to reach the Hub.
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "proxies", "force_download")
SHARD_SIZE = 1_000_000_000  # bytes; what conversion holds in memory besides the checkpoint's own mapped pages

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


# Finding a checkpoint. The first argument goes by position: Auto classes pass a `name_or_path` among the others.


def is_audiocraft_checkpoint(name_or_path: str | os.PathLike, /, **hub_kwargs) -> bool:
    """Whether a folder or Hub repository holds AudioCraft's files and no `config.json`.

    Args:
        name_or_path (`str` or `os.PathLike`): A folder or Hub id.
        hub_kwargs: Those of `HUB_OPTIONS`; others are ignored.
    """
    if os.path.isdir(name_or_path):
        return not _has_file(name_or_path, "config.json") and _has_file(name_or_path, LM_FILE)
    if os.path.exists(name_or_path):
        return False
    return not _has_file(name_or_path, "config.json", **hub_kwargs) and _has_file(name_or_path, LM_FILE, **hub_kwargs)


def _has_file(name_or_path, filename: str, /, **hub_kwargs) -> bool:
    if os.path.isdir(name_or_path):
        return (Path(name_or_path) / filename).is_file()
    return _fetch(name_or_path, filename, missing_ok=True, **hub_kwargs) is not None


def _fetch(name_or_path, filename: str, /, missing_ok: bool = False, **hub_kwargs) -> str | None:
    """The local path of a file of a folder or Hub repository."""
    from transformers.utils import cached_file

    return cached_file(
        str(name_or_path),
        filename,
        _raise_exceptions_for_missing_entries=not missing_ok,
        _raise_exceptions_for_connection_errors=not missing_ok,
        _raise_exceptions_for_gated_repo=not missing_ok,
        **{name: hub_kwargs[name] for name in HUB_OPTIONS if hub_kwargs.get(name) is not None},
    )


# Reading


def load_package(path: str | os.PathLike) -> dict[str, Any]:
    """One of AudioCraft's pickles, its tensors mapped from the file, no code run.

    Raises:
        `ValueError`: if the file is cut short, is no such pickle, or holds more than tensors and plain values.
    """
    import torch

    try:
        try:
            package = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files in the format before torch 1.6 cannot be mapped.
            package = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, and is not read: {_first_line(error)}"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from error
    if not isinstance(package, dict) or not ("pretrained" in package or {"best_state", "xp.cfg"} <= package.keys()):
        raise ValueError(f"{path} is no checkpoint of AudioCraft: it takes the entries 'best_state' and 'xp.cfg'.")
    return package


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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


def _lookup(config: dict, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, dict):
            return None
        config = config.get(part)
    return config


def _require(config: dict, key: str) -> Any:
    value = _lookup(config, key)
    if value is None:
        raise ValueError(f"`xp.cfg` has no '{key}'.")
    return value


def _check_architecture(config: dict, architecture: dict[str, tuple], what: str):
    for key, allowed in architecture.items():
        value = _lookup(config, key)
        if value not in allowed:
            raise ValueError(
                f"This {what} is not AudioGen's: `xp.cfg` has {key}={value!r}, supported is "
                f"{' or '.join(repr(option) for option in allowed if option is not None)}."
            )


def _decoder_config(xp: dict) -> dict[str, Any]:
    """`AudioGenDecoderConfig` arguments of the LM's `xp.cfg`."""
    _check_architecture(xp, ARCHITECTURE, "language model")
    conditioners = xp.get("conditioners") or {}
    if list(conditioners) != ["description"] or _lookup(xp, "fuser.cross") != ["description"]:
        raise ValueError(
            "This language model is not AudioGen's: it takes one condition, the text 'description', by "
            f"cross-attention; `xp.cfg` has {list(conditioners)}."
        )
    lm = _require(xp, "transformer_lm")
    stereo = bool(_lookup(xp, "interleave_stereo_codebooks.use"))
    return {
        "vocab_size": _require(lm, "card"),
        "num_codebooks": _require(lm, "n_q"),
        "codebook_delays": _require(xp, "codebooks_pattern.delay.delays"),
        "audio_channels": 2 if stereo else 1,
        "hidden_size": _require(lm, "dim"),
        "num_hidden_layers": _require(lm, "num_layers"),
        "num_attention_heads": _require(lm, "num_heads"),
        "intermediate_size": int(_require(lm, "hidden_scale") * lm["dim"]),
        "dropout": lm.get("dropout") or 0.0,
        "attention_dropout": lm.get("attention_dropout") or 0.0,
    }


def _codec_config(xp: dict) -> dict[str, Any]:
    """`EncodecConfig` arguments of the codec's `xp.cfg`."""
    _check_architecture(xp, CODEC_ARCHITECTURE, "compression model")
    seanet, rvq = _require(xp, "seanet"), _require(xp, "rvq")
    return {
        "model_type": "encodec",
        "sampling_rate": _require(xp, "sample_rate"),
        "audio_channels": _require(xp, "channels"),
        "hidden_size": _require(seanet, "dimension"),
        "num_filters": _require(seanet, "n_filters"),
        "num_residual_layers": _require(seanet, "n_residual_layers"),
        "upsampling_ratios": _require(seanet, "ratios"),
        "kernel_size": _require(seanet, "kernel_size"),
        "last_kernel_size": _require(seanet, "last_kernel_size"),
        "residual_kernel_size": _require(seanet, "residual_kernel_size"),
        "dilation_growth_rate": _require(seanet, "dilation_base"),
        "use_causal_conv": bool(seanet.get("causal")),
        "pad_mode": _require(seanet, "pad_mode"),
        "compress": _require(seanet, "compress"),
        "num_lstm_layers": _require(seanet, "lstm"),
        "trim_right_ratio": float(_lookup(seanet, "decoder.trim_right_ratio") or 1.0),
        "codebook_size": _require(rvq, "bins"),
        "codebook_dim": seanet["dimension"],
        "use_conv_shortcut": not seanet["true_skip"],
        "normalize": False,
        "target_bandwidths": [
            _bandwidth(_require(rvq, "n_q"), rvq["bins"], xp["sample_rate"], _product(seanet["ratios"]))
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


class AudioCraftCheckpoint:
    """The two packages of one checkpoint, and what they say. They are read when that is asked for.

    Args:
        name_or_path (`str` or `os.PathLike`): A folder or Hub id.
        text_encoder (`str`, *optional*): A folder or Hub id in place of the text encoder that `xp.cfg` names.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, ...
    """

    def __init__(
        self, name_or_path: str | os.PathLike, /, text_encoder: str | os.PathLike | None = None, **hub_kwargs
    ):
        self.hub_kwargs = hub_kwargs
        self.name_or_path = name_or_path
        self.lm_path = self._find(LM_FILE)
        self.codec_path = self._find(CODEC_FILE)
        self.given_text_encoder = str(text_encoder) if text_encoder is not None else None

    @functools.cached_property
    def lm(self) -> dict[str, Any]:
        return load_package(self.lm_path)

    @functools.cached_property
    def xp(self) -> dict[str, Any]:
        return read_xp_config(self.lm["xp.cfg"])

    @property
    def text_encoder(self) -> str:
        """A folder or Hub id."""
        return self.given_text_encoder or self._named_text_encoder()

    def _find(self, filename: str) -> str:
        try:
            return _fetch(self.name_or_path, filename, **self.hub_kwargs)
        except OSError as error:
            raise ValueError(f"{self.name_or_path} has no {filename}: {error}") from error

    def _named_text_encoder(self) -> str:
        conditioner = _require(self.xp, "conditioners.description")
        if conditioner.get("model") != "t5":
            raise ValueError(f"The text encoder must be a T5, `xp.cfg` has {conditioner.get('model')!r}.")
        return _require(conditioner, "t5.name")

    def read_codec(self):
        """The tokenizer as `(EncodecConfig arguments, state dict in our names)`."""
        package = load_package(self.codec_path)
        if "pretrained" in package:
            return self._read_pretrained_codec(package["pretrained"])
        arguments = _codec_config(read_xp_config(package["xp.cfg"]))
        return arguments, codec_state_from_audiocraft(package["best_state"])

    def _read_pretrained_codec(self, name: str):
        """A codec given by name, as AudioCraft's `CompressionModel.get_pretrained` takes it."""
        hub_kwargs = {key: value for key, value in self.hub_kwargs.items() if key != "revision"}
        name = str(name).removeprefix("//pretrained/")
        if _has_file(name, CODEC_FILE, **hub_kwargs):
            package = load_package(_fetch(name, CODEC_FILE, **hub_kwargs))
            arguments = _codec_config(read_xp_config(package["xp.cfg"]))
            return arguments, codec_state_from_audiocraft(package["best_state"])
        from transformers import EncodecModel

        try:
            codec = EncodecModel.from_pretrained(name, **hub_kwargs)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.codec_path} names the codec {name!r}, which cannot be had: {error}") from error
        return codec.config.to_dict(), codec.state_dict()

    def text_encoder_config(self):
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.text_encoder, **self._text_encoder_hub_kwargs())
        except (OSError, ValueError) as error:
            raise ValueError(self._no_text_encoder(error)) from error

    def load_text_encoder(self):
        import torch
        from transformers import AutoModelForTextEncoding

        try:
            return AutoModelForTextEncoding.from_pretrained(
                self.text_encoder, dtype=torch.float32, **self._text_encoder_hub_kwargs()
            )
        except (OSError, ValueError) as error:
            raise ValueError(self._no_text_encoder(error)) from error

    def load_tokenizer(self):
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.text_encoder, **self._text_encoder_hub_kwargs())
        except (OSError, ValueError) as error:
            raise ValueError(self._no_text_encoder(error)) from error

    def _text_encoder_hub_kwargs(self) -> dict:
        """A revision is one of the checkpoint's repository, not of the text encoder's."""
        return {
            name: value
            for name, value in self.hub_kwargs.items()
            if name in HUB_OPTIONS and name != "revision" and value is not None
        }

    def _no_text_encoder(self, error: Exception) -> str:
        return (
            f"The text encoder {self.text_encoder!r} of {self.name_or_path} cannot be loaded; pass "
            f"`text_encoder=` with a folder or Hub id that has it. {_first_line(error)}"
        )

    def config(self):
        """The [`AudioGenConfig`] of the checkpoint."""
        from huggingface_hub.errors import StrictDataclassError

        from .configuration_audiogen import AudioGenConfig
        from .model_card import CARD_FILE, provenance

        codec_arguments, _ = self.read_codec()
        base_model, license = provenance(
            self.name_or_path, _fetch(self.name_or_path, CARD_FILE, missing_ok=True, **self.hub_kwargs)
        )
        arguments = {
            "text_encoder": self.text_encoder_config().to_dict(),
            "audio_encoder": codec_arguments,
            "decoder": _decoder_config(self.xp),
            "segment_duration": _require(self.xp, "dataset.segment_duration"),
        }
        try:
            return AudioGenConfig(**arguments, base_model=base_model, license=license, dtype="float32")
        except StrictDataclassError as error:
            raise ValueError(f"`xp.cfg` of {self.name_or_path}: {error.__cause__}") from error


def read_audiocraft_config(name_or_path: str | os.PathLike, /, **kwargs):
    """The [`AudioGenConfig`] of an AudioCraft checkpoint. Arguments as of [`AudioCraftCheckpoint`]."""
    return AudioCraftCheckpoint(name_or_path, **kwargs).config()


# Names of tensors


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
    _raise_for_keys("language model", missing, state)
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


def _raise_for_keys(what: str, missing: Iterable[str], unexpected: Iterable[str]):
    missing, unexpected = sorted(missing), sorted(unexpected)
    if missing or unexpected:
        raise ValueError(
            f"The {what} does not fit its `xp.cfg`. Missing keys: {missing or 'none'}. "
            f"Keys that nothing takes: {unexpected or 'none'}."
        )


def _check_shapes(what: str, state: dict, expected: dict):
    _raise_for_keys(what, expected.keys() - state.keys(), state.keys() - expected.keys())
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"The {what} does not fit its `xp.cfg`: {name} takes shape {tuple(expected[name].shape)}, "
                f"got {tuple(tensor.shape)}."
            )


# Converting


def converted_checkpoint(
    name_or_path: str | os.PathLike, /, text_encoder: str | os.PathLike | None = None, **kwargs
) -> str | None:
    """The folder with the converted form of an AudioCraft checkpoint, made at the first call.

    It lies among the assets of the Hugging Face cache, keyed by the checkpoint's files and the text encoder's.

    Returns:
        The folder, or `None` where `name_or_path` is no AudioCraft checkpoint.
    """
    from filelock import FileLock
    from huggingface_hub import cached_assets_path

    if not is_audiocraft_checkpoint(name_or_path, **kwargs):
        return None
    checkpoint = AudioCraftCheckpoint(name_or_path, text_encoder=text_encoder, **kwargs)
    cache_dir = kwargs.get("cache_dir")
    folder = cached_assets_path(
        "audiogen_hf",
        namespace="converted",
        subfolder=f"{Path(name_or_path).name}-{_fingerprint(checkpoint)}",
        assets_dir=Path(cache_dir) / "assets" if cache_dir is not None else None,
    )
    if not (folder / "config.json").is_file():
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "config.json").is_file():  # another process may have made it meanwhile
                for unfinished in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
                    shutil.rmtree(unfinished, ignore_errors=True)
                convert_checkpoint(checkpoint, folder)
    return str(folder)


def _fingerprint(checkpoint: AudioCraftCheckpoint) -> str:
    """Identifies what conversion reads, without reading it: files of the Hub cache are named after their content,
    those of a folder are told by path, size and time. A text encoder counts where it is given, not where the
    checkpoint names it."""
    digest = hashlib.sha256(f"{CONVERSION}".encode())
    paths = [checkpoint.lm_path, checkpoint.codec_path]
    given = checkpoint.given_text_encoder
    if given is not None and os.path.isdir(given):
        paths += sorted(path for path in Path(given).iterdir() if path.is_file())
    elif given is not None:
        try:
            config = _fetch(given, "config.json", **checkpoint._text_encoder_hub_kwargs())
        except OSError as error:
            raise ValueError(checkpoint._no_text_encoder(error)) from error
        digest.update(str(config).encode())  # its folder is named after the commit
    for path in paths:
        real = Path(path).resolve()
        stat = real.stat()
        digest.update(f"{real}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def convert_checkpoint(checkpoint: AudioCraftCheckpoint, folder: str | os.PathLike) -> Path:
    """Writes a checkpoint in this library's layout: config, weights, generation defaults, processor, card.

    Weights keep their precision. Nothing is left at `folder` if anything fails.

    Args:
        checkpoint ([`AudioCraftCheckpoint`]): What to convert.
        folder (`str` or `os.PathLike`): Where to write; replaced if it exists.

    Raises:
        `ValueError`: if tensors are missing, left over or of another shape than `xp.cfg` says.
    """
    import torch

    from .configuration_audiogen import AudioGenConfig
    from .generation_audiogen import default_generation_config
    from .model_card import write_model_card
    from .modeling_audiogen import AudioGenForConditionalGeneration
    from .processing_audiogen import AudioGenProcessor

    config: AudioGenConfig = checkpoint.config()
    config.architectures = [AudioGenForConditionalGeneration.__name__]
    decoder = config.decoder
    state = lm_state_from_audiocraft(checkpoint.lm["best_state"], decoder.num_hidden_layers, decoder.num_codebooks)
    _, codec_state = checkpoint.read_codec()
    state.update({f"audio_encoder.{name}": tensor for name, tensor in codec_state.items()})
    state.update(
        {f"text_encoder.{name}": tensor for name, tensor in checkpoint.load_text_encoder().state_dict().items()}
    )
    with torch.device("meta"):
        expected = AudioGenForConditionalGeneration(AudioGenConfig.from_dict(config.to_dict())).state_dict()
    state.pop("text_encoder.encoder.embed_tokens.weight", None)  # tied to `shared`
    expected.pop("text_encoder.encoder.embed_tokens.weight", None)
    _check_shapes("checkpoint", state, expected)

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _save_sharded(state, temporary)
        default_generation_config(config).save_pretrained(temporary)
        AudioGenProcessor.from_config(config, checkpoint.load_tokenizer()).save_pretrained(temporary)
        write_model_card(temporary, config)
        config.save_pretrained(temporary)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _save_sharded(state: dict, folder: Path):
    """Safetensors shards of at most `SHARD_SIZE` bytes and their index, one shard in memory at a time."""
    import json

    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    plan = split_torch_state_dict_into_shards(state, max_shard_size=SHARD_SIZE)
    for filename, names in plan.filename_to_tensors.items():
        shard = {name: state[name].contiguous() for name in names}
        save_file(shard, folder / filename, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


# Writing back


def export_audiocraft(model, folder: str | os.PathLike, text_encoder: str | None = None) -> Path:
    """Writes a model in AudioCraft's layout, so that AudioCraft loads it.

    Args:
        model ([`AudioGenForConditionalGeneration`]): The model.
        folder (`str` or `os.PathLike`): Where `state_dict.bin` and `compression_state_dict.bin` go.
        text_encoder (`str`, *optional*): The name that AudioCraft loads the T5 by; `t5-large` and its siblings are
            recognised by their size.

    Returns:
        The folder.

    Raises:
        `ValueError`: if the text encoder is none that AudioCraft knows by name and `text_encoder` is not given.
    """
    import torch

    from .model_card import write_model_card

    config = model.config
    decoder = config.decoder
    text_encoder = text_encoder or _t5_name(config.text_encoder)
    lm_state = lm_state_to_audiocraft(
        {name: tensor.detach().cpu() for name, tensor in model.state_dict().items() if "_encoder." not in name},
        decoder.num_hidden_layers,
        decoder.num_codebooks,
    )
    codec_state = codec_state_to_audiocraft(
        {name: tensor.detach().cpu() for name, tensor in model.audio_encoder.state_dict().items()}
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for filename, state, xp in (
        (LM_FILE, lm_state, _lm_xp_config(config, text_encoder)),
        (CODEC_FILE, codec_state, _codec_xp_config(config.audio_encoder)),
    ):
        package = {
            "best_state": {key: tensor.contiguous().clone() for key, tensor in state.items()},
            "xp.cfg": yaml.safe_dump(xp, sort_keys=False),
            "version": "1.3.0",
            "exported": True,
        }
        temporary = folder / f".{filename}.{os.getpid()}"
        try:
            torch.save(package, temporary)
            temporary.replace(folder / filename)
        finally:
            temporary.unlink(missing_ok=True)
    write_model_card(folder, config, library_name="audiocraft")
    return folder


# Widths of the T5 encoders that AudioCraft knows by name (its `T5Conditioner.MODELS_DIMS`).
T5_NAMES = {512: "t5-small", 768: "t5-base", 1024: "t5-large"}


def _t5_name(config) -> str:
    if config.model_type == "t5" and config.hidden_size in T5_NAMES and config.feed_forward_proj == "relu":
        return T5_NAMES[config.hidden_size]
    raise ValueError(
        "AudioCraft loads its text encoder by name, and this one is none of t5-small, t5-base and t5-large: pass "
        "`text_encoder=` with the name it shall have."
    )


def _lm_xp_config(config, text_encoder: str) -> dict:
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


def _codec_xp_config(config) -> dict:
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
