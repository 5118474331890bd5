"""The benchmark runs on a tiny shape and reports what it says it does."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "utils" / "benchmark_generation.py"


def test_reports_every_path_beside_the_peer_and_the_limit():
    paths = ["musicgen-float32", "standard-float32", "fast-float32", "optimized-int8"]
    command = [sys.executable, SCRIPT, "--scale", "xsmall", "--paths", *paths, "--batch-sizes", "1", "2"]
    result = subprocess.run(
        [*command, "--rounds", "3", "--frames", "40", "--durations", "0.1", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=True,
    )
    *table, line = result.stdout.strip().splitlines()
    report = json.loads(line)
    assert [(row["path"], row["batch_size"]) for row in report["rows"]] == [
        (path, size) for size in (1, 2) for path in paths
    ]
    assert report["read_gb_per_s"] > 0 and report["peak_memory_gib"] > 0
    for row in report["rows"]:
        assert row["step_s"] > 0 and row["first_sound_s"] > 0 and row["real_time_factor_0.1s"] > 0
        assert 0 < row["of_limit"] < 1
        if row["path"] == "musicgen-float32":
            assert row["speedup_over_musicgen"] == 1
    assert sum(line.startswith("| ") for line in table) == 1 + len(report["rows"])
