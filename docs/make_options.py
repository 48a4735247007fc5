"""Writes the options of layers and optimizers as dataclasses: `python docs/make_options.py`.

- src/lowrise/config/layer_options.py: a section for each class of `LAYERS`
- src/lowrise/config/optimizer_options.py: a section for each class of `OPTIMIZERS`

Both are what `config/derived.py` reads from the constructors and their docstrings. They are files, so that
help and messages about flags need not import the classes, and torch with them; a test compares them with
the classes.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrise.config.derived import field_help, layer_options, optimizer_options
from lowrise.config.sections import FactorizedSection, OptimizerSection
from lowrise.layers import LAYERS
from lowrise.optim import OPTIMIZERS

CONFIG = Path(__file__).resolve().parents[1] / "src" / "lowrise" / "config"


def main() -> None:
    for name, text in files().items():
        (CONFIG / name).write_text(text, encoding="utf-8")


def files() -> dict[str, str]:
    """Name of a file -> what stands in it."""
    layers = {name: layer_options(cls) for name, cls in LAYERS.items()}
    optimizers = {name: optimizer_options(cls) for name, cls in OPTIMIZERS.items()}
    return {
        "layer_options.py": module("layers", "LAYER_OPTIONS", layers, FactorizedSection),
        "optimizer_options.py": module("optimizers", "OPTIMIZER_OPTIONS", optimizers, OptimizerSection),
    }


def module(what: str, table: str, sections: Mapping[str, type], base: type) -> str:
    classes = "\n\n\n".join(as_class(section, base) for section in sections.values())
    rows = "".join(f'    "{name}": {section.__name__},\n' for name, section in sections.items())
    typing_names = "ClassVar, Literal" if "ClassVar" in classes else "Literal"
    return (
        f'"""Options of the {what}, as their constructors have them.\n\n'
        'Written by `python docs/make_options.py`: change the classes, not this file.\n"""\n\n'
        "from __future__ import annotations\n\n"
        f"from dataclasses import dataclass\nfrom typing import {typing_names}\n\n"
        f"from lowrise.config.sections import {base.__name__}\n\n\n"
        f"{classes}\n\n\n"
        f"{table}: dict[str, type[{base.__name__}]] = {{\n{rows}}}\n"
        '"""Name in recipes -> its section."""\n'
    )


def as_class(section: type, base: type) -> str:
    """The source of a section's dataclass: what it adds to its base. A text is one line: `tyro` keeps some
    breaks."""
    inherited = {f.name for f in dataclasses.fields(base)}
    own = [f for f in dataclasses.fields(section) if f.name not in inherited or f.name == "lr"]
    hints, help_texts = typing.get_type_hints(section), field_help(section)
    lines = ["@dataclass(kw_only=True)", f"class {section.__name__}({base.__name__}):"]
    if "role" in vars(section):
        lines.append(f"    role: ClassVar[str | None] = {quoted(section.role)}\n")  # type: ignore[attr-defined]
    for f in own:
        lines += [f"    {f.name}: {as_source(hints[f.name])} = {quoted(f.default)}"]
        lines += [f'    """{help_texts[f.name]}"""']
    return "\n".join(lines)


def as_source(kind: Any) -> str:
    """An annotation as it is written."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(as_source, inner))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(quoted, inner))}]"
    if origin is tuple:
        return f"tuple[{', '.join('...' if k is Ellipsis else as_source(k) for k in inner)}]"
    return "None" if kind is types.NoneType else str(kind.__name__)


def quoted(value: Any) -> str:
    """A default as it is written, strings in double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    main()
