"""A configuration from TOML, dotted settings and a method's defaults."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lowrise.config.derived import (
    layer_names,
    layer_section,
    model_section,
    optimizer_names,
    optimizer_section,
)
from lowrise.config.renamed import drop_removed, take_renamed
from lowrise.config.rules import validate
from lowrise.config.sections import DENSE
from lowrise.config.tree import RunConfig
from lowrise.config.values import coerce, set_dotted
from lowrise.config.writer import naming_writer, writer_of
from lowrise.errors import UsageError
from lowrise.methods import METHODS, Method
from lowrise.names import lookup, nearest
from lowrise.plugins import load_plugins

NO_RECIPE = "There is no recipe at {path}: give the path of a TOML file."


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Configuration from a TOML file (none: the defaults) with dotted overrides such as `{"optimizer.lr":
    0.01}`."""
    values: dict[str, Any] = {}
    text = ""
    if path is not None:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8-sig")  # some editors write a mark first
            values = tomllib.loads(text)
        except FileNotFoundError:
            raise UsageError(NO_RECIPE.format(path=path)) from None
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}; PowerShell's > writes "
                "UTF-16): save it as UTF-8."
            ) from None
        except (ValueError, RecursionError) as error:  # also a number of more digits than Python takes
            as_text = "" if Path(path).suffix == ".toml" else f" Text to train on: --data.source {path}."
            raise UsageError(f"{path} is not valid TOML: {error}.{as_text}") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): give a TOML file.") from None
    for key, value in (overrides or {}).items():
        set_dotted(values, key, value)
    source = str(path) if path is not None else "the command line"
    with naming_writer(writer_of(text), source):
        return from_dict(values, source=source)


def from_dict(values: Mapping[str, Any], *, source: str = "the configuration") -> RunConfig:
    """Build and validate a configuration from nested plain values; an unknown key names the nearest known
    one."""
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    take_renamed(values, source)
    drop_removed(values, source)
    load_plugins(coerce(values.get("plugin", ()), tuple[str, ...], source, "plugin"))
    method = lookup(METHODS, values.get("method", RunConfig.method), "method", source)
    sections = _sections(values, method, source)
    for key, value in method.defaults.items():
        # Defaults of the method's own layer and optimizer mean nothing to another class.
        section = key.split(".")[0]
        if section not in ("layer", "optimizer") or values[section]["name"] == getattr(method, section):
            set_dotted(values, key, value, only_if_absent=True)
    config = _build(RunConfig, values, source, where="", sections=sections)
    validate(config)
    return config


def _sections(values: dict[str, Any], method: Method, source: str) -> dict[str, type]:
    """The classes of the three sections whose fields depend on a name; fills in the names."""
    layer = values.setdefault("layer", {})
    optimizer = values.setdefault("optimizer", {})
    for section, name in ((layer, method.layer), (optimizer, method.optimizer)):
        if not isinstance(section, dict):
            raise UsageError(
                f"{source}: layer and optimizer are tables, [layer] and [optimizer], not {section!r}."
            )
        section.setdefault("name", name)
    if layer["name"] != DENSE:
        lookup(dict.fromkeys([DENSE, *layer_names()]), layer["name"], "layer", source)
    lookup(dict.fromkeys(optimizer_names()), optimizer["name"], "optimizer", source)
    return {
        "model": model_section(),
        "layer": layer_section(layer["name"]),
        "optimizer": optimizer_section(optimizer["name"]),
    }


def _build(cls: type, values: Any, source: str, where: str, sections: Mapping[str, type]) -> Any:
    """`sections`: the classes of those sections of the whole tree that depend on a name."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{source}: {where} is a table, not {values!r}.")
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        full = f"{where}.{key}" if where else key
        if key not in known:
            every = _dotted_keys(RunConfig, sections)
            raise UsageError(f"{source}: unknown key {full!r}{nearest(full, every)}.")
        kind = sections.get(full, hints[key])
        if dataclasses.is_dataclass(kind):
            arguments[key] = _build(typing.cast(type, kind), value, source, full, sections)
        else:
            arguments[key] = coerce(value, kind, source, full)
    for key, kind in sections.items() if not where else ():
        arguments.setdefault(key, kind())
    return cls(**arguments)


def _dotted_keys(cls: type, sections: Mapping[str, type], where: str = "") -> list[str]:
    """Every key that a recipe may have, as `section.key`."""
    hints = typing.get_type_hints(cls)
    keys: list[str] = []
    for field in fields(cls):
        full = f"{where}{field.name}"
        kind = sections.get(full, hints[field.name])
        inner = dataclasses.is_dataclass(kind)
        keys += _dotted_keys(typing.cast(type, kind), sections, f"{full}.") if inner else [full]
    return keys
