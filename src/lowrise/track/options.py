"""The options of `lowrise track run`, `check` and `table`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Whether entries keep to the rules, and whether their results belong to them."""

    track: Positional[Path]
    """Folder of the track, for example tracks/cpu-tiny."""
    entries: Positional[tuple[str, ...]] = ()
    """Names of entries (entries/NAME.toml); none given: all."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Train entries with the seeds that the rule asks for, and write their results down."""

    track: Positional[Path]
    """Folder of the track, for example tracks/cpu-tiny."""
    entries: Positional[tuple[str, ...]] = ()
    """Names of entries (entries/NAME.toml); none given: all that have no result yet."""
    out: Path | None = None
    """Folder of the runs; none: runs/track-NAME. The same folder continues them."""
    workers: int | None = None
    """Runs at once, each on one thread. Default: one a core, or one a GPU."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The leaderboard, from the results that are there."""

    track: Positional[Path]
    """Folder of the track; leaderboard.md and leaderboard.html are written into it."""
    json: bool = False
    """Print one JSON object instead of the table."""
