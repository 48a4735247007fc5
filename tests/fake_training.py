"""A trainer that takes milliseconds, and recipes for it, for tests of comparisons and sweeps."""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrise.errors import UsageError

TRAINER = Path(__file__).with_name("fake_trainer.py")
SECTIONS = [
    "optimizer",
    "other",
    "schedule",
    "layer",
    "train",
    "eval",
    "log",
    "checkpoint",
    "sample",
    "data",
    "fake",
    "seed",
]
COMMAND = (sys.executable, "-S", str(TRAINER))


@dataclass(frozen=True)
class FakeConfig:
    tree: dict[str, Any]

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.tree, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return self.tree


@dataclass(frozen=True)
class FakePlan:
    tokens_per_step: int = 100
    flops_per_token: float = 1e4
    optimizer_flops_per_step: float = 0.0


def load_recipe(path: str, overrides: dict[str, Any]) -> FakeConfig:
    """As `load`: unknown sections and ranks above 64 are refused."""
    tree = tomllib.loads(Path(path).read_text())
    for key, value in overrides.items():
        if key.split(".")[0] not in SECTIONS:
            raise UsageError(f"{path}: unknown key {key!r}")
        if key == "layer.rank" and value > 64:
            raise UsageError(f"layer.rank = {value} cannot be")
    for key, value in overrides.items():
        *sections, name = key.split(".")
        section = tree.setdefault(sections[0], {}) if sections else tree
        section[name] = value
    return FakeConfig(tree)


def plan_run(config: FakeConfig) -> FakePlan:
    return FakePlan()


def write_recipe(folder: Path, name: str, lr: float = 0.01, **fake: Any) -> str:
    fake = {"method": name, "base": 3.0, "best_lr": 0.01, "seconds": 0.02, **fake}
    lines = [
        "[optimizer]",
        f"lr = {lr}",
        "[fake]",
        *(f"{key} = {json.dumps(value)}" for key, value in fake.items()),
    ]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def starts(out: Path) -> dict[str, list[str]]:
    """Run -> the step at which each of its starts began."""
    return {path.parent.name: path.read_text().split() for path in sorted(out.glob("runs/*/starts.txt"))}
