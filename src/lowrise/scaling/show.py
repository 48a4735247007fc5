"""What `lowrise scaling fit` prints: tables of 80 columns and one sentence for each comparison."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from lowrise.compare.stored import read_stored
from lowrise.console import Console, narrow_table
from lowrise.files import read_json, strict_json, write_whole
from lowrise.report.formatting import number, scientific, si
from lowrise.scaling.fit import PUBLISHED, Study, document, fit_study, law, sentence, with_interval
from lowrise.scaling.options import FitRules
from lowrise.scaling.points import read_points, to_csv
from lowrise.scaling.report import to_html

TITLE = "Scaling study"


def show(study: Study, console: Console) -> None:
    """Minima of each budget, exponents, parametric fits, multipliers, notes."""
    minima = _table("method", "budget", "sizes", "N_opt", "D_opt", "loss there")
    for name, fit in study.methods.items():
        for p in fit.isoflop.parabolas:
            edge = "" if p.inside or not p.has_minimum else " (outside)"
            there = (si(p.params.value) + edge, si(p.tokens.value), number(p.loss.value))
            minima.add_row(name, scientific(p.budget, 2), str(p.sizes), *there)
    console.print(minima)
    console.print()
    exponents = _table("method", "N_opt ~ C^", "D_opt ~ C^", "parametric N_opt", "noise")
    for name, fit in study.methods.items():
        share = with_interval(fit.parametric.params_exponent if fit.parametric else None)
        noise = number(fit.isoflop.sigma)
        exponents.add_row(name, law(fit.isoflop.params), law(fit.isoflop.tokens), share, noise)
    for source, n, d, _ in PUBLISHED[:2]:
        exponents.add_row(source.split(",")[0] + ", published", f"{n:g}", f"{d:g}", "", "")
    console.print(exponents)
    console.print()
    law_table = _table("method", "E", "alpha", "beta")
    for name, fit in study.methods.items():
        if fit.parametric is not None:
            found = (fit.parametric.E, fit.parametric.alpha, fit.parametric.beta)
            law_table.add_row(name, *map(with_interval, found))
    if law_table.row_count:
        console.print(law_table)
        console.print()
    for m in study.multipliers:
        console.print(sentence(m), style="bold", soft_wrap=True)
    for name, fit in study.methods.items():
        for note in fit.notes:
            console.print(f"{name}: {note}", style="yellow", soft_wrap=True)
    for line in study.left_out:
        console.print(f"left out: {line}", style="yellow", soft_wrap=True)
    console.print(f"Intervals hold {100 * study.rules.level:g}% of {study.rules.draws} draws.", style="dim")


def write(study: Study, folder: Path, *, report: bool) -> list[Path]:
    """Write `points.csv`, `fit.json` and, if asked, `report.html`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "points.csv": to_csv(study.points),
        "fit.json": strict_json(document(study), indent=1) + "\n",
    }
    if report:
        contents["report.html"] = to_html(study, TITLE)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


def is_study(folder: Path) -> bool:
    """Whether this is the folder of a scaling sweep, or of a fit."""
    sweep = folder / "sweep.json"
    if not sweep.is_file():
        return (folder / "fit.json").is_file() and (folder / "points.csv").is_file()
    try:
        return "points" in read_json(sweep)
    except (OSError, ValueError, TypeError):
        return False


def write_again(folder: Path, target: Path | None = None) -> Path:
    """Write the page of a sweep or of a study again, from its points by the rules of its `fit.json`, there or
    as `target`; returns its path. Raises `UsageError` where no run has a loss yet.
    """
    earlier = read_stored(folder / "fit.json", "lowrise scaling") if (folder / "fit.json").is_file() else {}
    names = ("level", "draws", "bootstrap_seed", "reference", "huber")
    rules = FitRules(**{name: earlier[name] for name in names if name in earlier})
    if (folder / "sweep.json").is_file():
        points, left_out = read_points([str(folder)])
    else:
        points, _ = read_points([str(folder / "points.csv")])
        left_out = list(earlier.get("left_out", []))
    target = target or folder / "report.html"
    write_whole(target, to_html(fit_study(points, rules, left_out), TITLE))
    return target


def _table(*names: str) -> Table:
    table = narrow_table()
    table.add_column(names[0], no_wrap=True)
    for name in names[1:]:
        table.add_column(name, justify="right")
    return table
