"""From a folder of sound files to the file that lists them: AudioCraft's manifest, or a `metadata.jsonl`."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
TEXT_SOURCES = ("json", "txt", "name", "folder")


def find_sounds(folder: str | os.PathLike) -> list[Path]:
    """Sound files in a folder and below, links followed, sorted.

    Raises:
        ValueError: The folder does not exist, or there is none.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"folder {folder} does not exist")
    paths = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SOUND_SUFFIXES)
    )
    if not paths:
        raise ValueError(f"folder {folder} has no sound files ({', '.join(SOUND_SUFFIXES)})")
    return paths


def write_manifest(
    folder: str | os.PathLike, output: str | os.PathLike, *, resolve: bool = False, num_workers: int = 8
) -> tuple[int, list[Path]]:
    """Write AudioCraft's manifest of a folder: for each file its path, duration in seconds and sampling rate.

    Args:
        folder: Folder of sound files.
        output: `.jsonl` or `.jsonl.gz` file to write.
        resolve: Write absolute paths without links; otherwise paths start as `folder` does.
        num_workers: Threads that read the files' headers.

    Returns:
        The number of files listed, and the files left out because they could not be read.

    Raises:
        ValueError: There is nothing to list, or `output` has another suffix or cannot be written.
    """
    output = Path(output)
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"output must end in .jsonl or .jsonl.gz, got {output}")
    paths = find_sounds(folder)
    headers = _read_headers(paths, num_workers)
    entries = [
        # The keys and their order are those of AudioCraft 1.3; null stands for what it fills in elsewhere.
        {
            "path": str(path.resolve() if resolve else path),
            "duration": header[0],
            "sample_rate": header[1],
            "amplitude": None,
            "weight": None,
            "info_path": None,
        }
        for path, header in zip(paths, headers, strict=True)
        if header is not None
    ]
    return _write_readable(entries, paths, headers, output)


def write_metadata(
    folder: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    text_from: str = "json",
    external_metadata_source: str | os.PathLike | None = None,
    num_workers: int = 8,
) -> tuple[int, list[Path]]:
    """Write the `metadata.jsonl` with which `datasets` reads a folder of sound as an `audiofolder` with texts.

    Args:
        folder: Folder of sound files.
        output: File to write, in the folder or above it; `folder/metadata.jsonl` by default.
        text_from: Where the text of `rain/tin_roof_2.wav` comes from: "json" (the "description" of
            `rain/tin_roof_2.json`, a string or a list), "txt" (the lines of `rain/tin_roof_2.txt`), "name" ("tin
            roof"), "folder" ("rain").
        external_metadata_source: Folder of the `.json` or `.txt` files that are not beside their sound.
        num_workers: Threads that read the files' headers.

    Returns:
        The number of files listed, and the files left out because they could not be read.

    Raises:
        ValueError: A text is missing, there is nothing to list, or `output` is not above the files or cannot be
            written.
    """
    if text_from not in TEXT_SOURCES:
        raise ValueError(f"text_from must be one of {', '.join(TEXT_SOURCES)}, got {text_from!r}")
    folder = Path(folder)
    output = folder / "metadata.jsonl" if output is None else Path(output)
    if not folder.resolve().is_relative_to(output.parent.resolve()):
        raise ValueError(f"output {output} must be in {folder} or above it, for the names in it start from there")
    paths = find_sounds(folder)
    headers = _read_headers(paths, num_workers)
    readable = [path for path, header in zip(paths, headers, strict=True) if header is not None]
    texts = [_texts_of(path, text_from, external_metadata_source) for path in readable]
    has_alternatives = any(len(alternatives) > 1 for alternatives in texts)  # a column has one type
    prefix = Path(os.path.relpath(folder, output.parent))
    entries = [
        {
            "file_name": (prefix / path.relative_to(folder)).as_posix(),
            "text": alternatives if has_alternatives else alternatives[0],
        }
        for path, alternatives in zip(readable, texts, strict=True)
    ]
    return _write_readable(entries, paths, headers, output)


def add_manifest_arguments(parser: argparse.ArgumentParser):
    """Arguments of the command that lists a folder."""
    parser.add_argument("folder", help="folder of sound files, searched with all its sub-folders")
    parser.add_argument(
        "output",
        nargs="?",
        help="metadata.jsonl, in the folder or above it (for datasets' audiofolder; the default), "
        "or another .jsonl or .jsonl.gz file (AudioCraft's manifest)",
    )
    parser.add_argument(
        "--text-from",
        choices=TEXT_SOURCES,
        default="json",
        help="metadata.jsonl: take the text of rain/tin_roof_2.wav from the description in tin_roof_2.json, from the "
        "lines of tin_roof_2.txt, from its name (tin roof) or its folder (rain); default: json",
    )
    parser.add_argument(
        "--external-metadata-source",
        metavar="DIR",
        help="metadata.jsonl: folder of the .json or .txt files not beside their sound",
    )
    parser.add_argument("--resolve", action="store_true", help="AudioCraft's manifest: write absolute paths")
    parser.add_argument("--num-workers", type=int, default=8, help="threads that read the files (default: 8)")


def run_manifest(args: argparse.Namespace):
    """Write what the arguments ask for, and say what was written.

    Raises:
        ValueError: As `write_manifest` and `write_metadata`.
    """
    if args.num_workers < 1:
        raise ValueError(f"--num-workers must be at least 1, got {args.num_workers}")
    output = Path(args.output) if args.output is not None else Path(args.folder) / "metadata.jsonl"
    if output.name == "metadata.jsonl":
        num_listed, unreadable = write_metadata(
            args.folder,
            output,
            text_from=args.text_from,
            external_metadata_source=args.external_metadata_source,
            num_workers=args.num_workers,
        )
    else:
        num_listed, unreadable = write_manifest(
            args.folder, output, resolve=args.resolve, num_workers=args.num_workers
        )
    for path in unreadable:
        print(f"cannot read {path}", file=sys.stderr)
    print(f"{output}: {num_listed} sounds" + (f", {len(unreadable)} could not be read" if unreadable else ""))


def _read_headers(paths: list[Path], num_workers: int) -> list[tuple[float, int] | None]:
    """(duration, sampling rate) of each file; None where it is not sound."""
    import soundfile

    def read(path: Path) -> tuple[float, int] | None:
        try:
            info = soundfile.info(str(path))
        except soundfile.SoundFileError:
            return None
        return (info.duration, info.samplerate) if info.frames else None

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(read, paths))


def read_descriptions(path: Path, external_metadata_source: str | os.PathLike | None = None) -> list[str]:
    """The alternative descriptions of a sound file in AudioCraft's layout, empty where its description is null.

    They are the "description" (a string or a list) of the `.json` file beside it or, if there is none, of the one of
    the same name in `external_metadata_source`.

    Raises:
        ValueError: There is no such file, or no "description" in it.
    """
    source = _find_beside(path, ".json", external_metadata_source)
    try:
        description = json.loads(source.read_text(encoding="utf-8"))["description"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f'{source}: expected a JSON object with a "description"') from error
    alternatives = description if isinstance(description, list) else [description]
    return [text.strip() for text in alternatives if isinstance(text, str) and text.strip()]


def _texts_of(path: Path, text_from: str, external: str | os.PathLike | None) -> list[str]:
    if text_from == "json":
        texts = read_descriptions(path, external)
    elif text_from == "txt":
        lines = _find_beside(path, ".txt", external).read_text(encoding="utf-8").splitlines()
        texts = [line.strip() for line in lines if line.strip()]
    else:
        words = re.split(r"[\s_-]+", path.stem if text_from == "name" else path.parent.name)
        while len(words) > 1 and words[-1].isdigit():  # the number of a take
            words.pop()
        texts = [" ".join(words)]
    if not texts:
        raise ValueError(f"no text for {path} in its .{text_from} file")
    return texts


def _find_beside(path: Path, suffix: str, external: str | os.PathLike | None) -> Path:
    candidates = [path.with_suffix(suffix)]
    if external is not None:
        candidates.append(Path(external) / candidates[0].name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(f"no description of {path}: looked for {' and '.join(map(str, candidates))}")


def _write_readable(entries: list[dict], paths: list[Path], headers: list, output: Path) -> tuple[int, list[Path]]:
    unreadable = [path for path, header in zip(paths, headers, strict=True) if header is None]
    if not entries:
        raise ValueError(f"none of the {len(unreadable)} sound files can be read")
    temporary = output.with_name(f"{output.name}.tmp")
    opener = gzip.open if output.suffix == ".gz" else open
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with opener(temporary, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        temporary.replace(output)
    except OSError as error:
        raise ValueError(f"output {output} cannot be written: {error}") from error
    return len(entries), unreadable
