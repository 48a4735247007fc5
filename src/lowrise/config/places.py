"""The files and folders that a configuration names, and the same configuration from any working folder."""

from __future__ import annotations

import copy
from pathlib import Path

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
    config.init.run = config.init.run and _absolute(config.init.run)
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


def named_places(config: RunConfig) -> list[str]:
    """What a use of the run's text would read or write outside of the run's folder, resolved."""
    config = resolved(config)
    data = config.data
    sources = [*data.source, *data.valid, *config.eval.extra.values()]
    named = [source for source in sources if source != "builtin"]
    return [*named, *(place for place in (data.tokenizer, data.cache) if place)]


def _absolute(path: str) -> str:
    """Without following links: a link may be meant to lead elsewhere later."""
    return str(Path(path).expanduser().absolute())
