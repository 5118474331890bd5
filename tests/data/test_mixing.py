import numpy as np
import pytest

from audiogen_hf.data import (
    ClipDataset,
    ClipReader,
    ClipStream,
    CodesReader,
    MixedClips,
    MixedStream,
    Mixing,
    load_audio_text_dataset,
)
from audiogen_hf.data.mixing import mix_clips, plan_mixing

from .conftest import RATE, tone


def clip(audio, text="a", length=None):
    return {"audio": audio, "text": text, "length": len(audio) if length is None else length, "num_skipped": 0}


def level_db(audio):
    return 20 * np.log10(np.sqrt(np.mean(audio**2)))


def amplitude(audio, frequency):
    """Amplitude of a tone that fits the length a whole number of times."""
    return 2 * np.abs(np.fft.rfft(audio)[int(frequency * len(audio) / RATE)]) / len(audio)


@pytest.mark.parametrize("snr_db", [-5, 0, 4])
def test_the_partner_sounds_below_the_clip_by_the_ratio_whatever_their_levels(snr_db):
    first, second = clip(tone(1.0, 500, level=0.9), "rain"), clip(tone(1.0, 2000, level=0.01), "a dog")
    mixed = mix_clips(first, second, snr_db=snr_db, start_share=0.0, level_db=-20)
    ratio = amplitude(mixed["audio"], 500) / amplitude(mixed["audio"], 2000)
    assert 20 * np.log10(ratio) == pytest.approx(snr_db, abs=0.01)
    assert level_db(mixed["audio"]) == pytest.approx(-20, abs=0.01)
    assert mixed["audio"].dtype == np.float32
    assert mixed["text"] == "rain a dog"


# Samples 100, 260, 777 and 999 of what AudioCraft 1.3's `snr_mixer(clean, noise, snr, 0.5)` gives, with its draws of
# the start and of the level set to the values named.
T = np.arange(1000) / 1000
SOUNDS = {
    "quiet": (0.1 * np.sin(2 * np.pi * 5 * T)).astype(np.float32),
    "loud": (0.8 * np.sin(2 * np.pi * 70 * T)).astype(np.float32),
    "spiky": (T**40).astype(np.float32),
}


@pytest.mark.parametrize(
    ("clean", "noise", "snr_db", "start", "level", "expected"),
    [
        ("quiet", "loud", 3, 250, -20, [0.0, 0.033411, -0.133828, 0.03248]),
        ("loud", "quiet", -5, 0, -34, [0.0, 0.036545, -0.007449, -0.006661]),
        ("spiky", "spiky", 0, 0, -16, [0.0, 0.0, 4.3e-05, 0.99]),  # would clip
    ],
)
def test_mixing_gives_the_samples_of_audiocraft(clean, noise, snr_db, start, level, expected):
    mixed = mix_clips(clip(SOUNDS[clean]), clip(SOUNDS[noise]), snr_db, start / 1000, level)
    np.testing.assert_allclose(mixed["audio"][[100, 260, 777, 999]], expected, atol=1e-6)


def test_the_partner_sets_in_at_the_start_share_and_is_cut_at_the_end():
    mixed = mix_clips(clip(tone(1.0, 500)), clip(tone(1.0, 2000)), snr_db=0, start_share=0.25, level_db=-20)["audio"]
    quarter = RATE // 4
    assert amplitude(mixed[:quarter], 2000) < 1e-6
    assert amplitude(mixed[quarter:], 2000) == pytest.approx(amplitude(mixed[:quarter], 500), rel=1e-3)


def test_a_mix_that_would_clip_is_scaled_down_to_its_largest_magnitude():
    click = np.zeros(RATE, dtype=np.float32)
    click[100] = -1.0  # the negative peak counts as well
    mixed = mix_clips(clip(click), clip(click), snr_db=0, start_share=0.0, level_db=-15)["audio"]
    assert mixed.min() == pytest.approx(-0.99) and np.argmin(mixed) == 100
    quiet = mix_clips(clip(tone(1.0)), clip(tone(1.0)), snr_db=0, start_share=0.0, level_db=-15)["audio"]
    assert level_db(quiet) == pytest.approx(-15, abs=0.01)  # not touched where nothing clips


def test_equal_texts_are_not_doubled_and_no_text_adds_nothing():
    sound = tone(1.0)
    for first, second, joined in (("a", "a", "a"), ("a", "b", "a b"), ("", "b", "b"), ("a", "", "a")):
        assert mix_clips(clip(sound, first), clip(sound, second), 0, 0.0, -20)["text"] == joined


def test_a_mix_is_as_long_as_the_last_sound_in_it():
    short = clip(np.pad(tone(0.25), (0, 12000)), length=4000)
    whole = clip(tone(1.0))
    assert mix_clips(short, short, 0, 0.0, -20)["length"] == 4000
    assert mix_clips(short, short, 0, 0.5, -20)["length"] == 12000
    assert mix_clips(short, whole, 0, 0.5, -20)["length"] == RATE
    assert mix_clips(whole, short, 0, 0.0, -20)["length"] == RATE


def test_the_inputs_of_a_mix_stay_as_they_were():
    first, second = tone(1.0), tone(1.0, 2000)
    mix_clips(clip(first), clip(second), 0, 0.5, -20)
    np.testing.assert_array_equal(first, tone(1.0))
    np.testing.assert_array_equal(second, tone(1.0, 2000))


def test_plans_follow_the_settings():
    plans = [plan_mixing(Mixing(aug_p=0.5, mix_p=0.5, mix_min_overlap=0.7), 0, batch, 8) for batch in range(2000)]
    mixed = [plan for plan in plans if plan.partners is not None]
    assert len(mixed) / len(plans) == pytest.approx(0.5, abs=0.04)
    assert {plan.pool_size for plan in plans} == {16}
    assert {plan.snr_db for plan in plans} == set(range(-5, 5))
    assert {plan.level_db for plan in plans} == set(range(-35, -15))
    starts = [plan.start_share for plan in plans]
    assert 0 <= min(starts) < 0.01 and 0.29 < max(starts) <= 0.3
    for plan in mixed:
        assert len(set(plan.sources)) == len(set(plan.partners)) == 8
        assert set(plan.sources) | set(plan.partners) <= set(range(16))
    assert plan_mixing(Mixing(mix_snr_low=3, mix_snr_high=3), 0, 0, 4).snr_db == 3


def test_a_mixed_dataset_gives_batches_from_their_own_pools(folder):
    clips = ClipDataset(load_audio_text_dataset(folder), ClipReader(RATE, 0.5), seed=2)
    mixed = MixedClips(clips, Mixing(aug_p=1.0, mix_p=0.5), batch_size=2)
    for batch in range(6):
        pool = [clips[4 * batch + i]["text"] for i in range(4)]
        for row in range(2):
            parts = mixed[2 * batch + row]["text"].split("tone ")[1:]
            assert {f"tone {part.strip()}" for part in parts} <= set(pool)
            assert len(parts) in (1, 2)  # a clip may be its own partner
    assert len(mixed) == 4


def test_without_augmentation_a_mixed_dataset_passes_clips_through(folder):
    clips = ClipDataset(load_audio_text_dataset(folder), ClipReader(RATE, 0.5), seed=2)
    mixed = MixedClips(clips, Mixing(aug_p=0.0, mix_p=1.0), batch_size=4)
    texts = [mixed[number]["text"] for number in range(8)]
    assert sorted(texts) == sorted(clip["text"] for clip in clips)


def test_a_mixed_stream_is_the_same_after_going_on(folder):
    def stream():
        rows = load_audio_text_dataset(folder, streaming=True)
        clips = ClipStream(rows, ClipReader(RATE, 0.5), shuffle_buffer=4, num_threads=2)
        return MixedStream(clips, Mixing(aug_p=0.5, mix_p=0.5), batch_size=2)

    def take(stream, count):
        return [clip for _, clip in zip(range(count), stream, strict=False)]

    whole = take(stream(), 12)
    assert any(clip["text"].count("tone") == 2 for clip in whole)
    first, second = stream(), stream()
    take(first, 6)
    second.load_state_dict(first.state_dict())
    for clip_again, expected in zip(take(second, 6), whole[6:], strict=True):
        assert clip_again["text"] == expected["text"]
        np.testing.assert_array_equal(clip_again["audio"], expected["audio"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aug_p": 1.1}, r"aug_p must be in \[0, 1\], got 1\.1"),
        ({"mix_p": 0.0}, r"mix_p must be in \(0, 1\], got 0\.0"),
        ({"mix_snr_low": 6}, "mix_snr_low must not exceed mix_snr_high, got 6 and 5"),
        ({"mix_min_overlap": -0.1}, r"mix_min_overlap must be in \[0, 1\], got -0\.1"),
    ],
)
def test_bad_mixing_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixing(**arguments)


def test_codes_and_empty_batches_are_not_mixed(folder):
    rows = load_audio_text_dataset(folder)
    with pytest.raises(ValueError, match="codes cannot be mixed"):
        MixedClips(ClipDataset(rows, CodesReader(4, 50)), Mixing(), batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        MixedClips(ClipDataset(rows, ClipReader()), Mixing(), batch_size=0)
