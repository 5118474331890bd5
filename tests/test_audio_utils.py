"""Sound outside the model: the same levels and the same resampling as AudioCraft, files that hold what was written.

`fixtures/audio_write.safetensors` holds what AudioCraft and julius computed; its metadata says how, tensor by tensor.
"""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from audiogen_hf.audio_utils import (
    convert_audio,
    measure_loudness,
    normalize_audio,
    read_audio,
    read_metadata,
    resample,
    to_mono,
    write_audio,
)

REFERENCE = load_file(Path(__file__).parent / "fixtures" / "audio_write.safetensors")
RATE = 16000

pytestmark = pytest.mark.filterwarnings("error")  # no warning of NumPy, pyloudnorm or soundfile reaches the user


def tone(seconds: float = 1.0, amplitude: float = 0.1, frequency: float = 440.0, rate: int = RATE) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def decibels(audio: np.ndarray) -> float:
    return 10 * np.log10(np.square(audio, dtype=np.float64).mean())


# Levels


@pytest.mark.parametrize(
    "strategy, level",
    [(strategy, level) for strategy in ("peak", "clip", "rms") for level in ("", "_quiet", "_loud")]
    # the loud one: see test_a_loud_sound_is_measured_without_clipping
    + [(strategy, level) for strategy in ("loudness", "loudness_compressor") for level in ("", "_quiet")],
)
def test_levels_are_those_of_audiocraft(strategy, level):
    ours = normalize_audio(
        REFERENCE[f"write/in{level}"],
        RATE,
        strategy.removesuffix("_compressor"),
        loudness_compressor=strategy.endswith("_compressor"),
    )
    theirs = REFERENCE[f"write/{strategy}{level}"]
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_loud_sound_is_measured_without_clipping():
    loud = REFERENCE["write/in_loud"]
    meter = pyloudnorm.Meter(RATE)
    assert measure_loudness(loud, RATE) == pytest.approx(meter.integrated_loudness(loud[0].astype(np.float64)))
    # 30 times the sound is 29.54 dB more; a meter that clips says less, and its output is then too loud.
    assert measure_loudness(loud, RATE) - measure_loudness(REFERENCE["write/in"], RATE) == pytest.approx(
        29.542, abs=1e-3
    )
    out = normalize_audio(loud, RATE, "loudness")
    assert meter.integrated_loudness(out[0].astype(np.float64)) == pytest.approx(-14, abs=1e-3)
    np.testing.assert_allclose(out, normalize_audio(REFERENCE["write/in"], RATE, "loudness"), atol=1e-5)
    compressed = normalize_audio(loud, RATE, "loudness", loudness_compressor=True)
    np.testing.assert_allclose(compressed, np.tanh(out), atol=1e-6)
    assert decibels(REFERENCE["write/loudness_loud"]) - decibels(REFERENCE["write/loudness"]) > 10


@pytest.mark.parametrize("gain", [0.01, 0.1, 1.0, 30.0])
def test_loudness_reaches_the_target(gain):
    noise = gain * np.random.default_rng(0).standard_normal(2 * RATE)
    # 30 dB of headroom: nothing is clipped, so that the meter sees the gain alone
    out = normalize_audio(noise, RATE, "loudness", loudness_headroom_db=30)
    assert pyloudnorm.Meter(RATE).integrated_loudness(out.astype(np.float64)) == pytest.approx(-30, abs=1e-3)
    default = normalize_audio(0.1 * tone(2), RATE, "loudness")
    assert pyloudnorm.Meter(RATE).integrated_loudness(default.astype(np.float64)) == pytest.approx(-14, abs=1e-3)


def test_compressor_is_a_tanh_of_the_loud_sound():
    audio = REFERENCE["write/in"]
    plain = normalize_audio(audio, RATE, "loudness", loudness_headroom_db=20)
    assert np.abs(plain).max() < 1
    compressed = normalize_audio(audio, RATE, "loudness", loudness_headroom_db=20, loudness_compressor=True)
    np.testing.assert_allclose(compressed, np.tanh(plain), atol=1e-6)


@pytest.mark.parametrize("strategy", ["loudness", "peak", "clip", "rms", "none"])
def test_silence_stays_silence(strategy):
    for silence in (np.zeros(RATE), np.zeros((2, 100)), np.full(RATE, 1e-42)):
        out = normalize_audio(silence, RATE, strategy, loudness_compressor=True)
        assert out.shape == silence.shape
        np.testing.assert_array_equal(out, silence.astype(np.float32))
    assert measure_loudness(np.zeros(RATE), RATE) == -np.inf


def test_a_sound_under_the_rms_floor_keeps_its_level():
    for amplitude, changes in ((1.9e-3, False), (2.1e-3, True)):
        audio = tone(amplitude=amplitude * 2**0.5)
        out = normalize_audio(audio, RATE, "loudness", loudness_compressor=True)
        assert (not np.array_equal(out, audio)) == changes
    spike = np.zeros(100 * RATE, np.float32)
    spike[0] = 2.0  # under the floor, but beyond full scale
    assert normalize_audio(spike, RATE, "loudness")[0] == 1.0


def test_a_sound_without_loudness_keeps_its_level():
    infrasound = tone(frequency=0.25, seconds=4, amplitude=0.02)
    assert measure_loudness(infrasound, RATE) == -np.inf
    np.testing.assert_array_equal(normalize_audio(infrasound, RATE, "loudness"), infrasound)


@pytest.mark.parametrize("samples", [1, 100, 6399, 6400, 6401])
def test_a_short_sound_is_measured_as_one_block_followed_by_silence(samples):
    audio = 0.2 * np.random.default_rng(1).standard_normal(samples)
    padded = np.pad(audio, (0, max(0, 6400 - samples)))
    expected = pyloudnorm.Meter(RATE).integrated_loudness(padded.astype(np.float32).astype(np.float64))
    assert measure_loudness(audio, RATE) == pytest.approx(expected)
    assert normalize_audio(audio, RATE, "loudness").shape == (samples,)


def test_loudness_of_a_short_sound_is_continuous_at_the_block_length():
    noise = 0.1 * np.random.default_rng(2).standard_normal(6400)
    assert measure_loudness(noise[:-1], RATE) == pytest.approx(measure_loudness(noise, RATE), abs=0.01)


def test_channels_share_one_gain():
    stereo = np.stack([tone(amplitude=0.4), tone(amplitude=0.1, frequency=600)])
    for strategy in ("peak", "rms", "loudness"):
        out = normalize_audio(stereo, RATE, strategy, loudness_headroom_db=24)
        ratio = out[:, 1:100] / stereo[:, 1:100]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert decibels(to_mono(normalize_audio(stereo, RATE, "rms"))) == pytest.approx(-18, abs=1e-3)


def test_only_attenuate_leaves_a_quiet_sound_alone():
    for strategy in ("peak", "rms"):
        quiet, loud = tone(amplitude=0.01), tone(amplitude=3)
        np.testing.assert_array_equal(normalize_audio(quiet, RATE, strategy, only_attenuate=True), quiet)
        np.testing.assert_array_equal(
            normalize_audio(loud, RATE, strategy, only_attenuate=True), normalize_audio(loud, RATE, strategy)
        )


def test_clipping_is_said_on_demand(caplog):
    loud = np.tile(np.float32([0.01, 0.01, 0.01, 5.0]), 4000)
    normalize_audio(loud, RATE, "rms", rms_headroom_db=3)
    assert not caplog.records
    assert normalize_audio(loud, RATE, "rms", rms_headroom_db=3, log_clipping=True).max() == 1.0
    assert "clipping 25 %" in caplog.text


# What a sound may be


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_floating_type_are_taken(dtype):
    tensor = torch.from_numpy(tone()).to(dtype).requires_grad_()
    np.testing.assert_array_equal(normalize_audio(tensor, RATE, "none"), tensor.detach().float().numpy())


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_integers_are_pcm(dtype):
    full = np.iinfo(dtype)
    out = normalize_audio(np.array([full.min, 0, full.max // 2 + 1], dtype), RATE, "none")
    np.testing.assert_array_equal(out, np.float32([-1, 0, 0.5]))


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.array([0.1, np.nan]), "NaN or infinite"),
        (np.array([0.1, np.inf]), "NaN or infinite"),
        (np.array([1e300, 0.0]), "NaN or infinite"),
        (np.zeros(0), "empty"),
        (np.zeros((1, 0)), "empty"),
        (np.zeros((2, 1, 100)), "one sound at a time"),
        (np.float32(0.5), "one sound at a time"),
        (np.zeros((100, 2)), "channels come first"),
        (np.zeros(10, np.uint8), "got uint8"),
        (np.zeros(10, np.int64), "got int64"),
        (np.zeros(10, complex), "got complex128"),
        (["a", "b"], "got <U1"),
    ],
)
def test_a_bad_sound_is_refused(audio, message, tmp_path):
    for door in (
        lambda: normalize_audio(audio, RATE),
        lambda: resample(audio, 8000, RATE),
        lambda: convert_audio(audio, 8000, RATE, 1),
        lambda: to_mono(audio),
        lambda: measure_loudness(audio, RATE),
        lambda: write_audio(tmp_path / "x.wav", audio, RATE),
    ):
        with pytest.raises(ValueError, match=message):
            door()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [0, -16000, 16000.5, None, "16000"])
def test_a_bad_sampling_rate_is_refused(rate, tmp_path):
    with pytest.raises(ValueError, match="sampling_rate must be a positive integer"):
        write_audio(tmp_path / "x.wav", tone(), rate)
    with pytest.raises(ValueError, match="orig_sampling_rate must be a positive integer"):
        resample(tone(), rate, RATE)
    with pytest.raises(ValueError, match="sampling_rate must be a positive integer"):
        resample(tone(), RATE, rate)


def test_a_bad_strategy_is_refused():
    with pytest.raises(ValueError, match="one of loudness, peak, clip, rms, none; got 'lufs'"):
        normalize_audio(tone(), RATE, "lufs")
    with pytest.raises(ValueError, match=r"peaks at 1\.5, beyond full scale"):
        normalize_audio(np.float32([1.5, 0, 0]), RATE, "none")


# Resampling and channels


@pytest.mark.parametrize("rates", ["44100_16000", "48000_16000", "8000_16000", "11025_16000"])
def test_resampling_is_that_of_julius(rates):
    expected = REFERENCE[f"resample/{rates}/out"]
    ours = resample(REFERENCE[f"resample/{rates}/in"], *map(int, rates.split("_")))
    assert ours.shape == expected.shape and ours.dtype == np.float32
    # julius computes its filter in float32, which shows where the two rates share no large divisor
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_stereo_at_32_khz_becomes_what_audiocraft_encodes():
    ours = convert_audio(REFERENCE["convert/in"], 32000, 16000, channels=1)
    np.testing.assert_allclose(ours, REFERENCE["convert/out"], atol=5e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 44101, 96000])
def test_resampling_keeps_a_tone_and_a_constant(rate):
    # away from the ends, where the sound is held
    inner = slice(2000, -2000)
    np.testing.assert_allclose(resample(tone(rate=rate), rate, RATE)[inner], tone()[inner], atol=2e-5)
    np.testing.assert_allclose(resample(np.full(rate, 0.5), rate, RATE), 0.5, atol=1e-6)


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    inner = slice(100, -100)  # away from the ends, where the sound is held
    assert decibels(resample(tone(frequency=9000, rate=48000), 48000, RATE)[inner]) < -90


def test_resampling_treats_channels_apart_and_the_same_rate_as_nothing_to_do():
    stereo = np.stack([tone(), tone(frequency=700)])
    expected = np.stack([resample(channel, RATE, 44100) for channel in stereo])
    np.testing.assert_array_equal(resample(stereo, RATE, 44100), expected)
    np.testing.assert_array_equal(resample(stereo, RATE, RATE), stereo)
    assert resample(np.ones(1), 48000, RATE).shape == (1,)


def test_channels_are_converted_as_audiocraft_does():
    left, right, rear = tone(), tone(frequency=700), tone(frequency=900)
    sound = np.stack([left, right, rear])
    np.testing.assert_allclose(convert_audio(sound, RATE, RATE, 1), [(left + right + rear) / 3], atol=1e-7)
    np.testing.assert_array_equal(convert_audio(sound, RATE, RATE, 2), [left, right])
    np.testing.assert_array_equal(convert_audio(left, RATE, RATE, 2), [left, left])
    np.testing.assert_array_equal(convert_audio(left, RATE, RATE, 1), [left])
    np.testing.assert_allclose(to_mono(sound), (left + right + rear) / 3, atol=1e-7)
    with pytest.raises(ValueError, match="audio has 3 channels; 4 can be made"):
        convert_audio(sound, RATE, RATE, 4)


# Files


@pytest.mark.parametrize("format, tolerance", [("wav", 2**-15), ("flac", 2**-15), ("ogg", 0.03), ("mp3", 0.02)])
@pytest.mark.parametrize("shape", ["(N,)", "(1, N)", "(2, N)"])
def test_each_format_holds_the_sound_at_16_khz(format, tolerance, shape, tmp_path):
    # LAME takes 0.4 dB off, so that decoders do not clip: hence the tolerance of mp3
    audio = tone(2, amplitude=0.3)
    audio = {"(N,)": audio, "(1, N)": audio[None], "(2, N)": np.stack([audio, tone(2, 0.1, 700)])}[shape]
    path = write_audio(tmp_path / f"x.{format}", audio, RATE, strategy="none")
    read, rate = read_audio(path, mono=False)
    assert rate == RATE and read.shape == np.atleast_2d(audio).shape and read.dtype == np.float32
    np.testing.assert_allclose(read, np.atleast_2d(audio), atol=tolerance)
    assert read_audio(path)[0].shape == (2 * RATE,)


def test_the_default_level_is_minus_14_lufs_with_the_soft_clip(tmp_path):
    audio = REFERENCE["write/in"]
    read, _ = read_audio(write_audio(tmp_path / "x", audio, RATE))
    np.testing.assert_allclose(read, REFERENCE["write/loudness_compressor"][0], atol=1e-3)
    read, _ = read_audio(write_audio(tmp_path / "y", audio, RATE, strategy="peak", peak_clip_headroom_db=6))
    assert np.abs(read).max() == pytest.approx(10 ** (-6 / 20), abs=1e-4)


def test_reading_resamples_and_averages(tmp_path):
    stereo = np.stack([tone(rate=44100), tone(frequency=700, rate=44100)])
    path = write_audio(tmp_path / "x.flac", stereo, 44100, strategy="none")
    read, rate = read_audio(path, sampling_rate=RATE)
    assert rate == RATE
    np.testing.assert_allclose(read, convert_audio(stereo, 44100, RATE, 1)[0], atol=2**-15)
    np.testing.assert_array_equal(read_audio(BytesIO(path.read_bytes()), sampling_rate=RATE)[0], read)


METADATA = {
    "prompt": "犬が吠える – a dög barks",
    "seed": 7,
    "model_id": "facebook/audiogen-medium",
    "temperature": 0.9,
}


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_metadata_comes_back(format, tmp_path):
    path = write_audio(tmp_path / f"x.{format}", tone(), RATE, metadata=METADATA)
    assert read_metadata(path) == METADATA
    with soundfile.SoundFile(path) as sound:  # what another reader sees
        assert sound.title == METADATA["prompt"]
        assert '"seed": 7' in sound.comment
    long = {"prompt": "雨 " * 3000, "values": list(range(2000))}
    assert read_metadata(write_audio(path, tone(), RATE, metadata=long)) == long
    assert read_audio(path)[0].shape == (RATE,)


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_a_file_without_our_metadata_has_none(format, tmp_path):
    assert read_metadata(write_audio(tmp_path / f"x.{format}", tone(), RATE)) == {}
    for comment in ("recorded at home", "[1, 2]", "3"):
        with soundfile.SoundFile(tmp_path / f"y.{format}", "w", RATE, 1) as sound:
            sound.comment = comment
            sound.write(tone())
        assert read_metadata(tmp_path / f"y.{format}") == {}


def test_metadata_takes_what_json_does_not(tmp_path):
    path = write_audio(tmp_path / "x.wav", tone(), RATE, metadata={"dtype": torch.float16, "path": Path("a/b")})
    assert read_metadata(path) == {"dtype": "torch.float16", "path": "a/b"}
    with pytest.raises(ValueError, match="metadata must be a dict, got str"):
        write_audio(tmp_path / "y.wav", tone(), RATE, metadata="a dog")


@pytest.mark.parametrize(
    "name, options, written, content",
    [
        ("dog", {}, "dog.wav", "WAV"),
        ("dog.WAV", {}, "dog.WAV", "WAV"),
        ("dog.ogg", {}, "dog.ogg", "OGG"),
        ("dog", {"format": "mp3"}, "dog.mp3", "MP3"),
        ("dog.mp3", {"format": "MP3"}, "dog.mp3", "MP3"),
        ("take_0.5", {"format": "flac"}, "take_0.5.flac", "FLAC"),
        ("dog.wav", {"format": "flac"}, "dog.wav.flac", "FLAC"),
        ("dog", {"format": "flac", "add_suffix": False}, "dog", "FLAC"),
        ("new/folders/dog.flac", {}, "new/folders/dog.flac", "FLAC"),
    ],
)
def test_the_format_comes_from_the_argument_or_the_suffix(name, options, written, content, tmp_path):
    assert write_audio(tmp_path / name, tone(), RATE, **options) == tmp_path / written
    assert soundfile.info(tmp_path / written).format == content
    assert write_audio(str(tmp_path / name), tone(), RATE, **options) == tmp_path / written


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"suffix \.m4a; it takes \.wav, \.flac, \.ogg, \.mp3"):
        write_audio(tmp_path / "x.m4a", tone(), RATE)
    with pytest.raises(ValueError, match="one of wav, flac, ogg, mp3; got 'aac'"):
        write_audio(tmp_path / "x", tone(), RATE, format="aac")
    with pytest.raises(ValueError, match=r"8000, 11025, .* got 96000"):
        write_audio(tmp_path / "x.mp3", tone(), 96000)
    with pytest.raises(ValueError, match="mp3 cannot hold 3 channels at 16000 Hz"):
        write_audio(tmp_path / "x.mp3", np.stack([tone()] * 3), RATE)
    with pytest.raises(ValueError, match="mp3_rate must be positive"):
        write_audio(tmp_path / "x.mp3", tone(), RATE, mp3_rate=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "rate, asked, expected",
    [(16000, 320, 160), (16000, 96, 96), (16000, 1, 8), (44100, 320, 320), (44100, 128, 128), (8000, 320, 64)],
)
def test_an_mp3_has_the_bit_rate_asked_for_or_the_nearest_there_is(rate, asked, expected, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(20 * rate)
    path = write_audio(tmp_path / "x.mp3", noise, rate, mp3_rate=asked)
    assert path.stat().st_size * 8 / 20 / 1000 == pytest.approx(expected, rel=0.02)


def test_a_long_ogg_is_written(tmp_path):
    # one call of libsndfile with this many samples overflows the stack
    path = write_audio(tmp_path / "x.ogg", np.tile(tone(1), 600), RATE)
    assert soundfile.info(path).frames == 600 * RATE


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_audio(tmp_path / "x.wav", tone(), RATE)
    before = path.read_bytes()

    def disk_full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", disk_full)
        with pytest.raises(OSError, match=r"cannot write .*No space left"):
            write_audio(path, tone(2), RATE)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    write_audio(path, tone(2), RATE)
    assert soundfile.info(path).frames == 2 * RATE and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    for name in ("file/x.wav", "file/below/x.wav", "folder.wav"):
        with pytest.raises(OSError, match=f"cannot write .*{name}"):
            write_audio(tmp_path / name, tone(), RATE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.wav"]


def test_a_bad_file_is_said(tmp_path):
    for door in (read_audio, read_metadata):
        for missing in (tmp_path / "missing.wav", tmp_path):
            with pytest.raises(FileNotFoundError, match="no such sound file"):
                door(missing)
        for name, content in (("empty.wav", b""), ("text.mp3", b"hello" * 100), ("raw.raw", b"\0" * 100)):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"cannot decode .*{name}"):
                door(tmp_path / name)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    with pytest.raises(ValueError, match="holds no samples"):
        read_audio(tmp_path / "none.wav")
    soundfile.write(tmp_path / "nan.wav", np.float32([0, np.nan]), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav holds NaN"):
        read_audio(tmp_path / "nan.wav")
    with pytest.raises(ValueError, match="cannot decode"):
        read_audio(BytesIO(b"no sound"))


def test_a_wav_with_a_broken_info_list_has_no_metadata(tmp_path):
    path = write_audio(tmp_path / "x.wav", tone(), RATE, metadata=METADATA)
    content = path.read_bytes()
    at = content.index(b"ICMT")
    path.write_bytes(content[: at + 4] + (10**6).to_bytes(4, "little") + content[at + 8 :])
    assert read_metadata(path) == {}


def test_importing_is_cheap():
    code = (
        "import sys, audiogen_hf.audio_utils; "
        "print([m for m in ('torch', 'scipy', 'soundfile', 'pyloudnorm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
