"""Fréchet audio distance between two sets of embeddings: streaming moments, the distance, its error and its limit.

The Fréchet distance between two normal distributions is |m1 - m2|² + Tr(C1 + C2 - 2 (C1 C2)^½) (Dowson and Landau,
1982, https://doi.org/10.1016/0047-259X(82)90077-X); the audio distance (Kilgour et al., 2019, arXiv 1812.08466) is
that between normal distributions fitted to embeddings of sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import blas, lapack

NUM_GROUPS = 32


@dataclass(frozen=True)
class GaussianStatistics:
    """A normal distribution fitted to vectors.

    Attributes:
        count: Number of vectors.
        mean: (D,) float64.
        scatter: (D, D) float64, the sum of outer products of the vectors' differences from `mean`.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def fit(cls, embeddings: np.ndarray) -> GaussianStatistics:
        """Fit (N, D) vectors. Raises `ValueError` unless they are finite, two-dimensional and at least two."""
        moments = GroupedMoments(num_groups=1)
        moments.update(embeddings, 0)
        return moments.total()

    @cached_property
    def covariance(self) -> np.ndarray:
        """(D, D) unbiased covariance, as `numpy.cov` gives it."""
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> np.ndarray:
        """(R, D) matrix A with AᵀA = covariance, R its numerical rank.

        From a Cholesky factorization with pivots, which costs a tenth of an eigendecomposition and next to nothing
        where vectors are few.
        """
        factor, pivots, rank, _ = lapack.dpstrf(self.covariance)
        root = np.zeros((rank, len(self.mean)))
        root[:, pivots - 1] = np.triu(factor[:rank])
        return root


class GroupedMoments:
    """Count, mean and scatter of a stream of vectors, in float64, kept apart for a few groups of clips.

    A group holds every `num_groups`-th clip. The groups are what the bootstrap redraws and what FAD-inf takes subsets
    of, so that neither needs the vectors again: memory is num_groups * D² numbers for any count of clips (270 MB for
    32 groups of 1024 dimensions).

    Groups are merged by the rule of Chan, Golub and LeVeque (1979), which does not cancel where the mean is far from
    zero.
    """

    def __init__(self, num_groups: int = NUM_GROUPS):
        self.num_groups = num_groups
        self.counts = np.zeros(num_groups, dtype=np.int64)
        self.means: np.ndarray | None = None  # (groups, D), allocated when D is known
        self.scatters: np.ndarray | None = None  # (groups, D, D)

    def update(self, embeddings: np.ndarray, clip_index: int) -> None:
        """Add the (windows, D) vectors of one clip. Raises `ValueError` if they are not finite or D changes."""
        embeddings = np.asarray(embeddings, dtype=np.float64)
        if embeddings.ndim != 2 or embeddings.size == 0:
            raise ValueError(f"embeddings must have shape (N, D) with N > 0, got {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings hold NaN or infinite values")
        count, dim = embeddings.shape
        if self.means is None:
            self._allocate(dim)
        if dim != self.means.shape[1]:
            raise ValueError(f"embeddings have {dim} dimensions, those before them {self.means.shape[1]}")

        group = clip_index % self.num_groups
        mean = embeddings.mean(axis=0)
        centred = embeddings - mean
        total = self.counts[group] + count
        shift = mean - self.means[group]
        # One product for the scatter within the clip and that between its mean and the group's, added in place: a
        # temporary (D, D) matrix costs ten times as much. (A symmetric matrix is its transpose, in BLAS's own order.)
        rows = np.vstack([centred, shift * np.sqrt(self.counts[group] * count / total)])
        blas.dgemm(1.0, rows.T, rows.T, beta=1.0, c=self.scatters[group].T, trans_b=True, overwrite_c=True)
        self.means[group] += shift * (count / total)
        self.counts[group] = total

    def _allocate(self, dim: int) -> None:
        self.means = np.zeros((self.num_groups, dim))
        self.scatters = np.zeros((self.num_groups, dim, dim))

    @property
    def filled(self) -> np.ndarray:
        """Indices of the groups that hold vectors."""
        return np.flatnonzero(self.counts)

    def total(self, groups: np.ndarray | None = None) -> GaussianStatistics:
        """Return the statistics of the union of `groups`, by default of all; an index given twice counts twice.

        Raises:
            ValueError: There are fewer than two vectors, so that no covariance exists.
        """
        groups = self.filled if groups is None else groups
        count = int(self.counts[groups].sum())
        if count < 2:
            raise ValueError(f"a Fréchet distance needs at least two embeddings in each set, got {count}")
        groups, repeats = np.unique(groups, return_counts=True)
        counts = self.counts[groups] * repeats
        mean = counts @ self.means[groups] / count
        shifts = self.means[groups] - mean
        scatter = (shifts.T * counts) @ shifts
        for group, repeat in zip(groups, repeats, strict=True):
            scatter += repeat * self.scatters[group]
        return GaussianStatistics(count, mean, scatter)

    def reduce(self, sum_over_processes: Callable[[np.ndarray], np.ndarray], dim: int) -> None:
        """Replace the moments of each process by those of all, given a function that sums an array over processes.

        Sums alone suffice: the counts and means come first, then each process moves its scatter to the common mean.
        `dim` is D, for a process that saw no clip.
        """
        if self.means is None:
            self._allocate(dim)
        counts = sum_over_processes(self.counts)
        sums = sum_over_processes(self.means * self.counts[:, None])
        means = sums / np.maximum(counts, 1)[:, None]
        for group in range(self.num_groups):
            shift = self.means[group] - means[group]
            self.scatters[group] += np.outer(shift, shift) * self.counts[group]
            self.scatters[group] = sum_over_processes(self.scatters[group])
        self.counts, self.means = counts, means


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """Return the Fréchet distance between two fitted normal distributions, in float64.

    Tr((C1 C2)^½) is the sum of the singular values of A1 A2ᵀ, where Ci = AiᵀAi. No matrix square root of a product is
    taken, so that singular covariances (silent dimensions, fewer vectors than dimensions) need no correction.

    Raises:
        ValueError: The dimensions differ.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"embeddings of {len(first.mean)} and {len(second.mean)} dimensions cannot be compared")
    shift = first.mean - second.mean
    overlap = first.root @ second.root.T
    cross = np.linalg.svd(overlap, compute_uv=False).sum() if overlap.size else 0.0  # empty: a constant set
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    distance = float(shift @ shift + spread - 2 * cross)
    rounding = len(shift) * np.finfo(np.float64).eps * spread
    return distance if distance > rounding else 0.0


def frechet_audio_distance(generated: np.ndarray, reference: np.ndarray) -> float:
    """Return the Fréchet audio distance between (N, D) and (M, D) embeddings.

    Raises:
        ValueError: A set has fewer than two vectors or values that are not finite, or the dimensions differ.
    """
    return frechet_distance(GaussianStatistics.fit(generated), GaussianStatistics.fit(reference))


def bootstrap_frechet_interval(
    generated: GroupedMoments,
    reference: GroupedMoments,
    confidence: float = 0.95,
    num_resamples: int = 100,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return a confidence interval of the distance, from groups of clips drawn with replacement in both sets.

    A resample holds fewer different clips than its set, and the distance grows as clips get fewer; so the quantiles of
    the resamples lie above the distance. Their spread alone is used: distance ± z * standard deviation, not below 0.
    None if a set has a single group, hence a single clip.
    """
    from statistics import NormalDist

    if min(len(generated.filled), len(reference.filled)) < 2:
        return None
    rng = np.random.default_rng(seed)
    resamples = [
        frechet_distance(
            generated.total(rng.choice(generated.filled, len(generated.filled))),
            reference.total(rng.choice(reference.filled, len(reference.filled))),
        )
        for _ in range(num_resamples)
    ]
    distance = frechet_distance(generated.total(), reference.total())
    margin = NormalDist().inv_cdf((1 + confidence) / 2) * float(np.std(resamples, ddof=1))
    return max(distance - margin, 0.0), distance + margin


@dataclass(frozen=True)
class FrechetLimit:
    """The distance extrapolated to endless generated clips.

    Attributes:
        value: The intercept of a straight line of distance over 1 / windows.
        r_squared: How well the line fits, at most 1. Well under 0.9 the extrapolation says little.
        points: The (windows, distance) pairs it was fitted to.
    """

    value: float
    r_squared: float
    points: tuple[tuple[int, float], ...]


def extrapolate_frechet_distance(
    generated: GroupedMoments, reference: GaussianStatistics, num_points: int = 16, seed: int = 0
) -> FrechetLimit | None:
    """Extrapolate the distance to an unlimited number of generated clips (FAD-inf).

    The distance of a finite set is too large by about a constant over its size, so it is measured on random subsets
    and a line over 1 / size is followed to 0 (Chong and Forsyth, 2020, arXiv 1911.07023; for sound Gui et al., 2023,
    arXiv 2311.01616). Subsets are a quarter to all of the groups of clips; the reference set stays whole.
    None if the generated set has fewer than eight groups, hence fewer than eight clips.
    """
    groups = generated.filled
    if len(groups) < 8:
        return None
    rng = np.random.default_rng(seed)
    points = []
    for size in np.linspace(len(groups) // 4, len(groups), num_points).round().astype(int):
        subset = generated.total(rng.choice(groups, size, replace=False))
        points.append((subset.count, frechet_distance(subset, reference)))
    inverse_sizes = np.array([1 / count for count, _ in points])
    distances = np.array([distance for _, distance in points])
    slope, intercept = np.polyfit(inverse_sizes, distances, 1)
    residual = np.square(distances - (intercept + slope * inverse_sizes)).sum()
    variation = np.square(distances - distances.mean()).sum()
    r_squared = 1 - residual / variation if variation > 0 else 1.0
    return FrechetLimit(float(intercept), float(r_squared), tuple(points))
