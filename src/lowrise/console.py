"""What is shown on a terminal: nothing that comes from outside is markup or a control character."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import rich.console
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table

from lowrise.errors import printable

T = TypeVar("T")
_PACKAGE = Path(__file__).parent
_SAID = UserWarning | FutureWarning | RuntimeWarning


STANDARD_OUTPUT = "standard output"


def narrow_table() -> Table:
    """A table of a command: no lines, one space between columns, so that ten of them fit into a terminal."""
    return Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))


def in_columns(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """A table as plain text, two spaces between columns; `right`: which of them are flush on that side."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


class Console(rich.console.Console):
    """rich's console for text from files, folders, models and users: square brackets are square brackets
    (style goes through `style=` and `rich.text.Text`), nothing is highlighted, and control characters and
    those that turn the direction of writing are shown as their escapes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False} | options)

    def on_broken_pipe(self) -> None:
        """Leave the reader that has seen enough to the command line; rich would exit with 1 itself."""
        raise BrokenPipeError

    def print(self, *objects: Any, **options: Any) -> None:
        """Name the stream where it cannot be written, which the system does not."""
        try:
            super().print(*objects, **options)
        except BrokenPipeError:
            raise
        except OSError as error:
            error.filename = error.filename or ("standard error" if self.stderr else STANDARD_OUTPUT)
            raise

    def render(self, renderable: RenderableType, options: Any = None) -> Any:
        """Every piece of text passes here on its way to the screen; rich's own controls are marked."""
        for segment in super().render(renderable, options):
            plain = segment.control or (segment.text.isascii() and segment.text.isprintable())
            text = segment.text if plain else printable(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def counted(items: Sequence[T], what: str, name: Callable[[T], str], console: Console) -> Iterator[T]:
    """The items, with a bar that says how many are done and which one it is at: `what` is being done to them.
    The bar disappears at the end; nothing is drawn for a single item, or where this is no terminal.
    """
    if not console.is_terminal or len(items) < 2:
        yield from items
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=len(items))
        for item in items:
            bar.update(task, description=f"{what} {name(item)}")
            yield item
            bar.advance(task)


def survive_any_encoding() -> None:
    """Let a terminal that cannot show a character show a question mark, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


@contextmanager
def plain_warnings(say: Callable[[str], None]) -> Iterator[None]:
    """Say our own warnings as one sentence each; Python's form, with a file in front, is for programs."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if Path(filename).is_relative_to(_PACKAGE) and issubclass(category, _SAID):
                say(f"warning: {message}")
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
