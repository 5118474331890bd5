"""Models stored as int8: how near the weights stay, and that a loaded model is an ordinary one."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from testing_utils import json_of, run_python, tiny_model
from transformers import AutoModel, AutoModelForTextToWaveform
from transformers.quantizers.auto import AutoQuantizationConfig

from audiogen_hf import AudioGenForConditionalGeneration, optimize_for_cpu, save_int8
from audiogen_hf.int8_storage import LEVELS, SCALE, Int8StorageConfig, dequantize, quantize

DECODER_ON_DISK = {
    "decoder": "disk",
    **dict.fromkeys(["text_encoder", "audio_encoder", "enc_to_dec_proj", "lm_head"], "cpu"),
}


@pytest.fixture(scope="module")
def original():
    """A model with a tensor of every kind that is large enough for int8."""
    return tiny_model(
        decoder={"vocab_size": 256, "hidden_size": 64},
        text_encoder={"d_model": 32, "d_kv": 16, "d_ff": 128},
        audio_encoder={"num_filters": 8, "hidden_size": 32, "codebook_dim": 32},
    )


@pytest.fixture(scope="module")
def folder(original, processor, tmp_path_factory):
    return save_int8(original, processor, tmp_path_factory.mktemp("int8") / "model")


@pytest.fixture(scope="module")
def stored(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def own_folder(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def transformers_warnings(caplog):
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        yield caplog
    transformers.logging.disable_propagation()


@pytest.mark.parametrize("shape", [(64, 96), (32, 16, 7), (5, 1), (3, 2, 2, 2)])
@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 1e30])
def test_each_value_is_within_half_a_step_of_its_row(shape, size):
    torch.manual_seed(0)
    tensor = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1)) * size
    levels, scale = quantize(tensor)
    assert levels.dtype == torch.int8 and levels.shape == shape and levels.abs().amax() == 127
    assert scale.dtype == torch.float32 and scale.shape == (shape[0], *[1] * (len(shape) - 1))
    step = tensor.abs().flatten(1).amax(dim=1).view_as(scale) / 127
    assert bool(((dequantize(levels, scale) - tensor).abs() <= 0.5001 * step).all())


def test_a_row_of_zeros_stays_zero():
    tensor = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.0]])
    restored = dequantize(*quantize(tensor))
    assert torch.equal(restored[0], tensor[0])
    torch.testing.assert_close(restored[1], tensor[1], atol=1 / 127, rtol=0)


def test_large_matrices_are_int8_and_the_rest_is_float(original, stored):
    in_int8 = {name.removesuffix(LEVELS) for name in stored if name.endswith(LEVELS)}
    assert in_int8 >= {
        "decoder.embed_tokens.weight",
        "decoder.layers.0.self_attn.qkv_proj.weight",
        "lm_head.weight",
        "text_encoder.shared.weight",
        "audio_encoder.encoder.layers.13.lstm.weight_ih_l0",
        "audio_encoder.encoder.layers.12.conv.parametrizations.weight.original1",
        "audio_encoder.decoder.layers.3.conv.parametrizations.weight.original1",
        "audio_encoder.quantizer.layers.0.codebook.embed",
        "audio_encoder.quantizer.layers.0.codebook.embed_avg",
    }
    assert stored["decoder.layers.0.fc1.weight" + LEVELS].dtype == torch.int8
    state = original.state_dict()
    for name, tensor in stored.items():
        if not name.endswith((LEVELS, SCALE)):
            assert tensor.ndim < 2 or tensor.numel() < 4096
            assert (tensor.float() - state[name]).abs().max() <= state[name].abs().max() / 2048, name


def test_float16_gives_way_where_its_range_ends(folder, stored, tmp_path):
    model = AudioGenForConditionalGeneration.from_pretrained(folder)
    codebook = model.audio_encoder.quantizer.layers[0].codebook
    codebook.cluster_size.fill_(1e6)
    model.decoder.norm.bias.data.fill_(1e-9)
    save_int8(model, None, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    sizes = "audio_encoder.quantizer.layers.0.codebook.cluster_size"
    assert stored[sizes].dtype == torch.float16 and state[sizes].dtype == torch.float32
    loaded = AudioGenForConditionalGeneration.from_pretrained(tmp_path)
    assert bool((loaded.state_dict()[sizes] == 1e6).all())
    assert bool((loaded.decoder.norm.bias == 1e-9).all())


@pytest.mark.parametrize("auto_class", [AudioGenForConditionalGeneration, AutoModel, AutoModelForTextToWaveform])
def test_loads_near_the_original_with_nothing_missing_and_no_warning(
    auto_class, original, folder, stored, transformers_warnings
):
    loaded, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not transformers_warnings.records and not any(info.values())
    assert type(loaded) is AudioGenForConditionalGeneration and not loaded.training
    expected = original.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        scale = stored.get(name + SCALE)
        tolerance = 0.5001 * scale if scale is not None else expected[name].abs().max() / 2048
        if name not in original.all_tied_weights_keys:
            assert tensor.dtype == torch.float32
            assert bool(((tensor - expected[name]).abs() <= tolerance).all()), name
    assert loaded.text_encoder.encoder.embed_tokens.weight is loaded.text_encoder.shared.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "auto"])
def test_every_dtype_is_the_float32_weight_rounded_once(dtype, folder):
    expected = AudioGenForConditionalGeneration.from_pretrained(folder).state_dict()
    loaded = AudioGenForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    wanted = torch.float32 if dtype == "auto" else dtype
    assert loaded.decoder.layers[0].fc1.weight.dtype == wanted
    for name, tensor in loaded.state_dict().items():
        # `_keep_in_fp32_modules_strict`
        kept = name.startswith(("text_encoder", "audio_encoder"))
        assert torch.equal(tensor, expected[name].to(torch.float32 if kept else wanted)), name


def test_a_model_in_bfloat16_can_be_stored(folder, tmp_path):
    model = AudioGenForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    save_int8(model, None, tmp_path)
    scale = load_file(tmp_path / "model.safetensors")["lm_head.weight" + SCALE]
    weight = AudioGenForConditionalGeneration.from_pretrained(tmp_path).lm_head.weight
    assert bool(((weight - model.lm_head.weight.float()).abs() <= 0.5001 * scale).all())


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, DECODER_ON_DISK])
def test_loads_by_device_map(device_map, folder, tmp_path):
    expected = AudioGenForConditionalGeneration.from_pretrained(folder)
    loaded = AudioGenForConditionalGeneration.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    inputs = {"input_ids": torch.tensor([[3, 5, 1]]), "labels": torch.randint(0, 256, (1, 4, 8))}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).loss, expected(**inputs).loss)


def test_what_is_loaded_is_no_quantised_model(folder):
    loaded = AudioGenForConditionalGeneration.from_pretrained(folder)
    assert not hasattr(loaded.config, "quantization_config") and "quantization_config" not in loaded.config.to_dict()
    assert not hasattr(loaded, "hf_quantizer") and not hasattr(loaded, "quantization_method")
    assert not loaded.is_quantized and not hasattr(loaded.config, "_is_quantized")
    assert {type(parameter) for parameter in loaded.parameters()} == {torch.nn.Parameter}


def test_a_loaded_model_trains_moves_and_is_optimised(folder):
    loaded = AudioGenForConditionalGeneration.from_pretrained(folder).train()
    inputs = {"input_ids": torch.tensor([[3, 5, 1]]), "labels": torch.randint(0, 256, (1, 4, 8))}
    optimizer = torch.optim.SGD(loaded.decoder.parameters(), lr=0.1)
    first = loaded(**inputs).loss
    first.backward()
    assert all(parameter.grad is not None for parameter in loaded.decoder.parameters())
    optimizer.step()
    assert loaded(**inputs).loss < first
    assert loaded.to(torch.float64).to("meta").lm_head.weight.is_meta
    optimized = optimize_for_cpu(AudioGenForConditionalGeneration.from_pretrained(folder), "int8")
    assert bool(optimized.generate(torch.tensor([[3, 5, 1]]), max_new_tokens=5).isfinite().all())


def test_a_loaded_model_is_saved_in_floating_point(folder, tmp_path):
    loaded = AudioGenForConditionalGeneration.from_pretrained(folder)
    loaded.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not any(":" in name for name in tensors)
    again = AudioGenForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.state_dict().items())


def test_storing_what_was_loaded_loses_nothing_more(folder, tmp_path):
    loaded = AudioGenForConditionalGeneration.from_pretrained(folder)
    save_int8(loaded, None, tmp_path)
    first, second = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items() if not name.endswith(SCALE))


def test_transformers_pipeline_speaks_from_it(folder):
    pipe = transformers.pipeline("text-to-audio", model=folder, device="cpu")
    sound = pipe("rain", generate_kwargs={"max_new_tokens": 6})
    assert sound["sampling_rate"] == 16_000 and sound["audio"].shape[-1] == 6 * 320


@pytest.mark.parametrize(
    "imports",
    [
        "import audiogen_hf",
        pytest.param("import transformers\nimport audiogen_hf", marks=pytest.mark.slow),
        pytest.param("import transformers.quantizers\nimport audiogen_hf", marks=pytest.mark.slow),
        pytest.param("import audiogen_hf\nimport transformers.quantizers.auto", marks=pytest.mark.slow),
        pytest.param("from audiogen_hf import save_int8", marks=pytest.mark.slow),
        pytest.param(
            "import importlib, transformers, audiogen_hf\nimportlib.reload(audiogen_hf)", marks=pytest.mark.slow
        ),
    ],
)
def test_a_new_process_needs_no_more_than_our_import_and_says_nothing(imports, folder, original):
    code = f"""
{imports}
import json, sys
from transformers import AutoModelForTextToWaveform
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()
weight = AutoModelForTextToWaveform.from_pretrained(sys.argv[1]).lm_head.weight.detach()
print(json.dumps([str(weight.dtype), float(weight.abs().sum())]))
"""
    result = run_python(code, folder, flags=("-W", "error::UserWarning"))
    dtype, total = json_of(result)
    assert dtype == "torch.float32" and result.stderr == ""
    assert total == pytest.approx(float(original.lm_head.weight.detach().abs().sum()), rel=1e-3)


def test_takes_little_more_than_a_byte_a_parameter(tmp_path):
    model = tiny_model(
        decoder={"vocab_size": 512, "hidden_size": 256, "num_attention_heads": 4},
        text_encoder={"d_model": 128, "d_kv": 32, "d_ff": 512},
        audio_encoder={"num_filters": 8, "hidden_size": 32, "codebook_dim": 32},
    )
    save_int8(model, None, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 1.1 * model.num_parameters()


def test_the_model_given_stays_as_it_is(original, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    config, generation_config = original.config.to_dict(), original.generation_config.to_dict()
    save_int8(original, None, tmp_path)
    assert original.config.to_dict() == config and original.generation_config.to_dict() == generation_config
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in original.state_dict().items())


def test_the_folder_is_that_of_save_pretrained(original, folder, processor, tmp_path):
    original.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {path.name for path in folder.iterdir()} == {path.name for path in tmp_path.iterdir()}
    assert len({oct(path.stat().st_mode) for path in folder.iterdir()}) == 1  # all may read, as umask says
    config, expected = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    assert config.pop("quantization_config") == {"quant_method": "audiogen_int8"}
    assert config == expected


def test_a_save_that_fails_leaves_what_was_there(original, own_folder):
    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError("No space left on device")

    before = {path.name: path.read_bytes() for path in own_folder.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        save_int8(original, FullDisk(), own_folder)
    assert {path.name: path.read_bytes() for path in own_folder.iterdir()} == before


def test_refuses_what_it_cannot_store(tmp_path):
    model = tiny_model(decoder={"hidden_size": 32})
    model.decoder.norm.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"`model` has NaN or infinities in decoder\.norm\.bias"):
        save_int8(model, None, tmp_path / "nan")
    with pytest.raises(ValueError, match="optimised or quantised already"):
        save_int8(optimize_for_cpu(tiny_model(decoder={"hidden_size": 32})), None, tmp_path / "optimized")
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_named(own_folder):
    path = own_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or not safetensors"):
        AudioGenForConditionalGeneration.from_pretrained(own_folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state, name: state.pop(name + SCALE), r"lm_head\.weight has no scales"),
        (lambda state, name: state.pop(name + LEVELS), r"lm_head\.weight has no levels"),
        (lambda state, name: state.update({name + SCALE: state[name + SCALE][:-1]}), "do not belong together"),
        (lambda state, name: state.update({name + LEVELS: state[name + LEVELS].float()}), "do not belong together"),
    ],
)
def test_levels_and_scales_that_do_not_fit_are_named(change, message, own_folder):
    path = own_folder / "model.safetensors"
    state = load_file(path)
    change(state, "lm_head.weight")
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(own_folder)


def test_an_ordinary_folder_does_not_become_int8(original, tmp_path):
    original.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="belongs to a folder that `save_int8` wrote"):
        AutoModel.from_pretrained(tmp_path, quantization_config=Int8StorageConfig())


def test_other_quantisations_are_as_before(original, tmp_path, transformers_warnings):
    assert type(AutoQuantizationConfig.from_dict({"quant_method": "fp8"})).__name__ == "FineGrainedFP8Config"
    original.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "int3"}}))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert "Unknown quantization type, got int3" in transformers_warnings.text
    assert torch.equal(loaded.lm_head.weight, original.lm_head.weight)
