"""The loss balancer of EnCodec (Défossez et al. 2022, arXiv 2210.13438, section 3.4): weights are gradient shares."""

import torch
from accelerate.utils import reduce


class LossBalancer:
    """Scales the gradients of several losses with respect to one output, so that a weight is a share of the whole.

    With g_i the gradient of loss i by the output, n_i the moving average of its norm (the mean over batch items, over
    processes too) and w_i its weight, the balanced gradient is `sum_i g_i * w_i / (sum_j w_j) / n_i`; j runs over the
    losses given in this call.

    Args:
        weights: of the losses, by name.
        decay: of the moving average, which is unbiased.
    """

    def __init__(self, weights: dict[str, float], decay: float = 0.999):
        self.weights = weights
        self.decay = decay
        self.norms: dict[str, torch.Tensor] = {}  # name -> (sum of decayed norms, sum of their weights)

    def gradient(
        self, losses: dict[str, torch.Tensor], output: torch.Tensor, measure_norms: bool = True
    ) -> torch.Tensor:
        """The balanced gradient, of the shape of `output` (batch, ...); the graph of `losses` is freed.

        `output` must be the only way from the losses to the parameters that train.

        Args:
            losses: scalars, by name.
            output: what they were computed from.
            measure_norms: otherwise the averages stay, and one backward pass serves all losses, where measuring needs
                one for each. A loss that was never measured is measured all the same.
        """
        total_weight = sum(self.weights[name] for name in losses)
        if not measure_norms and losses.keys() <= self.norms.keys():
            weighted = [loss * self._share(name, total_weight, self._norm(name)) for name, loss in losses.items()]
            return torch.autograd.grad(sum(weighted), output)[0]
        balanced = torch.zeros_like(output)
        for position, (name, loss) in enumerate(losses.items(), start=1):
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=position < len(losses))
            norm = self._average_norm(name, gradient.flatten(1).norm(dim=1).mean())
            balanced += gradient * self._share(name, total_weight, norm)
        return balanced

    def _share(self, name: str, total_weight: float, norm: torch.Tensor) -> torch.Tensor:
        return self.weights[name] / total_weight / (norm + 1e-12)

    def _average_norm(self, name: str, norm: torch.Tensor) -> torch.Tensor:
        norm = reduce(norm.detach(), reduction="mean")
        update = torch.stack([norm, torch.ones_like(norm)])
        self.norms[name] = update + self.decay * self.norms[name] if name in self.norms else update
        return self._norm(name)

    def _norm(self, name: str) -> torch.Tensor:
        total, weight = self.norms[name]
        return total / weight

    def state_dict(self) -> dict[str, list[float]]:
        """The moving averages as plain numbers, exact in JSON."""
        return {name: norm.tolist() for name, norm in self.norms.items()}

    def load_state_dict(self, state: dict[str, list[float]], device: torch.device | str = "cpu") -> None:
        self.norms = {name: torch.tensor(norm, device=device) for name, norm in state.items()}
