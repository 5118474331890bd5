"""Cross entropy and perplexity on the validation clips."""

import math
from collections.abc import Callable, Iterable

import torch
from accelerate.utils import reduce
from torch import nn

from .data import Inputs


@torch.no_grad()
def evaluate(
    language_model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    encode: Callable[[dict[str, torch.Tensor]], Inputs],
    count_targets: Callable[[torch.Tensor], torch.Tensor],
    num_parts: int = 1,
) -> dict[str, float]:
    """Cross entropy of each codebook over all its cells, whatever the batches and processes they are spread over.

    Args:
        language_model: a `LanguageModel`, as `accelerator.prepare` gave it.
        batches: those of this process.
        encode: makes the inputs of a batch.
        count_targets: (B, K, T) labels to the number of cells of each codebook, (K,).
        num_parts: parts in which a batch passes the model.

    Returns:
        As `cross_entropies` gives them.
    """
    language_model.eval()
    totals = 0.0
    for batch in batches:
        for inputs in encode(batch).split(num_parts):
            num_targets = count_targets(inputs["labels"])
            _, per_codebook = language_model(**inputs)
            totals = totals + torch.stack([per_codebook * num_targets, num_targets])
    language_model.train()
    entropy, num_targets = reduce(totals, reduction="sum")
    if not num_targets.any():
        raise ValueError("validation_data: it has no usable clip")
    return cross_entropies(entropy / num_targets)


def cross_entropies(per_codebook: torch.Tensor) -> dict[str, float]:
    """Figures of (K,) cross entropies in nats, named as AudioCraft names them: the mean over codebooks `ce`, each
    codebook's `ce_q1` to `ce_qK`, and their exponentials `ppl`, `ppl_q1`, ..."""
    values = {"": per_codebook.mean().item()} | {f"_q{k}": ce for k, ce in enumerate(per_codebook.tolist(), start=1)}
    figures = {f"ce{suffix}": value for suffix, value in values.items()}
    return figures | {f"ppl{suffix}": _exp(value) for suffix, value in values.items()}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
