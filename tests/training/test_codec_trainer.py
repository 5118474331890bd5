"""The EnCodec trainer, from options to a model that stock transformers loads; at tiny sizes, on sounds made here."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoFeatureExtractor, AutoModel, EncodecModel

from audiogen_hf import AudioGenConfig
from audiogen_hf.audiocraft_state_dict import codec_state_from_audiocraft, codec_state_to_audiocraft
from audiogen_hf.cpu_inference import PackedLinear
from audiogen_hf.data import load_audio_text_dataset, tokenizer_fingerprint, write_token_cache
from audiogen_hf.training.checkpointing import list_checkpoints
from audiogen_hf.training.codec.arguments import EncodecTrainingArguments
from audiogen_hf.training.codec.losses import discriminator_hinge_loss, si_snr
from audiogen_hf.training.codec.modeling import build_encodec, encodec_config
from audiogen_hf.training.codec.trainer import EncodecTrainer, codebook_statistics, count_codes
from audiogen_hf.training.distributed import build_accelerator
from audiogen_hf.training.lm.model import load_codec

RATE = 16000
TINY = {
    "num_filters": 2,
    "hidden_size": 8,
    "num_lstm_layers": 1,
    "codebook_size": 16,
    "kmeans_iterations": 2,
    "discriminator_filters": 2,
    "segment_duration": 0.2,
    "validation_segment_duration": 0.2,
    "batch_size": 4,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 2,
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Six sounds of decaying tones, 0.15 to 0.4 s long."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for number in range(6):
        t = np.arange(int(RATE * rng.uniform(0.15, 0.4))) / RATE
        sound = sum(0.2 * np.sin(2 * np.pi * rng.uniform(100, 3000) * t + number) for _ in range(3)) * np.exp(-4 * t)
        soundfile.write(folder / f"{number}.wav", sound.astype(np.float32), RATE)
    return folder


def arguments(sounds, output_dir, **options) -> EncodecTrainingArguments:
    data = {"train_data": str(sounds), "validation_data": str(sounds), "output_dir": str(output_dir)}
    return EncodecTrainingArguments(**{**data, **TINY, **options})


def train(*args, **options) -> EncodecTrainer:
    trainer = EncodecTrainer(arguments(*args, **options))
    trainer.train()
    return trainer


def read_log(output_dir):
    return [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]


def state_of(checkpoint_dir):
    """Everything in a checkpoint that decides how training goes on, as one flat dictionary."""
    state = {}
    for name in ("model.safetensors", "model_1.safetensors", "ema.safetensors"):
        state |= {f"{name}/{key}": tensor for key, tensor in load_file(checkpoint_dir / name).items()}
    for name in ("optimizer.bin", "optimizer_1.bin"):
        moments = torch.load(checkpoint_dir / name, weights_only=True)["state"]
        state |= {f"{name}/{i}/{key}": tensor for i, entry in moments.items() for key, tensor in entry.items()}
    manifest = json.loads((checkpoint_dir / "checkpoint.json").read_text())
    return state, manifest["state"], manifest["metrics"]


def test_defaults_are_the_tokenizer_of_audiogen():
    args = EncodecTrainingArguments(train_data="d", output_dir="o")
    config = encodec_config(args)
    assert (config.num_quantizers, config.codebook_size, config.frame_rate) == (4, 2048, 50)
    assert (config.hop_length, config.num_filters, config.hidden_size) == (320, 64, 128)
    assert (config.pad_mode, config.use_causal_conv, config.use_conv_shortcut) == ("constant", False, False)
    assert (config.normalize, config.chunk_length_s, config.sampling_rate) == (False, None, 16000)


@pytest.mark.parametrize("num_codebooks", range(1, 33))
def test_any_number_of_codebooks_survives_its_detour_through_the_bandwidth(num_codebooks):
    for size in (256, 1024, 2048):
        args = EncodecTrainingArguments("d", "o", num_codebooks=num_codebooks, codebook_size=size)
        assert encodec_config(args).num_quantizers == num_codebooks


def test_a_new_model_keeps_the_scale_of_a_sound():
    torch.manual_seed(0)
    model = build_encodec(EncodecTrainingArguments("d", "o", num_filters=8))
    noise = torch.randn(2, 1, RATE)
    with torch.no_grad():
        hidden_states = model.encoder(noise)
        audio = model.decoder(hidden_states)
    assert 0.3 < hidden_states.std(dim=-1).mean() < 3
    assert 0.3 < audio.std() < 3


def test_a_run_leaves_models_that_stock_transformers_loads_and_that_have_the_logged_figures(sounds, tmp_path):
    trainer = train(sounds, tmp_path)
    model = AutoModel.from_pretrained(tmp_path / "last")
    assert type(model) is EncodecModel
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "last").sampling_rate == RATE
    averages = trainer.ema.averages
    assert all(torch.equal(tensor, averages[name]) for name, tensor in model.state_dict().items() if name in averages)

    validation = [line for line in read_log(tmp_path) if "validation/si_snr" in line]
    assert [line["step"] for line in validation] == [2, 4]
    ratios = []
    for path in sorted(sounds.glob("*.wav")):
        reader_clip = trainer.validation_loader.clips[int(path.stem)]
        audio = torch.from_numpy(reader_clip["audio"])[None, None]
        with torch.no_grad():
            estimate = model(audio).audio_values[..., : audio.shape[-1]]
        estimate[..., reader_clip["length"] :] = 0
        ratios.append(si_snr(estimate, audio).item())
    assert validation[-1]["validation/si_snr"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-3)


def test_a_trained_model_is_a_tokenizer_for_audiogen_and_fits_audiocrafts_layout(sounds, tmp_path):
    train(sounds, tmp_path, max_steps=1)
    codec = load_codec(str(tmp_path / "last"))
    config = AudioGenConfig(
        audio_encoder=codec.config.to_dict(),
        decoder={"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    )
    assert (config.sampling_rate, config.frame_rate, config.audio_encoder.num_quantizers) == (RATE, 50, 4)
    state = codec.state_dict()
    restored = codec_state_from_audiocraft(codec_state_to_audiocraft(state))
    assert all(torch.equal(restored[name], tensor) for name, tensor in state.items())


def test_trackers_get_sounds_and_figures(sounds, tmp_path):
    train(sounds, tmp_path, max_steps=2, report_to=["tensorboard"])
    reader = EventAccumulator(str(tmp_path / "encodec"), size_guidance={"audio": 0}).Reload()
    assert reader.Tags()["audio"] == [f"{kind}/{n}" for n in range(4) for kind in ("original", "reconstruction")]
    assert {"train/mel", "validation/si_snr"} <= set(reader.Tags()["scalars"])


def test_the_best_model_is_that_of_the_smallest_mel_distance(sounds, tmp_path):
    train(sounds, tmp_path, learning_rate=0.05, max_steps=8, save_total_limit=1)  # too fast: figures go up and down
    distances = {
        line["step"]: line["validation/mel_distance"] for line in read_log(tmp_path) if "validation/si_snr" in line
    }
    best = min(distances, key=distances.get)
    kept = {checkpoint.step: checkpoint.path for checkpoint in list_checkpoints(tmp_path)}
    assert kept.keys() == {best, 8}
    averages = load_file(kept[best] / "ema.safetensors")
    exported = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(exported[name], averages[name]) for name in averages.keys() & exported.keys())


def test_a_resumed_run_ends_bitwise_as_an_uninterrupted_one(sounds, tmp_path):
    options = {"lr_schedule": "cosine", "discriminator_start_step": 1}
    train(sounds, tmp_path / "whole", **options)
    trainer = EncodecTrainer(arguments(sounds, tmp_path / "halves", **options))
    save = trainer.save

    def save_and_stop(metrics):
        save(metrics)
        raise KeyboardInterrupt

    trainer.save = save_and_stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    torch.rand(10)  # a resumed run must not depend on where the generators of this process are
    train(sounds, tmp_path / "halves", resume_from_checkpoint="latest", **options)

    whole, whole_state, whole_metrics = state_of(tmp_path / "whole" / "checkpoint-4")
    halves, halves_state, halves_metrics = state_of(tmp_path / "halves" / "checkpoint-4")
    assert whole.keys() == halves.keys()
    assert [name for name in whole if not torch.equal(whole[name], halves[name])] == []
    assert (whole_state, whole_metrics) == (halves_state, halves_metrics)


def test_a_finished_run_resumed_trains_no_further(sounds, tmp_path):
    train(sounds, tmp_path)
    before = (tmp_path / "last" / "model.safetensors").read_bytes()
    trainer = train(sounds, tmp_path, resume_from_checkpoint="latest")
    assert trainer.step == 4
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == before


def test_the_discriminator_joins_at_its_step(sounds, tmp_path):
    trainer = EncodecTrainer(arguments(sounds, tmp_path, discriminator_start_step=1))
    trainer.initialize_codebooks()
    before = [parameter.clone() for parameter in trainer.discriminator.parameters()]
    batches = iter(trainer.train_loader)
    losses, _ = trainer.training_step(next(batches)["input_values"])
    assert losses.keys() == {"l1", "mel", "commitment"}
    assert all(map(torch.equal, before, trainer.discriminator.parameters()))
    losses, _ = trainer.training_step(next(batches)["input_values"])
    assert losses.keys() == {"adversarial", "feature", "l1", "mel", "commitment", "discriminator"}
    assert not any(map(torch.equal, before, trainer.discriminator.parameters()))


def test_the_discriminator_is_built_and_trained_as_told(sounds, tmp_path):
    options = {"discriminator_windows": [256, 64], "discriminator_compression": 0.3, "discriminator_overlap": 2}
    trainer = EncodecTrainer(arguments(sounds, tmp_path, discriminator_learning_rate=1e-3, **options))
    assert [scale.n_fft for scale in trainer.discriminator.scales] == [256, 64]
    assert {scale.compression for scale in trainer.discriminator.scales} == {0.3}
    assert [scale.hop_length for scale in trainer.discriminator.scales] == [128, 32]
    assert trainer.discriminator_optimizer.param_groups[0]["lr"] == 1e-3
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.args.learning_rate == 3e-4


def test_every_parameter_of_the_model_gets_a_gradient(sounds, tmp_path):
    trainer = EncodecTrainer(arguments(sounds, tmp_path))
    trainer.initialize_codebooks()
    before = {name: parameter.clone() for name, parameter in trainer.codec.named_parameters()}
    for batch in trainer.train_loader:
        trainer.training_step(batch["input_values"])
        break
    unmoved = [name for name, parameter in trainer.codec.named_parameters() if torch.equal(parameter, before[name])]
    assert unmoved == []


def test_training_lowers_the_distance_to_the_sound(sounds, tmp_path):
    options = {"learning_rate": 5e-3, "codebook_decay": 0.8, "l1_weight": 1.0, "num_filters": 4}
    train(sounds, tmp_path, discriminator=False, max_steps=60, save_steps=10, **options)
    figures = [line for line in read_log(tmp_path) if "validation/si_snr" in line]
    assert figures[-1]["validation/si_snr"] > figures[0]["validation/si_snr"] + 10
    assert figures[-1]["validation/mel_distance"] < 0.8 * figures[0]["validation/mel_distance"]
    assert figures[-1]["validation/codebook_use"] > 0.8


def test_a_trained_model_can_be_trained_further(sounds, tmp_path):
    train(sounds, tmp_path / "first")
    trainer = EncodecTrainer(
        arguments(sounds, tmp_path / "second", model_name_or_path=str(tmp_path / "first" / "last"))
    )
    first = EncodecModel.from_pretrained(tmp_path / "first" / "last").state_dict()
    state = trainer.codec.state_dict()
    assert all(torch.equal(state[name], first[name]) for name in state if not name.endswith("embed_avg"))
    trainer.train()
    assert (tmp_path / "second" / "last" / "model.safetensors").exists()


def test_codebooks_stay_where_they_are_though_their_averages_were_rounded_in_storage(sounds, tmp_path):
    train(sounds, tmp_path / "first", max_steps=1)
    stored = EncodecModel.from_pretrained(tmp_path / "first" / "last")
    for layer in stored.quantizer.layers:
        layer.codebook.embed_avg.mul_(2)
    stored.save_pretrained(tmp_path / "rounded")
    trainer = EncodecTrainer(arguments(sounds, tmp_path / "run", model_name_or_path=str(tmp_path / "rounded")))
    for layer in trainer.codec.quantizer.layers:
        codebook = layer.codebook
        torch.testing.assert_close(codebook.embed_avg, codebook.embed * codebook.cluster_size[:, None])


def test_one_pass_gives_the_discriminator_the_gradient_of_its_own_loss_alone(sounds, tmp_path):
    trainer = EncodecTrainer(arguments(sounds, tmp_path))
    trainer.initialize_codebooks()
    audio = next(iter(trainer.train_loader))["input_values"]
    weights = list(trainer.discriminator.parameters())
    logits, _ = trainer.discriminator(torch.cat([audio, trainer.model(audio).audio.detach()]))
    real, fake = zip(*(scale.chunk(2) for scale in logits), strict=True)
    expected = torch.autograd.grad(discriminator_hinge_loss(real, fake), weights)
    taken = {}

    def take_step(optimizer, schedule):
        taken[optimizer] = [weight.grad.clone() for group in optimizer.param_groups for weight in group["params"]]
        optimizer.zero_grad()

    trainer._take_step = take_step
    trainer.training_step(audio)
    for gradient, wanted in zip(taken[trainer.discriminator_optimizer], expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_norms_are_measured_as_often_as_told(sounds, tmp_path):
    trainer = EncodecTrainer(arguments(sounds, tmp_path, balancer_interval=2))
    trainer.initialize_codebooks()
    norms = []
    for _, batch in zip(range(4), trainer.train_loader, strict=False):
        trainer.training_step(batch["input_values"])
        norms.append(trainer.balancer.state_dict())
    assert norms[0] == norms[1] != norms[2] == norms[3]


def test_without_its_encoder_a_model_learns_to_decode_the_same_codes(sounds, tmp_path):
    train(sounds, tmp_path / "first")
    options = {"model_name_or_path": str(tmp_path / "first" / "last"), "train_encoder": False}
    train(sounds, tmp_path / "second", **options)
    first, second = (EncodecModel.from_pretrained(tmp_path / run / "last") for run in ("first", "second"))
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(second)
    before = first.decoder.state_dict()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in second.decoder.state_dict().items())


def test_a_decoder_learns_from_cached_codes_of_whole_sounds(sounds, tmp_path):
    train(sounds, tmp_path / "first")
    codec = EncodecModel.from_pretrained(tmp_path / "first" / "last")
    rows = load_audio_text_dataset(sounds, with_text=False)
    write_token_cache(tmp_path / "codes", rows, codec, segment_duration=0.4, with_sound=True, progress=False)
    options = {
        "model_name_or_path": str(tmp_path / "first" / "last"),
        "train_data": str(tmp_path / "codes"),
        "train_encoder": False,
        "mel_loss": "log_l1",
        "mel_windows": [64, 256],
        "discriminator": False,
        "discriminator_windows": [64],
        "segment_duration": 0.1,
        "learning_rate": 1e-2,
        "max_steps": 60,
        "save_steps": 60,
    }
    trainer = EncodecTrainer(arguments(sounds, tmp_path / "second", **options))
    (batch,) = itertools.islice(trainer.train_loader, 1)
    assert batch["audio_codes"].shape == (4, 4, 5) and batch["input_values"].shape == (4, 1, 1600)
    before, codes = trainer.training_step(batch["input_values"], batch["audio_codes"])
    assert torch.equal(codes, batch["audio_codes"]) and before["commitment"] == 0
    trainer.train()
    with torch.no_grad():
        output = trainer.model(batch["input_values"], batch["audio_codes"])
    assert trainer.mel_loss(output.audio, batch["input_values"]) < 0.8 * before["mel"]
    trained = EncodecModel.from_pretrained(tmp_path / "second" / "last")
    assert tokenizer_fingerprint(trained) == tokenizer_fingerprint(codec)


def test_a_token_cache_is_refused_where_the_encoder_trains_or_to_validate_with(sounds, tmp_path):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "token_cache.json").write_text("{}")
    for name in ("train_data", "validation_data"):
        with pytest.raises(ValueError, match=f"{name}: got the token cache .*codes; one is taken as train_data alone"):
            EncodecTrainer(arguments(sounds, tmp_path / "run", **{name: str(tmp_path / "codes")}))


def test_in_bfloat16_the_layers_compute_so_and_the_weights_stay_float32(sounds, tmp_path):
    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)  # one process trains with one precision
        trainer = EncodecTrainer(arguments(sounds, tmp_path / precision, mixed_precision=precision))
        trainer.initialize_codebooks()
        losses[precision], _ = trainer.training_step(next(iter(trainer.train_loader))["input_values"])
        assert {parameter.dtype for parameter in trainer.codec.parameters()} == {torch.float32}
    AcceleratorState._reset_state(reset_partial_state=True)
    for name, loss in losses["no"].items():
        assert losses["bf16"][name].dtype == torch.float32
        assert losses["bf16"][name] != loss
        torch.testing.assert_close(losses["bf16"][name], loss, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("available", [True, False])
def test_bfloat16_on_a_cpu_that_is_slow_at_it_is_warned_of(available, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(PackedLinear, "is_available", staticmethod(lambda dtype: available))
    AcceleratorState._reset_state(reset_partial_state=True)
    build_accelerator(mixed_precision="bf16", gradient_accumulation_steps=1, report_to=[], project_dir=str(tmp_path))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert ("PyTorch has no fast bf16 for this CPU" in caplog.text) != available


def test_statistics_of_codes_have_their_closed_form():
    codes = torch.tensor([[[0, 0, 1], [3, 3, 3]], [[1, 2, 0], [3, 3, 0]]])  # (2 sounds, 2 codebooks, 3 frames)
    frames = torch.tensor([[True, True, True], [True, False, False]])
    counts = count_codes(codes, 4, frames)
    assert counts.tolist() == [[2, 2, 0, 0], [0, 0, 0, 4]]
    assert codebook_statistics(counts) == (pytest.approx((0.5 + 0.25) / 2), pytest.approx((2 + 1) / 2))
    assert count_codes(codes, 4).sum() == 12


def test_figures_of_silence_only_validation_are_refused(sounds, tmp_path):
    (tmp_path / "silence").mkdir()
    soundfile.write(tmp_path / "silence" / "a.wav", np.zeros(RATE, dtype=np.float32), RATE)
    with pytest.raises(ValueError, match="validation_data: no usable sound in"):
        train(sounds, tmp_path / "run", validation_data=str(tmp_path / "silence"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_duration": 0.1}, r"segment_duration: got 0\.1, takes at least 0\.128 s"),
        ({"train_data": "no/such/folder"}, "no/such/folder"),
        ({"model_name_or_path": "no/such/model"}, "model_name_or_path: "),
        ({"resume_from_checkpoint": "no/such/checkpoint"}, "resume_from_checkpoint: no folder at"),
        ({"batch_size": 0}, "batch_size: got 0, takes more than 0"),
        ({"codebook_size": 1000}, "codebook_size: got 1000, takes a power of two"),
        ({"lr_schedule": "linear"}, "lr_schedule: got 'linear'"),
        ({"mel_windows": [4096]}, r"segment_duration: got 0\.2, takes at least 0\.256 s"),
        ({"mel_windows": []}, "mel_windows: got"),
        ({"discriminator_windows": []}, "discriminator_windows: got"),
        ({"discriminator_overlap": 0}, "discriminator_overlap: got 0, takes more than 0"),
        ({"balancer_interval": 0}, "balancer_interval: got 0, takes more than 0"),
        ({"discriminator_windows": [4096]}, r"segment_duration: got 0\.2, takes at least 0\.256 s"),
        ({"discriminator_compression": 0.0}, "discriminator_compression: got 0.0, takes more than 0 and at most 1"),
        ({"discriminator_learning_rate": 0.0}, "discriminator_learning_rate: got 0.0, takes more than 0"),
        ({"mel_bins": [16, 32]}, r"mel_bins: got \[16, 32\], takes one positive number, or one for each of"),
        ({"train_encoder": False}, "train_encoder: a model from scratch"),
        ({"ema_decay": 1.0}, r"ema_decay: got 1\.0"),
    ],
)
def test_bad_options_are_refused_by_name(sounds, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        EncodecTrainer(arguments(sounds, tmp_path, **options))


def test_options_are_kept_beside_the_run_and_can_start_it_again(sounds, tmp_path):
    from audiogen_hf.training.arguments import parse_arguments

    args = arguments(sounds, tmp_path, discriminator=False, upsampling_ratios=[4, 4, 2], max_steps=1)
    EncodecTrainer(args).train()
    assert parse_arguments(EncodecTrainingArguments, ["--config", str(tmp_path / "arguments.yaml")]) == args
    assert math.prod(dataclasses.asdict(args)["upsampling_ratios"]) == 32
