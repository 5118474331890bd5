"""The model in the package as a user meets it after installation: it loads in silence and makes sounds offline."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from testing_utils import json_of, run_python

import audiogen_hf
from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor, read_audio
from audiogen_hf.audio_utils import read_metadata
from audiogen_hf.packaged_models import PACKAGED_MODELS

NAME = "audiogen-tiny"
FOLDER = PACKAGED_MODELS[NAME]
MAX_BYTES = 30_000_000


@pytest.fixture(scope="module")
def model():
    return AudioGenForConditionalGeneration.from_pretrained(NAME)


@pytest.fixture(scope="module")
def processor():
    return AudioGenProcessor.from_pretrained(NAME)


def test_the_files_are_complete_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "ATTRIBUTION.md", "LICENSE", "LICENSE-APACHE"),
    } <= names
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= MAX_BYTES


def test_no_file_knows_the_machine_it_was_made_on():
    for path in FOLDER.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'"(_name_or_path|name_or_path)": "/|/(tmp|root|home|work)/', text), path.name


def test_it_is_what_the_guide_says(model):
    config = model.config
    assert (config.sampling_rate, config.frame_rate, config.segment_duration) == (16_000, 50, 5.0)
    assert (config.decoder.num_codebooks, config.decoder.vocab_size) == (4, 1024)
    assert config.text_encoder.model_type == "bert" and config.text_pooling == "mean"
    assert config.license == "cc-by-sa-4.0"
    assert model.dtype == torch.float32 and all(parameter.isfinite().all() for parameter in model.parameters())


def test_it_loads_in_silence():
    code = """
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()
from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
AudioGenForConditionalGeneration.from_pretrained("audiogen-tiny")
AudioGenProcessor.from_pretrained("audiogen-tiny")
"""
    result = run_python(code, flags=("-W", "error"))
    assert result.stdout == result.stderr == ""


def test_the_first_command_makes_a_sound_offline_from_an_empty_home(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "audiogen_hf", "generate", "a dog barking"]
    process = subprocess.run(
        [*command, "--output", tmp_path / "sounds"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    (path,) = process.stdout.splitlines()
    sound, sampling_rate = read_audio(path)
    assert sampling_rate == 16_000 and sound.shape == (80_000,)
    assert np.abs(sound).max() > 0.05 and sound.std() > 1e-3
    metadata = read_metadata(path)
    assert metadata["model_id"] == NAME and metadata["prompt"] == "a dog barking"
    progress = re.compile(r"\r?[^\r\n]*\|[^\r\n]*\n?")
    assert progress.sub("", process.stderr).strip() == (
        "Model: audiogen-tiny, the small one in the package. For more and better sounds: "
        "--model facebook/audiogen-medium (CC BY-NC 4.0, 7 GB to download)"
    )


def test_a_pipeline_without_a_model_makes_a_sound():
    sound = audiogen_hf.pipeline("text-to-audio", device="cpu")("rain on a roof")
    assert sound["sampling_rate"] == 16_000 and sound["audio"].shape == (80_000,)
    assert np.isfinite(sound["audio"]).all() and sound["audio"].std() > 1e-3


def test_the_text_decides_and_seeds_differ(model, processor):
    texts = ["a dog barking", "a dog barking", "heavy rain falling"]
    codes = model.generate(
        **processor(text=texts),
        audio_length_in_s=2.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1, 0)],
        return_dict_in_generate=True,
    ).audio_codes
    assert codes.shape == (3, 4, 100)
    for first, second in ((0, 1), (0, 2)):
        assert (codes[first] == codes[second]).float().mean() < 0.5
    with torch.no_grad():
        columns = torch.full((1, 1, 4), model.config.decoder.special_token_id)
        dog, rain = (model(**processor(text=[text]), decoder_input_ids=columns).logits for text in texts[1:])
    assert (dog - rain).abs().max() > 0.5


def test_words_that_the_vocabulary_lacks_are_read_in_pieces(processor):
    tokenizer = processor.tokenizer
    for text in ("pterodactyl screeching", "Schäferhund", "ｗｏｏｆ", "x" * 80):
        ids = tokenizer(text)["input_ids"]
        assert 2 < len(ids) <= tokenizer.model_max_length
    assert tokenizer.unk_token_id not in tokenizer("a pterodactyl screeching above the colosseum")["input_ids"]


def test_a_text_longer_than_the_encoder_reads_is_refused(model, processor):
    with pytest.raises(ValueError, match="`text` takes up to 128 tokens with this model, got 202"):
        model.generate(**processor(text=["rain " * 200]))


def test_it_can_be_trained_further_and_saved(model, processor, tmp_path):
    inputs = processor(text=["a dog barking"])
    labels = torch.zeros(1, 4, 20, dtype=torch.long)
    model(**inputs, labels=labels).loss.backward()
    assert model.decoder.layers[0].self_attn.qkv_proj.weight.grad.abs().max() > 0
    model.zero_grad()
    model.save_pretrained(tmp_path)
    again = AudioGenForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        losses = [each.eval()(**inputs, labels=labels).loss for each in (model, again)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)


def test_the_card_is_complete():
    card = ModelCard.load(FOLDER / "README.md")
    assert card.data.license == "cc-by-sa-4.0" and card.data.pipeline_tag == "text-to-audio"
    for heading in ("How to use", "Data", "Training", "Evaluation", "Limits", "Licence"):
        assert f"\n## {heading}\n" in card.text
    assert "Sounds judged by YAMNet" in card.text


@pytest.mark.slow
def test_a_cold_start_takes_under_20_seconds_and_under_one_and_a_half_gib(tmp_path):
    code = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, capture_output=True)
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20]))
"""
    command = [sys.executable, "-m", "audiogen_hf", "generate", "a dog barking", "--output", Path(tmp_path)]
    seconds, gibibytes = json_of(run_python(code, *command))
    assert seconds < 20 and gibibytes < 1.5
