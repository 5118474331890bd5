"""The fast loop against transformers' own, by value; what it leaves to it; what it allocates and reads."""

import pytest
import torch
from testing_utils import PROMPTS, load_model, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessor, MaxTimeCriteria, TextStreamer
from transformers.modeling_outputs import BaseModelOutput

import audiogen_hf.fast_generation as fast_generation
import audiogen_hf.generation_audiogen as generation
from audiogen_hf.fast_generation import can_sample_fast


@pytest.fixture
def loops(monkeypatch):
    """Names the loop of every window; `loops.only("standard")` keeps the fast one out."""

    class Loops(list):
        allowed = True

        def only(self, name):
            self.allowed = name == "fast"

    loops = Loops()

    def record(*args, **kwargs):
        fast = loops.allowed and can_sample_fast(*args, **kwargs)
        loops.append("fast" if fast else "standard")
        return fast

    monkeypatch.setattr(generation, "can_sample_fast", record)
    return loops


def both(loops, run):
    """The codes of `run` by the fast loop and by the standard one."""
    loops.only("fast")
    fast = run()
    assert set(loops) == {"fast"}, "this request is expected to be served by the fast loop"
    loops.clear()
    loops.only("standard")
    standard = run()
    assert set(loops) == {"standard"}
    return fast, standard


REQUESTS = {
    "greedy, guided": dict(do_sample=False),
    "greedy, unguided": dict(do_sample=False, guidance_scale=1.0),
    "guidance below one": dict(do_sample=False, guidance_scale=0.5),
    "top-k": dict(do_sample=True, top_k=10, temperature=0.9),
    "top-p": dict(do_sample=True, top_p=0.8),
    "plain": dict(do_sample=True, top_k=0),
    "several takes": dict(do_sample=True, num_return_sequences=3),
    "windows": dict(do_sample=True, audio_length_in_s=4.0, extend_stride=1.0),
    "min-p": dict(do_sample=True, min_p=0.02, top_k=0),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_gives_the_codes_of_the_standard_loop(name, model, processor, loops):
    request = {"audio_length_in_s": 0.6, "return_dict_in_generate": True, **REQUESTS[name]}
    inputs = processor(text=PROMPTS)

    def run():
        torch.manual_seed(3)
        return model.generate(**inputs, **request).audio_codes

    fast, standard = both(loops, run)
    assert torch.equal(fast, standard)


def test_gives_the_codes_of_the_standard_loop_with_seeds_and_sound_prompts(model, processor, reference, loops):
    sound = reference["cont/wav16k"][0, 0].numpy()
    inputs = processor(text=PROMPTS[:2], audio=[sound, sound[:3000]], sampling_rate=16_000)

    def run():
        generator = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        outputs = model.generate(**inputs, generator=generator, audio_length_in_s=0.8, return_dict_in_generate=True)
        return outputs.audio_codes

    fast, standard = both(loops, run)
    assert torch.equal(fast, standard)


def test_gives_the_codes_of_the_standard_loop_with_negative_prompts_and_in_half_precision(processor, loops):
    model = tiny_model()
    model.decoder.bfloat16(), model.enc_to_dec_proj.bfloat16(), model.lm_head.bfloat16()
    inputs = processor(text=PROMPTS, negative_text="music")

    def run():
        return model.generate(**inputs, do_sample=False, max_new_tokens=20, return_dict_in_generate=True).audio_codes

    fast, standard = both(loops, run)
    assert (fast == standard).float().mean() > 0.9  # bfloat16 ties may fall either way


def test_gives_the_codes_of_the_standard_loop_where_the_text_is_a_single_state(loops):
    model = tiny_model()
    states = torch.randn(3, 1, model.text_encoder.config.hidden_size)

    def run(**request):
        encoder_outputs = BaseModelOutput(last_hidden_state=states)
        request = {"do_sample": False, "max_new_tokens": 20, "return_dict_in_generate": True, **request}
        return model.generate(encoder_outputs=encoder_outputs, **request).audio_codes

    fast, standard = both(loops, run)
    assert torch.equal(fast, standard)
    assert not torch.equal(fast, run(guidance_scale=1.0))


@pytest.mark.parametrize("name", ["greedy, guided", "greedy, unguided", "top-k", "windows"])
def test_steps_of_fixed_shapes_give_the_codes_of_the_standard_loop(name, model, processor, loops, monkeypatch):
    monkeypatch.setattr(fast_generation, "_captures_steps", lambda *args: True)
    monkeypatch.setattr(fast_generation._StaticStep, "BUCKET", 16)
    lengths = record_lengths(monkeypatch)
    request = {"audio_length_in_s": 0.6, "return_dict_in_generate": True, **REQUESTS[name]}

    def run():
        torch.manual_seed(3)
        return model.generate(**processor(text=PROMPTS), **request).audio_codes

    fast, standard = both(loops, run)
    assert torch.equal(fast, standard)
    if name != "windows":
        # 34 columns, of which the first is read as a prompt, by three graphs.
        assert lengths == [16] * 15 + [32] * 16 + [34]


def record_lengths(monkeypatch) -> list[int]:
    """Columns that each step of fixed shapes attends to."""
    lengths, run = [], fast_generation._StaticStep._run

    def recorded(step):
        lengths.append(step.length)
        run(step)

    monkeypatch.setattr(fast_generation._StaticStep, "_run", recorded)
    return lengths


class CountOfValuesAskedFor(TorchDispatchMode):
    """Operations that make the host wait for a device: they end a capture, or hold up a loop."""

    WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique"}
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in self.WAITING
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["greedy, guided", "top-k", "top-p"])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_no_step_asks_for_a_value(name, fixed_shapes, model, processor, loops, monkeypatch):
    monkeypatch.setattr(fast_generation, "_captures_steps", lambda *args: fixed_shapes)
    inputs = processor(text=PROMPTS)

    def values_asked_for(frames):
        with CountOfValuesAskedFor() as mode:
            model.generate(**inputs, **REQUESTS[name], max_new_tokens=frames)
        return mode.count

    assert values_asked_for(4) == values_asked_for(12) > 0
    assert set(loops) == {"fast"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", REQUESTS)
def test_captured_steps_give_the_codes_of_the_standard_loop(name, processor, loops, monkeypatch):
    model = load_model().to("cuda")
    monkeypatch.setattr(fast_generation._StaticStep, "BUCKET", 16)
    lengths = record_lengths(monkeypatch)
    request = {"audio_length_in_s": 0.6, "return_dict_in_generate": True, **REQUESTS[name]}

    def run():
        torch.manual_seed(3)
        return model.generate(**processor(text=PROMPTS).to("cuda"), **request).audio_codes

    fast, standard = both(loops, run)
    assert torch.equal(fast, standard)
    if name != "windows":
        assert lengths == [16, 16, 32, 32, 34, 34]  # one to warm up and one to capture, a bucket


@pytest.mark.gpu
def test_captured_steps_take_generators_of_either_device(processor, loops):
    model = load_model().to("cuda")
    for device in ("cpu", "cuda"):

        def run(device=device):
            generator = [torch.Generator(device).manual_seed(seed) for seed in range(3)]
            inputs = processor(text=PROMPTS).to("cuda")
            request = {"audio_length_in_s": 0.6, "return_dict_in_generate": True}
            return model.generate(**inputs, generator=generator, **request).audio_codes

        fast, standard = both(loops, run)
        assert torch.equal(fast, standard)
        loops.clear()


class Neutral(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


@pytest.mark.parametrize(
    "request_of",
    [
        lambda processor: {"logits_processor": [Neutral()]},
        lambda processor: {"stopping_criteria": [MaxTimeCriteria(60.0)]},
        lambda processor: {"streamer": Streamer()},
        lambda processor: {"cache_implementation": "static"},
        lambda processor: {"use_cache": False},
        lambda processor: {"output_scores": True},
    ],
    ids=["processor", "criterion", "streamer", "static cache", "no cache", "scores"],
)
def test_leaves_other_requests_to_the_standard_loop(request_of, model, processor, loops):
    inputs = processor(text=PROMPTS[:1])
    request = {"do_sample": False, "max_new_tokens": 5, "return_dict_in_generate": True}
    expected = model.generate(**inputs, **request).audio_codes
    loops.clear()
    outputs = model.generate(**inputs, **request, **request_of(processor))
    assert loops == ["standard"]
    assert torch.equal(outputs.audio_codes, expected)


class Streamer(TextStreamer):
    def __init__(self):
        pass

    def put(self, value):
        pass

    def end(self):
        pass


def test_eager_attention_is_left_to_the_standard_loop(processor, loops):
    model = tiny_model(attn_implementation="eager")
    model.generate(**processor(text=PROMPTS[:1]), do_sample=False, max_new_tokens=2)
    assert loops == ["standard"]


def test_hooks_on_layers_are_called(processor, loops):
    model = tiny_model()
    request = {**processor(text=PROMPTS[:1]), "do_sample": False, "max_new_tokens": 2}
    model.generate(**request, output_hidden_states=True, return_dict_in_generate=True)
    model.generate(**request)
    assert loops == ["standard", "fast"], "what recorded hidden states stands in nobody's way later"
    calls = []
    model.decoder.layers[1].cross_attn.register_forward_hook(lambda *args: calls.append(1))
    model.generate(**request)
    assert loops[-1] == "standard" and calls


def test_scores_that_are_no_numbers_are_an_error_where_codes_are_drawn(processor, loops):
    model = tiny_model()
    with torch.no_grad():
        model.decoder.layers[0].fc1.weight[0, 0] = torch.inf
    with pytest.raises(RuntimeError, match="not numbers"):
        model.generate(**processor(text=PROMPTS[:1]), do_sample=True, max_new_tokens=3)
    assert loops == ["fast"]


def test_linears_give_the_products_of_torch_for_few_rows_and_many():
    from audiogen_hf.modeling_audiogen import AudioGenLinear

    torch.manual_seed(0)
    linear = AudioGenLinear(48, 80)
    for shape in [(1, 1, 48), (2, 1, 48), (4, 48), (3, 9, 48)]:
        hidden_states = torch.randn(shape)
        expected = torch.nn.functional.linear(hidden_states, linear.weight)
        torch.testing.assert_close(linear(hidden_states), expected)  # with gradients
        with torch.no_grad():
            torch.testing.assert_close(linear(hidden_states), expected)
