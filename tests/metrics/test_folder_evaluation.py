"""Folders of sounds: figures on real sounds, sounds that cannot be used, presets, the written record."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile
from testing_utils import FIXTURES

from audiogen_hf.audio_utils import read_audio
from audiogen_hf.metrics import (
    PRESETS,
    BackboneUnavailableError,
    FeatureSettings,
    evaluate_folders,
    frechet_audio_distance,
    kl_divergence,
    load_backbone,
)

SOUNDS = FIXTURES / "metrics"


def make_folder(folder, files: dict):
    """A folder of sounds: name -> a fixture's name, or samples at 16 kHz."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            shutil.copy(SOUNDS / content, path)
        else:
            soundfile.write(path, np.asarray(content, dtype=np.float32), 16_000, subtype="FLOAT")
    return folder


@pytest.fixture
def noise():
    return 0.1 * np.random.default_rng(0).standard_normal(32_000)


@pytest.fixture(scope="module")
def backbones():
    return {("yamnet", None): load_backbone("yamnet")}


@pytest.fixture(scope="module")
def rain_against_rain(tmp_path_factory, backbones):
    """Two clips a side, with the generated in place of one and captions; the whole evaluation."""
    folder = tmp_path_factory.mktemp("sounds")
    first = make_folder(folder / "generated", {"a/rain.ogg": "rain_0.ogg", "engine.ogg": "engine_0.ogg"})
    second = make_folder(folder / "references", {"a/rain.ogg": "rain_1.ogg", "engine.ogg": "engine_1.ogg"})
    evaluation = evaluate_folders(first, second, backbones=backbones)
    return folder, evaluation


def features(name: str, backbone, seconds: float):
    samples = read_audio(SOUNDS / name)[0][: round(seconds * 16_000)]
    return backbone.audio_features(samples, 16_000)


def test_figures_equal_those_of_the_functions_on_the_common_length_of_pairs(rain_against_rain, backbones):
    backbone = backbones["yamnet", None]
    seconds = {"rain": 6.0, "engine": 45_449 / 16_000}  # engine_0 is shorter than engine_1
    sides = [
        [features(f"{name}_{number}.ogg", backbone, seconds[name]) for name in ("rain", "engine")] for number in (0, 1)
    ]
    _, evaluation = rain_against_rain
    metrics = evaluation.results["metrics"]
    embeddings = [np.vstack([each.embeddings for each in side]) for side in sides]
    assert metrics["fad"]["value"] == pytest.approx(frechet_audio_distance(*embeddings), rel=1e-6)
    generated, target = (np.stack([each.probabilities for each in side]) for side in sides)
    expected = kl_divergence(target, generated)
    assert metrics["kld"]["value"] == pytest.approx(expected.mean(), rel=1e-6)
    assert {clip["name"]: clip["kld"] for clip in evaluation.clips} == pytest.approx(
        {"a/rain": expected[0], "engine": expected[1]}
    )


def test_the_record_says_what_the_figures_depend_on(rain_against_rain, tmp_path):
    _, evaluation = rain_against_rain
    evaluation.save(tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["metrics"]["kld"]["clips"] == 2
    assert record["preset"] | {"name": "default", "clip_seconds": 10.0} == record["preset"]
    assert record["preset"]["kl_direction"] == "KL(target || generated)"
    assert record["backbones"]["yamnet"]["licence"] == "Apache-2.0"
    assert {"audiogen_hf", "torch", "numpy"} <= set(record["versions"])
    assert record["not_computed"] == {"text_consistency": "2 of 2 generated sounds have no caption, such as a/rain"}
    low, high = record["metrics"]["fad"]["confidence_interval"]
    assert low < record["metrics"]["fad"]["value"] < high
    assert record["metrics"]["fad"]["infinity"] is None  # two clips say nothing of a limit
    assert any("fewer windows than the embedding has dimensions" in warning for warning in record["warnings"])
    assert len((tmp_path / "clips.jsonl").read_text().splitlines()) == 2


def test_half_of_a_rain_is_nearer_to_the_other_half_than_engines_and_noise_are(backbones, noise):
    backbone = backbones["yamnet", None]
    rain = read_audio(SOUNDS / "rain_0.ogg")[0]
    half, other_half = (backbone.audio_features(part, 16_000) for part in np.split(rain, 2))
    engine = features("engine_0.ogg", backbone, seconds=3)
    noise = backbone.audio_features(noise.astype(np.float32), 16_000)

    def distance(other):
        return frechet_audio_distance(half.embeddings, other.embeddings)

    def divergence(other):
        return kl_divergence(half.probabilities[None], other.probabilities[None])[0]

    assert distance(other_half) < 0.5 * min(distance(engine), distance(noise))
    assert divergence(other_half) < 0.5 * min(divergence(engine), divergence(noise))


def test_unusable_sounds_are_counted_and_left_out(tmp_path, backbones, noise):
    nan = noise.copy()
    nan[5] = np.nan
    generated = {
        "good.wav": noise,
        "silent.wav": 1e-5 * noise,
        "nan.wav": nan,
        "short.wav": noise[:1000],
        "pair.wav": noise,
    }
    first = make_folder(tmp_path / "generated", generated)
    (first / "broken.wav").write_bytes(b"no sound")
    references = dict.fromkeys([*generated, "broken.wav"], noise)
    second = make_folder(tmp_path / "references", references | {"pair.wav": 0 * noise})
    results = evaluate_folders(first, second, metrics=["kld"], backbones=backbones).results
    assert results["clips"]["generated"] == {
        "found": 6,
        "used": 2,
        "excluded": {"unreadable": ["broken", "nan"], "silent": ["silent"], "short": ["short"]},
    }
    assert results["clips"]["references"]["excluded"]["silent"] == ["pair"]
    assert results["metrics"]["kld"]["clips"] == 1
    assert results["metrics"]["kld"]["value"] == pytest.approx(0, abs=1e-3)
    assert results["metrics"]["kld"]["confidence_interval"] is None
    assert "4 generated sounds are left out: 1 silent, 2 unreadable, 1 too short" in results["warnings"]


def test_captions_are_read_from_the_metadata_of_either_folder(tmp_path, backbones, noise):
    # The default consistency backbone is not reachable here, so that asking for it shows that the captions were found.
    folder = make_folder(tmp_path / "sounds", {"a.wav": noise, "b.wav": noise})
    (folder / "metadata.csv").write_text("file_name,caption\na.wav,rain\nb.wav,more rain\n")
    with pytest.raises(BackboneUnavailableError, match=r"text_consistency .* clap"):
        evaluate_folders(folder, metrics=["text_consistency"])
    (folder / "metadata.csv").write_text("file_name,caption\na.wav,rain\nb.wav,\n")
    with pytest.raises(ValueError, match=r"row 2: needs file_name and one of text, caption, description"):
        evaluate_folders(folder, folder, backbones=backbones)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["kld"]}, "1 of 2 generated sounds have no reference of their name, such as b"),
        ({"metrics": ["text_consistency"]}, "2 of 2 generated sounds have no caption, such as a"),
        ({"metrics": ["wer"]}, "some of fad, kld, text_consistency; got wer"),
        ({"metrics": []}, "got none"),
        ({"preset": "best"}, "one of default, audiocraft; got 'best'"),
        ({"metrics": ["fad"]}, "fad needs at least two usable clips in each set"),
    ],
)
def test_what_cannot_be_computed_is_said(tmp_path, backbones, noise, options, message):
    first = make_folder(tmp_path / "generated", {"a.wav": noise, "b.wav": noise})
    second = make_folder(tmp_path / "references", {"a.wav": noise})
    with pytest.raises(ValueError, match=message):
        evaluate_folders(first, second, backbones=backbones, **options)


def test_folders_without_usable_sounds_are_refused(tmp_path, backbones, noise):
    good = make_folder(tmp_path / "good", {"a.wav": noise})
    silent = make_folder(tmp_path / "silent", {"a.wav": 0 * noise})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no sound"):
        evaluate_folders(tmp_path / "empty", good)
    with pytest.raises(ValueError, match="missing is no folder"):
        evaluate_folders(good, tmp_path / "missing")
    with pytest.raises(ValueError, match="none of the 1 generated sounds can be used"):
        evaluate_folders(silent, good, metrics=["kld"], backbones=backbones)
    with pytest.raises(ValueError, match="nothing can be computed"):
        evaluate_folders(good)
    make_folder(good, {"a.ogg": "rain_0.ogg"})
    with pytest.raises(ValueError, match=r"holds a.ogg and a.wav"):
        evaluate_folders(good, good)


def test_another_rate_is_an_error_where_resampling_is_not_allowed(tmp_path, backbones, noise):
    folder = make_folder(tmp_path / "sounds", {"a.wav": noise})
    soundfile.write(folder / "b.wav", noise, 44_100)
    with pytest.raises(ValueError, match="generated b has 44100 Hz, yamnet takes 16000 Hz"):
        evaluate_folders(folder, folder, metrics=["kld"], backbones=backbones, allow_resampling=False)
    assert (
        evaluate_folders(folder, folder, metrics=["kld"], backbones=backbones).results["clips"]["generated"]["used"]
        == 2
    )


def test_the_peak_level_of_a_preset_is_given_before_the_backbone_hears(tmp_path, backbones, noise):
    loud = make_folder(tmp_path / "loud", {"a.wav": noise})
    quiet = make_folder(tmp_path / "quiet", {"a.wav": noise / 8})
    raw = PRESETS["default"]
    levelled = dataclasses.replace(raw, kld=FeatureSettings("yamnet", normalization="peak"))
    values = [
        evaluate_folders(loud, quiet, preset=preset, metrics=["kld"], backbones=backbones).results["metrics"]["kld"]
        for preset in (raw, levelled)
    ]
    assert values[0]["value"] > 0.1
    assert values[1]["value"] == pytest.approx(0, abs=1e-3)


def test_the_preset_of_audiocraft_is_that_of_its_configuration():
    preset = PRESETS["audiocraft"]
    assert preset.fad == FeatureSettings("vggish", normalization="peak")
    assert (preset.kld.backbone, preset.clip_seconds, preset.min_seconds) == ("passt", 10.0, 1.0)
    assert preset.text_consistency.backbone == "laion_clap"
    changed = preset.with_checkpoints({"laion_clap": "music.pt"})
    assert changed.text_consistency.checkpoint == "music.pt"
    with pytest.raises(
        ValueError, match="preset audiocraft uses laion_clap, passt, vggish; got a checkpoint for clap"
    ):
        preset.with_checkpoints({"clap": "x"})
