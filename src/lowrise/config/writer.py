"""Which lowrise wrote a configuration: its first line says so, and a message about what this one does not
know there names both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lowrise import __version__
from lowrise.errors import UsageError

_LINE = re.compile(r"# Written by lowrise ([0-9A-Za-z.+!-]{1,60})\.$", re.MULTILINE)

WRITTEN = f"# Written by lowrise {__version__}.\n"
"""The line, of this version."""


def writer_of(text: str) -> str | None:
    """The version that the first line names; None where it names none."""
    line = _LINE.match(text)
    return line[1] if line else None


@contextmanager
def naming_writer(version: str | None, source: str) -> Iterator[None]:
    """Where another version wrote `source`, a `UsageError` about it says which one, and what to do."""
    try:
        yield
    except UsageError as error:
        if version in (None, __version__):
            raise
        raise UsageError(
            f"{error} lowrise {version} wrote {source}, and this is lowrise {__version__}: use {version} "
            f"for it, or take out what {__version__} does not know if it is good without."
        ) from None
