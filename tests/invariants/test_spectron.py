"""Spectron, dossier section 7: invariances, limits, the zero factor, and the options."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference.spectral_simple import SimpleSpectron
from torch import Tensor, nn

from lowrise.linalg import newton_schulz
from lowrise.optim import Muon, Spectron
from lowrise.optim.rules.spectron import certified_step_size, spectron_step_size


def pair(m: int, n: int, r: int, seed: int = 0) -> tuple[nn.Parameter, nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    A, B = (nn.Parameter(torch.randn(k, r, generator=g, dtype=torch.float64)) for k in (m, n))
    return A, B


def spectron(*params: Tensor, **options) -> Spectron:
    return Spectron([{"params": list(params), "role": "factors"}], **options)


def one_step(A: Tensor, B: Tensor, GA: Tensor, GB: Tensor, u: tuple[Tensor, Tensor] | None = None, **options):
    A, B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())
    optimizer = spectron(A, B, **options)
    if u is not None:
        optimizer.state[A]["u"].copy_(u[0])
        optimizer.state[B]["u"].copy_(u[1])
    before = A.detach().clone(), B.detach().clone()
    A.grad, B.grad = GA.clone(), GB.clone()
    optimizer.step()
    return A.detach() - before[0], B.detach() - before[1], optimizer


@pytest.mark.parametrize(("wd", "iters"), [(0.0, 1), (0.3, 1), (0.1, 2)])
def test_batched_equals_the_plain_one_matrix_algorithm(wd: float, iters: int) -> None:
    shapes = [(12, 8, 3), (12, 8, 3), (8, 12, 3), (12, 12, 3), (5, 20, 2)]
    pairs = [pair(*shape, seed=i) for i, shape in enumerate(shapes)]
    params = [x for p in pairs for x in p]
    optimizer = spectron(*params, lr=0.1, weight_decay=wd, power_iters=iters)
    plain = [
        SimpleSpectron(
            *(x.detach().numpy() for x in p),
            *(optimizer.state[x]["u"].numpy() for x in p),
            beta=0.95,
            wd=wd,
            iters=iters,
        )
        for p in pairs
    ]
    for t in range(6):
        lr = 0.1 / (t + 1)
        optimizer.param_groups[0]["lr"] = lr
        for x in params:
            x.grad = torch.randn_like(x)
        optimizer.step()
        for (A, B), reference in zip(pairs, plain, strict=True):
            reference.step(A.grad.numpy(), B.grad.numpy(), lr)
            np.testing.assert_allclose(
                A.detach().numpy(), reference.A, rtol=0, atol=1e-12
            )  # float64 rounding
            np.testing.assert_allclose(B.detach().numpy(), reference.B, rtol=0, atol=1e-12)
            np.testing.assert_allclose(optimizer.state[A]["u"].numpy(), reference.uA, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.01, 0.5, 1.0])
def test_exact_mode_keeps_the_bound(eta: float) -> None:
    A, B = pair(14, 10, 4)
    optimizer = spectron(A, B, lr=eta, ortho="svd", norms="exact")
    for t in range(20):
        before = (A @ B.T).detach()
        A.grad, B.grad = (torch.randn_like(x) * 10.0 ** (3 * math.sin(t)) for x in (A, B))
        optimizer.step()
        change = torch.linalg.matrix_norm((A @ B.T).detach() - before, 2).item()
        assert change <= eta * (1 + 1e-10)  # float64 rounding of factors of norm about 10


def test_exact_mode_reaches_the_bound_when_all_is_aligned() -> None:
    a, b, c = (torch.nn.functional.normalize(torch.randn(k, dtype=torch.float64), dim=0) for k in (9, 7, 3))
    A, B = 100 * torch.outer(a, c), 100 * torch.outer(b, c)
    dA, dB, _ = one_step(A, B, -A, -B, lr=0.1, ortho="svd", norms="exact")
    change = torch.linalg.matrix_norm((A + dA) @ (B + dB).T - A @ B.T, 2).item()
    assert 0.99 * 0.1 <= change <= 0.1 * (1 + 1e-10)  # 0.995 by the bound's own slack s/(s+1), s = 200


def test_a_positive_factor_on_the_gradients_changes_nothing() -> None:
    A, B = pair(12, 9, 3)
    GA, GB = torch.randn_like(A), torch.randn_like(B)
    reference = one_step(A, B, GA, GB, ns_eps=0.0)
    for c in (1e-12, 7.0, 1e12):
        scaled = one_step(A, B, c * GA, c * GB, ns_eps=0.0)
        for i in (0, 1):
            torch.testing.assert_close(scaled[i], reference[i], rtol=0, atol=1e-15)  # step of size 1e-3


def test_rotating_the_output_side_rotates_the_step() -> None:
    A, B = pair(12, 9, 3)
    GA, GB = torch.randn_like(A), torch.randn_like(B)
    u = tuple(torch.nn.functional.normalize(torch.randn(k, dtype=torch.float64), dim=0) for k in (12, 9))
    Q = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    plain = one_step(A, B, GA, GB, u)
    turned = one_step(Q @ A, B, Q @ GA, GB, (Q @ u[0], u[1]))
    torch.testing.assert_close(turned[0], Q @ plain[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(turned[1], plain[1], rtol=0, atol=1e-14)


def test_swapping_the_factors_gives_the_transposed_step() -> None:
    A, B = pair(12, 9, 3)
    GA, GB = torch.randn_like(A), torch.randn_like(B)
    u = tuple(torch.nn.functional.normalize(torch.randn(k, dtype=torch.float64), dim=0) for k in (12, 9))
    dA, dB, _ = one_step(A, B, GA, GB, u)
    dB2, dA2, _ = one_step(B, A, GB, GA, (u[1], u[0]))
    torch.testing.assert_close((dA, dB), (dA2, dB2), rtol=0, atol=1e-15)


def test_identity_factor_reduces_the_direction_to_muons() -> None:
    W = torch.randn(10, 6, dtype=torch.float64)
    G = torch.randn_like(W)
    eye = torch.eye(6, dtype=torch.float64)
    dA, dB, _ = one_step(W, eye, G, torch.zeros_like(eye), lr=0.1, momentum=0.0, norms="exact")
    assert torch.equal(dB, torch.zeros_like(dB))
    weight = nn.Parameter(W.clone())
    muon = Muon([weight], lr=1.0, momentum=0.0, nesterov=False, adjust_lr="original")
    weight.grad = G.clone()
    muon.step()
    direction = (weight.detach() - W) / math.sqrt(10 / 6)
    rho = 0.1 / (torch.linalg.matrix_norm(W, 2) + 2)
    torch.testing.assert_close(
        dA, rho * direction, rtol=0, atol=1e-9
    )  # eps 1e-7 added here, a maximum in Muon


@pytest.mark.parametrize("variant", ["published", "certified"])
def test_zero_factor_wakes_up(variant: str) -> None:
    A, _ = pair(10, 8, 3)
    B = nn.Parameter(torch.zeros(8, 3, dtype=torch.float64))
    target = torch.randn(10, 8, dtype=torch.float64)
    optimizer = spectron(A, B, lr=0.1, variant=variant)
    start = A.detach().clone()
    for t in range(2):
        ((A @ B.T - target) ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if t == 0:
            assert torch.equal(A.detach(), start), "G_A = G_W B = 0 at first"
            assert B.abs().max() > 0
            if variant == "published":
                assert abs(optimizer.state[B]["u"].norm() - 1) < 1e-12, "a zero u would stay zero for ever"
    if variant == "published":
        assert torch.linalg.vector_norm(B.detach().T @ optimizer.state[B]["u"]) > 0
    assert not torch.equal(A.detach(), start)


def test_step_sizes_are_the_formulas() -> None:
    s_A, s_B = torch.tensor([0.0, 1.0, 100.0]).double(), torch.tensor([0.0, 2.0, 50.0]).double()
    s = s_A + s_B
    torch.testing.assert_close(spectron_step_size(s_A, s_B, 0.01), 0.01 / (s + 1))
    tight = spectron_step_size(s_A, s_B, 0.01, rule="tight")
    torch.testing.assert_close(tight * s + tight**2, torch.full_like(s, 0.01), rtol=1e-12, atol=0)
    for c in (1.0, 1.2024):
        options = {"supremum": c, "rank": 4, "eps": 0.0}
        rho = certified_step_size(s_A, s_B, 0.01, rule="tight", **options)
        torch.testing.assert_close(c * rho * s + (c * rho) ** 2, torch.full_like(s, 0.01), rtol=1e-12, atol=0)
        rho = certified_step_size(s_A, s_B, 0.01, rule="paper", **options)
        torch.testing.assert_close(rho, 0.01 / (c * (s + 1)), rtol=1e-12, atol=0)
    assert torch.equal(certified_step_size(s_A, s_B, 0.0, rule="tight", **options), torch.zeros(3).double())
    huge = certified_step_size(s_A * 1e30, s_B * 1e30, 0.01, rule="tight", supremum=1.0, rank=4, eps=1e-7)
    assert (huge > 0).all(), "rounding shortens the step, it never stops it"


def test_ablations_switch_half_of_the_method_off() -> None:
    A, B = pair(10, 8, 3)
    GA, GB = torch.randn_like(A), torch.randn_like(B)
    dA, _, optimizer = one_step(A, B, GA, GB, lr=0.1, renormalize=False)
    direction = newton_schulz(0.05 * GA)
    torch.testing.assert_close(dA, -0.1 * direction, rtol=0, atol=1e-14)
    assert optimizer.state_elements() == 18 * 3, "no norms, no u"
    dA, _, _ = one_step(A, B, GA, GB, lr=0.1, orthogonalize=False, norms="exact")
    s = torch.linalg.matrix_norm(A, 2) + torch.linalg.matrix_norm(B, 2)
    torch.testing.assert_close(dA, -0.1 / (s + 1) * 0.05 * GA.detach(), rtol=0, atol=1e-14)


def test_decay_rules() -> None:
    A, B = pair(10, 8, 3)
    zero = torch.zeros_like(A), torch.zeros_like(B)
    expected = {"factor": 1 - 0.1 * 0.2, "wd_split": math.sqrt(1 - 0.1 * 0.2)}
    s = torch.linalg.matrix_norm(A, 2) + torch.linalg.matrix_norm(B, 2)
    expected["wd_scaled"] = (1 - 0.1 / (s + 1) * 0.2).item()
    for rule, kept in expected.items():
        dA, dB, _ = one_step(A, B, *zero, lr=0.1, weight_decay=0.2, decay=rule, norms="exact")
        torch.testing.assert_close(A + dA, kept * A, rtol=0, atol=1e-14)
        torch.testing.assert_close(B + dB, kept * B, rtol=0, atol=1e-14)


@pytest.mark.parametrize("variant", ["published", "certified"])
def test_rebalancing_changes_the_gauge_and_not_the_function(variant: str) -> None:
    A, B = pair(12, 9, 3)
    A.data *= 20
    B.data /= 20
    GA, GB = torch.randn_like(A), torch.randn_like(B)
    dA, dB, plain = one_step(A, B, GA, GB, variant=variant)
    dA2, dB2, balanced = one_step(A, B, GA, GB, variant=variant, rebalance_every=1)
    W, W2 = (A + dA) @ (B + dB).T, (A + dA2) @ (B + dB2).T
    torch.testing.assert_close(W2, W, rtol=0, atol=1e-11)  # W of norm about 10, condition of T about 20
    A2, B2 = (A + dA2).detach(), (B + dB2).detach()
    torch.testing.assert_close(A2.T @ A2, B2.T @ B2, rtol=0, atol=1e-11)
    # The momenta move like the gradients G_A = G_W B, G_B = G_W^T A: what they say about G_W must not change.
    MA, MB = (state["momentum"] for state in plain.state.values())
    MA2, MB2 = (state["momentum"] for state in balanced.state.values())
    inverse = torch.linalg.pinv((B + dB).detach()), torch.linalg.pinv(B2)
    torch.testing.assert_close(MA2 @ inverse[1], MA @ inverse[0], rtol=1e-8, atol=1e-8)
    inverse = torch.linalg.pinv((A + dA).detach()), torch.linalg.pinv(A2)
    torch.testing.assert_close(MB2 @ inverse[1], MB @ inverse[0], rtol=1e-8, atol=1e-8)
    if variant == "published":
        u = next(iter(balanced.state.values()))["u"]
        sigma = torch.linalg.vector_norm(A2.T @ u)
        torch.testing.assert_close(sigma, torch.linalg.matrix_norm(A2, 2), rtol=1e-12, atol=0)


def test_factor_gradients_are_those_of_the_dense_weight() -> None:
    A, B = pair(7, 5, 2)
    x = torch.randn(11, 5, dtype=torch.float64)
    W = (A @ B.T).detach().requires_grad_()
    (torch.sin(x @ W.T)).sum().backward()
    (torch.sin((x @ B) @ A.T)).sum().backward()
    torch.testing.assert_close(A.grad, W.grad @ B, rtol=0, atol=1e-13)
    torch.testing.assert_close(B.grad, W.grad.T @ A, rtol=0, atol=1e-13)
