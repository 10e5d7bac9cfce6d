"""Seconds until `--help` is printed, including the start of the process (`tox -e perf`). They should stay under 0.5."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_help(benchmark):
    words = [sys.executable, "-m", "benchmark", "--help"]
    benchmark.pedantic(subprocess.run, (words,), {"cwd": ROOT, "capture_output": True, "check": True}, rounds=10)
