"""Recipes drawn at random from every key that there is: each trains, or ends in one message."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import threading
import types
import typing
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union

import pytest
import tomli_w
from nursery import Nursery
from small_runs import write_text

from lowrise.config import RunConfig
from lowrise.config.derived import layer_section, model_section, optimizer_section
from lowrise.config.sections import DENSE
from lowrise.layers import LAYERS
from lowrise.methods import METHODS
from lowrise.optim import OPTIMIZERS

SECONDS = 120

# Values that many keys may have, and (drawn once in eight) values that few or none may have.
INTEGERS = (0, 1, 2, 3, 4, 5, 8, 16, 60, 64, 1000), (-1, 2**31, 10**30)
NUMBERS = (0.0, 1.0, 0.5, 0.1, 1e-3, 1e-8, 2.0, 100.0), (-1.0, 1e30, float("inf"), float("nan"))
PATTERNS = ([], ["*.mlp.*"], ["*.q_proj", "*.k_proj"], ["nothing"], "*.up_proj")

# What a run is about is not drawn: where its text is, how long it may take, what is not this machine's.
FIXED = {"data", "plugin", "method", "init", "parallel"}
FIXED |= {"train.steps", "train.device", "train.compile", "train.threads", "model.preset", "eval.extra"}
FIXED |= {"layer.name", "optimizer.name", "train.precision"}


def keys_of(layer: str, optimizer: str) -> dict[str, Any]:
    """Every key that may be drawn, with its kind."""
    sections: dict[str, type] = {
        "model": model_section(),
        "layer": layer_section(layer),
        "optimizer": optimizer_section(optimizer),
    }
    keys: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(RunConfig).items():
        kind = sections.get(name, kind)
        if name in FIXED:
            continue
        inner = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else None
        keys |= {name: kind} if inner is None else {f"{name}.{key}": k for key, k in inner.items()}
    return {key: kind for key, kind in keys.items() if key not in FIXED}


def drawn(kind: Any, draw: random.Random) -> Any:
    """A value of a kind, of those that TOML can hold; none: leave the key out."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return drawn(draw.choice(inner), draw)
    if origin is Literal:
        return draw.choice(inner)
    if kind is bool:
        return draw.random() < 0.5
    if kind is int:
        return draw.choice(INTEGERS[draw.random() < 1 / 8])
    if kind is float:
        return draw.choice(NUMBERS[draw.random() < 1 / 8])
    if kind is str:
        return draw.choice(("the", "", "[red]rank[/]"))
    if kind == tuple[str, ...]:
        return draw.choice(PATTERNS)
    if origin is tuple:
        length = draw.randint(0, 3) if inner[-1] is Ellipsis else len(inner)
        return [drawn(inner[0], draw) for _ in range(length)]
    if origin is dict:
        return {} if draw.random() < 0.3 else {"*.q_proj": drawn(inner[1], draw), "*": drawn(inner[1], draw)}
    return None


def recipe(draw: random.Random, folder: Path) -> dict[str, dict[str, Any]]:
    """A tiny run of some method, at times with another's layer or optimizer, and one to five keys drawn."""
    method = METHODS[draw.choice(sorted(METHODS))]
    layer = draw.choice([DENSE, *sorted(LAYERS)]) if draw.random() < 0.2 else method.layer
    optimizer = draw.choice(sorted(OPTIMIZERS)) if draw.random() < 0.2 else method.optimizer
    values: dict[str, Any] = {
        "method": method.name,
        "model": {"preset": "nano"},
        "data": {"source": [str(folder / "text.jsonl")], "valid_fraction": 0.1, "vocab_size": 300},
        "train": {"steps": 4, "global_batch_size": 4, "seq_len": 16, "device": "cpu"},
        "layer": {"name": layer},
        "optimizer": {"name": optimizer},
        "eval": {"every": 2},
        "checkpoint": {"every": 2},
        "log": {"every": 1, "telemetry_every": 2, "tensorboard": False},
        "sample": {"tokens": 4},
    }
    values["data"]["cache"] = str(folder / "cache")
    keys = keys_of(layer, optimizer)
    own = [key for key in sorted(keys) if key.startswith(("layer.", "optimizer."))]
    for _ in range(draw.randint(1, 5)):
        key = draw.choice(own if draw.random() < 0.5 else sorted(keys))
        value = drawn(keys[key], draw)
        section, _, option = key.rpartition(".")
        if value is not None:
            (values.setdefault(section, {}) if section else values)[option] = value
    return values


def outcome(nursery: Nursery, values: dict[str, Any], folder: Path) -> str:
    """How the run of a recipe ended: trained, or its error message after "refused" (2) or "failed" (1)."""
    folder.mkdir()
    path, errors, output = folder / "recipe.toml", folder / "errors.txt", folder / "output.txt"
    path.write_text(tomli_w.dumps(values))
    process = nursery.start(["train", str(path), "--run", str(folder / "run")], errors, output)
    late = threading.Timer(SECONDS, os.kill, (process, signal.SIGKILL))
    late.start()
    code, late_already = nursery.end(), not late.is_alive()
    late.cancel()
    said = errors.read_text() + output.read_text()
    what = f"ended with {code}:\n{path.read_text()}\n{said}"
    assert not late_already, f"took more than {SECONDS} s, {what}"
    assert code in (0, 1, 2), what
    assert not any(word in said for word in ("Traceback", "Warning")), what
    if code == 0:
        summary = json.loads((folder / "run" / "summary.json").read_text())
        assert summary["steps"] == 4, what
        return "trained"
    message = errors.read_text().strip()
    assert message, what
    return f"{'failed' if code == 1 else 'refused'}: {message}"


def try_recipes(count: int, folder: Path, seed: int) -> Counter[str]:
    """`count` recipes one after the other; how they ended, counted."""
    draw, nursery, ends = random.Random(seed), Nursery(), Counter[str]()
    write_text(folder / "text.jsonl")
    faults = []
    for number in range(count):
        values = recipe(draw, folder)
        try:
            end = outcome(nursery, values, folder / f"recipe-{number}")
        except AssertionError as error:
            faults.append(f"{number}: {error}")
            end = "fault"
        ends[end] += 1
    nursery.close()
    with suppress(OSError):
        (folder / "ends.json").write_text(json.dumps(ends.most_common(), indent=1))
    assert not faults, f"{len(faults)} of {count} recipes:\n\n" + "\n\n".join(faults)
    return ends


def test_some_recipes_drawn_at_random(tmp_path):
    ends = try_recipes(30, tmp_path, seed=1)
    assert ends["trained"] > 3
    assert len(ends) > 5


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_thousand_recipes_drawn_at_random(tmp_path, capsys):
    ends = try_recipes(2000, tmp_path, seed=int(os.environ.get("LOWRISE_RECIPE_SEED", "2")))
    kinds = Counter(end.split(":")[0] for end in ends.elements())
    with capsys.disabled():
        print("\n", dict(kinds))
