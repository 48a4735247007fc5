"""Progress of a preparation on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from lowrise.console import Console
from lowrise.data.config import DataConfig
from lowrise.data.corpus import Corpus
from lowrise.data.preparation import Progress as Callback
from lowrise.data.preparation import prepare, prepare_held_out, verify


@contextmanager
def rich_progress(console: Console | None = None) -> Iterator[Callback]:
    """A bar on standard error, one stage at a time: `with rich_progress() as p: prepare(c, progress=p)`.

    The bar disappears when the work is done; nothing is drawn where standard error is no terminal.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:  # not left to `disable`: rich before 14 then prints an empty line
        yield lambda done, total, what: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        stage = ""

        def show(done: int, total: int, what: str) -> None:
            nonlocal stage
            if what != stage:
                bar.reset(task, description=what)
                stage = what
            bar.update(task, completed=done, total=total or None)

        yield show


def verify_with_progress(corpus: Corpus, console: Console) -> None:
    """`verify` with a bar on the console, if that is a terminal."""
    with rich_progress(console) as show:
        verify(corpus, show)


def held_out_with_progress(
    sources: Sequence[str], tokenizer: str | Path, like: DataConfig, console: Console
) -> Corpus:
    """`prepare_held_out` with a bar on the console, if that is a terminal."""
    with rich_progress(console) as show:
        return prepare_held_out(sources, tokenizer, like, progress=show)


def prepare_with_progress(config: DataConfig, console: Console) -> Corpus:
    """`prepare` with a bar on the console, if that is a terminal."""
    with rich_progress(console) as show:
        corpus = prepare(config, progress=show)
    if corpus.held_out_tail:
        console.print(f"held out for validation: {corpus.held_out_tail}")
    return corpus
