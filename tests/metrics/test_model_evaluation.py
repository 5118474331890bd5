"""Evaluation of a model on a dataset, its report, and both doors to it: the example and the command's options."""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from testing_utils import CHECKPOINT, FIXTURES, TEXT_ENCODER, load_model

from audiogen_hf import AudioGenProcessor
from audiogen_hf.audio_utils import read_audio, read_metadata
from audiogen_hf.data import ClipDataset, ClipReader, load_audio_text_dataset
from audiogen_hf.metrics import CodebookStatistics, ModelEvaluationSettings, evaluate_model, si_snr, write_report
from audiogen_hf.metrics.command import METRICS, PRESETS, add_evaluate_arguments, run_evaluate
from audiogen_hf.metrics.presets import METRICS as KNOWN_METRICS
from audiogen_hf.metrics.presets import PRESETS as KNOWN_PRESETS

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate_audiogen.py"
CAPTIONS = {
    "car_horn.flac": "a car horn honking",
    "fireworks.flac": "fireworks exploding",
    "rain_0.ogg": "rain <falling>",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three sounds, of 0.5 s, 1.5 s and 6 s."""
    folder = tmp_path_factory.mktemp("dataset")
    for name in CAPTIONS:
        shutil.copy(FIXTURES / "metrics" / name, folder)
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in CAPTIONS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def settings(dataset):
    return ModelEvaluationSettings(
        model=str(CHECKPOINT),
        text_encoder=str(TEXT_ENCODER),
        dataset=str(dataset),
        split="train",
        duration=1.0,
        seed=7,
    )


@pytest.fixture(scope="module")
def evaluated(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation")
    return output, evaluate_model(settings, output, metrics=["kld"], batch_size=2, device="cpu")


def sounds(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_audio(path)[0] for path in sorted(folder.glob("*.wav"))}


def read_clips(dataset: Path) -> list[dict]:
    """The clips of 1 s that the evaluation takes: of a longer sound, the segment that follows from the seed."""
    rows = load_audio_text_dataset(dataset, split="train")
    return list(ClipDataset(rows, ClipReader(16_000, segment_duration=1.0), seed=7, shuffle=False))


def test_samples_are_those_of_the_model_one_seed_a_row(evaluated):
    output, _ = evaluated
    model, processor = load_model(), AudioGenProcessor.from_pretrained(CHECKPOINT, text_encoder=TEXT_ENCODER)
    samples = sounds(output / "samples")
    assert list(samples) == ["000000.wav", "000001.wav", "000002.wav"]
    for row, text in enumerate(CAPTIONS.values()):
        generator = torch.Generator().manual_seed(7 + row)
        expected = model.generate(**processor(text=text), audio_length_in_s=1.0, generator=generator)[0, 0].numpy()
        np.testing.assert_allclose(samples[f"{row:06d}.wav"], expected.clip(-1, 1), atol=2e-4)  # 16 bits
        assert read_metadata(output / "samples" / f"{row:06d}.wav")["prompt"] == text
    lines = [json.loads(line) for line in (output / "samples" / "metadata.jsonl").read_text().splitlines()]
    assert lines[2] == {"file_name": "000002.wav", "text": "rain <falling>", "seed": 9}


def test_cross_entropy_weighs_every_frame_of_every_clip_alike(evaluated, dataset):
    _, evaluation = evaluated
    model, processor = load_model(), AudioGenProcessor.from_pretrained(CHECKPOINT, text_encoder=TEXT_ENCODER)
    nats, targets = np.zeros(4), np.zeros(4)
    usage = CodebookStatistics(4, model.config.decoder.vocab_size)
    for clip in read_clips(dataset):  # one by one
        codes = model.encode_audio(torch.from_numpy(clip["audio"])[None, None])
        labels = codes.clone()
        labels[..., clip["length"] // 320 :] = -100
        usage.update(codes[0, :, : clip["length"] // 320].numpy())
        with torch.no_grad():
            loss = model(**processor(text=clip["text"]), labels=labels).loss_per_codebook.numpy()
        counts = np.array([(labels[0, k, : 50 - k] != -100).sum() for k in range(4)])
        nats, targets = nats + loss * counts, targets + counts
    result = evaluation.results["cross_entropy"]
    assert result["targets_per_codebook"] == targets.tolist()
    assert result["per_codebook"] == pytest.approx(nats / targets, rel=1e-4)
    assert result["perplexity_per_codebook"] == pytest.approx(np.exp(nats / targets), rel=1e-3)
    assert result["mean"] == pytest.approx((nats / targets).mean(), rel=1e-4)
    entropies = [codebook["entropy_bits"] for codebook in evaluation.results["codec"]["codebooks"]]
    assert entropies == pytest.approx([each.entropy_bits for each in usage.compute()])


def test_an_interrupted_run_makes_only_what_is_missing(evaluated, settings):
    output, evaluation = evaluated
    before = sounds(output / "samples")
    kept = output / "samples" / "000000.wav"
    time_of_kept = kept.stat().st_mtime_ns
    (output / "samples" / "000001.wav").unlink()
    again = evaluate_model(settings, output, metrics=["kld"], batch_size=2, device="cpu")
    after = sounds(output / "samples")
    assert kept.stat().st_mtime_ns == time_of_kept
    for name in before:  # the one made anew is rounded otherwise outside its batch
        np.testing.assert_allclose(after[name], before[name], atol=2e-4)
    values = [each.results["metrics"]["kld"]["value"] for each in (again, evaluation)]
    assert values[0] == pytest.approx(values[1], rel=1e-2)


def test_the_codec_is_judged_by_its_reconstructions(settings, tmp_path, dataset):
    settings = ModelEvaluationSettings(**{**vars(settings), "use_gt": True})
    evaluation = evaluate_model(settings, tmp_path, metrics=["kld"], batch_size=3, device="cpu")
    model = load_model()
    audio = read_clips(dataset)[1]["audio"]
    expected = model.decode_audio(model.encode_audio(torch.from_numpy(audio)[None, None]))[0, 0].detach().numpy()
    reconstruction = sounds(tmp_path / "samples")["000001.wav"]
    np.testing.assert_allclose(reconstruction, expected.clip(-1, 1), atol=2e-4)
    figures = evaluation.results["codec"]["si_snr_db"]
    assert figures["clips"] == 3
    assert math.isfinite(figures["value"])
    assert figures["confidence_interval"][0] <= si_snr(expected, audio) <= figures["confidence_interval"][1]


def test_the_report_stands_alone_with_pictures_players_and_figures(evaluated, tmp_path):
    _, evaluation = evaluated
    page = write_report(evaluation, tmp_path / "report.html", title="Tiny & random", max_clips=2).read_text()
    assert "Tiny &amp; random" in page
    assert len(re.findall("data:image/png;base64,iVBOR", page)) == 4  # two clips, both sides
    assert len(re.findall("<audio controls", page)) == 4
    assert f"{evaluation.results['metrics']['kld']['value']:.4g}" in page
    assert "http" not in re.sub(r'"(source|checkpoint)[^\n]*', "", page.replace("&quot;", '"'))
    full = write_report(evaluation, tmp_path / "full.html").read_text()
    assert "rain &lt;falling&gt;" in full
    assert "<falling>" not in full
    with pytest.raises(ValueError, match="max_clips must not be negative"):
        write_report(evaluation, tmp_path / "report.html", max_clips=-1)


def test_a_folder_of_other_settings_is_not_mixed(evaluated, settings):
    output, _ = evaluated
    other = ModelEvaluationSettings(**{**vars(settings), "seed": 8, "top_k": 5})
    with pytest.raises(ValueError, match="holds sounds made with another seed, top_k; take another folder"):
        evaluate_model(other, output, metrics=["kld"])


def test_a_backbone_out_of_reach_is_said_before_anything_is_generated(settings, tmp_path):
    with pytest.raises(OSError, match=r"text_consistency .or choose other metrics.: backbone clap"):
        evaluate_model(settings, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("name", "value"), [("duration", 0), ("num_samples", 0)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        ModelEvaluationSettings(model="x", dataset="y", **{name: value})


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_evaluate_arguments(parser)
    return parser.parse_args([*argv, "--output", "unused"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --generated .and --references., or --model and --dataset"),
        (["--model", "x"], "or --model and --dataset"),
        (["--generated", "a", "--model", "x", "--use-gt"], "takes no --model, --use-gt"),
        (["--generated", "a", "--references", "a"], "takes no --references of the same folder"),
        (
            ["--model", "x", "--dataset", "y", "--references", "b"],
            "--references and --no-resampling go with --generated",
        ),
        (["--model", "x", "--dataset", "y", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--generated", "a", "--checkpoint", "clap"], "BACKBONE=PATH, got 'clap'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        run_evaluate(parse(*argv))


def test_the_command_offers_what_there_is():
    assert METRICS == KNOWN_METRICS
    assert set(PRESETS) == set(KNOWN_PRESETS)


def test_the_example_evaluates_a_model(dataset, tmp_path):
    output = tmp_path / "output"
    command = [sys.executable, EXAMPLE, "--model", CHECKPOINT, "--text-encoder", TEXT_ENCODER, "--dataset", dataset]
    command += ["--split", "train", "--duration", "0.5", "--num-samples", "2", "--metrics", "kld", "--output", output]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    results = json.loads((output / "results.json").read_text())
    assert f"kld               {results['metrics']['kld']['value']:10.4f}" in run.stdout
    assert "codebook 3: cross entropy" in run.stdout
    assert results["model"]["num_samples"] == 2
    assert (output / "report.html").read_text().count("<audio") == 4


def test_the_example_says_in_one_line_what_is_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, EXAMPLE, "--generated", tmp_path / "empty", "--output", tmp_path / "output"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'empty'} holds no sound")
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_two_processes_find_what_one_does(dataset, tmp_path):
    figures = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += [EXAMPLE, "--model", CHECKPOINT, "--text-encoder", TEXT_ENCODER, "--dataset", dataset]
        command += ["--split", "train", "--duration", "1", "--metrics", "kld", "fad"]
        command += ["--device", "cpu", "--output", output]
        run = subprocess.run(command, capture_output=True, text=True, timeout=140)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("written:") == 1
        figures.append(json.loads((output / "results.json").read_text()))
    one, two = figures
    for metric in ("kld", "fad"):
        assert two["metrics"][metric]["value"] == pytest.approx(one["metrics"][metric]["value"], rel=1e-3)
    assert two["cross_entropy"]["per_codebook"] == pytest.approx(one["cross_entropy"]["per_codebook"], rel=1e-5)
    assert two["clips"] == one["clips"]
