"""The options of `lowrise report`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(kw_only=True)
class ReportOptions:
    """Write the report of a run, a comparison, a sweep, a scaling sweep or a track again, also of one that
    goes on; of several runs, one page to compare them."""

    folders: Positional[tuple[Path, ...]]
    """One folder that lowrise has made, or those of several runs."""
    out: Path | None = None
    """HTML file; none: the page in the folder itself, ./report.html for several runs."""
