"""Options and presets of the language model's trainer, and what bad input is told, through the example itself."""

import json
import runpy
import shutil
import sys

import pytest
import soundfile
from lm_utils import ROOT, SOUNDS, command_line, from_scratch, run_example, train

from audiogen_hf.training.arguments import PRESETS, parse_arguments
from audiogen_hf.training.lm.arguments import AudioGenTrainingArguments
from audiogen_hf.training.lm.model import build_model

REQUIRED = ["--train_data", "d", "--output_dir", "o"]
SCRATCH = ["--tokenizer_model", "t", "--validation_data", "v"]


def parse(*argv: str) -> AudioGenTrainingArguments:
    return parse_arguments(AudioGenTrainingArguments, [*REQUIRED, *argv])


@pytest.fixture
def example(capsys, monkeypatch, tmp_path):
    """Runs the example in this process; its exit code and what it wrote to stderr."""

    def run(**options) -> tuple[int, str]:
        output_dir = options.pop("output_dir", tmp_path / "run")
        options = {name: value for name, value in options.items() if value is not None}
        monkeypatch.setattr(sys, "argv", command_line(output_dir, **options))
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "examples" / "train_audiogen.py"), run_name="__main__")
        lines = capsys.readouterr().err.strip().splitlines()
        return stop.value.code, lines[-1]

    return run


def test_defaults_are_audiogens_published_settings():
    args = parse("--model_name_or_path", "m")
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.1, 1.0)
    assert (args.learning_rate, args.lr_schedule, args.warmup_steps) == (5e-4, "inverse_sqrt", 3000)
    assert (args.batch_size, args.max_steps, args.guidance_dropout) == (128, 200_000, 0.1)


@pytest.mark.parametrize("scale", ["small", "medium"])
def test_presets_of_both_scales_are_audiogens_published_settings(scale):
    args = parse("--config", scale, *SCRATCH)
    assert (args.model_scale, args.text_encoder, args.segment_duration) == (scale, "t5-large", 10)
    assert (args.aug_p, args.mix_p, args.mix_snr_low, args.mix_snr_high, args.mix_min_overlap) == (
        0.5,
        0.5,
        -5,
        5,
        0.5,
    )
    assert (args.ema_decay, args.ema_steps, args.mixed_precision) == (0.99, 10, "fp16")
    defaults = parse("--model_name_or_path", "m")
    for name in ("adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "learning_rate", "lr_schedule"):
        assert getattr(args, name) == getattr(defaults, name)
    for name in ("warmup_steps", "batch_size", "max_steps", "guidance_dropout", "min_segment_ratio", "save_steps"):
        assert getattr(args, name) == getattr(defaults, name)


def test_every_preset_is_read_and_the_command_line_wins():
    presets = {path.stem for path in PRESETS.glob("*.yaml")}
    assert {"debug", "small", "medium", "finetune", "lora"} <= presets
    assert parse("--config", "debug", "--tokenizer_model", "t").max_steps == 20
    assert parse("--config", "finetune", "--model_name_or_path", "m").gradient_checkpointing
    args = parse("--config", "lora", "--model_name_or_path", "m", "--lora_rank", "4")
    assert (args.lora_rank, args.lora_alpha, args.uses_adapter) == (4, 32, True)


def test_scales_and_sizes_of_a_file_become_the_decoder(tmp_path, codec_folder):
    options = {"train_data": "d", "output_dir": "o", **from_scratch(codec_folder)}
    (tmp_path / "decoder.json").write_text(
        json.dumps({"hidden_size": 8, "num_attention_heads": 1, "num_codebooks": 2})
    )
    for scale, expected in (("xsmall", (64, 4, 64)), (str(tmp_path / "decoder.json"), (8, 2, 64))):
        model, _ = build_model(AudioGenTrainingArguments(**{**options, "model_scale": scale}))
        decoder = model.config.decoder
        assert (decoder.hidden_size, decoder.num_codebooks, decoder.vocab_size) == expected
        assert model.config.segment_duration == 10.0
        assert model.generation_config.top_k == 250


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either model_name_or_path, to train a model further, or model_scale"),
        (["--model_name_or_path", "m", "--model_scale", "small"], "give either model_name_or_path"),
        (["--model_scale", "small"], "model_scale: from scratch needs tokenizer_model"),
        (["--model_scale", "tiny", "--tokenizer_model", "t"], "model_scale: got 'tiny', takes one of xsmall, small,"),
        (
            ["--model_name_or_path", "m", "--tokenizer_model", "t", "--lora_rank", "4"],
            "tokenizer_model: adapters are for the model as it is",
        ),
        (["--model_scale", "small", "--tokenizer_model", "t", "--lora_rank", "4"], "adapters need model_name_or_path"),
        (["--model_name_or_path", "m", "--lora_rank", "4", "--peft_config", "p"], "give lora_rank or peft_config"),
        (["--model_name_or_path", "m", "--merge_adapter"], "merge_adapter: there is no adapter"),
        (["--model_name_or_path", "m", "--batch_size", "0"], "batch_size: got 0, takes more than 0"),
        (["--model_name_or_path", "m", "--learning_rate", "nan"], "learning_rate: got nan, takes more than 0"),
        (["--model_name_or_path", "m", "--guidance_dropout", "1.5"], "guidance_dropout: got 1.5, takes a probability"),
        (["--model_name_or_path", "m", "--lr_schedule", "step"], "invalid choice: 'step'"),
        (["--model_name_or_path", "m", "--sample_steps", "5"], "sample_steps: samples are made for the clips of"),
        (["--model_name_or_path", "m", "--sample_kinds", "solo"], "sample_kinds: got solo, takes conditional,"),
        (["--model_name_or_path", "m", "--top_p", "0"], "top_p: got 0.0, takes a probability above 0, up to 1"),
        (["--config", "huge"], "--config huge: "),
    ],
)
def test_bad_options_end_in_one_line_and_code_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1


def test_a_dataset_without_descriptions_is_named(example, tmp_path, codec_folder):
    folder = tmp_path / "sounds"
    shutil.copytree(SOUNDS / "train", folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "cat.ogg", "loudness": 1}\n')
    code, error = example(train_data=folder, **from_scratch(codec_folder))
    assert code == 2
    assert "has no description column" in error and "loudness" in error


def test_an_empty_dataset_is_named(example, tmp_path, codec_folder):
    (tmp_path / "empty.jsonl").write_text("")
    code, error = example(train_data=tmp_path / "empty.jsonl", **from_scratch(codec_folder))
    assert (code, "empty.jsonl is empty" in error) == (2, True)


def test_a_decoder_of_more_codebooks_or_codes_than_the_tokenizer_has_is_refused(example, tmp_path, codec_folder):
    for sizes, message in (
        ({"num_codebooks": 9}, "The decoder models 9 codebooks"),
        (
            {"vocab_size": 128},
            "The tokenizer has 64 codes a codebook (`audio_encoder.codebook_size`) but the decoder 128",
        ),
        ({"num_codebooks": 4, "audio_channels": 2}, "stereo"),
    ):
        (tmp_path / "decoder.json").write_text(json.dumps({"hidden_size": 8, "num_attention_heads": 1, **sizes}))
        options = {**from_scratch(codec_folder), "model_scale": tmp_path / "decoder.json"}
        code, error = example(**options)
        assert code == 2
        assert message in error


def test_codes_of_another_tokenizer_or_another_length_are_refused(example, tmp_path, codec_folder, token_cache):
    from transformers import EncodecModel

    code, error = example(train_data=token_cache, **from_scratch(codec_folder))
    assert code == 2
    assert "segment_duration: 1.0 s make 50 frames, the clips of the token cache" in error and "have 100" in error

    codec = EncodecModel.from_pretrained(codec_folder)
    codec.quantizer.layers[0].codebook.embed.mul_(2)
    codec.save_pretrained(tmp_path / "other")
    code, error = example(train_data=token_cache, segment_duration=2, **from_scratch(tmp_path / "other"))
    assert code == 2
    assert "holds codes of another tokenizer" in error

    codec.config.sampling_rate = 8000
    codec.save_pretrained(tmp_path / "slower")
    code, error = example(train_data=token_cache, segment_duration=2, **from_scratch(tmp_path / "slower"))
    assert code == 2
    assert "16000 Hz" in error and "8000 Hz" in error


def test_a_cache_cannot_be_mixed(example, codec_folder, token_cache):
    code, error = example(train_data=token_cache, segment_duration=2, aug_p=0.5, **from_scratch(codec_folder))
    assert (code, "codes cannot be mixed" in error) == (2, True)


def test_an_output_folder_that_cannot_be_written_is_named(example, tmp_path, codec_folder):
    (tmp_path / "file").write_text("")
    code, error = example(output_dir=tmp_path / "file" / "run", **from_scratch(codec_folder))
    assert code == 2
    assert str(tmp_path / "file") in error


def test_places_that_do_not_exist_are_named(example, codec_folder):
    for name in ("train_data", "tokenizer_model", "resume_from_checkpoint"):
        code, error = example(**{**from_scratch(codec_folder), name: "/no/such/place"})
        assert code == 2
        assert "/no/such/place" in error, name
    code, error = example(model_name_or_path="/no/such/place")
    assert (code, "/no/such/place" in error) == (2, True)


def test_a_batch_that_does_not_divide_and_prompts_longer_than_samples_are_refused(example, codec_folder):
    code, error = example(batch_size=6, gradient_accumulation_steps=4, **from_scratch(codec_folder))
    assert (code, "batch_size: got 6, takes a multiple of 4" in error) == (2, True)
    code, error = example(sample_steps=1, sample_prompt_duration=3, **from_scratch(codec_folder))
    assert (code, "sample_prompt_duration: got 3.0 s, takes less than the 1.0 s" in error) == (2, True)


def test_a_tracker_that_is_not_installed_is_refused(example, codec_folder):
    code, error = example(report_to=["tensorboard", "aim"], **from_scratch(codec_folder))
    assert (code, "report_to: there is no tracker aim here" in error) == (2, True)


def test_corrupt_and_silent_sounds_are_skipped_and_counted(tmp_path, codec_folder):
    folder = tmp_path / "sounds"
    shutil.copytree(SOUNDS / "train", folder)
    (folder / "cat.ogg").write_bytes(b"OggS no sound")
    silence = soundfile.SoundFile(folder / "cow.ogg", "w", 16000, 1, format="OGG", subtype="VORBIS")
    with silence:
        silence.write([0.0] * 32000)
    trainer = train(tmp_path / "run", **from_scratch(codec_folder), train_data=str(folder), max_steps=4, batch_size=8)
    assert trainer.train_loader.num_skipped >= 8  # two of eight, in each of four epochs


@pytest.mark.slow
def test_the_example_ends_with_code_2_in_a_process_of_its_own(tmp_path, codec_folder):
    result = run_example(tmp_path, check=False, train_data="/no/such/place", **from_scratch(codec_folder))
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("train_audiogen.py: error: ")
