"""Recipes of the published sizes, made from one table of sizes and methods (`recipes.toml` beside this file).

A recipe is the method's own values over those of the protocol that all share, each with its source as a
comment. A method without a table of its own, such as a plugin's, gets the protocol and the defaults of its
row in `lowrise.methods`.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import tomli_w

from lowrise.config import RunConfig, from_dict
from lowrise.methods import METHODS
from lowrise.names import lookup
from lowrise.plugins import absolute
from lowrise.runs.plan import plan_run

SIZES = ("60m", "130m", "350m", "1b", "3b", "7b")
SECTIONS = ("model", "layer", "optimizer", "other", "schedule", "data", "train", "eval", "checkpoint", "log")
PUBLISHED = ("60m", "130m", "350m", "1b", "7b")  # sizes whose parameter counts the papers state


def recipe(name: str, size: str, plugin: Sequence[str] = ()) -> str:
    """The recipe of a method at a size, as TOML with the sources of its numbers as comments.

    `plugin` has the files or modules that the method is from; they must be loaded.

    Raises `UsageError` for an unknown method or size.
    """
    method = lookup(METHODS, name, "method", "lowrise methods")
    lookup(dict.fromkeys(SIZES), size, "size", "lowrise methods --size")
    table = _table()
    own: Mapping[str, Any] = table.get(name) or {
        "title": f"{method.summary[0].upper()}{method.summary[1:]}.",
        **{key: tomli_w.dumps({"x": value})[4:].strip() for key, value in method.defaults.items()},
    }
    values = {key: _value(entry, size) for key, entry in _entries(table["protocol"])}
    values |= {key: _value(entry, size) for key, entry in _entries(own)}
    lines = [f'method = "{name}"', "seed = 0"]
    if plugin:
        lines.insert(0, tomli_w.dumps({"plugin": absolute(plugin)}).strip())
    for section in SECTIONS:
        rows = [f"{key.split('.', 1)[1]} = {v}" for key, v in values.items() if v and _in(key, section)]
        if section == "model":
            rows.insert(0, f'preset = "{size}"')
        if rows:
            lines += ["", f"[{section}]", *rows]
    body = "\n".join(lines) + "\n"
    return "".join(f"# {line}\n" for line in _header(table["protocol"], own, size, body)) + body


def _header(protocol: Mapping[str, Any], own: Mapping[str, Any], size: str, body: str) -> list[str]:
    about = [line.replace("SIZE", size) for line in own.get("about", protocol["about"])]
    notes = own.get(f"notes.{size}", own.get("notes", []))
    header = [own["title"], *about, *notes, *protocol["deviations"]]
    if size in PUBLISHED:
        config: RunConfig = from_dict(tomllib.loads(body))
        header.append(f"Parameters: {plan_run(config, config.data.vocab_size).params_total:,}.")
    return header


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("lowrise.runs").joinpath("recipes.toml").read_text(encoding="utf-8"))


def _entries(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What is a dotted key of a configuration."""
    return [(key, entry) for key, entry in table.items() if key.split(".")[0] in SECTIONS]


def _in(key: str, section: str) -> bool:
    return key.startswith(f"{section}.")


def _value(entry: str | Mapping[str, str], size: str) -> str | None:
    """What stands right of the "=" at a size; None where the table has nothing for it."""
    if isinstance(entry, str):
        return entry
    value = entry.get(size, entry.get("all"))
    note = entry.get("note")
    return value if value is None or note is None or "  # " in value else f"{value}  # {note}"
