"""Measures of a codec: how near its reconstruction comes, and how much of its codebooks it uses."""

from dataclasses import dataclass

import numpy as np


def si_snr(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the scale-invariant signal-to-noise ratio in dB (Le Roux et al., 2019, arXiv 1811.02508).

    Both lose their mean; the estimate is split into its projection on the reference and the rest, and the ratio of
    their energies is the result. A gain on the estimate changes nothing.

    Args:
        estimate: (..., N) samples.
        reference: (..., N) samples.

    Returns:
        (...) float64; inf for an exact copy.

    Raises:
        ValueError: The shapes differ, samples are not finite, or the reference is constant (silent).
    """
    estimate, reference = np.asarray(estimate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if estimate.shape != reference.shape or reference.size == 0:
        raise ValueError(f"estimate and reference must have the same shape, got {estimate.shape}, {reference.shape}")
    if not (np.isfinite(estimate).all() and np.isfinite(reference).all()):
        raise ValueError("estimate or reference holds NaN or infinite samples")
    estimate = estimate - estimate.mean(axis=-1, keepdims=True)
    reference = reference - reference.mean(axis=-1, keepdims=True)
    energy = np.square(reference).sum(axis=-1, keepdims=True)
    if not (energy > 0).all():
        raise ValueError("reference is silent: no ratio to it exists")
    target = (estimate * reference).sum(axis=-1, keepdims=True) / energy * reference
    with np.errstate(divide="ignore"):
        return 10 * np.log10(np.square(target).sum(axis=-1) / np.square(estimate - target).sum(axis=-1))


@dataclass(frozen=True)
class CodebookUsage:
    """What one codebook was used for.

    Attributes:
        entropy_bits: Entropy of the codes; log2(codebook size) if all are used alike.
        perplexity: 2 ** entropy_bits, the number of codes that would do if used alike.
        used: Share of the codes that occur at all.
    """

    entropy_bits: float
    perplexity: float
    used: float


class CodebookStatistics:
    """Counts the codes of each codebook over a stream of sounds."""

    def __init__(self, num_codebooks: int, codebook_size: int):
        self.counts = np.zeros((num_codebooks, codebook_size), dtype=np.int64)

    def update(self, audio_codes: np.ndarray) -> None:
        """Add (..., K, T) codes. Raises `ValueError` if K or a code does not fit."""
        num_codebooks, codebook_size = self.counts.shape
        audio_codes = np.asarray(audio_codes)
        if audio_codes.ndim < 2 or audio_codes.shape[-2] != num_codebooks:
            raise ValueError(f"audio_codes must have shape (..., {num_codebooks}, T), got {audio_codes.shape}")
        if audio_codes.size and not 0 <= audio_codes.min() <= audio_codes.max() < codebook_size:
            raise ValueError(
                f"audio_codes must lie in 0 ... {codebook_size - 1}, got {audio_codes.min()} ... {audio_codes.max()}"
            )
        for codebook, codes in enumerate(np.moveaxis(audio_codes, -2, 0)):
            self.counts[codebook] += np.bincount(codes.ravel(), minlength=codebook_size)

    def compute(self) -> list[CodebookUsage]:
        """Return the usage of each codebook. Raises `ValueError` if nothing was counted."""
        if not self.counts.any():
            raise ValueError("no codes were counted")
        return [self._usage(counts) for counts in self.counts]

    @staticmethod
    def _usage(counts: np.ndarray) -> CodebookUsage:
        shares = counts[counts > 0] / counts.sum()
        entropy = float(-(shares * np.log2(shares)).sum())
        return CodebookUsage(entropy, 2.0**entropy, len(shares) / len(counts))
