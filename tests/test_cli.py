"""The command `audiogen-hf`: what it writes, what it prints, and one line for bad input."""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hub_utils import HubStandIn, use_tiny_audiogen_medium
from huggingface_hub import ModelCard
from testing_utils import CHECKPOINT, TEXT_ENCODER, run_python

from audiogen_hf import AudioGenConfig, read_audio
from audiogen_hf.audio_utils import normalize_audio, read_metadata
from audiogen_hf.cli import _slug, main
from audiogen_hf.convert_audiocraft import converted_checkpoint, load_package

STEP = 1.01 / 32_768  # of 16 bits: equal codes decode to floats that differ in the last bit with the batch
SHORT = ["--duration", "0.3", "--quiet", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder():
    """The tiny checkpoint in this library's layout."""
    return converted_checkpoint(CHECKPOINT, text_encoder=TEXT_ENCODER)


@pytest.fixture
def generate(folder, tmp_path, capsys):
    """Runs `audiogen-hf generate` into a folder; the paths that it printed."""

    def run(*args, model=folder):
        assert main(["generate", *args, "--model", model, *SHORT, "--output", str(tmp_path / "out")]) == 0
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    return run


def error_of(*args) -> str:
    """The one line on stderr of a command that refuses its input with exit code 2."""
    process = subprocess.run([sys.executable, "-m", "audiogen_hf", *map(str, args)], capture_output=True, text=True)
    assert process.returncode == 2 and process.stdout == ""
    assert len(process.stderr.splitlines()) == 1
    return process.stderr


def refusal(capsys, *args) -> str:
    """As `error_of`, in this process."""
    try:
        code = main([str(arg) for arg in args])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("audiogen-hf")
    return captured.err


# Help


def test_help_answers_in_under_a_second_without_torch_or_transformers():
    best = min(_seconds_of_help() for _ in range(3))
    assert best < 1
    imports = run_python("import sys; from audiogen_hf.cli import _build_parser; _build_parser(); print(*sys.modules)")
    assert not {"torch", "transformers", "numpy", "huggingface_hub", "datasets"} & set(imports.stdout.split())


def _seconds_of_help() -> float:
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "audiogen_hf", "--help"], capture_output=True, text=True, check=True
    )
    assert all(command in process.stdout for command in ("generate", "convert", "info", "evaluate", "manifest"))
    return time.perf_counter() - start


@pytest.mark.parametrize("command", ["generate", "convert", "info", "evaluate", "manifest"])
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"usage: audiogen-hf {command}" in capsys.readouterr().out


# generate


def test_files_are_named_after_prompt_sample_and_seed(generate):
    paths = generate("A dog barks!", "rain on a tin roof", "--seed", "7", "--num-samples", "2")
    assert [path.name for path in paths] == [
        "a-dog-barks_1_seed7.wav",
        "a-dog-barks_2_seed8.wav",
        "rain-on-a-tin-roof_1_seed7.wav",
        "rain-on-a-tin-roof_2_seed8.wav",
    ]
    for path in paths:
        info = soundfile.info(path)
        assert (info.frames, info.samplerate, info.channels) == (4_800, 16_000, 1)


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("A dog barks!", "a-dog-barks"),
        ("../../etc/passwd", "etc-passwd"),
        ("Straßenlärm, 雨の音", "straßenlärm-雨の音"),
        ("?!", "sound"),
        ("rain " * 100, "rain-" * 15 + "rain"),
        ("雨" * 100, "雨" * 26),
    ],
)
def test_slugs_are_short_safe_and_readable(prompt, slug):
    assert _slug(prompt) == slug


def test_a_sound_does_not_depend_on_the_other_prompts(generate, tmp_path):
    alone = generate("rain", "--seed", "3", "--num-samples", "2")
    expected = [read_audio(path)[0] for path in alone]
    assert not np.array_equal(*expected)
    prompts = ["a long siren on a gravel road", "rain", "wind"]
    together = generate(*prompts, "--seed", "3", "--num-samples", "2", "--batch-size", "3", "--overwrite")
    for path, audio in zip(together[2:4], expected, strict=True):
        assert path in alone
        np.testing.assert_allclose(read_audio(path)[0], audio, atol=STEP)


def test_a_sample_can_be_made_again_by_its_seed(generate):
    *_, second = generate("rain", "--seed", "3", "--num-samples", "2")
    (again,) = generate("rain", "--seed", "4")
    np.testing.assert_allclose(read_audio(second)[0], read_audio(again)[0], atol=STEP)


def test_a_prompt_given_twice_gets_another_sample(generate):
    paths = generate("rain", "Rain!", "rain", "--seed", "0")
    assert [path.name for path in paths] == ["rain_1_seed0.wav", "rain_2_seed0.wav", "rain_3_seed1.wav"]


def test_without_a_seed_every_run_is_another(generate):
    (first,), (second,) = generate("rain"), generate("rain")
    assert first != second
    assert not np.array_equal(read_audio(first)[0], read_audio(second)[0])


def test_it_writes_what_the_model_makes(generate, model, processor):
    (path,) = generate("rain", "--seed", "5", "--temperature", "0.8", "--top-k", "20", "--guidance-scale", "2")
    audio = model.generate(
        **processor(text=["rain"]),
        audio_length_in_s=0.3,
        temperature=0.8,
        top_k=20,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(5)],
    )
    expected = normalize_audio(audio[0], 16_000, "loudness", loudness_compressor=True)
    np.testing.assert_allclose(read_audio(path)[0], expected[0], atol=STEP)


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_files_say_how_they_were_made(generate, folder, format):
    (path,) = generate("rain", "--negative", "wind", "--seed", "1", "--format", format, "--top-p", "0.9")
    assert path.suffix == f".{format}"
    metadata = read_metadata(path)
    assert metadata["prompt"] == "rain" and metadata["negative_prompt"] == "wind"
    assert metadata["seed"] == 1 and metadata["model_id"] == folder
    assert metadata["audio_length_in_s"] == 0.3 and metadata["guidance_scale"] == 3.0
    assert metadata["top_p"] == 0.9 and "top_k" not in metadata


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_every_precision_makes_sounds_and_the_files_say_which(generate, precision):
    (path,) = generate("rain", "--seed", "1", "--dtype", precision)
    assert read_metadata(path)["dtype"] == precision


def test_output_may_name_one_file(folder, tmp_path, capsys):
    path = tmp_path / "new" / "dog.flac"
    assert main(["generate", "a dog barks", "--model", folder, *SHORT, "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert soundfile.info(path).format == "FLAC"


def test_prompts_come_from_a_file_and_from_stdin(generate, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffwind\n\n  rain \n", encoding="utf-8")
    names = [path.name for path in generate("dog", "--prompts-file", str(prompts), "--seed", "0")]
    assert names == ["dog_1_seed0.wav", "wind_1_seed0.wav", "rain_1_seed0.wav"]
    monkeypatch.setattr("sys.stdin", io.StringIO("owl\ncat\n"))
    assert [path.name for path in generate("--prompts-file", "-", "--seed", "0")] == [
        "owl_1_seed0.wav",
        "cat_1_seed0.wav",
    ]


def test_a_sound_is_continued_with_and_without_prompts(generate, tmp_path, model, processor):
    sound = 0.1 * np.random.default_rng(0).standard_normal((4_410, 2))
    soundfile.write(tmp_path / "x.wav", sound, 44_100)
    paths = generate("rain", "wind", "--continue-from", str(tmp_path / "x.wav"), "--greedy")
    assert [soundfile.info(path).frames for path in paths] == [4_800, 4_800]
    audio, rate = read_audio(tmp_path / "x.wav", mono=False)
    inputs = processor(text=["rain"], audio=[audio], sampling_rate=rate)
    expected = model.generate(**inputs, audio_length_in_s=0.3, do_sample=False)
    expected = normalize_audio(expected[0], 16_000, "loudness", loudness_compressor=True)
    np.testing.assert_allclose(read_audio(paths[0])[0], expected[0], atol=STEP)
    (path,) = generate("--continue-from", str(tmp_path / "x.wav"), "--seed", "2")
    assert path.name == "x_1_seed2.wav"
    assert read_metadata(path)["prompt"] is None and read_metadata(path)["continued_from"] == str(tmp_path / "x.wav")


def test_a_progress_bar_is_shown(folder, tmp_path, capsys):
    args = ["generate", "rain", "--model", folder, "--duration", "0.1", "--output", str(tmp_path), "--device", "cpu"]
    assert main(args) == 0
    assert "8/8" in capsys.readouterr().err


def test_audiocrafts_repository_is_taken_by_its_id(tmp_path, monkeypatch, capsys):
    use_tiny_audiogen_medium(tmp_path / "hub", monkeypatch)
    name = "facebook/audiogen-medium"
    assert main(["generate", "rain", "--model", name, *SHORT, "--seed", "0", "--output", str(tmp_path)]) == 0
    assert read_metadata(tmp_path / "rain_1_seed0.wav")["model_id"] == name


# Bad input


def test_bad_input_costs_one_line_and_exit_code_2_in_the_shell(tmp_path):
    assert "argument --duration: takes seconds, more than 0, got '0'" in error_of("generate", "x", "--duration", "0")
    assert error_of("generate", "x", "--model", tmp_path).startswith(
        f"audiogen-hf generate: error: cannot load {tmp_path}: "
    )


def test_a_model_of_the_hub_offline_says_what_to_do(capsys, tmp_path):
    message = refusal(capsys, "generate", "x", "--model", "facebook/audiogen-medium", "--output", tmp_path)
    assert "cannot load facebook/audiogen-medium: We couldn't connect to" in message
    for way in ("With a network", "`hf download facebook/audiogen-medium`", "--model FOLDER"):
        assert way in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["generate"], "no prompt"),
        (["generate", ""], "a prompt is empty"),
        (["generate", "x", "--duration", "-1"], "--duration: takes seconds, more than 0, got '-1'"),
        (["generate", "x", "--duration", "inf"], "--duration: takes seconds"),
        (["generate", "x", "--num-samples", "0"], "--num-samples: takes a whole number of at least 1, got '0'"),
        (["generate", "x", "--seed", "-1"], "--seed: takes a whole number from 0"),
        (["generate", "x", "--top-k", "2.5"], "--top-k: takes a whole number of at least 0, got '2.5'"),
        (["generate", "x", "--top-p", "0"], "--top-p: takes a number above 0 and up to 1, got '0'"),
        (["generate", "x", "--top-p", "1.5"], "--top-p: takes a number above 0 and up to 1, got '1.5'"),
        (["generate", "x", "--temperature", "nan"], "--temperature: takes a number of at least 0, got 'nan'"),
        (["generate", "x", "--format", "opus"], "--format: invalid choice: 'opus'"),
        (["generate", "x", "y", "--output", "one.flac"], "--output one.flac is one flac file"),
        (["generate", "x", "--output", "one.flac", "--format", "wav"], "--output one.flac is one flac file"),
        (["generate", "x", "--greedy", "--num-samples", "2"], "--greedy makes the same sound of a prompt each time"),
        (["generate", "x", "--output", "/dev/null/x"], "/dev/null/x: Not a directory"),
        (["generate", "x", "--continue-from", "missing.wav"], "no such sound file: missing.wav"),
        (["generate", "--prompts-file", "missing.txt"], "missing.txt: No such file or directory"),
        (["generate", "x", "--device", "tpu"], "--device tpu cannot be used"),
        (["generate", "x", "--model", "./missing"], "cannot load ./missing: there is no such folder"),
        (["generate", "x", "--model", CHECKPOINT], "pass --text-encoder with a folder or Hub id that has it"),
        (["info", "nobody/nothing"], "cannot load nobody/nothing: "),
        (["convert", "nobody/nothing", "new"], "cannot load nobody/nothing: "),
        (["convert", CHECKPOINT, "new", "--to", "audiocraft"], "is in the layout of audiocraft already"),
        (["manifest", "missing"], "folder missing does not exist"),
    ],
)
def test_bad_input_is_named(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *args)
    assert not list(tmp_path.glob("**/*.*"))


def test_what_the_model_refuses_is_one_line_too(capsys, tmp_path, folder):
    sound = tmp_path / "long.wav"
    soundfile.write(sound, np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000)
    args = ["generate", "x", "--model", folder, "--output", tmp_path / "out", *SHORT]
    assert "more than the sound prompt of 50" in refusal(capsys, *args, "--continue-from", sound)
    assert "A negative prompt needs" in refusal(capsys, *args, "--negative", "y", "--guidance-scale", "1")
    (tmp_path / "long.txt").write_bytes(b"\xff\xfe\xff")
    assert "is no UTF-8 text" in refusal(capsys, *args, "--prompts-file", tmp_path / "long.txt")


def test_files_are_not_replaced_unless_asked(generate, tmp_path, capsys, folder):
    (path,) = generate("rain", "--seed", "0")
    before = path.read_bytes()
    args = ["generate", "rain", "--model", folder, "--seed", "0", *SHORT, "--greedy", "--output", tmp_path / "out"]
    assert f"{path} exists: pass --overwrite, or another --seed or --output" in refusal(capsys, *args)
    assert path.read_bytes() == before
    assert main([*map(str, args), "--overwrite"]) == 0
    assert path.read_bytes() != before


def test_an_interruption_leaves_no_traceback(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("audiogen_hf.cli.run_info", interrupt)
    assert main(["info", "x"]) == 130
    assert capsys.readouterr().err == ""


# convert, info


def test_a_checkpoint_is_converted_there_and_back(tmp_path, capsys):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert main(["convert", str(CHECKPOINT), str(ours), "--text-encoder", str(TEXT_ENCODER)]) == 0
    assert AudioGenConfig.from_pretrained(ours).decoder.hidden_size == 64
    assert (ours / "README.md").is_file()
    assert main(["convert", str(ours), str(theirs), "--text-encoder", "t5-large"]) == 0
    assert capsys.readouterr().out == f"{ours}\n{theirs}\n"
    for filename in ("state_dict.bin", "compression_state_dict.bin"):
        before, after = (load_package(folder / filename)["best_state"] for folder in (CHECKPOINT, theirs))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key].float(), after[key].float()) for key in before)


def test_conversion_leaves_folders_with_files_alone(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert f"TARGET {tmp_path} exists" in refusal(capsys, "convert", CHECKPOINT, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_converted_checkpoint_is_uploaded_with_its_card(tmp_path):
    with HubStandIn() as hub:
        code = "import sys; from audiogen_hf.cli import main; sys.exit(main(sys.argv[1:]))"
        args = ["convert", CHECKPOINT, tmp_path / "new", "--text-encoder", TEXT_ENCODER, "--push-to-hub", "me/model"]
        result = run_python(code, *args, env=hub.environment(tmp_path / "home"))
    assert result.stdout.splitlines()[-1].startswith(f"{hub.endpoint}/me/model/commit/")
    files = hub.repositories["me/model"]
    assert files["model.safetensors"] == (tmp_path / "new" / "model.safetensors").read_bytes()
    assert {"config.json", "generation_config.json", "tokenizer.json", "processor_config.json"} <= files.keys()
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers" and 'model="me/model"' in card.text


@pytest.mark.parametrize("layout", ["transformers", "AudioCraft"])
def test_info_says_what_a_model_is(capsys, folder, layout, model):
    args = [folder] if layout == "transformers" else [str(CHECKPOINT), "--text-encoder", str(TEXT_ENCODER)]
    assert main(["info", *args]) == 0
    lines = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    for line in (
        f"layout {layout}",
        "licence not stated",
        "sound mono, 16000 Hz",
        "window 3 s",
        "codes 4 codebooks of 64, 50 a second",
        "decoder 2 layers of width 64, 2 heads",
        f"in all {model.num_parameters():,} 4.45 MB 2.22 MB",
    ):
        assert line in lines
    assert any(re.fullmatch("text encoder .+: 2 layers of width 32, 4 heads", line) for line in lines)


def test_waiting_threads_do_not_spin_for_long_unless_the_user_says_so(monkeypatch, capsys):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    main(["info", "no/such/folder/at/all"])
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    main(["info", "no/such/folder/at/all"])
    assert os.environ["GOMP_SPINCOUNT"] == "7"
