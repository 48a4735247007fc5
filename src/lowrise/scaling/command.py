"""The words of `lowrise scaling`: which of its three parts, and what each needs of the other rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowrise.console import Console
from lowrise.errors import UsageError
from lowrise.files import require_folder_place, strict_json
from lowrise.flags import parse
from lowrise.names import lookup
from lowrise.scaling.options import FitOptions, FitRules, PlotOptions, SweepOptions

# What needs torch is imported by the part that does.


def run(words: Sequence[str], console: Console) -> int:
    """`lowrise scaling run`."""
    options: SweepOptions = parse(SweepOptions, words, "scaling run")
    from lowrise.config import RunConfig, load
    from lowrise.config.command import recipe_file
    from lowrise.data.progress import prepare_with_progress
    from lowrise.pretrained.adopt import adopted
    from lowrise.runs.plan import plan_run
    from lowrise.runs.text import with_text_limit
    from lowrise.runs.trust import require_known_code, require_trusted_recipe
    from lowrise.scaling.sweep import sweep

    vocabulary: dict[str, int] = {}

    def recipe(path: str | Path | None, overrides: Mapping[str, Any]) -> RunConfig:
        return with_text_limit(adopted(load(path, overrides)))  # as `train` does, so that the hashes agree

    def plan(config: RunConfig) -> Any:
        data = replace(config.data, max_tokens=None)  # however much is read, the tokenizer is the same
        if repr(data) not in vocabulary:
            corpus = prepare_with_progress(config.data, console)
            vocabulary[repr(data)] = corpus.tokenizer.vocab_size
        return plan_run(config, vocabulary[repr(data)])

    for folder in filter(Path.is_dir, (Path(path).expanduser() for path in options.recipes)):
        require_known_code(folder)
        require_trusted_recipe(folder, load(recipe_file(str(folder))), trust=options.trust)
    recipes = tuple(str(recipe_file(path)) for path in options.recipes)
    out = folder_for(options.out)
    code = sweep(
        replace(options, recipes=recipes, out=str(out)), load_recipe=recipe, plan_run=plan, console=console
    )
    if not options.plan:
        report_sweep(out, console)
    return code


def report_sweep(out: Path, console: Console) -> None:
    """Fit what a sweep has, and write it; a sweep that was stopped before its first result has nothing."""
    from lowrise.scaling.fit import fit_study
    from lowrise.scaling.points import read_points
    from lowrise.scaling.show import show, write

    try:
        points, left_out = read_points([str(out)])
    except UsageError as error:
        console.print(f"Nothing to fit yet: {error}", style="yellow", soft_wrap=True)
        return
    study = fit_study(points, FitRules(), left_out)
    show(study, console)
    _say_written(write(study, out, report=True), console)


def fit(words: Sequence[str], console: Console) -> int:
    """`lowrise scaling fit`."""
    options: FitOptions = parse(FitOptions, words, "scaling fit")
    out = None if options.out is None else folder_for(options.out)
    study = _study(options)
    from lowrise.scaling.fit import document
    from lowrise.scaling.show import show, write

    if options.json:
        print(strict_json(document(study)))
    else:
        show(study, console)
    if out is not None:
        _say_written(write(study, out, report=False), Console(stderr=True) if options.json else console)
    return 0


def plot(words: Sequence[str], console: Console) -> int:
    """`lowrise scaling plot`."""
    options: PlotOptions = parse(PlotOptions, words, "scaling plot")
    out = folder_for(options.out)
    from lowrise.scaling.show import write

    _say_written(write(_study(options), out, report=True), console)
    return 0


def _study(options: FitOptions | PlotOptions) -> Any:
    from lowrise.scaling.fit import check_rules, fit_study
    from lowrise.scaling.points import read_points

    check_rules(options)
    points, left_out = read_points(options.points, options.params)
    return fit_study(points, options, left_out)


def _say_written(paths: Sequence[Path], console: Console) -> None:
    console.print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


PARTS = {
    "run": (run, "train sizes of each recipe at each budget of FLOPs, then fit and report"),
    "fit": (fit, "laws from points: a table, a sweep, runs"),
    "plot": (plot, "the same as a report: curves, optima, laws, multipliers"),
}


def scaling(words: Sequence[str], console: Console) -> int:
    """One of the three parts."""
    part, rest = (words[0], words[1:]) if words else ("", ())
    if part in ("-h", "--help"):
        for name, (_, summary) in PARTS.items():
            console.print(f"lowrise scaling {name}: {summary}", soft_wrap=True)
        return 0
    if not part:
        raise UsageError(
            f"lowrise scaling: say which of {', '.join(PARTS)}, for example lowrise scaling fit DIR."
        )
    command, _ = lookup(PARTS, part, "part", "lowrise scaling")
    return int(command(rest, console))


def folder_for(text: str) -> Path:
    """The value of --out. Raises `UsageError` where no folder is or can be made."""
    return require_folder_place(Path(text), "--out")
