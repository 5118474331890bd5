"""Checkpoint folders: written whole or not at all, found again, rotated. What lies in them is the trainer's business.

A checkpoint is `OUTPUT_DIR/checkpoint-STEP/`. Its manifest, `checkpoint.json`, names every file with its size, so that
a folder cut short by a full disk or a broken copy is noticed before anything is loaded from it.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder: its place, steps taken, validation metrics and the trainer's own state."""

    path: Path
    step: int
    metrics: dict[str, float]
    state: dict


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    Every process of a distributed run enters and leaves together (the folder is on storage that they share); the main
    one creates and renames. A folder already at `path` is replaced.
    """
    path = Path(path)
    process = PartialState()
    partial = path.with_name(f".{path.name}.partial")
    replaced = path.with_name(f".{path.name}.replaced")
    if process.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    process.wait_for_everyone()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    process.wait_for_everyone()
    if process.is_main_process:
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    process.wait_for_everyone()


@contextmanager
def write_checkpoint(
    output_dir: str | Path, step: int, metrics: dict[str, float] | None = None, state: dict | None = None
) -> Iterator[Path]:
    """Yield a folder to save into; it becomes `OUTPUT_DIR/checkpoint-STEP` once everything in it is written.

    Args:
        output_dir: folder of the run.
        step: optimizer steps taken so far.
        metrics: validation metrics at this step, used to find the best checkpoint.
        state: what else a resumed run needs and JSON can hold (floats come back bit for bit).
    """
    with atomic_folder(Path(output_dir) / f"{PREFIX}{step}") as folder:
        yield folder
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            sizes = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
            manifest = {"step": step, "metrics": metrics or {}, "state": state or {}, "files": sizes}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint's manifest.

    Raises:
        ValueError: the folder is no checkpoint, or it is not complete; the message names what is missing.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path} is no complete checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sizes = manifest["files"]
        checkpoint = Checkpoint(path, manifest["step"], manifest["metrics"], manifest["state"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no complete checkpoint: its {MANIFEST} cannot be read ({error!r})") from error
    for name, size in sizes.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ValueError(f"{path} is no complete checkpoint: {name} {state}, {size} bytes were written")
    return checkpoint


def list_checkpoints(output_dir: str | Path) -> list[Checkpoint]:
    """Complete checkpoints of a run, oldest first. One that was cut short is left out, with a warning."""
    checkpoints = []
    for path in Path(output_dir).glob(f"{PREFIX}*"):
        if not path.name.removeprefix(PREFIX).isdigit():
            continue
        try:
            checkpoints.append(read_checkpoint(path))
        except ValueError as error:
            logger.warning("Left out: %s", error)
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def find_checkpoint(resume_from: str | Path | None, output_dir: str | Path) -> Checkpoint | None:
    """The checkpoint that a run resumes from.

    Args:
        resume_from: "latest", or the path of a checkpoint folder. If that folder was cut short, the newest complete
            one before it in the same run is taken, with a warning. None for a run that starts anew.
        output_dir: folder of the run, where "latest" looks.

    Returns:
        The checkpoint, or None for a run that starts anew, "latest" in one that has none yet included.

    Raises:
        ValueError: the path does not exist, or neither it nor any checkpoint before it is complete.
    """
    if resume_from is None:
        return None
    if str(resume_from) == "latest":
        checkpoints = list_checkpoints(output_dir)
        if not checkpoints:
            logger.info("No checkpoint in %s yet: starting from the beginning", output_dir)
            return None
        return checkpoints[-1]
    path = Path(resume_from)
    if not path.is_dir():
        raise ValueError(f'resume_from_checkpoint: no folder at {path}; give a checkpoint folder or "latest"')
    try:
        return read_checkpoint(path)
    except ValueError as error:
        step = path.name.removeprefix(PREFIX)
        earlier = [c for c in list_checkpoints(path.parent) if step.isdigit() and c.step < int(step)]
        if not earlier:
            raise ValueError(f"resume_from_checkpoint: {error}, and there is no complete one before it") from error
        logger.warning("%s. Resuming from the one before it, %s", error, earlier[-1].path)
        return earlier[-1]


def best_checkpoint(checkpoints: list[Checkpoint], metric: str, greater_is_better: bool = False) -> Checkpoint | None:
    """The checkpoint with the best finite value of `metric`, the earliest of equals; None where none has it."""
    scored = [c for c in checkpoints if math.isfinite(c.metrics.get(metric, math.nan))]
    sign = -1 if greater_is_better else 1
    return min(scored, key=lambda c: (sign * c.metrics[metric], c.step), default=None)


def rotate_checkpoints(output_dir: str | Path, keep: int, metric: str, greater_is_better: bool = False) -> None:
    """Remove all but the `keep` newest complete checkpoints and the best one by `metric`. Main process only."""
    checkpoints = list_checkpoints(output_dir)
    kept = checkpoints[-keep:] if keep > 0 else []
    best = best_checkpoint(checkpoints, metric, greater_is_better)
    for checkpoint in checkpoints:
        if checkpoint not in kept and checkpoint != best:
            # Renamed first, so that no half removed folder is ever found under a checkpoint's name.
            shutil.rmtree(checkpoint.path.rename(checkpoint.path.with_name(f".{checkpoint.path.name}.removed")))
