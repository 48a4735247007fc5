"""`lowrise methods NAME`; what needs torch is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lowrise.errors import UsageError
from lowrise.files import write_whole
from lowrise.methods import METHODS
from lowrise.names import lookup


@dataclass(kw_only=True)
class MethodOptions:
    """The table of methods; with a name, the configuration that it starts from, as TOML."""

    name: Positional[str | None] = None
    """A method."""
    size: str | None = None
    """Print its recipe for a published size instead: 60m, 130m, 350m, 1b, 3b or 7b."""
    write: bool = False
    """Write that recipe to NAME-SIZE.toml in this folder instead of printing it."""
    cite: bool = False
    """Print the BibTeX of its papers instead."""
    plugin: tuple[str, ...] = ()
    """Python files, or names of modules, that add methods."""


def method_text(command: MethodOptions) -> str:
    """The configuration, the recipe or the papers that `lowrise methods NAME` prints; with `write`, where the
    recipe was put.
    """
    row = lookup(METHODS, str(command.name), "method", "lowrise methods")
    if command.cite:
        return row.bibtex() + "\n"
    if command.size is None:
        if command.write:
            raise UsageError("lowrise methods --write: say which recipe with --size, for example --size 60m.")
        from lowrise.config import load

        options = {"method": row.name, "plugin": command.plugin}
        return f"# {row.name}: {row.summary}\n# {row.source}\n\n{load(None, options).to_toml()}"
    from lowrise.runs.recipes import recipe

    text = recipe(row.name, command.size, command.plugin)
    if not command.write:
        return text
    path = Path(f"{row.name}-{command.size}.toml")
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise UsageError(f"{path} is there with other content: move it away, or print the recipe instead.")
    write_whole(path, text)
    return f"{path}\n"
