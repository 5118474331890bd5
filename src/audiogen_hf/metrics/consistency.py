"""Text-audio consistency: the cosine between the embeddings of a text and of the sound made from it."""

import numpy as np


def text_consistency(text_embeddings: np.ndarray, audio_embeddings: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of embeddings, in [-1, 1].

    Args:
        text_embeddings: (N, D), from a model that embeds text and sound in one space, such as CLAP.
        audio_embeddings: (N, D).

    Returns:
        (N,) float64.

    Raises:
        ValueError: The shapes differ, there are no pairs, or an embedding is zero or not finite.
    """
    text_embeddings = _unit_rows("text_embeddings", text_embeddings)
    audio_embeddings = _unit_rows("audio_embeddings", audio_embeddings)
    if text_embeddings.shape != audio_embeddings.shape:
        raise ValueError(
            f"text_embeddings and audio_embeddings must have the same shape, got {text_embeddings.shape} and "
            f"{audio_embeddings.shape}"
        )
    return (text_embeddings * audio_embeddings).sum(axis=1)


def _unit_rows(name: str, embeddings: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or embeddings.size == 0:
        raise ValueError(f"{name} must have shape (N, D) with N > 0, got {embeddings.shape}")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        row = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise ValueError(f"{name} must be finite and not zero, row {row} is neither")
    return embeddings / lengths
