"""`RunConfig`, the whole tree, and how it is written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from lowrise.config.identity import Kind, digest, of_kinds
from lowrise.config.sections import (
    CheckpointSection,
    EmaSection,
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
    TransferSection,
)
from lowrise.config.writer import WRITTEN
from lowrise.data.config import DataConfig
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
    transfer: TransferSection = field(default_factory=TransferSection)
    ema: EmaSection = field(default_factory=EmaSection)
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
        """Identity of the result as it is written: how it is computed, shown and saved does not count."""
        kinds = (kind for kind in Kind if kind is not Kind.EXECUTION)
        return digest(of_kinds(self.to_dict(), *kinds))

    @property
    def mathematics(self) -> str:
        """Identity of what no start of a run may change, whatever its text is called and however long it
        is."""
        return digest(of_kinds(self.to_dict(), Kind.MATHEMATICS))

    def name_on(self, corpus: str) -> str:
        """Identity of the result on the text with this fingerprint, wherever that lies."""
        kinds = (kind for kind in Kind if kind not in (Kind.EXECUTION, Kind.TEXT))
        return digest(of_kinds(self.to_dict(), *kinds) | {"corpus": corpus})

    def to_toml(self) -> str:
        """The resolved configuration, under a line with the version that writes it; `load` of it gives the
        same one."""
        return WRITTEN + tomli_w.dumps(self.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
