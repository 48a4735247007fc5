"""Four methods on the text, for as many tokens each as the rest of the time holds."""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import time
from pathlib import Path

from common import timed

from lowrise.config import RunConfig
from lowrise.console import Console
from lowrise.data import Corpus
from lowrise.train import RunDirectory, train

from .prepare import corpus_of, data_config
from .record import Record
from .training import config_of, is_small, train_step

METHODS = ("adamw", "muon", "lowrank", "spectron")
TRIED = 7
SHARE = 0.8  # of the time that is left is planned for updates: evaluation and saving come too
FEWEST, MOST_SMALL = 10, 200  # updates; the second for presets that show that the script runs


def run(options: argparse.Namespace, record: Record) -> None:
    corpus = corpus_of(options)
    methods = [m for m in METHODS if m in options.methods]
    tried = {method: seconds_of_updates(config_for(options, method, 100), corpus) for method in methods}
    starts, rates = (sum(kind) for kind in zip(*tried.values(), strict=True))
    record.note(
        first_and_later_update_seconds=tried,
        source=str(options.text or "builtin"),
        train_tokens=len(corpus.train),
        valid_tokens=len(corpus.valid),
    )
    updates = max(FEWEST, int(SHARE * (record.seconds_left - starts) / rates))
    if is_small(options.preset):
        updates = min(updates, MOST_SMALL)
    for method in record.in_time(methods):
        with record.row(method) as row:
            row |= trained(config_for(options, method, updates), corpus, options.work / f"run-{method}")


def config_for(options: argparse.Namespace, method: str, updates: int) -> RunConfig:
    batch, length = (8, 32) if is_small(options.preset) else (128, 256)
    values = {
        "train__steps": updates,
        "train__global_batch_size": batch,
        "train__micro_batch_size": batch,
        "train__seq_len": length,
        "eval__every": 0,
        "eval__batch_size": batch,
        "checkpoint__every": 0,
        "log__telemetry_every": 0,
        "log__tensorboard": False,
        "sample__tokens": 0,
    }
    config = config_of(options, method, options.preset, **values)
    return dataclasses.replace(config, data=data_config(options))


def seconds_of_updates(config: RunConfig, corpus: Corpus) -> tuple[float, float]:
    """Of the first, which compiles (a run needs no more for that), and of a later one."""
    step = train_step(config, corpus)
    seconds = [timed(step, step.device) for _ in range(TRIED)]
    return seconds[0], statistics.median(seconds[2:])


def trained(config: RunConfig, corpus: Corpus, folder: Path) -> dict[str, object]:
    began = time.perf_counter()
    summary = train(config, corpus, RunDirectory(folder), Console(file=io.StringIO()))
    kept = {k: v for k, v in summary.items() if isinstance(v, int | float | str) and not isinstance(v, bool)}
    return kept | {"wall": time.perf_counter() - began, "updates": config.train.steps}
