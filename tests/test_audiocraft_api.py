"""AudioCraft's own programs, with AudioCraft's results, by changing their import lines."""

import pytest
import soundfile
import torch
from hub_utils import use_tiny_audiogen_medium
from safetensors.torch import load_file
from testing_utils import CHECKPOINT, FIXTURES, PROMPTS, TEXT_ENCODER, rewrite_checkpoint, tiny_model

from audiogen_hf import read_audio
from audiogen_hf.audio_utils import measure_loudness
from audiogen_hf.audiocraft import AudioGen, audio_write

GREEDY = {"use_sampling": False, "top_k": 0, "duration": 1.0}


@pytest.fixture(scope="module")
def audiogen():
    return AudioGen.get_pretrained(CHECKPOINT, device="cpu", text_encoder=TEXT_ENCODER)


@pytest.fixture(autouse=True)
def defaults(audiogen):
    audiogen.set_generation_params(duration=5)
    audiogen.set_custom_progress_callback(None)


@pytest.fixture(scope="module")
def two_step():
    return load_file(FIXTURES / "audiocraft_api.safetensors")


def tokens_of(result) -> torch.Tensor:
    audio, tokens = result
    assert audio.shape == (tokens.shape[0], 1, tokens.shape[-1] * 320)
    return tokens


# The documented example (AudioCraft 1.3, docs/AUDIOGEN.md), its two import lines changed, the duration shortened.
EXAMPLE = """
from audiogen_hf.audiocraft import AudioGen
from audiogen_hf.audiocraft import audio_write

model = AudioGen.get_pretrained('facebook/audiogen-medium')
model.set_generation_params(duration=0.5)
descriptions = ['dog barking', 'sirene of an emergency vehicle', 'footsteps in a corridor']
wav = model.generate(descriptions)

for idx, one_wav in enumerate(wav):
    audio_write(f'{idx}', one_wav.cpu(), model.sample_rate, strategy="loudness", loudness_compressor=True)
"""


def test_the_documented_example_runs(tmp_path, monkeypatch):
    use_tiny_audiogen_medium(tmp_path / "hub", monkeypatch)
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLE, {})
    for index in range(3):
        audio, sampling_rate = read_audio(tmp_path / f"{index}.wav")
        assert sampling_rate == 16_000 and audio.shape == (8_000,)
        assert abs(audio).max() > 0.01


def test_properties_and_defaults(audiogen):
    assert audiogen.sample_rate == 16_000
    assert audiogen.frame_rate == 50
    assert audiogen.audio_channels == 1
    assert audiogen.max_duration == 3
    assert audiogen.device == torch.device("cpu")
    fresh = AudioGen("tiny", audiogen.model, audiogen.processor)
    assert fresh.duration == 5
    fresh.set_generation_params()
    assert fresh.duration == 10 and fresh.extend_stride == 2
    assert fresh.generation_params == {
        "use_sampling": True,
        "temp": 1.0,
        "top_k": 250,
        "top_p": 0.0,
        "cfg_coef": 3.0,
        "two_step_cfg": False,
    }


# The same codes


def test_a_batch_of_texts_of_different_lengths(audiogen, reference):
    audiogen.set_generation_params(**GREEDY)
    assert torch.equal(tokens_of(audiogen.generate(PROMPTS, return_tokens=True)), reference["greedy_cfg3/tokens"])


def test_sound_of_one_text(audiogen, reference):
    audiogen.set_generation_params(**GREEDY)
    difference = audiogen.generate(PROMPTS[:1]) - reference["greedy_cfg3_single0/audio"]
    assert difference.abs().max() <= 1e-5


@pytest.mark.parametrize("params", [{"cfg_coef": 1.0}, {"cfg_coef": 1.0, "use_sampling": True, "temperature": 0.0}])
def test_without_guidance(audiogen, reference, params):
    audiogen.set_generation_params(**{**GREEDY, **params})
    assert torch.equal(tokens_of(audiogen.generate(PROMPTS, return_tokens=True)), reference["greedy_cfg1/tokens"])


def test_three_frames(audiogen, reference):
    audiogen.set_generation_params(**{**GREEDY, "duration": 0.07})
    tokens = tokens_of(audiogen.generate(PROMPTS[:1], return_tokens=True))
    assert torch.equal(tokens, reference["greedy_3frames/tokens"])


def test_no_description(audiogen, reference):
    audiogen.set_generation_params(**GREEDY)
    tokens = tokens_of(audiogen.generate_unconditional(2, return_tokens=True))
    assert torch.equal(tokens, reference["greedy_unconditional/tokens"])
    audiogen.set_generation_params(**GREEDY, cfg_coef=1.0)
    tokens = tokens_of(audiogen.generate_unconditional(1, return_tokens=True))
    assert torch.equal(tokens, reference["greedy_unconditional_coef1/tokens"])


def test_continuation(audiogen, reference):
    audiogen.set_generation_params(**GREEDY)
    sounds = reference["cont/wav16k"]
    tokens = tokens_of(audiogen.generate_continuation(sounds, 16_000, PROMPTS[:2], return_tokens=True))
    assert torch.equal(tokens, reference["cont/tokens"])


def test_continuation_of_stereo_at_another_rate(audiogen, reference):
    audiogen.set_generation_params(**GREEDY)
    sound = reference["cont_32k_stereo/wav"]  # (channels, N)
    tokens = tokens_of(audiogen.generate_continuation(sound, 32_000, PROMPTS[:1], return_tokens=True))
    assert torch.equal(tokens, reference["cont_32k_stereo/tokens"])


def test_continuation_without_description(audiogen, reference):
    audiogen.set_generation_params(**GREEDY)
    tokens = tokens_of(audiogen.generate_continuation(reference["cont/wav16k"][:1], 16_000, return_tokens=True))
    assert torch.equal(tokens, reference["cont_nodesc/tokens"])


@pytest.mark.parametrize("stride", [1, 2])
def test_windows_beyond_the_maximum(audiogen, reference, stride):
    audiogen.set_generation_params(**{**GREEDY, "duration": 5, "extend_stride": stride})
    tokens = tokens_of(audiogen.generate(PROMPTS[:2], return_tokens=True))
    assert torch.equal(tokens, reference[f"extend_stride{stride}/tokens"])


def test_windows_that_continue_a_sound(audiogen, reference):
    audiogen.set_generation_params(**{**GREEDY, "duration": 5, "extend_stride": 1.25})
    sounds = reference["cont/wav16k"]
    tokens = tokens_of(audiogen.generate_continuation(sounds, 16_000, PROMPTS[:2], return_tokens=True))
    assert torch.equal(tokens, reference["extend_cont/tokens"])


def test_sampling_after_a_seed(audiogen, reference):
    audiogen.set_generation_params(top_k=20, temperature=0.9, duration=1.0)
    torch.manual_seed(1234)
    tokens = tokens_of(audiogen.generate(PROMPTS, return_tokens=True))
    assert torch.equal(tokens, reference["sample_topk20_seed1234/tokens"])


@pytest.mark.parametrize("cfg_coef", [3, 5])
def test_two_step_guidance_takes_the_coefficient_of_the_checkpoint(audiogen, two_step, cfg_coef):
    audiogen.set_generation_params(**GREEDY, cfg_coef=cfg_coef, two_step_cfg=True)
    tokens = tokens_of(audiogen.generate(PROMPTS, return_tokens=True))
    assert torch.equal(tokens, two_step[f"greedy_cfg{cfg_coef}_two_step/tokens"])


def test_two_step_guidance_of_a_continuation(audiogen, reference, two_step):
    audiogen.set_generation_params(**GREEDY, two_step_cfg=True)
    sounds = reference["cont/wav16k"]
    tokens = tokens_of(audiogen.generate_continuation(sounds, 16_000, PROMPTS[:2], return_tokens=True))
    assert torch.equal(tokens, two_step["cont_two_step/tokens"])


def test_the_coefficient_of_the_checkpoint_is_read_from_it(tmp_path, audiogen):
    def change(state, xp):
        xp["classifier_free_guidance"]["inference_coef"] = 1.5

    folder = rewrite_checkpoint(tmp_path / "checkpoint", lm=change)
    other = AudioGen.get_pretrained(folder, device="cpu", text_encoder=TEXT_ENCODER)
    assert audiogen.inference_coef == 3.0 and other.inference_coef == 1.5
    audiogen.set_generation_params(**GREEDY, cfg_coef=1.5)
    expected = tokens_of(audiogen.generate(PROMPTS, return_tokens=True))
    for params in ({"cfg_coef": None}, {"two_step_cfg": True}):
        other.set_generation_params(**GREEDY, **params)
        assert torch.equal(tokens_of(other.generate(PROMPTS, return_tokens=True)), expected)


def test_top_p_replaces_top_k(audiogen):
    audiogen.set_generation_params(top_p=0.7, top_k=1)
    kwargs = audiogen._generate_kwargs()
    assert kwargs["top_p"] == 0.7 and kwargs["top_k"] == 0
    audiogen.set_generation_params(top_p=0.0, top_k=1, duration=0.5)
    first, second = (audiogen.generate(PROMPTS[:1]) for _ in range(2))
    assert torch.equal(first, second)  # the likeliest code alone is drawn
    audiogen.set_generation_params(top_p=1.0, top_k=1, duration=0.5)
    assert not torch.equal(first, audiogen.generate(PROMPTS[:1]))


# Progress


def test_progress_callback_counts_steps(audiogen, capsys):
    calls = []
    audiogen.set_custom_progress_callback(lambda done, total: calls.append((done, total)))
    audiogen.set_generation_params(**{**GREEDY, "duration": 0.1})
    audiogen.generate(PROMPTS[:1])
    assert not calls
    audiogen.generate(PROMPTS[:1], progress=True)
    assert calls == [(step, 8) for step in range(1, 9)]  # 5 frames and 3 more columns of delay
    assert capsys.readouterr().err == ""


def test_progress_callback_counts_the_steps_of_earlier_windows(audiogen, reference):
    calls = []
    audiogen.set_custom_progress_callback(lambda done, total: calls.append((done, total)))
    audiogen.set_generation_params(**{**GREEDY, "duration": 4.0, "extend_stride": 2.0})
    audiogen.generate_continuation(reference["cont/wav16k"][:1], 16_000, progress=True)  # 25 frames
    # 150 - 25 frames, then the window from frame 100 on: 100 frames, 50 of them known; 3 columns of delay each.
    assert calls == [(step, 128) for step in range(1, 129)] + [(100 + step, 53) for step in range(1, 54)]


def test_progress_bar_without_a_callback(audiogen, capsys):
    audiogen.set_generation_params(**{**GREEDY, "duration": 0.1})
    audiogen.generate(PROMPTS[:1], progress=True)
    assert "8/8" in capsys.readouterr().err


# Bad input


def test_bad_input_is_named(audiogen, reference):
    audiogen.set_generation_params(duration=10, extend_stride=3)
    with pytest.raises(ValueError, match="`extend_stride` must be at least one frame and less than the 3 s"):
        audiogen.generate(PROMPTS[:1])
    with pytest.raises(ValueError, match="at least one description"):
        audiogen.generate([])
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        audiogen.generate_unconditional(0)
    with pytest.raises(ValueError, match="`prompt` takes shape"):
        audiogen.generate_continuation(torch.zeros(16_000), 16_000)
    with pytest.raises(ValueError, match="one sound for each of the 1 texts, got 2"):
        audiogen.generate_continuation(reference["cont/wav16k"], 16_000, PROMPTS[:1])
    audiogen.set_generation_params(duration=0.5)
    with pytest.raises(ValueError, match="more than the sound prompt of 25"):
        audiogen.generate_continuation(reference["cont/wav16k"][:1], 16_000)


def test_models_of_this_library_load_too(tmp_path, audiogen):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    audiogen.processor.save_pretrained(tmp_path)
    loaded = AudioGen.get_pretrained(tmp_path, device="cpu")
    assert loaded.model.config.attend_to_text_padding and loaded.inference_coef == 3.0
    loaded.set_generation_params(duration=0.1)
    assert loaded.generate(["wind"]).shape == (1, 1, 1600)


# audio_write


@pytest.fixture(scope="module")
def written():
    return load_file(FIXTURES / "audio_write.safetensors")


@pytest.mark.parametrize("compressor", [False, True])
def test_audio_write_sets_the_level_that_audiocraft_sets(tmp_path, written, compressor):
    path = audio_write(
        tmp_path / "sounds" / "0", written["write/in"], 16_000, strategy="loudness", loudness_compressor=compressor
    )
    assert path == tmp_path / "sounds" / "0.wav"
    assert soundfile.info(path).subtype == "PCM_16"
    expected = written["write/loudness_compressor" if compressor else "write/loudness"].numpy()
    difference = measure_loudness(read_audio(path)[0], 16_000) - measure_loudness(expected, 16_000)
    assert abs(difference) < 0.1


def test_audio_write_starts_from_audiocrafts_defaults(tmp_path, written):
    audio, _ = read_audio(audio_write(tmp_path / "1.5", written["write/in_quiet"], 16_000))
    assert (tmp_path / "1.5.wav").is_file()
    assert abs(audio).max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)  # strategy "peak"
    quiet, _ = read_audio(audio_write(tmp_path / "quiet", written["write/in_quiet"], 16_000, normalize=False))
    assert abs(quiet).max() == pytest.approx(float(written["write/in_quiet"].abs().max()), abs=1e-4)
    assert audio_write(tmp_path / "plain", written["write/in"], 16_000, add_suffix=False) == tmp_path / "plain"
    assert audio_write(tmp_path / "a.wav", written["write/in"], 16_000, "flac") == tmp_path / "a.wav.flac"
