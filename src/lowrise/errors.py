"""The two kinds of error that a user may see as a message instead of a traceback.

A message names the value, the place (file and line for data) and the remedy.
"""

import difflib
import unicodedata
from collections.abc import Iterable


class LowriseError(Exception):
    """The work could not be done. The command ends with exit code 1."""


class UsageError(LowriseError, ValueError):
    """The request cannot be right, whatever the machine does. The command ends with exit code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}."


# They turn the direction of the text around them, so that it reads as something else.
_TURNING = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


def printable(text: str) -> str:
    """Text for a terminal: control characters, ESC above all, and those that turn the direction of writing,
    as their escapes; line ends and tabs stay."""
    return "".join(
        c if c in "\n\t" or not (unicodedata.category(c) == "Cc" or c in _TURNING) else ascii(c)[1:-1]
        for c in text
    )
