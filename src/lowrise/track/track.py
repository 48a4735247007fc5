"""What a track is on disk: `track.toml` with its budgets, its rule and what is the same for all; an entry is
`entries/NAME.toml`, with `entries/NAME.py` where it needs code; what came out is `results/NAME.json`.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from lowrise.compare.budget import INFERENCE_ELEMENT, RunPlan, step_flops
from lowrise.config.identity import flatten
from lowrise.errors import LowriseError, UsageError, did_you_mean
from lowrise.files import is_known

# What an entry may choose; the rest is the track's.
FREE = (
    "method",
    "plugin",
    "model",
    "layer",
    "optimizer",
    "other",
    "schedule",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.grad_clip",
    "train.per_layer",
    "train.precision",
    "train.compile",
)
BOUND = ("model.vocab_size",)
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Track:
    """A folder with `track.toml`, read and checked."""

    folder: Path
    title: str
    about: str
    seeds: tuple[int, ...]
    inference_bytes: int
    train_flops: float
    alpha: float
    fixed: Mapping[str, Any]
    """Nested recipe keys of every run."""

    def entry_names(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "entries").glob("*.toml"))

    def chosen(self, names: Sequence[str]) -> list[str]:
        """These entries, or all. Raises `UsageError` for a name that has no file."""
        known = self.entry_names()
        for name in names:
            if name not in known:
                raise UsageError(f"{self.folder}: there is no entry {name!r}: {did_you_mean(name, known)}")
        return list(dict.fromkeys(names)) or known

    def result_path(self, name: str) -> Path:
        return self.folder / "results" / f"{name}.json"


@dataclass(frozen=True)
class Entry:
    """One entry: who it is of, and the recipe of its runs, the track's part included."""

    name: str
    title: str
    by: str
    about: str
    recipe: Mapping[str, Any]
    identity: str
    """16 hexadecimal digits of its recipe, its code and the track's rules: a result belongs to them."""

    def to_toml(self) -> str:
        return tomli_w.dumps(dict(self.recipe))


def read_track(folder: Path) -> Track:
    """Raises `UsageError` for a folder that is no track, or whose rules are not complete."""
    folder = folder.expanduser()
    path = folder / "track.toml"
    values = _toml(path, f"{folder} is not a track: it has no track.toml.")
    source = str(path)
    budget, rule = _table(values, "budget", source), _table(values, "rule", source)
    numbers = {
        name: _number(table, name, source)
        for table, name in ((budget, "inference_bytes"), (budget, "train_flops"), (rule, "alpha"))
    }
    if not 0 < numbers["alpha"] < 1:
        raise UsageError(f"{source}: rule.alpha = {numbers['alpha']} is a fraction between 0 and 1.")
    seeds = rule.get("seeds")
    if (
        not isinstance(seeds, list)
        or not all(isinstance(seed, int) for seed in seeds)
        or len({*seeds}) < LEAST_SEEDS
    ):
        raise UsageError(f"{source}: rule.seeds = {seeds!r}: give a list of {LEAST_SEEDS} seeds or more.")
    return Track(
        folder,
        str(values.get("title", folder.resolve().name)),
        str(values.get("about", "")).strip(),
        tuple(dict.fromkeys(seeds)),
        int(numbers["inference_bytes"]),
        numbers["train_flops"],
        numbers["alpha"],
        _table(values, "fixed", source),
    )


def read_entry(track: Track, name: str) -> Entry:
    """Raises `UsageError` for a key that an entry may not choose; what no run can have is found when the
    recipe is loaded."""
    path = track.folder / "entries" / f"{name}.toml"
    values = _toml(path, f"{track.folder}: there is no entry {name}.")
    told = _table(values, "entry", str(path))
    recipe = {key: value for key, value in values.items() if key != "entry"}
    for key in flatten(recipe):
        if not _is_free(key):
            raise UsageError(
                f"{path}: {key} is the track's, the same for every entry; an entry chooses {', '.join(FREE)}."
            )
    plugins, code = _plugins(recipe, path)
    whole = _merged(dict(track.fixed), recipe) | ({"plugin": plugins} if plugins else {})
    facts = [tomli_w.dumps(_merged(dict(track.fixed), recipe)), *code]
    facts += [str(track.inference_bytes), f"{track.train_flops:g}", str(track.seeds)]
    return Entry(
        name,
        str(told.get("title", name)),
        str(told.get("by", "unknown")),
        str(told.get("about", "")).strip(),
        whole,
        hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16],
    )


def steps_of(track: Track, plan: RunPlan) -> int:
    """Updates that the FLOPs of the track pay for, whole ones. Raises `UsageError` below one."""
    steps = int(track.train_flops / step_flops(plan))
    if steps < 1:
        raise UsageError(
            f"one update takes {step_flops(plan):.3g} FLOPs, more than the track's {track.train_flops:.3g}: "
            "lower train.global_batch_size."
        )
    return steps


def inference_bytes_of(plan: RunPlan) -> int:
    """Bytes of the weights of the model that results, in bfloat16."""
    return INFERENCE_ELEMENT * plan.params_total


def require_size(track: Track, entry: Entry, plan: RunPlan) -> None:
    size = inference_bytes_of(plan)
    if size > track.inference_bytes:
        raise UsageError(
            f"{entry.name}: its weights take {size:,} bytes in bfloat16, more than the track's "
            f"{track.inference_bytes:,}: choose a smaller width, depth or rank."
        )


def _is_free(key: str) -> bool:
    within = any(key == free or key.startswith(f"{free}.") for free in FREE)
    return within and key not in BOUND


def _plugins(recipe: Mapping[str, Any], path: Path) -> tuple[list[str], list[str]]:
    """The absolute paths of an entry's code, which lies beside it, and the code."""
    given = recipe.get("plugin", [])
    plugins = [given] if isinstance(given, str) else list(given)
    files = []
    for plugin in plugins:
        file = path.parent / str(plugin)
        if Path(str(plugin)).name != plugin or not file.is_file():
            raise UsageError(f"{path}: plugin {plugin!r} must be a Python file beside the entry.")
        files.append(file.resolve())
    return [str(file) for file in files], [file.read_text(encoding="utf-8") for file in files]


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in above.items():
        inner = below.get(key)
        nested = isinstance(inner, Mapping) and isinstance(value, Mapping)
        below[key] = _merged(dict(inner), value) if nested else value  # type: ignore[arg-type]
    return below


def _toml(path: Path, missing: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(missing) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from None
    except OSError as error:
        raise LowriseError(f"{path} cannot be read ({error.strerror}).") from error


def _table(values: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    found = values.get(name)
    if not isinstance(found, dict):
        raise UsageError(f"{source}: the table [{name}] is missing.")
    return found


def _number(values: Mapping[str, Any], name: str, source: str) -> float:
    value = values.get(name)
    if not is_known(value) or value <= 0:
        raise UsageError(f"{source}: {name} = {value!r}: give a number above 0.")
    return float(value)
