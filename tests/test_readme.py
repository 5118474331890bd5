"""The README does what it says: its code runs, as it stands, with the tiny checkpoint in the place of every model."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_utils import use_tiny_audiogen_medium
from testing_utils import CHECKPOINT, TEXT_ENCODER

from audiogen_hf import read_audio
from audiogen_hf.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP = "python3 -m venv .venv && .venv/bin/pip install "


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the code of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(code: str) -> list[str]:
    """The commands of this package in a block of shell code, without the environment that they are installed in."""
    lines = [line.strip().removeprefix(".venv/bin/") for line in re.split(r"\n|&&", code)]
    return [line for line in lines if line.startswith("audiogen-hf")]


def run_blocks(text: str):
    """Runs the Python code of a page in one namespace and its commands in this process, in their order."""
    namespace = {}
    for language, code in blocks(text):
        if language == "python":
            exec(compile(code, "page", "exec"), namespace)
        if language == "bash":
            for command in commands(code):
                assert main(shlex.split(command, comments=True)[1:]) == 0, command


@pytest.fixture
def folder(tmp_path, monkeypatch, packaged_model):
    """A folder to run in, where audiogen-tiny and facebook/audiogen-medium are the tiny checkpoint."""
    use_tiny_audiogen_medium(tmp_path / "hub", monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_of_the_readme_runs(folder):
    run_blocks(README)
    for name in (
        "dog.wav",
        "0.wav",
        "1.wav",
        "sounds/a-dog-barks_1_seed0.wav",
        "sounds/rain-on-a-tin-roof_2_seed1.wav",
    ):
        audio, sampling_rate = read_audio(folder / name)
        assert sampling_rate == 16_000 and len(audio) == 80_000
    (longer,) = folder.glob("sounds/and-then-it-howls_1_seed*.wav")
    assert len(read_audio(longer)[0]) == 8 * 16_000
    assert (folder / "audiogen-medium" / "config.json").is_file()


def test_the_first_command_needs_nothing_but_the_repository():
    first = blocks(README)[0][1].strip()
    assert first == f'{SET_UP}. && .venv/bin/audiogen-hf generate "a dog barking" --output outputs'


def test_continuous_integration_runs_the_second_command():
    second = next(code.strip() for _, code in blocks(README) if "pytest" in code)
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert second.startswith(SET_UP)
    assert [step for step in second.split(" && ") if not any(line.startswith(step) for line in steps)] == []
    assert "set -euo pipefail" in steps
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        *("index", "quickstart", "audiogen_tiny", "generation", "command_line", "pipeline", "audiocraft_migration"),
        "architecture",
    ],
)
def test_the_code_of_the_guides_runs(folder, page):
    if page == "command_line":
        (folder / "prompts.txt").write_text("wind\nan owl\n")
    run_blocks((ROOT / "docs" / "source" / f"{page}.md").read_text(encoding="utf-8"))


def test_the_example_makes_its_sounds(tmp_path):
    script = ROOT / "examples" / "generate.py"
    options = ["--model", CHECKPOINT, "--text_encoder", TEXT_ENCODER, "--duration", "0.5", "--output", tmp_path]
    process = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True)
    paths = [Path(line) for line in process.stdout.splitlines()]
    assert len(paths) == 7
    for path in paths:
        assert len(read_audio(path)[0]) == (64_000 if path.stem == "long" else 8_000)
