"""Module-name patterns: how `targets`, `skip` and a dict of ranks name layers.

With a wildcard (`*`, `?`, `[`) a pattern is matched against the full name as by `fnmatch`. Without one it
matches every name in which its dotted components stand together: "q_proj", "self_attn", "layers.0" and
"mlp.up_proj" all do what they look like.

`select_targets`, used by `param_groups`, also takes the forms of `optim_target_modules` in Hugging Face's
Trainer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from lowrise.errors import UsageError, did_you_mean


def matches(pattern: str, name: str) -> bool:
    """Whether the pattern names this module."""
    if any(mark in pattern for mark in "*?["):
        return fnmatchcase(name, pattern)
    return f".{pattern}." in f".{name}."


def select(patterns: str | Iterable[str], names: Iterable[str], *, what: str) -> list[str]:
    """The names that match at least one pattern, in their order. A pattern that matches none is a
    `UsageError`.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    candidates = list(names)
    for pattern in wanted:
        if not any(matches(pattern, name) for name in candidates):
            raise no_match(pattern, candidates, what=what)
    return [name for name in candidates if any(matches(pattern, name) for pattern in wanted)]


def select_targets(patterns: str | Iterable[str], names: Iterable[str], *, what: str) -> list[str]:
    """As `select`, and in the Trainer's forms: "all-linear", regular expressions, parts of names.

    An entry has the first of these readings that names anything: a pattern of this module; a regular
    expression that matches a whole name; a part of a name ("attn" of "self_attn"). "all-linear", which stands
    alone, is every name.
    """
    candidates = list(names)
    if patterns in ("all-linear", "all_linear"):
        return candidates
    chosen: set[str] = set()
    for entry in [patterns] if isinstance(patterns, str) else list(patterns):
        for reading in (matches, _matches_whole, _is_part):
            named = {name for name in candidates if reading(entry, name)}
            if named:
                break
        else:
            raise no_match(entry, candidates, what=what)
        chosen |= named
    return [name for name in candidates if name in chosen]


def _matches_whole(expression: str, name: str) -> bool:
    try:
        return re.fullmatch(expression, name) is not None
    except re.error:
        return False


def _is_part(part: str, name: str) -> bool:
    return part in name


def no_match(pattern: str, names: Iterable[str], *, what: str, kind: str = "linear layer") -> UsageError:
    """The error for a pattern without effect; it names the nearest component of a module name."""
    components = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    hint = did_you_mean(pattern.rpartition(".")[2], components, otherwise="the names are made of:")
    return UsageError(f"{what}: the pattern {pattern!r} matches no {kind} of the model; {hint}")
