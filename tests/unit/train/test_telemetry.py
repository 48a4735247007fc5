"""Spectral telemetry against singular values of the dense weight and of its change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowrise.distributed import World
from lowrise.layers import LowRankLinear, SVDLinear
from lowrise.train.telemetry import measure, snapshot


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = {"dense": nn.Linear(20, 12), "factors": LowRankLinear(20, 12, rank=4)}
    return nn.ModuleDict(layers | {"svd": SVDLinear(20, 12, rank=4), "head": nn.Linear(12, 30)})


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: model[name].dense() for name in ("factors", "svd")} | {"dense": model["dense"].weight}
    return {name: W.detach().double().clone() for name, W in found.items()}


def perturb(model: nn.Module, size: float) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=size)


def test_numbers_are_those_of_the_dense_matrices(model: nn.Module) -> None:
    before, start = snapshot(model, {"dense.weight"}, World()), weights(model)
    perturb(model, 0.01)
    end = weights(model)
    measured = measure(model, before, World())
    assert measured.keys() == {"dense", "factors", "svd"}, "the head is no matrix here"
    for name, values in measured.items():
        s = torch.linalg.svdvals(end[name])
        share = (s / s.sum())[s > 1e-9 * s[0]]
        expected = {
            "weight_spectral_norm": s[0].item(),
            "update_spectral_norm": torch.linalg.matrix_norm(end[name] - start[name], ord=2).item(),
            "stable_rank": (s.square().sum() / s[0] ** 2).item(),
            "effective_rank": math.exp(-(share * share.log()).sum().item()),
        }
        error = values.pop("orthonormality_error", None)
        assert values == pytest.approx(expected, rel=1e-4)  # float32; an update is small beside its weight
        assert (error is not None) == (name == "svd")


def test_ranks_measure_different_matrices(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks in one process: what each says alone adds up to what one rank says."""
    dense = {"dense.weight"}
    worlds = [World(), World(0, 2), World(1, 2)]
    before = [snapshot(model, dense, world) for world in worlds]
    perturb(model, 0.01)
    said: list[list[float]] = []
    total = World.total
    monkeypatch.setattr(World, "total", lambda _, *numbers: (said.append(list(numbers)), list(numbers))[1])
    whole = measure(model, before[0], worlds[0])
    for world, own in zip(worlds[1:], before[1:], strict=True):
        measure(model, own, world)
    assert [set(b.matrices) for b in before] == [{"dense", "factors", "svd"}, {"dense", "svd"}, {"factors"}]
    sums = [a + b for a, b in zip(*said[1:], strict=True)]
    torch.testing.assert_close(sums, said[0], rtol=0, atol=0, equal_nan=True)
    monkeypatch.setattr(World, "total", total)
    assert measure(model, before[0], World()) == whole
