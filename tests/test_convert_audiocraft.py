"""AudioCraft's checkpoints: read, converted once, written back; and every way in which they can be broken."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from testing_utils import (
    CHECKPOINT,
    CODEC_FILE,
    LM_FILE,
    PROMPTS,
    TEXT_ENCODER,
    HubServer,
    generate_codes,
    json_of,
    load_model,
    naive_generate,
    rewrite_checkpoint,
    run_python,
    tiny_model,
    write_medium_checkpoint,
)
from transformers import EncodecModel

from audiogen_hf import AudioGenConfig, AudioGenForConditionalGeneration, export_audiocraft
from audiogen_hf.audiocraft_xp_config import read_xp_config
from audiogen_hf.convert_audiocraft import is_audiocraft_checkpoint, load_package


def set_in(xp: dict, key: str, value) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        xp = xp[parent]
    xp[last] = value


@pytest.fixture
def converted_folders():
    """The names of converted checkpoints in the cache."""

    def names():
        folder = Path(os.environ["HF_HOME"]) / "assets" / "audiogen_hf" / "converted"
        return (
            {path.name for path in folder.iterdir() if not path.name.endswith(".lock")} if folder.exists() else set()
        )

    return names


# Converting


def test_every_tensor_arrives_unchanged(model):
    """Names are told apart by hand here, not by the table that conversion uses."""
    theirs = load_package(CHECKPOINT / LM_FILE)["best_state"]
    assert torch.equal(model.decoder.embed_tokens.weight, torch.cat([theirs[f"emb.{k}.weight"] for k in range(4)]))
    assert torch.equal(model.lm_head.weight, torch.cat([theirs[f"linears.{k}.weight"] for k in range(4)]))
    layer, prefix = model.decoder.layers[1], "transformer.layers.1"
    query_key_value = theirs[f"{prefix}.cross_attention.in_proj_weight"]
    assert torch.equal(layer.self_attn.qkv_proj.weight, theirs[f"{prefix}.self_attn.in_proj_weight"])
    assert torch.equal(layer.cross_attn.q_proj.weight, query_key_value[:64])
    assert torch.equal(layer.cross_attn.kv_proj.weight, query_key_value[64:])
    assert torch.equal(layer.cross_attn.out_proj.weight, theirs[f"{prefix}.cross_attention.out_proj.weight"])
    assert torch.equal(layer.cross_attn_layer_norm.bias, theirs[f"{prefix}.norm_cross.bias"])
    assert torch.equal(layer.final_layer_norm.weight, theirs[f"{prefix}.norm2.weight"])
    assert torch.equal(layer.fc2.weight, theirs[f"{prefix}.linear2.weight"])
    # All of it, and the encoders' parameters beside it.
    ours = sum(p.numel() for n, p in model.named_parameters() if "_encoder." not in n)
    assert ours == sum(tensor.numel() for tensor in theirs.values())
    codec = load_package(CHECKPOINT / CODEC_FILE)["best_state"]
    tensors = model.audio_encoder.state_dict()
    assert sorted(t.numel() for t in tensors.values()) == sorted(t.numel() for t in codec.values())


def test_a_checkpoint_is_told_by_its_files(tmp_path):
    assert is_audiocraft_checkpoint(CHECKPOINT) and is_audiocraft_checkpoint(str(CHECKPOINT))
    assert not is_audiocraft_checkpoint(TEXT_ENCODER)
    assert not is_audiocraft_checkpoint(tmp_path)
    assert not is_audiocraft_checkpoint(CHECKPOINT / LM_FILE)
    rewrite_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # both layouts in one folder: ours is read
    assert not is_audiocraft_checkpoint(tmp_path)


def test_the_second_load_reads_no_pickle(model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    again = load_model()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_changed_checkpoint_is_converted_anew(tmp_path, converted_folders):
    checkpoint = rewrite_checkpoint(tmp_path / "mine")
    before = converted_folders()
    first = load_model(checkpoint)
    load_model(checkpoint)
    assert len(converted_folders() - before) == 1
    rewrite_checkpoint(checkpoint, lm=lambda state, xp: state["out_norm.bias"].add_(1.0))
    assert torch.equal(load_model(checkpoint).decoder.norm.bias, first.decoder.norm.bias + 1)
    assert len(converted_folders() - before) == 2


def test_weights_keep_their_precision_in_the_cache(tmp_path):
    checkpoint = rewrite_checkpoint(
        tmp_path / "half", lm=lambda state, xp: state.update({k: v.half() for k, v in state.items()})
    )
    model = load_model(checkpoint, dtype="auto")
    assert model.dtype == torch.float32 and model.text_encoder.dtype == torch.float32
    half = load_model(checkpoint, dtype=torch.float16)
    theirs = load_package(checkpoint / LM_FILE)["best_state"]["out_norm.weight"]
    assert torch.equal(half.decoder.norm.weight, theirs) and torch.equal(model.decoder.norm.weight, theirs.float())


def test_pickles_of_the_old_file_format_are_read(tmp_path, model):
    for filename in (LM_FILE, CODEC_FILE):
        package = torch.load(CHECKPOINT / filename, weights_only=True)
        torch.save(package, tmp_path / filename, _use_new_zipfile_serialization=False)
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    "stereo, codebooks, delays",
    [(False, 2, [0, 1]), (False, 4, [0, 0, 0, 0]), (False, 4, [0, 2, 3, 7]), (True, 8, [0, 0, 1, 1, 2, 2, 3, 3])],
)
def test_other_shapes_convert_and_generate(tmp_path, stereo, codebooks, delays):
    def change(state, xp):
        for k in range(codebooks):
            state[f"emb.{k}.weight"] = state[f"emb.{k % 4}.weight"] + 0.1 * k
            state[f"linears.{k}.weight"] = state[f"linears.{k % 4}.weight"] + 0.01 * k
        for k in range(codebooks, 4):
            del state[f"emb.{k}.weight"], state[f"linears.{k}.weight"]
        set_in(xp, "transformer_lm.n_q", codebooks)
        set_in(xp, "codebooks_pattern.delay.delays", delays)
        set_in(xp, "interleave_stereo_codebooks.use", stereo)

    model = load_model(rewrite_checkpoint(tmp_path, lm=change))
    inputs = model.get_unconditional_inputs()
    outputs = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(outputs.audio_codes[0], naive_generate(model, **inputs, num_frames=6))
    assert outputs.audio.shape == (1, 2 if stereo else 1, 6 * 320)


def test_a_codec_given_by_name_is_fetched(tmp_path, model):
    model.audio_encoder.save_pretrained(tmp_path / "codec")
    checkpoint = rewrite_checkpoint(tmp_path / "checkpoint")
    torch.save({"pretrained": str(tmp_path / "codec")}, checkpoint / CODEC_FILE)
    loaded = load_model(checkpoint)
    for name, tensor in model.audio_encoder.state_dict().items():
        assert torch.equal(loaded.audio_encoder.state_dict()[name], tensor), name
    torch.save({"pretrained": "nobody/nothing"}, checkpoint / CODEC_FILE)
    with pytest.raises(ValueError, match="names the codec 'nobody/nothing', which cannot be had"):
        load_model(checkpoint)


def test_attributes_of_the_configuration_can_be_set_while_loading():
    assert load_model(attend_to_text_padding=True).config.attend_to_text_padding
    assert not load_model().config.attend_to_text_padding


def test_nothing_is_left_of_a_failed_conversion(tmp_path, converted_folders):
    before = converted_folders()
    checkpoint = rewrite_checkpoint(tmp_path, lm=lambda state, xp: state.pop("out_norm.bias"))
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape("out_norm.bias")):
            load_model(checkpoint)
    left = converted_folders() - before
    assert not any(name.startswith(".") for name in left)
    folders = [Path(os.environ["HF_HOME"]) / "assets/audiogen_hf/converted" / name for name in left]
    assert not any(list(folder.iterdir()) for folder in folders)


def test_a_conversion_that_was_killed_is_made_again(tmp_path, monkeypatch, converted_folders):
    checkpoint = rewrite_checkpoint(tmp_path / "killed")
    before = converted_folders()

    def killed(*args, **kwargs):
        raise SystemExit  # what remains then is made by hand, as nothing of ours runs after SIGKILL

    monkeypatch.setattr("audiogen_hf.convert_audiocraft.convert_checkpoint", killed)
    with pytest.raises(SystemExit):
        load_model(checkpoint)
    monkeypatch.undo()
    (name,) = converted_folders() - before
    remains = Path(os.environ["HF_HOME"]) / "assets/audiogen_hf/converted" / f".{name}-abc"
    remains.mkdir()
    (remains / "model.safetensors").write_bytes(b"cut off")
    load_model(checkpoint)
    assert not remains.exists()


CONVERT = """
import sys, json
for name in ("audiocraft", "omegaconf", "hydra", "flashy", "dora"):
    sys.modules[name] = None  # reading needs none of them: importing one raises ImportError
from testing_utils import load_model
import audiogen_hf.convert_audiocraft as convert
calls = []
original = convert.convert_checkpoint
convert.convert_checkpoint = lambda *args: calls.append(0) or original(*args)
model = load_model(sys.argv[1])
print(json.dumps({"conversions": len(calls), "sum": model.lm_head.weight.double().sum().item()}))
"""


def test_two_processes_convert_once(tmp_path, model):
    checkpoint = rewrite_checkpoint(tmp_path / "checkpoint")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT, checkpoint], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    results = []
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0
        results.append(json_of(subprocess.CompletedProcess([], 0, output)))
    assert sorted(result["conversions"] for result in results) == [0, 1]
    assert {result["sum"] for result in results} == {model.lm_head.weight.double().sum().item()}


# xp.cfg


def test_references_are_resolved():
    text = """
    sample_rate: 16000
    name: tiny
    a: {rate: "${sample_rate}", label: "at ${sample_rate} Hz, ${name}", b: "${a.rate}", list: ["${c.d}"]}
    c: {d: [1, "${name}"]}
    user: ${oc.env:USER}
    """
    config = read_xp_config(text)
    assert config["a"] == {"rate": 16000, "label": "at 16000 Hz, tiny", "b": 16000, "list": [[1, "tiny"]]}
    assert config["user"] == "${oc.env:USER}"


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: ${a}", "refers to itself: a -> a"),
        ("a: ${b}\nb: ${c}\nc: x${a}", "refers to itself: "),
        ("a: ${b.c}\nb: {d: 1}", "refers to 'b.c', which it does not have"),
        ("a: ${b.c}\nb: 1", "refers to 'b.c', which it does not have"),
        ("a: [1, 2", "is no yaml"),
        ("just words", "no yaml mapping but str"),
        ("!!python/object/apply:os.system ['touch /tmp/owned']", "is no yaml"),
    ],
)
def test_broken_settings_are_named(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_xp_config(text)


def test_references_in_a_checkpoint_are_resolved(tmp_path, model):
    def change(state, xp):
        xp["width"] = 64
        set_in(xp, "transformer_lm.dim", "${width}")
        set_in(xp, "conditioners.description.t5.name", "t5-${size}")
        xp["size"] = "large"

    assert load_model(rewrite_checkpoint(tmp_path, lm=change)).config.decoder.hidden_size == 64
    with pytest.raises(ValueError, match="'t5-large'"):
        load_model(tmp_path, text_encoder=None)


# Broken checkpoints


@pytest.mark.parametrize("filename", [LM_FILE, CODEC_FILE])
@pytest.mark.parametrize("length", [0, 10, 50_000])
def test_truncated_pickles_are_refused(tmp_path, filename, length):
    rewrite_checkpoint(tmp_path)
    path = tmp_path / filename
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_model(tmp_path)


def test_a_missing_codec_is_named(tmp_path):
    rewrite_checkpoint(tmp_path)
    (tmp_path / CODEC_FILE).unlink()
    with pytest.raises(ValueError, match=f"has no {CODEC_FILE}"):
        load_model(tmp_path)


def test_a_folder_with_neither_layout_gives_the_error_that_users_know(tmp_path):
    rewrite_checkpoint(tmp_path)
    (tmp_path / LM_FILE).unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AudioGenForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="couldn't connect"):
        AudioGenForConditionalGeneration.from_pretrained("nobody/nothing")


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("filename", [LM_FILE, CODEC_FILE])
@pytest.mark.parametrize("zip_format", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path, monkeypatch, filename, zip_format):
    monkeypatch.chdir(tmp_path)
    rewrite_checkpoint(tmp_path)
    package = torch.load(tmp_path / filename, weights_only=True)
    package["extra"] = RunsCode()
    torch.save(package, tmp_path / filename, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        load_model(tmp_path)
    assert not (tmp_path / "owned").exists()
    plain = pickle.dumps(RunsCode(), protocol=2)
    (tmp_path / filename).write_bytes(plain)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / filename))):
        load_model(tmp_path)
    assert not (tmp_path / "owned").exists()
    pickle.loads(plain)  # it does what it says when it is trusted
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("package", [[1, 2], {"best_state": {}}, {"xp.cfg": ""}, torch.zeros(3)], ids=str)
def test_other_pickles_are_refused(tmp_path, package):
    rewrite_checkpoint(tmp_path)
    torch.save(package, tmp_path / LM_FILE)
    with pytest.raises(ValueError, match="no checkpoint of AudioCraft"):
        load_model(tmp_path)


def rename(state, old, new):
    state[new] = state.pop(old)


@pytest.mark.parametrize(
    "lm, codec, messages",
    [
        (lambda s, xp: s.update(extra=torch.zeros(1)), None, ["Keys that nothing takes: ['extra']"]),
        (lambda s, xp: s.pop("emb.2.weight"), None, ["Missing keys: ['emb.2.weight']"]),
        (
            lambda s, xp: rename(s, "transformer.layers.1.norm1.bias", "transformer.layers.2.norm1.bias"),
            None,
            ["transformer.layers.1.norm1.bias", "transformer.layers.2.norm1.bias"],
        ),
        (
            lambda s, xp: s.update({"emb.2.weight": torch.zeros(66, 64)}),
            None,
            ["embed_tokens", "(260, 64)", "(261, 64)"],
        ),
        (lambda s, xp: s.update({"out_norm.bias": torch.zeros(63)}), None, ["decoder.norm.bias", "(64,)", "(63,)"]),
        (None, lambda s, xp: s.update(extra=torch.zeros(1)), ["audio_encoder.extra"]),
        (None, lambda s, xp: s.pop("encoder.model.0.conv.conv.bias"), ["audio_encoder.encoder.layers.0.conv.bias"]),
        (
            None,
            lambda s, xp: s.update({"encoder.model.0.conv.conv.bias": torch.zeros(3)}),
            ["audio_encoder.encoder.layers.0.conv.bias", "(3,)"],
        ),
        (lambda s, xp: set_in(xp, "transformer_lm.num_layers", 1), None, ["transformer.layers.1."]),
        (lambda s, xp: set_in(xp, "transformer_lm.num_layers", 3), None, ["transformer.layers.2."]),
        (lambda s, xp: xp.pop("transformer_lm"), None, ["transformer_lm"]),
        (lambda s, xp: xp["transformer_lm"].pop("dim"), None, ["'dim'"]),
        (lambda s, xp: set_in(xp, "transformer_lm.norm_first", False), None, ["norm_first=False", "True"]),
        (lambda s, xp: set_in(xp, "transformer_lm.positional_embedding", "rope"), None, ["'rope'", "'sin'"]),
        (lambda s, xp: set_in(xp, "codebooks_pattern.modeling", "parallel"), None, ["'parallel'", "'delay'"]),
        (lambda s, xp: set_in(xp, "lm_model", "transformer_lm_magnet"), None, ["transformer_lm_magnet"]),
        (lambda s, xp: xp["conditioners"].update(self_wav={}), None, ["['description', 'self_wav']"]),
        (lambda s, xp: set_in(xp, "conditioners.description.model", "clap"), None, ["must be a T5", "'clap'"]),
        (None, lambda s, xp: set_in(xp, "compression_model", "dac"), ["'dac'", "'encodec'"]),
        (None, lambda s, xp: set_in(xp, "seanet.activation", "Snake"), ["'Snake'", "'ELU'"]),
        (None, lambda s, xp: xp.pop("rvq"), ["'rvq'"]),
        (None, lambda s, xp: set_in(xp, "rvq.bins", 128), ["128 codes a codebook"]),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, lm, codec, messages):
    rewrite_checkpoint(tmp_path, lm, codec)
    # The named text encoder matters, so that none is given where the settings are about it.
    about_text = lm is not None and "must be a T5" in messages
    with pytest.raises(ValueError) as raised:
        load_model(tmp_path, **({"text_encoder": None} if about_text else {}))
    for message in messages:
        assert message in str(raised.value)


def test_a_missing_text_encoder_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"text encoder 't5-large' of .* pass `text_encoder=`"):
        AudioGenForConditionalGeneration.from_pretrained(CHECKPOINT)
    with pytest.raises(ValueError, match=r"text encoder '.*nowhere' .* pass `text_encoder=`"):
        load_model(text_encoder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="pass `text_encoder=`"):
        load_model(text_encoder=tmp_path)
    with pytest.raises(ValueError, match="pass `text_encoder=`"):
        AudioGenConfig.from_pretrained(CHECKPOINT)


def test_a_text_encoder_of_another_width_is_refused(tmp_path):
    from transformers import T5Config, T5EncoderModel

    T5EncoderModel(T5Config(vocab_size=1100, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    for path in TEXT_ENCODER.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            (tmp_path / "t5" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=re.escape("enc_to_dec_proj.weight takes shape (64, 16), got (64, 32)")):
        load_model(text_encoder=tmp_path / "t5")


# Writing back


def test_an_export_has_the_tensors_it_came_from(model, tmp_path):
    assert export_audiocraft(model, tmp_path, text_encoder="t5-large") == tmp_path
    for filename in (LM_FILE, CODEC_FILE):
        ours = torch.load(tmp_path / filename, weights_only=True)
        theirs = torch.load(CHECKPOINT / filename, weights_only=True)
        assert ours.keys() == theirs.keys()
        assert ours["best_state"].keys() == theirs["best_state"].keys()
        for name, tensor in theirs["best_state"].items():
            assert torch.equal(ours["best_state"][name], tensor), name
        assert isinstance(ours["xp.cfg"], str) and ours["exported"] is True


def test_an_export_says_in_its_settings_what_audiocraft_reads(model, tmp_path):
    export_audiocraft(model, tmp_path, text_encoder="t5-large")
    for filename, keys in [
        (LM_FILE, ["transformer_lm", "codebooks_pattern.delay", "fuser", "conditioners", "classifier_free_guidance"]),
        (CODEC_FILE, ["seanet", "encodec.autoencoder", "encodec.quantizer", "rvq", "compression_model"]),
    ]:
        ours, theirs = (
            read_xp_config(torch.load(folder / filename, weights_only=True)["xp.cfg"])
            for folder in (tmp_path, CHECKPOINT)
        )
        for key in [*keys, "sample_rate", "channels", "solver"]:
            values = [ours, theirs]
            for part in key.split("."):
                values = [value[part] for value in values]
            assert values[0] == values[1], key


def test_an_export_loads_and_generates_the_same_codes(model, processor, reference, tmp_path):
    export_audiocraft(model, tmp_path, text_encoder="t5-large")
    loaded = load_model(tmp_path)
    assert loaded.config.segment_duration == model.config.segment_duration
    codes = generate_codes(loaded, processor(text=PROMPTS[:1]), audio_length_in_s=1.0)
    assert torch.equal(codes, reference["greedy_cfg3_single0/tokens"])


@pytest.mark.parametrize(
    "shape",
    [
        {"decoder": {"num_codebooks": 8, "audio_channels": 2, "intermediate_size": 24}},
        {"decoder": {"num_codebooks": 2, "codebook_delays": [0, 4], "num_hidden_layers": 1, "attention_dropout": 0.1}},
        {"audio_encoder": {"use_conv_shortcut": True, "num_residual_layers": 2, "num_lstm_layers": 2}},
        {"audio_encoder": {"use_causal_conv": True, "pad_mode": "reflect", "upsampling_ratios": [8, 8, 5]}},
        {"audio_encoder": {"kernel_size": 5, "residual_kernel_size": 5, "compress": 1, "dilation_growth_rate": 3}},
        {"segment_duration": 2.5, "text_encoder": {"d_model": 24}},
    ],
    ids=str,
)
def test_exports_of_other_shapes_load_the_same(tmp_path, shape):
    model = tiny_model(**shape)
    export_audiocraft(model, tmp_path, text_encoder="t5-large")
    shutil.copytree(TEXT_ENCODER, tmp_path / "t5")
    model.text_encoder.save_pretrained(tmp_path / "t5")
    loaded = load_model(tmp_path, text_encoder=tmp_path / "t5")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ignored = {"dtype": None, "target_bandwidths": None}  # what is loaded says its precision; bandwidths are rounded
    for name in ("decoder", "audio_encoder"):
        ours, theirs = (getattr(config, name).to_diff_dict() | ignored for config in (model.config, loaded.config))
        assert ours == theirs
    assert loaded.config.segment_duration == model.config.segment_duration
    inputs = model.get_unconditional_inputs()
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))


def test_an_export_names_a_text_encoder_that_audiocraft_has(model, tmp_path):
    with pytest.raises(ValueError, match=r"none of t5-small, t5-base and t5-large: pass `text_encoder=`"):
        export_audiocraft(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_the_old_one(model, tmp_path, monkeypatch):
    export_audiocraft(model, tmp_path, text_encoder="t5-large")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(package, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_audiocraft(model, tmp_path, text_encoder="t5-large")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_codec_alone_is_a_stock_encodec(model, tmp_path, reference):
    model.audio_encoder.save_pretrained(tmp_path)
    codec = EncodecModel.from_pretrained(tmp_path)
    codes = codec.encode(reference["codec/wav"]).audio_codes[0]
    assert torch.equal(codes, reference["codec/codes"])


# The Hub

ON_THE_HUB = """
import json, sys
from pathlib import Path
from audiogen_hf import AudioGenConfig, AudioGenForConditionalGeneration, AudioGenProcessor

repo, cache = "facebook/audiogen-medium", Path(sys.argv[1])

def bias(name=repo, **kwargs):
    return AudioGenForConditionalGeneration.from_pretrained(name, **kwargs).decoder.norm.bias[0].item()

def error(name=repo, **kwargs):
    try:
        bias(name, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

results = {
    "before anything is cached": error(local_files_only=True),
    "main": bias(),
    "another revision": bias(revision="v2"),
    "no such revision": error(revision="v3"),
    "no such repository": error("nobody/nothing"),
    "without token": error("me/private"),
    "with token": bias("me/private", token="hf_secret"),
    "cache_dir": bias(cache_dir=cache),
    "local_files_only": bias(local_files_only=True),
    "local_files_only in cache_dir": bias(local_files_only=True, cache_dir=cache),
    "width": AudioGenConfig.from_pretrained(repo).decoder.hidden_size,
    "ids": AudioGenProcessor.from_pretrained(repo)(text="rain")["input_ids"].tolist(),
    "in cache_dir": sorted(path.name for path in cache.iterdir() if path.is_dir() and path.name[0] != "."),
}
print(json.dumps(results))
"""
OFFLINE = """
import json
from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor

repo = "facebook/audiogen-medium"
model = AudioGenForConditionalGeneration.from_pretrained(repo)
ids = AudioGenProcessor.from_pretrained(repo)(text="rain")["input_ids"].tolist()
try:
    AudioGenForConditionalGeneration.from_pretrained("me/other")
except OSError as error:
    print(json.dumps({"bias": model.decoder.norm.bias[0].item(), "ids": ids, "error": str(error)}))
"""


def test_hub_ids_load_as_users_know_them(tmp_path, processor):
    """Revisions, tokens, caches, offline mode, with a text encoder that `xp.cfg` names and a stand-in for the Hub."""

    def with_bias(value):
        return lambda state, xp: state["out_norm.bias"].fill_(value)

    folders = {name: rewrite_checkpoint(tmp_path / name, lm=with_bias(v)) for name, v in [("one", 1.0), ("two", 2.0)]}
    repos = {
        "facebook/audiogen-medium": {"main": folders["one"], "v2": folders["two"]},
        "me/private": {"main": folders["two"]},
        "t5-large": {"main": TEXT_ENCODER},
    }
    home = {"HF_HOME": str(tmp_path / "home")}
    with HubServer(repos, tokens={"me/private": "hf_secret"}) as hub:
        results = json_of(run_python(ON_THE_HUB, tmp_path / "cache", env={**home, **hub.environment}))
        downloads = [
            request for request in hub.requests if request.startswith("GET") and request.endswith(f"/{LM_FILE}")
        ]
    ids = processor(text="rain")["input_ids"].tolist()
    assert results["main"] == results["cache_dir"] == results["local_files_only"] == 1.0
    assert results["local_files_only in cache_dir"] == 1.0
    assert results["another revision"] == results["with token"] == 2.0
    assert (results["width"], results["ids"]) == (64, ids)
    assert results["in cache_dir"] == ["assets", "models--facebook--audiogen-medium", "models--t5-large"]
    assert re.match("OSError.*couldn't find them in the cached files", results["before anything is cached"], re.DOTALL)
    assert re.match("OSError: v3 is not a valid git identifier", results["no such revision"])
    for case in ("no such repository", "without token"):
        assert re.match("OSError: .* is not a local folder and is not a valid model identifier", results[case])
    # Each file once: two revisions, the private repository, and once more into `cache_dir`.
    assert len(downloads) == 4

    results = json_of(run_python(OFFLINE, env={**home, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}))
    assert (results["bias"], results["ids"]) == (1.0, ids)
    assert "offline" in results["error"] and "me/other" not in os.listdir(tmp_path / "home/hub")


# Size

MEDIUM = """
import json, re, sys, time
from pathlib import Path
import torch
from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.convert_audiocraft import converted_checkpoint

folder, text_encoder = sys.argv[1:3]
dtype, generate = getattr(torch, sys.argv[3]), sys.argv[4] == "generate"

def peak():  # of this program: getrusage would count the one that started it, too
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

start = time.perf_counter()
converted_checkpoint(folder, text_encoder=text_encoder)
results = {"peak while converting": peak()}
model = AudioGenForConditionalGeneration.from_pretrained(folder, text_encoder=text_encoder, dtype=dtype)
results["load"] = time.perf_counter() - start
if generate:
    inputs = AudioGenProcessor.from_pretrained(folder, text_encoder=text_encoder)(text="a dog barks")
    model.generate(**inputs, max_new_tokens=1)
    start = time.perf_counter()
    codes = model.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True).audio_codes
    results["step"] = (time.perf_counter() - start) / 8
    results["codes"] = list(codes.shape)
    results["peak"] = peak()
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_checkpoint_of_medium_size_converts_in_little_memory_and_once():
    """The figures of docs/source/generation.md; needs 11 GB in /var/tmp and 14 GB of memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        checkpoint = write_medium_checkpoint(Path(folder) / "medium")
        weights = sum(path.stat().st_size for path in checkpoint.rglob("*"))

        def load(dtype: str, generate: str = "") -> dict:
            environment = {"HF_HOME": str(Path(folder) / "home"), "OMP_NUM_THREADS": "1"}
            return json_of(run_python(MEDIUM, checkpoint, checkpoint / "t5", dtype, generate, env=environment))

        first, second = load("float16"), load("float16")
        float32 = load("float32", "generate")
        print(json.dumps({"weights": weights, "first": first, "second": second, "float32": float32}))
        assert first["peak while converting"] <= weights + 2 * 2**30
        assert second["load"] < first["load"] / 10
        assert float32["codes"] == [1, 4, 5]
