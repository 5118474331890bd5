"""Exponential moving average of a module's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


class ExponentialMovingAverage:
    """Averages a module's trainable parameters and saved floating point buffers (such as codebooks) over its updates.

    The average is unbiased, as in AudioCraft: after n updates the weight of update i is `decay ** (n - i)`, divided by
    the sum of these weights, so that the starting weights do not linger. Averages are kept in float32.

    Args:
        module: the module to follow; its tensors give names, shapes and devices.
        decay: in [0, 1); 0.99 averages over about the last hundred updates.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay: got {decay}, takes a number of at least 0 and below 1")
        self.decay = decay
        self.total_weight = 0.0
        saved = module.state_dict().keys()
        averaged = {name: p for name, p in module.named_parameters() if p.requires_grad}
        averaged |= {name: b for name, b in module.named_buffers() if name in saved and b.is_floating_point()}
        self.averages = {name: tensor.detach().float().clone() for name, tensor in averaged.items()}

    def _tensors(self, module: nn.Module) -> dict[str, torch.Tensor]:
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        return {name: tensors[name].detach() for name in self.averages}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Add the module's present weights to the average."""
        self.total_weight = self.total_weight * self.decay + 1
        new = [tensor.float() for tensor in self._tensors(module).values()]
        torch._foreach_lerp_(list(self.averages.values()), new, 1 / self.total_weight)

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Give the module the averaged weights inside the block, and its own back after it."""
        tensors = self._tensors(module)
        own = {name: tensor.clone() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            tensor.copy_(self.averages[name])
        try:
            yield
        finally:
            for name, tensor in tensors.items():
                tensor.copy_(own[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Averages by name, and their total weight (float64); all tensors, so that safetensors can hold them.

        Averages of sharded weights come whole; every process takes part in that.
        """
        averages = {name: _whole(average) for name, average in self.averages.items()}
        return {**averages, "total_weight": torch.tensor(self.total_weight, dtype=torch.float64)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave; `ValueError` if it is of another model."""
        different = sorted(state.keys() ^ {*self.averages, "total_weight"})
        if different:
            raise ValueError(f"the averaged weights are of another model; the first name that differs: {different[0]}")
        self.total_weight = state["total_weight"].item()
        for name, average in self.averages.items():
            new = state[name].to(average.device)
            if isinstance(average, DTensor):
                new = distribute_tensor(new, average.device_mesh, average.placements)
            average.copy_(new)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
