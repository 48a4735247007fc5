"""Passes of one optimizer step: what each operation reads and writes, and at which part of `copy_`'s rate.

Weights and gradients are those of `paired_steps.py`. A dispatch mode times every operation of a step and
counts the bytes of the tensors that go in and come out; the rate of `copy_` is measured in the same run
between two tensors of a chunk's size, which the step works on at a time, and between two that no cache holds.
Processor time, medians over steps.

Under a dispatch mode all steps go by torch's operations. `--form native` times the functions in C++ that
SCALE, SinkGD and GWT call instead on a CPU; their bytes are those of a pass over each tensor, read and, where
it is, written (SinkGD's scales: 1 + iters passes over the gradient).

    python benchmarks/passes.py [--only scale sinkgd gwt] [--form torch] [--rounds 15] [--output NAME]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from typing import Any

import torch
from common import publish, show
from paired_steps import ROWS, fastest, optimizer_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowrise.allocator import keep_freed_memory
from lowrise.linalg import passes as native

CHUNK = 1 << 19


class Passes(TorchDispatchMode):
    """Seconds and bytes of each operation, by name, in the order of its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.process_time()
        result = func(*args, **(kwargs or {}))
        taken = time.process_time() - started
        if not func.is_view:
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            written = [] if made and any(made[0] is x for x in given) else made
            schema = zip(func._schema.arguments, args, strict=False)
            written += [
                x
                for argument, value in schema
                if argument.is_write
                for x in tree_leaves(value)
                if isinstance(x, Tensor)
            ]
            name = str(func.overloadpacket).removeprefix("aten.")
            self.seconds[name] += taken
            self.bytes[name] += sum(x.numel() * x.itemsize for x in [*given, *written])
        return result


# What each function in C++ writes.
WRITTEN = {
    "scaled_update": "W",
    "normalized_rows": "WM",
    "normalized_columns": "W",
    "sinkhorn": "rc",
    "haar_moments": "MV",
    "haar_update": "W",
}


class NativePasses(AbstractContextManager["NativePasses"]):
    """Seconds and bytes of each function in C++, likewise."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)

    def __enter__(self) -> NativePasses:
        self.plain = run = native.Passes._run

        def timed(passes: Any, name: str, tensors: dict[str, list[Tensor]], *numbers: Any) -> None:
            started = time.process_time()
            run(passes, name, tensors, *numbers)
            self.seconds[name] += time.process_time() - started
            for key, same in tensors.items():
                times = 1 + (key in WRITTEN[name])
                if name == "sinkhorn" and key == "G":
                    times = 1 + int(numbers[0])
                self.bytes[name] += times * sum(x.numel() * x.itemsize for x in same)

        native.Passes._run = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        native.Passes._run = self.plain  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="60m")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=["scale", "sinkgd", "gwt", "stablespam"])
    parser.add_argument("--form", choices=("torch", "native"), default="torch")
    parser.add_argument("--output", default="", help="name under results/; none: print only")
    options = parser.parse_args()
    keep_freed_memory()
    rates = {"a chunk": copies_per_second(CHUNK), "no cache": copies_per_second(1 << 25)}
    print(", ".join(f"copy_ of {name}: {rate / 1e9:.1f} GB/s" for name, rate in rates.items()))
    rows = []
    for name in (n for n in ROWS if n in options.only):
        rows += passes_of(name, options, rates["a chunk"])
    columns = ("step", "operation", "us", "MB", "GB/s", "of copy_")
    title = (
        f"{options.preset}, one block: passes of a step, copy_ of a chunk {rates['a chunk'] / 1e9:.1f} GB/s"
    )
    if options.output:
        publish(options.output, title, columns, rows, {"copy": rates}, torch.device("cpu"))
    else:
        show(title, columns, rows)


def copies_per_second(elements: int) -> float:
    """Bytes read and written by `copy_`."""
    x, y = torch.randn(elements), torch.empty(elements)
    return 8 * elements / fastest(lambda: y.copy_(x))


def passes_of(name: str, options: argparse.Namespace, copy: float) -> list[tuple[str, ...]]:
    """Operations that take a hundredth of a step or more; "other" has the embeddings' AdamW and the rest."""
    optimizer = optimizer_of(name, options.preset, options.rank)
    found = []
    for round_ in range(options.rounds + 2):
        with Passes() if options.form == "torch" else NativePasses() as passes:
            optimizer.step()
        if round_ >= 2:
            found.append(passes)
    seconds = {key: statistics.median(p.seconds[key] for p in found) for key in found[0].seconds}
    whole = sum(seconds.values())  # of what was timed
    rows = []
    for key, taken in seconds.items():
        if taken >= whole / 100:
            moved = found[0].bytes[key]
            rate = moved / taken
            rows.append(
                (
                    name,
                    key,
                    f"{1e6 * taken:.0f}",
                    f"{moved / 1e6:.1f}",
                    f"{rate / 1e9:.1f}",
                    f"{rate / copy:.2f}",
                )
            )
    rows.append((name, "all", f"{1e6 * whole:.0f}", "", "", ""))
    return rows


if __name__ == "__main__":
    main()
