"""Confidence interval of a mean over clips, by the bootstrap."""

import numpy as np


def bootstrap_mean_interval(
    values: np.ndarray, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval (Efron, 1979) of the mean of (N,) values, one a clip.

    None if N < 2: one clip says nothing of its spread.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
