"""Checkpoint folders are whole or absent, the newest whole one is found, and the best one outlives rotation."""

import json
import logging

import pytest

from audiogen_hf.training.checkpointing import (
    atomic_folder,
    best_checkpoint,
    find_checkpoint,
    list_checkpoints,
    read_checkpoint,
    rotate_checkpoints,
    write_checkpoint,
)


def write(output_dir, step, loss=None):
    with write_checkpoint(output_dir, step, {} if loss is None else {"loss": loss}, {"seen": 0.1 * step}) as folder:
        (folder / "weights.bin").write_bytes(b"x" * 1000)
        (folder / "nested").mkdir()
        (folder / "nested" / "optimizer.bin").write_bytes(b"y" * 10)


def test_a_written_checkpoint_reads_back_with_its_step_metrics_and_state(tmp_path):
    write(tmp_path, 7, loss=0.25)
    checkpoint = read_checkpoint(tmp_path / "checkpoint-7")
    assert (checkpoint.step, checkpoint.metrics, checkpoint.state) == (7, {"loss": 0.25}, {"seen": 0.1 * 7})


def test_a_checkpoint_interrupted_while_written_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_checkpoint(tmp_path, 1) as folder:
        (folder / "weights.bin").write_bytes(b"x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_of_a_killed_process_is_not_a_checkpoint_and_is_replaced(tmp_path):
    (tmp_path / ".checkpoint-1.partial").mkdir()
    (tmp_path / ".checkpoint-1.partial" / "old.bin").write_bytes(b"old")
    assert list_checkpoints(tmp_path) == []
    write(tmp_path, 1)
    assert [c.step for c in list_checkpoints(tmp_path)] == [1]
    assert not (tmp_path / "checkpoint-1" / "old.bin").exists()


def test_an_atomic_folder_replaces_the_one_before_it(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / text).write_text(text)
    assert [f.name for f in (tmp_path / "model").iterdir()] == ["second"]
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("damage", ["shorter", "missing", "no manifest", "broken manifest"])
def test_a_checkpoint_cut_short_gives_way_to_the_one_before_it_with_a_warning(tmp_path, caplog, damage):
    write(tmp_path, 5)
    write(tmp_path, 10)
    broken = tmp_path / "checkpoint-10"
    if damage == "shorter":
        (broken / "weights.bin").write_bytes(b"x" * 999)
    elif damage == "missing":
        (broken / "nested" / "optimizer.bin").unlink()
    elif damage == "no manifest":
        (broken / "checkpoint.json").unlink()
    else:
        (broken / "checkpoint.json").write_text('{"step": 10, "fil')
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("latest", tmp_path).step == 5
        assert find_checkpoint(broken, tmp_path).step == 5
    assert "checkpoint-10 is no complete checkpoint" in caplog.text


def test_latest_is_by_number_not_by_name_and_none_in_a_new_run(tmp_path):
    assert find_checkpoint("latest", tmp_path) is None
    assert find_checkpoint(None, tmp_path) is None
    for step in (100, 20, 3):
        write(tmp_path, step)
    assert find_checkpoint("latest", tmp_path).step == 100


def test_a_path_without_a_usable_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="resume_from_checkpoint: no folder at"):
        find_checkpoint(tmp_path / "checkpoint-3", tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match=r"has no checkpoint.json, and there is no complete one before it"):
        find_checkpoint(tmp_path / "checkpoint-3", tmp_path)


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step, loss in [(1, 0.9), (2, 0.1), (3, float("nan")), (4, 0.5), (5, 0.4)]:
        write(tmp_path, step, loss)
    rotate_checkpoints(tmp_path, keep=2, metric="loss")
    assert [c.step for c in list_checkpoints(tmp_path)] == [2, 4, 5]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_best_checkpoint_has_a_finite_metric_and_is_the_earliest_of_equals(tmp_path):
    for step, loss in [(1, float("nan")), (2, 0.5), (3, 0.5), (4, None)]:
        write(tmp_path, step, loss)
    checkpoints = list_checkpoints(tmp_path)
    assert best_checkpoint(checkpoints, "loss").step == 2
    assert best_checkpoint(checkpoints, "loss", greater_is_better=True).step == 2
    assert best_checkpoint(checkpoints, "other") is None


def test_the_manifest_lists_every_file_with_its_size(tmp_path):
    write(tmp_path, 1)
    manifest = json.loads((tmp_path / "checkpoint-1" / "checkpoint.json").read_text())
    assert manifest["files"] == {"nested/optimizer.bin": 10, "weights.bin": 1000}
