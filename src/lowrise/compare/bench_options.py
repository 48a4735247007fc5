"""The options of `lowrise bench`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrise.errors import UsageError
from lowrise.files import require_file_place
from lowrise.methods import METHODS
from lowrise.names import lookup


@dataclass(kw_only=True)
class BenchOptions:
    """What this machine does: tokens per second, step time and memory of methods side by side, in one run."""

    methods: tuple[str, ...] = ()
    """Methods to measure, the first is what the others are compared with; none given: all, beside adamw."""
    preset: str = "tiny"
    """Size of the model."""
    steps: int = 10
    """Updates measured of each method in each round."""
    rounds: int = 2
    """How often the methods are gone through, so that a slow moment of the machine meets all alike."""
    set: tuple[str, ...] = field(default_factory=tuple)
    """Further settings of every run, for example train.global_batch_size=8 train.precision=bfloat16."""
    plugin: tuple[str, ...] = ()
    """Python files, or names of modules, that add methods."""
    out: Path | None = None
    """Write the table here too, as Markdown; the numbers beside it as JSON."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def check(self) -> None:
        """`UsageError` for what no bench can do."""
        for name in ("steps", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"lowrise bench --{name} {getattr(self, name)}: give at least 1.")
        for name in self.methods:
            lookup(METHODS, name, "method", "lowrise bench --methods")
        if self.out is not None:
            require_file_place(self.out, "lowrise bench --out", "Markdown")
            if self.out.suffix == ".json":
                raise UsageError(
                    f"lowrise bench --out {self.out}: name a Markdown file, for example bench.md."
                )

    @property
    def names(self) -> list[str]:
        """The methods in the order in which they are measured."""
        first = self.methods[:1] or ("adamw",)
        return list(dict.fromkeys([*first, *(self.methods or METHODS)]))

    def overrides(self, method: str) -> dict[str, Any]:
        """Dotted settings of a method's run."""
        from lowrise.compare.plan import parse_settings  # needs torch, which the help does not

        own = {"method": method, "model.preset": self.preset, "plugin": self.plugin}
        return own | dict(parse_settings(self.set, owned={}))
