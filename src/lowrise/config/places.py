"""The files and folders that a configuration names, and the same configuration from any working folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lowrise.config.tree import RunConfig
from lowrise.data.hub import HUB, is_on_hub


def resolved(config: RunConfig) -> RunConfig:
    """A copy whose places do not depend on the working folder: relative paths and `~` made absolute."""
    config = copy.deepcopy(config)
    data, evaluation = config.data, config.eval
    data.source = tuple(map(source_place, data.source))
    data.valid = tuple(map(source_place, data.valid))
    data.tokenizer = data.tokenizer and _absolute(data.tokenizer)
    data.cache = data.cache and _absolute(data.cache)
    data.chat_template = data.chat_template and _absolute(data.chat_template)
    config.init.run = config.init.run and _absolute(config.init.run)
    config.init.model = config.init.model and _absolute(config.init.model)
    evaluation.extra = {name: source_place(source) for name, source in evaluation.extra.items()}
    return config


def source_place(source: str) -> str:
    """An entry of `data.source` from any folder; what is no path stays as it is."""
    if source == "builtin":
        return source
    if not source.startswith(HUB):
        return _absolute(source)
    if is_on_hub(source):
        return source
    name, colon, rest = source.removeprefix(HUB).partition(":")
    return f"{HUB}{_absolute(name)}{colon}{rest}"


def named_places(values: Mapping[str, Any]) -> list[str]:
    """What a use of the run's text would read or write outside of the run's folder, resolved, and what code
    it would run: of a configuration's nested values, which nobody has checked."""
    data, evaluation = (_table(values.get(name)) for name in ("data", "eval"))
    sources = [*_texts(data.get("source")), *_texts(data.get("valid")), *_texts(evaluation.get("extra"))]
    named = [source_place(source) for source in sources if source != "builtin"]
    paths = [p for key in ("tokenizer", "cache", "chat_template") for p in _texts(data.get(key))]
    return [*named, *map(_absolute, paths), *named_code(values)]


def named_origins(values: Mapping[str, Any]) -> list[str]:
    """Where training would take first weights from, resolved."""
    init = _table(values.get("init"))
    return [_absolute(place) for key in ("run", "model") for place in _texts(init.get(key))]


def named_code(values: Mapping[str, Any]) -> list[str]:
    """Python files and modules that a configuration loads as soon as it is built."""
    return _texts(values.get("plugin"))


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> list[str]:
    """A text, or those of a list or table."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _absolute(path: str) -> str:
    """Without following links: a link may be meant to lead elsewhere later."""
    place = Path(path)
    with suppress(RuntimeError):  # the home folder of nobody
        place = place.expanduser()
    return str(place.absolute())
