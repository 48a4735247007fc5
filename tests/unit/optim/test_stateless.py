"""SWAN, SinkGD and SCALE: steps of known size and direction from nothing but the gradient."""

from __future__ import annotations

import pytest
import torch
from reference import normalizing
from torch import Tensor, nn

import lowrise
from lowrise.errors import UsageError
from lowrise.layers import param_groups, parameter_roles
from lowrise.linalg import polar_svd, standardize
from lowrise.model import LlamaConfig, build_model
from lowrise.optim import SCALE, SWAN, AdamW, Muon, Optimizer, SinkGD
from lowrise.optim.scale import normalized_lines

F64 = torch.float64
SHAPES = [(9, 5), (5, 9), (9, 5), (6, 6)]


def moved(build: type[Optimizer], G: Tensor, *, lr: float = 0.01, **options: object) -> Tensor:
    """The update that one step subtracts from a zero weight."""
    W = nn.Parameter(torch.zeros_like(G))
    optimizer = build([W], lr=lr, **options)
    W.grad = G
    optimizer.step()
    return -W.detach()


def rms(X: Tensor) -> float:
    return X.square().mean().sqrt().item()


# ---- all three


@pytest.mark.parametrize("build", [SWAN, SinkGD, SCALE])
def test_updates_have_rms_lr_whatever_the_scale_of_the_gradient(build: type[Optimizer]) -> None:
    for shape in SHAPES:
        G = torch.randn(shape, dtype=F64)
        update = moved(build, G)
        assert rms(update) == pytest.approx(0.01, rel=1e-12)
        assert (update * G).sum() > 0, "downhill"
        torch.testing.assert_close(
            moved(build, 1e5 * G), update, rtol=1e-8, atol=1e-10
        )  # SWAN enlarges rounding


@pytest.mark.parametrize("build", [SWAN, SinkGD, SCALE])
def test_no_state_for_matrices_and_batches_like_single_ones(build: type[Optimizer]) -> None:
    params = [nn.Parameter(torch.randn(shape, dtype=F64)) for shape in SHAPES]
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    together, alone = build(params, weight_decay=0.1), [build([p], weight_decay=0.1) for p in copies]
    assert together.state_elements() == 0
    for _ in range(3):
        for p, q in zip(params, copies, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    for p, q in zip(params, copies, strict=True):
        # Products of a batch may sum in another order, which SWAN's iteration enlarges.
        torch.testing.assert_close(p, q, rtol=0, atol=1e-11)
    assert set(together.state[params[0]]) == {"step"}


@pytest.mark.parametrize("build", [SWAN, SinkGD, SCALE])
def test_weight_decay_is_decoupled_and_comes_first(build: type[Optimizer]) -> None:
    W = nn.Parameter(torch.randn(6, 8, dtype=F64))
    start = W.detach().clone()
    optimizer = build([W], lr=0.1, weight_decay=0.5)
    W.grad = torch.randn_like(W)
    optimizer.step()
    expected = 0.95 * start - moved(build, W.grad, lr=0.1)
    torch.testing.assert_close(W.detach(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("build", [SWAN, SinkGD, SCALE])
def test_zero_rows_columns_and_matrices_stay_finite(build: type[Optimizer]) -> None:
    G = torch.randn(6, 8)
    G[2], G[:, 3] = 0, 0
    update = moved(build, G)
    assert update.isfinite().all()
    assert (
        update[2] == 0
    ).all() or build is SWAN  # whitening mixes rows; float32 noise of a zero row at most
    assert update[2].abs().max() < 1e-6
    assert (moved(build, torch.zeros(6, 8)) == 0).all()


# ---- SWAN


@pytest.mark.parametrize("shape", SHAPES)
def test_swan_exact_is_the_polar_factor_of_the_standardized_gradient(shape) -> None:
    G = torch.randn(shape, dtype=F64)
    for axis, center in ((1, True), (0, False)):
        options = {"axis": axis, "center": center}
        polar = polar_svd(standardize(G, dim=axis, center=center))
        exact = moved(SWAN, G, lr=1.0, method="exact", rescale=False, **options)
        torch.testing.assert_close(exact, polar, rtol=0, atol=1e-12)
        rescaled = moved(SWAN, G, lr=1.0, method="exact", **options)
        torch.testing.assert_close(rescaled, polar * G.numel() ** 0.5 / polar.norm(), rtol=0, atol=1e-12)
    converged = moved(SWAN, G, lr=1.0, center=False, beta=0.5, steps=45)
    exact = moved(SWAN, G, lr=1.0, center=False, method="exact")
    torch.testing.assert_close(converged, exact, rtol=0, atol=1e-8)  # dossier, 40 steps and more


def test_swan_without_normalization_is_muon_without_momentum() -> None:
    """Rows of equal norm: GradNorm is one factor, and both directions have the polar factor of G."""
    G = torch.linalg.qr(torch.randn(12, 5, dtype=F64)).Q.T * 2.0
    G = torch.linalg.qr(torch.randn(5, 5, dtype=F64)).Q @ G
    G = G / G.norm(dim=1, keepdim=True)
    muon = moved(Muon, G, momentum=0.0, nesterov=False)
    swan = moved(SWAN, G, center=False, method="exact")
    torch.testing.assert_close(polar_svd(muon), polar_svd(swan), rtol=0, atol=1e-10)


def test_swan_iterates_in_float32_for_bfloat16_weights_under_autocast() -> None:
    U, V = (torch.linalg.qr(torch.randn(64, 64)).Q for _ in range(2))
    G = ((U * torch.logspace(0, -3, 64)) @ V.T).bfloat16()  # where a bfloat16 iteration gives inf or NaN
    W = nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    optimizer = SWAN([W], lr=1.0)
    W.grad = G
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step()
    # Rounded once, to the 8 bits of the weight.
    torch.testing.assert_close(-W.detach().float(), moved(SWAN, G.float(), lr=1.0), rtol=2**-8, atol=0)


def test_flops_of_swan() -> None:
    W = nn.Parameter(torch.zeros(30, 20))
    gram_and_apply = 4 * 20 * 20 * 30
    assert SWAN([W]).step_flops() == gram_and_apply + 6 * 9 * 20**3 + 15 * 600
    assert SWAN([W], method="nsds").step_flops() == gram_and_apply + 8 * 2 * 20**2 + 15 * 600


# ---- SinkGD


@pytest.mark.parametrize("options", [{}, {"iters": 1}, {"rows_first": False}])
def test_sinkgd_subtracts_the_alternating_form(options: dict) -> None:
    for shape in SHAPES:
        G = torch.randn(shape, dtype=F64)
        expected = 0.01 * normalizing.sinkhorn(G, **options)
        torch.testing.assert_close(moved(SinkGD, G, **options), expected, rtol=1e-12, atol=0)
    assert SinkGD([nn.Parameter(torch.zeros(6, 4))], iters=3).step_flops() == 19 * 24


def test_sinkgd_exact_sides() -> None:
    G = torch.randn(6, 15, dtype=F64)
    columns = moved(SinkGD, G, lr=1.0).norm(dim=0)
    rows = moved(SinkGD, G, lr=1.0, rows_first=False).norm(dim=1)
    torch.testing.assert_close(columns, torch.full((15,), 6**0.5, dtype=F64), rtol=1e-12, atol=0)
    torch.testing.assert_close(rows, torch.full((6,), 15**0.5, dtype=F64), rtol=1e-12, atol=0)


# ---- SCALE


def test_scale_equals_the_plain_algorithm_per_role() -> None:
    matrix, embedding, head = (nn.Parameter(torch.randn(s, dtype=F64)) for s in [(5, 7), (11, 5), (11, 5)])
    norm = nn.Parameter(torch.randn(5, dtype=F64))
    plain = {p: p.detach().clone() for p in (matrix, embedding, head)}
    reference = nn.Parameter(norm.detach().clone())
    M = torch.zeros_like(head)
    optimizer = SCALE(
        [
            {"params": [matrix], "role": "matrix"},
            {"params": [embedding], "role": "embedding"},
            {"params": [head], "role": "head"},
            {"params": [norm], "role": "other", "lr": 3e-3},
        ],
        lr=0.02,
        weight_decay=0.1,
    )
    adamw = AdamW([reference], lr=3e-3, weight_decay=0.1)
    for _ in range(4):
        for p in (matrix, embedding, head, norm):
            p.grad = torch.randn_like(p)
        reference.grad = norm.grad.clone()
        M = 0.9 * M + 0.1 * head.grad
        for p, G, dim in ((matrix, matrix.grad, 1), (embedding, embedding.grad, 0), (head, M, 1)):
            U = G / G.square().mean(dim, keepdim=True).sqrt().clamp(min=1e-8)
            plain[p] = plain[p] * (1 - 0.02 * 0.1) - 0.02 * U
        optimizer.step()
        adamw.step()
    for p, expected in plain.items():
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-13)  # float64 rounding
    torch.testing.assert_close(norm, reference, rtol=0, atol=1e-15)
    torch.testing.assert_close(optimizer.state[head]["momentum"], M, rtol=0, atol=1e-14)
    assert optimizer.state_elements() == head.numel() + 2 * norm.numel()
    assert optimizer.step_flops() == 7 * (35 + 55) + 10 * 55 + 14 * 5


def test_lines_of_scale() -> None:
    G = torch.randn(2, 6, 9, dtype=F64)
    for dim in (-1, -2):
        U = normalized_lines(G, dim=dim, eps=1e-8)
        torch.testing.assert_close(U.square().mean(dim), torch.ones_like(U.sum(dim)), rtol=1e-12, atol=0)
    G[:, 3] = 1e-10
    U = normalized_lines(G, dim=-1, eps=1e-8)
    torch.testing.assert_close(U[:, 3], G[:, 3] * 1e8, rtol=1e-12, atol=0)  # a quiet line is not blown up


@pytest.mark.parametrize("tied", [False, True])
def test_groups_of_scale_and_of_all_others(tied: bool) -> None:
    config = LlamaConfig.preset("nano", vocab_size=50, num_heads=4, tie_embeddings=tied)
    model = build_model(config)
    groups = {
        g["role"]: [name for name, _ in g["params"]] for g in param_groups(model, lr=1, roles=SCALE.roles)
    }
    assert groups["embedding"] == ["model.embed_tokens.weight"]
    assert groups.get("head", []) == ([] if tied else ["lm_head.weight"])
    assert all("norm" in name for name in groups["other"])
    assert len(groups["matrix"]) == 14
    listed = [name for names in groups.values() for name in names]
    assert sorted(listed) == sorted(parameter_roles(model)), "each parameter once"
    for roles in (None, Muon.roles, SWAN.roles, AdamW.roles):
        others = {
            g["role"]: [n for n, _ in g["params"]] for g in lowrise.param_groups(model, lr=1, roles=roles)
        }
        assert others.keys() == {"matrix", "other"}
        assert set(groups["embedding"] + groups.get("head", [])) <= set(others["other"])


def test_roles_embedding_and_head_take_two_dimensions() -> None:
    for role in ("embedding", "head"):
        with pytest.raises(UsageError, match=rf"role '{role}' takes 2 dimension"):
            SCALE([{"params": [nn.Parameter(torch.zeros(4))], "role": role}])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda p: SWAN(p, axis=2), "axis = 2; choose 1"),
        (lambda p: SWAN(p, method="svd"), "method = 'svd'; choose one of ns, nsds, exact"),
        (lambda p: SWAN(p, steps=0), "steps = 0"),
        (lambda p: SWAN(p, beta=1.5), "beta = 1.5"),
        (lambda p: SinkGD(p, iters=0), "iters = 0"),
        (lambda p: SCALE(p, norm_eps=0.0), "norm_eps = 0.0; it must be above 0"),
        (lambda p: SCALE(p, momentum=1.0), "momentum = 1.0"),
    ],
)
def test_impossible_options_get_a_sentence(build, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build([nn.Parameter(torch.zeros(4, 3))])
