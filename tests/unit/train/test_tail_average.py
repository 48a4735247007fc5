"""The average of the last weights: its values, and that training does not see it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowrise.config import RunConfig
from lowrise.distributed import World
from lowrise.methods import METHODS
from lowrise.train.step import TrainStep
from tests.small_runs import config_for, corpus_of, write_text

EMA = {"ema.start": 4, "ema.horizon": 3, "ema.blend": 0.6}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    write_text(tmp_path / "text.jsonl")
    return tmp_path


def step_of(config: RunConfig) -> TrainStep:
    return TrainStep(config, corpus_of(config), World(), notice=lambda t: None, say=lambda t: None)


def weights_of(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in step.model.named_parameters()}


@pytest.mark.parametrize("method", list(METHODS))
def test_values_are_those_of_the_formula_and_training_does_not_see_it(text: Path, method: str) -> None:
    plain = step_of(config_for(text, method))
    step = step_of(config_for(text, method, **EMA))
    expected: dict[str, torch.Tensor] = {}
    for number in range(1, 9):
        assert step().loss == plain().loss
        rewritten = {id(p) for p in step.optimizer.rewritten()}
        weights = weights_of(step)
        if number >= 4:
            merged = method == "relora" and number % 3 == 0
            for name, W in weights.items():
                anew = number == 4 or (merged and name.endswith((".A", ".B"))) or id(W) in rewritten
                known = expected.get(name)
                same = known is not None and known.shape == W.shape and not anew
                expected[name] = known + (W - known) / 3 if same else W  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(weights_of(plain).values(), weights.values(), strict=True))
    assert step.average is not None
    trained = {name for name, p in step.model.named_parameters() if p.requires_grad}
    assert step.average.tensors.keys() == trained
    if method == "tsvd":  # events of its ranks begin it anew, which test_ranks' own formulas would repeat
        return
    for name, E in step.average.tensors.items():
        torch.testing.assert_close(E, expected[name], rtol=1e-5, atol=1e-7)  # one rounding more or less
