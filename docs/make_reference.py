"""Writes the generated pages: `python docs/make_reference.py`.

- api/ROOM.md: the public names of `lowrise` and of its rooms, from their `__all__`
- methods/index.md: the table of methods, from `lowrise.methods`
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from lowrise.methods import METHODS, Method

DOCS = Path(__file__).resolve().parent
PUBLIC = ("lowrise", "lowrise.layers", "lowrise.optim", "lowrise.model", "lowrise.data")
NOTE = "<!-- Written by docs/make_reference.py. -->"


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")
        print(DOCS / name)


def pages() -> dict[str, str]:
    """Path below docs -> text."""
    return {f"api/{name.rpartition('.')[2]}.md": api_page(name) for name in PUBLIC} | {
        "methods/index.md": methods_page()
    }


def api_page(module_name: str) -> str:
    """A page with one entry for each name in `__all__`."""
    module = importlib.import_module(module_name)
    entries = [entry(module, name) for name in sorted(module.__all__, key=str.lower)]
    return "\n\n".join([f"{NOTE}\n\n# {module_name}", *entries]) + "\n"


def entry(module: ModuleType, name: str) -> str:
    if isinstance(getattr(module, name), ModuleType):
        return f"`{module.__name__}.{name}`: see [{module.__name__}.{name}]({name}.md)."
    return f"::: {module.__name__}.{name}"


def methods_page() -> str:
    rows = "\n".join(row_of(method) for method in METHODS.values())
    return (
        f"{NOTE}\n\n# Methods\n\n"
        "`lowrise train --method NAME`; `lowrise methods NAME` shows what a method starts from, "
        "`--cite` its papers.\n\n"
        f"| method | layer | optimizer | what | source |\n|---|---|---|---|---|\n{rows}\n"
    )


def row_of(method: Method) -> str:
    cells = (f"[`{method.name}`]({method.name}.md)", f"`{method.layer}`", f"`{method.optimizer}`")
    return "| " + " | ".join([*cells, method.summary, method.source]) + " |"


if __name__ == "__main__":
    main()
