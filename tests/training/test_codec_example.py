"""`examples/train_encodec.py` as users start it: with a preset, under `accelerate launch`, killed and resumed."""

import json
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from audiogen_hf.training.arguments import parse_arguments
from audiogen_hf.training.codec.arguments import EncodecTrainingArguments

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_encodec.py"
TINY = """
num_filters: 2
hidden_size: 8
num_lstm_layers: 1
codebook_size: 16
kmeans_iterations: 2
discriminator_filters: 2
segment_duration: 0.2
validation_segment_duration: 0.2
batch_size: 4
logging_steps: 1
save_steps: 2
learning_rate: 1e-3
"""


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Five sounds of noise under a falling tone, half a second each."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    t = np.arange(8000) / 16000
    for number in range(5):
        sound = 0.3 * np.sin(2 * np.pi * (1000 - 150 * number) * t * (1 - t)) + 0.02 * rng.standard_normal(8000)
        soundfile.write(folder / f"{number}.wav", sound.astype(np.float32), 16000)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, sounds):
    """The options of a tiny run, as a file."""
    path = tmp_path_factory.mktemp("options") / "tiny.yaml"
    path.write_text(f"train_data: {sounds}\nvalidation_data: {sounds}\n{TINY}")
    return path


def command(tiny, output_dir, *options, launcher=()):
    return [sys.executable, *launcher, str(EXAMPLE), "--config", str(tiny), "--output_dir", str(output_dir), *options]


def run(*args, **kwargs):
    result = subprocess.run(command(*args, **kwargs), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result


def log_of(output_dir):
    return [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_does_with_the_whole_batch(tiny, tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--main_process_port", "0"]
    run(tiny, tmp_path / "two", "--max_steps", "6", launcher=launcher)
    run(tiny, tmp_path / "one", "--max_steps", "6")
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == len(two) == 9
    for expected, found in zip(one, two, strict=True):
        for name in expected.keys() - {"train/clips_per_second", "train/skipped_clips"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), (expected["step"], name)
    expected, found = (load_file(tmp_path / n / "last" / "model.safetensors") for n in ("one", "two"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train_data", "no/such/folder"], "no/such/folder"),
        (["--segment_duration", "0.05"], "segment_duration: got 0.05"),
        (["--codebook_size", "12"], "codebook_size: got 12, takes a power of two"),
        (["--batch_size", "many"], "invalid int value: 'many'"),
        (["--output_dir", "/dev/null/run"], "/dev/null"),
    ],
)
def test_bad_input_ends_in_one_line_and_code_2(tiny, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(sys, "argv", command(tiny, tmp_path / "run", *options)[1:])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_preset_is_the_encodec_of_the_guide():
    preset = parse_arguments(
        EncodecTrainingArguments, ["--config", "encodec_cpu", "--train_data", "d", "--output_dir", "o"]
    )
    assert (preset.num_filters, preset.discriminator, preset.num_codebooks) == (16, False, 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_a_random_moment_and_resumed_ends_bitwise_as_an_uninterrupted_one(tiny, tmp_path):
    options = ["--max_steps", "40", "--save_steps", "4"]
    run(tiny, tmp_path / "whole", *options)
    killed = 0
    while not (tmp_path / "killed" / "checkpoint-40").exists():
        process = subprocess.Popen(
            command(tiny, tmp_path / "killed", *options, "--resume_from_checkpoint", "latest"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not list((tmp_path / "killed").glob("checkpoint-*")):
            time.sleep(0.05)
        time.sleep(random.uniform(0, 4))
        if process.poll() is None and killed < 3:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed > 0
    for name in ("model.safetensors", "model_1.safetensors", "ema.safetensors"):
        whole, resumed = (load_file(tmp_path / n / "checkpoint-40" / name) for n in ("whole", "killed"))
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
