import contextlib

import datasets
import numpy as np
import pytest
import soundfile
import torch
from datasets.distributed import split_dataset_by_node

from audiogen_hf.data import ClipDataset, ClipReader, ClipStream, UnusableClipError, load_audio_text_dataset

from .conftest import RATE, ramp, tone, write_metadata_file, write_sound


def row(path, text="x"):
    return {"audio": {"path": str(path), "bytes": None}, "text": text}


def read(reader, path, seed=0, text="x"):
    return reader(row(path, text), np.random.default_rng(seed))


def take(clips, count):
    return [clip for _, clip in zip(range(count), clips, strict=False)]


def same(first, second):
    return all(
        a["text"] == b["text"] and np.array_equal(a["audio"], b["audio"]) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_sound_of_other_rates_and_channels_becomes_mono_at_the_rate_of_the_reader(tmp_path, suffix):
    stereo = np.stack([tone(1.5, rate=44100, level=0.6), tone(1.5, rate=44100, level=0.2)], axis=1)
    path = write_sound(tmp_path / f"stereo{suffix}", stereo, rate=44100)
    clip = read(ClipReader(RATE, segment_duration=1.0), path)
    assert clip["audio"].shape == (RATE,) and clip["audio"].dtype == np.float32 and clip["length"] == RATE
    spectrum = np.abs(np.fft.rfft(clip["audio"]))
    assert np.argmax(spectrum) == 440  # one bin a hertz
    assert spectrum.max() / (RATE / 2) == pytest.approx(0.4, rel=0.02)  # the mean of both levels


def test_segments_start_anywhere_in_a_long_sound_and_are_full(tmp_path):
    path = write_sound(tmp_path / "x.wav", ramp(5.0))
    reader = ClipReader(RATE, segment_duration=1.0)
    whole = ramp(5.0)
    starts = []
    for seed in range(50):
        clip = read(reader, path, seed)
        start = int(np.searchsorted(whole, clip["audio"][0]))
        np.testing.assert_array_equal(clip["audio"], whole[start : start + RATE])
        assert clip["length"] == RATE
        starts.append(start / RATE)
    assert 0 <= min(starts) < 0.5 and 3.5 < max(starts) <= 4.0


def test_min_segment_ratio_lets_segments_reach_over_the_end_with_padding(tmp_path):
    path = write_sound(tmp_path / "x.wav", ramp(2.0))
    lengths = [read(ClipReader(RATE, 1.0, min_segment_ratio=0.25), path, seed)["length"] for seed in range(60)]
    assert RATE // 4 <= min(lengths) < RATE // 2 and max(lengths) == RATE
    for seed in range(10):
        clip = read(ClipReader(RATE, 1.0, min_segment_ratio=0.25), path, seed)
        assert (clip["audio"][: clip["length"]] > 0).all() and not clip["audio"][clip["length"] :].any()


def test_a_sound_shorter_than_the_segment_is_read_from_its_start_and_padded(tmp_path):
    path = write_sound(tmp_path / "x.wav", ramp(0.4))
    clip = read(ClipReader(RATE, 1.0), path)
    assert clip["length"] == 6400
    np.testing.assert_array_equal(clip["audio"], np.pad(ramp(0.4), (0, 9600)))


def test_without_a_segment_duration_the_whole_sound_is_read(tmp_path):
    path = write_sound(tmp_path / "x.wav", ramp(3.3))
    np.testing.assert_array_equal(read(ClipReader(RATE, None), path)["audio"], ramp(3.3))


def test_a_full_segment_has_no_padding_at_any_rate(tmp_path):
    for rate in (8000, 11025, 22050, 44100, 48000):
        path = write_sound(tmp_path / f"{rate}.wav", tone(1.5, rate=rate), rate=rate)
        for duration in (0.3, 1.0, 1.37):
            reader = ClipReader(RATE, duration)
            assert {read(reader, path, seed)["length"] for seed in range(5)} == {int(duration * RATE)}


def test_windows_follow_one_another_and_cover_the_sound(tmp_path):
    path = write_sound(tmp_path / "x.wav", ramp(2.7))
    windows = list(ClipReader(RATE, 1.0, min_segment_ratio=0.5).windows(row(path, ["a", "b"])))
    assert [clip["length"] for clip in windows] == [RATE, RATE, 11200]
    np.testing.assert_array_equal(np.concatenate([clip["audio"] for clip in windows])[: int(2.7 * RATE)], ramp(2.7))
    assert windows[0]["text"] == ["a", "b"]
    assert len(list(ClipReader(RATE, 1.0).windows(row(path)))) == 2  # a last window must be full
    assert len(list(ClipReader(RATE, 9.0).windows(row(path)))) == 1  # but one there always is


def test_one_of_several_descriptions_is_drawn(tmp_path):
    path = write_sound(tmp_path / "x.wav", tone(1.0))
    reader = ClipReader(RATE, 1.0)
    drawn = {read(reader, path, seed, text=[" a ", "b", None, "", "c"])["text"] for seed in range(40)}
    assert drawn == {"a", "b", "c"}
    assert [read(reader, path, text=text)["text"] for text in (None, "", [], [None])] == ["", "", "", ""]


def spoil(folder):
    """Four of the eight sounds cannot be used any more, each in its own way."""
    (folder / "0.wav").write_bytes(b"this is no sound")
    write_sound(folder / "1.wav", np.zeros(RATE, dtype=np.float32))
    soundfile.write(folder / "2.wav", np.empty(0, dtype=np.float32), RATE)
    write_sound(folder / "3.wav", np.full(RATE, np.nan, dtype=np.float32))
    return folder


@pytest.mark.parametrize(
    ("index", "reason"), [(0, "Format not recognised"), (1, "silence"), (2, "no samples"), (3, "not finite")]
)
def test_an_unusable_sound_says_why(folder, index, reason):
    with pytest.raises(UnusableClipError, match=reason):
        read(ClipReader(RATE, 1.0), spoil(folder) / f"{index}.wav")


def test_a_row_or_a_path_without_sound_is_unusable(tmp_path):
    for sound in (None, {"path": None, "bytes": None}):
        with pytest.raises(UnusableClipError, match="no sound"):
            ClipReader()({"audio": sound, "text": "x"}, np.random.default_rng(0))
    with pytest.raises(UnusableClipError):
        read(ClipReader(), tmp_path / "nowhere.wav")


def test_sounds_behind_a_url_are_read(tmp_path):
    path = write_sound(tmp_path / "x.wav", ramp(1.0))
    np.testing.assert_array_equal(read(ClipReader(RATE, 1.0), f"file://{path}")["audio"], ramp(1.0))


def test_a_truncated_file_gives_what_is_left_of_it_or_is_unusable(tmp_path):
    path = write_sound(tmp_path / "x.flac", tone(2.0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader = ClipReader(RATE, 1.0)
    for seed in range(10):
        with contextlib.suppress(UnusableClipError):
            assert read(reader, path, seed)["length"] > 0


def test_an_epoch_holds_every_clip_once_in_an_order_of_its_own(folder):
    clips = ClipDataset(load_audio_text_dataset(folder), ClipReader(RATE, 1.0), seed=1)
    epochs = [[clips[8 * epoch + i]["text"] for i in range(8)] for epoch in range(3)]
    assert all(sorted(epoch) == [f"tone {i}" for i in range(8)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [clip["text"] for clip in clips] == epochs[0]


def test_a_clip_follows_from_seed_and_number_alone(folder):
    rows = load_audio_text_dataset(folder)
    reader = ClipReader(RATE, 0.5)
    numbers = [17, 3, 40, 3]
    first, second = ([ClipDataset(rows, reader, seed=5)[n] for n in numbers] for _ in range(2))
    assert same(first, second) and same([first[1]], [first[3]])
    assert not same(first, [ClipDataset(rows, reader, seed=6)[n] for n in numbers])


def test_evaluation_clips_keep_their_order_and_never_change(folder):
    clips = ClipDataset(load_audio_text_dataset(folder), ClipReader(RATE, 0.5), shuffle=False)
    assert [clip["text"] for clip in clips] == [f"tone {i}" for i in range(8)]
    assert same([clips[3]], [clips[11]])


def test_unusable_clips_are_replaced_in_training_and_counted(folder):
    clips = ClipDataset(load_audio_text_dataset(spoil(folder)), ClipReader(RATE, 1.0), seed=0)
    epoch = list(clips)
    assert len(epoch) == 8 and {clip["text"] for clip in epoch} <= {f"tone {i}" for i in range(4, 8)}
    assert all(clip["length"] == RATE for clip in epoch)
    assert sum(clip["num_skipped"] for clip in epoch) >= 4
    assert sum(clip["num_skipped"] > 0 for clip in epoch) == 4


def test_unusable_clips_are_masked_in_evaluation_and_counted(folder):
    clips = list(ClipDataset(load_audio_text_dataset(spoil(folder)), ClipReader(RATE, 1.0), shuffle=False))
    assert [clip["num_skipped"] for clip in clips] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert [clip["length"] for clip in clips] == [0, 0, 0, 0, RATE, RATE, RATE, RATE]


def test_a_dataset_without_a_usable_clip_ends_with_an_error(tmp_path):
    folder = write_sound(tmp_path / "silent" / "0.wav", np.zeros(RATE, dtype=np.float32)).parent
    write_metadata_file(folder, {"0.wav": "silence"})
    with pytest.raises(ValueError, match=r"10 unusable clips in a row; the last: .*0\.wav"):
        ClipDataset(load_audio_text_dataset(folder), ClipReader(RATE, 1.0))[0]
    with pytest.raises(ValueError, match="no usable clip"):
        next(iter(ClipStream(load_audio_text_dataset(folder, streaming=True), ClipReader(RATE, 1.0))))


def stream(folder, **kwargs):
    arguments = {"seed": 3, "shuffle_buffer": 4, "num_threads": 2} | kwargs
    return ClipStream(load_audio_text_dataset(folder, streaming=True), ClipReader(RATE, 0.5), **arguments)


def test_a_stream_goes_on_epoch_after_epoch_each_in_an_order_of_its_own(folder):
    texts = [clip["text"] for clip in take(stream(folder), 24)]
    epochs = [texts[:8], texts[8:16], texts[16:]]
    assert all(sorted(epoch) == [f"tone {i}" for i in range(8)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    ordered = [clip["text"] for clip in take(stream(folder, shuffle_buffer=0), 16)]
    assert ordered == 2 * [f"tone {i}" for i in range(8)]


def test_the_number_of_threads_changes_nothing_in_a_stream(folder):
    assert same(take(stream(folder, num_threads=1), 20), take(stream(folder, num_threads=5), 20))
    assert not same(take(stream(folder), 8), take(stream(folder, seed=4), 8))


@pytest.mark.parametrize("taken", [0, 1, 7, 8, 13])
def test_a_stream_goes_on_after_the_last_clip_taken(folder, taken):
    spoil(folder)
    whole = take(stream(folder), 20)
    first = stream(folder)
    take(first, taken)
    second = stream(folder)
    second.load_state_dict(first.state_dict())
    assert same(take(second, 20 - taken), whole[taken:])


def test_processes_read_their_own_parts_of_a_stream(folder):
    parts = []
    for rank in range(2):
        rows = split_dataset_by_node(load_audio_text_dataset(folder, streaming=True), rank, 2)
        parts.append([clip["text"] for clip in take(ClipStream(rows, ClipReader(RATE, 0.5), shuffle_buffer=2), 4)])
    assert sorted(parts[0] + parts[1]) == [f"tone {i}" for i in range(8)]


def test_going_on_decodes_no_clip_again(folder):
    calls = []

    class CountingReader(ClipReader):
        def __call__(self, row, rng):
            calls.append(row["text"])
            return super().__call__(row, rng)

    rows = load_audio_text_dataset(folder, streaming=True)
    clips = ClipStream(rows, CountingReader(RATE, 0.5), shuffle_buffer=0, num_threads=1)
    clips.load_state_dict({"epoch": 0, "position": 6})
    assert next(iter(clips))["text"] == "tone 6"
    assert not set(calls) & {f"tone {i}" for i in range(6)}


def test_unusable_clips_are_left_out_of_a_stream_and_counted(folder):
    clips = take(stream(spoil(folder), shuffle_buffer=0), 8)
    assert [clip["text"] for clip in clips] == 2 * [f"tone {i}" for i in range(4, 8)]
    assert [clip["num_skipped"] for clip in clips] == [4, 0, 0, 0, 4, 0, 0, 0]


def test_a_stream_refuses_worker_processes(folder, monkeypatch):
    monkeypatch.setattr(torch.utils.data, "get_worker_info", object)  # as inside a worker
    with pytest.raises(ValueError, match="num_workers of its DataLoader must be 0"):
        next(iter(stream(folder)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampling_rate": 0}, "sampling_rate must be positive, got 0"),
        ({"segment_duration": 0.0}, r"segment_duration must be positive or None, got 0\.0"),
        ({"segment_duration": 1e-6}, "segment_duration 1e-06 is less than a sample"),
        ({"min_segment_ratio": 0.0}, r"min_segment_ratio must be in \(0, 1\], got 0\.0"),
        ({"min_segment_ratio": 1.5}, r"min_segment_ratio must be in \(0, 1\], got 1\.5"),
    ],
)
def test_bad_reader_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClipReader(**arguments)


def test_bad_dataset_settings_are_refused(folder):
    with pytest.raises(ValueError, match="the dataset is empty"):
        ClipDataset(datasets.Dataset.from_dict({"audio": [], "text": []}), ClipReader())
    for bad in ({"seed": -1}, {"shuffle_buffer": -1}, {"num_threads": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must"):
            stream(folder, **bad)
    with pytest.raises(ValueError, match="take a ClipStream"):
        ClipDataset(load_audio_text_dataset(folder, streaming=True), ClipReader())
    with pytest.raises(ValueError, match="take a ClipDataset"):
        ClipStream(load_audio_text_dataset(folder), ClipReader())
    with pytest.raises(ValueError, match="seed must not be negative"):
        ClipDataset(load_audio_text_dataset(folder), ClipReader(), seed=-1)
