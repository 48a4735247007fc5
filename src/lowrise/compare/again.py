"""The pages of a comparison written again, from its numbers; nothing is trained and no number changes."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

from lowrise.compare.compare import Runs, so_far
from lowrise.compare.outcomes import Outcome
from lowrise.compare.page import to_html
from lowrise.compare.plan import LoadRecipe, Plan, RunKey
from lowrise.compare.report import read_comparison
from lowrise.compare.rows import Comparison
from lowrise.compare.runner import take_in
from lowrise.compare.stored import read_stored, stored
from lowrise.config.places import named_code
from lowrise.errors import LowriseError, UsageError
from lowrise.files import write_whole

_COMMAND = "lowrise compare"


def is_comparison(folder: Path) -> bool:
    """Whether this is the folder of a comparison, or of one of its tables."""
    return bool(_tables(folder)) or (folder / "compare.json").is_file()


def write_again(folder: Path, out: Path | None, load_recipe: LoadRecipe) -> list[Path]:
    """Write `report.html` of every table and of the folder, which has the newest one; with `out` that one
    alone, there. Returns what was written.

    A table without numbers, of a comparison that was begun, gets those of the runs so far. Raises
    `LowriseError` where something is missing that the page would lack.
    """
    tables = _tables(folder)
    if not tables:  # a table by itself
        home = folder.parent.parent if folder.parent.name == "tables" else folder
        return [_page(folder, home / "runs", out, load_recipe)]
    newest = _newest(folder, tables)
    if out is not None:
        return [_page(newest, folder / "runs", out, load_recipe)]
    written = [_page(table, folder / "runs", None, load_recipe) for table in tables]
    shutil.copyfile(newest / "report.html", folder / "report.html")
    return [*written, folder / "report.html"]


def _tables(folder: Path) -> list[Path]:
    found = {
        path.parent for name in ("plan.json", "compare.json") for path in folder.glob(f"tables/*/{name}")
    }
    return sorted(found)


def _newest(folder: Path, tables: list[Path]) -> Path:
    """The table that the folder's own files are copies of; before there is one, that of the newest plan."""
    own = folder / "plan.json"
    if own.is_file():
        for table in tables:
            plan = table / "plan.json"
            if plan.is_file() and plan.read_bytes() == own.read_bytes():
                return table
    return max(tables, key=_begun)


def _begun(table: Path) -> str:
    plan = table / "plan.json"
    return str(read_stored(plan, _COMMAND).get("written", "")) if plan.is_file() else ""


def _page(table: Path, runs_dir: Path, out: Path | None, load_recipe: LoadRecipe) -> Path:
    target = out or table / "report.html"
    if target.exists() and not runs_dir.is_dir():
        raise LowriseError(
            f"{runs_dir} is not there, and without its runs {target} would lose its curves: bring them back, "
            "or name another file with --out."
        )
    if (table / "compare.json").is_file():
        comparison, environment = read_comparison(table / "compare.json")
    else:
        comparison, environment = _from_runs(table, runs_dir, load_recipe)
    write_whole(target, to_html(comparison, runs_dir, environment))
    return target


def _from_runs(table: Path, runs_dir: Path, load_recipe: LoadRecipe) -> tuple[Comparison, dict[str, Any]]:
    """The comparison as its plan and the runs so far make it."""
    document = read_stored(table / "plan.json", _COMMAND)
    plan = _plan_of(document, table / "plan.json", load_recipe)
    runs, outcomes = Runs(plan, load_recipe), dict[RunKey, Outcome]()
    missing = {run["name"] for run in document["grid_runs"]} - {spec.name for spec in runs.required({})}
    if missing:
        raise LowriseError(
            f"{table / 'plan.json'}: the recipes are not as they were planned (no run is {min(missing)} "
            f"now): {_COMMAND} with the same recipes and folder writes the table."
        )
    take_in(runs.required, outcomes, runs_dir)
    changed = len(list(table.glob("plan-*.json")))
    return so_far(plan, runs, outcomes, changed), document.get("environment", {})


def _plan_of(document: dict[str, Any], path: Path, load_recipe: LoadRecipe) -> Plan:
    """The plan in `plan.json`, its recipes read again from where they lie."""
    settings = dict(document.get("settings", {}))
    recipes = []
    for recipe in document.get("recipes", ()):
        _require_no_code(Path(recipe["path"]), path)
        loaded = load_recipe(recipe["path"], settings | recipe["settings"])
        recipes.append({**recipe, "config": loaded.to_dict()})
    plan = {**document, "recipes": recipes, "overrides": [[key, value] for key, value in settings.items()]}
    return stored(Plan, plan, path)


def _require_no_code(recipe: Path, plan: Path) -> None:
    """A plan that somebody has sent may name any recipe, and a recipe code that is run when it is read."""
    try:
        code = named_code(tomllib.loads(recipe.read_text(encoding="utf-8")))
    except OSError as error:
        raise LowriseError(
            f"{plan}: its recipe {recipe} cannot be read ({error.strerror}): bring it back."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{recipe} is not valid TOML: {error}.") from None
    if code:
        raise LowriseError(
            f"{plan}: its recipe {recipe} runs the code in {', '.join(code)}: {_COMMAND} with the same "
            "recipes and folder writes the table."
        )
