"""Residual vector quantization while it learns: what transformers' EnCodec quantizer does, plus codebook updates.

The codebooks, their averages and cluster sizes live in the buffers of `EncodecModel`; nothing is kept here.
"""

from typing import NamedTuple

import torch
from accelerate.utils import broadcast, gather, reduce
from torch.nn import functional as F
from transformers.models.encodec.modeling_encodec import EncodecEuclideanCodebook, EncodecResidualVectorQuantizer


class QuantizerOutput(NamedTuple):
    """
    quantized: (batch, dim, frames), the sum of the chosen codes; its gradient passes straight to the input.
    codes: (batch, codebooks, frames), int64.
    commitment_loss: scalar, mean squared distance between each residual and its code, averaged over codebooks.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    commitment_loss: torch.Tensor


class QuantizerTrainer:
    """Quantizes with straight-through gradients and moves the codebooks by exponential moving averages.

    Codebooks follow van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1) in the residual form of SoundStream
    (arXiv 2107.03312, algorithm 1). A code used less than `dead_code_ratio` times as often as under uniform use is
    replaced by a vector of the present batch and then counts as used evenly, as in Moshi (arXiv 2410.00037).
    Statistics are summed over processes, so that every process holds the same codebooks, those of the whole batch.

    Args:
        quantizer: the quantizer of an `EncodecModel`; its buffers are updated in place.
        decay: decay of the moving averages of cluster sizes and sums.
        dead_code_ratio: 0 switches replacement off.
        dead_code_interval: updates between two looks for dead codes.
        seed: of the vectors that replace dead codes.
    """

    def __init__(
        self,
        quantizer: EncodecResidualVectorQuantizer,
        decay: float = 0.99,
        dead_code_ratio: float = 0.1,
        dead_code_interval: int = 5,
        seed: int = 0,
    ):
        self.quantizer = quantizer
        self.decay = decay
        self.dead_code_ratio = dead_code_ratio
        self.dead_code_interval = dead_code_interval
        self.seed = seed

    @property
    def codebooks(self) -> list[EncodecEuclideanCodebook]:
        return [layer.codebook for layer in self.quantizer.layers]

    def quantize(self, hidden_states: torch.Tensor) -> tuple[QuantizerOutput, torch.Tensor]:
        """Quantize (batch, dim, frames); also returns the residual before each codebook, (codebooks, vectors, dim)."""
        residual = hidden_states
        quantized = torch.zeros_like(hidden_states)
        codes, residuals, distances = [], [], []
        for layer in self.quantizer.layers:
            residuals.append(residual.detach().transpose(1, 2).flatten(0, 1))
            codes.append(layer.encode(residual.detach()))
            chosen = layer.decode(codes[-1])
            distances.append(F.mse_loss(residual, chosen))
            residual = residual - chosen
            quantized = quantized + chosen
        quantized = hidden_states + (quantized - hidden_states).detach()
        output = QuantizerOutput(quantized, torch.stack(codes, dim=1), torch.stack(distances).mean())
        return output, torch.stack(residuals)

    @torch.no_grad()
    def update_codebooks(self, codes: torch.Tensor, residuals: torch.Tensor, step: int) -> None:
        """Move the codebooks towards the vectors that chose them.

        Args:
            codes: (batch, codebooks, frames), as `quantize` gave them.
            residuals: (codebooks, batch * frames, dim), as `quantize` gave them.
            step: number of the update, from 1; it times and seeds the replacement of dead codes.
        """
        codes = codes.transpose(0, 1).flatten(1)
        num_codebooks, _, dim = residuals.shape
        # One tensor of sums, with the counts in its last column, so that processes exchange a single message.
        statistics = residuals.new_zeros(num_codebooks, self.quantizer.codebook_size, dim + 1)
        for k in range(num_codebooks):
            statistics[k, :, :dim].index_add_(0, codes[k], residuals[k])
            statistics[k, :, dim] = torch.bincount(codes[k], minlength=self.quantizer.codebook_size)
        statistics = reduce(statistics, reduction="sum")
        for codebook, sums in zip(self.codebooks, statistics, strict=True):
            codebook.embed_avg.lerp_(sums[:, :dim], 1 - self.decay)
            codebook.cluster_size.lerp_(sums[:, dim], 1 - self.decay)
            codebook.embed.copy_(codebook.embed_avg / _smoothed(codebook.cluster_size)[:, None])

        if self.dead_code_ratio > 0 and step % self.dead_code_interval == 0:
            # (codebooks, vectors of all processes, dim), in the order of processes.
            candidates = gather(residuals.transpose(0, 1).contiguous()).transpose(0, 1)
            generator = torch.Generator().manual_seed(self.seed + step)
            for codebook, vectors in zip(self.codebooks, candidates, strict=True):
                order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
                self._replace_dead_codes(codebook, vectors[order])

    def _replace_dead_codes(self, codebook: EncodecEuclideanCodebook, vectors: torch.Tensor) -> None:
        even_use = codebook.cluster_size.mean()
        dead = codebook.cluster_size < self.dead_code_ratio * even_use
        # The n-th dead code takes the n-th vector: no branch on how many there are, and no vector twice in a batch.
        new = vectors[(dead.cumsum(0) - 1).clamp_min(0) % len(vectors)]
        codebook.embed.copy_(torch.where(dead[:, None], new, codebook.embed))
        codebook.embed_avg.copy_(torch.where(dead[:, None], new * even_use, codebook.embed_avg))
        codebook.cluster_size.copy_(torch.where(dead, even_use, codebook.cluster_size))

    @torch.no_grad()
    def initialize_codebooks(self, vectors: torch.Tensor, vectors_per_update: int, iterations: int) -> None:
        """Start the codebooks at k-means centres, each codebook at those of what the ones before it leave.

        Args:
            vectors: (vectors, dim) of encoder output on this process; k-means sees those of all processes.
            vectors_per_update: vectors in one training batch, over all processes; scales the first cluster sizes.
            iterations: of k-means.
        """
        residual = gather(vectors.contiguous())
        generator = torch.Generator().manual_seed(self.seed)
        for codebook in self.codebooks:
            centres, counts = kmeans(residual, self.quantizer.codebook_size, iterations, generator)
            # Processes may round differently; all take the main one's.
            codebook.embed.copy_(broadcast(centres))
            # An empty cluster counts as one vector: its centre would otherwise be forgotten at the first update.
            counts = counts.clamp_min(1).to(codebook.cluster_size.dtype) * (vectors_per_update / len(residual))
            codebook.cluster_size.copy_(broadcast(counts))
            codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[:, None])
            residual = residual - codebook.decode(codebook.quantize(residual))


def _smoothed(cluster_size: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """Cluster sizes with Laplace smoothing; their sum stays."""
    total = cluster_size.sum()
    return (cluster_size + epsilon) / (total + len(cluster_size) * epsilon) * total


def kmeans(
    vectors: torch.Tensor, num_clusters: int, iterations: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm from random vectors; an empty cluster keeps its centre.

    Args:
        vectors: (vectors, dim).
        num_clusters: if there are fewer vectors, some are start centres more than once.
        iterations: how many times the centres move.
        generator: of the start centres, on the CPU.

    Returns:
        centres, (num_clusters, dim), and how many vectors were nearest to each at the last move, int64.
    """
    order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
    centres = vectors[order[torch.arange(num_clusters, device=vectors.device) % len(vectors)]]
    counts = torch.zeros(num_clusters, dtype=torch.int64, device=vectors.device)
    for _ in range(iterations):
        # Nearest centre: |v - c|^2 without |v|^2, which is the same for every centre.
        nearest = torch.addmm(centres.pow(2).sum(1), vectors, centres.T, alpha=-2).argmin(dim=1)
        counts = torch.bincount(nearest, minlength=num_clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres, counts
