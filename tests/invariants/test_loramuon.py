"""LoRA-Muon: a plain version in numpy, the norm of its step, limits, zero and deficient factors, the whole
bound.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.optim import LoRAMuon

EXACT = {"msign": "svd", "root": "eigh", "momentum": 0.0}


def pair(m: int, n: int, r: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(k, r, generator=g, dtype=torch.float64) / k**0.5 for k in (m, n))
    return [nn.Parameter(X.to(dtype)) for X in (A, B)]


def dense_gradient(m: int, n: int, seed: int = 1) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def take(params: list[nn.Parameter], G: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """One step along a dense gradient; what A and B were."""
    A, B = params
    before = A.detach().clone(), B.detach().clone()
    A.grad, B.grad = (G.to(A.dtype) @ B).detach(), (G.to(A.dtype).mT @ A).detach()
    LoRAMuon([{"params": params, "role": "factors"}], **options).step()
    return before


def norm(X: Tensor) -> float:
    return float(torch.linalg.matrix_norm(X.double(), 2))


# ---- the algorithm


def msign(X: np.ndarray) -> np.ndarray:
    U, _, Vt = np.linalg.svd(X, full_matrices=False)
    return U @ Vt


def inverse_root(S: np.ndarray) -> np.ndarray:
    w, V = np.linalg.eigh(S)
    return (V / np.sqrt(w)) @ V.T


@pytest.mark.parametrize("root", ["cholesky", "eigh", "iterated"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_a_plain_version(root: str, nesterov: bool) -> None:
    """Several pairs of several shapes at once, one of them square, against one pair after the other in
    numpy.
    """
    shapes, lr, wd, beta = [(9, 7, 3), (8, 8, 3), (9, 7, 3), (6, 11, 2)], 0.3, 0.2, 0.8
    pairs = [pair(*shape, seed=i) for i, shape in enumerate(shapes)]
    plain = [[p.detach().numpy().copy() for p in params] for params in pairs]
    moments = [[np.zeros_like(X) for X in factors] for factors in plain]
    optimizer = LoRAMuon(
        [{"params": [p for params in pairs for p in params], "role": "factors"}],
        lr=lr, weight_decay=wd, momentum=beta, nesterov=nesterov, root=root, msign="svd",
    )  # fmt: skip
    s = math.sqrt(1 - lr * wd)
    for t in range(4):
        for i, (m, n, _) in enumerate(shapes):
            G = dense_gradient(m, n, seed=10 * t + i).numpy()
            A, B = plain[i]
            grads = [G @ B, G.T @ A]
            for p, grad in zip(pairs[i], grads, strict=True):
                p.grad = torch.from_numpy(grad)
            moments[i] = [beta * M + (1 - beta) * g for M, g in zip(moments[i], grads, strict=True)]
            N = moments[i]
            if nesterov:
                N = [beta * M + (1 - beta) * g for M, g in zip(N, grads, strict=True)]
            R_A, R_B = inverse_root(A.T @ A), inverse_root(B.T @ B)
            eta = lr * math.sqrt(m / n)
            dA, dB = -eta / 2 * msign(N[0] @ R_B) @ R_B, -eta / 2 * msign(N[1] @ R_A) @ R_A
            plain[i] = [s * A + dA / s, s * B + dB / s]
        optimizer.step()
    for params, factors in zip(pairs, plain, strict=True):
        for p, X in zip(params, factors, strict=True):
            assert np.abs(p.detach().numpy() - X).max() < 1e-10


def test_a_fixed_norm_has_no_bound_and_no_split() -> None:
    """With `hyperball` W turns by the angle lr, whatever the split; what lr bounds otherwise is refused."""
    group = {"params": pair(8, 6, 3), "role": "factors", "hyperball": True}
    with pytest.raises(UsageError, match="hyperball"):
        LoRAMuon([group], bound="whole")
    T = torch.tensor([[9.0, 2.0, 0.0], [0.0, 1.0, -3.0], [1.0, 0.0, 0.2]], dtype=torch.float64)
    ends = []
    for gauge in (torch.eye(3, dtype=torch.float64), T):
        A, B = pair(8, 6, 3)
        A.data, B.data = A.data @ gauge, B.data @ torch.linalg.inv(gauge).mT
        start = float(torch.linalg.matrix_norm((A @ B.mT).detach()))
        optimizer = LoRAMuon([{"params": [A, B], "role": "factors", "hyperball": True}], lr=0.05)
        for t in range(20):
            G = dense_gradient(8, 6, t)
            A.grad, B.grad = (G @ B).detach(), (G.mT @ A).detach()
            optimizer.step()
        ends.append((A @ B.mT).detach())
        assert float(torch.linalg.matrix_norm(ends[-1])) == pytest.approx(start, rel=1e-12)
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-9 * start)


@pytest.mark.parametrize("options", [{}, {"msign": "pe7", "bound": "whole"}, {"direction": "tangent"}])
def test_a_pair_among_others_has_the_bits_that_it_has_alone(options: dict[str, Any]) -> None:
    """In float32, at ranks whose roots are taken by halves, with momenta, over several shapes."""
    shapes = [(96, 80, 40), (80, 80, 40), (80, 160, 40), (96, 80, 40), (60, 50, 37), (50, 60, 37)]
    together, alone = ([pair(*s, seed=i, dtype=torch.float32) for i, s in enumerate(shapes)] for _ in "ab")
    every = [p for params in together for p in params]
    optimizers = [LoRAMuon([{"params": every, "role": "factors"}], lr=0.1, **options)]
    optimizers += [LoRAMuon([{"params": params, "role": "factors"}], lr=0.1, **options) for params in alone]
    for step in range(3):
        for i, both in enumerate(zip(together, alone, strict=True)):
            for params in both:
                g = torch.Generator().manual_seed(10 * step + i)
                for p in params:
                    p.grad = torch.randn(p.shape, generator=g)
        for optimizer in optimizers:
            optimizer.step()
    for i, (one, other) in enumerate(zip(together, alone, strict=True)):
        for p, q in zip(one, other, strict=True):
            assert torch.equal(p, q), shapes[i]


@pytest.mark.parametrize(("m", "n", "r"), [(16, 16, 4), (64, 16, 4), (16, 64, 8), (40, 24, 24), (96, 96, 32)])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_half_is_half_a_partial_isometry_whatever_the_shape(m: int, n: int, r: int, seed: int) -> None:
    """So the first-order change is at most lr sqrt(m / n), and at least half of that."""
    lr = 0.01
    params = pair(m, n, r, seed=seed)
    A, B = take(params, dense_gradient(m, n, seed + 7), lr=lr, **EXACT)
    dA, dB = params[0].detach() - A, params[1].detach() - B
    eta = lr * math.sqrt(m / n)
    for half in (dA @ B.mT, A @ dB.mT):
        values = torch.linalg.svdvals(half)[:r]
        assert torch.allclose(values, torch.full_like(values, eta / 2), rtol=1e-9)
    assert eta / 2 <= norm(dA @ B.mT + A @ dB.mT) <= eta * (1 + 1e-12)


@pytest.mark.parametrize(("m", "n", "r"), [(16, 16, 2), (128, 32, 8), (32, 128, 16), (256, 256, 64)])
def test_along_the_weight_itself_the_step_is_lr_at_every_shape_and_rank(m: int, n: int, r: int) -> None:
    """Both halves then point the same way: ||dW||_2 / sqrt(m / n) = lr. The rest is second order, lr / 4 of
    it relative to the least singular value."""
    lr = 1e-4
    params = pair(m, n, r)
    A, B = take(params, (params[0] @ params[1].mT).detach(), lr=lr, **EXACT)
    change = params[0].detach() @ params[1].detach().mT - A @ B.mT
    assert norm(change) / math.sqrt(m / n) == pytest.approx(lr, rel=0.01)


def test_the_published_form_has_no_shape_in_it() -> None:
    params = pair(64, 16, 4)
    A, B = take(params, dense_gradient(64, 16), lr=0.01, scale="none", **EXACT)
    assert norm((params[0].detach() - A) @ B.mT) == pytest.approx(0.005, rel=1e-9)


def test_muon_is_the_limit_of_an_orthogonal_factor() -> None:
    """r = m and A orthogonal: A dB^T = -(eta / 2) msign(G)."""
    params = pair(6, 9, 6)
    params[0].data = torch.linalg.qr(params[0].data).Q
    G = dense_gradient(6, 9)
    A, B = take(params, G, lr=0.1, scale="none", **EXACT)
    expected = -0.05 * torch.from_numpy(msign(G.numpy()))
    assert torch.allclose(A @ (params[1].detach() - B).mT, expected, atol=1e-12)


def test_the_tangent_direction_projects_and_is_the_whole_of_it_where_it_can_be() -> None:
    """Of a gradient that lies in the tangent space D is the gradient; dA B^T + A dB^T = -eta P(msign(G))."""
    m, n, r, lr = 12, 10, 3, 1e-3
    params = pair(m, n, r)
    A, B = (p.detach().clone() for p in params)
    X, Y = dense_gradient(m, r, 3), dense_gradient(n, r, 4)
    G = X @ B.mT + A @ Y.mT
    take(params, G, lr=lr, direction="tangent", scale="none", **EXACT)
    dA, dB = params[0].detach() - A, params[1].detach() - B
    U, V = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    left, right = torch.eye(m) - U @ U.mT, torch.eye(n) - V @ V.mT
    Us, s, Vh = torch.linalg.svd(G, full_matrices=False)
    msign_G = Us[:, : 2 * r] @ Vh[: 2 * r]
    assert s[2 * r] < 1e-12 * s[0]
    assert torch.allclose(dA @ B.mT + A @ dB.mT, -lr * (msign_G - left @ msign_G @ right), atol=1e-12)


# ---- decay


def test_split_decay_is_that_of_the_weight_and_exact() -> None:
    params = pair(7, 5, 3)
    A, B = take(params, torch.zeros(7, 5), lr=0.5, weight_decay=0.6)
    assert torch.allclose(params[0].detach() @ params[1].detach().mT, 0.7 * A @ B.mT, rtol=1e-12)


def test_a_decay_of_all_is_refused_at_once_and_in_mid_run() -> None:
    group = [{"params": pair(4, 4, 2), "role": "factors"}]
    with pytest.raises(UsageError, match=r"lr = 2.0 and weight_decay = 0.5.*product is 1 and must be below"):
        LoRAMuon(group, lr=2.0, weight_decay=0.5)
    optimizer = LoRAMuon(group, lr=0.1, weight_decay=0.5)
    optimizer.param_groups[0]["lr"] = 3.0
    for p in group[0]["params"]:
        p.grad = torch.ones_like(p)
    with pytest.raises(UsageError, match="lower either"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"msign": "quintic"}, "msign = 'quintic'; choose one of quintic5, polar8, pe7, svd"),
        ({"root": "exact"}, "root = 'exact'"),
        ({"rebalance_every": -1}, "rebalance_every = -1"),
        ({"rebalance_alpha": 0.0}, "rebalance_alpha = 0.0; choose above 0, at most 1"),
        ({"bound": "whole", "msign": "polar8"}, "cannot bound the whole change of W with msign = 'polar8'"),
        ({"bound": "whole", "direction": "tangent", "root": "ns7"}, "'tangent' and root = 'ns7'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        LoRAMuon([{"params": pair(4, 4, 2), "role": "factors"}], **options)


# ---- zero and deficient factors, sizes


@pytest.mark.parametrize("direction", ["halves", "tangent"])
@pytest.mark.parametrize("root", ["cholesky", "eigh", "iterated", "ns7"])
def test_the_partner_of_a_zero_factor_does_not_move(root: str, direction: str) -> None:
    params = pair(8, 6, 3)
    params[1].data.zero_()
    A, B = take(params, dense_gradient(8, 6), lr=0.1, root=root, direction=direction, msign="polar8")
    assert torch.equal(params[0].detach(), A)
    assert norm(params[1].detach() - B) > 0.01


def test_two_zero_factors_stay() -> None:
    params = pair(8, 6, 3)
    for p in params:
        p.data.zero_()
        p.grad = torch.ones_like(p)
    LoRAMuon([{"params": params, "role": "factors"}], lr=0.1).step()
    assert not any(p.any() for p in params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("direction", ["halves", "tangent"])
def test_columns_that_repeat_do_not_make_a_step_without_bound(dtype: torch.dtype, direction: str) -> None:
    """S_B has a zero eigenvalue; 1 / 0 there would be a step of thousands."""
    params = pair(20, 16, 4, dtype=dtype)
    params[1].data[:, 3] = params[1].data[:, 2]
    A, B = take(params, dense_gradient(20, 16), lr=0.1, direction=direction)
    for p, before in zip(params, (A, B), strict=True):
        assert p.isfinite().all()
        assert 0 < norm(p.detach() - before) < 1.0
    assert norm((params[0].detach() - A) @ B.mT) <= 1.21 * 0.1


@pytest.mark.parametrize("size", [1e-15, 1e-6, 1e6, 1e15])
def test_in_float32_the_step_does_not_depend_on_the_size_of_gradients(size: float) -> None:
    one, other = (pair(24, 16, 4, dtype=torch.float32) for _ in range(2))
    take(one, dense_gradient(24, 16), lr=0.1)
    take(other, size * dense_gradient(24, 16), lr=0.1)
    for p, q in zip(one, other, strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)  # the quintic turns 1e-7 into 1e-5 (f(0) = 490)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_in_float32_factors_may_be_of_any_size(size: float) -> None:
    """A c, B / c: the same first-order change, and nothing overflows on the way. With the change of a factor
    far below its size the step is lost in rounding, so it is seen in the other."""
    params = pair(24, 16, 4, dtype=torch.float32)
    params[0].data.mul_(size)
    params[1].data.div_(size)
    A, B = take(params, dense_gradient(24, 16), lr=0.1)
    for half in ((params[0].detach() - A) @ B.mT, A @ (params[1].detach() - B).mT):
        assert 0.67 * 0.05 * 1.22 < norm(half) < 1.21 * 0.05 * 1.23  # sqrt(24 / 16) = 1.2247


# ---- rebalancing


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_rebalancing_equalizes_the_norms_and_leaves_the_weight_s_course(alpha: float) -> None:
    runs = []
    for every in (0, 2):
        params = pair(12, 9, 3)
        params[0].data.mul_(50.0)
        params[1].data.div_(50.0)
        optimizer = LoRAMuon(
            [{"params": params, "role": "factors"}], lr=0.05, rebalance_every=every, rebalance_alpha=alpha
        )
        for t in range(6):
            G = dense_gradient(12, 9, 20 + t)
            params[0].grad, params[1].grad = (G @ params[1]).detach(), (G.mT @ params[0]).detach()
            optimizer.step()
        runs.append(params)
    W, V = ((A @ B.mT).detach() for A, B in runs)
    assert torch.allclose(W, V, rtol=1e-11, atol=1e-13)
    ratios = [norm(A.detach()) / norm(B.detach()) for A, B in runs]
    assert ratios[0] > 100
    assert ratios[1] < (60 if alpha < 1 else 1.5)


def test_rebalancing_rounds_no_bfloat16_weight() -> None:
    params = pair(12, 9, 3, dtype=torch.bfloat16)
    params[0].data.mul_(100.0)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    LoRAMuon([{"params": params, "role": "factors"}], lr=0.05, rebalance_every=1).step()
    assert not torch.equal(params[0], before[0])
    W, V = (A.double() @ B.double().mT for A, B in (params, before))
    assert torch.equal(W, V)


# ---- the whole bound

KINDS = ("random", "zero_A", "unbalanced", "spectrum", "repeated", "orthonormal", "large")


def factors(kind: str, m: int, n: int, r: int, g: torch.Generator, dtype: torch.dtype) -> list[nn.Parameter]:
    A, B = torch.randn(m, r, generator=g, dtype=dtype), torch.randn(n, r, generator=g, dtype=dtype)
    if kind == "zero_A":
        A = torch.zeros_like(A)
    if kind == "unbalanced":
        A, B = 300 * A, B / 300
    if kind == "spectrum":
        A, B = A * torch.logspace(1, -5, r, dtype=dtype), B * torch.logspace(1, -5, r, dtype=dtype)
    if kind == "repeated":
        A[:, -1] = A[:, 0]
        B[:, -1] = 2 * B[:, 0]
    if kind == "orthonormal" and r <= min(m, n):
        A, B = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    if kind == "large":
        A, B = 100 * A, 100 * B
    return [nn.Parameter(A), nn.Parameter(B)]


@settings(max_examples=120, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 8)),
    kind=st.sampled_from(KINDS),
    along=st.sampled_from(["noise", "outward", "rank_one"]),
    lr=st.sampled_from([1e-4, 0.01, 0.3, 3.0]),
    msign=st.sampled_from(["pe7", "quintic5"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    decay=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 1000),
)
def test_the_whole_change_is_bounded_as_it_is_stored(
    shape, kind, along, lr, msign, dtype, decay, seed
) -> None:
    """Of the step after the decay, measured in float64 from the numbers in memory."""
    m, n, r = shape
    g = torch.Generator().manual_seed(seed)
    params = factors(kind, m, n, r, g, dtype)
    optimizer = LoRAMuon(
        [{"params": params, "role": "factors"}], lr=lr, bound="whole", msign=msign, weight_decay=decay
    )
    kept = math.sqrt(1 - lr * decay)
    for _ in range(2):
        for p in params:
            noise = torch.randn(p.shape, generator=g, dtype=dtype)
            directions = {"noise": noise, "outward": -p.detach() * 1e3, "rank_one": noise[:, :1] * noise[:1]}
            p.grad = directions[along].clone()
        A, B = (p.detach() * kept if decay else p.detach().clone() for p in params)
        optimizer.step()
        change = params[0].detach().double() @ params[1].detach().double().mT - A.double() @ B.double().mT
        assert norm(change) <= lr * math.sqrt(m / n) * (1 + 1e-9)


def test_without_the_whole_bound_a_deficient_factor_breaks_it_and_with_it_the_step_is_shortened() -> None:
    sizes = {}
    for bound in ("first_order", "whole"):
        params = pair(16, 16, 4)
        for p in params:
            p.data.mul_(torch.logspace(0, -3, 4, dtype=torch.float64))
        A, B = take(params, dense_gradient(16, 16), lr=0.1, bound=bound, msign="pe7", momentum=0.0)
        sizes[bound] = norm((params[0] @ params[1].mT).detach() - A @ B.mT)
    assert sizes["first_order"] > 10 * 0.1
    assert 1e-3 < sizes["whole"] <= 0.1


def test_where_nothing_is_small_the_whole_bound_is_tight() -> None:
    """Orthonormal factors and a gradient along W: both terms point the same way."""
    params = [nn.Parameter(torch.linalg.qr(p.data).Q) for p in pair(32, 32, 8)]
    A, B = take(params, (params[0] @ params[1].mT).detach(), lr=0.1, bound="whole", msign="pe7")
    assert norm((params[0] @ params[1].mT).detach() - A @ B.mT) > 0.09
