"""SinkGD with a spectral target: the norm of updates, the vector that follows them, and what stays."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.linalg import sinkhorn
from lowrise.optim import SinkGD
from lowrise.optim.sinkgd import leading_singular

F64 = torch.float64
SHAPES = [(9, 5), (5, 9), (22, 15), (6, 6)]


def updates(grads: list[Tensor], **options: object) -> tuple[list[Tensor], SinkGD]:
    """What each step subtracts from a weight, at lr 1."""
    W = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = SinkGD([W], lr=1.0, **options)
    seen = []
    for G in grads:
        before = W.detach().clone()
        W.grad = G
        optimizer.step()
        seen.append(before - W.detach())
    return seen, optimizer


def norm(X: Tensor) -> float:
    return torch.linalg.matrix_norm(X, 2).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", ["unit", "muon"])
def test_with_one_gradient_the_norm_converges_to_the_target(shape, target) -> None:
    tau = 1.0 if target == "unit" else math.sqrt(shape[0] / shape[1])
    G = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    seen, optimizer = updates([G] * 40, target=target, power_iters=50, power_iters_first=1)
    norms = [norm(update) for update in seen]
    assert all(one >= tau * (1 - 1e-12) for one in norms), "the estimate is from below"
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(norms))
    assert norms[-1] == pytest.approx(tau, rel=1e-12)
    u = optimizer.state[optimizer.param_groups[0]["params"][0]]["u"]
    assert u.norm().item() == pytest.approx(1.0, rel=1e-12)
    leading = torch.linalg.svd(sinkhorn(G)).Vh[0]
    assert abs(u @ leading).item() == pytest.approx(1.0, rel=1e-9)


def test_the_first_step_has_more_iterations() -> None:
    G = torch.randn(22, 15, dtype=F64, generator=torch.Generator().manual_seed(5))
    few, many = (norm(updates([G], target="unit", power_iters_first=k)[0][0]) for k in (1, 10))
    assert 1.0 < many < few
    assert many < 1.05


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_are_along_sinkhorn_and_scale_free(shape) -> None:
    g = torch.Generator().manual_seed(6)
    grads = [torch.randn(shape, dtype=F64, generator=g) for _ in range(4)]
    seen, _ = updates(grads, target="muon")
    for update, G in zip(seen, grads, strict=True):
        X = sinkhorn(G)
        torch.testing.assert_close(update / update.norm(), X / X.norm(), rtol=0, atol=1e-12)
    scaled, _ = updates([1e7 * G for G in grads], target="muon")
    torch.testing.assert_close(torch.stack(scaled), torch.stack(seen), rtol=1e-9, atol=1e-12)


def test_decay_is_by_the_matrices_rate() -> None:
    W = nn.Parameter(torch.ones(4, 6, dtype=F64))
    optimizer = SinkGD([W], lr=0.1, weight_decay=0.5, target="unit")
    W.grad = torch.randn(4, 6, dtype=F64)
    optimizer.step()
    twin = SinkGD([V := nn.Parameter(torch.zeros(4, 6, dtype=F64))], lr=0.1, target="unit")
    V.grad = W.grad
    twin.step()
    torch.testing.assert_close(W, 0.95 + V, rtol=0, atol=1e-14)


def test_a_zero_gradient_moves_nothing_and_keeps_the_vector() -> None:
    G = torch.randn(6, 4, dtype=F64)
    W = nn.Parameter(torch.zeros(6, 4, dtype=F64))
    optimizer = SinkGD([W], lr=1.0, target="unit")
    start = optimizer.state[W]["u"].clone()
    W.grad = torch.zeros_like(G)
    optimizer.step()
    assert (W == 0).all()
    assert torch.equal(optimizer.state[W]["u"], start)
    W.grad = G
    optimizer.step()
    assert norm(W.detach()) >= 1.0


def test_start_vectors_are_of_norm_1_differ_by_place_and_repeat() -> None:
    def starts() -> list[Tensor]:
        params = [nn.Parameter(torch.zeros(6, 9)) for _ in range(3)]
        optimizer = SinkGD(params, target="muon")
        return [optimizer.state[p]["u"] for p in params]

    first, second = starts(), starts()
    for i, u in enumerate(first):
        assert u.norm().item() == pytest.approx(1.0, rel=1e-6)
        assert torch.equal(u, second[i])
        assert not any(torch.equal(u, other) for other in first[:i])


def test_matrices_with_and_without_a_first_step_are_not_mixed() -> None:
    params = [nn.Parameter(torch.zeros(6, 9, dtype=F64)) for _ in range(2)]
    copies = [nn.Parameter(torch.zeros(6, 9, dtype=F64)) for _ in range(2)]
    together, alone = SinkGD(params, target="unit"), [SinkGD([p], target="unit") for p in copies]
    alone[1].state[copies[1]]["u"].copy_(together.state[params[1]]["u"])
    for t in range(3):
        for i, (p, q) in enumerate(zip(params, copies, strict=True)):
            p.grad = torch.randn_like(p) if t or not i else None  # the second comes a step later
            q.grad = None if p.grad is None else p.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    for p, q in zip(params, copies, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)


def test_sigma_is_at_most_the_norm_and_zero_where_the_vector_meets_nothing() -> None:
    G = torch.zeros(1, 4, 3, dtype=F64)
    G[0, 0, 0] = 2.0
    ones = torch.ones(1, 4, dtype=F64), torch.ones(1, 3, dtype=F64)
    for u, expected in (([1.0, 0.0, 0.0], 2.0), ([0.0, 1.0, 0.0], 0.0), ([0.6, 0.8, 0.0], 2.0)):
        given = torch.tensor([u], dtype=F64)
        sigma, after = leading_singular(G, *ones, given, iters=1)
        assert sigma.item() == pytest.approx(expected)
        assert after.tolist() == ([[1.0, 0.0, 0.0]] if expected else given.tolist())


def test_state_and_flops() -> None:
    W = nn.Parameter(torch.zeros(6, 4))
    assert SinkGD([W]).state_elements() == 0
    assert SinkGD([W], target="unit").state_elements() == 4
    assert SinkGD([W], target="unit", power_iters=2).step_flops() == SinkGD([W]).step_flops() + 8 * 24


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": "spectral"}, "SinkGD has target = 'spectral'; choose one of none, unit, muon"),
        ({"power_iters": 0}, "SinkGD has power_iters = 0"),
        ({"power_iters_first": 0}, "SinkGD has power_iters_first = 0"),
    ],
)
def test_options_that_cannot_be_get_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        SinkGD([nn.Parameter(torch.zeros(4, 3))], **options)
