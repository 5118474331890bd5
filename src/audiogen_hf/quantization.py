"""Weight-only quantisation of the decoder for CPUs: PyTorch's own int8 and int4 kernels, no other library.

Decoding reads every weight once a step, so that a step takes the time of that read: weights of a half or a quarter
of the size take about a half or a quarter of it. Activations stay bfloat16, the kernels' fast type.
"""

import torch
from torch import nn


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
        return rows.unflatten(0, hidden_states.shape[:-1])

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
        return rows.unflatten(0, hidden_states.shape[:-1])

    def dequantize(self) -> torch.Tensor:
        """The float32 weight (out, in) that the layer stands for."""
        identity = torch.eye(self.scale_and_offset.shape[0] * self.group_size, dtype=torch.bfloat16)
        return self.forward(identity).float().t()


PRECISIONS = {"int8": Int8Linear, "int4": Int4Linear}


@torch.no_grad()
def quantize(model, precision: str):
    """Replaces the decoder's linear layers by quantised ones, in place, for generation on a CPU.

    The rest of the decoder becomes bfloat16; text encoder and tokenizer stay as they are. With `"int4"`, the heads
    are int8: they choose the codes, and are 1% of the weights. A quantised model is not saved or trained.

    Args:
        model ([`AudioGenForConditionalGeneration`]): A model on a CPU.
        precision (`str`): `"int8"` (one scale an output) or `"int4"` (a scale and an offset a group of 128 inputs).

    Returns:
        The model.

    Raises:
        `ValueError`: for another precision or device, or a model that is quantised already.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if model.device.type != "cpu":
        raise ValueError(
            f"`quantize` is for models on a CPU, this one is on {model.device}; on others pass "
            "`quantization_config=` to `from_pretrained`."
        )
    if getattr(model, "quantized_precision", None) or getattr(model, "hf_quantizer", None):
        raise ValueError("This model is quantised already.")
    width = model.config.decoder.hidden_size
    if precision == "int4" and width % min(Int4Linear.GROUP_SIZES):
        raise ValueError(
            f"int4 takes widths that are multiples of {min(Int4Linear.GROUP_SIZES)}, this model's is {width}."
        )
    model.decoder.to(torch.bfloat16)
    model.enc_to_dec_proj.to(torch.bfloat16)
    linears = [(name, module) for name, module in model.decoder.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        model.decoder.set_submodule(name, PRECISIONS[precision](linear.weight))
        linear.weight = None  # freed layer by layer: memory never holds both models
    model.lm_head = Int8Linear(model.lm_head.weight)
    model.quantized_precision = precision
    return model


__all__ = ["quantize"]
