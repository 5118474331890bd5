"""KL divergence between the tags of paired sounds: target sound against generated sound."""

import numpy as np

DIRECTION = "KL(target || generated)"
EPSILON = 1e-6


def kl_divergence(target: np.ndarray, generated: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """Return KL(target || generated) of each pair, in nats: sum over classes of t (ln t - ln(g + epsilon)).

    `epsilon` keeps a class that the generated sound has not at all from making the sum infinite; 1e-6 is AudioCraft's.
    With it a pair of equal distributions scores a little under 0 (by at most classes * epsilon).

    Args:
        target: (N, C) probabilities of the reference sounds, each row summing to 1.
        generated: (N, C) probabilities of the generated sounds.

    Returns:
        (N,) float64.

    Raises:
        ValueError: The shapes differ, there are no pairs, or a row is not a probability distribution.
    """
    target = _check_distributions("target", target)
    generated = _check_distributions("generated", generated)
    if target.shape != generated.shape:
        raise ValueError(f"target and generated must have the same shape, got {target.shape} and {generated.shape}")
    log_target = np.log(target, out=np.zeros_like(target), where=target > 0)
    return (target * (log_target - np.log(generated + epsilon))).sum(axis=1)


def _check_distributions(name: str, probabilities: np.ndarray) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.size == 0:
        raise ValueError(f"{name} must have shape (N, C) with N > 0, got {probabilities.shape}")
    is_distribution = (probabilities >= 0).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) < 1e-3)
    if not is_distribution.all():
        row = int(np.flatnonzero(~is_distribution)[0])
        raise ValueError(
            f"{name} must hold probabilities that sum to 1 in each row; row {row} sums to "
            f"{probabilities[row].sum():.6g} with a minimum of {probabilities[row].min():.6g}"
        )
    return probabilities
