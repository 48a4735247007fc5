"""Bases of subspaces, and normal numbers from counters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowrise.linalg.subspace import align_signs, leading_left, range_finder, uniform_basis
from lowrise.rng import counter_normal, key_of

CPU = torch.device("cpu")


def gradient(m: int, n: int, dtype: torch.dtype, decay: float = 1.0) -> Tensor:
    """A batch of two with singular values k^-decay."""
    g = torch.Generator().manual_seed(m + n)
    U, V = (torch.linalg.qr(torch.randn(2, k, min(m, n), generator=g, dtype=torch.float64)).Q for k in (m, n))
    s = torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay
    return (1e-6 * (U * s) @ V.mT).to(dtype)  # of the size of late gradients


@pytest.mark.parametrize("shape", [(48, 100), (100, 48), (64, 64)])
@pytest.mark.parametrize(("dtype", "orthonormal", "energy"), [
    # 2e-6: galore.md, section 10. The captured energy is off by the rounding of the Gram matrix.
    (torch.float32, 2e-6, 1e-6),
    (torch.float64, 1e-14, 1e-13),
])  # fmt: skip
def test_leading_left_is_orthonormal_and_captures_the_optimum(shape, dtype, orthonormal, energy) -> None:
    G, rank = gradient(*shape, dtype), 12
    P = leading_left(G, rank)
    assert (P.mT @ P - torch.eye(rank, dtype=dtype)).abs().max() < orthonormal
    sigma = torch.linalg.svdvals(G.double())
    optimum = (sigma[:, :rank] ** 2).sum(-1)
    captured = (P.double().mT @ G.double()).pow(2).sum((-2, -1))
    assert (captured / optimum - 1).abs().max() < energy


def test_directions_that_float32_squares_away_are_orthonormal_all_the_same() -> None:
    """sigma falls to 1e-12 sigma_1: most of the Gram matrix's eigenvalues are rounding."""
    G = gradient(40, 80, torch.float32, decay=8.0)
    for facing in (G, G.mT):
        P = leading_left(facing, 40)
        assert (P.mT @ P - torch.eye(40)).abs().max() < 2e-6


def test_range_finder_is_orthonormal_and_close_where_the_spectrum_falls() -> None:
    G = gradient(60, 90, torch.float64, decay=1.5)
    test = counter_normal([1, 2], (90, 10 + 16), device=CPU, dtype=torch.float64)
    P = range_finder(G, 10, test)
    assert (P.mT @ P - torch.eye(10, dtype=torch.float64)).abs().max() < 1e-13
    optimum = (torch.linalg.svdvals(G)[:, :10] ** 2).sum(-1)
    captured = (P.mT @ G).pow(2).sum((-2, -1))
    # two power steps over 16 extra columns damp the error by (sigma_27 / sigma_10)^5 < 0.01 or so
    assert (captured / optimum > 0.9999).all()
    assert (captured <= optimum * (1 + 1e-12)).all()


def test_align_signs_makes_the_choice_of_the_solver_irrelevant() -> None:
    P = uniform_basis(torch.randn(3, 20, 5, dtype=torch.float64))
    previous = P + 0.1 * torch.randn_like(P)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    assert torch.equal(align_signs(P * signs, previous), align_signs(P, previous))


def splitmix_words(key: int, count: int) -> list[int]:
    """The docstring in Python's integers."""
    words, full = [], (1 << 64) - 1
    for j in range(1, count + 1):
        x = (key + j * 0x9E3779B97F4A7C15) & full
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & full
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & full
        words.append(x ^ (x >> 31))
    return words


@pytest.mark.parametrize("key", [0, 1, -1, key_of("layers.0.q_proj", 7), -(1 << 63)])
def test_counter_normals_are_the_documented_function(key: int) -> None:
    expected = []
    for word in splitmix_words(key, 4):
        first, second = ((word >> 40) + 1) / 2**24, (((word >> 8) & 0xFFFFFF) + 1) / 2**24
        radius = math.sqrt(-2 * math.log(first))
        expected += [radius * math.cos(2 * math.pi * second), radius * math.sin(2 * math.pi * second)]
    got = counter_normal([key], (7,), device=CPU, dtype=torch.float64)[0]
    # float32 transcendentals; the angle's rounding (up to 2 pi * 6e-8) times the radius (up to 5.8)
    torch.testing.assert_close(got, torch.tensor(expected[:7], dtype=torch.float64), rtol=0, atol=4e-6)


def test_counter_normals_look_normal_and_keys_are_independent() -> None:
    x = counter_normal([key_of("a"), key_of("b")], (1000, 100), device=CPU, dtype=torch.float64)
    n = 1e5
    # five standard errors each: 1/sqrt(n), sqrt(2/n), sqrt(96/n), 1/sqrt(n)
    assert (x.mean((1, 2)).abs() < 5 / n**0.5).all()
    assert ((x**2).mean((1, 2)) - 1).abs().max() < 5 * (2 / n) ** 0.5
    assert ((x**4).mean((1, 2)) - 3).abs().max() < 5 * (96 / n) ** 0.5
    assert (x[0] * x[1]).mean().abs() < 5 / n**0.5
    assert (x[:, :, :-1] * x[:, :, 1:]).mean().abs() < 5 / (2 * n) ** 0.5, "neighbours"
    alone = counter_normal([key_of("b")], (1000, 100), device=CPU, dtype=torch.float64)
    assert torch.equal(alone[0], x[1]), "a number does not depend on what else is drawn"


def test_keys_tell_types_and_borders_apart() -> None:
    assert len({key_of("a", "b"), key_of("ab"), key_of("a", 1), key_of("a", "1"), key_of("b", "a")}) == 5
