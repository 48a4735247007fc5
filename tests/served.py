"""`lowrise serve` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
LOWRISE = [sys.executable, "-m", "lowrise"]


def start_server(*words: str) -> tuple[subprocess.Popen[str], str]:
    """The process of `lowrise serve WORDS` at a free port, and its address."""
    pytest.importorskip("uvicorn")
    process = subprocess.Popen(
        [*LOWRISE, "serve", *words, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+/v1", line):
            return process, found[0]
    raise AssertionError(process.communicate()[1])


@contextmanager
def serving(*words: str) -> Iterator[str]:
    """The address of a server that ends with the block, by Ctrl-C and without a traceback."""
    process, url = start_server(*words)
    try:
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
