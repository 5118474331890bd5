"""The comparison of precisions runs on real clips and finds what it must."""

import json
import subprocess
import sys
from pathlib import Path

from testing_utils import CHECKPOINT, FIXTURES, TEXT_ENCODER

SCRIPT = Path(__file__).parents[1] / "utils" / "benchmark_precision.py"


def test_packed_float32_changes_nothing_and_int4_most():
    command = [sys.executable, SCRIPT, "--model", CHECKPOINT, "--text-encoder", TEXT_ENCODER]
    command += ["--sounds", FIXTURES / "sounds" / "valid", "--seconds", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(result.stdout.strip().splitlines()[-1])
    same = {row["precision"]: row["same_likeliest_code"] for row in report["rows"]}
    assert report["clips"] == 2
    assert same["float32"] == 1.0
    assert 1.0 >= same["int8"] > same["int4"] > 0.8
    assert all(abs(row["change"]) < 0.05 for row in report["rows"])
