import argparse
import gzip
import json

import pytest

from audiogen_hf.data import load_audio_text_dataset
from audiogen_hf.data.manifest import add_manifest_arguments, run_manifest, write_manifest, write_metadata

from .conftest import tone, write_sound


@pytest.fixture
def sounds(tmp_path):
    """Three sounds in two folders, one file that is no sound, and one of another kind."""
    folder = tmp_path / "sounds"
    write_sound(folder / "rain" / "tin-roof_02.wav", tone(1.5))
    write_sound(folder / "rain" / "window.flac", tone(0.5, rate=8000), rate=8000)
    write_sound(folder / "dogs" / "bark.ogg", tone(1.0))
    (folder / "dogs" / "broken.wav").write_bytes(b"no sound")
    (folder / "notes.md").write_text("not a sound")
    return folder


def describe(sounds, description="Rain on a tin roof"):
    for path in sounds.rglob("*.*"):
        if path.suffix in (".wav", ".flac", ".ogg"):
            path.with_suffix(".json").write_text(json.dumps({"description": description}))


def lines(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("name", ["data.jsonl", "deep/data.jsonl.gz"])
def test_a_manifest_lists_what_audiocraft_reads(sounds, tmp_path, name):
    num_listed, unreadable = write_manifest(sounds, tmp_path / name)
    assert (num_listed, unreadable) == (3, [sounds / "dogs" / "broken.wav"])
    nothing = {"amplitude": None, "weight": None, "info_path": None}
    assert lines(tmp_path / name) == [
        {"path": f"{sounds}/dogs/bark.ogg", "duration": 1.0, "sample_rate": 16000} | nothing,
        {"path": f"{sounds}/rain/tin-roof_02.wav", "duration": 1.5, "sample_rate": 16000} | nothing,
        {"path": f"{sounds}/rain/window.flac", "duration": 0.5, "sample_rate": 8000} | nothing,
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_manifest_is_read_back(sounds, tmp_path):
    describe(sounds)
    write_manifest(sounds, tmp_path / "data.jsonl")
    rows = load_audio_text_dataset(tmp_path / "data.jsonl")
    assert rows["text"][:] == [["rain on a tin roof"]] * 3


def test_resolved_paths_are_absolute(sounds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_manifest("sounds", "relative.jsonl")
    write_manifest("sounds", "absolute.jsonl", resolve=True)
    assert lines(tmp_path / "relative.jsonl")[0]["path"] == "sounds/dogs/bark.ogg"
    assert lines(tmp_path / "absolute.jsonl")[0]["path"] == str(sounds / "dogs" / "bark.ogg")


@pytest.mark.parametrize(
    ("text_from", "texts"), [("name", ["bark", "tin roof", "window"]), ("folder", ["dogs", "rain", "rain"])]
)
def test_metadata_takes_texts_from_names(sounds, text_from, texts):
    assert write_metadata(sounds, text_from=text_from)[0] == 3
    assert [entry["text"] for entry in lines(sounds / "metadata.jsonl")] == texts
    assert load_audio_text_dataset(sounds)["text"][:] == texts


def test_metadata_takes_texts_from_files_beside_or_elsewhere(sounds, tmp_path):
    describe(sounds)
    (sounds / "dogs" / "bark.json").write_text(json.dumps({"description": ["a dog", "Barking"]}))
    (tmp_path / "more").mkdir()
    (sounds / "rain" / "window.json").rename(tmp_path / "more" / "window.json")
    write_metadata(sounds, external_metadata_source=tmp_path / "more")
    assert [entry["text"] for entry in lines(sounds / "metadata.jsonl")] == [
        ["a dog", "Barking"],
        ["Rain on a tin roof"],
        ["Rain on a tin roof"],
    ]
    for path in ("dogs/bark", "rain/tin-roof_02", "rain/window"):
        (sounds / f"{path}.txt").write_text(f"{path}\n\n")
    write_metadata(sounds, text_from="txt")
    assert lines(sounds / "metadata.jsonl")[0] == {"file_name": "dogs/bark.ogg", "text": "dogs/bark"}


def test_metadata_may_lie_above_the_folder(sounds, tmp_path):
    write_metadata(sounds / "rain", tmp_path / "metadata.jsonl", text_from="folder")
    assert lines(tmp_path / "metadata.jsonl")[0]["file_name"] == "sounds/rain/tin-roof_02.wav"
    assert len(load_audio_text_dataset(tmp_path / "metadata.jsonl")) == 2


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_manifest_arguments(parser)
    run_manifest(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_writes_metadata_or_a_manifest_by_the_name_asked_for(sounds, tmp_path, capsys):
    run(sounds, "--text-from", "folder")
    printed = capsys.readouterr()
    assert printed.out == f"{sounds}/metadata.jsonl: 3 sounds, 1 could not be read\n"
    assert printed.err == f"cannot read {sounds}/dogs/broken.wav\n"
    assert lines(sounds / "metadata.jsonl")[0] == {"file_name": "dogs/bark.ogg", "text": "dogs"}
    run(sounds, tmp_path / "train.jsonl.gz", "--resolve")
    assert lines(tmp_path / "train.jsonl.gz")[0]["duration"] == 1.0


def test_bad_arguments_are_refused(sounds, tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        write_manifest(tmp_path / "nowhere", tmp_path / "data.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no sound files"):
        write_manifest(tmp_path / "empty", tmp_path / "data.jsonl")
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.jsonl\.gz, got .*data\.csv"):
        write_manifest(sounds, tmp_path / "data.csv")
    with pytest.raises(ValueError, match=r"no description of .*bark\.ogg: looked for .*bark\.json"):
        write_metadata(sounds)
    with pytest.raises(ValueError, match="text_from must be one of json, txt, name, folder, got 'ear'"):
        write_metadata(sounds, text_from="ear")
    with pytest.raises(ValueError, match=r"must be in .* or above it"):
        write_metadata(sounds, tmp_path / "empty" / "metadata.jsonl", text_from="name")
    with pytest.raises(ValueError, match="--num-workers must be at least 1, got 0"):
        run(sounds, "--num-workers", 0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"output .*data\.jsonl cannot be written"):
        write_manifest(sounds, tmp_path / "file" / "data.jsonl")
    describe(sounds, description=None)
    with pytest.raises(ValueError, match=r"no text for .*bark\.ogg in its \.json file"):
        write_metadata(sounds)
    for path in sounds.rglob("*.*"):
        if path.suffix != ".json":
            path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 4 sound files can be read"):
        write_manifest(sounds, tmp_path / "data.jsonl")
    assert not (tmp_path / "data.jsonl").exists()
