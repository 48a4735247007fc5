"""`lowrise eval`: exact loss of runs and of models in other forms, on their own held-out text or on any."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from lowrise.console import Console
from lowrise.data import Corpus, DataConfig
from lowrise.data.progress import held_out_with_progress, prepare_with_progress
from lowrise.errors import UsageError
from lowrise.inference.evaluate import evaluate_split
from lowrise.pretrained.load import check_model, is_run, load_model
from lowrise.runs.chosen_weights import Weights, told
from lowrise.runs.environment import autocast_for
from lowrise.runs.load import NO_CORPUS, TrainedRun
from lowrise.runs.trust import require_trust


@dataclass(frozen=True)
class Subject:
    """A model that is measured, and where it lies."""

    place: Path
    loaded: TrainedRun

    @property
    def is_run(self) -> bool:
        return is_run(self.place)


def check_subjects(places: Sequence[Path], *, source: Sequence[str], trust: bool, tasks: bool) -> None:
    """`UsageError`, before anything is loaded, for what is no model, for files that the run of somebody else
    names, and for a folder that has no text of its own where none is given."""
    for place in places:
        check_model(place)
    for place in places:
        if source:
            continue
        if is_run(place):
            require_trust(place, trust=trust, remedy="name the text yourself, --data.source TEXT")
        elif not tasks:
            raise UsageError(
                f"{place} is no run and has no text of its own: name one, --data.source TEXT (or --tasks)."
            )


def evaluate_run(
    folder: str | Path,
    device: str,
    console: Console,
    *,
    source: Sequence[str] = (),
    trust: bool = False,
    seq_len: int = 0,
    weights: Weights = "raw",
) -> dict[str, Any]:
    """Load a model and measure it: `check_subjects`, `load_model`, `measure`."""
    place = Path(folder).expanduser()
    check_subjects([place], source=source, trust=trust, tasks=False)
    subject = Subject(place, load_model(place, device, console, weights=weights, look=True))
    return {"run": str(folder), **measure(subject, console, source=source, seq_len=seq_len)}


def measure(
    subject: Subject, console: Console, *, source: Sequence[str] = (), seq_len: int = 0
) -> dict[str, Any]:
    """Exact validation numbers over the whole held-out split of a run's corpus, or over all of the texts
    `source`, tokenized as the model does, in windows of `seq_len` tokens (0: as in training).
    """
    run = subject.loaded
    config = replace(run.config, train=replace(run.config.train, seq_len=_length(run, seq_len)))
    if source:
        corpus = _held_out(subject, source, console)
    else:
        corpus = prepare_with_progress(config.data, console)
        if run.corpus not in (corpus.fingerprint, NO_CORPUS):
            console.print(
                "The text of this run has changed since it was trained: these numbers are of the text as it "
                "is.",
                style="yellow",
            )
    with autocast_for(config, run.device):
        result = evaluate_split(run.model, corpus, config)
    return {
        "step": run.step,
        "weights": run.weights,
        "has_average": run.has_average,
        "val_loss": result.loss,
        "val_perplexity": result.perplexity,
        "val_bits_per_byte": result.bits_per_byte,
        "val_tokens": result.tokens,
        "val_bytes": corpus.valid.text_bytes,
        "seq_len": config.train.seq_len,
    }


def _length(run: TrainedRun, asked: int) -> int:
    longest = run.model.config.max_seq_len
    if asked > longest:
        raise UsageError(
            f"--seq_len {asked} is longer than the model reads (model.max_seq_len = {longest}): ask for "
            "fewer tokens."
        )
    return asked or run.config.train.seq_len


def _held_out(subject: Subject, source: Sequence[str], console: Console) -> Corpus:
    data = subject.loaded.config.data
    with _tokenizer_of(subject) as tokenizer:
        like = DataConfig(
            text_key=data.text_key,
            document_separator=data.document_separator,
            separator_token=subject.loaded.tokenizer.separator_token,
            tokenizer=str(tokenizer),  # beside which a chat template may lie
            format=data.format,
            keys=data.keys,
        )
        return held_out_with_progress(source, tokenizer, like, console)


@contextmanager
def _tokenizer_of(subject: Subject) -> Iterator[Path]:
    """The file of the model's tokenizer, for as long as it is needed where it is part of another."""
    file = subject.place / "tokenizer.json"
    if file.is_file():
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="lowrise-") as folder:
        aside = Path(folder) / "tokenizer.json"
        subject.loaded.tokenizer.write(aside)
        yield aside


def short_names(places: Sequence[str]) -> list[str]:
    """The last parts of each place, as few as tell it from all others."""
    parts = [Path(place).parts for place in places]

    def short(own: tuple[str, ...]) -> str:
        for number in range(1, len(own)):
            if sum(other[-number:] == own[-number:] for other in parts) == 1:
                return str(Path(*own[-number:]))
        return str(Path(*own))

    return [short(own) for own in parts]


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
        if result.get("has_average"):
            console.print(told(result["weights"]), highlight=False)
        return
    table = Table(box=None, header_style="bold")
    table.add_column("run", overflow="fold")
    for name in ("step", "loss", "perplexity", "bits per byte", "tokens", "bytes"):
        table.add_column(name, justify="right")
    names = short_names([r["run"] for r in results])
    for r, name in zip(results, names, strict=True):
        table.add_row(
            name,
            str(r["step"]),
            f"{r['val_loss']:.6f}",
            f"{r['val_perplexity']:.4f}",
            f"{r['val_bits_per_byte']:.5f}",
            f"{r['val_tokens']:,}",
            f"{r['val_bytes']:,}",
        )
    console.print(table)
    if any(r.get("has_average") for r in results):
        console.print(told(results[0]["weights"]), highlight=False)
    lengths = sorted({r["seq_len"] for r in results if "seq_len" in r})
    if len(lengths) > 1:
        console.print(
            f"These models were measured in windows of different lengths ({', '.join(map(str, lengths))} "
            "tokens): say --seq_len N for one.",
            style="yellow",
        )
    if len({r["val_bytes"] for r in results}) > 1:
        console.print(
            "The held-out texts of these runs differ in size, so these numbers are of different texts.",
            style="yellow",
        )
