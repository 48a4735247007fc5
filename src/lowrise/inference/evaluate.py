"""Exact evaluation: the mean over all predicted tokens of a split, not the mean of batch means.

(The code family of most published numbers divides the sum of n batch losses by n + 1, which makes a loss 0.3%
to 1% too low, and weights a short last batch like a full one. Numbers from here are not comparable with those
to that accuracy.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from lowrise.config import RunConfig
from lowrise.console import Console
from lowrise.data import Corpus, DataConfig
from lowrise.data.index import TOKENIZER
from lowrise.data.progress import held_out_with_progress, prepare_with_progress
from lowrise.distributed import World
from lowrise.distributed.fsdp import reshard
from lowrise.errors import LowriseError, UsageError
from lowrise.model.loss import DEFAULT_CHUNK_TOKENS, next_token_loss, parts_of
from lowrise.runs.directory import open_run
from lowrise.runs.environment import autocast_for
from lowrise.runs.load import NO_CORPUS, load_run
from lowrise.runs.trust import require_trust


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Loss of a model on a split."""

    loss: float
    """Mean cross-entropy in nats a token."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float
    """Total cross-entropy in bits over the bytes of the text; independent of the tokenizer."""
    tokens: int
    """Number of predicted tokens."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[np.ndarray | Tensor],
    *,
    text_bytes: int,
    chunk: int | None = DEFAULT_CHUNK_TOKENS,
    total: Callable[[float, float], list[float]] | None = None,
) -> EvalResult:
    """Evaluate on all `batches`, each int64 of shape (B, L + 1), which together hold `text_bytes` bytes of
    text.

    Column j + 1 is predicted from columns 0 to j. Negative ids (-1, -100) are padding: not predicted, and
    read as token 0 where they stand as input, which no counted target may follow in its row. Batch sums are
    added in float64 in their order, so two evaluations of the same batches agree to the last bit. The model
    is in eval mode meanwhile; precision is the caller's (autocast). `total` turns this process's sums of
    nats and tokens into those of all processes that share the batches. Raises `LowriseError` if there is
    nothing to predict, `UsageError` if `text_bytes` is not positive.
    """
    if text_bytes < 1:
        raise UsageError(f"Bits per byte need the size of the text in bytes, at least 1, not {text_bytes}.")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch in batches:
            ids = torch.as_tensor(batch, dtype=torch.int64)
            tokens += int((parts_of(ids)[1] >= 0).sum())
            nats += float(next_token_loss(model, ids.to(device), reduction="sum", chunk=chunk))
    finally:
        model.train(was_training)
    if total is not None:
        nats, counted = total(nats, tokens)
        tokens = round(counted)
    if tokens == 0:
        raise LowriseError("There is no token to predict: the validation split is empty or all padding.")
    loss = nats / tokens
    return EvalResult(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=nats / math.log(2) / text_bytes,
        tokens=tokens,
    )


class Stopped(Exception):
    """A stop signal came while a split was evaluated."""


def evaluate_split(
    model: nn.Module,
    corpus: Corpus,
    config: RunConfig,
    tokens: int = 0,
    stop: Callable[[], bool] | None = None,
    world: World | None = None,
) -> EvalResult:
    """Token-weighted loss over the held-out split, or over about its first `tokens` tokens.

    Bits per byte of a part take the bytes of a token to be those of the whole split. Raises `Stopped` soon
    after `stop` became true. Ranks of a `world` share the rows of each pass, and all get the result.
    """
    world = world or World()
    seq_len, sequences = config.train.seq_len, config.eval.batch_size
    passes = max(1, tokens // (seq_len * sequences)) if tokens else None

    def windows() -> Iterator[np.ndarray]:
        shares = corpus.valid.windows(seq_len, sequences, world.share(sequences))
        for batch in itertools.islice(shares, passes):
            if stop is not None and stop():
                raise Stopped
            # More ranks than rows leave some without any. They read padding, which counts nothing,
            # since ranks that share weights by rows make every forward pass together.
            yield batch if len(batch) else np.full((1, seq_len + 1), -1)

    try:
        result = evaluate(model, windows(), text_bytes=corpus.valid.text_bytes, total=world.total)
    finally:
        reshard(model)  # else the next update would begin with what these passes have left gathered
    share = result.tokens / corpus.valid.targets
    return dataclasses.replace(result, bits_per_byte=result.bits_per_byte / share)


def extra_texts(config: RunConfig, corpus: Corpus, console: Console) -> dict[str, Corpus]:
    """The texts of `eval.extra` by their names, tokenized as the corpus is. Raises as `prepare`."""
    tokenizer = corpus.directory / TOKENIZER
    return {
        name: held_out_with_progress([source], tokenizer, config.data, console)
        for name, source in config.eval.extra.items()
    }


def evaluate_run(
    folder: str | Path,
    device: str,
    console: Console,
    *,
    source: Sequence[str] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Exact validation numbers of a run over the whole held-out split of its corpus, or over all of the texts
    `source`, tokenized as the run does.

    Raises `UsageError` before any file is touched that the folder of somebody else's run names, unless it is
    to be trusted.
    """
    directory = open_run(folder)
    if not source:
        remedy = "name the text yourself, --data.source TEXT"
        require_trust(directory.path, trust=trust, remedy=remedy)
    run = load_run(folder, device, console)
    if source:
        data = run.config.data
        like = DataConfig(
            text_key=data.text_key,
            document_separator=data.document_separator,
            separator_token=data.separator_token,
        )
        corpus = held_out_with_progress(source, directory.tokenizer, like, console)
    else:
        corpus = prepare_with_progress(run.config.data, console)
    if not source and run.corpus not in (corpus.fingerprint, NO_CORPUS):
        console.print(
            "The text of this run has changed since it was trained: these numbers are of the text as it is.",
            style="yellow",
        )
    with autocast_for(run.config, run.device):
        result = evaluate_split(run.model, corpus, run.config)
    return {
        "run": str(folder),
        "step": run.step,
        "val_loss": result.loss,
        "val_perplexity": result.perplexity,
        "val_bits_per_byte": result.bits_per_byte,
        "val_tokens": result.tokens,
        "val_bytes": corpus.valid.text_bytes,
    }


def check_runs(folders: Sequence[Path]) -> None:
    """`UsageError` for what is no run, before anything is evaluated."""
    for folder in folders:
        open_run(folder)


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    """One result as a sentence, several as a table, and whether they are of one text."""
    if len(results) == 1:
        (result,) = results
        console.print(
            f"step {result['step']}: validation loss {result['val_loss']:.6f}, "
            f"perplexity {result['val_perplexity']:.4f}, {result['val_bits_per_byte']:.5f} bits per byte "
            f"over {result['val_tokens']:,} tokens",
            highlight=False,
        )
        return
    table = Table(box=None, header_style="bold")
    table.add_column("run", overflow="fold")
    for name in ("step", "loss", "perplexity", "bits per byte", "tokens", "bytes"):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            r["run"],
            str(r["step"]),
            f"{r['val_loss']:.6f}",
            f"{r['val_perplexity']:.4f}",
            f"{r['val_bits_per_byte']:.5f}",
            f"{r['val_tokens']:,}",
            f"{r['val_bytes']:,}",
        )
    console.print(table)
    if len({r["val_bytes"] for r in results}) > 1:
        console.print(
            "The held-out texts of these runs differ in size, so these numbers are of different texts.",
            style="yellow",
        )
