"""What the command does to the C library's allocator, and when it leaves it alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowrise import allocator
from lowrise.allocator import keep_freed_memory
from lowrise.cli import main
from lowrise.errors import UsageError

GLIBC = allocator._has_glibc()
# Frees and takes 4 MiB blocks again and again, as a training step does with its activations, and counts page
# faults. The package's own __init__ is left out: it would import torch.
CHURN = """
import resource, sys, types
package = types.ModuleType("lowrise")
package.__path__ = [sys.argv[1]]
sys.modules["lowrise"] = package
from lowrise.allocator import keep_freed_memory
done = keep_freed_memory()
def work():
    blocks = [bytearray(b"x") * (4 << 20) for _ in range(12)]
    return sum(block[0] for block in blocks)
for _ in range(3): work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): work()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def churn(**environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", CHURN, str(Path(allocator.__file__).parent)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    answer, faults = done.stdout.split()
    return answer, int(faults)


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
def test_memory_that_a_step_frees_is_kept_unless_the_user_says_otherwise() -> None:
    kept, faults = churn()
    assert kept == "True"
    assert faults < 1_000, "a block each at most"
    left, more = churn(LOWRISE_ALLOCATOR="system")
    assert left == "False"
    assert more > 10_000, "10 rounds of 12 blocks of 1,024 pages, but for what the heap kept"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOWRISE_ALLOCATOR", "system"),
        ("MALLOC_TRIM_THRESHOLD_", "1000"),
        ("GLIBC_TUNABLES", "glibc.malloc.top_pad=1"),
        ("LD_PRELOAD", "libjemalloc.so.2"),
    ],
)
def test_settings_of_the_user_are_left_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda *_: pytest.fail("the allocator was touched"))
    assert not keep_freed_memory()


def test_nothing_happens_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOWRISE_ALLOCATOR", "GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda *_: object())
    assert not keep_freed_memory()


def test_an_unknown_choice_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOWRISE_ALLOCATOR", "jemalloc")
    with pytest.raises(UsageError, match=r"'jemalloc'.*keep or system"):
        keep_freed_memory()
    assert main(["methods"]) == 2
    assert "LOWRISE_ALLOCATOR" in capsys.readouterr().err
