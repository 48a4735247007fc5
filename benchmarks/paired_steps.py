"""Optimizer steps of two checkouts, in turn: what a change of the code did to each method's step.

Two worker processes, one a checkout, hold the same weights and gradients (one block of a preset's shapes, two
embeddings of 2,048 rows); in every round each worker takes one step of each optimizer, so that a slow minute
of the machine hits all rows of both. Seconds are processor time over all threads, medians over the rounds.
"renew" rows renew their bases at every step. Rows that a checkout does not know are left empty. Both workers
run with the allocator's settings of `lowrise train` (--allocator kept) or with the C library's own (default).

"peer" is torch's own optimizer for the same method, on the same weights. "limit" is what no float32 step can
go below on this machine, the larger of two times: gradients read once, weights and state read and written
once, at the rate of a pass in place over memory that no cache holds; the FLOPs of the method (`step_flops`,
with Newton-Schulz in its plain form) at the rate of a product of 1,024 x 1,024. Both rates are measured after
the steps.

    python benchmarks/paired_steps.py --base PATH [--preset 60m] [--rounds 15] [--only spectron muon]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS_OF_EMBEDDINGS = 2048
# name -> (class, kind of parameters, options); "torch" is torch.optim.AdamW(fused=True) on the dense weights.
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "torch AdamW fused": ("torch", "dense", {}),
    "adamw": ("AdamW", "dense", {}),
    "low-rank adamw": ("AdamW", "factors", {}),
    "spectron": ("Spectron", "factors", {}),
    "spectron certified": ("Spectron", "factors", {"variant": "certified"}),
    "loramuon": ("LoRAMuon", "factors", {}),
    "loramuon tangent": ("LoRAMuon", "factors", {"direction": "tangent"}),
    "muon": ("Muon", "dense", {}),
    "torch Muon": ("torch Muon", "dense", {}),
    "muon bfloat16": ("Muon", "dense", {"ns_dtype": "bfloat16"}),
    "muon factors": ("Muon", "factors", {}),
    "galore": ("GaLore", "dense", {}),
    "galore renew svd": ("GaLore", "dense", {"update_proj_gap": 1}),
    "galore renew warm": ("GaLore", "dense", {"update_proj_gap": 1, "projection": "warm"}),
    "fira": ("Fira", "dense", {}),
    "fira renew svd": ("Fira", "dense", {"update_proj_gap": 1}),
    "fira renew warm": ("Fira", "dense", {"update_proj_gap": 1, "projection": "warm"}),
    "apollo": ("APOLLO", "dense", {}),
    "gwt": ("GWT", "dense", {}),
    "sinkgd": ("SinkGD", "dense", {}),
    "scale": ("SCALE", "dense", {}),
    "sinkgd muon": ("SinkGD", "dense", {"target": "muon"}),
    "normuon": ("NorMuon", "dense", {}),
    "dion2": ("Dion2", "dense", {}),
    "stablespam": ("StableSPAM", "dense", {}),
    "loro lazy": ("LORO", "factors", {"exact_every": 1_000_000}),
    "loro exact": ("LORO", "factors", {"exact_every": 1}),
    "tsvd": ("TSVD", "svd", {}),
}
PEERS = {"adamw": "torch AdamW fused", "muon": "torch Muon", "muon bfloat16": "torch Muon"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="the older checkout")
    parser.add_argument("--preset", default="60m")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocator", choices=("default", "kept"), default="default")
    parser.add_argument("--only", nargs="*", default=None, help="rows whose name begins with one of these")
    parser.add_argument("--output", default="", help="name under results/; none: print only")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    names = [
        n
        for n in ROWS
        if options.only is None or n == "torch AdamW fused" or any(n.startswith(w) for w in options.only)
    ]
    workers = {"base": start(options.base, options), "new": start(ROOT, options)}
    seconds: dict[str, dict[str, list[float]]] = {side: {name: [] for name in names} for side in workers}
    for round_ in range(options.rounds + 2):  # the first two warm up
        for name in names:
            for side, worker in workers.items():
                taken = ask(worker, name)
                if round_ >= 2 and taken is not None:
                    seconds[side][name].append(taken)
    limits = {name: ask(workers["new"], f"limit of {name}") for name in names}
    for worker in workers.values():
        worker.stdin.close()  # type: ignore[union-attr]
        worker.wait()
    report(options, names, seconds, limits)


def start(checkout: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A worker on the source of a checkout."""
    threads = str(options.threads)
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": threads}
    if options.allocator == "kept":
        environment |= {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
        environment |= {"MALLOC_TOP_PAD_": "67108864"}
    arguments = ["--base", str(checkout), "--preset", options.preset, "--rank", str(options.rank)]
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ask(worker: subprocess.Popen[str], name: str) -> float | None:
    """Processor seconds of one step (of "limit of NAME": its least), None if the checkout lacks the row."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(name + "\n")
    worker.stdin.flush()
    answer = json.loads(worker.stdout.readline())
    return None if answer is None else float(answer)


def work(options: argparse.Namespace) -> None:
    """A worker: a step for every line of stdin, its processor seconds as JSON on stdout."""
    built: dict[str, Any] = {}
    rates: list[float] = []
    for line in sys.stdin:
        name = line.strip().removeprefix("limit of ")
        if name not in built:
            try:
                built[name] = optimizer_of(name, options.preset, options.rank)
            except (ImportError, AttributeError, ValueError, TypeError):
                built[name] = None
        optimizer, taken = built[name], None
        if optimizer is None:
            pass
        elif line.startswith("limit of "):
            rates = rates or [bytes_per_second(), flops_per_second()]
            taken = least_seconds(optimizer, *rates)
        else:
            started = time.process_time()
            optimizer.step()
            taken = time.process_time() - started
        print(json.dumps(taken), flush=True)


def bytes_per_second() -> float:
    """At which a pass in place reads and writes a tensor that no cache holds."""
    import torch

    x = torch.randn(1 << 25)
    return 2 * 4 * x.numel() / fastest(lambda: x.mul_(1.0))


def flops_per_second() -> float:
    """Of a product of float32 matrices of 1,024 x 1,024."""
    import torch

    x, y = (torch.randn(1024, 1024) for _ in range(2))
    return 2 * 1024**3 / fastest(lambda: x @ y)


def fastest(work: Callable[[], Any]) -> float:
    """Processor seconds of the fastest of nine calls."""
    best = float("inf")
    for _ in range(9):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def least_seconds(optimizer: Any, bandwidth: float, flops: float) -> float | None:
    """What no step of it can go below; None for bfloat16 products, and for optimizers that are not ours."""
    if not hasattr(optimizer, "step_flops") or optimizer.defaults.get("ns_dtype") == "bfloat16":
        return None
    weights = sum(p.numel() * p.itemsize for group in optimizer.param_groups for p in group["params"])
    moved = 3 * weights + 2 * optimizer.state_bytes()
    return float(max(moved / bandwidth, optimizer.step_flops() / flops))


def optimizer_of(name: str, preset: str, rank: int) -> Any:
    """The row's optimizer on weights and gradients that depend on the row alone."""
    import torch

    import lowrise.optim
    from lowrise.model import LlamaConfig

    cls, kind, extra = ROWS[name]
    config = LlamaConfig.preset(preset)
    d, f = config.hidden_size, config.intermediate_size
    shapes = [(d, d)] * 4 + [(f, d)] * 2 + [(d, f)]
    generator = torch.Generator().manual_seed(0)

    def weight(m: int, n: int) -> torch.nn.Parameter:
        p = torch.nn.Parameter(torch.randn(m, n, generator=generator) * 0.02)
        p.grad = torch.randn(m, n, generator=generator) * 1e-3
        return p

    embeddings = [weight(ROWS_OF_EMBEDDINGS, d) for _ in range(2)]
    if kind == "dense":
        claimed, role = [weight(m, n) for m, n in shapes], "matrix"
    elif kind == "factors":
        claimed, role = [weight(side, rank) for m, n in shapes for side in (m, n)], "factors"
    else:
        claimed, role = triples(shapes, rank, weight), "svd"
    if cls == "torch Muon":
        return Both(torch.optim.Muon(claimed, lr=1e-5), torch.optim.AdamW(embeddings, lr=1e-5, fused=True))
    if cls == "torch":
        return torch.optim.AdamW([*claimed, *embeddings], lr=1e-5, fused=True)
    options = {"rank": rank} if cls in ("GaLore", "Fira", "APOLLO") else {}
    groups = [{"params": claimed, "role": role}, {"params": embeddings, "role": "other"}]
    return getattr(lowrise.optim, cls)(groups, lr=1e-5, **options, **extra)


class Both:
    """Two optimizers that take their steps together."""

    def __init__(self, *optimizers: Any) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def triples(shapes: Any, rank: int, weight: Callable[[int, int], Any]) -> list[Any]:
    """U, s, V with orthonormal columns, for TSVD."""
    import torch

    params = []
    for m, n in shapes:
        U, V = weight(m, rank), weight(n, rank)
        for X in (U, V):
            X.data.copy_(torch.linalg.qr(X.data).Q)
        s = torch.nn.Parameter(torch.linspace(1.0, 0.1, rank))
        s.grad = torch.full((rank,), 1e-3)
        params += [U, s, V]
    return params


def report(
    options: argparse.Namespace,
    names: list[str],
    seconds: dict[str, dict[str, list[float]]],
    limits: dict[str, float | None],
) -> None:
    """Print the table; with --output write it as JSON and Markdown."""
    import torch
    from common import RESULTS, publish

    median = {
        side: {name: statistics.median(times) if times else None for name, times in rows.items()}
        for side, rows in seconds.items()
    }
    unit = median["new"]["torch AdamW fused"]
    table = []
    for name in names:
        old, new = median["base"][name], median["new"][name]
        shown = [f"{1e3 * value:.2f}" if value else "-" for value in (old, new)]
        ratios = [f"{new / old:.2f}" if old and new else "-", f"{new / unit:.2f}" if new else "-"]
        peer, limit = median["new"].get(PEERS.get(name, "")), limits[name]
        bounds = [f"{1e3 * peer:.2f}" if peer else "-"]
        bounds += [f"{1e3 * limit:.2f}", f"{limit / new:.2f}" if new else "-"] if limit else ["-", "-"]
        table.append((name, *shown, *ratios, *bounds))
    columns = ("step", "base ms", "new ms", "new/base", "new/AdamW fused", "peer ms", "limit ms", "limit/new")
    title = (
        f"{options.preset}, one block, rank {options.rank}: processor ms per step, "
        f"{options.threads} thread(s), allocator {options.allocator}, medians of {options.rounds} "
        "rounds in turn"
    )
    name = options.output or "paired_steps"
    kept = {key: value for key, value in vars(options).items() if key not in ("base", "worker")}
    if not options.output:
        print(title)
        for row in (columns, *table):
            print(" | ".join(row))
        return
    publish(
        name,
        title,
        columns,
        table,
        {"options": kept, "seconds": seconds, "limits": limits},
        torch.device("cpu"),
    )
    lines = [f"{title}.", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in table]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
