"""Everything that needs a GPU, in order of worth, each stage with a time limit of its own.

    benchmarks/gpu.sh [--seconds 480] [--text FILE]                 all stages, and the table of them
    benchmarks/gpu.sh --device cpu --preset nano --seconds 90       does the script run? Small, without a GPU
    python benchmarks/gpu.py table DIR                              the table, from the JSONs in DIR

Every stage is a process (`gpu_stages/`) that writes STAGE.json whole after every row; one that exceeds its
limit is ended, and keeps what it has. Time that a stage leaves over goes to the last one. The exit status is
1 where a row or a stage failed, not where time was short.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from gpu_stages.record import Record, driver, failures
from gpu_stages.table import table_of
from gpu_stages.training import many_graphs

from lowrise.console import Console
from lowrise.errors import LowriseError, UsageError
from lowrise.files import write_whole
from lowrise.methods import METHODS

# Stage -> largest share of all seconds; the last one has what is left.
SHARES = {"tests": 0.10, "methods": 0.32, "mfu": 0.22, "steps": 0.10, "fsdp": 0.08, "text": 1.0}
MOST_TEXT = 60 * 2**20
GRACE = 0.1  # of a stage's time, between the last row that may begin and the end of the process


def main() -> int:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that stages end with this process
    try:
        if options.command == "table":
            print(table_of(options.folder))
            return 0
        if options.command == "stage":
            return stage(options)
        return run(options)
    except LowriseError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("folder", type=Path)
    for name in ("run", "stage"):
        command = commands.add_parser(name)
        command.add_argument("--device", default="cuda")
        command.add_argument("--preset", default="60m", help="60m goes on to 350m and 1b where sizes count")
        command.add_argument("--seconds", type=float, default=480.0, help="for all stages together")
        command.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu")
        command.add_argument("--text", type=Path, default=None, help="a text file of at most 60 MiB")
        command.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
        command.add_argument("--only", nargs="+", default=list(SHARES), choices=SHARES, metavar="STAGE")
        command.add_argument(
            "--compile",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="compile blocks (default: on a GPU)",
        )
        if name == "stage":
            command.add_argument("name", choices=[*SHARES, "prepare"])
            command.add_argument("--until", type=float, required=True, help="no row begins after this time")
            command.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    if options.command != "table" and options.compile is None:
        options.compile = options.device != "cpu"
    return options


def run(options: argparse.Namespace) -> int:
    """All stages, one after the other; text is prepared beside them."""
    from lowrise.runs.environment import choose_device, describe

    began, console = time.time(), Console()
    device = choose_device(options.device)
    if options.text is not None and not (
        options.text.is_file() and 0 < options.text.stat().st_size <= MOST_TEXT
    ):
        raise UsageError(
            f"--text {options.text} is no file, empty, or larger than 60 MiB: give one that is not."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    for old in (f"{name}.json" for name in options.only):
        (options.out / old).unlink(missing_ok=True)
    facts = describe(device) | {"driver": driver(), "options": told(options)}
    write_whole(options.out / "environment.json", json.dumps(facts, indent=1) + "\n")
    failed = False
    with tempfile.TemporaryDirectory(prefix="lowrise-gpu-") as work:
        preparing = (
            start(options, "prepare", began + options.seconds, work) if "text" in options.only else None
        )
        try:
            for name in options.only:
                limit = min(SHARES[name] * options.seconds, began + options.seconds - time.time())
                console.print(
                    f"[{time.time() - began:4.0f} s] {name}: at most {max(limit, 0):.0f} s", markup=False
                )
                failed |= not ended_well(options, name, limit, work)
                write_whole(options.out / "table.md", table_of(options.out))
        finally:
            if preparing is not None:
                end(preparing)
    print(table_of(options.out))
    wrong = failures(options.out, options.only)
    for line in wrong:
        console.print(f"failed: {line}", style="red", markup=False, soft_wrap=True)
    return int(failed or bool(wrong))


def ended_well(options: argparse.Namespace, name: str, limit: float, work: str) -> bool:
    """Run one stage within `limit` seconds; one that has none left is left out, and one that is ended by its
    limit has not failed."""
    if limit < 1:
        return True
    process = start(options, name, time.time() + (1 - GRACE) * limit, work)
    try:
        return process.wait(limit) == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: ended after {limit:.0f} s; what it has measured is kept.", flush=True)
        return True
    finally:
        end(process)


def start(options: argparse.Namespace, name: str, until: float, work: str) -> subprocess.Popen[bytes]:
    arguments = [
        f"--{key}={value}" for key, value in told(options).items() if key in ("device", "preset", "text")
    ]
    arguments += [f"--out={options.out}", "--compile" if options.compile else "--no-compile"]
    arguments += ["--until", str(until), "--work", work, "--methods", *options.methods]
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "true"}
    return subprocess.Popen(
        [sys.executable, __file__, "stage", name, *arguments], env=environment, start_new_session=True
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """The stage and what it has started (compile workers, pytest)."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stage(options: argparse.Namespace) -> int:
    """In the process of a stage; what ends it is in its JSON too."""
    module = importlib.import_module(f"gpu_stages.{options.name}")
    record = Record(options.out / f"{options.name}.json", options.until)
    if options.compile:
        many_graphs()
    try:
        module.run(options, record)
    except Exception as error:
        record.note(error=f"{type(error).__name__}: {error}"[:600])
        raise
    return 0


def told(options: argparse.Namespace) -> dict[str, str]:
    """Options as plain words, without those that were left out."""
    return {key: str(value) for key, value in vars(options).items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
