"""docs/extending.md: what its layer gets by being in the table is what every layer gets."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from doc_pages import ROOT


def test_the_example_s_layer_keeps_every_contract() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "extending_page", "-k", "scaled"]
    done = subprocess.run(
        [*command, "tests/contracts/test_layers.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20
