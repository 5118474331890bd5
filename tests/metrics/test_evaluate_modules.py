"""The metrics as modules of the `evaluate` library, loaded from the package's folder without a network."""

import evaluate
import numpy as np
import pytest
from testing_utils import FIXTURES

from audiogen_hf.audio_utils import read_audio, resample
from audiogen_hf.metrics import (
    frechet_audio_distance,
    kl_divergence,
    load_backbone,
    metric_path,
    text_consistency,
)


def sound(name: str, seconds: float = 1.5) -> np.ndarray:
    return read_audio(FIXTURES / "metrics" / name)[0][: int(seconds * 16_000)]


@pytest.fixture(scope="module")
def yamnet():
    return load_backbone("yamnet")


def test_fad_of_embeddings_equals_the_function_for_sets_of_different_size():
    rng = np.random.default_rng(0)
    predictions, references = rng.standard_normal((50, 8)), rng.standard_normal((40, 8)) + 1
    fad = evaluate.load(metric_path("fad"), "embeddings")
    for start in (0, 25):
        fad.add_batch(predictions=predictions[start : start + 25], references=[])
    fad.add_batch(references=references, predictions=None)
    result = fad.compute()
    assert result["fad"] == pytest.approx(frechet_audio_distance(predictions, references), rel=1e-5)  # float32 rows
    low, high = result["fad_confidence_interval"]
    assert low < result["fad"] < high
    assert result["fad_infinity"] < result["fad"]


def test_fad_and_kld_of_sounds_equal_the_functions(yamnet):
    predictions, references = (
        [sound("rain_0.ogg"), sound("car_horn.flac")],
        [sound("rain_1.ogg"), sound("engine_0.ogg")],
    )
    features = [[yamnet.audio_features(each, 16_000) for each in side] for side in (predictions, references)]

    fad = evaluate.load(metric_path("fad")).compute(
        predictions=predictions, references=references, sampling_rate=16_000
    )
    expected = frechet_audio_distance(*(np.vstack([each.embeddings for each in side]) for side in features))
    assert fad["fad"] == pytest.approx(expected, rel=1e-6)

    kld = evaluate.load(metric_path("kld")).compute(
        predictions=predictions, references=references, sampling_rate=16_000
    )
    generated, target = (np.stack([each.probabilities for each in side]) for side in features)
    assert kld["kld"] == pytest.approx(kl_divergence(target, generated).mean(), rel=1e-6)


def test_kld_of_distributions_equals_the_function():
    rng = np.random.default_rng(0)
    generated, target = rng.dirichlet(np.ones(6), 9), rng.dirichlet(np.ones(6), 9)
    result = evaluate.load(metric_path("kld"), "probabilities").compute(predictions=generated, references=target)
    assert result["kld"] == pytest.approx(kl_divergence(target, generated).mean(), rel=1e-5)


def test_consistency_of_embeddings_equals_the_function():
    rng = np.random.default_rng(0)
    audio, text = rng.standard_normal((9, 4)), rng.standard_normal((9, 4))
    metric = evaluate.load(metric_path("text_consistency"), "embeddings")
    result = metric.compute(predictions=audio, references=text)
    assert result["text_consistency"] == pytest.approx(text_consistency(text, audio).mean(), rel=1e-5)


def test_sound_of_another_rate_is_resampled_only_if_allowed():
    fast = resample(sound("rain_0.ogg"), 16_000, 32_000)
    pair = {"predictions": [sound("rain_0.ogg")], "references": [sound("rain_0.ogg")], "sampling_rate": 16_000}
    assert evaluate.load(metric_path("kld")).compute(**pair)["kld"] == pytest.approx(0, abs=1e-3)
    pair = {"predictions": [fast], "references": [fast], "sampling_rate": 32_000}
    with pytest.raises(ValueError, match=r"predictions\[0\] has 32000 Hz, yamnet takes 16000 Hz"):
        evaluate.load(metric_path("kld")).compute(**pair, allow_resampling=False)
    assert evaluate.load(metric_path("kld")).compute(**pair)["kld"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([np.ones(16_000)], [np.zeros(16_000)], r"references\[0\] is silent"),
        ([np.ones(16_000), np.full(16_000, np.nan)], [np.ones(16_000)] * 2, r"predictions\[1\] holds NaN"),
        ([np.ones(16_000)], [np.ones(16_000)] * 2, "Mismatch in the number of predictions"),
    ],
)
def test_sounds_that_would_spoil_the_mean_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        evaluate.load(metric_path("kld")).compute(predictions=predictions, references=references, sampling_rate=16_000)


def test_a_missing_rate_and_a_backbone_without_classes_are_refused():
    pair = {"predictions": [np.ones(16_000)], "references": [np.ones(16_000)]}
    with pytest.raises(ValueError, match="sampling_rate must be given"):
        evaluate.load(metric_path("kld")).compute(**pair)
    with pytest.raises(ValueError, match="clap has no classes; use yamnet, passt, ast"):
        evaluate.load(metric_path("kld"), "clap").compute(**pair, sampling_rate=48_000)


def test_there_is_no_other_module():
    with pytest.raises(ValueError, match="one of fad, kld, text_consistency; got 'wer'"):
        metric_path("wer")
