"""LowRankLinear and its inits: the mathematics of the docstrings."""

from __future__ import annotations

import math

import pytest
import torch

from lowrise.errors import UsageError
from lowrise.layers import INITS, LowRankLinear
from lowrise.layers.inits import Draw, balanced_factors


def draw(seed: int = 5) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda rows, columns, std: torch.randn(rows, columns, generator=generator) * std


def test_factor_gradients_are_projections_of_the_dense_gradient() -> None:
    """dL/dA = G B and dL/dB = G.T A with G = dL/dW (spectron.md, section 7)."""
    layer = LowRankLinear(7, 9, 3, dtype=torch.float64)
    x = torch.randn(11, 7, dtype=torch.float64)
    gy = torch.randn(11, 9, dtype=torch.float64)
    layer(x).backward(gy)
    G = gy.T @ x
    assert layer.A.grad is not None
    assert layer.B.grad is not None
    # float64 rounding of sums of 11 and 9 products
    torch.testing.assert_close(layer.A.grad, G @ layer.B, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer.B.grad, G.T @ layer.A, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
@pytest.mark.parametrize("rank", [1, 8, 24])
def test_balanced_factors_are_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    W = torch.randn(shape)
    A, B = balanced_factors(W, rank)
    U, S, Vt = torch.linalg.svd(W.double(), full_matrices=False)
    best = U[:, :rank] * S[:rank] @ Vt[:rank]
    # Gram matrices square the condition number (below 1e3 here): 1e-16 * 1e6 is the worst to be expected
    torch.testing.assert_close(A @ B.T, best, rtol=0, atol=1e-10)
    for factor in (A, B):
        torch.testing.assert_close(factor.T @ factor, torch.diag(S[:rank]), rtol=0, atol=1e-9)


def test_columns_are_signed_by_the_largest_entry_of_the_shorter_side() -> None:
    """Eigenvectors come with either sign; without a rule two machines would start from different factors."""
    for shape, short in (((9, 6), 1), ((6, 9), 0)):
        V = balanced_factors(torch.randn(shape), 5)[short]
        assert bool((V.gather(0, V.abs().argmax(0, keepdim=True)) > 0).all())


def test_balanced_factors_of_a_singular_weight() -> None:
    W = torch.randn(10, 2) @ torch.randn(2, 8)
    A, B = balanced_factors(W, 6)
    assert torch.isfinite(A).all()
    torch.testing.assert_close((A @ B.T).float(), W, rtol=0, atol=1e-5)  # float32 rounding of W itself
    A, B = balanced_factors(torch.zeros(5, 4), 3)
    assert not A.any()
    assert not B.any()


def test_spectral_init_truncates_what_the_dense_layer_would_draw() -> None:
    A, B = INITS["spectral"](30, 20, 20, 0.02, draw())
    # full rank: the product is the draw itself, to float64 rounding
    torch.testing.assert_close(A @ B.T, draw()(30, 20, 0.02).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "std_A", "std_B"),
    [
        ("xavier", math.sqrt(2 / (1376 + 128)), math.sqrt(2 / (512 + 128))),
        ("auto", (0.02**2 / 128) ** 0.25, (0.02**2 / 128) ** 0.25),
        ("kaiming", math.sqrt(2 / 128), math.sqrt(2 / 128)),
    ],
)
def test_gaussian_inits_have_the_stated_std(name: str, std_A: float, std_B: float) -> None:
    """The table of loro.md 2.4, at its own shape (1376 x 512, r = 128)."""
    A, B = INITS[name](1376, 512, 128, 0.02, draw())
    # 65,536 and more entries: the std of an estimated std is 1 / sqrt(2 * 65536) = 0.28%; 4 of these
    assert float(A.std()) == pytest.approx(std_A, rel=0.011)
    assert float(B.std()) == pytest.approx(std_B, rel=0.011)
    if name == "xavier":
        assert float((A @ B.T).std()) == pytest.approx(0.0230, rel=0.02)  # as printed there, three digits
    if name == "auto":
        assert float((A @ B.T).std()) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_init_is_orthonormal_in_every_dtype(dtype: torch.dtype) -> None:
    layer = LowRankLinear(40, 60, 10, init="orthogonal", dtype=dtype)
    tolerance = (
        1e-6 if dtype == torch.float32 else 0.01
    )  # rounding: 2^-24, and 2^-9 on entries of 0.15, summed over 60
    for factor in (layer.A, layer.B):
        gram = (factor.double().T @ factor.double()).detach()
        torch.testing.assert_close(gram, torch.eye(10, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", list(INITS))
def test_bfloat16_is_the_rounded_float32_draw(name: str) -> None:
    torch.manual_seed(3)
    wide = LowRankLinear(16, 24, 4, init=name)
    torch.manual_seed(3)
    narrow = LowRankLinear(16, 24, 4, init=name, dtype=torch.bfloat16)
    assert torch.equal(narrow.A, wide.A.bfloat16())
    assert torch.equal(narrow.B, wide.B.bfloat16())


def test_unknown_init_and_bad_std_are_sentences() -> None:
    with pytest.raises(UsageError, match=r"Unknown init .spectrl..*spectral"):
        LowRankLinear(4, 4, 2, init="spectrl")
    with pytest.raises(UsageError, match="init_std must be positive"):
        LowRankLinear(4, 4, 2, init_std=0.0)


def test_from_dense_keeps_dtype_and_refuses_rank_above_the_shape() -> None:
    assert LowRankLinear.from_dense(torch.randn(6, 4, dtype=torch.float64), 2).A.dtype == torch.float64
    with pytest.raises(UsageError, match="rank 5 is impossible for a 6 x 4 weight"):
        LowRankLinear.from_dense(torch.randn(6, 4), 5)
