"""`optimizer.hyperball` in a configuration: a key of every optimizer, with a word on the schedule's end."""

from __future__ import annotations

import pytest

from lowrise.config import load
from lowrise.config.rules import advice
from lowrise.methods import METHODS
from lowrise.optim import OPTIMIZERS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_the_key(name: str) -> None:
    assert load(None, {"method": "adamw", "optimizer.name": name}).optimizer.hyperball is False


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, False),
        ({"optimizer.hyperball": True}, True),
        ({"optimizer.hyperball": True, "schedule.min_lr_ratio": 0.02}, False),
        ({"optimizer.hyperball": True, "schedule.min_lr_ratio": 0.0}, False),
        ({"optimizer.hyperball": True, "schedule.name": "constant", "schedule.min_lr_ratio": 0.0}, True),
    ],
)
def test_a_schedule_that_ends_high_gets_a_sentence(settings: dict[str, object], told: bool) -> None:
    sentences = advice(load(None, {"method": "muon", **settings}))
    assert bool(sentences) is told
    assert all("schedule.min_lr_ratio = 0.01" in sentence for sentence in sentences)


def test_the_methods_that_fix_norms_follow_the_advice() -> None:
    fixed = [name for name, row in METHODS.items() if row.defaults.get("optimizer.hyperball")]
    assert {"muonh", "spectronh"} <= set(fixed)
    for name in fixed:
        config = load(None, {"method": name})
        assert config.optimizer.hyperball
        assert advice(config) == []
