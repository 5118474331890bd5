"""The benchmark runs on tiny shapes, random and real, and reports what it says it does."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from testing_utils import tiny_config, tiny_model

SCRIPT = Path(__file__).parents[1] / "utils" / "benchmark_generation.py"


def run_benchmark(*args) -> tuple[list[str], dict]:
    """The printed tables and the report."""
    command = [sys.executable, SCRIPT, "--device", "cpu", "--rounds", "1", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *tables, line = result.stdout.strip().splitlines()
    return tables, json.loads(line)


def test_reports_every_path_beside_the_peer_and_the_limit():
    paths = ["musicgen-float32", "standard-float32", "optimized-int8"]
    tables, report = run_benchmark(
        "--scale", "xsmall", "--paths", *paths, "--batch-sizes", 1, 2, "--frames", 20, "--durations", 1, 30
    )
    assert [row["path"] for row in report["alone"]] == paths
    for row in report["alone"]:
        assert row["load_s"] > 0 and row["first_sound_after_load_s"] > 0 and 0 < row["peak_memory_gib"] < 2
    assert [(row["path"], row["batch_size"]) for row in report["rows"]] == [
        (path, size) for size in (1, 2) for path in paths
    ]
    assert report["read_gb_per_s"] > 0
    for row in report["rows"]:
        assert row["first_sound_s"] > 0 and row["limit_s"] >= 0
        assert row["durations"] == "estimated from 60 steps"
        for seconds in (1, 30):
            factor = row[f"{seconds}_s_of_sound_s"] / (seconds * row["batch_size"])
            assert row[f"real_time_factor_{seconds}s"] == pytest.approx(factor, abs=2e-3)
        if row["path"] == "musicgen-float32":
            assert row["speedup_over_musicgen"] == 1
    assert sum("-float32 |" in line or "-int8 |" in line for line in tables) == 3 + 6


def test_a_model_in_a_folder_is_timed_whole(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    paths = ["musicgen-float32", "fast-float32"]
    _tables, report = run_benchmark("--model", tmp_path, "--paths", *paths, "--frames", 10, "--durations", 0.5)
    assert [row["durations"] for row in report["rows"]] == ["measured whole"] * 2
    assert all(row["real_time_factor_0.5s"] > 0 for row in report["rows"])


def test_a_path_that_is_none_is_refused_in_a_line():
    result = subprocess.run([sys.executable, SCRIPT, "--paths", "fast-int4"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("got 'fast-int4'")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_generation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("frames, expected", [(40, [(0, 40)]), (50, [(0, 50)]), (80, [(0, 50), (25, 50), (25, 30)])])
def test_windows_are_those_of_generate(benchmark, frames, expected):
    # Windows of 1 s, 50 frames, move by half a second.
    config = tiny_config()
    assert benchmark.windows_of(benchmark.Contender("fast-float32", None), frames, config) == expected
    assert benchmark.windows_of(benchmark.Contender("musicgen-float32", None), frames, config) == [(0, frames)]
    offsets = list(tiny_model()._window_offsets(0, frames, 50, 25))
    assert len(offsets) == len(expected)


def test_an_estimate_adds_up_steps_that_grow_and_the_prompts_of_windows(benchmark):
    contender = benchmark.Contender("fast-float32", None, step_seconds=[2.0], first_sound=[7.0])
    growth = benchmark.Growth(step_seconds_a_column=0.1, prompt_seconds_a_column=0.01, steps=1)
    seconds = benchmark.estimate(contender, 2, 75, 10, tiny_config(), growth)
    # Steps are timed around column 5; two rows grow twice as fast as one.
    first_window = sum(2.0 + 2 * 0.1 * (column + 0.5 - 5) for column in range(50))
    second_window = sum(2.0 + 2 * 0.1 * (column + 0.5 - 5) for column in range(25, 50)) + 2 * 0.01 * 25
    assert seconds == pytest.approx(7.0 + first_window + second_window)
