"""The tests marked `gpu`, where pytest is installed."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

from .record import Record

ROOT = Path(__file__).resolve().parents[2]


def run(options: argparse.Namespace, record: Record) -> None:
    if importlib.util.find_spec("pytest") is None:
        record.note(skipped="pytest is not installed")
        return
    if options.device == "cpu":
        record.note(skipped="no GPU")
        return
    with record.row("tests marked gpu") as row:
        files = [
            str(p) for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text("utf-8")
        ]
        # An unknown option of pytest.ini (the timeout of a plugin that may be absent) is a warning.
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        lines = ended.stdout.strip().splitlines()
        row |= {"passed": ended.returncode == 0, "last_line": lines[-1] if lines else ended.stderr[-300:]}
        if ended.returncode:
            row["output"] = ended.stdout[-4000:]
