"""Recipes and plans for a scaling sweep whose trainer takes milliseconds."""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_training import FakeConfig

TRAINER = Path(__file__).parent / "unit" / "scaling" / "trainer.py"
COMMAND = (sys.executable, str(TRAINER))


@dataclass(frozen=True)
class FakePlan:
    """12 d^2 parameters and 6 FLOPs for each and a token."""

    params_non_embedding: int
    tokens_per_step: int = 100
    optimizer_flops_per_step: float = 0.0

    @property
    def flops_per_token(self) -> float:
        return 6.0 * self.params_non_embedding


def load_recipe(path: str, overrides: dict[str, Any]) -> FakeConfig:
    tree = tomllib.loads(Path(path).read_text())
    for key, value in overrides.items():
        *sections, name = key.split(".")
        section = tree.setdefault(sections[0], {}) if sections else tree
        section[name] = value
    return FakeConfig(tree)


def plan_run(config: FakeConfig) -> FakePlan:
    return FakePlan(12 * config.tree["model"]["hidden_size"] ** 2)


def write_recipe(folder: Path, name: str, *, lr: float = 0.01, rank: Any = 0.25, **fake: Any) -> str:
    lines = ["[model]", 'preset = "nano"', "[layer]", f"rank = {rank}", "[optimizer]", f"lr = {lr}", "[fake]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in {"method": name, **fake}.items()]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines))
    return str(path)
