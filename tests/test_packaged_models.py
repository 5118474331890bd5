"""The name `audiogen-tiny` finds the model in the package, without a network, and is the default; here its place is
taken by the tiny checkpoint of random weights."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from testing_utils import HubServer, json_of, run_python

import audiogen_hf
from audiogen_hf import AudioGenConfig, AudioGenForConditionalGeneration, AudioGenProcessor, read_audio
from audiogen_hf.audio_utils import read_metadata
from audiogen_hf.audiocraft import AudioGen
from audiogen_hf.cli import main
from audiogen_hf.convert_audiocraft import converted_checkpoint, is_audiocraft_checkpoint
from audiogen_hf.data.token_cache import tokenizer_fingerprint
from audiogen_hf.packaged_models import resolve_model_name
from audiogen_hf.training.lm.model import load_codec

NAME = "audiogen-tiny"
GREEDY = {"do_sample": False, "audio_length_in_s": 0.3}


def expected_sound(model, processor) -> np.ndarray:
    return model.generate(**processor(text=["wind"]), **GREEDY)[0, 0].numpy()


def test_the_name_is_that_of_a_folder_in_the_package():
    package = Path(audiogen_hf.__file__).parent
    assert resolve_model_name(NAME) == str(package / "assets" / NAME)


def test_other_names_and_paths_stay_as_they_are():
    for name in ("facebook/audiogen-medium", "me/audiogen-tiny", "./audiogen-tiny", "audiogen-medium", "t5-large"):
        assert resolve_model_name(name) == name
    assert resolve_model_name(Path(NAME)) == Path(NAME)


def test_a_local_folder_of_the_name_goes_first(tmp_path, monkeypatch, packaged_model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert resolve_model_name(NAME) == NAME
    shutil.copytree(packaged_model, NAME, dirs_exist_ok=True)
    config = AudioGenConfig.from_pretrained(NAME)
    config.segment_duration = 7.0
    config.save_pretrained(NAME)
    assert AudioGenConfig.from_pretrained(NAME).segment_duration == 7.0


def test_from_pretrained_loads_the_model_of_the_package(packaged_model, model, processor):
    assert AudioGenConfig.from_pretrained(NAME).to_dict() == AudioGenConfig.from_pretrained(packaged_model).to_dict()
    ours = AudioGenForConditionalGeneration.from_pretrained(NAME)
    sound = expected_sound(ours, AudioGenProcessor.from_pretrained(NAME))
    np.testing.assert_array_equal(sound, expected_sound(model, processor))


def test_it_is_no_checkpoint_of_audiocraft(packaged_model):
    assert not is_audiocraft_checkpoint(NAME)
    assert converted_checkpoint(NAME) is None


def test_audiocrafts_api_and_training_take_the_name(packaged_model, model):
    audiogen = AudioGen.get_pretrained(NAME, device="cpu")
    assert audiogen.name == NAME and audiogen.max_duration == 3.0
    audiogen.set_generation_params(use_sampling=False, duration=0.3)
    assert audiogen.generate(["wind"]).shape == (1, 1, 4_800)
    assert tokenizer_fingerprint(load_codec(NAME)) == tokenizer_fingerprint(model.audio_encoder)


@pytest.mark.parametrize("load", [AudioGenConfig.from_pretrained, AudioGenProcessor.from_pretrained, load_codec])
def test_a_misspelt_name_gets_the_right_one(load):
    with pytest.raises(ValueError, match="there is no model 'audiogen-tyny'; did you mean 'audiogen-tiny', which"):
        load("audiogen-tyny")


def test_the_command_names_the_right_one_too(capsys, tmp_path):
    assert main(["generate", "wind", "--model", "audiogen-tyny", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "audiogen-hf generate: error: cannot load audiogen-tyny: there is no model 'audiogen-tyny'; did you mean "
        "'audiogen-tiny', which is in the package?\n"
    )


@pytest.mark.parametrize("task", [(), ("text-to-audio",)])
def test_a_pipeline_without_a_model_is_that_of_the_package(packaged_model, model, processor, task):
    pipe = audiogen_hf.pipeline(*task, device="cpu")
    np.testing.assert_array_equal(pipe("wind", generate_kwargs=GREEDY)["audio"], expected_sound(model, processor))


def test_pipelines_of_other_tasks_stay_stock(packaged_model):
    with pytest.raises(KeyError, match="Unknown task make-coffee"):
        audiogen_hf.pipeline("make-coffee")


def test_the_pipeline_says_once_a_process_who_speaks(packaged_model, caplog):
    audiogen_hf.pipeline(model=NAME, device="cpu")  # who names it, knows
    assert not caplog.records
    audiogen_hf.pipeline(device="cpu")
    audiogen_hf.pipeline("text-to-audio", device="cpu")
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.message == (
        "Model: audiogen-tiny, the small one in the package. For more and better sounds: "
        'model="facebook/audiogen-medium" (CC BY-NC 4.0, 7 GB to download)'
    )


def test_the_command_uses_the_default_and_says_so(packaged_model, capsys, tmp_path):
    command = ["generate", "wind", "--duration", "0.3", "--device", "cpu", "--output", str(tmp_path)]
    assert main([*command, "--seed", "0"]) == 0
    captured = capsys.readouterr()
    first, *_ = captured.err.splitlines()
    assert first == (
        "Model: audiogen-tiny, the small one in the package. For more and better sounds: "
        "--model facebook/audiogen-medium (CC BY-NC 4.0, 7 GB to download)"
    )
    assert captured.err.count("Model:") == 1
    path = captured.out.strip()
    assert len(read_audio(path)[0]) == 4_800 and read_metadata(path)["model_id"] == NAME
    assert main([*command, "--seed", "1", "--quiet"]) == 0
    assert main([*command, "--seed", "2", "--quiet", "--model", NAME]) == 0
    assert capsys.readouterr().err == ""


STAND_IN = """
import sys
from audiogen_hf import packaged_models
packaged_models.PACKAGED_MODELS["audiogen-tiny"] = sys.argv.pop(1)
"""


def test_the_command_asks_no_network_and_warns_of_nothing(packaged_model, tmp_path):
    code = STAND_IN + "from audiogen_hf.cli import main; sys.exit(main(sys.argv[1:]))"
    with HubServer({}) as hub:
        result = run_python(
            code,
            *(packaged_model, "generate", "wind", "--duration", "0.3", "--device", "cpu", "--output", tmp_path),
            env={**hub.environment, "HF_HOME": str(tmp_path / "home")},
            flags=("-W", "error"),
        )
        assert hub.requests == []
    progress = re.compile(r"\r?[^\r\n]*\|[^\r\n]*\n?")  # the bar of generation
    assert progress.sub("", result.stderr).strip() == (
        "Model: audiogen-tiny, the small one in the package. For more and better sounds: "
        "--model facebook/audiogen-medium (CC BY-NC 4.0, 7 GB to download)"
    )


def test_python_asks_no_network_and_says_on_standard_error_who_speaks(packaged_model, tmp_path):
    code = f"""{STAND_IN}
import json
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()
import audiogen_hf
pipes = [audiogen_hf.pipeline("text-to-audio", device="cpu") for _ in range(2)]
sound = pipes[1]("wind", generate_kwargs=dict(audio_length_in_s=0.3))
print(json.dumps([len(sound["audio"]), sound["sampling_rate"]]))
"""
    with HubServer({}) as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        result = run_python(code, packaged_model, env=environment, flags=("-W", "error"))
        assert hub.requests == []
    assert json_of(result) == [4_800, 16_000]
    assert result.stderr == (
        "Model: audiogen-tiny, the small one in the package. For more and better sounds: "
        'model="facebook/audiogen-medium" (CC BY-NC 4.0, 7 GB to download)\n'
    )
