"""Peak memory and time of an update on a CPU: Llama of lowrise, dense and low-rank, by kind of recomputation,
beside transformers' Llama with torch's fused AdamW, the same batch, float32.

Every row is a process of its own and makes its updates in turn with one of transformers. The peak is that of
tensors (the allocator's records of one update, over weights and state) and that of the process (its largest
resident size, less that before the model was built). Seconds are processor time, ratios medians over rounds.

Rows that the file of results has from before are kept where options are the same, so `--cases` may go part by
part.

    python benchmarks/training_memory.py [--preset 60m] [--sequences 16] [--seq-len 256] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, publish
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lowrise.config import load
from lowrise.model import LlamaConfig, next_token_loss
from lowrise.runs.build import build_optimizer, model_from
from lowrise.runs.planner import Planned

MIB = 1 << 20
RANKS = {"nano": 16, "tiny": 32, "60m": 128, "130m": 256, "350m": 256}
PEER = "transformers none"
CASES = ("adamw none", "adamw block", "lowrank none", "lowrank block", "lowrank latents")
VOCABULARY = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="60m", choices=RANKS)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    about = {key: getattr(options, key) for key in ("preset", "sequences", "seq_len", "rounds")}
    name = f"training_memory_{options.preset}_cpu"
    measured = kept_rows(RESULTS / f"{name}.json", about)
    for case in options.cases:
        measured[case] = in_turn(case, options)
        report({c: measured[c] for c in CASES if c in measured}, name, about, options)


def report(measured: dict[str, Any], name: str, about: dict[str, Any], options: argparse.Namespace) -> None:
    rows = [row_of(case, *pair, options) for case, pair in measured.items()]
    peer = next(iter(measured.values()))[1]
    rows.insert(0, row_of(PEER, peer, peer, options))
    columns = (
        "model",
        "recompute",
        "peak MiB",
        "of peer",
        "planned/peak",
        "RSS MiB",
        "of peer",
        "s",
        "of peer",
    )
    title = (
        f"{options.preset}, {options.sequences} x {options.seq_len} tokens, float32, {VOCABULARY:,} entries, "
        "AdamW: peak memory of an update and its processor time"
    )
    record = {"options": about, "measured": measured}
    publish(name, title, columns, rows, record, torch.device("cpu"))


def kept_rows(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return dict(before["measured"]) if before.get("options") == about else {}


def row_of(
    case: str, own: dict[str, Any], peer: dict[str, Any], options: argparse.Namespace
) -> tuple[str, ...]:
    name, recompute = case.split()
    ratio = statistics.median(a / b for a, b in zip(own["seconds"], peer["seconds"], strict=True))
    plan = f"{planned(case, options) / own['peak']:.3f}" if case != PEER else "-"
    return (
        name,
        recompute,
        f"{own['peak'] / MIB:,.0f}",
        f"{own['peak'] / peer['peak']:.2f}",
        plan,
        f"{own['resident'] / MIB:,.0f}",
        f"{own['resident'] / peer['resident']:.2f}",
        f"{statistics.median(own['seconds']):.2f}",
        f"{ratio:.2f}",
    )


def in_turn(case: str, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a row's process and the peer's tell: `seconds` of each round, `peak` and `resident` in bytes."""
    arguments = [f"--{k.replace('_', '-')}={getattr(options, k)}" for k in ("preset", "sequences", "seq_len")]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments, f"--worker={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for name in (case, PEER)
    ]

    def ask(worker: subprocess.Popen[str], what: str) -> dict[str, Any]:
        assert worker.stdin is not None
        assert worker.stdout is not None
        print(what, file=worker.stdin, flush=True)
        return dict(json.loads(worker.stdout.readline()))

    told: tuple[dict[str, Any], ...] = ({"seconds": []}, {"seconds": []})
    for number in range(options.rounds + 1):
        for worker, kept in zip(workers, told, strict=True):
            seconds = ask(worker, "update")["seconds"]
            if number:  # the first one warms up
                kept["seconds"].append(seconds)
    for worker, kept in zip(workers, told, strict=True):
        kept |= ask(worker, "memory")
        worker.communicate()
    return told[0], told[1]


def work(options: argparse.Namespace) -> None:
    """A row's process: one line of JSON for each line of standard input."""
    torch.set_num_threads(1)
    before = resident()
    update, held = transformers_update(options) if options.worker == PEER else own_update(options)
    for line in sys.stdin:
        if line.strip() == "update":
            started = time.process_time()
            update()
            told = {"seconds": time.process_time() - started}
        else:
            largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            told = {"resident": largest - before, "peak": held() + most_allocated(update)}
        print(json.dumps(told), flush=True)


def config_of(case: str, options: argparse.Namespace) -> Any:
    method, recompute = case.split()
    values: dict[str, Any] = {
        "method": method,
        "model.preset": options.preset,
        "model.recompute": recompute,
        "train.seq_len": options.seq_len,
        "train.global_batch_size": options.sequences,
    }
    if method != "adamw":
        values["layer.rank"] = RANKS[options.preset]
    return load(None, values)


def planned(case: str, options: argparse.Namespace) -> int:
    return Planned(config_of(case, options), VOCABULARY, on_cpu=True).on_device().peak


def own_update(options: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], int]]:
    config = config_of(options.worker, options)
    model = model_from(config, VOCABULARY, torch.device("cpu"))
    optimizer = build_optimizer(config, model)
    tokens = torch.randint(VOCABULARY, (options.sequences, options.seq_len + 1))

    def update() -> None:
        next_token_loss(model, tokens).backward()
        optimizer.step(grad_norm=1.0)
        optimizer.zero_grad()

    return update, lambda: bytes_of(model, optimizer)


def transformers_update(options: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], int]]:
    import transformers

    own = LlamaConfig.preset(options.preset, vocab_size=VOCABULARY)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=own.hidden_size,
        intermediate_size=own.intermediate_size,
        num_hidden_layers=own.num_layers,
        num_attention_heads=own.num_heads,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(VOCABULARY, (options.sequences, options.seq_len))

    def update() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update, lambda: bytes_of(model, optimizer)


def bytes_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Weights and state."""
    state = [t for values in optimizer.state.values() for t in values.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers(), *state])


def most_allocated(update: Callable[[], None]) -> int:
    """Most bytes at one time within a call, over those before it, by the allocator's own records."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        update()
    records: Any = profiler.profiler
    events = [e for e in records.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def resident() -> int:
    """Bytes of the process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
