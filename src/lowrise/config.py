"""The configuration of a run: a tree of dataclasses, read from TOML, changed by dotted flags, written back
resolved.

Three sections take their fields from the thing that they configure, so that no option is written twice:
`[model]` from `LlamaConfig`, `[layer]` and `[optimizer]` from the constructor of the named class. Order of
precedence, weakest first: the defaults below, the method's row in `methods.py`, the recipe, the command
line.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

import tomli_w

from lowrise.data.config import DataConfig
from lowrise.errors import UsageError
from lowrise.layers import LAYERS
from lowrise.methods import METHODS, Method
from lowrise.model.config import PRESETS, LlamaConfig
from lowrise.optim import OPTIMIZERS

DENSE = "dense"


@dataclass(kw_only=True)
class ModelSection:
    """The decoder. Fields left out take the preset's value."""

    preset: str = "tiny"
    """Named size; the others override single numbers of it."""


@dataclass(kw_only=True)
class LayerSection:
    """How the matrices of the blocks are stored."""

    name: str = DENSE
    """Layer class, or "dense" for ordinary linear layers."""


@dataclass(kw_only=True)
class FactorizedSection(LayerSection):
    """How the matrices of the blocks are stored."""

    rank: int | float | dict[str, int | float] = 0.25
    """Rank (1 or more), ratio of min(rows, columns) (below 1), or a table of name patterns to either."""
    targets: tuple[str, ...] = ()
    """Patterns of module names to factorize; empty: every linear layer but the head."""
    skip: tuple[str, ...] = ()
    """Patterns of module names to leave dense."""


@dataclass(kw_only=True)
class OptimizerSection:
    """The rule that moves the matrices."""

    name: str = "adamw"
    """Optimizer class."""
    lr: float = 1e-3
    """Peak learning rate of the matrices."""


@dataclass(kw_only=True)
class OtherSection:
    """AdamW for what is not a matrix of the optimizer: embedding, head, norms, biases, layers left dense."""

    lr: float | None = None
    """Peak learning rate; none: the matrices' rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""


@dataclass(kw_only=True)
class ScheduleSection:
    """Learning-rate multiplier over the updates."""

    name: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup: float = 0.05
    """Warm-up: a share of all updates (below 1) or a number of updates."""
    final: float = 0.1
    """Multiplier at the last update."""
    decay: float = 0.2
    """wsd: share of the updates (or number of updates) of the final linear decay."""
    cycle: int = 0
    """Restart the warm-up every so many updates; 0: never."""
    restart_warmup: int = 0
    """Updates of the warm-up after a restart or after the optimizer reset its moments; 0: no dip."""


@dataclass(kw_only=True)
class TrainSection:
    """The loop."""

    steps: int = 1000
    """Updates of the weights."""
    sequences: int = 16
    """Sequences an update (the global batch)."""
    micro_sequences: int = 0
    """Sequences a forward pass; gradients are accumulated over sequences / micro_sequences passes. 0: all
    at once."""
    seq_len: int = 128
    """Predicted tokens a sequence."""
    clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16: autocast over float32 master weights. auto: bfloat16 on a GPU, float32 on a CPU."""
    compile: bool = False
    """torch.compile each block."""
    threads: int = 0
    """CPU threads; 0: torch's choice."""
    deterministic: bool = True
    """Ask torch for deterministic kernels, so that the same recipe gives the same bits."""
    nonfinite_limit: int = 10
    """Stop after so many updates in a row were skipped for a loss or gradient that is not finite."""


@dataclass(kw_only=True)
class EvalSection:
    """Validation. The last evaluation always covers the whole held-out split."""

    every: int = 100
    """Updates between evaluations; 0: only at the end."""
    tokens: int = 0
    """Held-out tokens of an evaluation during training; 0: the whole split."""
    sequences: int = 32
    """Sequences a forward pass."""


@dataclass(kw_only=True)
class CheckpointSection:
    """What is kept to continue from."""

    every: int = 200
    """Updates between checkpoints; 0: only at the end or when stopped."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""


@dataclass(kw_only=True)
class LogSection:
    """What is written while training."""

    every: int = 10
    """Updates between lines of metrics.jsonl."""
    telemetry_every: int = 100
    """Updates between spectral measurements of every matrix; 0: never."""
    tensorboard: bool = True
    """Write TensorBoard events."""


@dataclass(kw_only=True)
class SampleSection:
    """The text generated at the end."""

    prompt: str | None = None
    """Beginning of the sample; none: the document separator."""
    tokens: int = 120
    """Tokens to generate; 0: no sample."""
    temperature: float = 0.8
    """Softmax temperature; 0: greedy."""
    top_p: float = 0.95
    """Nucleus: the smallest set of tokens with this probability."""


@dataclass(kw_only=True)
class RunConfig:
    """Train one model."""

    method: str = "spectron"
    """Row of the table of methods (lowrise methods)."""
    seed: int = 0
    """Seed of the weights, the batch order and the sample."""
    model: ModelSection = field(default_factory=ModelSection)
    layer: LayerSection = field(default_factory=LayerSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    other: OtherSection = field(default_factory=OtherSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainSection = field(default_factory=TrainSection)
    eval: EvalSection = field(default_factory=EvalSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    log: LogSection = field(default_factory=LogSection)
    sample: SampleSection = field(default_factory=SampleSection)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values without the unset ones; `from_dict` of it gives the same configuration."""
        return _plain(dataclasses.asdict(self))

    @property
    def hash(self) -> str:
        """Identity of the result: what is saved, shown or cached on the way does not count."""
        values = self.to_dict()
        for section in ("checkpoint", "log"):
            del values[section]
        for name in ("cache", "workers"):
            values["data"].pop(name, None)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """The resolved configuration; `load` of it gives the same one."""
        return tomli_w.dumps(self.to_dict())


# --- reading ----------------------------------------------------------------------------------------------


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Configuration from a TOML file (none: the defaults) with dotted overrides such as `{"optimizer.lr":
    0.01}`."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"There is no recipe at {path}: give the path of a TOML file.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}.") from None
    for key, value in (overrides or {}).items():
        _set_dotted(values, key, value)
    return from_dict(values, source=str(path) if path is not None else "the command line")


def from_dict(values: Mapping[str, Any], *, source: str = "the configuration") -> RunConfig:
    """Build and validate a configuration from nested plain values; an unknown key names the nearest known
    one."""
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    method = lookup(METHODS, values.get("method", RunConfig.method), "method", source)
    section = values.get("layer")
    chosen = section.get("name", method.layer) if isinstance(section, dict) else method.layer
    for key, value in method.defaults.items():
        if chosen == method.layer or not key.startswith("layer."):  # options of a layer that was not taken
            _set_dotted(values, key, value, only_if_absent=True)
    sections = _sections(values, method, source)
    config = _build(RunConfig, values, source, where="", sections=sections)
    validate(config)
    return config


def lookup(table: Mapping[str, Any], name: Any, kind: str, source: str) -> Any:
    """`table[name]`, or a sentence with the nearest name and all of them."""
    if name not in table:
        raise UsageError(
            f"{source}: there is no {kind} {name!r}{_nearest(str(name), table)}. "
            f"Known: {', '.join(sorted(table))}."
        )
    return table[name]


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
        lookup({DENSE: None, **LAYERS}, layer["name"], "layer", source)
    lookup(OPTIMIZERS, optimizer["name"], "optimizer", source)
    return {
        "model": model_section(),
        "layer": layer_section(layer["name"]),
        "optimizer": optimizer_section(optimizer["name"]),
    }


@cache
def model_section() -> type[ModelSection]:
    """`[model]`: a preset and every field of `LlamaConfig`, unset."""
    optional = [(f.name, typing.get_type_hints(LlamaConfig)[f.name]) for f in fields(LlamaConfig)]
    return dataclasses.make_dataclass(
        "Model",
        [(name, kind | None, field(default=None)) for name, kind in optional],
        bases=(ModelSection,),
        kw_only=True,
    )


@cache
def layer_section(name: str) -> type[LayerSection]:
    """`[layer]` of the named class: rank, targets, skip and the keyword-only options of its constructor."""
    if name == DENSE:
        return LayerSection
    return _section_of(LAYERS[name], FactorizedSection, skip={"device", "dtype"})


@cache
def optimizer_section(name: str) -> type[OptimizerSection]:
    """`[optimizer]` of the named class: its learning rate and the keyword-only options of its constructor."""
    return _section_of(OPTIMIZERS[name], OptimizerSection, skip=set())


def _section_of(target: Callable[..., Any], base: type, skip: set[str]) -> type:
    hints = typing.get_type_hints(target.__init__)
    options = [
        (p.name, hints[p.name], field(default=p.default))
        for p in inspect.signature(target).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in skip
    ]
    return dataclasses.make_dataclass(
        getattr(target, "__name__", "Options"), options, bases=(base,), kw_only=True
    )


def options_of(section: LayerSection | OptimizerSection) -> dict[str, Any]:
    """The fields of a section that its class added: the keyword arguments of the constructor."""
    base = FactorizedSection if isinstance(section, FactorizedSection) else OptimizerSection
    own = {f.name for f in fields(base)}
    return {f.name: getattr(section, f.name) for f in fields(section) if f.name not in own}


def _build(
    cls: type, values: Any, source: str, where: str, sections: Mapping[str, type] | None = None
) -> Any:
    if not isinstance(values, Mapping):
        raise UsageError(f"{source}: {where} is a table, not {values!r}.")
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        full = f"{where}.{key}" if where else key
        if key not in known:
            raise UsageError(f"{source}: unknown key {full!r}{_nearest(key, known, prefix=where)}.")
        kind = (sections or {}).get(key, hints[key])
        if dataclasses.is_dataclass(kind):
            arguments[key] = _build(typing.cast(type, kind), value, source, full)
        else:
            arguments[key] = _coerce(value, kind, source, full)
    for key, kind in (sections or {}).items():
        arguments.setdefault(key, kind())
    return cls(**arguments)


def _coerce(value: Any, kind: Any, source: str, where: str) -> Any:
    """`value` as `kind`: whole numbers pass as floats and lists as tuples, nothing else is converted."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        for option in inner:
            try:
                return _coerce(value, option, source, where)
            except UsageError:
                continue
    elif origin is Literal:
        if value in inner:
            return value
    elif kind == tuple[str, ...] and isinstance(value, str):
        return (value,)
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(
                _coerce(v, k, source, f"{where}[{i}]")
                for i, (v, k) in enumerate(zip(value, kinds, strict=True))
            )
    elif origin is dict and isinstance(value, Mapping):
        return {str(k): _coerce(v, inner[1], source, f"{where}.{k}") for k, v in value.items()}
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif (kind is types.NoneType or kind is None) and value is None:
        return None
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UsageError(f"{source}: {where} = {value!r} should be {_describe(kind)}.")


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(v) for v in typing.get_args(kind))
    names = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        types.NoneType: "unset",
    }
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(kind))
    return names.get(kind, str(kind))


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; the nearest is {f'{prefix}.{found[0]}' if prefix else found[0]!r}" if found else ""


def _set_dotted(values: dict[str, Any], key: str, value: Any, only_if_absent: bool = False) -> None:
    *tables, last = key.split(".")
    for table in tables:
        inner = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"{key} cannot be set: {table} = {inner!r} is a value, and [{table}] should be a table."
            )
        values = inner
    if not (only_if_absent and last in values):
        values[last] = value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


# --- validation -------------------------------------------------------------------------------------------


def validate(config: RunConfig) -> None:
    """Refuse what cannot be right, whatever the data and the machine; sentences name the key and the
    value."""

    def require(condition: bool, key: str, value: Any, rule: str) -> None:
        if not condition:
            raise UsageError(f"{key} = {value!r} cannot be: {rule}.")

    train, schedule = config.train, config.schedule
    lookup(PRESETS, config.model.preset, "model preset", "model.preset")
    require(train.steps >= 1, "train.steps", train.steps, "a run needs at least one update")
    require(train.sequences >= 1, "train.sequences", train.sequences, "an update needs at least one sequence")
    require(train.seq_len >= 1, "train.seq_len", train.seq_len, "a sequence has at least one predicted token")
    require(
        train.micro_sequences >= 0, "train.micro_sequences", train.micro_sequences, "it is 0 (all) or more"
    )
    require(
        train.micro_sequences == 0 or train.sequences % train.micro_sequences == 0,
        "train.micro_sequences",
        train.micro_sequences,
        f"it must divide train.sequences = {train.sequences}",
    )
    require(train.clip >= 0, "train.clip", train.clip, "it is a norm, 0 for none")
    require(train.nonfinite_limit >= 1, "train.nonfinite_limit", train.nonfinite_limit, "at least one")
    require(
        schedule.warmup >= 0, "schedule.warmup", schedule.warmup, "a share below 1 or a number of updates"
    )
    require(0 <= schedule.final <= 1, "schedule.final", schedule.final, "a multiplier between 0 and 1")
    require(schedule.cycle >= 0, "schedule.cycle", schedule.cycle, "0 (never) or a number of updates")
    require(
        schedule.restart_warmup >= 0, "schedule.restart_warmup", schedule.restart_warmup, "0 or more updates"
    )
    require(
        not schedule.cycle or 0 < schedule.restart_warmup < schedule.cycle,
        "schedule.restart_warmup",
        schedule.restart_warmup,
        f"with schedule.cycle = {schedule.cycle} it lies between 1 and {schedule.cycle - 1}",
    )
    require(
        config.eval.sequences >= 1, "eval.sequences", config.eval.sequences, "at least one sequence a pass"
    )
    require(
        config.checkpoint.keep >= 1,
        "checkpoint.keep",
        config.checkpoint.keep,
        "one is needed to continue from",
    )
    require(config.log.every >= 1, "log.every", config.log.every, "at least one update")
    for key, value in (
        ("eval.every", config.eval.every),
        ("eval.tokens", config.eval.tokens),
        ("checkpoint.every", config.checkpoint.every),
        ("checkpoint.keep_every", config.checkpoint.keep_every),
        ("log.telemetry_every", config.log.telemetry_every),
        ("sample.tokens", config.sample.tokens),
        ("train.threads", train.threads),
    ):
        require(value >= 0, key, value, "0 (off) or a positive number")
    for key, rate in (("optimizer.lr", config.optimizer.lr), ("other.lr", config.other.lr)):
        require(
            rate is None or (rate >= 0 and math.isfinite(rate)), key, rate, "a learning rate is not negative"
        )
