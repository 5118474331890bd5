"""A run from options to models, samples, cards: what it computes, what it keeps, how it goes on."""

import json
import logging

import numpy as np
import pytest
import soundfile
import torch
from lm_utils import SOUNDS, TINY, from_scratch, read_log, run_example, train, weights
from safetensors.torch import load_file
from transformers import EncodecModel

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.training.checkpointing import list_checkpoints
from audiogen_hf.training.lm.arguments import AudioGenTrainingArguments
from audiogen_hf.training.lm.trainer import AudioGenTrainer


def checkpoint_state(folder):
    """Everything in a checkpoint that decides how training goes on, flat."""
    state = dict(load_file(folder / "trained_weights.safetensors"))
    if (folder / "ema.safetensors").is_file():
        state |= {f"ema/{name}": tensor for name, tensor in load_file(folder / "ema.safetensors").items()}
    moments = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    state |= {f"adam/{i}/{name}": tensor for i, entry in moments.items() for name, tensor in entry.items()}
    state["rng"] = torch.load(folder / "random_states_0.pkl", weights_only=False)["torch_manual_seed"]
    return state, json.loads((folder / "train_loader-0.json").read_text())


def assert_same_state(first, second):
    (first, first_place), (second, second_place) = checkpoint_state(first), checkpoint_state(second)
    assert first_place == second_place
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_accumulated_parts_and_recomputed_layers_change_nothing(tmp_path, codec_folder):
    options = {**from_scratch(codec_folder), "max_steps": 3, "save_steps": 10}
    train(tmp_path / "whole", **options)
    variants = {"parts": {"gradient_accumulation_steps": 4}, "recomputed": {"gradient_checkpointing": True}}
    for name, variant in variants.items():
        train(tmp_path / name, **options, **variant)
        for figure in ("train/ce", "train/grad_norm", "validation/ce"):
            expected = read_log(tmp_path / "whole", figure)
            assert read_log(tmp_path / name, figure) == pytest.approx(expected, rel=2e-6), (name, figure)


@pytest.mark.slow
def test_compiled_layers_change_nothing(tmp_path, codec_folder):
    options = {**from_scratch(codec_folder), "max_steps": 3, "save_steps": 3, "sample_steps": 3, "num_samples": 1}
    train(tmp_path / "eager", **options)
    train(tmp_path / "compiled", **options, torch_compile=True)
    for figure in ("train/ce", "validation/ce"):
        expected = read_log(tmp_path / "eager", figure)
        assert read_log(tmp_path / "compiled", figure) == pytest.approx(expected, rel=1e-5)


def test_bfloat16_trains_close_to_float32_and_keeps_float32_weights(tmp_path, codec_folder):
    options = {**from_scratch(codec_folder), "max_steps": 3, "save_steps": 3}
    train(tmp_path / "full", **options)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # one process trains with one precision
    try:
        train(tmp_path / "half", **options, mixed_precision="bf16")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    losses = read_log(tmp_path / "half", "train/ce")
    assert losses == pytest.approx(read_log(tmp_path / "full", "train/ce"), rel=1e-2)
    assert losses != read_log(tmp_path / "full", "train/ce")
    assert {tensor.dtype for tensor in weights(tmp_path / "half" / "last").values() if tensor.is_floating_point()} == {
        torch.float32
    }


def test_a_step_of_guidance_dropout_reads_no_text(tmp_path, codec_folder, monkeypatch):
    from audiogen_hf.training.lm import trainer as module

    with_text = []
    encode_batch = module.encode_batch

    def spy(model, batch, device, **kwargs):
        inputs = encode_batch(model, batch, device, **kwargs)
        with_text.append(bool(inputs.attention_mask.any()))
        assert kwargs["with_text"] == with_text[-1]
        return inputs

    monkeypatch.setattr(module, "encode_batch", spy)
    options = {**from_scratch(codec_folder), "validation_data": None, "max_steps": 12, "save_steps": 12}
    first = train(tmp_path / "half", **options, guidance_dropout=0.5)
    assert 2 <= with_text.count(False) <= 10
    drawn = list(with_text)
    with_text.clear()
    train(tmp_path / "again", **options, guidance_dropout=0.5)
    assert with_text == drawn
    # The projection of the text learns in steps with a text only.
    with_text.clear()
    train(tmp_path / "never", **{**options, "max_steps": 2}, guidance_dropout=1.0)
    assert not any(with_text)
    moments = torch.load(tmp_path / "never" / "checkpoint-2" / "optimizer.bin", weights_only=True)["state"]
    names = [name for name, parameter in first._unwrapped().named_parameters() if parameter.requires_grad]
    assert moments[names.index("enc_to_dec_proj.weight")]["exp_avg"].abs().max() == 0
    assert moments[names.index("lm_head.weight")]["exp_avg"].abs().max() > 0


def test_a_resumed_run_is_the_uninterrupted_one_in_the_middle_of_an_epoch(tmp_path, codec_folder):
    # Batches of 3 of 8 sounds, mixed in part, dropout in the decoder: everything that is random.
    decoder = tmp_path / "decoder.json"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder.write_text(json.dumps({**sizes, "dropout": 0.1, "attention_dropout": 0.1}))
    options = {**from_scratch(codec_folder), "model_scale": str(decoder), "batch_size": 3, "aug_p": 0.5}
    options |= {"ema_decay": 0.9, "ema_steps": 2, "guidance_dropout": 0.3, "max_steps": 6, "save_steps": 2}
    options |= {"save_total_limit": 3}
    train(tmp_path / "whole", **options)
    train(tmp_path / "cut", **options)
    for later in ("checkpoint-4", "checkpoint-6"):
        for path in (tmp_path / "cut" / later).iterdir():
            path.unlink()
        (tmp_path / "cut" / later).rmdir()
    resumed = train(tmp_path / "cut", **options, resume_from_checkpoint="latest")
    assert resumed.step == 6
    assert_same_state(tmp_path / "cut" / "checkpoint-6", tmp_path / "whole" / "checkpoint-6")
    first, second = weights(tmp_path / "cut" / "last"), weights(tmp_path / "whole" / "last")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_cut_short_gives_way_to_the_one_before_it_and_says_so(tmp_path, codec_folder, caplog):
    options = {**from_scratch(codec_folder), "max_steps": 4, "save_steps": 2}
    train(tmp_path, **options)
    broken = tmp_path / "checkpoint-4" / "optimizer.bin"
    broken.write_bytes(broken.read_bytes()[:100])
    with caplog.at_level(logging.INFO):
        args = AudioGenTrainingArguments(
            output_dir=str(tmp_path), **{**TINY, **options}, resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )
        trainer = AudioGenTrainer(args)
    assert trainer.step == 2
    assert "optimizer.bin has 100 bytes" in caplog.text
    assert "Resuming from the one before it" in caplog.text


def test_a_stream_trains_and_goes_on_where_it_stopped(tmp_path, codec_folder):
    options = {**from_scratch(codec_folder), "streaming": True, "max_steps": 4, "save_steps": 2, "batch_size": 3}
    train(tmp_path / "whole", **options)
    train(tmp_path / "cut", **{**options, "max_steps": 2}, lr_schedule="constant")
    train(tmp_path / "cut2", **options, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_state(tmp_path / "cut2" / "checkpoint-4", tmp_path / "whole" / "checkpoint-4")


def test_sounds_and_their_token_cache_train_alike(tmp_path, codec_folder, token_cache):
    options = {**from_scratch(codec_folder), "segment_duration": 2.0, "validation_data": None, "save_steps": 4}
    train(tmp_path / "sounds", **options)
    train(tmp_path / "codes", **{**options, "train_data": str(token_cache)})
    expected = read_log(tmp_path / "sounds", "train/ce")
    assert read_log(tmp_path / "codes", "train/ce") == pytest.approx(expected, rel=1e-5)


def test_validation_is_over_all_cells_whatever_the_batches(tmp_path, codec_folder):
    # The sheep is shorter than a clip of 1 s, so batches have unequal numbers of targets.
    options = {**from_scratch(codec_folder), "max_steps": 1, "save_steps": 1}
    train(tmp_path / "together", **options, **{"learning_rate": 1e-9})
    train(tmp_path / "apart", **{**options, "batch_size": 1}, **{"learning_rate": 1e-9})
    for name in ("ce", "ppl", "ce_q1", "ppl_q4"):
        expected = read_log(tmp_path / "together", f"validation/{name}")
        assert read_log(tmp_path / "apart", f"validation/{name}") == pytest.approx(expected, rel=1e-5)
    figures = {name: read_log(tmp_path / "together", f"validation/{name}")[0] for name in ("ce", "ppl")}
    assert figures["ppl"] == pytest.approx(np.exp(figures["ce"]))
    per_codebook = [read_log(tmp_path / "together", f"validation/ce_q{k}")[0] for k in range(1, 5)]
    assert figures["ce"] == pytest.approx(np.mean(per_codebook))


def test_averaged_weights_are_the_ones_exported_and_validated(tmp_path, codec_folder):
    options = {**from_scratch(codec_folder), "max_steps": 3, "save_steps": 3, "learning_rate": 1e-2}
    trainer = train(tmp_path, **options, ema_decay=0.5, ema_steps=1)
    exported = weights(tmp_path / "last")
    average = load_file(tmp_path / "checkpoint-3" / "ema.safetensors")
    own = load_file(tmp_path / "checkpoint-3" / "trained_weights.safetensors")
    assert average.keys() == {*own, "total_weight"}
    for name in own:
        assert torch.equal(exported[name], average[name])
        assert torch.equal(trainer._unwrapped().state_dict()[name], own[name])  # training goes on with its own
    assert not torch.equal(exported["lm_head.weight"], own["lm_head.weight"])
    resumed = AudioGenForConditionalGeneration.from_pretrained(tmp_path / "last")
    trainer.ema = None
    trainer.model.load_state_dict(resumed.state_dict())
    assert trainer.validate()["ce"] == pytest.approx(read_log(tmp_path, "validation/ce")[-1], rel=1e-6)


def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path, codec_folder):
    # A learning rate that destroys the model as it rises: the best is an early one.
    options = {**from_scratch(codec_folder), "max_steps": 6, "save_steps": 1, "warmup_steps": 3}
    train(tmp_path, **options, learning_rate=3.0, save_total_limit=2)
    losses = read_log(tmp_path, "validation/ce")
    best = int(np.argmin(losses)) + 1
    assert best < 5
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [best, 5, 6]
    kept = load_file(tmp_path / f"checkpoint-{best}" / "trained_weights.safetensors")
    exported = weights(tmp_path / "best")
    assert all(torch.equal(exported[name], kept[name]) for name in kept)
    assert f"{losses[best - 1]:.4f}" in (tmp_path / "best" / "README.md").read_text()
    assert "6 optimizer steps of 4 clips of 1 s, 24 clips in all" in (tmp_path / "last" / "README.md").read_text()


def test_samples_of_every_kind_are_written_and_the_same_for_the_same_model(tmp_path, codec_folder):
    options = {**from_scratch(codec_folder), "max_steps": 2, "save_steps": 2, "sample_steps": 1, "num_samples": 2}
    options |= {"sample_prompt_duration": 0.4, "learning_rate": 1e-12}
    train(tmp_path, **options)
    folders = [tmp_path / "samples" / f"step-{step}" for step in (1, 2)]
    lines = [json.loads(line) for line in (folders[0] / "samples.jsonl").read_text().splitlines()]
    kinds = ["conditional", "unconditional", "continuation", "reference"]
    assert [line["kind"] for line in lines] == 2 * kinds
    assert [line["text"] for line in lines[::4]] == ["a tawny owl hooting", "a sheep bleating"]
    assert lines[0]["top_k"] == 250
    sounds = {}
    for line in lines:
        sound, rate = soundfile.read(folders[0] / line["file_name"])
        assert (rate, len(sound)) == (16000, 16000)
        again, _ = soundfile.read(folders[1] / line["file_name"])
        assert np.array_equal(sound, again)  # draws depend on the clip, not on the step
        sounds[line["file_name"]] = sound
    assert not np.array_equal(sounds["000_conditional.wav"], sounds["000_unconditional.wav"])

    # A continuation begins with the clip's own codes.
    model = AudioGenForConditionalGeneration.from_pretrained(tmp_path / "last")
    codes = []
    for kind in ("continuation", "reference"):
        sound = torch.tensor(sounds[f"000_{kind}.wav"], dtype=torch.float32)[None, None]
        codes.append(sound[..., : int(0.3 * 16000)] / sound[..., : int(0.3 * 16000)].abs().max())
    assert (codes[0] - codes[1]).abs().max() < 0.02
    assert model.config.segment_duration == 1.0


def test_tensorboard_gets_figures_sounds_and_spectrograms(tmp_path, codec_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {**from_scratch(codec_folder), "max_steps": 2, "save_steps": 2, "sample_steps": 2, "num_samples": 1}
    train(tmp_path, **options, report_to=["tensorboard"], sample_kinds=["conditional"])
    events = EventAccumulator(str(tmp_path / "audiogen"), size_guidance={"audio": 0, "images": 0})
    events.Reload()
    scalars = [event.value for event in events.Scalars("train/ce")]
    assert scalars == pytest.approx(read_log(tmp_path, "train/ce"), rel=1e-6)
    assert set(events.Tags()["audio"]) == {"conditional/0", "reference/0"}
    assert set(events.Tags()["images"]) == {"conditional/0/spectrogram", "reference/0/spectrogram"}
    sound = events.Audio("conditional/0")[0]
    assert (sound.sample_rate, sound.length_frames) == (16000.0, 16000)
    image = events.Images("conditional/0/spectrogram")[0]
    assert (image.height, image.width) == (257, 63)


def test_models_of_a_run_load_in_both_layouts_and_train_further(tmp_path, codec_folder):
    from testing_utils import CHECKPOINT, TEXT_ENCODER

    options = {"max_steps": 1, "save_steps": 1, "validation_data": None}
    train(tmp_path / "first", model_name_or_path=str(CHECKPOINT), text_encoder=str(TEXT_ENCODER), **options)
    processor = AudioGenProcessor.from_pretrained(tmp_path / "first" / "last")
    model = AudioGenForConditionalGeneration.from_pretrained(tmp_path / "first" / "last")
    assert model.config.segment_duration == 1.0
    audio = model.generate(**processor(text=["a dog barks"]), audio_length_in_s=0.2)
    assert audio.shape == (1, 1, 3200)
    trainer = train(tmp_path / "second", model_name_or_path=str(tmp_path / "first" / "last"), **options)
    assert trainer.step == 1
    # The tokenizer of a whole AudioGen, in either layout, serves a model from scratch.
    for tokenizer in (CHECKPOINT, tmp_path / "first" / "last"):
        trainer = train(
            tmp_path / "third", **{**from_scratch(codec_folder), "tokenizer_model": str(tokenizer)}, **options
        )
        codec, expected = trainer.model.audio_encoder.state_dict(), model.audio_encoder.state_dict()
        assert all(torch.equal(codec[name], expected[name]) for name in expected)


def test_a_model_can_go_on_with_another_tokenizer_of_the_same_shape(tmp_path, codec_folder, base_model):
    codec = EncodecModel.from_pretrained(codec_folder)
    with torch.no_grad():
        codec.encoder.layers[0].conv.bias.add_(0.1)
    codec.save_pretrained(tmp_path / "codec")
    options = {"model_name_or_path": str(base_model), "max_steps": 1, "save_steps": 1}
    train(tmp_path / "run", tokenizer_model=str(tmp_path / "codec"), **options)
    model = AudioGenForConditionalGeneration.from_pretrained(tmp_path / "run" / "last")
    for name, tensor in codec.state_dict().items():
        assert torch.equal(model.audio_encoder.state_dict()[name], tensor)

    codec.config.sampling_rate = 8000
    codec.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="tokenizer_model: its sampling_rate is 8000, that of the model's own"):
        train(tmp_path / "refused", tokenizer_model=str(tmp_path / "other"), **options)


def test_a_run_that_diverges_stops_and_says_at_which_step(tmp_path, codec_folder):
    options = {**from_scratch(codec_folder), "warmup_steps": 0, "lr_schedule": "constant", "max_steps": 10}
    with pytest.raises(RuntimeError, match=r"the loss is nan at step \d: the model has diverged"):
        train(tmp_path, **options, learning_rate=1e30)
    assert not list_checkpoints(tmp_path) or list_checkpoints(tmp_path)[-1].step < 10


def test_push_to_hub_uploads_the_best_model_with_its_card(tmp_path, codec_folder, monkeypatch):
    import huggingface_hub.constants
    from hub_utils import HubStandIn

    options = {**from_scratch(codec_folder), "max_steps": 2, "save_steps": 1}
    with HubStandIn() as hub:
        from audiogen_hf.training.lm import trainer as module

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        api = module.HfApi(endpoint=hub.endpoint, token="hf_test")
        monkeypatch.setattr(module, "HfApi", lambda: api)
        train(tmp_path / "run", **options, push_to_hub=True, hub_model_id="someone/animals")
        files = hub.repositories["someone/animals"]
    card = files["README.md"].decode()
    assert "Trained on `train`, 8 clips." in card
    assert "| `learning_rate` | 0.0005 |" in card
    assert "| ce | " in card and "someone/animals" in card
    assert {"config.json", "processor_config.json"} <= files.keys()


def test_the_sounds_of_these_tests_are_real():
    for name in ("train", "valid"):
        for path in sorted((SOUNDS / name).glob("*.ogg")):
            sound, rate = soundfile.read(path)
            assert rate == 16000 and sound.std() > 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_take_figures_sounds_and_spectrograms(tmp_path, codec_folder, name):
    pytest.importorskip(name)
    options = {**from_scratch(codec_folder), "max_steps": 2, "save_steps": 2, "sample_steps": 2, "num_samples": 1}
    folders = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    run_example(tmp_path / "run", env=folders, **options, report_to=[name], sample_kinds=["conditional"])
    media = [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "run")]
    assert len([path for path in media if path.suffix == ".wav"]) == 2
    assert len([path for path in media if path.suffix == ".png"]) == 2
