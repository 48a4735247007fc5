"""`lowrise report`: the page of whatever folder lowrise has made, written again from what lies in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrise.compare import again as comparison
from lowrise.compare.recipes import load_recipe
from lowrise.errors import UsageError
from lowrise.files import require_file_place, require_writable
from lowrise.report.run_report import write_report
from lowrise.report.several import write_several
from lowrise.runs.history import has_run_files
from lowrise.scaling import show as scaling
from lowrise.sweep import report as sweep
from lowrise.track import table as track


@dataclass(frozen=True)
class Kind:
    """A kind of folder: how it is called, how it is known, and what writes its page: there, or as a file."""

    name: str
    is_one: Callable[[Path], bool]
    write: Callable[[Path, Path | None], list[Path]]


KINDS = (
    Kind("a track (lowrise track)", track.is_track, lambda folder, out: [track.write_again(folder, out)]),
    Kind(
        "a comparison (lowrise compare)",
        comparison.is_comparison,
        lambda folder, out: comparison.write_again(folder, out, load_recipe),
    ),
    Kind(
        "a scaling sweep or study (lowrise scaling)",
        scaling.is_study,
        lambda folder, out: [scaling.write_again(folder, out)],
    ),
    Kind("a sweep (lowrise sweep)", sweep.is_sweep, lambda folder, out: [sweep.write_page(folder, out)]),
    Kind("a run (lowrise train)", has_run_files, lambda folder, out: [_of_run(folder, out)]),
)


def write_pages(folders: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Write the page of one folder, there or as the file `out`; of several runs one page, `out` or
    `./report.html`. Returns what was written.

    Raises `UsageError` that lists what is accepted for a folder that is nothing of it.
    """
    folders = [folder.expanduser() for folder in folders]
    if not folders:
        raise UsageError(f"lowrise report needs a folder: {accepted()}, or several runs.")
    if out is not None:
        out = out.expanduser()
        require_file_place(out, "lowrise report --out", "HTML")
    if len(folders) == 1:
        kind = kind_of(folders[0])
        if out is None:
            require_writable(folders[0], "lowrise report", "name a file with --out")
        return kind.write(folders[0], out)
    for folder in folders:
        kind = kind_of(folder)
        if kind is not KINDS[-1]:
            raise UsageError(f"{folder} is {kind.name}: one page of several folders is made of runs alone.")
    together = out or Path("report.html")
    require_file_place(together, "lowrise report --out", "HTML")
    return [write_several(folders, together)]


def kind_of(folder: Path) -> Kind:
    """The first kind that the folder is one of. Raises `UsageError` where there is none."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise UsageError(f"{folder} {what}: lowrise report takes the folder of {accepted()}.")
    if not os.access(folder, os.R_OK | os.X_OK):
        # Before the kinds, each of which would name the first file that it looks for, such as track.toml.
        raise UsageError(
            f"{folder} may not be read, so lowrise report cannot tell whether it is {accepted()}: change its "
            "rights, or name a copy that you may read."
        )
    for kind in KINDS:
        if kind.is_one(folder):
            return kind
    within = sorted(path for path in (*folder.glob("*"), *folder.glob("runs/*")) if has_run_files(path))
    hint = f" It holds {len(within)} run(s), such as {within[0]}." if within else ""
    raise UsageError(f"{folder} is no folder that lowrise reports on: name {accepted()}.{hint}")


def accepted() -> str:
    """The kinds in words, the most common first."""
    names = [kind.name for kind in reversed(KINDS)]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _of_run(folder: Path, out: Path | None) -> Path:
    return write_report(folder) if out is None else write_several([folder], out)
