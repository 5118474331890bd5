"""The packaged form of a trained model: it loads, its defaults are those that were asked for, and its papers are
complete."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from testing_utils import run_python, tiny_model

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.model_card import write_model_card

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "tiny"
TRAINING = "\n## Training\n\nTrained on `lm`, 8316 clips.\n\n## Results\n\n| `ce` | 3.1415 |\n"
RESULTS = {
    "settings": {"seeds": 3},
    "classes": {"dog_bark": {}},
    "speed": {
        "cold_start": {"seconds": 12.34, "peak_mib": 789.1},
        "generation_seconds": 2.5,
        "real_time_factor": 2.0,
        "threads": 2,
        "cpus": 2,
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("runs") / "last"
    model = tiny_model(segment_duration=5.0, base_model="me/pretrained")
    model.config.audio_encoder._name_or_path = str(folder.parent / "codec")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    card = write_model_card(folder, model.config)
    card.write_text(card.read_text(encoding="utf-8") + TRAINING, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def packaged(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packaged")
    results = folder / "results.json"
    results.write_text(json.dumps(RESULTS))
    output = folder / "audiogen-tiny"
    command = [sys.executable, FOLDER / "package_model.py", trained, "--output", output, "--results", results]
    sampling = ["--guidance-scale", "2.5", "--temperature", "0.9", "--top-k", "20"]
    done = subprocess.run([*command, *sampling], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{re.escape(str(output))}: 0\.\d MB\n", done.stdout) and done.stderr == ""
    assert {path.name for path in folder.iterdir()} == {"results.json", "audiogen-tiny"}  # nothing half done
    return output


def test_it_is_the_trained_model_with_the_defaults_asked_for(trained, packaged):
    before = AudioGenForConditionalGeneration.from_pretrained(trained)
    after = AudioGenForConditionalGeneration.from_pretrained(packaged)
    expected, state = before.state_dict(), after.state_dict()
    assert expected.keys() == state.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=float(tensor.abs().max()) / 127)
    defaults = after.generation_config
    assert (defaults.guidance_scale, defaults.temperature, defaults.top_k) == (2.5, 0.9, 20)
    assert (defaults.do_sample, defaults.max_new_tokens) == (True, 250)
    inputs = AudioGenProcessor.from_pretrained(packaged)(text=["wind"])
    assert after.generate(**inputs, audio_length_in_s=0.1).shape == (1, 1, 1_600)


def test_it_says_nothing_of_the_place_where_it_was_made(packaged, trained):
    names = {path.name for path in packaged.iterdir()}
    assert {"config.json", "tokenizer.json", "processor_config.json", "generation_config.json", "LICENSE"} <= names
    for path in packaged.iterdir():
        if path.suffix != ".safetensors":
            assert str(trained.parent) not in path.read_text(encoding="utf-8")
    config = AudioGenForConditionalGeneration.config_class.from_pretrained(packaged)
    assert (config.license, config.base_model) == ("cc-by-sa-4.0", None)


def test_every_author_and_licence_is_named_with_the_number_of_files(packaged):
    text = (packaged / "ATTRIBUTION.md").read_text(encoding="utf-8")
    with open(FOLDER / "sounds.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    authors, licences = text.split("\n| licence | files | |\n")
    counts = {}
    for line in authors.splitlines():
        if match := re.fullmatch(r"\| (.+) \| (.+) \| (\d+) \| (.+) \|", line):
            counts[match[1], match[2]] = int(match[3])
    assert sum(counts.values()) == len(rows) == 1_351
    assert {author for author, _ in counts} == {row["author"] for row in rows}
    assert counts["Wildfire Games", "CC BY-SA 3.0"] == 692
    assert all(row["package"] in authors for row in rows)
    assert sum(int(number) for number in re.findall(r"^\| .+ \| (\d+) \| https://", licences, re.M)) == len(rows)
    for address in ("licenses/by-sa/3.0/", "licenses/by-sa/2.0/", "licenses/by/3.0/", "publicdomain/zero/1.0/"):
        assert f"https://creativecommons.org/{address}" in licences
    assert "all-MiniLM-L6-v2" in text and "Apache License" in text


def test_the_licences_go_with_it(packaged):
    text = (packaged / "LICENSE").read_text(encoding="utf-8")
    assert "https://creativecommons.org/licenses/by-sa/4.0/legalcode" in text and "text_encoder." in text
    assert (packaged / "LICENSE-APACHE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_card_has_data_training_figures_and_limits(packaged):
    card = ModelCard.load(packaged / "README.md")
    assert card.data.license == "cc-by-sa-4.0" and card.data.pipeline_tag == "text-to-audio"
    assert card.data.library_name == "audiogen_hf" and "audiogen" in card.data.tags
    headings = re.findall("^## (.*)", card.text, re.MULTILINE)
    assert headings == ["How to use", "Data", "Training", "Results", "Evaluation", "Limits", "Licence"]
    for told in (
        "guidance scale 2.5, temperature 0.9, top-k 20",
        "1,351 freely licensed recordings",
        "114 kinds of sounds",
        "dog bark, ",
        "Trained on `lm`, 8316 clips.",
        "| `ce` | 3.1415 |",
        "12.3 s, 789 MiB at most",
        "No music, no words",
    ):
        assert told in card.text, told
    assert not re.search(r"\{\w*\}", card.text)


def test_bad_input_is_one_line_and_leaves_what_was_there(trained, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import package_model
missing, output, trained = sys.argv[1:]
assert package_model.main([missing, "--output", output]) == 2
package_model.MAX_BYTES = 1000
assert package_model.main([trained, "--output", output]) == 2
"""
    output = tmp_path / "audiogen-tiny"
    output.mkdir()
    (output / "config.json").write_text("precious")
    missing, too_large = run_python(code, tmp_path / "missing", output, trained).stderr.splitlines()
    assert missing.startswith("package_model: error: ") and str(tmp_path / "missing") in missing
    assert re.fullmatch(r"package_model: error: the packaged model has 0\.\d MB, more than 0\.001", too_large)
    assert (output / "config.json").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"audiogen-tiny"}
