"""GaLore, Fira and APOLLO: the dossiers' ways to verify an implementation, and each fault that they list."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.linalg.subspace import leading_left, uniform_basis
from lowrise.optim import APOLLO, Fira, GaLore
from lowrise.optim.engine import projected_adam as projected
from lowrise.optim.engine.projected_adam import Batch, ProjectedAdam
from lowrise.optim.fira import residual_norms
from lowrise.optim.rules import projection
from lowrise.optim.rules.growth_limiter import limit_growth

FAMILY = [GaLore, Fira, APOLLO]
D = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D).to(dtype)


def trained(
    cls: type[ProjectedAdam], grads: list[Tensor], W0: Tensor | None = None, **options: Any
) -> tuple[Tensor, ProjectedAdam, list[Tensor]]:
    """The weight, the optimizer and the movements of all steps."""
    start = draw(*grads[0].shape, seed=99).to(grads[0].dtype) if W0 is None else W0
    W = nn.Parameter(start.clone())
    optimizer = cls([("w", W)], **{"lr": 0.1, "rank": 4, "update_proj_gap": 5, **options})
    moves = []
    for G in grads:
        before = W.detach().clone()
        W.grad = G.clone()
        optimizer.step()
        moves.append(before - W.detach())
    return W.detach(), optimizer, moves


def sequence(m: int, n: int, steps: int, dtype: torch.dtype = D) -> list[Tensor]:
    return [draw(m, n, seed=s, dtype=dtype) for s in range(steps)]


# ---- GaLore


@pytest.mark.parametrize(
    ("proj_type", "shape"), [("std", (12, 20)), ("std", (20, 12)), ("left", (20, 12)), ("full", (14, 10))]
)
def test_moves_within_a_subspace_of_rank_r_until_the_next_renewal(proj_type, shape) -> None:
    _, _, moves = trained(GaLore, sequence(*shape, 5), proj_type=proj_type)
    sigma = torch.linalg.svdvals(sum(moves))
    assert sigma[3] > 1e-3
    assert sigma[4] < 1e-13 * sigma[0], "rounding of float64"


def test_first_step_of_a_low_rank_gradient_stays_in_its_column_space() -> None:
    G = draw(12, 3) @ draw(3, 20, seed=1)
    _, _, (move,) = trained(GaLore, [G], rank=3)
    Q = torch.linalg.qr(G @ draw(20, 3, seed=5)).Q
    assert (move - Q @ Q.mT @ move).norm() < 1e-12 * move.norm()


@pytest.mark.parametrize("correct_bias", [True, False])
def test_with_the_identity_as_basis_it_is_adamw_with_eps_on_the_uncorrected_root(correct_bias: bool) -> None:
    grads, lr, wd, eps = sequence(8, 12, 7), 0.1, 0.3, 0.05
    W, _, _ = trained(
        GaLore, grads, rank=8, scale=1.0, eps=eps, weight_decay=wd, correct_bias=correct_bias, lr=lr,
        projection=lambda G, rank, side, step: torch.eye(8, dtype=D),
    )  # fmt: skip
    expected, M, V = draw(8, 12, seed=99), torch.zeros(8, 12, dtype=D), torch.zeros(8, 12, dtype=D)
    for t, G in enumerate(grads, start=1):
        M, V = 0.9 * M + 0.1 * G, 0.999 * V + 0.001 * G * G
        s = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) if correct_bias else lr
        expected = (expected - s * M / (V.sqrt() + eps)) * (1 - lr * wd)
    torch.testing.assert_close(W, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("cls", FAMILY)
def test_other_parameters_are_adamw_with_that_eps(cls: type[ProjectedAdam]) -> None:
    """With eps = 0 the forms agree, so torch's AdamW is the reference; with eps they differ visibly."""
    results = []
    for eps in (0.0, 0.1):
        p, q = nn.Parameter(draw(7)), nn.Parameter(draw(7))
        ours = cls([{"params": [p], "role": "other"}], lr=0.1, betas=(0.9, 0.99), eps=eps)
        theirs = torch.optim.AdamW([q], lr=0.1, betas=(0.9, 0.99), eps=eps, weight_decay=0.0)
        for t in range(4):
            p.grad, q.grad = draw(7, seed=t), draw(7, seed=t)
            ours.step()
            theirs.step()
        results.append((p - q).abs().max().item())
    assert results[0] < 1e-14
    assert results[1] > 1e-3


def test_signs_of_the_solver_do_not_change_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """galore.md, section 9: flipped signs move the final weights by a third to a half of their movement."""
    grads = sequence(12, 20, 16)
    expected, _, _ = trained(GaLore, grads)
    honest, flips = projection.leading_left, iter(range(1000))

    def flipped(G: Tensor, rank: int) -> Tensor:
        signs = torch.where(draw(rank, seed=next(flips)) < 0, -1.0, 1.0).to(G.dtype)
        return honest(G, rank) * signs

    monkeypatch.setattr(projection, "leading_left", flipped)
    assert torch.equal(trained(GaLore, grads)[0], expected)
    unaligned, _, _ = trained(GaLore, grads, projection=lambda G, rank, side, step: flipped(G, rank))
    assert (unaligned - expected).abs().max() > 0.01, "the test would not see a flip"


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("kind", ["svd", "warm", "range_finder", "random"])
def test_float32_and_float64_take_the_same_path(cls: type[ProjectedAdam], kind: str) -> None:
    # 5e-4 of the movement: gaps of 1e-2 between singular values turn rounding of 6e-8 into angles of 1e-5,
    # amplified over three renewals
    start = draw(12, 20, seed=99)
    wide, _, _ = trained(cls, sequence(12, 20, 14), projection=kind)
    narrow, _, _ = trained(cls, sequence(12, 20, 14, torch.float32), projection=kind)
    assert (wide - narrow).abs().max() < 5e-4 * (wide - start).abs().max()


@pytest.mark.parametrize("cls", [GaLore, Fira])
@pytest.mark.parametrize("kind", ["svd", "warm", "range_finder", "random"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_bad_gradient_never_breaks_a_basis(cls: type[ProjectedAdam], kind: str, bad: float) -> None:
    W = nn.Parameter(draw(12, 20, dtype=torch.float32))
    optimizer = cls([("w", W)], rank=4, update_proj_gap=1, projection=kind)
    before = None
    for t, broken in enumerate((True, False, True)):
        W.grad = draw(12, 20, seed=t, dtype=torch.float32)
        if broken:
            W.grad = W.grad * 0 if bad == 0 else W.grad.fill_(1.0).index_fill_(0, torch.tensor([3]), bad)
        before = optimizer.state[W]["left"].clone()
        optimizer.step()
        P = optimizer.state[W]["left"]
        assert (P.mT @ P - torch.eye(4)).abs().max() < 2e-6
        if broken and kind != "random":
            assert torch.equal(P, before), "no information: the basis stays"


@pytest.mark.parametrize("cls", FAMILY)
def test_options_of_a_group_may_change_at_any_time(cls: type[ProjectedAdam]) -> None:
    """The authors' projector copies gap and scale at creation, so later edits did nothing."""
    name = {"GaLore": "scale", "Fira": "alpha", "APOLLO": "scale"}[cls.__name__]
    calls: list[int] = []

    def basis(G: Tensor, rank: int, side: str, step: int) -> Tensor:
        calls.append(step)
        return uniform_basis(draw(1, G.shape[0], rank, seed=step))[0]

    W = nn.Parameter(draw(8, 12))
    optimizer = cls([W], lr=0.1, rank=2, update_proj_gap=2, projection=basis)
    for t in range(8):
        if t == 3:
            optimizer.param_groups[0].update({"update_proj_gap": 3, name: 0.0})
        before = W.detach().clone()
        W.grad = draw(8, 12, seed=t)
        optimizer.step()
        if t >= 3 and cls is not Fira:
            assert torch.equal(W, before), "a scale of 0 moves nothing"
    assert calls == [0, 2, 3, 6]


def test_staggered_renewals_come_once_a_period_and_not_together() -> None:
    calls: list[tuple[int, int]] = []

    def basis(G: Tensor, rank: int, side: str, step: int) -> Tensor:
        calls.append((step, G.shape[-1]))
        return uniform_basis(draw(1, 6, rank))[0]

    weights = [nn.Parameter(draw(6, 10 + k)) for k in range(5)]
    optimizer = GaLore(weights, rank=2, update_proj_gap=10, stagger=True, projection=basis)
    for t in range(30):
        for i, W in enumerate(weights):
            W.grad = draw(*W.shape, seed=10 * t + i)
        optimizer.step()
    assert [c for c in calls if c[0] == 0] == [(0, 10 + k) for k in range(5)], (
        "all of them at the first update"
    )
    later = [step for step, _ in calls if step > 0]
    assert len(set(later)) == len(later), "never two at once"
    for k in range(5):
        steps = [step for step, n in calls if n == 10 + k and step > 0]
        assert all(b - a == 10 for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("cls", FAMILY)
def test_a_callable_projection_is_not_saved_and_not_lost(cls: type[ProjectedAdam]) -> None:
    def basis(G: Tensor, rank: int, side: str, step: int) -> Tensor:
        return uniform_basis(draw(1, G.shape[0], rank, seed=step))[0]

    grads = sequence(8, 12, 9)
    expected, _, _ = trained(cls, grads, projection=basis, update_proj_gap=3)
    W, first, _ = trained(cls, grads[:5], projection=basis, update_proj_gap=3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = nn.Parameter(W.clone())
    second = cls([("w", again)], lr=0.1, rank=4, update_proj_gap=3, projection=basis)
    second.load_state_dict(torch.load(file, weights_only=True))
    for G in grads[5:]:
        again.grad = G.clone()
        second.step()
    assert torch.equal(again, expected)


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 0}, "rank 0 is impossible"),
        ({"rank": 1.5}, "rank = 1.5"),
        ({"update_proj_gap": 0}, "update_proj_gap = 0"),
        ({"proj_type": "up"}, "proj_type = 'up'"),
        ({"projection": "qr"}, "projection = 'qr'"),
    ],
)
def test_options_that_cannot_be_right(
    cls: type[ProjectedAdam], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        cls([nn.Parameter(draw(4, 4))], **options)


def test_both_names_of_the_scale_work_and_fira_and_apollo_refuse_full() -> None:
    W = nn.Parameter(draw(4, 4))
    assert GaLore([{"params": [W], "alpha": 0.5}]).param_groups[0]["scale"] == 0.5
    assert Fira([{"params": [W], "scale": 0.5}]).param_groups[0]["alpha"] == 0.5
    for cls in (Fira, APOLLO):
        with pytest.raises(UsageError, match='proj_type = "full"'):
            cls([W], proj_type="full")
    for options, sentence in (
        ({"limiter": "on"}, "limiter"),
        ({"gamma": 0.9}, "gamma"),
        ({"residual": "x"}, "residual"),
    ):
        with pytest.raises(UsageError, match=sentence):
            Fira([W], **options)
    for options, sentence in (({"scale_type": "row"}, "scale_type"), ({"scale": -1.0}, "scale")):
        with pytest.raises(UsageError, match=sentence):
            APOLLO([W], **options)


@pytest.mark.parametrize(("cls", "extra"), [(GaLore, 0), (Fira, 1), (APOLLO, 1)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_state_is_the_dossiers_formula_in_bytes(
    cls: type[ProjectedAdam], extra: int, shape: tuple[int, int]
) -> None:
    """The authors keep views of the whole U: 13 to 19% more at 60M; APOLLO's keeps its projection."""
    W = nn.Parameter(draw(*shape, dtype=torch.float32))
    optimizer = cls([W], rank=6, update_proj_gap=2)
    for t in range(3):
        W.grad = draw(*shape, seed=t, dtype=torch.float32)
        optimizer.step()
    basis = 0 if cls is APOLLO else 6 * 24
    assert optimizer.state_bytes() == 4 * (2 * 6 * 40 + basis + extra)


# ---- Fira


def fira_parts(alpha: float, residual: str, side: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """G, R, phi and S diag(phi) of the first step, S from the movement of the weight."""
    shape = (12, 20) if side == "left" else (20, 12)
    G = draw(*shape)
    P = uniform_basis(draw(1, 12, 4, seed=3))[0]
    _, _, (move,) = trained(Fira, [G], alpha=alpha, residual=residual, limiter="off", projection=lambda *_: P)
    G, move = (G, move) if side == "left" else (G.mT, move.mT)
    R = P.mT @ G
    N = 0.1 * R / ((0.001 * R * R).sqrt() + 1e-6)
    s = 0.1 * math.sqrt(0.001) / 0.1
    S = move / s - alpha * P @ N
    phi = N.norm(dim=0) / (R.norm(dim=0) + 1e-8)
    return P, R, phi, S / alpha if residual == "orthogonal" else S


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("alpha", "residual"), [(1.0, "reference"), (0.25, "reference"), (0.25, "orthogonal")]
)
def test_what_the_residual_holds_of_the_subspace(alpha: float, residual: str, side: str) -> None:
    """P^T S = (1 - a) R before scaling, a = alpha as coded, 1 as published."""
    P, R, phi, S = fira_parts(alpha, residual, side)
    a = alpha if residual == "reference" else 1.0
    torch.testing.assert_close(P.mT @ S / phi, (1 - a) * R, rtol=0, atol=1e-11)


def test_growth_of_the_residual_is_limited_and_its_fall_is_not() -> None:
    W = nn.Parameter(draw(12, 20))
    optimizer = Fira([W], rank=4, update_proj_gap=100, residual="orthogonal")
    norms = []
    for t, outside in enumerate([1.0, 1.0, 12.0, 12.0, 0.1, 6.0, 6.0]):
        G, P = draw(12, 20, seed=t), optimizer.state[W]["left"]
        inside = P @ P.mT @ G
        W.grad = inside + outside * (G - inside)
        optimizer.step()
        norms.append(optimizer.state[W]["norm"].item())
    for previous, now in itertools.pairwise(norms):
        assert now <= 1.01 * (previous + 1e-8) * (1 + 1e-14)
    assert norms[2] == pytest.approx(1.01 * norms[1], rel=1e-7), "the jump met the limit"
    assert norms[4] < 0.5 * norms[3], "a fall is free"


@pytest.mark.parametrize("cls", [Fira, APOLLO])
@pytest.mark.parametrize("at", [0, 3])
def test_a_zero_gradient_does_not_trap_the_limiter(cls: type[ProjectedAdam], at: int) -> None:
    """fira.md, section 6.1: in the reference 1,571 steps until half of the norm is back."""
    norms: dict[str, list[float]] = {}
    for limiter in ("safe", "reference"):
        W = nn.Parameter(draw(12, 20))
        optimizer = cls([W], rank=4, update_proj_gap=100, limiter=limiter, betas=(0.0, 0.0))
        norms[limiter] = []
        for t in range(8):
            W.grad = draw(12, 20, seed=t)
            if t == at:
                W.grad = torch.zeros_like(W)
            optimizer.step()
            norms[limiter].append(optimizer.state[W]["norm"].item())
    safe, reference = (norms[k][at + 1] for k in ("safe", "reference"))
    assert safe > 1.0
    assert reference < 1e-7
    if at:
        assert norms["safe"][at] == norms["safe"][at - 1], "the cap is what it was"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_does_not_stay_in_the_limiter(bad: float) -> None:
    norms, previous = torch.tensor([bad, 3.0]), torch.tensor([2.0, 2.0])
    first = torch.tensor([False, False])
    _, kept = limit_growth(norms, previous, first, rule="safe")
    assert kept.tolist() == pytest.approx([2.0, 2.02])
    _, kept = limit_growth(norms, previous, first, rule="reference")
    assert not kept[0].isfinite() or kept[0] > 2.0, "the authors' remembers what it met"
    divisors, kept = limit_growth(norms, previous, first, rule="off")
    assert divisors.tolist() == [1.0, 1.0]


def test_full_rank_residual_of_rounding_is_harmless() -> None:
    """fira.md, section 6.7: with alpha = 1 and full rank the residual is rounding noise, and Fira GaLore."""
    grads = sequence(12, 20, 6, torch.float32)
    W, optimizer, _ = trained(Fira, grads, alpha=1.0, rank=12)
    full = grads[-1].norm() * 12**0.5  # about ||G diag(phi)||
    assert optimizer.state_dict()["state"][0]["norm"] < 3.5e-4 * full, "sqrt(eps) of float32"
    galore, _, _ = trained(GaLore, grads, scale=1.0, rank=12)
    torch.testing.assert_close(W, galore, rtol=0, atol=5e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("a", [0.25, 1.0, 64.0])  # 64: fine-tuning, fira.md, section 4
@pytest.mark.parametrize("outside", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_norms_of_vectors_give_the_norm_of_the_residual(
    side: str, a: float, outside: float, dtype: torch.dtype
) -> None:
    """Against the residual itself, for gradients with little outside the subspace."""
    P = uniform_basis(draw(3, 40, 8, seed=1))
    inside = P @ draw(3, 8, 60, seed=2)
    rest = draw(3, 40, 60, seed=3)
    G = inside + outside * (rest - P @ (P.mT @ rest))
    G = G.to(dtype)
    P = leading_left(G, 8)
    R = P.mT @ G
    if side == "right":
        G, R = G.mT, R.mT
    N = draw(*R.shape, seed=4).to(dtype)
    batch = Batch([], G, {side: P}, R, N)
    fast, slow = (residual_norms([batch], a=a, orthonormal=orthonormal)[0] for orthonormal in (True, False))
    # ||S|| from a difference of squares, which cancel at a = 1.
    error = ((fast - slow).abs() / slow).max() / torch.finfo(dtype).eps
    assert error < (4 / outside**2 if a == 1 else 4)


def test_without_the_inner_part_it_is_apollos_channel_rule() -> None:
    P = uniform_basis(draw(1, 12, 4, seed=3))[0]
    grads = sequence(12, 20, 6)
    options = {"projection": lambda *_: P, "limiter": "safe"}
    fira, _, _ = trained(Fira, grads, alpha=0.0, **options)
    apollo, _, _ = trained(APOLLO, grads, scale=1.0, **options)
    torch.testing.assert_close(fira, apollo, rtol=0, atol=1e-14)


# ---- APOLLO


def projections(order: list[str], steps: int, gap: int, **options: Any) -> dict[tuple[str, int], Tensor]:
    """(name, step) -> the projection used, kept through `store_projection`."""
    named = {name: nn.Parameter(draw(12, 20)) for name in order}
    optimizer = APOLLO(list(named.items()), rank=4, update_proj_gap=gap, store_projection=True, **options)
    seen = {}
    for t in range(steps):
        for i, W in enumerate(named.values()):
            W.grad = draw(12, 20, seed=10 * t + i)
        optimizer.step()
        seen.update({(name, t): optimizer.state[W]["left"].clone() for name, W in named.items()})
    return seen


def test_projections_depend_on_name_period_and_seed_alone() -> None:
    seen = projections(["a", "b"], 5, 2)
    assert not torch.equal(seen["a", 0], seen["b", 0]), "matrices of one shape"
    assert torch.equal(seen["a", 0], seen["a", 1])
    assert not torch.equal(seen["a", 1], seen["a", 2]), "the next period"
    reordered = projections(["b", "new", "a"], 5, 2)
    assert all(torch.equal(P, reordered[key]) for key, P in seen.items()), "order does not matter"
    assert not torch.equal(projections(["a"], 1, 2, seed=1)["a", 0], seen["a", 0])


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_a_projection_made_anew_equals_a_stored_one(shape: tuple[int, int]) -> None:
    grads = sequence(*shape, 9)
    options = {"update_proj_gap": 4}
    assert torch.equal(
        trained(APOLLO, grads, **options)[0], trained(APOLLO, grads, store_projection=True, **options)[0]
    )


@pytest.mark.parametrize(("m", "n", "r"), [(64, 256, 16), (256, 688, 64)])
def test_factors_are_sqrt_of_r_over_d_of_full_rank(m: int, n: int, r: int) -> None:
    """apollo.md, section 3. 6%: one draw of P; the ratio scatters by about 1 / sqrt(2 r n) over columns and
    more by P itself (measured there 0.506, 0.498 for 0.5)."""
    grads = [draw(m, n, seed=s) for s in range(6)]
    moved = {}
    for name, options in {
        "low": {"rank": r},
        "full": {"rank": m, "projection": lambda *_: torch.eye(m, dtype=D)},
        "relative": {"rank": r, "relative_scale": True},
    }.items():
        _, _, moves = trained(APOLLO, grads, limiter="off", **options)
        moved[name] = moves[-1].norm().item()
    assert moved["low"] / moved["full"] == pytest.approx(math.sqrt(r / m), rel=0.06)
    if m / r == 4:
        # `scale` stands under a root, so d / r in it restores the factor
        assert moved["relative"] / moved["full"] == pytest.approx(1.0, rel=0.06)


@pytest.mark.parametrize(
    ("scale_type", "shape"), [("channel", (12, 20)), ("channel", (20, 12)), ("tensor", (12, 20))]
)
def test_direction_is_the_gradients(scale_type: str, shape: tuple[int, int]) -> None:
    grads = sequence(*shape, 4)
    _, _, moves = trained(APOLLO, grads, scale_type=scale_type)
    dim = None if scale_type == "tensor" else (0 if shape[0] < shape[1] else 1)
    for G, move in zip(grads, moves, strict=True):
        cosine = (G * move).sum(dim) / (G.pow(2).sum(dim) * move.pow(2).sum(dim)).sqrt()
        assert (cosine - 1).abs().max() < 1e-12


def test_scale_front_gives_the_same_weights() -> None:
    # apollo.md, section 2: the orders differ through the 1e-8 alone
    grads = [c * draw(12, 20, seed=t) for t, c in enumerate([1.0, 20.0, 1.0, 20.0, 1.0])]
    front, back = (
        trained(APOLLO, grads, rank=1, scale_type="tensor", scale=128.0, scale_front=f)[0]
        for f in (True, False)
    )
    torch.testing.assert_close(front, back, rtol=0, atol=1e-7)


def test_scale_of_the_gradients_does_not_matter() -> None:
    small, large = (trained(APOLLO, [c * G for G in sequence(12, 20, 6)], eps=0.0)[0] for c in (1.0, 1e4))
    # what is left are the 1e-8 of the factors and of the limiter, beside norms of about 1
    torch.testing.assert_close(small, large, rtol=0, atol=1e-6)


def test_parameters_may_be_added_after_construction() -> None:
    """The authors' raises KeyError: 'seed'."""
    W, V = nn.Parameter(draw(12, 20)), nn.Parameter(draw(12, 20))
    optimizer = APOLLO([W], rank=4)
    optimizer.add_param_group({"params": [V], "role": "matrix"})
    W.grad, V.grad = draw(12, 20), draw(12, 20)
    optimizer.step()
    assert V.detach().isfinite().all()
    assert not torch.equal(W.detach(), V.detach()), "unnamed ones are told apart by position"


def test_rank_may_be_a_share() -> None:
    W = nn.Parameter(draw(12, 20))
    assert GaLore([W], rank=0.25).state[W]["left"].shape == (12, 3)
    assert GaLore([W], rank=0.01).state[W]["left"].shape == (12, 1)
    assert GaLore([W], rank=99).state[W]["left"].shape == (12, 12)


@pytest.mark.parametrize("cls", FAMILY)
def test_matrices_of_one_shape_are_updated_in_one_batch_as_if_alone(
    cls: type[ProjectedAdam], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [(f"w{i}", nn.Parameter(draw(12, 20, seed=i))) for i in range(3)]
    alone = [(name, nn.Parameter(p.detach().clone())) for name, p in named]
    calls: list[int] = []
    inner = projected.project

    def counted(G: Tensor, bases: dict[str, Tensor]) -> Tensor:
        calls.append(len(G))
        return inner(G, bases)

    monkeypatch.setattr(projected, "project", counted)
    together = cls(named, lr=0.1, rank=4, update_proj_gap=2)
    singles = [cls([pair], lr=0.1, rank=4, update_proj_gap=2) for pair in alone]
    for t in range(5):
        for i, ((_, p), (_, q)) in enumerate(zip(named, alone, strict=True)):
            p.grad = draw(12, 20, seed=100 * t + i)
            q.grad = p.grad.clone()
        together.step()
        for single in singles:
            single.step()
    assert calls[0] == 3
    for (_, p), (_, q) in zip(named, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)  # batched products round in another order
