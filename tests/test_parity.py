"""The same numbers as AudioCraft: every tensor of fixtures/reference.safetensors, through the user's door."""

import pytest
import torch
from testing_utils import PROMPTS, generate_codes

from audiogen_hf.audio_utils import convert_audio
from audiogen_hf.audiocraft_state_dict import lm_state_to_audiocraft
from audiogen_hf.delay_pattern import apply_delay_pattern


def max_difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).detach().abs().max())


# Texts


@pytest.mark.parametrize("name", ["cond", "cond_cfg"])
def test_text_encoder_and_projection_agree(model, processor, reference, name):
    texts = PROMPTS if name == "cond" else [*PROMPTS, None, None, None]
    inputs = processor(text=texts)
    assert torch.equal(inputs["input_ids"], reference[f"{name}/input_ids"])
    assert torch.equal(inputs["attention_mask"], reference[f"{name}/attention_mask"])
    with torch.no_grad():
        states = model.text_encoder(**inputs)[0]
        projected, _ = model.project_text(states, inputs["attention_mask"])
    assert max_difference(states, reference[f"{name}/t5_last_hidden_state"]) <= 1e-5
    assert max_difference(projected, reference[f"{name}/embeds"]) <= 1e-5


@pytest.mark.parametrize("texts", [[None, None], ["", ""]])
def test_null_prompts_project_to_zero(model, processor, reference, texts):
    inputs = processor(text=texts)
    with torch.no_grad():
        projected, _ = model.project_text(model.text_encoder(**inputs)[0], inputs["attention_mask"])
    assert not projected.any()
    assert not reference["cond_null/embeds"].any()


def test_unconditional_inputs_are_null_prompts(model, reference):
    inputs = model.get_unconditional_inputs(2)
    assert inputs["input_ids"].shape == reference["cond_null/input_ids"].shape
    assert torch.equal(inputs["attention_mask"], reference["cond_null/attention_mask"])


# Forward


def test_positions_agree(model, reference):
    assert max_difference(model.decoder.embed_positions(torch.arange(64)[None]), reference["pos_emb"]) <= 1e-6


def test_delayed_columns_agree(model, reference):
    codes, special = reference["tf/codes"], model.config.decoder.special_token_id
    columns = apply_delay_pattern(codes, model.config.decoder.codebook_delays, special)
    assert torch.equal(columns, reference["tf/sequence_full"])
    assert torch.equal(columns[..., : codes.shape[-1] + 1], reference["tf/sequence"])


def in_frames(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits (B * K, T, V) of columns to frames (B, K, T, V), zero where a frame has no prediction."""
    batch, codebooks, frames = mask.shape
    logits = logits.unflatten(0, (batch, codebooks))
    aligned = torch.zeros_like(logits)
    for k in range(codebooks):
        aligned[:, k, : frames - k] = logits[:, k, k:]
    return aligned * mask[..., None]


@pytest.mark.parametrize("name", ["tf", "tf_null"])
def test_logits_agree(model_as_audiocraft, processor, reference, name):
    inputs = processor(text=PROMPTS if name == "tf" else [None] * 3)
    with torch.no_grad():
        outputs = model_as_audiocraft(**inputs, labels=reference["tf/codes"])
    assert max_difference(in_frames(outputs.logits, reference["tf/mask"]), reference[f"{name}/logits"]) <= 2e-5


def test_hidden_states_agree(model_as_audiocraft, processor, reference):
    model = model_as_audiocraft
    with torch.no_grad():
        outputs = model(
            **processor(text=PROMPTS),
            decoder_input_ids=reference["tf/sequence"].transpose(1, 2),
            output_hidden_states=True,
        )
    _, first, second = outputs.decoder_hidden_states
    assert max_difference(first, reference["tf/hidden_0"]) <= 1e-5
    # The last of them is normalised, as everywhere in transformers.
    assert max_difference(second, model.decoder.norm(reference["tf/hidden_1"])) <= 1e-5


@pytest.mark.parametrize("name", ["tf", "tf_padded"])
def test_loss_agrees(model_as_audiocraft, processor, reference, name):
    with torch.no_grad():
        outputs = model_as_audiocraft(**processor(text=PROMPTS), labels=reference[f"{name}/codes"])
    torch.testing.assert_close(outputs.loss, reference[f"{name}/ce"][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(outputs.loss_per_codebook, reference[f"{name}/ce_per_codebook"], rtol=1e-6, atol=0)


def test_gradients_agree(model_as_audiocraft, processor, reference):
    model = model_as_audiocraft
    model.zero_grad()
    model(**processor(text=PROMPTS), labels=reference["tf/codes"]).loss.backward()
    decoder = model.config.decoder
    gradients = {n: p.grad for n, p in model.named_parameters() if "_encoder." not in n}
    model.zero_grad()
    gradients = lm_state_to_audiocraft(gradients, decoder.num_hidden_layers, decoder.num_codebooks)
    expected = {name[5:]: tensor for name, tensor in reference.items() if name.startswith("grad/")}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        relative = float((gradients[name] - gradient).norm() / gradient.norm())
        assert relative <= 1e-4, f"{name}: {relative:.1e}"


# Generation


@pytest.mark.parametrize("index", range(3))
def test_greedy_codes_of_a_text_agree(model, processor, reference, index):
    codes = generate_codes(model, processor(text=[PROMPTS[index]]), audio_length_in_s=1.0)
    assert torch.equal(codes, reference[f"greedy_cfg3_single{index}/tokens"])


def test_ragged_batch_equals_the_single_runs_of_audiocraft(model, processor, reference):
    codes = generate_codes(model, processor(text=PROMPTS), audio_length_in_s=1.0)
    expected = torch.cat([reference[f"greedy_cfg3_single{index}/tokens"] for index in range(3)])
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("guidance_scale, name", [(3.0, "greedy_cfg3"), (1.0, "greedy_cfg1")])
def test_attending_to_padding_reproduces_ragged_batches(
    model_as_audiocraft, processor, reference, guidance_scale, name
):
    inputs = processor(text=PROMPTS)
    codes = generate_codes(model_as_audiocraft, inputs, audio_length_in_s=1.0, guidance_scale=guidance_scale)
    assert torch.equal(codes, reference[f"{name}/tokens"])


def test_guided_logits_of_every_step_agree(model, processor, reference):
    outputs = model.generate(
        **processor(text=PROMPTS[:1]),
        audio_length_in_s=1.0,
        do_sample=False,
        guidance_scale=3.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    scores = torch.stack(outputs.scores, dim=1)[None]  # (1, K, steps, V)
    assert max_difference(scores, reference["greedy_cfg3_single0/step_logits"]) <= 1e-4


@pytest.mark.parametrize("guidance_scale, name", [(3.0, "greedy_unconditional"), (1.0, "greedy_unconditional_coef1")])
def test_unconditional_codes_agree(model, reference, guidance_scale, name):
    expected = reference[f"{name}/tokens"]
    inputs = model.get_unconditional_inputs(expected.shape[0])
    codes = generate_codes(model, inputs, audio_length_in_s=1.0, guidance_scale=guidance_scale)
    assert torch.equal(codes, expected)


def test_three_frames_agree(model, processor, reference):
    for length in ({"audio_length_in_s": 0.07}, {"max_new_tokens": 3}):
        codes = generate_codes(model, processor(text=PROMPTS[:1]), **length)
        assert torch.equal(codes, reference["greedy_3frames/tokens"])


def test_continuation_agrees(model_as_audiocraft, processor, reference):
    sounds = list(reference["cont/wav16k"][:, 0].numpy())
    inputs = processor(text=PROMPTS[:2], audio=sounds, sampling_rate=16_000)
    codes = generate_codes(model_as_audiocraft, inputs, audio_length_in_s=1.0)
    assert torch.equal(codes[..., :25], reference["cont/prompt_tokens"])
    assert torch.equal(codes, reference["cont/tokens"])


def test_continuation_of_stereo_at_another_rate_agrees(model, processor, reference):
    sound = reference["cont_32k_stereo/wav"].numpy()
    converted = torch.from_numpy(convert_audio(sound, 32_000, 16_000, 1))
    assert max_difference(converted, reference["cont_32k_stereo/converted"][0]) <= 1e-5
    inputs = processor(text=PROMPTS[:1], audio=[sound], sampling_rate=32_000)
    codes = generate_codes(model, inputs, audio_length_in_s=1.0)
    assert torch.equal(codes, reference["cont_32k_stereo/tokens"])


def test_continuation_without_a_text_agrees(model, processor, reference):
    inputs = processor(text=[None], audio=[reference["cont/wav16k"][0, 0].numpy()], sampling_rate=16_000)
    codes = generate_codes(model, inputs, audio_length_in_s=1.0)
    assert torch.equal(codes, reference["cont_nodesc/tokens"])


@pytest.mark.parametrize("stride", [1, 2])
def test_windows_beyond_the_training_length_agree(model_as_audiocraft, processor, reference, stride):
    codes = generate_codes(
        model_as_audiocraft, processor(text=PROMPTS[:2]), audio_length_in_s=5.0, extend_stride=float(stride)
    )
    assert torch.equal(codes, reference[f"extend_stride{stride}/tokens"])


def test_windows_that_continue_a_sound_agree(model_as_audiocraft, processor, reference):
    sounds = list(reference["cont/wav16k"][:, 0].numpy())
    inputs = processor(text=PROMPTS[:2], audio=sounds, sampling_rate=16_000)
    codes = generate_codes(model_as_audiocraft, inputs, audio_length_in_s=5.0, extend_stride=1.25)
    assert torch.equal(codes, reference["extend_cont/tokens"])


# Sampling


@pytest.mark.parametrize("through", ["torch.manual_seed", "generator"])
@pytest.mark.parametrize(
    "name, options",
    [
        ("sample_topk20_seed1234", {"top_k": 20, "temperature": 0.9}),
        ("sample_plain_seed1234", {"top_k": 0, "temperature": 1.0}),
    ],
)
def test_seeded_sampling_agrees(model_as_audiocraft, processor, reference, name, options, through):
    generator = torch.manual_seed(1234) if through == "torch.manual_seed" else torch.Generator().manual_seed(1234)
    codes = generate_codes(
        model_as_audiocraft,
        processor(text=PROMPTS),
        audio_length_in_s=1.0,
        do_sample=True,
        generator=generator if through == "generator" else None,
        **options,
    )
    assert torch.equal(codes, reference[f"{name}/tokens"])


SAMPLER = {
    "topk20_temp0.8": {"top_k": 20, "temperature": 0.8},
    "topp0.7_temp0.8": {"top_k": 20, "top_p": 0.7, "temperature": 0.8},
}


def processed_scores(model, logits: torch.Tensor, **kwargs) -> torch.Tensor:
    """Scores `(B * K, V)` after the processors that `generate` would use on these logits."""
    calls = []

    class Replace:
        def __call__(self, input_ids, scores):
            calls.append(None)
            return logits.flatten(0, 1)

    outputs = model.generate(
        **model.get_unconditional_inputs(len(logits)),
        max_new_tokens=1,
        do_sample=True,
        guidance_scale=1.0,
        logits_processor=[Replace()],
        output_scores=True,
        return_dict_in_generate=True,
        **kwargs,
    )
    assert calls
    return outputs.scores[0]


@pytest.mark.parametrize("name", SAMPLER)
def test_sampler_leaves_the_same_distribution(model, reference, name):
    # Custom processors run before the library's warpers, so these see the reference's logits.
    scores = processed_scores(model, reference["sampler/logits"], **SAMPLER[name])
    expected = reference[f"sampler/{name}_probs"]
    assert max_difference(scores.softmax(dim=-1).view_as(expected), expected) <= 1e-6


def test_seeded_draws_of_top_k_agree(model, reference):
    scores = processed_scores(model, reference["sampler/logits"], **SAMPLER["topk20_temp0.8"])
    torch.manual_seed(99)
    drawn = torch.multinomial(scores.softmax(dim=-1), 1).view(2, 4, 1)
    assert torch.equal(drawn, reference["sampler/topk20_temp0.8_seed99"])


# The tokenizer of sound


@pytest.mark.parametrize("name", ["", "_odd_length"])
def test_codec_agrees(model, reference, name):
    sound = reference[f"codec/wav{name}"]
    codes = model.encode_audio(sound)
    assert torch.equal(codes, reference[f"codec/codes{name}"])
    assert codes.shape[-1] == -(-sound.shape[-1] // 320)
    with torch.no_grad():
        decoded = model.decode_audio(codes)
    assert max_difference(decoded, reference[f"codec/decoded{name}"]) <= 1e-5


def test_codec_decodes_random_codes_as_audiocraft(model, reference):
    with torch.no_grad():
        decoded = model.decode_audio(reference["codec/random_codes"])
    assert max_difference(decoded, reference["codec/random_decoded"]) <= 1e-5


def test_waveform_of_generation_agrees(model, processor, reference):
    audio = model.generate(**processor(text=PROMPTS[:1]), audio_length_in_s=1.0, do_sample=False)
    assert max_difference(audio, reference["greedy_cfg3_single0/audio"]) <= 1e-5


def test_every_parameter_of_the_checkpoint_matters(model):
    """Guards the other tests: with parameters at zero or one they could pass with a wrong mapping of names."""
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        assert not torch.isin(values, torch.tensor([0.0, 1.0])).all(), name
        assert values.numel() == 1 or values.std() > 0, name
