"""The forward pass, its loss and gradients, weights at birth, saving and loading."""

import contextlib
import io
import logging
import warnings

import pytest
import torch
from testing_utils import PROMPTS, load_model, tiny_config, tiny_model
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as transformers_logging

from audiogen_hf import AudioGenConfig, AudioGenDecoderConfig, AudioGenForConditionalGeneration
from audiogen_hf.modeling_audiogen import AudioGenDecoder


def random_codes(config, batch: int, frames: int, seed: int = 0) -> torch.LongTensor:
    shape = (batch, config.decoder.num_codebooks, frames)
    return torch.randint(0, config.decoder.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def random_columns(config, batch: int, columns: int) -> torch.LongTensor:
    return random_codes(config, batch, columns).transpose(1, 2)


TEXTS = {
    "input_ids": torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0], [1, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]),  # the last is a null prompt
}


def text(row: int) -> dict:
    """One of `TEXTS` alone, without padding."""
    length = max(int(TEXTS["attention_mask"][row].sum()), 1)
    return {name: tensor[row : row + 1, :length] for name, tensor in TEXTS.items()}


@contextlib.contextmanager
def captured_output():
    """Everything a user would see: what is printed, logged by transformers, or warned."""
    seen = io.StringIO()
    handler = logging.StreamHandler(seen)
    transformers_logging.get_logger("transformers").addHandler(handler)
    progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with (
            contextlib.redirect_stdout(seen),
            contextlib.redirect_stderr(seen),
            warnings.catch_warnings(record=True) as w,
        ):
            warnings.simplefilter("always")
            yield lambda: seen.getvalue() + "".join(str(one.message) for one in w)
    finally:
        transformers_logging.get_logger("transformers").removeHandler(handler)
        if progress:
            transformers_logging.enable_progress_bar()


# Batches, masks, caches, attention


@pytest.mark.parametrize("text_pooling", [None, "mean"])
def test_rows_of_a_ragged_batch_equal_single_runs(text_pooling):
    model = tiny_model(text_pooling=text_pooling)
    columns = random_columns(model.config, 3, 6)
    with torch.no_grad():
        batch = model(**TEXTS, decoder_input_ids=columns).logits.unflatten(0, (3, -1))
        for row in range(3):
            single = model(**text(row), decoder_input_ids=columns[row : row + 1]).logits
            torch.testing.assert_close(batch[row], single, rtol=0, atol=1e-5)
            other = model(**text((row + 1) % 3), decoder_input_ids=columns[row : row + 1]).logits
            assert (other - single).abs().max() > 1e-2  # the text is heard, so a wrong pairing would show


def test_attending_to_padding_makes_rows_depend_on_it():
    model = tiny_model(attend_to_text_padding=True)
    columns = random_columns(model.config, 3, 6)
    with torch.no_grad():
        batch = model(**TEXTS, decoder_input_ids=columns).logits.unflatten(0, (3, -1))
        torch.testing.assert_close(batch[0], model(**text(0), decoder_input_ids=columns[:1]).logits, rtol=0, atol=1e-5)
        assert (batch[1] - model(**text(1), decoder_input_ids=columns[1:2]).logits).abs().max() > 1e-3
        # A null prompt gives zeros, however many of them.
        torch.testing.assert_close(batch[2], model(**text(2), decoder_input_ids=columns[2:]).logits, rtol=0, atol=1e-5)


def test_mean_pooling_conditions_on_the_mean_of_the_tokens_of_a_text():
    model = tiny_model(text_pooling="mean")
    columns = random_columns(model.config, 1, 6)
    with torch.no_grad():
        tokens = text(0)["attention_mask"][0].bool()
        states = model.text_encoder(**text(0)).last_hidden_state
        mean = states[:, tokens].mean(dim=1, keepdim=True)
        pooled = model(**text(0), decoder_input_ids=columns).logits
        model.config.text_pooling = None
        by_hand = model(encoder_outputs=(mean,), decoder_input_ids=columns).logits
        by_token = model(**text(0), decoder_input_ids=columns).logits
    torch.testing.assert_close(pooled, by_hand, rtol=0, atol=1e-5)
    assert (pooled - by_token).abs().max() > 1e-3


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"attend_to_text_padding": True}, {"text_pooling": "mean"}])
def test_null_prompts_contribute_zero_and_never_nan(attn_implementation, options):
    model = tiny_model(attn_implementation=attn_implementation, **options)
    contributions = []
    hook = model.decoder.layers[0].cross_attn.register_forward_hook(lambda *args: contributions.append(args[2][0]))
    model(**TEXTS, labels=random_codes(model.config, 3, 5)).loss.backward()
    hook.remove()
    assert not contributions[0][2].any() and contributions[0][:2].any()
    gradients = [p.grad for n, p in model.named_parameters() if "audio_encoder" not in n]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_a_batch_of_null_prompts_alone_has_finite_gradients():
    model = tiny_model()
    inputs = model.get_unconditional_inputs(2)
    outputs = model(**inputs, labels=random_codes(model.config, 2, 5))
    outputs.loss.backward()
    assert outputs.logits.isfinite().all()
    assert not model.enc_to_dec_proj.weight.grad.any()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_nan_states_of_masked_text_do_not_spread():
    model = tiny_model()
    states = torch.full((1, 3, model.text_encoder.config.hidden_size), torch.nan)
    projected, mask = model.project_text(states, torch.zeros(1, 3))
    assert not projected.any() and mask.all()


@pytest.mark.filterwarnings("ignore:_compile flag")  # flex attention as transformers calls it
@pytest.mark.parametrize("attn_implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_implementations_agree(attn_implementation):
    columns = random_columns(tiny_config(), 3, 6)
    # flex_attention takes heads of 16 and more
    sizes = {"decoder": {"hidden_size": 32}}
    logits = {}
    for name in ("sdpa", attn_implementation):
        model = tiny_model(attn_implementation=name, **sizes)
        assert model.decoder.config._attn_implementation == name
        with torch.no_grad():
            logits[name] = model(**TEXTS, decoder_input_ids=columns).logits
    torch.testing.assert_close(logits["sdpa"], logits[attn_implementation], rtol=0, atol=1e-5)


def test_attn_implementation_is_a_choice_for_the_decoder():
    model = load_model(attn_implementation="eager")
    assert model.decoder.config._attn_implementation == "eager"
    assert load_model(attn_implementation="sdpa").decoder.config._attn_implementation == "sdpa"


def test_cached_columns_equal_one_forward():
    model = tiny_model()
    columns = random_columns(model.config, 3, 7)
    with torch.no_grad():
        whole = model(**TEXTS, decoder_input_ids=columns).logits
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        encoder_outputs = model.text_encoder(**TEXTS)
        steps = []
        for first, last in [(0, 3), (3, 4), (4, 7)]:  # several columns at once, and one
            outputs = model(
                encoder_outputs=encoder_outputs,
                attention_mask=TEXTS["attention_mask"],
                decoder_input_ids=columns[:, first:last],
                cache=cache,
                use_cache=True,
            )
            assert outputs.cache is cache
            steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5)
    assert cache.get_seq_length() == 7


def test_the_cache_goes_by_its_former_name_with_a_warning():
    model = tiny_model()
    columns = random_columns(model.config, 1, 2)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with pytest.warns(FutureWarning, match="Use `cache` instead"):
        outputs = model(**text(0), decoder_input_ids=columns, past_key_values=cache, use_cache=True)
    assert outputs.cache is outputs.past_key_values is cache
    encoder_hidden_states = torch.zeros(1, 2, model.config.decoder.hidden_size)
    with pytest.warns(FutureWarning, match="Use `cache` instead"):
        model.decoder(columns, encoder_hidden_states, past_key_values=cache)
    assert cache.get_seq_length() == 4


def test_the_future_is_not_seen():
    model = tiny_model()
    columns = random_columns(model.config, 1, 6)
    changed = columns.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % model.config.decoder.vocab_size
    with torch.no_grad():
        before = model(**text(0), decoder_input_ids=columns).logits
        after = model(**text(0), decoder_input_ids=changed).logits
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4], after[:, 4])


def test_decoder_attention_mask_hides_columns():
    model = tiny_model()
    columns = random_columns(model.config, 1, 6)
    changed = columns.clone()
    changed[:, 0] = (changed[:, 0] + 1) % model.config.decoder.vocab_size
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = model(**text(0), decoder_input_ids=columns, decoder_attention_mask=mask).logits
        after = model(**text(0), decoder_input_ids=changed, decoder_attention_mask=mask).logits
    torch.testing.assert_close(before[:, 1:], after[:, 1:], rtol=0, atol=1e-6)


def test_outputs_have_their_documented_shapes():
    model = tiny_model(attn_implementation="eager")
    config = model.config.decoder
    outputs = model(
        **TEXTS,
        decoder_input_ids=random_columns(model.config, 3, 6),
        output_attentions=True,
        output_hidden_states=True,
    )
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    assert outputs.logits.shape == (3 * config.num_codebooks, 6, config.vocab_size)
    assert [tuple(a.shape) for a in outputs.decoder_attentions] == [(3, heads, 6, 6)] * layers
    assert [tuple(a.shape) for a in outputs.cross_attentions] == [(3, heads, 6, 4)] * layers
    assert [tuple(h.shape) for h in outputs.decoder_hidden_states] == [(3, 6, config.hidden_size)] * (layers + 1)
    assert outputs.encoder_last_hidden_state.shape == (3, 4, model.text_encoder.config.hidden_size)
    assert model(**TEXTS, decoder_input_ids=random_columns(model.config, 3, 6), return_dict=False)[0].shape == (
        outputs.logits.shape
    )


def test_logits_to_keep_scores_the_last_columns():
    model = tiny_model()
    columns = random_columns(model.config, 3, 6)
    with torch.no_grad():
        whole = model(**TEXTS, decoder_input_ids=columns).logits
        last = model(**TEXTS, decoder_input_ids=columns, logits_to_keep=2).logits
    torch.testing.assert_close(last, whole[:, -2:])


# Loss


@pytest.mark.parametrize("delays", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0], [0, 3, 1, 7]])
def test_loss_is_the_mean_over_codebooks_of_the_valid_cells(delays):
    model = tiny_model(decoder={"codebook_delays": delays})
    codes = random_codes(model.config, 3, 6)
    codes[1, :, 4:] = -100  # padding of a shorter sound
    codes[2, :, 3:] = model.config.decoder.special_token_id  # the other way to say so
    special = model.config.decoder.special_token_id
    # Cell by cell: column s is read to predict column s + 1; T columns are read.
    columns = torch.full((3, 7, 4), special)
    targets = torch.full((3, 7, 4), -100)
    for k, delay in enumerate(delays):
        for t in range(6):
            if 1 + t + delay <= 6:
                known = (codes[:, k, t] != -100) & (codes[:, k, t] != special)
                columns[:, 1 + t + delay, k] = torch.where(known, codes[:, k, t], special)
                targets[:, 1 + t + delay, k] = torch.where(known, codes[:, k, t], -100)
    with torch.no_grad():
        outputs = model(**TEXTS, labels=codes)
        logits = model(**TEXTS, decoder_input_ids=columns[:, :6]).logits.unflatten(0, (3, 4))
        expected = []
        for k in range(4):
            wanted = targets[:, 1:, k].flatten()
            loss = torch.nn.functional.cross_entropy(logits[:, k].flatten(0, 1), wanted, ignore_index=-100)
            expected.append(torch.where((wanted != -100).any(), loss, 0.0))
    torch.testing.assert_close(outputs.loss_per_codebook, torch.stack(expected))
    torch.testing.assert_close(outputs.loss, torch.stack(expected).mean())


def test_labels_are_not_changed():
    model = tiny_model()
    codes = random_codes(model.config, 1, 6)
    codes[:, :, 5:] = model.config.decoder.special_token_id
    before = codes.clone()
    model(**text(0), labels=codes)
    assert torch.equal(codes, before)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": torch.zeros(1, 4, 5, dtype=torch.long)}, "`input_ids`"),
        ({**text(0)}, "`decoder_input_ids`"),
        ({**text(0), "labels": torch.zeros(1, 3, 5, dtype=torch.long)}, r"\(batch, 4, frames\), got \(1, 3, 5\)"),
        ({**text(0), "labels": torch.zeros(4, 5, dtype=torch.long)}, r"\(batch, 4, frames\), got \(4, 5\)"),
        ({**text(0), "labels": torch.zeros(1, 4, 0, dtype=torch.long)}, r"got \(1, 4, 0\)"),
    ],
)
def test_forward_says_what_it_takes(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**arguments)


def test_labels_out_of_range_are_refused():
    model = tiny_model()
    codes = random_codes(model.config, 1, 5)
    for wrong in (-1, model.config.decoder.vocab_size + 1):
        codes[0, 0, 0] = wrong
        with pytest.raises((ValueError, IndexError)):
            model(**text(0), labels=codes)


# Gradients


def gradients_of(model, codes) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**TEXTS, labels=codes).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_equal_gradients():
    model = tiny_model().train()
    codes = random_codes(model.config, 3, 6)
    plain = gradients_of(model, codes)
    model.activation_checkpointing_enable()
    assert model.decoder.layers[0].gradient_checkpointing
    checkpointed = gradients_of(model, codes)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_frozen_parts_get_no_gradient():
    model = tiny_model()
    model.freeze_text_encoder()
    model.freeze_audio_encoder()
    gradients = gradients_of(model, random_codes(model.config, 3, 6))
    assert gradients and not any(name.startswith(("text_encoder", "audio_encoder")) for name in gradients)


def test_dropout_acts_in_training_only():
    model = tiny_model(decoder={"dropout": 0.5, "attention_dropout": 0.5})
    columns = random_columns(model.config, 3, 6)
    with torch.no_grad():
        evaluated = [model(**TEXTS, decoder_input_ids=columns).logits for _ in range(2)]
        model.train()
        trained = [model(**TEXTS, decoder_input_ids=columns).logits for _ in range(2)]
    assert torch.equal(*evaluated) and not torch.equal(*trained)


# Weights at birth


def test_new_weights_are_drawn_as_audiocraft_draws_them():
    torch.manual_seed(0)
    config = tiny_config(decoder={"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2})
    model = AudioGenForConditionalGeneration(config)
    std = 256**-0.5
    for name, weight, expected in [
        ("emb", model.decoder.embed_tokens.weight, std),
        ("linears", model.lm_head.weight, std),
        ("out_proj 0", model.decoder.layers[0].self_attn.out_proj.weight, std / 2**0.5),
        ("out_proj 2", model.decoder.layers[2].cross_attn.out_proj.weight, std / 6**0.5),
        ("linear1 1", model.decoder.layers[1].fc1.weight, std / 4**0.5),
        ("linear2 1", model.decoder.layers[1].fc2.weight, 1024**-0.5 / 4**0.5),
        ("in_proj", model.decoder.layers[1].self_attn.qkv_proj.weight, std / 3**0.5),  # uniform
    ]:
        # A Gaussian cut at three deviations has 0.9866 of its deviation.
        torch.testing.assert_close(weight.std().item(), expected, rtol=0.04, atol=0, msg=name)
        assert weight.abs().max() <= 3 * expected * 1.0001, name
    assert 0.5 * 8**-0.5 < model.enc_to_dec_proj.bias.abs().max() <= 8**-0.5
    assert (model.decoder.norm.weight == 1).all() and not model.decoder.norm.bias.any()


def test_medium_has_the_parameters_of_audiogen_medium():
    with torch.device("meta"):
        model = AudioGenForConditionalGeneration(AudioGenConfig(text_encoder={"model_type": "t5", "d_model": 1024}))
    language_model = sum(p.numel() for n, p in model.named_parameters() if "_encoder." not in n)
    # 48 layers of width 1536 with cross-attention, 4 embeddings of 2049, 4 heads of 2048, the text projection.
    layers = 48 * (2 * 4 * 1536**2 + 2 * 4 * 1536**2 + 6 * 1536)
    expected = layers + 4 * (2049 + 2048) * 1536 + 2 * 1536 + 1024 * 1536 + 1536
    assert language_model == expected
    assert round(language_model / 1e9, 3) == 1.839


# Precision and devices


def test_half_precision_keeps_the_encoders_in_float32():
    model = load_model(dtype=torch.bfloat16)
    dtypes = {name: {p.dtype for p in part.parameters()} for name, part in model.named_children()}
    assert dtypes["text_encoder"] == dtypes["audio_encoder"] == {torch.float32}
    assert dtypes["decoder"] == dtypes["lm_head"] == dtypes["enc_to_dec_proj"] == {torch.bfloat16}
    outputs = model(**TEXTS, decoder_input_ids=random_columns(model.config, 3, 6))
    assert outputs.logits.dtype == torch.bfloat16
    whole = load_model()(**TEXTS, decoder_input_ids=random_columns(model.config, 3, 6))
    assert (outputs.logits.float() - whole.logits).abs().max() < 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generates_sound_in_float32(processor, dtype):
    model = load_model(dtype=dtype)
    audio = model.generate(**processor(text=PROMPTS[:2]), audio_length_in_s=0.2)
    assert audio.dtype == torch.float32 and audio.isfinite().all() and audio.std() > 0


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_maps_work(model, processor, device_map):
    mapped = load_model(device_map=device_map)
    inputs = processor(text=PROMPTS[:1])
    options = {"audio_length_in_s": 0.2, "do_sample": False}
    assert torch.equal(mapped.generate(**inputs, **options), model.generate(**inputs, **options))


@pytest.mark.filterwarnings("ignore:Current model requires")  # there is no device 0 to hold buffers
def test_no_layer_is_split_between_devices():
    model = tiny_model()
    from accelerate import infer_auto_device_map

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    device_map = infer_auto_device_map(
        model, max_memory={0: size // 2, "cpu": size}, no_split_module_classes=model._no_split_modules
    )
    assert set(device_map.values()) == {0, "cpu"}
    assert not any(".self_attn" in name or ".block.0." in name for name in device_map)


# Saving and loading


def test_loading_says_nothing(tmp_path):
    with captured_output() as seen:
        load_model()
        model = tiny_model()
        model.save_pretrained(tmp_path)
        AudioGenForConditionalGeneration.from_pretrained(tmp_path)
        model.generate(**model.get_unconditional_inputs(), max_new_tokens=2, do_sample=False)
        model.generate(**model.get_unconditional_inputs(), max_new_tokens=2)
    assert seen() == ""


def test_a_saved_model_loads_the_same(tmp_path):
    model = tiny_model(decoder={"codebook_delays": [0, 0, 1, 1], "num_codebooks": 4}, segment_duration=2.5)
    model.generation_config.top_k = 7
    model.save_pretrained(tmp_path)
    loaded, info = AudioGenForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert loaded.config.segment_duration == 2.5 and loaded.config.decoder.codebook_delays == [0, 0, 1, 1]
    assert loaded.generation_config.top_k == 7
    columns = random_columns(model.config, 3, 6)
    with torch.no_grad():
        expected = model(**TEXTS, decoder_input_ids=columns).logits
        torch.testing.assert_close(loaded(**TEXTS, decoder_input_ids=columns).logits, expected, rtol=0, atol=0)


def test_a_converted_model_saves_and_loads_the_same(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AudioGenForConditionalGeneration.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert loaded.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()


def test_the_decoder_stands_alone():
    decoder = AudioGenDecoder(AudioGenDecoderConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    states = decoder(torch.zeros(2, 3, 4, dtype=torch.long), torch.zeros(2, 5, 16)).last_hidden_state
    assert states.shape == (2, 3, 16)


def test_text_encoder_argument_needs_audiocrafts_layout(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not in AudioCraft's layout and carries its own"):
        AudioGenForConditionalGeneration.from_pretrained(tmp_path, text_encoder="t5-small")
