"""Where recipes differ, as a table: a column for each of a few recipes, else a row for each value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowrise.report import html

_COLUMNS = 5  # recipes; more are wider than a page


def differences(settings: Mapping[str, Mapping[str, Any]], names: Sequence[str], *, key: str) -> str:
    """The table of `settings`, key -> recipe -> value (None or absent: unset), with only the keys whose
    values are not all the same; a sentence where there is none. `key` is the title of the first column.
    """
    rows = {setting: [_shown(by.get(name)) for name in names] for setting, by in settings.items()}
    rows = {setting: values for setting, values in rows.items() if len(set(values)) > 1}
    if not rows:
        return html.note("They are the same in every key.")
    if len(names) <= _COLUMNS:
        return html.table((key, *names), [[setting, *values] for setting, values in rows.items()], text=True)
    lines = []
    for setting, values in rows.items():
        holders: dict[str, list[str]] = {}
        for name, value in zip(names, values, strict=True):
            holders.setdefault(value, []).append(name)
        order = sorted(holders, key=lambda value: len(holders[value]))  # what is rare is what one looks for
        for i, value in enumerate(order):
            is_rest = value == order[-1] and len(holders[value]) > 1
            who = f"the other {len(holders[value])}" if is_rest else ", ".join(holders[value])
            lines.append(["" if i else setting, value, who])
    return html.table((key, "value", "recipes"), lines, text=True)


_UNSET = "unset"


def _shown(value: Any) -> str:
    return _UNSET if value is None else str(value)
