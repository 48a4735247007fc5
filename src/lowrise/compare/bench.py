"""`lowrise bench`: the machine's own table. Every method takes the same number of updates on the same text,
in a fresh process (whose peak memory is its own), round after round; medians over all rounds.

  promise   FLOPs per token of the first method over those of this one, forward, backward and optimizer:
            the speed-up that the arithmetic promises
  kept      the measured ratio of tokens per second over the promise
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lowrise.compare.bench_options import BenchOptions
from lowrise.config import RunConfig, load
from lowrise.console import Console, narrow_table
from lowrise.data import Corpus
from lowrise.data.progress import prepare_with_progress
from lowrise.distributed import World
from lowrise.errors import LowriseError
from lowrise.files import strict_json, write_whole
from lowrise.report.formatting import UNKNOWN, bytes_, milliseconds, number, si
from lowrise.runs.environment import choose_device, describe, peak_memory_bytes
from lowrise.train.step import TrainStep

WARM_UP = 2
"""Updates before those that are measured: state, caches and the allocator settle."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One method's numbers in one round."""

    seconds: list[float]
    """Of every measured update."""
    optimizer_seconds: list[float]
    """The optimizer's part of them; empty where it is spread over the backward pass."""
    tokens: int
    """Of an update."""
    flops: float
    """Of an update, the optimizer's included."""
    peak_memory: int
    params: int
    state: int
    """Bytes of optimizer state."""


def measure(overrides: dict[str, Any], steps: int) -> Measured:
    """`steps` updates of the run with these settings, in this process."""
    config = load(None, overrides)
    step = TrainStep(config, _corpus(config), World(), notice=_silent, say=_silent)
    for _ in range(WARM_UP):
        step()
    step.optimizer_ms.clear()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    plan = step.plan
    return Measured(
        seconds=seconds,
        optimizer_seconds=[ms / 1000 for ms in step.optimizer_ms],
        tokens=plan.tokens_per_step,
        flops=plan.train_flops / plan.steps,
        peak_memory=peak_memory_bytes(step.device),
        params=plan.params_total,
        state=step.optimizer.state_bytes(),
    )


def _silent(text: str, style: str | None = None) -> None:
    pass


def _corpus(config: RunConfig) -> Corpus:
    return prepare_with_progress(config.data, Console(quiet=True))


def bench(options: BenchOptions, console: Console) -> dict[str, Any]:
    """Measure, and return the rows with the facts of the machine. A method that fails has `error` instead of
    numbers.
    """
    options.check()
    runs = {name: options.overrides(name) for name in options.names}
    configs = {name: load(None, overrides) for name, overrides in runs.items()}  # what is wrong is said now
    _prepare(configs, console)
    found: dict[str, list[Measured]] = defaultdict(list)
    errors: dict[str, str] = {}
    for turn in range(1, options.rounds + 1):
        for name, overrides in runs.items():
            if name in errors:
                continue
            try:
                found[name].append(_in_a_process(overrides, options.steps))
            except LowriseError as error:
                errors[name] = str(error)
            if console.is_terminal:
                console.print(f"round {turn} of {options.rounds}  {name}", soft_wrap=True)
    first = options.names[0]
    rows = [_row(name, found.get(name, []), errors.get(name), found.get(first, [])) for name in runs]
    config = configs[first]
    return {
        "preset": options.preset,
        "tokens_per_update": config.train.global_batch_size * config.train.seq_len,
        "steps": options.steps,
        "rounds": options.rounds,
        "settings": list(options.set),
        "rows": rows,
        "environment": describe(choose_device(config.train.device), 1),
    }


def _prepare(configs: dict[str, RunConfig], console: Console) -> None:
    """The corpora once, so that no measurement waits for them."""
    for data in {repr(config.data): config.data for config in configs.values()}.values():
        prepare_with_progress(data, console)


def _in_a_process(overrides: dict[str, Any], steps: int) -> Measured:
    """`measure` in a fresh process; its failure as a `LowriseError`."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(measure, overrides, steps).result()
    except BrokenProcessPool:
        raise LowriseError("its process was killed, perhaps for memory") from None
    except LowriseError:
        raise
    except Exception as error:  # a kernel's, an allocator's: one method less, not the end of the table
        raise LowriseError(f"{type(error).__name__}: {str(error)[:200]}") from None


def _row(name: str, rounds: list[Measured], error: str | None, first: list[Measured]) -> dict[str, Any]:
    if error is not None or not rounds:
        return {"method": name, "error": error}
    one = rounds[0]
    seconds = statistics.median(s for measured in rounds for s in measured.seconds)
    of_optimizer = [s for measured in rounds for s in measured.optimizer_seconds]
    row: dict[str, Any] = {
        "method": name,
        "tokens_per_second": one.tokens / seconds,
        "step_ms": 1000 * seconds,
        "optimizer_ms": 1000 * statistics.median(of_optimizer) if of_optimizer else None,
        "peak_memory_bytes": max(measured.peak_memory for measured in rounds),
        "state_bytes": one.state,
        "params_total": one.params,
        "flops_per_update": one.flops,
        "speed": None,
        "promise": None,
        "kept": None,
        "seconds": [measured.seconds for measured in rounds],
    }
    if first:
        base = statistics.median(s for measured in first for s in measured.seconds)
        speed = (one.tokens / seconds) / (first[0].tokens / base)
        promise = (first[0].flops / first[0].tokens) / (one.flops / one.tokens)
        row |= {"speed": speed, "promise": promise, "kept": speed / promise}
    return row


# ---- what is shown

_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("tokens_per_second", "tok/s", si),
    ("step_ms", "step", milliseconds),
    ("optimizer_ms", "optim.", milliseconds),
    ("peak_memory_bytes", "peak", bytes_),
    ("state_bytes", "state", bytes_),
    ("speed", "speed", lambda value: number(value, 2)),
    ("promise", "promise", lambda value: number(value, 2)),
    ("kept", "kept", lambda value: f"{100 * value:.0f}%"),
)


def cells_of(result: dict[str, Any]) -> list[list[str]]:
    """The table as text, its header first."""
    lines = [["method", *(title for _, title, _ in _COLUMNS)]]
    for row in result["rows"]:
        values = (row.get(key) for key, _, _ in _COLUMNS)
        shown = [UNKNOWN if v is None else show(v) for v, (_, _, show) in zip(values, _COLUMNS, strict=True)]
        lines.append([row["method"], *shown])
    return lines


def show(result: dict[str, Any], console: Console) -> None:
    header, *lines = cells_of(result)
    table = narrow_table()
    table.add_column(header[0], no_wrap=True)
    for title in header[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for text in _notes(result):
        console.print(text, soft_wrap=True)


def to_markdown(result: dict[str, Any]) -> str:
    header, *lines = cells_of(result)
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n" + "\n".join(f"{text}  " for text in _notes(result)) + "\n"


def _notes(result: dict[str, Any]) -> list[str]:
    facts, first = result["environment"], result["rows"][0]["method"]
    where = facts["processor"] if facts["device"] == "cpu" else facts["device"]
    settings = f", {' '.join(result['settings'])}" if result["settings"] else ""
    notes = [
        f"{result['preset']}, {result['tokens_per_update']:,} tokens per update{settings}; medians of "
        f"{result['rounds']} x {result['steps']} updates; {where}, {facts['threads']} thread(s), "
        f"torch {facts['packages']['torch']}, lowrise {facts['lowrise']}",
        f"speed, promise: by tokens per second and by FLOPs, beside {first}; kept: the one over the other; "
        "peak: of the process",
    ]
    return notes + [f"{row['method']}: {row['error']}" for row in result["rows"] if row.get("error")]


def write(result: dict[str, Any], path: Path) -> None:
    """The table as Markdown, and the numbers beside it as JSON."""
    write_whole(path, to_markdown(result))
    write_whole(path.with_suffix(".json"), strict_json(result, indent=1) + "\n")
