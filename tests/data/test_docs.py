"""What docs/source/data.md shows can be typed."""

import argparse
import re
import runpy
import shlex
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.data.manifest import add_manifest_arguments, run_manifest

from .conftest import tone, write_sound

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "source" / "data.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def commands(start):
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith(start)]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def page_folder(tmp_path, checkpoint, monkeypatch):
    """The sounds/ and the model that the page speaks of, the latter under another name."""
    for i in range(8):
        write_sound(tmp_path / "sounds" / f"dog_barks_0{i}.wav", tone(10.5, 200.0 * (i + 1)))
        (tmp_path / "sounds" / f"dog_barks_0{i}.json").write_text('{"description": "a dog barks"}')
    text_encoder = str(checkpoint / "t5")
    AudioGenForConditionalGeneration.from_pretrained(checkpoint, text_encoder=text_encoder).save_pretrained(
        tmp_path / "model"
    )
    AudioGenProcessor.from_pretrained(checkpoint, text_encoder=text_encoder).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_can_be_followed_from_top_to_bottom(page_folder):
    parser = argparse.ArgumentParser()
    add_manifest_arguments(parser)
    for command in commands("audiogen-hf manifest"):
        run_manifest(parser.parse_args(command[2:]))
    assert (page_folder / "egs" / "train.jsonl.gz").exists()

    (launch,) = commands("accelerate launch --num_processes 4")
    example = runpy.run_path(str(ROOT / launch[4]))
    arguments = [part.replace("facebook/audiogen-medium", "model") for part in launch[5:]]
    (parsed,) = HfArgumentParser(example["TokenizeArguments"]).parse_args_into_dataclasses(arguments)
    parsed.device = "cpu"
    example["main"](parsed)

    namespace = {}
    for block in blocks("python"):
        exec(block.replace("facebook/audiogen-medium", "model"), namespace)
    assert namespace["labels"].shape == (8, 4, 500)
