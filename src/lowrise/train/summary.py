"""What a run has done so far, and the content of summary.json."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lowrise.config import RunConfig
from lowrise.data import Corpus
from lowrise.inference.evaluate import EvalResult
from lowrise.runs.environment import peak_memory_bytes
from lowrise.runs.plan import RunPlan


@dataclass
class Progress:
    """The trainer's own state; with weights, optimizer and random state it is all that a checkpoint needs."""

    step: int = 0
    tokens: int = 0
    train_flops: int = 0
    """Of all updates, each at the ranks that it had."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    skipped_in_part: int = 0
    """Of the skipped updates, those that moved something."""
    skipped_units: int = 0
    """Matrices and vectors that were left alone in updates that moved others."""
    train_seconds: float = 0.0
    """Time in updates, over all starts of the run."""
    wall_seconds: float = 0.0
    """Time since the first start, pauses between starts left out."""
    state_bytes_planned: int = 0
    """Largest optimizer state so far, by the formulas."""
    state_bytes_measured: int = 0
    """Largest optimizer state so far, in its storages."""
    evaluated_step: int = 0
    """Last step at which early stopping has seen an evaluation."""
    best_step: int = 0
    """Of these, the one with the lowest validation loss; 0: none yet."""
    best_loss: float = 0.0
    """That loss."""
    worse_evaluations: int = 0
    """Evaluations since then."""
    weights_of_step: int = 0
    """The step whose weights the run has ended with, where it is not the last; 0: the last."""
    init_tokens: int = 0
    """Tokens that the runs before this one spent on the weights it starts from."""
    init_flops: int = 0
    """FLOPs of the same."""


def evaluation_record(results: Mapping[str, EvalResult]) -> dict[str, Any]:
    """The numbers of an evaluation for metrics.jsonl and summary.json: `val_loss` of the held-out split,
    whose name is empty, and `val_loss/NAME` of a further text."""
    record: dict[str, Any] = {}
    for name, result in results.items():
        at = f"/{name}" if name else ""
        record[f"val_loss{at}"] = result.loss
        record[f"val_perplexity{at}"] = result.perplexity
        record[f"val_bits_per_byte{at}"] = result.bits_per_byte
        record[f"val_tokens{at}"] = result.tokens
    return record


def summarize(
    config: RunConfig,
    progress: Progress,
    plan: RunPlan,
    result: EvalResult | None,
    *,
    corpus: Corpus,
    optimizer_ms: Sequence[float],
    device: torch.device,
    status: str,
) -> dict[str, Any]:
    """summary.json; the keys are described in docs/runs.md. `result` is None where the run has not ended."""
    train, steps = config.train, progress.step
    return {
        "method": config.method,
        "layer": config.layer.name,
        "optimizer": config.optimizer.name,
        "seed": config.seed,
        "config_hash": config.hash,
        "corpus": corpus.fingerprint,
        "tokens": progress.tokens,
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "skipped_units": progress.skipped_units,
        "epochs": corpus.train.epochs(steps, sequences=train.global_batch_size, seq_len=train.seq_len),
        **_stopping(config, progress),
        **{
            f"{name}_samples": dataclasses.asdict(counts)
            for name, counts in corpus.sample_counts(train.seq_len).items()
        },
        "params_total": plan.params_total,
        "params_non_embedding": plan.params_non_embedding,
        "flops_per_token": plan.flops_per_token,
        "optimizer_flops_per_step": plan.optimizer_flops_per_step,
        "train_flops": progress.train_flops,
        "init_tokens": progress.init_tokens,
        "init_flops": progress.init_flops,
        "val_loss": None if result is None else result.loss,
        "val_perplexity": None if result is None else result.perplexity,
        "val_bits_per_byte": None if result is None else result.bits_per_byte,
        "val_tokens": None if result is None else result.tokens,
        "tokens_per_second": progress.tokens / progress.train_seconds if progress.train_seconds else None,
        "wall_seconds": progress.wall_seconds,
        "optimizer_step_ms": statistics.median(optimizer_ms) if optimizer_ms else None,
        "state_bytes_planned": progress.state_bytes_planned,
        "state_bytes_measured": progress.state_bytes_measured,
        "communicated_bytes_planned": plan.communicated_bytes,
        "peak_memory_bytes": peak_memory_bytes(device),
        "status": status,
    }


def _stopping(config: RunConfig, progress: Progress) -> dict[str, Any]:
    """What early stopping has done, where it was asked for."""
    if not config.eval.patience:
        return {}
    return {
        "stopped_early": bool(progress.weights_of_step) and progress.step < config.train.steps,
        "best_step": progress.best_step,
        "best_val_loss": progress.best_loss if progress.best_step else None,
        "weights_of_step": progress.weights_of_step or progress.step,
    }


def told_text(corpus: Corpus, config: RunConfig) -> list[str]:
    """Lines about the text of a run: how often it is read, if more than once; for fine-tuning, how the
    samples are packed, and which are cut or left out.
    """
    lines, seq_len = _told_samples(corpus, config.train.seq_len, config.data.overlong), config.train.seq_len
    sequences = config.train.global_batch_size
    epochs = corpus.train.epochs(config.train.steps, sequences=sequences, seq_len=seq_len)
    if epochs > 1.0:
        text = "source that is read most" if config.data.weights else "training text"
        lines.append(f"The {text} is read {epochs:.3g} times in {config.train.steps:,} updates.")
    return lines


def _told_samples(corpus: Corpus, seq_len: int, overlong: str | None) -> list[str]:
    lines = []
    for name, counts in corpus.sample_counts(seq_len).items():
        line = (
            f"{name}: {counts.samples:,} samples in {counts.rows:,} sequences of {seq_len} tokens "
            f"({counts.used:.0%} of them used)"
        )
        if counts.cut:
            line += f'; {counts.cut:,} are longer and lose their end (data.overlong = "drop" drops them)'
        if counts.left_out:
            line += f"; {counts.left_out:,} are left out, too long for any of their completion"
            line += " or for a sequence" if overlong == "drop" else ""
        lines.append(f"{line}.")
    return lines
