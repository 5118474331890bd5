"""Models stored as int8: a quarter of the size on disk, plain floating point in memory.

[`save_int8`] writes them; any `from_pretrained` reads them through a quantizer of transformers that multiplies each
tensor by its scales as it is loaded, and leaves no trace in the model.
"""

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

QUANT_METHOD = "audiogen_int8"
# A tensor `name` is stored as `name:int8` and `name:scale`, or under its own name in floating point.
LEVELS, SCALE = ":int8", ":scale"
MIN_ELEMENTS = 4096  # smaller tensors are a hundredth of a model, and gain little


def quantize(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds to 255 levels, symmetric around zero, one scale for each index of the first dimension.

    That dimension is the output of linear layers and convolutions, the gates of an LSTM, the token of an embedding,
    and what weight normalisation normalises; measured on an EnCodec it errs less than the second in all but a few
    convolutions.

    Args:
        tensor (`torch.Tensor` of shape `(N, ...)`): Finite numbers.

    Returns:
        Levels, int8 of the same shape, and scales, float32 of shape `(N, 1, ...)`. Their product is within half a
        scale of `tensor`.
    """
    tensor = tensor.float()
    largest = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True)
    scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)  # a row of zeros stays one
    return (tensor / scale).round_().to(torch.int8), scale


def dequantize(levels: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What `quantize` returned, in floating point: multiplied in float32, then rounded once."""
    return levels.to(torch.float32).mul_(scale).to(dtype)


def _in_half_precision(tensor: torch.Tensor) -> torch.Tensor:
    """In float16, unless its range is not enough: errors are below a 2,048th of the largest value or it stays."""
    tensor = tensor.float()
    half = tensor.half()
    is_exact_enough = (half.float() - tensor).abs().max() <= tensor.abs().max() / 2048
    return half if is_exact_enough else tensor


def int8_state_dict(model) -> dict[str, torch.Tensor]:
    """The tensors that a model is stored as, by the names they are stored under, on the CPU.

    Raises:
        `ValueError`: if a tensor holds NaN or infinities.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        if name in model.all_tied_weights_keys:
            continue
        tensor = tensor.detach().cpu()
        if not tensor.is_floating_point():
            state[name] = tensor
        elif not tensor.isfinite().all():
            raise ValueError(f"`model` has NaN or infinities in {name}, which int8 cannot hold.")
        elif tensor.ndim >= 2 and tensor.numel() >= MIN_ELEMENTS:
            state[name + LEVELS], state[name + SCALE] = quantize(tensor)
        else:
            state[name] = _in_half_precision(tensor)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def save_int8(model, processor, folder: str | os.PathLike) -> Path:
    """Saves a model with its large tensors as int8, for `from_pretrained` to load in floating point.

    Tensors of two or more dimensions and 4,096 or more elements are rounded to int8 with a scale a row, the rest to
    float16 (float32 where the range of float16 is not enough). The model given stays as it is. Each file is complete
    before it takes its place.

    Args:
        model ([`AudioGenForConditionalGeneration`]): A model in floating point.
        processor ([`AudioGenProcessor`], *optional*): Saved beside the model, unless it is `None`.
        folder (`str` or `os.PathLike`): Where to write `config.json`, `generation_config.json`, `model.safetensors`
            and, where there is none yet, a model card.

    Returns:
        The folder.

    Raises:
        `ValueError`: if the model holds NaN or infinities, or is not in floating point any more.
    """
    from .model_card import write_model_card

    if getattr(model, "cpu_precision", None) or getattr(model, "hf_quantizer", None):
        raise ValueError("`save_int8` takes a model in floating point, this one is optimised or quantised already.")
    state = int8_state_dict(model)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.quantization_config = {"quant_method": QUANT_METHOD}

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=folder) as temporary:
        weights = Path(temporary, "model.safetensors")
        save_file(state, weights, metadata={"format": "pt"})
        model.generation_config.save_pretrained(temporary)
        if processor is not None:
            processor.save_pretrained(temporary)
        config.save_pretrained(temporary)
        shutil.copymode(Path(temporary, "config.json"), weights)  # safetensors lets only the owner read
        for path in Path(temporary).iterdir():
            path.replace(folder / path.name)
    write_model_card(folder, config)
    return folder


class Int8StorageConfig(QuantizationConfigMixin):
    """`quantization_config` of a stored model. There is nothing to choose: the file says which tensors are int8."""

    def __init__(self, quant_method: str = QUANT_METHOD):
        self.quant_method = quant_method
        # transformers then forgets the quantization, its conversion included, once the weights are loaded.
        self.dequantize = True


class DequantizeInt8(ConversionOps):
    """`name:int8` times `name:scale` is `name`, in the type that transformers has chosen for it."""

    dtype: torch.dtype  # set by `Int8StorageQuantizer.get_new_dtype`, on the copy that each tensor has

    def convert(self, input_dict, full_layer_name: str, **kwargs) -> dict[str, torch.Tensor]:
        (levels,), (scale,) = input_dict[LEVELS], input_dict[SCALE]
        return {full_layer_name: dequantize(levels, scale, self.dtype)}


class Int8StorageQuantizer(HfQuantizer):
    """Reads what [`save_int8`] wrote into an unchanged model."""

    def validate_environment(self, *args, **kwargs):
        if not self.pre_quantized:
            raise ValueError(
                f"`quantization_config` of {QUANT_METHOD} belongs to a folder that `save_int8` wrote; this one is not."
            )

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        for path in checkpoint_files or []:
            check_file(path)
        return model

    def get_weight_conversions(self):
        return [WeightConverter([LEVELS, SCALE], "", [DequantizeInt8()])]

    def get_new_dtype(self, converter, param, dtype):
        # `dtype` respects `_keep_in_fp32_modules_strict`, which the parameters on the meta device do not.
        if not isinstance(converter, WeightConverter):
            return super().get_new_dtype(converter, param, dtype)
        converter.operations[0].dtype = dtype
        return None

    def is_serializable(self):
        return True

    @property
    def is_trainable(self):
        return True


def check_file(path: str | os.PathLike):
    """Reads the header of a stored model.

    Raises:
        `ValueError`: if the file is no whole safetensors file, or levels and scales do not belong together.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            stored = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not safetensors: {error}") from error
    for name in {name.removesuffix(LEVELS).removesuffix(SCALE) for name in stored if name.endswith((LEVELS, SCALE))}:
        levels, scale = stored.get(name + LEVELS), stored.get(name + SCALE)
        if levels is None or scale is None:
            raise ValueError(f"{path} is damaged: {name} has no {'levels' if levels is None else 'scales'}.")
        (shape, levels_dtype), (scale_shape, scale_dtype) = levels, scale
        if (levels_dtype, scale_dtype) != ("I8", "F32") or scale_shape != [*shape[:1], *[1] * (len(shape) - 1)]:
            raise ValueError(
                f"{path} is damaged: {name} has levels {levels_dtype} {shape} and scales {scale_dtype} {scale_shape}, "
                "which do not belong together."
            )


__all__ = ["save_int8"]
