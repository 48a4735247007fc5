"""`RunConfig`, the whole tree, and how it is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from lowrise.config.sections import (
    CheckpointSection,
    EvalSection,
    InitSection,
    LayerSection,
    LogSection,
    ModelSection,
    OptimizerSection,
    OtherSection,
    ParallelSection,
    SampleSection,
    ScheduleSection,
    TrainSection,
)
from lowrise.data.config import HOW_NOT_WHAT, DataConfig
from lowrise.plugins import absolute


@dataclass(kw_only=True)
class RunConfig:
    """Train one model."""

    plugin: tuple[str, ...] = ()
    """Python files, or names of modules, that add methods (docs/extending.md)."""
    method: str = "spectron"
    """Row of the table of methods (lowrise methods)."""
    seed: int = 0
    """Seed of the weights, the batch order and the sample."""
    model: ModelSection = field(default_factory=ModelSection)
    layer: LayerSection = field(default_factory=LayerSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    other: OtherSection = field(default_factory=OtherSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    init: InitSection = field(default_factory=InitSection)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainSection = field(default_factory=TrainSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    eval: EvalSection = field(default_factory=EvalSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    log: LogSection = field(default_factory=LogSection)
    sample: SampleSection = field(default_factory=SampleSection)

    def __post_init__(self) -> None:
        self.plugin = absolute(self.plugin)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values without the unset ones; `from_dict` of it gives the same configuration."""
        return _plain(dataclasses.asdict(self))

    @property
    def hash(self) -> str:
        """Identity of the result: what is saved, shown or cached on the way does not count."""
        values = self.to_dict()
        del values["plugin"]  # where a method is from; what it does is the method's name and options
        for section in ("checkpoint", "log", "parallel"):
            del values[section]
        for name in HOW_NOT_WHAT:
            values["data"].pop(name, None)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """The resolved configuration; `load` of it gives the same one."""
        return tomli_w.dumps(self.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
