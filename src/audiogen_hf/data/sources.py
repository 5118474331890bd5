"""Opening a source of sound with descriptions as a `datasets` dataset; nothing is decoded here."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetNotFoundError

from .manifest import SOUND_SUFFIXES, read_descriptions

TEXT_COLUMNS = ("text", "caption", "description", "captions", "descriptions")
MANIFEST_NAMES = ("data.jsonl", "data.jsonl.gz")
NOT_A_DATASET = (FileNotFoundError, ConnectionError, DatasetNotFoundError, EmptyDatasetError)
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def load_audio_text_dataset(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    audio_column: str = "audio",
    text_column: str | None = None,
    with_text: bool = True,
    filter_column: str | None = None,
    external_metadata_source: str | os.PathLike | None = None,
    **load_dataset_kwargs,
) -> datasets.Dataset | datasets.IterableDataset:
    """Open sound with descriptions.

    Args:
        source: One of
            - an AudioCraft manifest (`.jsonl` or `.jsonl.gz`), or a folder that holds it as `data.jsonl[.gz]`;
            - a folder of sound files with `metadata.{jsonl,csv,parquet}` (`audiofolder`), or its metadata file;
            - a `.parquet` file, a folder of them, or what `Dataset.save_to_disk` wrote;
            - the name of a dataset on the Hub.
        name: Configuration of a Hub dataset.
        split: Split to take. A manifest is one split, so the argument is not looked at there.
        streaming: Read while training in place of downloading first; gives an `IterableDataset`.
        audio_column: Column of the sound.
        text_column: Column of the descriptions, each a string or a list of strings. Default: the first of "text",
            "caption", "description", "captions", "descriptions" that exists.
        with_text: With False, descriptions are not looked for (a codec needs none), and there is no column "text".
        filter_column: Column of booleans; rows where it is not true are left out. A manifest has none.
        external_metadata_source: Folder with the `.json` files of an AudioCraft manifest; one beside the sound
            file goes first.
        load_dataset_kwargs: Passed to `datasets.load_dataset` (`revision`, `token`, `cache_dir`, ...).

    Returns:
        Rows with the columns "audio" (dict of "path" and "bytes", not decoded) and "text".

    Raises:
        ValueError: The source, the split or a column does not exist, or the dataset is empty.
    """
    path = Path(source)
    manifest = _find_manifest(path)
    if manifest is not None:
        if filter_column is not None:
            raise ValueError(f"filter_column: got {filter_column!r}, and the manifest {manifest} has no such columns")
        rows = read_manifest(manifest, external_metadata_source, with_text=with_text)
        return rows.to_iterable_dataset() if streaming else rows
    if external_metadata_source is not None:
        raise ValueError(f"external_metadata_source goes with an AudioCraft manifest, and {source} is none")

    rows = _load_rows(path if path.exists() else str(source), name, split, streaming, load_dataset_kwargs)
    if filter_column is not None:
        rows = _filter(rows, filter_column, source)
    if not streaming and len(rows) == 0:
        raise ValueError(f"the dataset {source} has no rows in split {split!r}")
    return _select_columns(rows, audio_column, text_column, with_text, source)


class UndecodedAudio(datasets.Audio):
    """`datasets.Audio` for paths and bytes alone; its parent needs torchcodec even to store a path."""

    def encode_example(self, value: str | bytes | dict) -> dict:
        if isinstance(value, str | os.PathLike):
            return {"path": os.fspath(value), "bytes": None}
        if isinstance(value, bytes | bytearray):
            return {"path": None, "bytes": bytes(value)}
        if isinstance(value, dict) and (value.get("path") is not None or value.get("bytes") is not None):
            return {"path": value.get("path"), "bytes": value.get("bytes")}
        raise ValueError(f"the sound of a row must be a path or the bytes of a file, got {type(value).__name__}")


def read_manifest(
    manifest: str | os.PathLike,
    external_metadata_source: str | os.PathLike | None = None,
    *,
    with_text: bool = True,
) -> datasets.Dataset:
    """Read AudioCraft's manifest: one JSON object a line with the "path" of a sound file.

    The description of `x.wav` is the "description" of `x.json` beside it or, if there is none, in
    `external_metadata_source`; a list holds alternatives. As AudioCraft does, descriptions are stripped and
    lower-cased, and null stands for no description. A relative path is taken from the manifest's folder if the file is
    there, else from the working directory.

    Returns:
        Rows with the columns "audio" and "text" (list of strings).

    Raises:
        ValueError: A line is no object with a "path", or a description is missing.
    """
    manifest = Path(manifest)
    paths = [_resolve(entry["path"], manifest.parent) for entry in _manifest_entries(manifest)]
    if not paths:
        raise ValueError(f"the manifest {manifest} is empty")
    rows = datasets.Dataset.from_dict({"audio": [str(path) for path in paths]})
    if with_text:
        with ThreadPoolExecutor(max_workers=8) as pool:  # many small files, often on a network file system
            texts = list(pool.map(lambda path: _audiocraft_texts(path, external_metadata_source), paths))
        rows = rows.add_column("text", texts, feature=datasets.List(datasets.Value("string")))
    return rows.cast_column("audio", UndecodedAudio(decode=False))


def _find_manifest(path: Path) -> Path | None:
    if path.is_dir():
        return next((path / name for name in MANIFEST_NAMES if (path / name).is_file()), None)
    if path.name not in METADATA_NAMES and path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        if not path.is_file():
            raise ValueError(f"the manifest {path} does not exist")
        return path
    return None


def _manifest_entries(manifest: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if manifest.suffix.lower() == ".gz" else open
    with opener(manifest, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{manifest}, line {number}: not JSON ({error})") from error
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                raise ValueError(
                    f'{manifest}, line {number}: expected an object with a "path", got {line.strip()[:80]}'
                )
            yield entry


def _resolve(path: str, folder: Path) -> Path:
    beside = folder / path  # `folder / path` is `path` itself where that is absolute
    return beside if beside.is_file() else Path(path)


def _audiocraft_texts(path: Path, external_metadata_source: str | os.PathLike | None) -> list[str]:
    texts = [text.lower() for text in read_descriptions(path, external_metadata_source)]
    return [text for text in texts if text != "none"] or [""]


def _load_rows(source: Path | str, name: str | None, split: str, streaming: bool, kwargs: dict[str, Any]):
    if isinstance(source, Path) and (source / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(source))
        if split not in splits:
            raise ValueError(f"{source} has no split {split!r}; it has {', '.join(splits)}")
        rows = splits[split]
        return rows.to_iterable_dataset() if streaming else rows
    if isinstance(source, Path) and (source / "state.json").is_file():
        rows = datasets.load_from_disk(str(source))
        return rows.to_iterable_dataset() if streaming else rows

    if isinstance(source, Path) and source.suffix == ".parquet" and source.name not in METADATA_NAMES:
        arguments = {"path": "parquet", "data_files": {split: str(source)}}
    elif isinstance(source, Path) and source.name in METADATA_NAMES:
        arguments = {"path": "audiofolder", "data_dir": str(source.parent)}
    elif isinstance(source, Path) and source.is_file():
        raise ValueError(
            f"source {source} is no dataset: expected a folder, .parquet, .jsonl, .jsonl.gz, or a Hub dataset name"
        )
    elif isinstance(source, Path) and _holds_sound(source):
        arguments = {"path": "audiofolder", "data_dir": str(source)}
    else:
        arguments = {"path": str(source)}
    try:
        with _storing_audio_without_torchcodec():
            return datasets.load_dataset(name=name, split=split, streaming=streaming, **arguments, **kwargs)
    except NOT_A_DATASET as error:
        raise ValueError(
            f"source {source} is neither a folder or manifest of sound nor a Hub dataset that can be reached: {error}"
        ) from error
    except ValueError as error:  # no such split, an empty file
        raise ValueError(f"cannot load split {split!r} of {source}: {error}") from error


def _holds_sound(folder: Path) -> bool:
    return any(
        name.endswith(SOUND_SUFFIXES) or name in METADATA_NAMES for _, _, names in os.walk(folder) for name in names
    )


@contextlib.contextmanager
def _storing_audio_without_torchcodec():
    """`datasets` builds folders and archives of sound through `Audio.encode_example`, which imports torchcodec
    although the sound stays encoded; for the time of loading it stores paths and bytes as they are."""
    original = datasets.Audio.encode_example
    datasets.Audio.encode_example = UndecodedAudio.encode_example
    try:
        yield
    finally:
        datasets.Audio.encode_example = original


def _filter(rows, column: str, source):
    features = rows.features or {}
    if features.get(column) != datasets.Value("bool"):
        raise ValueError(
            f"filter_column: got {column!r}, takes a column of booleans; {source} has {', '.join(features) or 'none'}"
        )
    if isinstance(rows, datasets.IterableDataset):
        return rows.filter(bool, input_columns=column)
    return rows.select([number for number, keep in enumerate(rows[column]) if keep])


def _select_columns(rows, audio_column: str, text_column: str | None, with_text: bool, source):
    if rows.features is None:
        raise ValueError(
            f"the stream of {source} does not tell its columns: convert it to parquet, or do not stream it"
        )
    if audio_column not in rows.features:
        raise ValueError(
            f"the dataset {source} has no audio_column {audio_column!r}; it has {', '.join(rows.features)}"
        )
    rows = rows.cast_column(audio_column, UndecodedAudio(decode=False))  # first: a stream encodes at every later step
    renamed = {audio_column: "audio"}
    if with_text:
        renamed[_find_text_column(rows.features, text_column, source)] = "text"
    rows = rows.select_columns(list(renamed))
    return rows.rename_columns({old: new for old, new in renamed.items() if old != new})


def _find_text_column(features: datasets.Features, text_column: str | None, source) -> str:
    candidates = TEXT_COLUMNS if text_column is None else (text_column,)
    found = next((column for column in candidates if column in features), None)
    if found is None:
        raise ValueError(
            f"the dataset {source} has no description column {' or '.join(map(repr, candidates))}; "
            f"it has {', '.join(features)}: name one with text_column, or make one with `audiogen-hf manifest`"
        )
    if not _is_text(features[found]):
        raise ValueError(
            f"text_column {found!r} of {source} must hold strings or lists of them, got {features[found]}"
        )
    return found


def _is_text(feature) -> bool:
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
