"""Text to sound by `pipeline`: the stock one on our layout, ours on AudioCraft's as well."""

import numpy as np
import pytest
import torch
import transformers
from hub_utils import use_tiny_audiogen_medium
from testing_utils import CHECKPOINT, TEXT_ENCODER

import audiogen_hf
from audiogen_hf.convert_audiocraft import converted_checkpoint

TEXTS = ["a dog barks", "rain on a tin roof", "wind"]
GREEDY = {"do_sample": False, "audio_length_in_s": 0.5}


@pytest.fixture(scope="module")
def stock():
    folder = converted_checkpoint(CHECKPOINT, text_encoder=TEXT_ENCODER)
    return transformers.pipeline("text-to-audio", model=folder, device="cpu")


@pytest.fixture(scope="module")
def ours():
    return audiogen_hf.pipeline("text-to-audio", model=CHECKPOINT, text_encoder=TEXT_ENCODER, device="cpu")


def test_the_stock_pipeline_makes_what_generate_makes(stock, model, processor):
    sound = stock("a dog barks", generate_kwargs=GREEDY)
    expected = model.generate(**processor(text=["a dog barks"]), **GREEDY)
    assert sound["sampling_rate"] == 16_000
    assert sound["audio"].shape == (8_000,) and sound["audio"].dtype == np.float32
    np.testing.assert_array_equal(sound["audio"], expected[0, 0].numpy())


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_list_gives_one_sound_a_text_whatever_the_batch(stock, batch_size):
    sounds = stock(TEXTS, batch_size=batch_size, generate_kwargs=GREEDY)
    assert [sound["audio"].shape for sound in sounds] == [(8_000,)] * 3
    for text, sound in zip(TEXTS, sounds, strict=True):
        np.testing.assert_allclose(sound["audio"], stock(text, generate_kwargs=GREEDY)["audio"], atol=1e-6)


def test_generation_defaults_are_those_of_the_model(stock):
    torch.manual_seed(0)
    default = stock("wind")["audio"]
    assert default.shape == (80_000,)  # 5 s
    torch.manual_seed(0)
    stated = {"do_sample": True, "top_k": 250, "temperature": 1.0, "guidance_scale": 3.0, "max_new_tokens": 250}
    np.testing.assert_array_equal(default, stock("wind", generate_kwargs=stated)["audio"])


def test_generators_and_negative_prompts_pass_through(stock, processor):
    negative = processor.tokenizer("wind", return_tensors="pt").input_ids

    def make(**kwargs):
        generator = torch.Generator().manual_seed(3)
        return stock("rain", generate_kwargs={"audio_length_in_s": 0.5, "generator": generator, **kwargs})["audio"]

    np.testing.assert_array_equal(make(), make())
    assert not np.array_equal(make(), make(negative_prompt_ids=negative))


def test_ours_takes_a_folder_in_audiocrafts_layout(ours, stock):
    assert type(ours) is type(stock)
    np.testing.assert_array_equal(
        ours("wind", generate_kwargs=GREEDY)["audio"], stock("wind", generate_kwargs=GREEDY)["audio"]
    )


def test_the_stock_call_refuses_audiocrafts_layout_with_the_error_that_the_guide_quotes():
    with pytest.raises(ValueError) as error:
        transformers.pipeline("text-to-audio", model=str(CHECKPOINT))
    assert str(error.value) == (
        f"Unrecognized model in {CHECKPOINT}. Should have a `model_type` key in its config.json."
    )


def test_ours_takes_audiocrafts_repository_by_its_id(tmp_path, monkeypatch, stock):
    use_tiny_audiogen_medium(tmp_path, monkeypatch)
    with pytest.raises(ValueError) as error:
        transformers.pipeline("text-to-audio", model="facebook/audiogen-medium")
    assert str(error.value) == (
        "Unrecognized model in facebook/audiogen-medium. Should have a `model_type` key in its config.json."
    )
    pipe = audiogen_hf.pipeline(model="facebook/audiogen-medium", device="cpu")  # the task follows from the model
    assert pipe.model.config.base_model == "facebook/audiogen-medium"
    np.testing.assert_array_equal(
        pipe("wind", generate_kwargs=GREEDY)["audio"], stock("wind", generate_kwargs=GREEDY)["audio"]
    )


def test_ours_is_the_stock_call_for_everything_else(stock, tmp_path):
    processor = stock.processor
    pipe = audiogen_hf.pipeline(
        "text-to-audio", model=stock.model, processor=processor, tokenizer=processor.tokenizer, device="cpu"
    )
    assert pipe.model is stock.model
    with pytest.raises(ValueError, match=r"`text_encoder` overrides the text encoder that an AudioCraft checkpoint"):
        audiogen_hf.pipeline("text-to-audio", model=stock.model, text_encoder=TEXT_ENCODER)
    with pytest.raises(ValueError, match=r"has no compression_state_dict\.bin"):
        (tmp_path / "state_dict.bin").write_bytes(b"")
        audiogen_hf.pipeline("text-to-audio", model=tmp_path)
