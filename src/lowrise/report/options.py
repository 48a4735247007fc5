"""The options of `lowrise report`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(kw_only=True)
class ReportOptions:
    """Write the report of a run again, also of one that goes on; of several runs, one page to compare
    them."""

    folders: Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path | None = None
    """HTML file; none: report.html in the folder of one run, ./report.html for several."""
