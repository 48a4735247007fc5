"""The Gram form of the polynomial iterations beside the plain one; why its bound is a bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowrise.linalg import QUINTIC, newton_schulz, polar_express
from lowrise.linalg.polar import (
    POLAR_ERROR,
    POLAR_EXPRESS,
    PRODUCT_ERROR,
    QUINTIC_SUPREMUM,
    rounding_guard,
)
from lowrise.linalg.polar_iteration import (
    Triple,
    chosen_segments,
    gram_segments,
    polynomials,
    segment_flops,
)
from lowrise.linalg.precision import full_precision_matmul, multiplies_in_full

SAFETY = 1.01
EXPRESS: list[Triple] = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS]
SPECTRA = ("decades", "one large", "two levels", "random decades")


def ill_conditioned(m: int, k: int, condition: float, spectrum: str, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(int(math.log10(condition)) * 7 + k)
    U, V = (torch.linalg.qr(torch.randn(rows, k, generator=g, dtype=torch.float64)).Q for rows in (m, k))
    low = -math.log10(condition)
    s = {
        "decades": torch.logspace(0, low, k, dtype=torch.float64),
        "one large": torch.full((k,), 10**low, dtype=torch.float64).index_fill(0, torch.tensor([0]), 1.0),
        "two levels": 10 ** (low * (torch.arange(k, dtype=torch.float64) * 2 >= k)),
        "random decades": 10 ** (low * torch.rand(k, generator=g, dtype=torch.float64)),
    }[spectrum]
    return ((U * s) @ V.T).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("condition", [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_gram_form_equals_the_plain_form(condition: float, dtype: torch.dtype) -> None:
    # Measured: at most 1.7e-3 and 2e-10. Plain and exact differ by 1e-4 in float32 (Polar Express).
    bar = 3e-3 if dtype == torch.float32 else 1e-9
    for m, k in ((8, 3), (64, 16), (300, 100), (700, 128)):
        for spectrum in SPECTRA:
            X = ill_conditioned(m, k, condition, spectrum, dtype)
            for function in (newton_schulz, polar_express):
                difference = function(X, form="gram") - function(X, form="plain")
                assert torch.linalg.matrix_norm(difference.double(), 2) <= bar
                wide = function(X.T.contiguous(), form="gram").T
                assert torch.linalg.matrix_norm((wide - function(X, form="gram")).double(), 2) <= bar
            assert (
                torch.linalg.matrix_norm(newton_schulz(X, form="gram").double(), 2) <= QUINTIC_SUPREMUM + bar
            )


def test_well_conditioned_inputs_lose_nothing() -> None:
    X = ill_conditioned(200, 40, 10.0, "decades", torch.float32)
    exact = newton_schulz(X.double())
    for form in ("plain", "gram"):
        assert (newton_schulz(X, form=form) - exact).abs().max() < 3e-6


def test_restarts_follow_from_the_dtype() -> None:
    single, double, half = (torch.finfo(d).eps for d in (torch.float32, torch.float64, torch.bfloat16))
    assert gram_segments([QUINTIC] * 5, single) == [5]
    assert gram_segments([QUINTIC] * 12, single) == [5, 5, 2]
    assert gram_segments(EXPRESS, single) == [4, 3]
    assert gram_segments(EXPRESS, double) == [7]
    assert gram_segments(EXPRESS, half) == [1] * 7


def test_a_polynomial_without_a_linear_term_has_its_segments_too() -> None:
    """a = 0 is the largest loss of what is small: nothing is left to amplify a rounding error."""
    single = torch.finfo(torch.float32).eps
    cubic = (0.0, 0.5, 0.1)
    assert gram_segments([cubic], single) == [1]
    assert sum(gram_segments([cubic] * 5, single)) == 5
    X = torch.randn(3, 40, 8, dtype=torch.float64)
    for steps in (1, 3):
        plain, gram = (
            newton_schulz(X, steps=steps, coefficients=cubic, form=form) for form in ("plain", "gram")
        )
        assert plain.abs().max() > 0
        torch.testing.assert_close(gram, plain, rtol=1e-9, atol=1e-12 * plain.abs().max().item())


def test_without_the_restart_polar_express_would_pass_its_bound() -> None:
    """Why there is a restart: seven steps in one float32 segment."""
    X = ill_conditioned(512, 128, 1e4, "decades", torch.float32)
    assert torch.linalg.matrix_norm(polar_express(X, form="gram").double(), 2) <= 1.00001
    Y = X / torch.linalg.vector_norm(X) / SAFETY
    (one,) = polynomials([Y[None]], 0, EXPRESS, [7])
    assert torch.linalg.matrix_norm(one[0].double(), 2) > 1.0005


@pytest.mark.parametrize("form", ["plain", "gram"])
def test_zero_scale_and_normalization(form) -> None:
    X = torch.randn(2, 3, 40, 8, dtype=torch.float64)
    for function in (newton_schulz, polar_express):
        assert torch.equal(function(torch.zeros(3, 40, 8), form=form), torch.zeros(3, 40, 8))
        scale = torch.rand(2, 3, 1, 1, dtype=torch.float64)
        torch.testing.assert_close(function(X, form=form, scale=scale), function(X, form=form) * scale)
        torch.testing.assert_close(function(X.mT, form=form, scale=0.5), function(X, form=form).mT * 0.5)
        for size in (1e-30, 1e30):
            Y = X[0].float()
            close = function(Y * size, form=form, **({"eps": 0.0} if function is newton_schulz else {}))
            torch.testing.assert_close(close, function(Y, form=form), rtol=0, atol=3e-5)
    small = X[0, 0] * 1e-7  # where eps matters
    for rule in ("add", "max"):
        plain = newton_schulz(small, eps_rule=rule, form="plain")
        torch.testing.assert_close(newton_schulz(small, eps_rule=rule, form=form), plain, rtol=0, atol=1e-12)


def test_auto_takes_the_gram_form_only_where_it_pays_and_products_are_float32() -> None:
    cpu, quintic = torch.device("cpu"), [QUINTIC] * 5
    torch.set_float32_matmul_precision("highest")  # global up to torch 2.8: another test may have lowered it

    def auto(m: int, n: int, dtype: torch.dtype = torch.float32) -> list[int]:
        return chosen_segments((m, n), quintic, cpu, dtype, "auto")

    assert auto(512, 128) == auto(128, 512) == [5]
    assert auto(512, 512) == auto(256, 128) == [1] * 5
    assert auto(512, 128, torch.bfloat16) == [1] * 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert auto(512, 128) == [1] * 5
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert not multiplies_in_full(cpu, torch.float32)
        assert multiplies_in_full(cpu, torch.float64)
        assert auto(512, 128) == [1] * 5
        with full_precision_matmul(cpu):
            assert auto(512, 128) == [5]
    finally:
        torch.set_float32_matmul_precision(before)
    # FLOPs at m = 4 k in units of k^3: 5 (16 + 2), and 16 + 2 * 17.
    assert segment_flops(1, 4, [1] * 5) == 90
    assert segment_flops(1, 4, [5]) == 50


@pytest.mark.parametrize("shape", [(3, 3), (64, 4), (512, 8), (512, 128), (1376, 128), (2048, 512)])
def test_one_product_errs_by_less_than_the_guard_assumes(shape: tuple[int, int]) -> None:
    m, k = shape
    eps = torch.finfo(torch.float32).eps
    orthonormal = torch.linalg.qr(torch.randn(m, k)).Q
    for X in (torch.randn(m, k), torch.rand(m, k), orthonormal, torch.outer(torch.rand(m), torch.rand(k))):
        S = X.T @ X
        T = S / torch.linalg.matrix_norm(S, 2)
        for left, right in ((X.T, X), (T, T), (X, T)):
            norms = torch.linalg.matrix_norm(left, 2) * torch.linalg.matrix_norm(right, 2)
            error = left @ right - left.double() @ right.double()
            assert torch.linalg.matrix_norm(error, 2) <= PRODUCT_ERROR * eps * norms  # measured: 0.3 to 6.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["plain", "gram"])
def test_the_guard_follows_from_the_error_of_one_product(form: str, dtype: torch.dtype) -> None:
    """||O|| <= rounding_guard, whatever the matrix: the recursion that docs/methods/spectron.md explains.

    The iterate is X = Y Q for the Q in memory. Its step uses S with ||S - X^T X|| <= D, and P = p(S) up to e:
    ||X P||^2 = ||P (X^T X) P|| <= max over the spectrum of S of (|p| + e)^2 (lambda + D).
    """
    eps = torch.finfo(dtype).eps
    delta = PRODUCT_ERROR * eps
    norm = 1.0
    done = 0
    for steps in gram_segments(EXPRESS, eps) if form == "gram" else [1] * 7:
        entered, q = norm, 1.0
        for step in range(steps):
            a, b, c = EXPRESS[done]
            done += 1
            # The Gram matrix of Y; then S_0 Q and Q^T (S_0 Q), of norms ||Y||^2 q and q ||Y|| ||X||.
            D = delta * entered**2 if step == 0 else delta * q * (2 * q * entered**2 + norm * entered)
            lam = torch.linspace(-D, norm**2 + D, 200_001, dtype=torch.float64)
            p = (a + b * lam + c * lam**2).abs()
            e = 3 * delta * max(a, -b * norm**2, c * norm**4)  # S S, its sum with b S and a I, and Q P
            norm = ((p + e) ** 2 * (lam + D).clamp_min(0.0)).max().sqrt().item()
            q *= p.max().item() + e
        norm += delta * entered * q  # the product Y Q, stored
    assert norm <= rounding_guard(dtype) == 1.0 + POLAR_ERROR * eps


@pytest.mark.parametrize("shape", [(40, 3), (64, 16), (200, 64), (600, 128)])
def test_polar_express_stays_far_below_the_guard(shape: tuple[int, int]) -> None:
    eps = torch.finfo(torch.float32).eps
    for condition in (1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6):
        for spectrum in SPECTRA:
            factor = polar_express(ill_conditioned(*shape, condition, spectrum, torch.float32), form="gram")
            excess = torch.linalg.matrix_norm(factor.double(), 2).item() - 1.0
            assert excess <= POLAR_ERROR / 8 * eps, "measured: 25 eps at most"
