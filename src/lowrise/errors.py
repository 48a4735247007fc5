"""The two kinds of error that a user may see as a message instead of a traceback.

A message names the value, the place (file and line for data) and the remedy.
"""

import difflib
import errno
import unicodedata
from collections.abc import Iterable


class LowriseError(Exception):
    """The work could not be done. The command ends with exit code 1."""


class UsageError(LowriseError, ValueError):
    """The request cannot be right, whatever the machine does. The command ends with exit code 2."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "choose one of") -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them after `otherwise`.

    By spelling alone; keys, flags and commands are found by what other projects call them as well
    (`lowrise.names`).
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(known)}."


# They turn the direction of the text around them, so that it reads as something else.
_TURNING = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


def printable(text: str) -> str:
    """Text for a terminal: control characters, ESC above all, and those that turn the direction of writing,
    as their escapes; line ends and tabs stay."""
    return "".join(
        c if c in "\n\t" or not (unicodedata.category(c) == "Cc" or c in _TURNING) else ascii(c)[1:-1]
        for c in text
    )


_REMEDIES = {
    errno.ENOSPC: "no space left on the device, free some and start again",
    errno.EACCES: "change its rights, or choose another place",
    errno.EPERM: "change its rights, or choose another place",
    errno.EROFS: "the disk is read-only, choose another place",
    errno.ENOTDIR: "a part of this path is a file, choose another place",
    errno.EEXIST: "there is a file where a folder belongs, choose another place",
    errno.EISDIR: "a folder lies where a file belongs, name the file",
    errno.ENOENT: "create it, or correct the path",
    errno.EMFILE: "too many files are open, raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def disk_error(error: OSError) -> str:
    """A message for what the file system refused, with the file where the system names it."""
    place = " -> ".join(str(f) for f in (error.filename, error.filename2) if f is not None)
    what = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "look at the disk and at the file's rights and start again")
    return f"{place or 'a file'}: {what}: {remedy}. What was written stays."
