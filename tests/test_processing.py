"""The processor: texts and sounds in, generated sound to files."""

import numpy as np
import pytest
import soundfile
import torch
from testing_utils import CHECKPOINT, PROMPTS, TEXT_ENCODER, tiny_config
from transformers import AutoTokenizer

from audiogen_hf import AudioGenProcessor


def tone(samples: int, channels: int = 1) -> np.ndarray:
    times = np.arange(samples) / 16_000
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * (c + 1) * times) for c in range(channels)]).astype(np.float32)


# Texts


def test_the_first_argument_is_text(processor):
    assert processor(PROMPTS[0])["input_ids"].shape == (1, 9)
    assert torch.equal(processor(PROMPTS[:1])["input_ids"], processor(text=PROMPTS[0])["input_ids"])


def test_texts_pass_unchanged_to_the_tokenizer(processor):
    texts = ["  Two spaces  and CAPITALS,", "punctuation -- kept!"]
    expected = AutoTokenizer.from_pretrained(TEXT_ENCODER)(texts, padding=True, return_tensors="pt")
    got = processor(text=texts)
    assert torch.equal(got["input_ids"], expected["input_ids"])
    assert torch.equal(got["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_an_empty_text_is_the_null_prompt(processor, return_tensors):
    inputs = processor(text=["rain", "", None], return_tensors=return_tensors)
    assert inputs["attention_mask"].sum(-1).tolist() == [2, 0, 0]


def test_negative_texts_become_negative_prompts(processor):
    inputs = processor(text=PROMPTS, negative_text="rain")
    assert inputs["negative_prompt_ids"].shape == inputs["negative_prompt_attention_mask"].shape == (1, 2)
    inputs = processor(text=PROMPTS, negative_text=PROMPTS[::-1])
    assert torch.equal(inputs["negative_prompt_ids"], inputs["input_ids"].flip(0))


def test_arguments_of_the_tokenizer_reach_it(processor):
    inputs = processor(text=PROMPTS, padding="max_length", max_length=40)
    assert inputs["input_ids"].shape == (3, 40)
    inputs = processor(text=PROMPTS, truncation=True, max_length=5)
    assert inputs["input_ids"].shape == (3, 5)


def test_inputs_move_as_one(processor):
    inputs = processor(text=PROMPTS[:1], audio=tone(640), sampling_rate=16_000).to("meta")
    assert all(tensor.device.type == "meta" for tensor in inputs.values())


# Sounds


@pytest.mark.parametrize(
    "sound",
    [tone(640)[0], tone(640), [tone(640)[0]], [tone(640)], tone(640)[None], torch.from_numpy(tone(640)[0])],
    ids=["(N,)", "(1, N)", "list of (N,)", "list of (1, N)", "(1, 1, N)", "tensor"],
)
def test_one_sound_has_many_forms(processor, sound):
    inputs = processor(text="rain", audio=sound, sampling_rate=16_000)
    torch.testing.assert_close(inputs["input_values"], torch.from_numpy(tone(640)[None]))
    assert inputs["padding_mask"].tolist() == [[1] * 640]


def test_sounds_of_unequal_length_are_padded_at_the_end(processor):
    sounds = [tone(640)[0], tone(333)[0], tone(1)[0]]
    inputs = processor(text=PROMPTS, audio=sounds, sampling_rate=16_000)
    assert inputs["input_values"].shape == (3, 1, 640)
    assert inputs["padding_mask"].sum(-1).tolist() == [640, 333, 1]
    for row, sound in enumerate(sounds):
        assert np.array_equal(inputs["input_values"][row, 0, : len(sound)], sound)
        assert not inputs["input_values"][row, 0, len(sound) :].any()


def test_stereo_is_mixed_down_and_other_rates_are_resampled(processor):
    stereo = tone(16_000, channels=2)
    inputs = processor(text="rain", audio=[stereo], sampling_rate=16_000)
    torch.testing.assert_close(inputs["input_values"][0, 0], torch.from_numpy(stereo.mean(0)))
    inputs = processor(text="rain", audio=[tone(32_000)], sampling_rate=32_000)
    assert inputs["input_values"].shape == (1, 1, 16_000)


def test_stereo_models_take_both_channels():
    config = tiny_config(decoder={"num_codebooks": 8, "audio_channels": 2})
    stereo = AudioGenProcessor.from_config(config, AutoTokenizer.from_pretrained(TEXT_ENCODER))
    sounds = [tone(640, channels=2), tone(320, channels=1)]
    inputs = stereo(text=PROMPTS[:2], audio=sounds, sampling_rate=16_000)
    assert inputs["input_values"].shape == (2, 2, 640)
    assert np.array_equal(inputs["input_values"][0], sounds[0])
    # A mono sound is in both ears.
    assert np.array_equal(inputs["input_values"][1, :, :320], np.repeat(sounds[1], 2, axis=0))
    assert inputs["padding_mask"].sum(-1).tolist() == [640, 320]


def test_what_the_processor_makes_is_what_generate_takes(model, processor):
    inputs = processor(
        text=PROMPTS[:2], audio=[tone(640)[0], tone(320)[0]], sampling_rate=16_000, negative_text="rain"
    )
    audio = model.generate(**inputs, audio_length_in_s=0.2)
    assert audio.shape == (2, 1, 3200)


# What is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "`text` takes a description"),
        ({"text": []}, "`text` takes at least one description, got an empty list"),
        ({"text": [3]}, r"`text` takes strings, got \['int'\]"),
        ({"text": "rain", "negative_text": []}, "`negative_text` takes at least one"),
        ({"text": "rain", "negative_text": ["a", "b"]}, "for each of the 1 texts, got 2"),
        ({"text": "rain", "audio": tone(640)}, "`sampling_rate` .* must be given"),
        ({"text": "rain", "audio": tone(640), "sampling_rate": 0}, "`sampling_rate` must be positive, got 0"),
        ({"text": "rain", "audio": [tone(640)] * 2, "sampling_rate": 16_000}, "each of the 1 texts, got 2"),
        ({"text": PROMPTS, "audio": tone(640), "sampling_rate": 16_000}, "each of the 3 texts, got 1"),
        ({"text": "rain", "audio": [], "sampling_rate": 16_000}, "each of the 1 texts, got 0"),
        ({"text": "rain", "audio": [np.zeros(0)], "sampling_rate": 16_000}, "not empty; number 0"),
        ({"text": "rain", "audio": [np.zeros((1, 2, 3, 4))], "sampling_rate": 16_000}, "number 0 has"),
        ({"text": "rain", "audio": [np.full(640, np.nan)], "sampling_rate": 16_000}, "number 0 has NaN"),
        ({"text": "rain", "audio": [np.full(640, np.inf)], "sampling_rate": 16_000}, "number 0 has NaN or inf"),
    ],
    ids=str,
)
def test_bad_input_is_named(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


# Saving


def test_a_saved_processor_loads_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AudioGenProcessor.from_pretrained(tmp_path)
    assert loaded.sampling_rate == 16_000
    inputs = {"text": PROMPTS, "audio": [tone(640, 2), tone(64)[0], tone(3)], "sampling_rate": 16_000}
    expected, got = processor(**inputs), loaded(**inputs)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_converted_checkpoints_carry_their_processor(model, processor):
    converted = AudioGenProcessor.from_pretrained(model.config._name_or_path)
    assert torch.equal(converted(text=PROMPTS)["input_ids"], processor(text=PROMPTS)["input_ids"])


def test_generated_sound_is_saved_at_the_models_rate(model, processor, tmp_path):
    audio = model.generate(**processor(text=PROMPTS[:1]), audio_length_in_s=0.5)
    path = processor.save_audio(tmp_path / "dog.wav", audio[0], strategy="peak")
    samples, rate = soundfile.read(path)
    assert (rate, samples.shape) == (16_000, (8_000,))
    assert np.abs(samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)


def test_audiocraft_checkpoints_give_their_processor(processor):
    assert processor.tokenizer.vocab_size == AutoTokenizer.from_pretrained(TEXT_ENCODER).vocab_size
    with pytest.raises(ValueError, match=r"text encoder 't5-large' of .* pass `text_encoder=`"):
        AudioGenProcessor.from_pretrained(CHECKPOINT)
