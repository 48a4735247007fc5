"""The configuration of a run: a tree of dataclasses, read from TOML, changed by dotted flags, written back
resolved.

Three sections take their fields from the thing that they configure, so that no option is written twice:
`[model]` from `LlamaConfig`, `[layer]` and `[optimizer]` from the constructor of the named class. Order of
precedence, weakest first: the defaults below, the method's row in `methods.py`, the recipe, the command
line.
"""

from lowrise.config.derived import options_of
from lowrise.config.places import resolved
from lowrise.config.reading import from_dict, load
from lowrise.config.rules import advice, validate
from lowrise.config.sections import (
    DENSE,
    FactorizedSection,
    LayerSection,
    ModelSection,
    OptimizerSection,
    ScheduleSection,
)
from lowrise.config.tree import RunConfig

__all__ = [
    "DENSE",
    "FactorizedSection",
    "LayerSection",
    "ModelSection",
    "OptimizerSection",
    "RunConfig",
    "ScheduleSection",
    "advice",
    "from_dict",
    "load",
    "options_of",
    "resolved",
    "validate",
]
