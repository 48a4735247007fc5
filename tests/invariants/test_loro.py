"""LORO: a plain float64 version against the batched one, the traps of the authors' code, and what each
ingredient does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrise.config import load
from lowrise.errors import UsageError
from lowrise.linalg import tangent_step_reference
from lowrise.methods import METHODS
from lowrise.optim import LORO
from lowrise.train.schedule import multiplier, restarts_of

SHAPES = [(20, 12, 4), (12, 20, 4), (20, 12, 4)]


def make(dtype: torch.dtype = torch.float64) -> tuple[list[tuple[nn.Parameter, nn.Parameter]], nn.Parameter]:
    pairs = [
        tuple(nn.Parameter(torch.randn(k, r, dtype=torch.float64).to(dtype)) for k in (m, n))
        for m, n, r in SHAPES
    ]
    return pairs, nn.Parameter(torch.randn(7, 5, dtype=torch.float64).to(dtype))  # type: ignore[return-value]


def build(pairs: list[tuple[nn.Parameter, nn.Parameter]], other: nn.Parameter, **options: Any) -> LORO:
    groups = [
        {"params": [p for pair in pairs for p in pair], "role": "factors"},
        {"params": [other], "role": "other"},
    ]
    return LORO(groups, **options)


def gradients(t: int) -> tuple[list[Tensor], Tensor]:
    """dL/dW of every pair, and the gradient of the other parameter."""
    g = torch.Generator().manual_seed(t)
    dense = [torch.randn(m, n, generator=g, dtype=torch.float64) for m, n, _ in SHAPES]
    return dense, torch.randn(7, 5, generator=g, dtype=torch.float64)


def set_gradients(pairs: list[tuple[nn.Parameter, nn.Parameter]], other: nn.Parameter, t: int) -> None:
    dense, g = gradients(t)
    for (A, B), G in zip(pairs, dense, strict=True):
        G = G.to(A.dtype)
        A.grad, B.grad = G @ B.detach(), G.T @ A.detach()
    other.grad = g.to(other.dtype)


def train(pairs, other, optimizer, steps: range) -> list[Tensor]:
    """The products W after the last step."""
    for t in steps:
        set_gradients(pairs, other, t)
        optimizer.step()
    return [(A @ B.T).detach().clone() for A, B in pairs]


class Simple:
    """The dossier's section 2.2 for one pair, in plain lines: exact every K, all moments reset with it."""

    def __init__(self, A: Tensor, B: Tensor, K: int, scale: float, wd: float) -> None:
        self.A, self.B, self.K, self.scale, self.wd = A.clone(), B.clone(), K, scale, wd
        self.u = 0
        self.reset()

    def reset(self) -> None:
        self.t = 0
        self.m = [torch.zeros_like(self.A), torch.zeros_like(self.B)]
        self.v = [torch.zeros_like(self.A), torch.zeros_like(self.B)]

    def step(self, G: Tensor, lr: float) -> None:
        self.u, self.t = self.u + 1, self.t + 1
        D = []
        for i, g in enumerate((G @ self.B, G.T @ self.A)):
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
            D.append(self.m[i] / (self.v[i].sqrt() + 1e-6))
        s = lr * (1 - 0.999**self.t) ** 0.5 / (1 - 0.9**self.t)
        if self.u % self.K:
            self.A = (self.A - s * self.scale * D[0]) * (1 - s * self.wd)
            self.B = (self.B - s * self.scale * D[1]) * (1 - s * self.wd)
            return
        size = torch.tensor([s], dtype=torch.float64)
        moved = tangent_step_reference(self.A[None], self.B[None], D[0][None], D[1][None], size)
        self.A, self.B = moved.A[0], moved.B[0]
        self.reset()


@pytest.mark.parametrize("stagger", [False, True])
def test_batched_equals_the_plain_version(stagger: bool) -> None:
    """Three pairs, two of one shape; with stagger each has its exact step and reset at its own update."""
    pairs, other = make()
    plain = [Simple(A.detach(), B.detach(), 6, 4 / 12, 0.1) for A, B in pairs]
    for i, simple in enumerate(plain):
        simple.u = 2 * i if stagger else 0  # phases 0, 2, 4 of 6
    options = {"stagger": stagger, "restart_warmup": 0, "hidden_size": 12, "weight_decay": 0.1}
    optimizer = build(pairs, other, lr=0.05, exact_every=6, **options)
    for t in range(14):
        W = train(pairs, other, optimizer, range(t, t + 1))
        for simple, G, product in zip(plain, gradients(t)[0], W, strict=True):
            simple.step(G, 0.05)
            # float64; the bar of the golden fixtures
            torch.testing.assert_close(product, simple.A @ simple.B.T, rtol=1e-11, atol=1e-12)


def test_staggered_pairs_return_to_their_rate_by_themselves() -> None:
    pairs, other = make()
    optimizer = build(pairs, other, lr=0.05, exact_every=6, stagger=True, restart_warmup=2, reset="factors")
    assert optimizer.resets(100) == ()
    moves = []
    for t in range(9):
        before = [A.detach().clone() for A, _ in pairs]
        train(pairs, other, optimizer, range(t, t + 1))
        moves.append([(A - b).norm().item() for (A, _), b in zip(pairs, before, strict=True)])
    # Exact at updates 6, 4, 2: the next update does not move the pair, the one after it does, by half a rate.
    for pair, exact in enumerate((6, 4, 2)):
        assert moves[exact][pair] == 0
        assert 0 < moves[exact + 1][pair] < moves[exact - 1][pair]


def test_lazy_steps_alone_are_adam_with_its_own_epsilon() -> None:
    """K beyond the end and c = 1: torch's Adam, whose eps is corrected too, with an eps that undoes that."""
    pairs, other = make()
    mine, twin = [p for pair in pairs for p in pair] + [other], []
    twin = [nn.Parameter(p.detach().clone()) for p in mine]
    optimizer = build(pairs, other, lr=0.01, exact_every=1000, lr_scaler=1.0)
    adam = torch.optim.Adam(twin, lr=0.01, betas=(0.9, 0.999), eps=1e-6)
    for t in range(5):
        set_gradients(pairs, other, t)
        for p, q in zip(mine, twin, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        adam.param_groups[0]["eps"] = 1e-6 / (1 - 0.999 ** (t + 1)) ** 0.5
        adam.step()
    for p, q in zip(mine, twin, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_epsilon_before_the_bias_correction_acts_like_a_larger_one() -> None:
    """At t = 1 the authors' 1e-6 divides as 1e-6 / sqrt(1 - b2) = 3.2e-5 after the correction would."""
    p, q = (nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    p.grad, q.grad = (torch.tensor([1e-5, 1e-4, 1.0], dtype=torch.float64) for _ in range(2))
    LORO([{"params": [p], "role": "other"}], lr=0.1, eps=1e-6).step()
    torch.optim.Adam([q], lr=0.1, eps=1e-6 / (1 - 0.999) ** 0.5).step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
    assert p[0].abs() < 0.03, "a gradient of 1e-5 takes a quarter of a step, not a whole one"


def test_the_scaler_is_rank_over_hidden_size() -> None:
    """The class's number, or r / hidden size for every matrix; equal where they are the same number."""
    results = []
    for options in ({"hidden_size": 16}, {"lr_scaler": 0.25}, {"hidden_size": 4}, {"lr_scaler": 1.0}):
        torch.manual_seed(1)
        pairs, other = make()
        results.append(train(pairs, other, build(pairs, other, **options), range(3)))
    for i in (0, 2):
        assert all(torch.equal(x, y) for x, y in zip(results[i], results[i + 1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("reset", ["all", "factors", "other", "none"])
def test_which_moments_are_dropped(reset: str) -> None:
    pairs, other = make()
    optimizer = build(pairs, other, exact_every=3, kth_update="lazy", reset=reset)
    train(pairs, other, optimizer, range(3))
    zero = {p: not optimizer.state[p]["exp_avg"].any() for p in (pairs[0][0], pairs[2][1], other)}
    assert list(zero.values()) == [reset in ("all", "factors")] * 2 + [reset in ("all", "other")]
    assert optimizer.resets(9) == (() if reset == "none" else (3, 6))
    assert float(optimizer.state[other]["step"]) == 3, "the counter of updates goes on"


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, False),
        ({"reset": "factors"}, False),
        ({"reset": "other"}, True),
        ({"reset": "none"}, True),
        ({"reset": "none", "kth_update": "rebalance"}, True),
        ({"reset": "none", "kth_update": "lazy"}, False),
        ({"reset": "none", "transport": True}, False),
        ({"reset_every": 2, "exact_every": 4}, False),
        ({"reset_every": 3, "exact_every": 4}, True),
        ({"reset": "none", "exact_every": 0}, False),
    ],
)
def test_a_new_basis_is_refused_while_old_moments_stay(options, refused) -> None:
    pairs, other = make()
    if refused:
        with pytest.raises(UsageError, match="moments of the old columns"):
            build(pairs, other, **options)
    else:
        build(pairs, other, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"reset": "all"},
        {"reset": "none", "transport": True},
        {"reset": "none", "transport": True, "kth_update": "rebalance"},
        {"reset": "all", "exact_direction": "consistent"},
        {"reset": "none", "transport": True, "exact_direction": "consistent", "retraction": "orthographic"},
    ],
)
def test_the_signs_that_an_exact_step_happens_to_give_do_not_matter(options, monkeypatch) -> None:
    """Flipping column pairs in the new basis leaves W alone, and with moments dropped or carried over, all
    later W. (The authors' code without a reset drifts by 4.5% in eight updates.)
    """
    import lowrise.optim.loro as module

    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    step, balance = module.tangent_step, module.rebalance

    def flipped_step(*arguments, **keywords):
        moved = step(*arguments, **keywords)
        return moved._replace(A=moved.A * flip, B=moved.B * flip, T_A=moved.T_A * flip, T_B=moved.T_B * flip)

    def flipped_balance(A, B):
        return tuple(X * flip for X in balance(A, B))

    results = []
    for flipped in (False, True):
        if flipped:
            monkeypatch.setattr(module, "tangent_step", flipped_step)
            monkeypatch.setattr(module, "rebalance", flipped_balance)
        torch.manual_seed(2)
        pairs, other = make()
        results.append(train(pairs, other, build(pairs, other, exact_every=4, **options), range(12)))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


def test_transport_by_rebalancing_is_exact_for_the_first_moment() -> None:
    """After it, m is what gradients of the same dense G would have given in the new basis all along."""
    pairs, other = make()
    A, B = pairs[0]
    optimizer = build(
        pairs, other, lr=0.0, exact_every=3, kth_update="rebalance", reset="none", transport=True
    )
    mean = torch.zeros(20, 12, dtype=torch.float64)
    for t in range(3):  # lr 0: W stands still, so the moments are those of one basis
        mean = 0.9 * mean + 0.1 * gradients(t)[0][0]
        train(pairs, other, optimizer, range(t, t + 1))
    torch.testing.assert_close(A.T @ A, B.T @ B, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(optimizer.state[A]["exp_avg"], mean @ B, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(optimizer.state[B]["exp_avg"], mean.T @ A, rtol=1e-10, atol=1e-11)
    assert (optimizer.state[A]["exp_avg_sq"] >= 0).all()


def test_rebalance_moves_no_weight_beyond_its_lazy_step() -> None:
    results = []
    for kth in ("lazy", "rebalance"):
        torch.manual_seed(3)
        pairs, other = make()
        results.append(train(pairs, other, build(pairs, other, exact_every=3, kth_update=kth), range(3)))
        gap = (pairs[0][0].T @ pairs[0][0] - pairs[0][1].T @ pairs[0][1]).abs().max()
        assert (gap < 1e-10) == (kth == "rebalance")
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


def projected(A: Tensor, B: Tensor, G: Tensor) -> Tensor:
    left, right = (Q @ Q.T for Q in (torch.linalg.qr(A).Q, torch.linalg.qr(B).Q))
    return left @ G + G @ right - left @ G @ right


def first_exact_move(
    direction: str, C: Tensor | None = None, lr: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """(dW / lr, P(G), G) of a first update that is exact, from factors in the split C."""
    torch.manual_seed(4)
    pairs, other = make()
    A, B = pairs[0]
    if C is not None:
        with torch.no_grad():
            A.copy_(A @ C)
            B.copy_(B @ C.inverse().T)
    P, before = projected(A.detach(), B.detach(), gradients(0)[0][0]), (A @ B.T).detach()
    W = train(pairs, other, build(pairs, other, lr=lr, exact_every=1, exact_direction=direction), range(1))[0]
    return (W - before) / lr, P, gradients(0)[0][0]


def test_consistent_is_the_steepest_of_all_tangent_directions() -> None:
    move, P, G = first_exact_move("consistent")
    length = (4 * (20 + 12 - 4)) ** 0.5  # Adam's: one for each coordinate of the tangent space
    # first order in lr = 1e-6, and eps / |g| of 1e-5 (before the bias correction)
    torch.testing.assert_close(move, -length * P / P.norm(), rtol=1e-4, atol=1e-4)
    slope = (move * G).sum() / move.norm()
    assert slope.item() == pytest.approx(-P.norm().item(), rel=1e-6)
    torch.manual_seed(5)
    for _ in range(1000):
        other = projected(*(torch.randn(k, 4, dtype=torch.float64) for k in (20, 12)), torch.randn_like(G))
        assert (other * G).sum() / other.norm() < P.norm()


def test_consistent_does_not_depend_on_the_split_and_the_authors_direction_does() -> None:
    C = torch.randn(4, 4, dtype=torch.float64)
    change = {}
    for direction in ("consistent", "authors"):
        plain, split = first_exact_move(direction)[0], first_exact_move(direction, C)[0]
        change[direction] = ((split - plain).norm() / plain.norm()).item()
    # The optimizer's eps is small beside the mean gradient of either split, but not zero.
    assert change["consistent"] < 1e-4
    assert change["authors"] > 0.3


def test_the_authors_direction_is_less_steep() -> None:
    """In the sign limit (first update) the slope per unit of length is far above -||P(G)||."""
    move, P, G = first_exact_move("authors")
    assert -P.norm() * 0.9 < (move * G).sum() / move.norm() < 0


def test_factors_without_full_rank_take_the_lazy_step() -> None:
    """The authors' code raises here (a constant or a zero factor)."""
    pairs, other = make()
    with torch.no_grad():
        pairs[1][1].zero_()
    before = pairs[1][1].detach().clone()
    W = train(pairs, other, build(pairs, other, exact_every=1), range(4))
    assert all(w.isfinite().all() for w in W)
    assert not torch.equal(pairs[1][1], before)
    assert torch.linalg.matrix_rank(W[1]) == 4


def test_bfloat16_weights_have_float32_moments_that_decay() -> None:
    pairs, other = make(torch.bfloat16)
    optimizer = build(pairs, other, exact_every=300)
    A = pairs[0][0]
    state = optimizer.state[A]
    assert state["exp_avg_sq"].dtype == torch.float32
    train(pairs, other, optimizer, range(1))
    first = state["exp_avg_sq"].clone()
    for p in [p for pair in pairs for p in pair]:
        p.grad = torch.zeros_like(p)
    for _ in range(200):
        optimizer.step()
    torch.testing.assert_close(state["exp_avg_sq"], first * 0.999**200, rtol=1e-4, atol=0)
    train(pairs, other, optimizer, range(1, 100))  # past an exact step
    assert A.dtype == torch.bfloat16
    assert A.isfinite().all()


def test_the_update_after_a_reset_does_nothing_in_the_published_recipe() -> None:
    from pathlib import Path

    config = load(Path(__file__).parents[2] / "recipes" / "loro-60m.toml")
    pairs, other = make()
    resets = build(pairs, other, exact_every=500).resets(config.train.steps)
    assert resets[:3] == (500, 1000, 1500)
    assert resets[-1] == 9500
    restarts = restarts_of(config.schedule, resets, config.train.steps)
    values = {u: multiplier(u, config.train.steps, config.schedule, restarts) for u in range(1, 10_001)}
    assert all(values[reset + 1] == 0 for reset in resets), "also within the warm-up and at its end"
    assert all(values[reset + 6] > 0.9 * values[reset] for reset in resets)


def test_impossible_options_get_a_sentence() -> None:
    pairs, other = make()
    for options, sentence in (
        ({"kth_update": "sometimes"}, "choose one of exact, rebalance, lazy"),
        ({"exact_every": -1}, "at least 0"),
        ({"lr_scaler": -1.0}, "hidden_size"),
        ({"restart_warmup": -2}, "at least 0"),
    ):
        with pytest.raises(UsageError, match=sentence):
            build(pairs, other, **options)
    wide = [nn.Parameter(torch.zeros(3, 5)), nn.Parameter(torch.zeros(8, 5))]
    with pytest.raises(UsageError, match="rank of at most"):
        LORO([{"params": wide, "role": "factors"}])
    with pytest.raises(UsageError, match="moves the roles factors and other"):
        LORO([nn.Parameter(torch.zeros(4, 4))])


def test_the_row_starts_with_the_authors_initialization_and_dips() -> None:
    defaults = METHODS["loro"].defaults
    assert defaults["layer.init"] == "xavier"
    assert defaults["schedule.restart_warmup"] == 5
