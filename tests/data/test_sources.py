import gzip
import io
import json
import shutil
import tarfile

import datasets
import numpy as np
import pytest

from audiogen_hf.data import ClipDataset, ClipReader, load_audio_text_dataset

from .conftest import tone, write_metadata_file, write_sound

TEXTS = [f"tone {i}" for i in range(8)]


def write_manifest_of(folder, path, paths=None):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        for sound in paths or sorted(folder.glob("*.wav")):
            file.write(
                json.dumps({"path": str(sound), "duration": 1.0, "sample_rate": 16000, "amplitude": None}) + "\n"
            )
    return path


def write_descriptions(folder, into=None):
    for i in range(8):
        ((into or folder) / f"{i}.json").write_text(json.dumps({"description": f" Tone {i} "}))


def check(rows, sound_in_bytes=False):
    """The rows hold the eight tones with their texts, and the sound of each can be read."""
    rows = sorted(rows, key=lambda row: row["text"] if isinstance(row["text"], str) else row["text"][0])
    texts = [row["text"] if isinstance(row["text"], str) else row["text"][0] for row in rows]
    assert texts == TEXTS
    for i, row in enumerate(rows):
        assert set(row) == {"audio", "text"}
        assert (row["audio"]["bytes"] is not None) == sound_in_bytes
        clip = ClipReader(segment_duration=None)(row, np.random.default_rng(0))
        np.testing.assert_allclose(clip["audio"], tone(1.0 + 0.2 * i, 200.0 * (i + 1)), atol=1e-6)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "layout", ["folder", "metadata", "parquet", "parquet_folder", "saved", "manifest", "webdataset"]
)
def test_every_layout_gives_the_same_rows(folder, tmp_path, layout, streaming):
    if layout in ("parquet", "parquet_folder", "saved"):
        content = {"caption": TEXTS, "audio": [{"bytes": (folder / f"{i}.wav").read_bytes()} for i in range(8)]}
        rows = datasets.Dataset.from_dict(content)
        (tmp_path / "other").mkdir()
        if layout == "saved":
            datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "other")
            source = tmp_path / "other"
        else:
            rows.to_parquet(tmp_path / "other" / "train.parquet")
            source = tmp_path / "other" / ("train.parquet" if layout == "parquet" else "")
    elif layout == "webdataset":
        source = tmp_path / "other"
        source.mkdir()
        with tarfile.open(source / "train.tar", "w") as archive:
            for i in range(8):
                for suffix, content in ((".wav", (folder / f"{i}.wav").read_bytes()), (".text", TEXTS[i].encode())):
                    member = tarfile.TarInfo(f"{i}{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    elif layout == "manifest":
        (folder / "metadata.jsonl").unlink()
        write_descriptions(folder)
        source = write_manifest_of(folder, tmp_path / "train.jsonl.gz")
    else:
        source = folder if layout == "folder" else folder / "metadata.jsonl"
    columns = {"audio_column": "wav"} if layout == "webdataset" else {}
    rows = load_audio_text_dataset(source, streaming=streaming, **columns)
    assert isinstance(rows, datasets.IterableDataset if streaming else datasets.Dataset)
    check(rows, sound_in_bytes=layout in ("parquet", "parquet_folder", "saved", "webdataset"))


def test_the_split_asked_for_is_opened(folder, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(folder, both / "train")
    write_sound(both / "validation" / "v.wav", tone(1.0))
    write_metadata_file(both / "validation", {"v.wav": "held out"})
    assert load_audio_text_dataset(both, split="validation")["text"][:] == ["held out"]
    assert len(load_audio_text_dataset(both, split="train[:3]")) == 3


def test_a_folder_with_data_jsonl_is_a_manifest_and_external_descriptions_are_found(folder, tmp_path):
    (folder / "metadata.jsonl").unlink()
    (tmp_path / "descriptions").mkdir()
    write_descriptions(folder, into=tmp_path / "descriptions")
    (folder / "3.json").write_text(json.dumps({"description": ["Beside", "the File", None, "None"]}))
    write_manifest_of(folder, folder / "data.jsonl", paths=[f"{i}.wav" for i in range(8)])  # relative to the manifest
    rows = load_audio_text_dataset(folder, external_metadata_source=tmp_path / "descriptions")
    assert rows["text"][:4] == [["tone 0"], ["tone 1"], ["tone 2"], ["beside", "the file"]]
    assert ClipDataset(rows, ClipReader(segment_duration=1.0), shuffle=False)[3]["length"] == 16000


def test_manifest_paths_may_be_relative_to_the_working_directory(folder, tmp_path, monkeypatch):
    write_descriptions(folder)
    write_manifest_of(folder, tmp_path / "egs.jsonl", paths=["sounds/0.wav"])
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "egs.jsonl", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    rows = load_audio_text_dataset("elsewhere/egs.jsonl")
    assert rows[0] == {"audio": {"bytes": None, "path": "sounds/0.wav"}, "text": ["tone 0"]}


def test_a_null_description_is_the_empty_text(folder):
    write_descriptions(folder)
    (folder / "0.json").write_text(json.dumps({"description": None}))
    manifest = write_manifest_of(folder, folder / "data.jsonl")
    assert load_audio_text_dataset(manifest)["text"][:2] == [[""], ["tone 1"]]


def test_without_text_sounds_alone_are_enough(folder):
    (folder / "metadata.jsonl").unlink()
    rows = load_audio_text_dataset(folder, with_text=False)
    assert rows.column_names == ["audio"] and len(rows) == 8
    write_descriptions(folder)  # files of another kind are no hindrance
    assert len(load_audio_text_dataset(folder, with_text=False)) == 8
    manifest = write_manifest_of(folder, folder / "data.jsonl")
    assert load_audio_text_dataset(manifest, with_text=False).column_names == ["audio"]


def test_loading_leaves_the_audio_feature_of_datasets_as_it_was(folder):
    before = datasets.Audio.encode_example
    load_audio_text_dataset(folder)
    assert datasets.Audio.encode_example is before


def test_missing_columns_are_named(folder, tmp_path):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.wav", "label": "tone"}) + "\n")
    with pytest.raises(ValueError, match=r"no description column 'text' or .*'descriptions'; it has audio, label"):
        load_audio_text_dataset(folder)
    with pytest.raises(ValueError, match=r"no description column 'caption'; it has audio, label"):
        load_audio_text_dataset(folder, text_column="caption")
    with pytest.raises(ValueError, match=r"no audio_column 'sound'; it has audio, label"):
        load_audio_text_dataset(folder, audio_column="sound")
    assert load_audio_text_dataset(folder, text_column="label")["text"][:] == ["tone"]
    datasets.Dataset.from_dict({"audio": [str(folder / "0.wav")], "text": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"text_column 'text' .* must hold strings"):
        load_audio_text_dataset(tmp_path / "x.parquet")


def test_bad_sources_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no/such-dataset is neither"):
        load_audio_text_dataset("no/such-dataset")
    with pytest.raises(ValueError, match=r"no\.jsonl does not exist"):
        load_audio_text_dataset(tmp_path / "no.jsonl")
    with pytest.raises(ValueError, match=r"0\.wav is no dataset"):
        load_audio_text_dataset(folder / "0.wav")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        load_audio_text_dataset(tmp_path / "empty")
    datasets.Dataset.from_dict({"audio": [], "text": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"cannot load split 'train' of .*empty\.parquet"):
        load_audio_text_dataset(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="external_metadata_source goes with"):
        load_audio_text_dataset(folder, external_metadata_source=tmp_path)
    with pytest.raises(ValueError, match=r"cannot load split 'validation'"):
        load_audio_text_dataset(folder, split="validation")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"duration": 1}', r'line 1: expected an object with a "path"'),
        ("[", r"line 1: not JSON"),
        ("", r"is empty"),
        ('{"path": "nowhere.wav"}', r"no description of nowhere\.wav: looked for nowhere\.json"),
    ],
)
def test_bad_manifests_are_refused(tmp_path, line, message):
    (tmp_path / "data.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_audio_text_dataset(tmp_path)


def test_bad_descriptions_are_refused(folder):
    manifest = write_manifest_of(folder, folder / "data.jsonl")
    write_descriptions(folder)
    for content in ("{}", "[1]", "no json"):
        (folder / "5.json").write_text(content)
        with pytest.raises(ValueError, match=r'5\.json: expected a JSON object with a "description"'):
            load_audio_text_dataset(manifest)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_can_be_chosen_by_a_column_of_booleans(tmp_path, streaming):
    columns = {"audio": [f"{i}.wav" for i in range(4)], "text": list("abcd"), "loud": [True, False, None, True]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
    rows = load_audio_text_dataset(tmp_path / "rows.parquet", filter_column="loud", streaming=streaming)
    assert [row["text"] for row in rows] == ["a", "d"]
    for column in ("text", "quiet"):
        with pytest.raises(
            ValueError, match=f"filter_column: got '{column}', takes a column of booleans; .* audio, te"
        ):
            load_audio_text_dataset(tmp_path / "rows.parquet", filter_column=column, streaming=streaming)


def test_a_manifest_has_no_columns_to_choose_by(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"path": "a.wav"}')
    with pytest.raises(ValueError, match="filter_column: got 'loud', and the manifest"):
        load_audio_text_dataset(tmp_path, filter_column="loud", with_text=False)
