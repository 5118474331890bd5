"""Several processes learn what one learns; a killed run resumes as if nothing had been. All through the example."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import soundfile
import torch
from lm_utils import (
    ROOT,
    command_line,
    environment,
    from_scratch,
    launch_example,
    read_log,
    run_example,
    weights,
)
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

# Padded clips (min_segment_ratio), mixing, accumulation, averages, dropped texts, samples: all that sums or draws.
EVERYTHING = {
    "min_segment_ratio": 0.3,
    "aug_p": 0.5,
    "gradient_accumulation_steps": 2,
    "batch_size": 8,
    "guidance_dropout": 0.3,
    "ema_decay": 0.9,
    "ema_steps": 2,
    "max_steps": 6,
    "save_steps": 3,
    "sample_steps": 6,
    "num_samples": 2,
    "sample_prompt_duration": 0.3,
}
FIGURES = ("train/ce", "train/ce_q4", "train/grad_norm", "validation/ce")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, codec_folder):
    folder = tmp_path_factory.mktemp("one") / "run"
    run_example(folder, **from_scratch(codec_folder), **EVERYTHING)
    return folder


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_two_processes_with_half_the_batch_each_give_what_one_gives(tmp_path, codec_folder, one_process, config):
    launch_example(config, 2, tmp_path, **from_scratch(codec_folder), **EVERYTHING)
    written = {path.name for path in (tmp_path / "checkpoint-6").iterdir()}
    assert "train_loader-1.json" in written  # there were two
    assert ("pytorch_model_fsdp_0" in written) == (config == "fsdp2")

    for figure in FIGURES:
        expected = read_log(one_process, figure)
        assert len(expected) == (2 if figure.startswith("validation") else 6)
        assert read_log(tmp_path, figure) == pytest.approx(expected, abs=1e-4), figure
    first, second = weights(one_process / "last"), weights(tmp_path / "last")
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for path in sorted((one_process / "samples" / "step-6").glob("*.wav")):
        expected, _ = soundfile.read(path)
        sound, _ = soundfile.read(tmp_path / "samples" / "step-6" / path.name)
        assert abs(sound - expected).max() < 1e-3, path.name


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_two_processes_resume_as_one_run(tmp_path, codec_folder, one_process, config):
    options = {**from_scratch(codec_folder), **EVERYTHING}
    launch_example(config, 2, tmp_path, **{**options, "sample_steps": 0})
    (tmp_path / "checkpoint-6").rename(tmp_path / "whole")
    launch_example(config, 2, tmp_path, **{**options, "sample_steps": 0}, resume_from_checkpoint="latest")
    assert read_log(tmp_path, "train/ce")[6:] == pytest.approx(read_log(one_process, "train/ce")[3:], abs=1e-4)
    first, second = (load_file(tmp_path / name / "ema.safetensors") for name in ("whole", "checkpoint-6"))
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-6)


def test_lora_under_fsdp2_gives_the_adapter_of_one_process(tmp_path, base_model):
    options = {"model_name_or_path": base_model, "lora_rank": 4, "sample_steps": 2, "num_samples": 2}
    options |= {"max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 1}
    run_example(tmp_path / "one", **options)
    launch_example("fsdp2", 2, tmp_path / "two", **options)
    first, second = (load_file(tmp_path / run / "last" / "adapter_model.safetensors") for run in ("one", "two"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-4)


def test_a_run_of_one_process_goes_on_with_two(tmp_path, codec_folder, one_process):
    options = {**from_scratch(codec_folder), **EVERYTHING, "sample_steps": 0}
    checkpoint = one_process / "checkpoint-3"
    launch_example("ddp", 2, tmp_path, **options, resume_from_checkpoint=checkpoint)
    assert read_log(tmp_path, "train/ce") == pytest.approx(read_log(one_process, "train/ce")[3:], abs=1e-4)


def test_a_run_killed_at_random_moments_ends_with_the_weights_of_one_that_was_not(tmp_path, codec_folder):
    options = {**from_scratch(codec_folder), **EVERYTHING, "sample_steps": 0, "max_steps": 40, "save_steps": 2}
    run_example(tmp_path / "whole", **options)

    rng = random.Random(os.environ.get("AUDIOGEN_KILL_SEED", "0"))
    command = [sys.executable, *command_line(tmp_path / "killed", **options, resume_from_checkpoint="latest")]
    kills = 0
    while kills < 3:
        started_at = _last_step(tmp_path / "killed")
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Let it get on, then kill it wherever it happens to be: in a step, in a validation, in the middle of a file.
        while process.poll() is None and _last_step(tmp_path / "killed") <= started_at + 2:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.7))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    assert kills > 0
    run_example(tmp_path / "killed", **options, resume_from_checkpoint="latest")

    whole, killed = (tmp_path / name / "checkpoint-40" for name in ("whole", "killed"))
    for name in ("trained_weights.safetensors", "ema.safetensors"):
        first, second = load_file(whole / name), load_file(killed / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    first, second = weights(tmp_path / "whole" / "last"), weights(tmp_path / "killed" / "last")
    assert all(torch.equal(first[key], second[key]) for key in first)


def _last_step(output_dir) -> int:
    log = output_dir / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except json.JSONDecodeError:  # caught in the middle of a line
        return 0
