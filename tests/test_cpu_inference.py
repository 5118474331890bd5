"""Packed, int8 and int4 weights on a CPU: the kernels by value, the model they give, what is refused."""

import pytest
import torch
from testing_utils import PROMPTS, generate_codes, load_model, tiny_model

from audiogen_hf import optimize_for_cpu
from audiogen_hf.cpu_inference import Int4Linear, Int8Linear, PackedLinear


@pytest.mark.parametrize("layer_class, levels", [(Int8Linear, 254), (Int4Linear, 15)])
def test_weights_are_rounded_to_the_nearest_level(layer_class, levels):
    torch.manual_seed(0)
    weight = torch.randn(64, 128) * 0.05
    layer = layer_class(weight)
    if layer_class is Int8Linear:
        step = 2 * weight.abs().amax(dim=1, keepdim=True) / levels
    else:
        step = (weight.amax(dim=1, keepdim=True) - weight.amin(dim=1, keepdim=True)) / levels
    # Half a level, and what bfloat16 scales and offsets lose of it.
    assert bool(((layer.dequantize() - weight).abs() <= 0.5 * step + 0.01 * weight.abs().amax()).all())


@pytest.mark.parametrize("layer_class", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("shape", [(2, 1, 96), (1, 7, 96), (33, 96)])
def test_the_kernel_multiplies_by_the_dequantised_weight(layer_class, shape):
    torch.manual_seed(0)
    layer = layer_class(torch.randn(64, 96) * 0.05)
    hidden_states = torch.randn(shape, dtype=torch.bfloat16)
    expected = hidden_states.float() @ layer.dequantize().t()
    torch.testing.assert_close(layer(hidden_states).float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 1, 96), (1, 7, 96), (33, 96)])
def test_packed_weights_multiply_as_plain_ones(dtype, shape):
    if not PackedLinear.is_available(dtype):
        pytest.skip(f"PyTorch does not pack {dtype} for this CPU")
    torch.manual_seed(0)
    weight = torch.randn(64, 96, dtype=dtype)
    layer = PackedLinear(weight)
    assert torch.equal(layer.dequantize(), weight)
    hidden_states = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(layer(hidden_states), torch.nn.functional.linear(hidden_states, weight))


def test_packed_float32_gives_the_codes_of_the_reference(processor, reference):
    model = optimize_for_cpu(load_model())
    for i, prompt in enumerate(PROMPTS):
        codes = generate_codes(model, processor(text=[prompt]), audio_length_in_s=1.0)
        assert torch.equal(codes, reference[f"greedy_cfg3_single{i}/tokens"])


@pytest.mark.parametrize("precision, tolerance", [("bfloat16", 0.02), ("int8", 0.03), ("int4", 0.5)])
def test_cross_entropy_stays_close(precision, tolerance, model, processor, reference):
    inputs = processor(text=PROMPTS)
    labels = reference["tf/codes"]
    with torch.no_grad():
        expected = model(**inputs, labels=labels).loss
        loss = optimize_for_cpu(load_model(), precision)(**inputs, labels=labels).loss
    assert abs(float(loss - expected)) < tolerance
    assert loss != expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_a_model_of_any_precision_generates(precision, processor):
    optimized = optimize_for_cpu(load_model(), precision)
    audio = optimized.generate(**processor(text=PROMPTS), max_new_tokens=6)
    assert audio.shape == (3, 1, 6 * 320) and bool(audio.isfinite().all())
    linears = [module for module in optimized.decoder.modules() if isinstance(module, torch.nn.Linear)]
    packs = precision.startswith("int") or PackedLinear.is_available(getattr(torch, precision))
    assert bool(linears) != packs


@pytest.mark.parametrize("precision, warned", [("float32", False), ("bfloat16", True)])
def test_where_weights_cannot_be_packed_they_stay_plain(precision, warned, processor, reference, caplog, monkeypatch):
    def reorder(*args):
        raise RuntimeError("mkldnn_reorder_linear_weight: needs the cpu support avx512bw")

    monkeypatch.setattr(PackedLinear, "is_available", staticmethod(PackedLinear.is_available.__wrapped__))
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", reorder)
    model = optimize_for_cpu(load_model(), precision)
    assert model.decoder.dtype == model.lm_head.weight.dtype == getattr(torch, precision)
    codes = generate_codes(model, processor(text=[PROMPTS[0]]), audio_length_in_s=1.0)
    if precision == "float32":
        assert torch.equal(codes, reference["greedy_cfg3_single0/tokens"])
    assert ("PyTorch has no fast bfloat16 for this CPU" in caplog.text) == warned


def test_refuses_other_precisions_a_second_time_and_to_be_saved(tmp_path):
    with pytest.raises(ValueError, match="`precision` must be one of float32, bfloat16, int8, int4, got 'int3'"):
        optimize_for_cpu(tiny_model(decoder={"hidden_size": 32}), "int3")
    with pytest.raises(ValueError, match="multiples of 32, this one is 48"):
        optimize_for_cpu(tiny_model(decoder={"hidden_size": 48}), "int4")
    model = optimize_for_cpu(tiny_model(decoder={"hidden_size": 32}), "int8")
    with pytest.raises(ValueError, match="optimised or quantised already"):
        optimize_for_cpu(model, "int4")
    with pytest.raises(ValueError, match="is not saved after"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
