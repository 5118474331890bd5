"""AudioCraft's checkpoints: `state_dict.bin` and `compression_state_dict.bin`, read, converted and written back.

Each file is a pickle `{"best_state", "xp.cfg" (yaml text), "version", "exported"}`. The text encoder is not in it:
`xp.cfg` names one.
"""

import functools
import hashlib
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from .audiocraft_state_dict import (
    check_shapes,
    codec_state_from_audiocraft,
    codec_state_to_audiocraft,
    lm_state_from_audiocraft,
    lm_state_to_audiocraft,
)
from .audiocraft_xp_config import (
    read_codec_config,
    read_decoder_config,
    read_xp_config,
    require,
    write_codec_xp_config,
    write_lm_xp_config,
)
from .packaged_models import resolve_model_name

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
# Raised whenever conversion writes something else, so that caches of earlier versions are not read.
CONVERSION = 1
# Arguments of `from_pretrained` that say how to reach the Hub.
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "proxies", "force_download")
SHARD_SIZE = 1_000_000_000  # bytes; what conversion holds in memory besides the checkpoint's own mapped pages

# Finding a checkpoint. The first argument goes by position: Auto classes pass a `name_or_path` among the others.


def is_audiocraft_checkpoint(name_or_path: str | os.PathLike, /, **hub_kwargs) -> bool:
    """Whether a folder or Hub repository holds AudioCraft's files and no `config.json`.

    Args:
        name_or_path (`str` or `os.PathLike`): A folder, a Hub id or the name of a packaged model.
        hub_kwargs: Those of `HUB_OPTIONS`; others are ignored.
    """
    name_or_path = resolve_model_name(name_or_path)
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
        conditioner = require(self.xp, "conditioners.description")
        if conditioner.get("model") != "t5":
            raise ValueError(f"The text encoder must be a T5, `xp.cfg` has {conditioner.get('model')!r}.")
        return require(conditioner, "t5.name")

    def read_codec(self):
        """The tokenizer as `(EncodecConfig arguments, state dict in our names)`."""
        package = load_package(self.codec_path)
        if "pretrained" in package:
            return self._read_pretrained_codec(package["pretrained"])
        arguments = read_codec_config(read_xp_config(package["xp.cfg"]))
        return arguments, codec_state_from_audiocraft(package["best_state"])

    def _read_pretrained_codec(self, name: str):
        """A codec given by name, as AudioCraft's `CompressionModel.get_pretrained` takes it."""
        hub_kwargs = {key: value for key, value in self.hub_kwargs.items() if key != "revision"}
        name = str(name).removeprefix("//pretrained/")
        if _has_file(name, CODEC_FILE, **hub_kwargs):
            package = load_package(_fetch(name, CODEC_FILE, **hub_kwargs))
            arguments = read_codec_config(read_xp_config(package["xp.cfg"]))
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
            "decoder": read_decoder_config(self.xp),
            "segment_duration": require(self.xp, "dataset.segment_duration"),
        }
        try:
            return AudioGenConfig(**arguments, base_model=base_model, license=license, dtype="float32")
        except StrictDataclassError as error:
            raise ValueError(f"`xp.cfg` of {self.name_or_path}: {error.__cause__}") from error


def read_audiocraft_config(name_or_path: str | os.PathLike, /, **kwargs):
    """The [`AudioGenConfig`] of an AudioCraft checkpoint. Arguments as of [`AudioCraftCheckpoint`]."""
    return AudioCraftCheckpoint(name_or_path, **kwargs).config()


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
    check_shapes("checkpoint", state, expected)

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
        (LM_FILE, lm_state, write_lm_xp_config(config, text_encoder)),
        (CODEC_FILE, codec_state, write_codec_xp_config(config.audio_encoder)),
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
