"""What acts on the scores and on the loop at each step: guidance, seeded draws, the progress bar."""

from collections.abc import Sequence

import torch
from transformers.generation import LogitsProcessor, StoppingCriteria

Generators = torch.Generator | Sequence[torch.Generator]


class GuidanceLogitsProcessor(LogitsProcessor):
    """Classifier-free guidance, `uncond + (cond - uncond) * scale`, for any scale.

    The library's processor takes scales above 1 only. `scores` has twice the rows of `input_ids`: the conditional
    half, then the unconditional (or negative) one.
    """

    def __init__(self, guidance_scale: float):
        self.guidance_scale = guidance_scale

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        cond, uncond = scores.chunk(2)
        return uncond + (cond - uncond) * self.guidance_scale


class GeneratorLogitsProcessor(LogitsProcessor):
    """Draws the next codes from `torch.Generator`s and leaves only them possible, so that argmax returns them.

    With one generator, draws equal those of `torch.multinomial` over all rows. With one a sample, a sample's draws
    depend on nothing but its own generator: none is taken while its sound prompt still fills the columns.
    """

    def __init__(self, generator: Generators, num_codebooks: int, first_columns: Sequence[int]):
        self.generators = generator
        self.num_codebooks = num_codebooks
        self.first_columns = first_columns

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        probabilities = scores.softmax(dim=-1)
        # The exponential race of `torch.multinomial`: the smallest of q / p wins, q exponentially distributed.
        if isinstance(self.generators, torch.Generator):
            noise = _exponential_like(probabilities, self.generators)
        else:
            noise = torch.ones_like(probabilities)
            rows = noise.split(self.num_codebooks)
            for sample, generator in enumerate(self.generators):
                if input_ids.shape[1] >= self.first_columns[sample]:
                    rows[sample].copy_(_exponential_like(rows[sample], generator))
        drawn = (probabilities / noise).argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def _exponential_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
    return noise.exponential_(generator=generator).to(tensor.device)


class ProgressBar(StoppingCriteria):
    """A tqdm bar over the decoding steps; stops nothing."""

    def __init__(self, total: int):
        from tqdm.auto import tqdm

        self.bar = tqdm(total=total, unit="frame", desc="Generating")

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        self.bar.update()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
