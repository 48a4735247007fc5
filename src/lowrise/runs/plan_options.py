"""The options of `lowrise plan`; needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lowrise.errors import UsageError
from lowrise.files import require_file_place

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


@dataclass(kw_only=True)
class PlanOptions:
    """What a run will cost, before anything is built: parameters, FLOPs, bytes per device, time."""

    recipe: Positional[Path | None] = None
    """TOML file, or a run's folder, instead of --model."""
    model: str | None = None
    """Published size (60m, 130m, 350m, 1b, 3b, 7b, with its recipe) or preset (nano, tiny, mini)."""
    method: str = "all"
    """A method, or all of them; a recipe has its own."""
    rank: int | None = None
    """Rank of the layer, or of the optimizer where the method has none in its layer."""
    tokens: float | None = None
    """Training tokens, for example 13.1e9; none: the recipe's."""
    devices: int = 1
    """Devices that share the run."""
    device_memory: str | None = None
    """Memory of each, for example 80GB or 80GiB."""
    flops_per_second: float | None = None
    """Rate that each device keeps up, hoped for or known, for example 4e14."""
    rate: Path | None = None
    """Measured rates instead: the JSON of lowrise bench --out (each method its own), or a run's folder."""
    fit: str | None = None
    """Ask the other way round: the largest model that each method trains in these bytes per device, for
    example 24GB. What is not its shape is the recipe's or, without one, that of 1b."""
    micro_batch_size: int | None = None
    """Sequences a pass at one device; none: the recipe's."""
    recompute: Literal["none", "block", "latents"] | None = None
    """Activation checkpointing; none given: the recipe's."""
    parallel: Literal["ddp", "fsdp"] | None = None
    """How devices share the run; none given: the recipe's."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic; none given: the recipe's, and bfloat16 where that is auto."""
    plugin: tuple[str, ...] = ()
    """Python files, or names of modules, that add methods."""
    picture: Path | None = None
    """Draw the bytes of each device by kind, a bar for each method, into this SVG file."""
    json: bool = False
    """Print one JSON object instead of tables."""

    @property
    def base(self) -> str | None:
        """The size whose recipe is planned, where no recipe is given."""
        return "1b" if self.model is None and self.recipe is None and self.fit is not None else self.model

    def check(self) -> None:
        """`UsageError` for options that contradict each other or that no run can have."""
        if (self.recipe is None) == (self.base is None):
            raise UsageError(
                "lowrise plan: give a recipe or --model, one of them, for example lowrise plan --model 60m."
            )
        if self.recipe is not None and self.method != "all":
            raise UsageError(
                f"lowrise plan --method {self.method}: the recipe {self.recipe} has its method; leave "
                "--method out, or give --model instead of the recipe."
            )
        for name in ("rank", "tokens", "devices", "flops_per_second", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"lowrise plan --{name} {value}: give a number above 0.")
        if self.flops_per_second is not None and self.rate is not None:
            raise UsageError("lowrise plan: give --flops_per_second or --rate, one of them.")
        if self.fit is not None and self.device_memory is not None:
            raise UsageError(
                f"lowrise plan --fit {self.fit} has the memory of a device already: leave --device_memory "
                "out."
            )
        if self.picture is not None:
            require_file_place(self.picture, "lowrise plan --picture", "SVG")
        _ = self.memory

    @property
    def memory(self) -> int | None:
        """Bytes of `device_memory`, or of `fit`."""
        if self.fit is not None:
            return bytes_of(self.fit, "--fit")
        return None if self.device_memory is None else bytes_of(self.device_memory)


def bytes_of(text: str, flag: str = "--device_memory") -> int:
    """Bytes of "80GB" (powers of 1000), "80GiB" (of 1024) or "80000000000"."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgtp]?)(i?)b?\s*", text.lower())
    try:
        amount = float(found[1]) if found else 0.0
    except ValueError:
        amount = 0.0
    if found is None or not amount > 0 or (found[3] and not found[2]):
        raise UsageError(f"{flag} {text}: give bytes, for example 80GB (80e9) or 80GiB (80 times 2^30).")
    return int(amount * (1024 if found[3] else 1000) ** _UNITS[found[2]])
