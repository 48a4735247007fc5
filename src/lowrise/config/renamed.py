"""Keys of recipes under their earlier names, which are read for one release with a warning, and keys that are
gone, which recorded recipes may have with the value that always holds now."""

from __future__ import annotations

import warnings
from typing import Any

from lowrise.errors import UsageError

RENAMED = {
    "train.sequences": "train.global_batch_size",
    "train.micro_sequences": "train.micro_batch_size",
    "train.clip": "train.grad_clip",
    "schedule.final": "schedule.min_lr_ratio",
    "eval.sequences": "eval.batch_size",
    "parallel.gather": "parallel.param_dtype",
    "parallel.shard_ranks": "parallel.shard_degree",
    "parallel.copy_below": "parallel.replicate_below",
    "parallel.share_work": "parallel.distribute_optimizer",
}
"""Earlier dotted key -> today's."""

REMOVED = {"optimizer.eps_placement": "before"}
"""Dotted key that is gone -> the value that it has for good."""


def take_renamed(values: dict[str, Any], source: str) -> None:
    """Put values that stand under an earlier key under today's, in place. Raises `UsageError` where a table
    has both."""
    for old, new in RENAMED.items():
        section, key = old.split(".")
        table = values.get(section)
        if not isinstance(table, dict) or key not in table:
            continue
        name = new.split(".")[1]
        if name in table:
            raise UsageError(f"{source}: {old} is the earlier name of {new}, and both are there: keep {new}.")
        table[name] = table.pop(key)
        warn_renamed(old, source)


def drop_removed(values: dict[str, Any], source: str) -> None:
    """Take out keys that are gone, in place. Raises `UsageError` for a value other than the last one."""
    for key, always in REMOVED.items():
        section, name = key.split(".")
        table = values.get(section)
        if isinstance(table, dict) and table.pop(name, always) != always:
            raise UsageError(
                f"{source}: {key} is gone, and {always!r} holds always: leave it out, or use the version of "
                "lowrise that the run was begun with."
            )


def warn_renamed(old: str, source: str) -> None:
    """Tell that a key has another name now."""
    warnings.warn(
        f"{source}: {old} is called {RENAMED[old]} now; the earlier name goes after the next release.",
        FutureWarning,
        stacklevel=2,
    )


def renamed_flag(word: str) -> str:
    """A word of a command line with today's key, where it is a flag of an earlier one."""
    flag, equals, value = word.partition("=")
    old = flag.removeprefix("--").replace("-", "_")
    if not flag.startswith("--") or old not in RENAMED:
        return word
    warn_renamed(old, "the command line")
    return f"--{RENAMED[old]}{equals}{value}"
