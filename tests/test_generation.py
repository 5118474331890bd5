"""`generate`: against a naive loop written in testing_utils, and promise by promise."""

import time

import pytest
import torch
from testing_utils import PROMPTS, generate_codes, load_model, naive_generate, tiny_model
from torch._dynamo.utils import counters
from transformers import CompileConfig, EncoderDecoderCache, GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.generation.streamers import BaseStreamer

from audiogen_hf import AudioGenGenerateOutput
from audiogen_hf.delay_pattern import revert_delay_pattern

TEXTS = {
    "input_ids": torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0], [11, 12, 1, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
}
GREEDY = {"do_sample": False, "guidance_scale": 1.0, "return_dict_in_generate": True}


def text(row: int) -> dict:
    """One of `TEXTS` alone, without padding."""
    length = int(TEXTS["attention_mask"][row].sum())
    return {name: tensor[row : row + 1, :length] for name, tensor in TEXTS.items()}


def random_codes(model, batch: int, frames: int, seed: int = 0) -> torch.LongTensor:
    decoder = model.config.decoder
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, decoder.vocab_size, (batch, decoder.num_codebooks, frames), generator=generator)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def small():
    """A small random model with windows of 10 frames. Not to be changed."""
    return tiny_model(segment_duration=0.2)


@pytest.fixture
def library_loop(monkeypatch):
    """Turns the fast loop off, so that transformers' own runs."""
    monkeypatch.setattr("audiogen_hf.generation_audiogen.can_sample_fast", lambda *args, **kwargs: False)


# Equal to the naive loop

VARIANTS = {
    "mono": {},
    "stereo": {"num_codebooks": 8, "audio_channels": 2},
    "stereo of two codebooks": {"num_codebooks": 4, "audio_channels": 2},
    "two codebooks": {"num_codebooks": 2},
    "one codebook": {"num_codebooks": 1},
    "eight codebooks of 128 codes": {"num_codebooks": 8, "vocab_size": 128},
    "no delay": {"codebook_delays": [0, 0, 0, 0]},
    "uneven delays": {"codebook_delays": [0, 5, 2, 1]},
    "delays that start late": {"codebook_delays": [1, 1, 2, 3]},
}


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_codes_equal_a_naive_loop(variant, guidance_scale):
    model = tiny_model(decoder=VARIANTS[variant])
    expected = naive_generate(model, **text(0), num_frames=8, guidance_scale=guidance_scale)
    outputs = model.generate(**text(0), **GREEDY | {"guidance_scale": guidance_scale}, max_new_tokens=8)
    assert torch.equal(outputs.audio_codes, expected[None])
    assert outputs.audio.shape == (1, model.config.decoder.audio_channels, 8 * 320)
    assert len(expected.unique()) > 1  # the loop is worth comparing with


@pytest.mark.parametrize("variant", ["mono", "stereo", "uneven delays", "delays that start late"])
def test_continued_codes_equal_a_naive_loop(variant):
    model = tiny_model(decoder=VARIANTS[variant])
    prompt = random_codes(model, 1, 4)
    expected = naive_generate(model, **text(0), num_frames=9, guidance_scale=3.0, prompt_codes=prompt[0])
    codes = generate_codes(model, text(0), max_new_tokens=5, audio_codes=prompt)
    assert torch.equal(codes, expected[None])
    assert torch.equal(codes[..., :4], prompt)


@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("variant", ["mono", "stereo"])
def test_seeded_codes_equal_a_naive_loop(variant, top_k):
    """Plain sampling and top-k draw in the order of one `torch.multinomial` over all rows a step."""
    model = tiny_model(decoder=VARIANTS[variant])

    def draw(logits):
        logits = logits / 0.8
        if top_k:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
        return torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]

    torch.manual_seed(7)
    expected = naive_generate(model, **text(0), num_frames=8, guidance_scale=3.0, choose=draw)
    options = {"max_new_tokens": 8, "do_sample": True, "top_k": top_k, "temperature": 0.8}
    torch.manual_seed(7)
    assert torch.equal(generate_codes(model, text(0), **options), expected[None])
    assert torch.equal(generate_codes(model, text(0), **options, generator=seeded(7)[0]), expected[None])
    assert not torch.equal(generate_codes(model, text(0), **options, generator=seeded(8)[0]), expected[None])


def test_negative_prompts_steer_as_computed_by_hand(small):
    negative = (torch.tensor([[9, 1]]), torch.tensor([[1, 1]]))
    codes = generate_codes(
        small,
        text(0),
        max_new_tokens=8,
        negative_prompt_ids=negative[0],
        negative_prompt_attention_mask=negative[1],
    )
    expected = naive_generate(small, **text(0), num_frames=8, guidance_scale=3.0, negative=negative)
    assert torch.equal(codes, expected[None])
    assert not torch.equal(codes, generate_codes(small, text(0), max_new_tokens=8))


def test_negative_prompts_longer_than_the_text_and_one_for_all(small):
    negative = text(0)
    options = {
        "negative_prompt_ids": negative["input_ids"],
        "negative_prompt_attention_mask": negative["attention_mask"],
        "max_new_tokens": 8,
    }
    batch = generate_codes(small, {n: t[1:] for n, t in TEXTS.items()}, **options)
    for row in (1, 2):
        expected = naive_generate(
            small, **text(row), num_frames=8, guidance_scale=3.0, negative=tuple(negative.values())
        )
        assert torch.equal(batch[row - 1], expected)


# Batches, takes, seeds


def test_batches_are_paired_by_value(small):
    batch = generate_codes(small, TEXTS, max_new_tokens=8)
    for row in range(3):
        assert torch.equal(batch[row : row + 1], generate_codes(small, text(row), max_new_tokens=8))
    assert len({tuple(row.flatten().tolist()) for row in batch}) == 3


def test_takes_of_a_prompt_are_adjacent(small):
    options = {"max_new_tokens": 6, "do_sample": True}
    takes = generate_codes(small, TEXTS, **options, num_return_sequences=2, generator=seeded(0, 1, 2, 3, 4, 5))
    assert takes.shape == (6, 4, 6)
    for row in range(3):
        for take in range(2):
            single = generate_codes(small, text(row), **options, generator=seeded(2 * row + take))
            assert torch.equal(takes[2 * row + take], single[0])


def test_takes_continue_their_own_sound(small):
    prompt = random_codes(small, 3, 3)
    takes = generate_codes(small, TEXTS, max_new_tokens=3, do_sample=True, num_return_sequences=2, audio_codes=prompt)
    assert torch.equal(takes[..., :3], prompt.repeat_interleave(2, dim=0))


def test_takes_with_negative_prompts_keep_their_pairing(small):
    negative = {
        "negative_prompt_ids": TEXTS["input_ids"].flip(0),
        "negative_prompt_attention_mask": TEXTS["attention_mask"].flip(0),
    }
    options = {"max_new_tokens": 6, "do_sample": True}
    takes = generate_codes(
        small, TEXTS, **options, **negative, num_return_sequences=2, generator=seeded(0, 1, 2, 3, 4, 5)
    )
    one = {name: tensor[1:2] for name, tensor in negative.items()}
    single = generate_codes(small, text(1), **options, **one, generator=seeded(2))
    assert torch.equal(takes[2:3], single)


@pytest.mark.parametrize("loop", ["fast", "library"])
def test_one_generator_a_sample_makes_samples_independent_of_their_batch(small, loop, request):
    if loop == "library":
        request.getfixturevalue("library_loop")
    options = {"max_new_tokens": 6, "do_sample": True, "top_k": 10}
    batch = generate_codes(small, TEXTS, **options, generator=seeded(5, 6, 7))
    shuffled = {name: tensor[[2, 0]] for name, tensor in TEXTS.items()}
    assert torch.equal(generate_codes(small, shuffled, **options, generator=seeded(7, 5)), batch[[2, 0]])
    # Together a list of one and its one generator are the same source.
    alone = [generate_codes(small, text(0), **options, generator=g) for g in (seeded(5), seeded(5)[0])]
    assert torch.equal(*alone) and torch.equal(alone[0], batch[:1])


def test_a_generator_moves_on(small):
    generator = torch.Generator().manual_seed(0)
    first, second = (
        generate_codes(small, text(0), max_new_tokens=6, do_sample=True, generator=generator) for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_the_global_generator_is_untouched_by_a_given_one(small):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate_codes(small, text(0), max_new_tokens=3, do_sample=True, generator=seeded(0)[0])
    assert torch.equal(torch.rand(1), expected)


def test_a_null_prompt_beside_texts_is_unconditional(small):
    inputs = {name: torch.cat([tensor, torch.zeros_like(tensor[:1])]) for name, tensor in TEXTS.items()}
    batch = generate_codes(small, inputs, max_new_tokens=8)
    alone = generate_codes(small, small.get_unconditional_inputs(), max_new_tokens=8)
    assert torch.equal(batch[3:], alone)


def test_encoder_outputs_take_the_place_of_texts(small):
    states = small.text_encoder(**TEXTS)
    inputs = {"encoder_outputs": states, "attention_mask": TEXTS["attention_mask"]}
    expected = generate_codes(small, TEXTS, max_new_tokens=5)
    assert torch.equal(generate_codes(small, inputs, max_new_tokens=5), expected)
    ids, mask = TEXTS["input_ids"], TEXTS["attention_mask"]
    assert torch.equal(generate_codes(small, {"inputs": ids, "attention_mask": mask}, max_new_tokens=5), expected)


def test_the_text_encoder_runs_once(small, monkeypatch):
    calls = []
    monkeypatch.setattr(
        small.text_encoder,
        "forward",
        lambda forward=small.text_encoder.forward, **kw: calls.append(0) or forward(**kw),
    )
    generate_codes(small, TEXTS, audio_length_in_s=0.5, num_return_sequences=2, do_sample=True, extend_stride=0.1)
    assert len(calls) == 1


# Sound prompts


def sounds_of(model, *lengths: int) -> list:
    generator = torch.Generator().manual_seed(0)
    return [0.3 * torch.randn(length, generator=generator).numpy() for length in lengths]


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("lengths", [(320 * 4, 320 * 2 + 7, 320 * 6), (320 * 25, 320 * 3, 320 * 14 + 5)])
def test_sounds_of_unequal_length_equal_single_runs(small, processor, lengths, do_sample):
    """Also where sounds are longer than a window (10 frames), and with one generator a sample."""
    sounds = sounds_of(small, *lengths)
    options = {"audio_length_in_s": 0.6, "extend_stride": 0.08, "do_sample": do_sample}

    def run(rows):
        inputs = processor(text=[PROMPTS[r] for r in rows], audio=[sounds[r] for r in rows], sampling_rate=16_000)
        generators = seeded(*(10 + r for r in rows)) if do_sample else None
        return generate_codes(small, inputs, **options, generator=generators)

    batch = run(range(3))
    assert batch.shape == (3, 4, 30)
    for row in range(3):
        assert torch.equal(batch[row : row + 1], run([row])), row
        codes = small.encode_audio(torch.from_numpy(sounds[row])[None, None])
        assert torch.equal(batch[row, :, : codes.shape[-1]], codes[0])


def test_new_frames_count_from_the_longest_sound(small, processor):
    inputs = processor(text=PROMPTS[:2], audio=sounds_of(small, 640, 1280), sampling_rate=16_000)
    assert generate_codes(small, inputs, max_new_tokens=3).shape == (2, 4, 7)


def test_stereo_sounds_pass_through_interleaved_codebooks():
    model = tiny_model(decoder=VARIANTS["stereo"])
    left, right = (torch.from_numpy(sound) for sound in sounds_of(model, 1600, 1600))
    codes = model.encode_audio(torch.stack([left, right])[None])
    mono = [model.audio_encoder.encode(sound[None, None]).audio_codes[0] for sound in (left, right)]
    assert torch.equal(codes[:, 0::2], mono[0]) and torch.equal(codes[:, 1::2], mono[1])
    with torch.no_grad():
        audio = model.decode_audio(codes)
        for channel in range(2):
            expected = model.audio_encoder.decode(mono[channel][None], [None]).audio_values[0, 0]
            torch.testing.assert_close(audio[0, channel], expected)


# Lengths and windows


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 9, 10])
def test_max_new_tokens_counts_frames(small, frames):
    outputs = small.generate(**text(0), **GREEDY, max_new_tokens=frames)
    assert outputs.audio_codes.shape == (1, 4, frames) and outputs.audio.shape == (1, 1, 320 * frames)
    assert small.generate(**text(0), max_new_tokens=frames).shape == (1, 1, 320 * frames)


@pytest.mark.parametrize("seconds, frames", [(0.07, 3), (0.1, 5), (0.0999, 4), (1, 50), (1.13, 56)])
def test_seconds_truncate_to_frames(small, seconds, frames):
    assert generate_codes(small, text(0), audio_length_in_s=seconds, extend_stride=0.1).shape[-1] == frames


def test_the_default_is_five_seconds(model):
    assert model.generation_config.max_new_tokens == 250
    assert model.generation_config.top_k == 250 and model.generation_config.guidance_scale == 3.0


@pytest.mark.parametrize("frames", [11, 14, 15, 26])
@pytest.mark.parametrize("stride", [1, 4, 9])
def test_windows_equal_a_naive_loop(small, frames, stride):
    window = 10
    codes = naive_generate(small, **text(0), num_frames=window)
    offset = 0
    while offset + window < frames:
        offset += stride
        length = min(window, frames - offset)
        further = naive_generate(small, **text(0), num_frames=length, prompt_codes=codes[:, offset:])
        codes = torch.cat([codes[:, :offset], further], dim=-1)
    got = small.generate(**text(0), **GREEDY, max_new_tokens=frames, extend_stride=stride / 50).audio_codes
    assert torch.equal(got, codes[None])


def test_windows_have_no_limit(small):
    codes = generate_codes(small, text(0), max_new_tokens=300, extend_stride=0.18)
    assert codes.shape[-1] == 300


def test_stride_is_kept_in_the_generation_config(small):
    config = GenerationConfig(**small.generation_config.to_diff_dict() | {"extend_stride": 0.1, "do_sample": False})
    expected = generate_codes(small, text(0), max_new_tokens=20, extend_stride=0.1)
    got = small.generate(
        **text(0), generation_config=config, max_new_tokens=20, return_dict_in_generate=True
    ).audio_codes
    assert torch.equal(got, expected)


# The loop and its caches


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("loop", ["fast", "library"])
def test_caches_agree(small, options, loop, request):
    if loop == "library":
        request.getfixturevalue("library_loop")
    inputs = {**TEXTS, "audio_codes": random_codes(small, 3, 2)}
    expected = torch.stack(
        [
            naive_generate(
                small, **text(row), num_frames=8, guidance_scale=3.0, prompt_codes=inputs["audio_codes"][row]
            )
            for row in range(3)
        ]
    )
    assert torch.equal(generate_codes(small, inputs, max_new_tokens=6, **options), expected)


def test_a_cache_of_ones_own_is_filled(small):
    expected = generate_codes(small, text(0), max_new_tokens=5)
    caches = [EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in range(2)]
    assert torch.equal(generate_codes(small, text(0), max_new_tokens=5, cache=caches[0]), expected)
    with pytest.warns(FutureWarning, match="Use `cache` instead"):
        codes = generate_codes(small, text(0), max_new_tokens=5, past_key_values=caches[1])
    assert torch.equal(codes, expected)
    assert [cache.get_seq_length() for cache in caches] == [8, 8]  # five frames and the delays, without the last


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_attention_implementations_generate_the_same(processor, reference, attn_implementation):
    model = load_model(attn_implementation=attn_implementation)
    codes = generate_codes(model, processor(text=PROMPTS[:1]), audio_length_in_s=1.0)
    assert torch.equal(codes, reference["greedy_cfg3_single0/tokens"])


@pytest.mark.parametrize("loop", ["fast", "library"])
def test_no_decoder_call_is_wasted(small, loop, request):
    """T frames take T + 3 calls of one column each, and the first reads the sound prompt."""
    if loop == "library":
        request.getfixturevalue("library_loop")
    columns = []
    fc1 = small.decoder.layers[0].fc1  # both loops call it: hooks on layers would leave the fast one out
    hook = fc1.register_forward_hook(lambda module, args, output: columns.append(output.shape[1]))
    generate_codes(small, TEXTS, max_new_tokens=5)
    generate_codes(small, TEXTS, max_new_tokens=5, audio_codes=random_codes(small, 3, 4))
    hook.remove()
    assert columns == [1] * 8 + [5] + [1] * 7


def compiled(backend: str) -> dict:
    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_decoding_is_one_graph_compiled_once(backend):
    model = tiny_model()
    expected = generate_codes(model, TEXTS, max_new_tokens=8)
    torch._dynamo.reset()
    counters.clear()
    assert torch.equal(generate_codes(model, TEXTS, max_new_tokens=8, **compiled(backend)), expected)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1 and not counters["graph_break"]
    assert torch.equal(generate_codes(model, TEXTS, max_new_tokens=8, **compiled(backend)), expected)
    other = {"input_ids": TEXTS["input_ids"] + 1, "attention_mask": TEXTS["attention_mask"]}
    generate_codes(model, other, max_new_tokens=8, do_sample=True, temperature=0.7, **compiled(backend))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


# Streamers, criteria, processors, outputs


class Recorder(BaseStreamer):
    def __init__(self):
        self.values, self.ends = [], 0

    def put(self, value):
        assert not self.ends
        self.values.append(value.clone())

    def end(self):
        self.ends += 1


def codes_of_stream(model, values, batch: int) -> torch.LongTensor:
    """What a listener to one window knows at its end: codes (B, K, frames)."""
    columns = torch.stack([value.view(batch, -1) for value in values[1:]], dim=-1)
    columns = torch.cat([values[0].transpose(1, 2), columns], dim=-1)
    return revert_delay_pattern(columns, model.config.decoder.codebook_delays)


def test_a_streamer_gets_the_columns_then_codes_a_step_then_one_end(small):
    streamer = Recorder()
    codes = generate_codes(small, TEXTS, max_new_tokens=8, streamer=streamer)
    assert streamer.ends == 1
    assert streamer.values[0].shape == (3, 1, 4) and (streamer.values[0] == 32).all()  # the start column
    assert [tuple(value.shape) for value in streamer.values[1:]] == [(12,)] * (8 + 3)
    assert torch.equal(codes_of_stream(small, streamer.values, 3), codes)


def test_a_streamer_gets_the_sound_prompt_first(small):
    streamer, prompt = Recorder(), random_codes(small, 3, 4)
    codes = generate_codes(small, TEXTS, max_new_tokens=4, streamer=streamer, audio_codes=prompt)
    assert streamer.values[0].shape == (3, 5, 4)
    assert torch.equal(streamer.values[0][:, 1:, 0], prompt[:, 0])
    assert [value.numel() for value in streamer.values[1:]] == [12] * (4 + 3)
    # Cells of the prompt are drawn, too, and then overwritten: the prompt is known anyway.
    assert torch.equal(codes_of_stream(small, streamer.values, 3)[..., 4:], codes[..., 4:])


def test_a_stream_goes_on_over_windows(small):
    streamer = Recorder()
    generate_codes(small, TEXTS, max_new_tokens=18, extend_stride=0.08, streamer=streamer)
    assert streamer.ends == 1
    assert [value.ndim for value in streamer.values] == [3] + [1] * (10 + 3 + 4 + 3 + 4 + 3)


class StopAfter(StoppingCriteria):
    def __init__(self, columns: int):
        self.columns = columns
        self.shapes = []

    def __call__(self, input_ids, scores, **kwargs):
        self.shapes.append(tuple(input_ids.shape))
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.columns)


@pytest.mark.parametrize("columns, frames", [(2, 0), (4, 0), (5, 1), (9, 5), (99, 8)])
def test_stopping_criteria_leave_complete_frames(small, columns, frames):
    criterion = StopAfter(columns)
    whole = generate_codes(small, TEXTS, max_new_tokens=8)
    outputs = small.generate(
        **TEXTS, **GREEDY | {"guidance_scale": 3.0}, max_new_tokens=8, stopping_criteria=[criterion]
    )
    assert torch.equal(outputs.audio_codes, whole[..., :frames])
    assert outputs.audio.shape == (3, 1, 320 * frames)
    assert criterion.shapes == [(12, step) for step in range(2, min(columns, 12) + 1)]


class StopAtCall(StoppingCriteria):
    def __init__(self, last_call: int):
        self.last_call = last_call
        self.calls = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        return torch.full((input_ids.shape[0],), self.calls >= self.last_call)


def test_stopping_ends_all_windows(small):
    whole = generate_codes(small, TEXTS, max_new_tokens=30, extend_stride=0.1)
    stopper = StopAtCall(13 + 6)
    codes = generate_codes(small, TEXTS, max_new_tokens=30, extend_stride=0.1, stopping_criteria=[stopper])
    assert stopper.calls == 19
    # The second window has 5 known frames; six more columns complete three more frames.
    assert torch.equal(codes, whole[..., :13])


def test_max_time_is_one_budget_for_all_windows(small):
    class Slow(LogitsProcessor):
        def __call__(self, input_ids, scores):
            time.sleep(0.02)
            return scores

    start = time.perf_counter()
    codes = generate_codes(
        small, text(0), max_new_tokens=2000, extend_stride=0.1, max_time=0.5, logits_processor=[Slow()]
    )
    assert 0.5 <= time.perf_counter() - start < 5
    assert 0 < codes.shape[-1] < 100


def test_custom_processors_see_guided_scores_of_rows(small):
    seen = []

    class Forbid(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append((tuple(input_ids.shape), tuple(scores.shape)))
            return scores.index_fill(1, torch.arange(16), -torch.inf)

    codes = generate_codes(small, TEXTS, max_new_tokens=8, logits_processor=[Forbid()])
    assert (codes >= 16).all()
    assert seen == [((12, step), (12, 32)) for step in range(1, 12)]


def test_custom_processors_see_known_cells(small):
    """What a processor reads at the cells of the pattern is what the model reads."""
    prompt = random_codes(small, 1, 4)
    seen = []

    class Look(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids.clone())
            return scores

    codes = generate_codes(small, text(0), max_new_tokens=4, audio_codes=prompt, logits_processor=[Look()])
    assert torch.equal(
        revert_delay_pattern(seen[-1][None], [0, 1, 2, 3])[..., 4:], codes[..., 4 : seen[-1].shape[1] - 4]
    )


def test_outputs_have_their_documented_shapes(small):
    model = tiny_model(attn_implementation="eager", segment_duration=0.2)
    outputs = model.generate(
        **TEXTS,
        max_new_tokens=6,
        do_sample=False,
        guidance_scale=3.0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert isinstance(outputs, AudioGenGenerateOutput)
    decoder, steps, rows = model.config.decoder, 6 + 3, 3 * 4
    assert [tuple(s.shape) for s in outputs.scores] == [(rows, decoder.vocab_size)] * steps
    assert [s.shape[-1] for s in outputs.logits] == [decoder.vocab_size] * steps
    assert (
        len(outputs.decoder_attentions) == len(outputs.cross_attentions) == len(outputs.decoder_hidden_states) == steps
    )
    assert len(outputs.decoder_attentions[0]) == len(outputs.cross_attentions[0]) == decoder.num_hidden_layers
    assert outputs.decoder_attentions[-1][0].shape == (6, decoder.num_attention_heads, 1, steps)
    assert outputs.cross_attentions[-1][0].shape == (6, decoder.num_attention_heads, 1, 4)
    assert outputs.decoder_hidden_states[-1][-1].shape == (6, 1, decoder.hidden_size)
    # The scores are those that the codes were chosen by.
    chosen = torch.stack([scores.argmax(dim=-1) for scores in outputs.scores], dim=-1).view(3, 4, steps)
    columns = torch.cat([torch.zeros_like(chosen[..., :1]), chosen], dim=-1)
    assert torch.equal(revert_delay_pattern(columns, decoder.codebook_delays), outputs.audio_codes)
    # Guided scores from raw logits.
    cond, uncond = outputs.logits[0].chunk(2)
    torch.testing.assert_close(outputs.scores[0], uncond + (cond - uncond) * 3.0)


def test_a_callable_takes_the_place_of_the_loop(small):
    calls = []

    def custom_loop(model, input_ids, *args, **kwargs):
        calls.append(tuple(input_ids.shape))
        return GenerationMixin._sample(model, input_ids, *args, **kwargs)

    codes = generate_codes(small, TEXTS, max_new_tokens=8, custom_generate=custom_loop)
    assert calls == [(12, 1)]
    assert torch.equal(codes, generate_codes(small, TEXTS, max_new_tokens=8))


def test_a_callable_may_return_ids_alone(small):
    def custom_loop(model, input_ids, *args, **kwargs):
        return GenerationMixin._sample(model, input_ids, *args, **kwargs).sequences

    codes = generate_codes(small, TEXTS, max_new_tokens=8, custom_generate=custom_loop)
    assert torch.equal(codes, generate_codes(small, TEXTS, max_new_tokens=8))


def test_progress_is_shown_and_complete(small, capsys):
    generate_codes(small, text(0), max_new_tokens=14, extend_stride=0.1, progress=True)
    shown = capsys.readouterr().err
    total = (10 + 3) + (14 - 10 + 3)
    assert f"{total}/{total}" in shown and "Generating" in shown
    generate_codes(small, text(0), max_new_tokens=2)
    assert capsys.readouterr().err == ""


# Sampling parameters


def test_temperature_zero_is_greedy(small):
    expected = generate_codes(small, text(0), max_new_tokens=6)
    assert torch.equal(generate_codes(small, text(0), max_new_tokens=6, do_sample=True, temperature=0), expected)
    assert torch.equal(generate_codes(small, text(0), max_new_tokens=6, do_sample=True, top_k=1), expected)


def test_top_p_takes_the_place_of_top_k(small):
    """Below 1, `top_p` decides alone: the default `top_k` or another gives the same."""
    options = {"max_new_tokens": 6, "do_sample": True, "top_p": 0.9}
    first = generate_codes(small, text(0), **options, top_k=1, generator=seeded(0))
    second = generate_codes(small, text(0), **options, generator=seeded(0))
    assert torch.equal(first, second)
    assert not torch.equal(first, generate_codes(small, text(0), max_new_tokens=6))
    # At 1 it leaves all, and top_k decides.
    greedy = generate_codes(small, text(0), **options | {"top_p": 1.0}, top_k=1, generator=seeded(0))
    assert torch.equal(greedy, generate_codes(small, text(0), max_new_tokens=6))


def test_a_generation_config_takes_the_place_of_the_models_own(small):
    config = GenerationConfig(do_sample=False, max_new_tokens=6, guidance_scale=1.0, return_dict_in_generate=True)
    codes = small.generate(**text(0), generation_config=config).audio_codes
    assert torch.equal(codes, small.generate(**text(0), **GREEDY, max_new_tokens=6).audio_codes)
    assert config.max_new_tokens == 6 and config.max_length is None  # and is left as it was


def test_the_models_own_generation_config_is_left_as_it_was(small):
    before = small.generation_config.to_dict()
    generate_codes(
        small, TEXTS, audio_length_in_s=0.5, temperature=0, top_p=0.5, num_return_sequences=1, extend_stride=0.1
    )
    assert small.generation_config.to_dict() == before


# What is refused


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_beams": 2, "do_sample": True}])
def test_beams_are_refused(small, options):
    with pytest.raises(ValueError, match=r"only supports .* got generation mode .*BEAM"):
        small.generate(**text(0), max_new_tokens=2, **{"do_sample": False, **options})


def test_assistants_are_refused(small):
    with pytest.raises(ValueError, match=r"only supports .* got generation mode .*ASSISTED"):
        small.generate(**text(0), max_new_tokens=2, assistant_model=small)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"audio_length_in_s": 0}, "`audio_length_in_s` of 0"),
        ({"audio_length_in_s": -1.0}, "`audio_length_in_s` of -1.0"),
        ({"audio_length_in_s": 0.01}, "at least one frame"),
        ({"audio_length_in_s": float("nan")}, "`audio_length_in_s` takes seconds, got nan"),
        ({"audio_length_in_s": float("inf")}, "`audio_length_in_s` takes seconds, got inf"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -3}, "max_new_tokens"),
        ({"audio_length_in_s": 1, "max_new_tokens": 3}, "not both"),
        ({"max_length": 10}, "in place of `max_length`"),
        ({"audio_length_in_s": 1, "extend_stride": 0}, "`extend_stride`"),
        ({"audio_length_in_s": 1, "extend_stride": 0.2}, "`extend_stride`"),
        ({"audio_length_in_s": 1, "extend_stride": -1}, "`extend_stride`"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"`top_p` must be in \(0, 1\], got 1.1"),
        ({"top_p": -0.5}, r"`top_p` must be in \(0, 1\], got -0.5"),
        ({"top_k": -1}, "`top_k`"),
        ({"temperature": -1.0}, "`temperature`"),
        ({"generator": seeded(0, 1)}, "one a sample: 1 .*, got 2"),
        ({"generator": [], "num_return_sequences": 2}, "one a sample: 2 .*, got 0"),
        ({"do_sample": False, "num_return_sequences": 2}, "num_return_sequences"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"nonsense": 1}, "nonsense"),
        ({"audio_codes": torch.zeros(2, 4, 3, dtype=torch.long)}, "2 sounds to continue for 1 texts"),
        ({"audio_codes": torch.zeros(1, 3, 3, dtype=torch.long)}, r"\(sounds, 4, frames\), got \(1, 3, 3\)"),
        ({"audio_codes": torch.full((1, 4, 3), 32)}, "0 to 31"),
        ({"audio_codes": torch.zeros(1, 4, 9, dtype=torch.long), "audio_length_in_s": 0.1}, "sound prompt of 9"),
        ({"input_values": torch.zeros(1, 2, 640)}, r"\(sounds, 1, samples\), got \(1, 2, 640\)"),
        ({"input_values": torch.zeros(1, 1, 0)}, r"\(sounds, 1, samples\), got \(1, 1, 0\)"),
        ({"input_values": torch.full((1, 1, 640), torch.nan)}, "NaN"),
        ({"input_values": torch.zeros(1, 1, 640), "padding_mask": torch.zeros(1, 640)}, "nothing of sound number 0"),
        ({"generator": 5}, "`torch.Generator`s, .*, got 5"),
        ({"generator": [5]}, r"`torch.Generator`s, .*, got \[5\]"),
        ({"input_values": torch.zeros(2, 1, 640)}, "2 sounds to continue for 1 texts"),
        ({"negative_prompt_ids": torch.ones(1, 2, dtype=torch.long), "guidance_scale": 1.0}, "other than 1"),
        ({"negative_prompt_ids": torch.ones(2, 2, dtype=torch.long)}, "for each of the 1 prompts, got 2"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_bad_arguments_are_named(small, options, message):
    with pytest.raises(ValueError, match=message):
        small.generate(**text(0), **options)


def test_no_text_at_all_is_refused(small):
    with pytest.raises(ValueError, match="get_unconditional_inputs"):
        small.generate(max_new_tokens=2)
    with pytest.raises(ValueError, match=r"\(prompts, tokens\), got \(0, 3\)"):
        small.generate(torch.zeros(0, 3, dtype=torch.long), max_new_tokens=2)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, got 0"):
        small.get_unconditional_inputs(0)


@pytest.mark.gpu
def test_inputs_on_the_cpu_serve_a_model_on_a_gpu(processor):
    model = load_model().to("cuda")
    inputs = processor(text=PROMPTS[:2], audio=sounds_of(model, 1280, 640), sampling_rate=16_000, negative_text="rain")
    options = {"audio_length_in_s": 0.4, "return_dict_in_generate": True}
    outputs = model.generate(**inputs, **options, generator=seeded(0, 1))
    assert outputs.audio.device.type == outputs.audio_codes.device.type == "cuda"
    on_gpu = model.generate(**inputs.to("cuda"), **options, generator=seeded(0, 1))
    assert torch.equal(on_gpu.audio_codes, outputs.audio_codes)
