"""What the tests of the language model's trainer share: tiny options, and runs in and out of this process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from testing_utils import FIXTURES, TEXT_ENCODER

from audiogen_hf.training.lm.arguments import AudioGenTrainingArguments
from audiogen_hf.training.lm.trainer import AudioGenTrainer

ROOT = Path(__file__).parents[2]
SOUNDS = FIXTURES / "sounds"

# Eight sounds of two seconds, a decoder of two layers of width 64.
TINY = {
    "train_data": str(SOUNDS / "train"),
    "validation_data": str(SOUNDS / "valid"),
    "segment_duration": 1.0,
    "batch_size": 4,
    "max_steps": 4,
    "warmup_steps": 2,
    "logging_steps": 1,
    "save_steps": 2,
}


def from_scratch(codec_folder: Path) -> dict:
    """Options of a model from scratch."""
    return {"model_scale": "xsmall", "tokenizer_model": str(codec_folder), "text_encoder": str(TEXT_ENCODER)}


def train(output_dir: Path, **options) -> AudioGenTrainer:
    """A run in this process."""
    trainer = AudioGenTrainer(AudioGenTrainingArguments(output_dir=str(output_dir), **{**TINY, **options}))
    trainer.train()
    return trainer


def command_line(output_dir: Path, **options) -> list[str]:
    """The example's arguments."""
    arguments = ["examples/train_audiogen.py"]
    for name, value in {**TINY, "output_dir": str(output_dir), **options}.items():
        arguments += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return arguments


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **variables}


def run_example(
    output_dir: Path, check: bool = True, env: dict[str, str] | None = None, **options
) -> subprocess.CompletedProcess:
    """A run in a process of its own."""
    command = [sys.executable, *command_line(output_dir, **options)]
    env = environment(**(env or {}))
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=250)
    assert not check or result.returncode == 0, result.stderr[-4000:]
    return result


def launch_example(config: str, num_processes: int, output_dir: Path, **options) -> subprocess.CompletedProcess:
    """A run of several processes on the CPU, with one of the shipped configurations of accelerate."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launcher += [f"examples/accelerate_configs/{config}.yaml", "--num_processes", str(num_processes)]
    launcher += ["--mixed_precision", "no", "--main_process_port", "0"]
    command = [*launcher, *command_line(output_dir, **options)]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-4000:]
    return result


def read_log(output_dir: Path, name: str) -> list[float]:
    """A figure at every line of the log that has it."""
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")
