"""Configurations: defaults, derived values, round trips and what they refuse."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from testing_utils import CHECKPOINT, TEXT_ENCODER, tiny_config
from transformers import AutoConfig, EncodecConfig, T5Config

from audiogen_hf import AudioGenConfig, AudioGenDecoderConfig

# The library's strict configurations raise this; it is what `except ValueError` around `from_pretrained` must see.
REFUSED = (ValueError, StrictDataclassClassValidationError)


def test_defaults_are_those_of_audiogen_medium():
    config = AudioGenConfig()
    assert (config.sampling_rate, config.frame_rate, config.segment_duration) == (16_000, 50, 10.0)
    decoder = config.decoder
    assert (decoder.hidden_size, decoder.num_hidden_layers, decoder.num_attention_heads) == (1536, 48, 24)
    assert (decoder.num_codebooks, decoder.vocab_size, decoder.special_token_id) == (4, 2048, 2048)
    assert (decoder.codebook_delays, decoder.max_delay, decoder.intermediate_size) == ([0, 1, 2, 3], 3, 6144)
    assert isinstance(config.text_encoder, T5Config) and isinstance(config.audio_encoder, EncodecConfig)
    assert config.audio_encoder.num_quantizers == 4 and config.audio_encoder.codebook_size == 2048
    assert not config.attend_to_text_padding


@pytest.mark.parametrize(
    "scale, width, layers, heads",
    [("xsmall", 64, 2, 2), ("small", 1024, 24, 16), ("medium", 1536, 48, 24), ("large", 2048, 48, 32)],
)
def test_scales_are_audiocrafts(scale, width, layers, heads):
    config = AudioGenDecoderConfig.from_scale(scale, vocab_size=64)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (width, layers, heads)
    assert config.vocab_size == 64
    row = f"| {scale} | {width} | {layers} | {heads} |"
    assert row in AudioGenDecoderConfig.__doc__


def test_an_unknown_scale_names_the_known_ones():
    with pytest.raises(ValueError, match="xsmall, small, medium, large, got 'huge'"):
        AudioGenDecoderConfig.from_scale("huge")


def test_stereo_interleaves_codebooks_by_default():
    config = AudioGenDecoderConfig(num_codebooks=8, audio_channels=2)
    assert config.codebook_delays == [0, 0, 1, 1, 2, 2, 3, 3]
    assert AudioGenDecoderConfig(num_codebooks=2, codebook_delays=[3, 0]).max_delay == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"audio_channels": 3}, "audio_channels"),
        ({"audio_channels": 2, "num_codebooks": 3, "codebook_delays": [0, 0, 1]}, "even `num_codebooks`"),
        ({"codebook_delays": [0, 1]}, "4 non-negative numbers"),
        ({"codebook_delays": [0, 1, 2, -1]}, "4 non-negative numbers"),
        ({"hidden_size": 1000}, "multiple of `num_attention_heads`"),
        ({"num_codebooks": "four"}, "num_codebooks"),
    ],
)
def test_impossible_decoders_are_refused(arguments, message):
    with pytest.raises(Exception, match=message):
        AudioGenDecoderConfig(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"segment_duration": 0}, "segment_duration"),
        ({"segment_duration": -1.0}, "segment_duration"),
        ({"text_pooling": "max"}, "text_pooling"),
        ({"audio_encoder": {"codebook_size": 64}}, "64 codes a codebook"),
        ({"audio_encoder": {"target_bandwidths": [0.5]}}, "4 codebooks a channel"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(REFUSED, match=message):
        tiny_config(**arguments)


def test_a_saved_configuration_loads_the_same(tmp_path):
    config = tiny_config(decoder={"codebook_delays": [0, 2, 4, 6], "dropout": 0.1}, attend_to_text_padding=True)
    config.save_pretrained(tmp_path)
    for loaded in (AudioGenConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is AudioGenConfig
        assert loaded.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "audiogen"


def test_the_decoder_loads_out_of_the_whole(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    decoder = AudioGenDecoderConfig.from_pretrained(tmp_path)
    assert decoder.hidden_size == config.decoder.hidden_size and decoder.codebook_delays == [0, 1, 2, 3]


def test_the_text_config_is_the_decoders():
    config = tiny_config()
    assert config.get_text_config() is config.decoder
    assert config.get_text_config(decoder=True) is config.decoder


def test_audiocraft_checkpoints_give_a_configuration():
    config = AudioGenConfig.from_pretrained(CHECKPOINT, text_encoder=TEXT_ENCODER)
    assert (config.decoder.hidden_size, config.decoder.vocab_size, config.segment_duration) == (64, 64, 3)
    assert config.text_encoder.d_model == 32
    assert not config.audio_encoder.use_causal_conv and config.audio_encoder.pad_mode == "constant"
    changed = AudioGenConfig.from_pretrained(CHECKPOINT, text_encoder=TEXT_ENCODER, attend_to_text_padding=True)
    assert changed.attend_to_text_padding


def test_unused_kwargs_are_returned_on_request():
    _, unused = AudioGenConfig.from_pretrained(
        CHECKPOINT, text_encoder=TEXT_ENCODER, return_unused_kwargs=True, nonsense=1
    )
    assert unused == {"nonsense": 1}
