"""NorMuon and Dion2: plain versions, limits in which they are Muon, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.linalg import newton_schulz, polar_svd
from lowrise.optim import Dion2, Muon, NorMuon, Optimizer
from lowrise.optim.dion2 import chosen_counts, largest_of_blocks
from lowrise.optim.rules.orthogonal import shape_rate

F64 = torch.float64
SHAPES = [(9, 5), (5, 9), (6, 6)]


def gradients(shape: tuple[int, int], steps: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=F64) for _ in range(steps)]


def trajectory(build: type[Optimizer], grads: list[Tensor], **options: object) -> tuple[Tensor, Optimizer]:
    """Weights from zero after each step (steps, m, n)."""
    W = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = build([W], **options)
    seen = []
    for G in grads:
        W.grad = G.clone()
        optimizer.step()
        seen.append(W.detach().clone())
    return torch.stack(seen), optimizer


def polar(X: np.ndarray) -> np.ndarray:
    U, _, Vh = np.linalg.svd(X, full_matrices=False)
    return U @ Vh


# ---- NorMuon


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accumulate", ["average", "sum"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_normuon_is_the_plain_algorithm(shape, accumulate, nesterov) -> None:
    grads, (m, n) = gradients(shape, 6), shape
    options = {"ortho": "svd", "adjust_lr": "original", "weight_decay": 0.2, "beta2": 0.7, "momentum": 0.8}
    got, optimizer = trajectory(NorMuon, grads, lr=0.1, accumulate=accumulate, nesterov=nesterov, **options)
    W, M, v = np.zeros(shape), np.zeros(shape), np.zeros((m, 1))
    for t, G in enumerate(g.numpy() for g in grads):
        share = 1.0 if accumulate == "sum" else 0.2
        M = 0.8 * M + share * G
        X = polar(0.8 * M + share * G if nesterov else M)
        v = 0.7 * v + 0.3 * (X**2).mean(axis=1, keepdims=True)
        P = X / np.sqrt(v)
        W = 0.98 * W - 0.1 * math.sqrt(max(1, m / n)) * P * np.linalg.norm(X) / np.linalg.norm(P)
        torch.testing.assert_close(got[t], torch.from_numpy(W), rtol=0, atol=1e-8)  # norm_eps of 1e-10
    state = next(iter(optimizer.state.values()))
    torch.testing.assert_close(state["row_second_moment"], torch.from_numpy(v), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_memory_all_rows_of_an_update_have_one_size_and_the_norm_is_muons(shape) -> None:
    (update,), _ = trajectory(
        NorMuon, gradients(shape, 1), lr=1.0, beta2=0.0, ortho="svd", adjust_lr="none", norm_eps=1e-300
    )
    rows = update.square().mean(dim=1).sqrt()
    torch.testing.assert_close(rows, rows[:1].expand_as(rows), rtol=1e-12, atol=0)
    assert update.norm().item() == pytest.approx(math.sqrt(min(shape)), rel=1e-12)  # of U V^T


def test_rows_of_one_size_are_left_alone() -> None:
    """The polar factor of a square matrix has rows of norm 1: NorMuon is Muon."""
    grads = gradients((6, 6), 4)
    got, _ = trajectory(NorMuon, grads, lr=0.1, ortho="svd", adjust_lr="none", nesterov=False)
    M, W = torch.zeros(6, 6, dtype=F64), torch.zeros(6, 6, dtype=F64)
    for t, G in enumerate(grads):
        M = 0.95 * M + 0.05 * G
        W = W - 0.1 * polar_svd(M)
        torch.testing.assert_close(got[t], W, rtol=0, atol=1e-9)  # norm_eps of 1e-10


@pytest.mark.parametrize("build", [NorMuon, Dion2])
@pytest.mark.parametrize("ortho", ["ns5", "pe", "svd"])
def test_updates_do_not_depend_on_the_scale_of_gradients(build, ortho) -> None:
    grads = gradients((7, 10), 4)
    for factor in (1e-6, 1e8):
        scaled, _ = trajectory(build, [factor * G for G in grads], ortho=ortho, ns_eps=0.0)
        plain, _ = trajectory(build, grads, ortho=ortho, ns_eps=0.0)
        torch.testing.assert_close(scaled, plain, rtol=1e-10, atol=1e-14)


def test_rows_without_gradient_stay() -> None:
    G = torch.randn(6, 8)
    G[2] = 0.0
    for grads in ([G], [torch.zeros(6, 8), G, torch.zeros(6, 8)]):
        got, optimizer = trajectory(NorMuon, grads)
        assert got.isfinite().all()
        assert (got[:, 2] == 0).all()
        assert all(t.isfinite().all() for state in optimizer.state.values() for t in state.values())


@pytest.mark.parametrize("build", [NorMuon, Dion2])
@pytest.mark.parametrize("rule", ["match_rms_adamw", "original", "spectral", "none"])
def test_rates_by_shape(build, rule) -> None:
    factor = {"match_rms_adamw": 0.2 * 3.0, "original": 1.5, "spectral": 1.5, "none": 1.0}[rule]
    (update,), _ = trajectory(build, gradients((9, 4), 1), lr=0.5, adjust_lr=rule, ortho="svd")
    (plain,), _ = trajectory(build, gradients((9, 4), 1), lr=0.5, adjust_lr="none", ortho="svd")
    torch.testing.assert_close(update, factor * plain, rtol=1e-12, atol=0)
    assert shape_rate(4, 9, rule) == pytest.approx({"original": 1.0, "spectral": 2 / 3}.get(rule, factor))


def test_flops() -> None:
    W = nn.Parameter(torch.zeros(30, 20))
    quintic = 5 * (4 * 20 * 20 * 30 + 2 * 20**3)
    assert NorMuon([W]).step_flops() == quintic + 18 * 600
    assert Dion2([W], fraction=1.0).step_flops() == quintic + 8 * 600
    assert Dion2([W]).step_flops() == 5 * (4 * 5 * 5 * 30 + 2 * 5**3) + 8 * 600  # 5 of 20 columns
    assert Dion2([W], ortho="pe").step_flops() == 7 * (4 * 5 * 5 * 30 + 2 * 5**3) + 8 * 600


# ---- Dion2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_dion2_is_the_plain_algorithm(shape, shards) -> None:
    grads, (m, n) = gradients(shape, 6), shape
    got, optimizer = trajectory(
        Dion2, grads, lr=0.1, fraction=0.4, ef_decay=0.9, ortho="svd", weight_decay=0.2, shards=shards
    )
    W, M = np.zeros(shape), np.zeros(shape)
    rows = m <= n or shards > 1
    for t, G in enumerate(g.numpy() for g in grads):
        M = M + G
        lines = M if rows else M.T  # views
        chosen: list[int] = []
        for block in np.split(
            np.arange(len(lines)), range(-(-len(lines) // shards), len(lines), -(-len(lines) // shards))
        ):
            sizes = np.abs(lines[block]).sum(axis=1)
            k = max(1, math.ceil(0.4 * len(block)))
            chosen += [int(block[i]) for i in np.argsort(-sizes)[:k]]
        X = polar(lines[chosen])
        lines[chosen] *= 0.9
        W = 0.98 * W
        (W if rows else W.T)[chosen] -= 0.1 * math.sqrt(m / n) * X
        torch.testing.assert_close(got[t], torch.from_numpy(W), rtol=0, atol=1e-11)
    momentum = next(iter(optimizer.state.values()))["momentum"]
    torch.testing.assert_close(momentum, torch.from_numpy(M), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_all_lines_are_muon_with_summed_momentum_to_the_bit(shape, dtype) -> None:
    grads = [G.to(dtype) for G in gradients(shape, 5)]
    got, _ = trajectory(Dion2, grads, lr=0.1, fraction=1.0)
    M, W = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    for t, G in enumerate(grads):
        M = M * 0.95 + G
        W = W - newton_schulz(M, eps_rule="max") * (0.1 * math.sqrt(shape[0] / shape[1]))
        assert torch.equal(got[t], W)


def test_all_lines_are_our_muon_without_nesterov() -> None:
    """Its average of gradients is a twentieth of the sum, which the iteration does not see."""
    grads = gradients((8, 5), 5)
    options = {"lr": 0.1, "adjust_lr": "original", "ns_eps": 0.0, "weight_decay": 0.1}
    ours, _ = trajectory(Muon, grads, nesterov=False, **options)
    theirs, _ = trajectory(Dion2, grads, fraction=1.0, **options)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-13)


def test_the_largest_lines_move_and_the_others_wait() -> None:
    G = torch.ones(4, 6, dtype=F64) * torch.tensor([1.0, 4.0, 2.0, 3.0], dtype=F64).unsqueeze(1)
    G += 0.1 * torch.eye(4, 6, dtype=F64)
    got, optimizer = trajectory(Dion2, [G, torch.zeros_like(G)], fraction=0.5, lr=0.1)
    moved = [(step != 0).any(dim=1).tolist() for step in (got[0], got[1] - got[0])]
    assert moved == [[False, True, False, True]] * 2  # 3.8 and 2.85 are still above 2 and 1
    momentum = next(iter(optimizer.state.values()))["momentum"]
    torch.testing.assert_close(momentum[[0, 2]], G[[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(momentum[[1, 3]], 0.95**2 * G[[1, 3]], rtol=1e-14, atol=0)


def test_blocks_are_those_of_ranks() -> None:
    assert chosen_counts(8, 20, 0.25, 1) == (True, [2])
    assert chosen_counts(20, 8, 0.25, 1) == (False, [2])
    assert chosen_counts(20, 8, 0.25, 4) == (True, [2, 2, 2, 2])  # ceil(5 / 4)
    assert chosen_counts(5, 8, 0.25, 4) == (True, [1, 1, 1])  # FSDP2: 2, 2, 1 and no rows
    assert chosen_counts(1, 1, 0.01, 1) == (True, [1])
    sizes = torch.tensor([[5.0, 1.0, 2.0, 3.0, 9.0]])
    assert largest_of_blocks(sizes, [1, 1, 1], 4).tolist() == [[0, 3, 4]]
    assert largest_of_blocks(sizes, [3], 1).tolist() == [[0, 3, 4]]


# ---- what is refused


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda p: NorMuon(p, beta2=1.0), "NorMuon has beta2 = 1.0"),
        (lambda p: NorMuon(p, norm_eps=0.0), "norm_eps = 0.0; it must be above 0"),
        (lambda p: NorMuon(p, ns_steps=0), "NorMuon has ns_steps = 0"),
        (lambda p: NorMuon(p, accumulate="ema"), "accumulate = 'ema'; choose one of average, sum"),
        (lambda p: NorMuon(p, ortho="qr"), "ortho = 'qr'; choose one of ns5, pe, svd"),
        (lambda p: Dion2(p, fraction=0.0), "Dion2 has fraction = 0.0; it must be above 0"),
        (lambda p: Dion2(p, fraction=1.5), "fraction = 1.5"),
        (lambda p: Dion2(p, ef_decay=1.0), "ef_decay = 1.0"),
        (lambda p: Dion2(p, shards=0), "shards = 0"),
        (lambda p: Dion2(p, adjust_lr="rms"), "adjust_lr = 'rms'; choose one of match_rms_adamw"),
        (lambda p: Dion2(p, ns_dtype="half"), "Dion2 has ns_dtype = 'half'"),
    ],
)
def test_options_that_cannot_be_get_a_sentence(build, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build([nn.Parameter(torch.zeros(4, 3))])
