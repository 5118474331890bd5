"""The evaluation of audiogen-tiny, run by its command on a random tiny model and a few real animals."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from testing_utils import CHECKPOINT, FIXTURES, TEXT_ENCODER, tiny_model

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.audio_utils import read_audio
from audiogen_hf.metrics import CodebookStatistics, load_backbone
from audiogen_hf.metrics.yamnet import class_names, load_yamnet
from audiogen_hf.training.codec.losses import MelDistance, si_snr

pytest.importorskip("datasets")

TINY = Path(__file__).parents[2] / "examples" / "tiny"
PARTS = ["speed", "reconstruction", "ceiling", "generation", "floor", "distance", "memory"]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, TINY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    yield load_script("evaluate")
    del sys.modules["evaluate"]


@pytest.fixture(scope="module")
def captions():
    return yaml.safe_load((TINY / "captions.yaml").read_text(encoding="utf-8"))


def animal(name, start=0.0):
    """Five seconds of a recording of two, from somewhere in it."""
    samples, rate = read_audio(FIXTURES / "sounds" / "train" / f"{name}.ogg")
    return np.roll(np.resize(samples, 5 * rate), -int(start * rate))


@pytest.fixture(scope="module")
def data(tmp_path_factory, captions):
    """Three classes in the columns of build_dataset.py. A held-out bark is a training clip; no cow is held out."""
    builder = load_script("build_dataset")
    del sys.modules["build_dataset"]

    def clip(sound_class, name, start=0.0):
        row = {
            "description": [captions[sound_class]["phrase"], *captions[sound_class]["captions"]],
            "sound_class": sound_class,
            "rendering": "plain",
            "file_id": f"animals/{name}-{start:g}.ogg",
            "licence": "CC0-1.0",
            "author": "Joseph Sardin",
            "codec": True,
            "confirmed": sound_class != "cow",
        }
        return f"{name}-{start:g}", animal(name, start), row

    folder = tmp_path_factory.mktemp("data")
    name, samples, row = clip("dog_bark", "pig")
    mix = (name, samples, row | {"sound_class": "dog_bark+pig", "rendering": "while"})
    train = [clip("dog_bark", "dog"), clip("dog_bark", "dog", 0.7), clip("dog_bark", "duck"), clip("cat", "cat")]
    train += [clip("cat", "cat", 1.1), clip("cow", "cow"), mix]
    test = [clip("dog_bark", "dog", 0.7), clip("cat", "cat", 0.4)]
    for part in ("lm", "codec"):
        builder.write_split(folder / part / "train.parquet", train[:5] if part == "codec" else train)
        builder.write_split(folder / part / "test.parquet", test)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(segment_duration=5.0).save_pretrained(folder)
    AudioGenProcessor.from_pretrained(CHECKPOINT, text_encoder=TEXT_ENCODER).save_pretrained(folder)
    return folder


def arguments(model_folder, data, output, *options):
    return ["--model", str(model_folder), "--data", str(data), "--output", str(output), *options]


@pytest.fixture(scope="module")
def evaluated(model_folder, data, tmp_path_factory):
    """(results.json, report.md) of all parts, two seeds, by the command."""
    output = tmp_path_factory.mktemp("evaluation") / "new"
    command = arguments(model_folder, data, output, "--seeds", "2", "--batch-size", "5", "--temperature", "0.9")
    done = subprocess.run(
        [sys.executable, TINY / "evaluate.py", *command], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    report = (output / "report.md").read_text()
    assert done.stdout.strip() == report.strip()
    assert {path.name for path in output.iterdir()} == {"report.md", "results.json"}
    return json.loads((output / "results.json").read_text()), report


def test_every_part_is_measured_and_told(evaluated):
    results, report = evaluated
    assert [part for part in results if part in PARTS] == PARTS
    assert list(results["settings"]["seconds_a_part"]) == PARTS
    assert report.count("\n## ") == 5
    assert results["settings"]["sampling"] == {"guidance_scale": 3.0, "temperature": 0.9, "top_k": 250}
    assert "3 classes, 2 of them confirmed" in report


def test_each_prompt_of_each_class_is_judged_with_each_seed(evaluated, captions):
    results, report = evaluated
    assert list(results["classes"]) == ["cat", "cow", "dog_bark"]
    assert results["classes"]["dog_bark"]["recordings"] == 3  # clips of two classes do not count
    assert results["classes"]["cow"]["paraphrase"] == captions["cow"]["held_out"]
    for part, seeds in (("generation", 2), ("floor", 1)):
        for kind in ("caption", "paraphrase"):
            assert {name: len(sounds) for name, sounds in results[part][kind].items()} == dict.fromkeys(
                results["classes"], seeds
            )
    for name in results["classes"]:
        row = next(line for line in report.splitlines() if line.startswith(f"| {name} ") and "%" in line)
        for kind, cell in zip(("caption", "paraphrase"), row.split(" | ")[1:3], strict=True):
            shown = [sound["shown"] for sound in results["generation"][kind][name]]
            assert cell == f"{100 * sum(shown) / 2:.0f}%"


def test_a_generated_sound_is_the_one_that_its_prompt_and_seed_make_alone(evaluated, model_folder, captions):
    results, _ = evaluated
    model = AudioGenForConditionalGeneration.from_pretrained(model_folder).eval()
    processor = AudioGenProcessor.from_pretrained(model_folder)
    audio = model.generate(
        **processor(text=[captions["cow"]["held_out"]]),
        audio_length_in_s=5.0,
        temperature=0.9,
        generator=torch.Generator().manual_seed(1),
    )
    with torch.inference_mode():
        scores = load_yamnet()(audio[0, 0])[0].sigmoid().mean(dim=0)
    assert results["generation"]["paraphrase"]["cow"][1]["heard"] == class_names()[int(scores.argmax())]


def test_real_clips_are_judged_and_classes_without_one_say_so(evaluated):
    results, report = evaluated
    # YAMNet knows the dog by its bark, and takes this cat for a rooster.
    assert results["ceiling"]["real"] == {
        "dog_bark": [{"shown": True, "heard": "Animal"}],
        "cat": [{"shown": False, "heard": "Animal"}],
    }
    assert set(results["ceiling"]["reconstructed"]) == {"dog_bark", "cat"}
    assert re.search(r"^\| cat \|.*\| 0% / (0|100)% of 1 \|", report, re.MULTILINE)
    assert "none held out" in next(line for line in report.splitlines() if line.startswith("| cow (not confirmed)"))
    summary = results["summary"]
    assert "all" not in summary["real"]
    assert summary["real"]["with held-out clips"]["share"] == 0.5
    assert [summary["overall"][group]["classes"] for group in ("all", "with held-out clips")] == [3, 2]
    kinds = [summary[kind]["all"]["share"] for kind in ("caption", "paraphrase")]
    assert summary["overall"]["all"]["share"] == pytest.approx(np.mean(kinds))


def test_classes_are_known_that_the_judge_hears_in_what_the_model_learned(evaluated):
    results, _ = evaluated
    learned = results["ceiling"]["learned"]
    assert {name: len(sounds) for name, sounds in learned.items()} == {"dog_bark": 3, "cat": 2, "cow": 1}
    assert set(results["ceiling"]["learned, reconstructed"]) == set(learned)
    shares = {name: np.mean([sound["shown"] for sound in sounds]) for name, sounds in learned.items()}
    assert shares["dog_bark"] >= 0.5 > shares["cat"]
    known = [name for name, share in shares.items() if share >= 0.5]
    summary = results["summary"]["caption"]["known"]
    shown = [sound["shown"] for name in known for sound in results["generation"]["caption"][name]]
    assert summary["classes"] == len(known) and summary["share"] == pytest.approx(np.mean(shown))
    assert results["summary"]["real"]["known, with held-out clips"]["share"] == 1  # the dog


def test_distances_are_taken_to_the_held_out_clips(evaluated):
    distance = evaluated[0]["distance"]
    assert distance["clips"] == 2
    assert distance["windows"] == sum(
        len(load_backbone("yamnet").audio_features(animal(*clip), 16_000).embeddings)
        for clip in (("dog", 0.7), ("cat", 0.4))
    )
    for name in ("generated", "reconstructed", "untrained"):
        assert distance[name]["fad"] > 0
        assert math.isfinite(distance[name]["kld"])


def test_reconstruction_is_measured_on_whole_clips(evaluated, model_folder):
    figures = evaluated[0]["reconstruction"]
    model = AudioGenForConditionalGeneration.from_pretrained(model_folder).eval()
    usage = CodebookStatistics(4, 32)
    ratios, distances = [], []
    for samples in (animal("dog", 0.7), animal("cat", 0.4)):
        with torch.inference_mode():
            codes = model.encode_audio(torch.tensor(samples)[None, None])
            pair = model.decode_audio(codes), torch.tensor(samples)[None, None]
        usage.update(codes.numpy())
        ratios.append(si_snr(*pair).item())
        distances.append(MelDistance(16_000)(*pair).item())
    assert figures["si_snr"] == pytest.approx(np.mean(ratios), abs=1e-3)
    assert figures["mel_distance"] == pytest.approx(np.mean(distances), rel=0.01)  # both last as long
    assert (figures["clips"], figures["seconds"]) == (2, pytest.approx(10))
    assert figures["codes"]["test"]["use_per_codebook"] == pytest.approx([each.used for each in usage.compute()])
    assert figures["codes"]["train"]["use"] >= figures["codes"]["test"]["use"]


def test_a_copy_of_a_training_clip_is_found(evaluated):
    results, report = evaluated
    copy = results["memory"]["dog_bark"]["held_out"][0]
    assert copy["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert copy["equal_codes"] == 1.0
    assert copy["nearest_by_cosine"] == copy["nearest_by_codes"] == "animals/dog-0.7.ogg"
    generated = results["memory"]["dog_bark"]["generated"]
    assert len(generated) == 4
    assert all(0 < sound["equal_codes"] < 1 and sound["cosine"] < 1 for sound in generated)
    assert 0 < results["memory"]["cow"]["two_seeds"]["equal_codes"] < 1
    assert results["memory"]["cow"]["two_training_clips"] is None  # it has one
    assert results["memory"]["cow"]["held_out"] == []
    assert "| dog_bark (3) |" in report


def test_speed_is_that_of_the_command_and_of_generation_alone(evaluated):
    speed = evaluated[0]["speed"]
    assert speed["cold_start"]["seconds"] > speed["generation_seconds"] > 0
    assert speed["real_time_factor"] == pytest.approx(5 / speed["generation_seconds"])
    assert 100 < speed["cold_start"]["peak_mib"] < 4000


def test_a_part_can_be_had_alone(script, model_folder, data, tmp_path, capsys):
    command = arguments(model_folder, data, tmp_path, "--parts", "ceiling", "--max-classes", "1")
    assert script.main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["classes"]) == set(results["ceiling"]["real"]) == {"cat"}
    assert [part for part in PARTS if part in results] == ["ceiling"]
    assert capsys.readouterr().out.count("## ") == 1


def test_shares_are_taken_at_the_best_alignment(script):
    rng = np.random.default_rng(0)
    codes = rng.integers(1000, size=(2, 40))
    shifted = np.concatenate([rng.integers(1000, 2000, size=(2, 7)), codes[:, :-7]], axis=1)
    other = rng.integers(1000, 2000, size=(2, 40))
    half = np.where(np.arange(40) < 30, codes, other)
    shares = script.aligned_share(codes, np.stack([codes, shifted, other, half]))
    np.testing.assert_allclose(shares, [1.0, 1.0, 0.0, 0.75])
    # Ten frames at one end that equal ten at the other do not count: half of the frames must be in common.
    late = np.concatenate([other[:, :30], codes[:, :10]], axis=1)
    assert script.aligned_share(codes, late[None])[0] < 0.05


def test_a_class_is_shown_among_the_first_five(script):
    scores = np.zeros(521)
    names = class_names()
    order = ["Music", "Wind", "Animal", "Rain", "Dog", "Bark"]
    for rank, name in enumerate(order):
        scores[names.index(name)] = 1 - rank / 10
    heard = script.Heard(scores, scores, scores[None])
    assert heard.top() == order[:5]

    def sound_class(*expected):
        return script.SoundClass("a", {}, frozenset(expected), True, 1)

    assert heard.judge(sound_class("Dog", "Cat")) == {"shown": True, "heard": "Music"}
    assert heard.judge(sound_class("Bark")) == {"shown": False, "heard": "Music"}


class TestBadInput:
    def fails(self, script, capsys, message, *args):
        assert script.main(arguments(*args)) == 2
        error = capsys.readouterr().err
        assert error.startswith("evaluate: ")
        assert error.count("\n") == 1
        assert message in error

    def test_no_data(self, script, tmp_path, capsys, model_folder):
        self.fails(script, capsys, str(tmp_path / "none"), model_folder, tmp_path / "none", tmp_path / "out")

    def test_no_model(self, script, tmp_path, capsys, data):
        self.fails(script, capsys, str(tmp_path / "m"), tmp_path / "m", data, tmp_path / "o", "--parts", "ceiling")

    def test_a_paraphrase_that_was_trained_on(self, script, tmp_path, capsys, model_folder, data, monkeypatch):
        monkeypatch.setattr(script, "PROMPTS", {"caption": "phrase", "paraphrase": "phrase"})
        self.fails(script, capsys, "paraphrase of cat is a caption of a training clip", model_folder, data, tmp_path)

    @pytest.mark.parametrize(
        "options", [["--seeds", "0"], ["--parts", "taste"], ["--max-classes", "none"], ["--splits", "train"]]
    )
    def test_options(self, script, tmp_path, model_folder, data, options):
        with pytest.raises(SystemExit) as exit_:
            script.main(arguments(model_folder, data, tmp_path, *options))
        assert exit_.value.code == 2
