"""The Fréchet distance against scipy's matrix square root, and what its streaming form promises."""

import threading

import numpy as np
import pytest
import scipy.linalg

from audiogen_hf.metrics import (
    GaussianStatistics,
    GroupedMoments,
    bootstrap_frechet_interval,
    extrapolate_frechet_distance,
    frechet_audio_distance,
    frechet_distance,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def formula(first: np.ndarray, second: np.ndarray) -> float:
    """The definition, with scipy's matrix square root of the product of the covariances."""
    shift = first.mean(axis=0) - second.mean(axis=0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root))


def collect(embeddings: np.ndarray, windows: int = 2, **kwargs) -> GroupedMoments:
    moments = GroupedMoments(**kwargs)
    for index, start in enumerate(range(0, len(embeddings), windows)):
        moments.update(embeddings[start : start + windows], index)
    return moments


@pytest.mark.parametrize(("count", "dim"), [(500, 32), (200, 128), (40, 64)])
def test_distance_equals_scipys_formula(rng, count, dim):
    first = rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) + 3
    second = rng.standard_normal((count + 7, dim)) @ rng.standard_normal((dim, dim))
    assert frechet_audio_distance(first, second) == pytest.approx(formula(first, second), rel=1e-6)
    assert frechet_audio_distance(second, first) == pytest.approx(frechet_audio_distance(first, second), rel=1e-12)


def test_distance_between_normals_in_one_dimension_is_the_textbooks():
    # Between N(m1, s1²) and N(m2, s2²) it is (m1 - m2)² + (s1 - s2)².
    first = GaussianStatistics(count=11, mean=np.array([1.0]), scatter=np.array([[10 * 9.0]]))
    second = GaussianStatistics(count=5, mean=np.array([3.0]), scatter=np.array([[4 * 25.0]]))
    assert frechet_distance(first, second) == pytest.approx(4 + 4, rel=1e-12)


@pytest.mark.parametrize("count", [3, 50, 400])
def test_equal_sets_have_no_distance_whatever_their_order(rng, count):
    embeddings = rng.standard_normal((count, 64)) * 10
    scale = np.trace(np.cov(embeddings, rowvar=False))
    assert frechet_audio_distance(embeddings, embeddings) == 0
    assert frechet_audio_distance(embeddings, rng.permutation(embeddings)) < 1e-12 * scale


def test_singular_covariances_need_no_correction(rng):
    first, second = rng.standard_normal((100, 16)), rng.standard_normal((90, 16)) + 1
    expected = frechet_audio_distance(first, second)
    silent = np.zeros((100, 8))
    assert frechet_audio_distance(np.hstack([first, silent]), np.hstack([second, silent[:90]])) == pytest.approx(
        expected
    )
    assert frechet_audio_distance(first, np.ones((5, 16))) == pytest.approx(
        np.square(first.mean(axis=0) - 1).sum() + first.var(axis=0, ddof=1).sum()
    )


def test_fewer_vectors_than_dimensions_equal_the_same_vectors_without_empty_dimensions(rng):
    # Five vectors span four directions around their mean; turning the space does not change the distance.
    low = rng.standard_normal((5, 4)), rng.standard_normal((6, 4)) + 2
    turn = np.linalg.qr(rng.standard_normal((300, 300)))[0][:4]
    high = [vectors @ turn for vectors in low]
    assert frechet_audio_distance(*high) == pytest.approx(frechet_audio_distance(*low), rel=1e-9)


def test_streaming_equals_all_at_once_far_from_zero(rng):
    embeddings = rng.standard_normal((333, 12)) + 1e6
    streamed = collect(embeddings, windows=3).total()
    assert streamed.count == 333
    np.testing.assert_allclose(streamed.mean, embeddings.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, np.cov(embeddings, rowvar=False), rtol=1e-8, atol=1e-8)


def test_a_group_drawn_twice_counts_twice(rng):
    first, second = rng.standard_normal((4, 3)), rng.standard_normal((5, 3))
    moments = GroupedMoments(num_groups=2)
    moments.update(first, 0)
    moments.update(second, 1)
    drawn = moments.total(np.array([0, 1, 1]))
    np.testing.assert_allclose(drawn.covariance, np.cov(np.vstack([first, second, second]), rowvar=False))


def test_processes_that_share_the_clips_get_what_one_would(rng):
    embeddings = rng.standard_normal((60, 5)) + 100
    expected = collect(embeddings, num_groups=8)
    parts = [GroupedMoments(num_groups=8) for _ in range(3)]  # the third sees no clip
    for index, start in enumerate(range(0, 60, 2)):
        parts[index % 2].update(embeddings[start : start + 2], index)

    barrier, given = threading.Barrier(3), {}

    def run(rank: int) -> None:
        def sum_over_processes(array):
            given[rank] = array
            barrier.wait()
            total = sum(given[other] for other in range(3))
            barrier.wait()
            return total

        parts[rank].reduce(sum_over_processes, dim=5)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    for part in parts:
        np.testing.assert_array_equal(part.counts, expected.counts)
        np.testing.assert_allclose(part.means, expected.means, rtol=1e-12)
        np.testing.assert_allclose(part.scatters, expected.scatters, rtol=1e-9, atol=1e-9)


def test_interval_holds_the_distance_of_a_second_sample(rng):
    # Two sets from each of two normals: the distance of one draw lies in the interval of another about as often as
    # both errors together allow (a difference has √2 times the error: 83 % for 95 % intervals).
    hits = 0
    for _ in range(40):
        sets = [collect(rng.standard_normal((128, 4)) + mean) for mean in (0, 1, 0, 1)]
        low, high = bootstrap_frechet_interval(sets[0], sets[1], num_resamples=50)
        hits += low <= frechet_distance(sets[2].total(), sets[3].total()) <= high
    assert 26 <= hits <= 40


def test_extrapolation_removes_the_bias_of_small_sets(rng):
    dim = 32
    reference = GaussianStatistics.fit(rng.standard_normal((20_000, dim)))
    limits, distances = [], []
    for _ in range(5):
        generated = collect(rng.standard_normal((1000, dim)))
        limit = extrapolate_frechet_distance(generated, reference)
        limits.append(limit.value)
        distances.append(frechet_distance(generated.total(), reference))
        assert limit.r_squared > 0.9
        assert limit.points[-1] == (1000, pytest.approx(distances[-1]))
    # Both sets come from the same normal: the true distance is 0.
    assert abs(np.mean(limits)) < 0.2 * np.mean(distances)


def test_few_clips_have_no_extrapolation_and_one_has_no_interval(rng):
    moments = collect(rng.standard_normal((14, 3)))
    assert len(moments.filled) == 7
    assert extrapolate_frechet_distance(moments, moments.total()) is None
    one = collect(rng.standard_normal((2, 3)))
    assert bootstrap_frechet_interval(one, moments) is None


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((1, 4)), "at least two embeddings"),
        (np.zeros((0, 4)), r"shape \(N, D\) with N > 0, got \(0, 4\)"),
        (np.zeros(4), r"got \(4,\)"),
        (np.full((3, 4), np.nan), "NaN"),
        (np.zeros((3, 5)), "4 and 5|5 and 4"),
    ],
)
def test_bad_embeddings_are_refused(rng, embeddings, message):
    with pytest.raises(ValueError, match=message):
        frechet_audio_distance(rng.standard_normal((6, 4)), embeddings)


def test_dimensions_may_not_change_in_a_stream(rng):
    moments = collect(rng.standard_normal((4, 3)))
    with pytest.raises(ValueError, match="5 dimensions, those before them 3"):
        moments.update(np.zeros((1, 5)), 9)
