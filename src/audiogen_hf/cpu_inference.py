"""The decoder's linear layers for generation on a CPU: packed for oneDNN, or with int8 or int4 weights.

Decoding reads every weight once a step, and a step takes the time of that read where the kernel keeps up. Kernels for
a few rows keep up if weights lie in the order in which they are used; int8 and int4 weights are a half and a quarter
of bfloat16's. All kernels are PyTorch's own.
"""

import functools
import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)


class PackedLinear(nn.Module):
    """A linear layer without bias, its weight in oneDNN's own order: the precision of `nn.Linear`, less time."""

    FEW_ROWS = 2  # the weight is packed for this many: one prompt with guidance

    @staticmethod
    @functools.cache
    def is_available(dtype: torch.dtype) -> bool:
        """Whether PyTorch can pack weights of this type here, which only trying tells.

        It packs float32 on x86, bfloat16 where there is AVX512 or AVX-NE-CONVERT; builds without oneDNN, as those for
        macOS, pack nothing.
        """
        try:
            PackedLinear(torch.zeros(16, 16, dtype=dtype))
        except (AttributeError, RuntimeError):
            return False
        return True

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), self.FEW_ROWS)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(hidden_states, self.weight, None, "none", [], "")

    def dequantize(self) -> torch.Tensor:
        """The weight (out, in) in the usual order."""
        return self.weight.to_dense()


class Int8Linear(nn.Module):
    """A linear layer without bias, one scale an output: `weight ~ int8 * scale`."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.weight = nn.Buffer((weight / scale).round().to(torch.int8))
        self.scale = nn.Buffer(scale[:, 0].to(torch.bfloat16))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = torch._weight_int8pack_mm(hidden_states.flatten(0, -2), self.weight, self.scale)
        return rows.view(*hidden_states.shape[:-1], -1)

    def dequantize(self) -> torch.Tensor:
        """The float32 weight (out, in) that the layer stands for."""
        return self.weight.float() * self.scale.float()[:, None]


class Int4Linear(nn.Module):
    """A linear layer without bias, one scale and offset a group of inputs: `weight ~ (int4 - 8) * scale + offset`."""

    GROUP_SIZES = (128, 64, 32)

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        weight = weight.detach().float()
        outputs, inputs = weight.shape
        self.group_size = next(size for size in self.GROUP_SIZES if inputs % size == 0)
        groups = weight.view(outputs, -1, self.group_size)
        low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-12).to(torch.bfloat16)
        offset = (low + 8 * scale.float()).to(torch.bfloat16)
        levels = ((groups - offset.float()) / scale.float()).round().add(8).clamp(0, 15)
        levels = levels.to(torch.int32).view(outputs, inputs)
        self.weight = nn.Buffer(torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1))
        # The kernel takes (groups, outputs, 2).
        self.scale_and_offset = nn.Buffer(torch.cat([scale, offset], dim=-1).transpose(0, 1).contiguous())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = torch.ops.aten._weight_int4pack_mm_for_cpu(
            hidden_states.flatten(0, -2), self.weight, self.group_size, self.scale_and_offset
        )
        return rows.view(*hidden_states.shape[:-1], -1)

    def dequantize(self) -> torch.Tensor:
        """The float32 weight (out, in) that the layer stands for."""
        identity = torch.eye(self.scale_and_offset.shape[0] * self.group_size, dtype=torch.bfloat16)
        return self.forward(identity).float().t()


# What a precision is made of: the layer, and the type of the activations and of all that is no linear layer.
PRECISIONS = {
    "float32": (PackedLinear, torch.float32),
    "bfloat16": (PackedLinear, torch.bfloat16),
    "int8": (Int8Linear, torch.bfloat16),
    "int4": (Int4Linear, torch.bfloat16),
}


@torch.no_grad()
def optimize_for_cpu(model, precision: str = "float32"):
    """Replaces the decoder's linear layers by faster ones, in place, for generation on a CPU.

    Text encoder and tokenizer stay as they are. Memory never holds two models: layers are replaced one by one. The
    model can no longer be saved, trained or moved to another device.

    Args:
        model ([`AudioGenForConditionalGeneration`]): A model on a CPU.
        precision (`str`, *optional*, defaults to `"float32"`): `"float32"` and `"bfloat16"` pack the weights, where
            PyTorch can do that for this CPU, and otherwise change their type only, bfloat16 with a warning;
            `"int8"` rounds them to one scale an output, `"int4"` to a scale and an offset a group of 128 inputs (its
            heads, 1% of the weights, to int8: they choose the codes).

    Returns:
        The model.

    Raises:
        `ValueError`: for another precision or device, or a model that is optimised or quantised already.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if model.device.type != "cpu":
        raise ValueError(f"`optimize_for_cpu` takes a model on a CPU, this one is on {model.device}.")
    if getattr(model, "cpu_precision", None) or getattr(model, "hf_quantizer", None):
        raise ValueError("This model is optimised or quantised already.")
    width = model.config.decoder.hidden_size
    if precision == "int4" and width % min(Int4Linear.GROUP_SIZES):
        raise ValueError(
            f"int4 takes widths that are multiples of {min(Int4Linear.GROUP_SIZES)}, this one is {width}."
        )

    layer_class, dtype = PRECISIONS[precision]
    if layer_class is not PackedLinear or PackedLinear.is_available(dtype):
        linears = [name for name, module in model.decoder.named_modules() if isinstance(module, nn.Linear)]
        for name in linears:
            weight = model.decoder.get_submodule(name).weight
            model.decoder.set_submodule(name, layer_class(weight.to(dtype)))
        head_class = Int8Linear if layer_class is Int4Linear else layer_class
        model.lm_head = head_class(model.lm_head.weight.to(dtype))
    elif dtype == torch.bfloat16:
        logger.warning("PyTorch has no fast bfloat16 for this CPU: float32 and int8 take less time here.")
    for part in (model.enc_to_dec_proj, model.decoder, model.lm_head):
        part.to(dtype)
    model.cpu_precision = precision
    return model


__all__ = ["optimize_for_cpu"]
