"""The step on the manifold of rank-r matrices: what it is, checked with dense matrices in float64, and the
fast way against the plain one.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowrise.linalg import fixed_rank, tangent_step, tangent_step_reference

# tall, wide, square, 2r > min(m, n), r = 1
SHAPES = [(20, 8, 3), (8, 20, 3), (12, 12, 4), (10, 6, 5), (9, 9, 1)]


def by_grams(*arguments: Tensor, core="B", retraction="svd", length=None) -> fixed_rank.Moved:
    """What float32 pairs go through, here in float64, where its formulas can be checked; and what it hands on
    to the plain form.
    """
    options = {"core": core, "retraction": retraction, "length": length}
    moved, _ = fixed_rank._by_grams(*arguments, least_sine=0.05, by_newton=False, **options)
    return moved if moved.ok.all() else tangent_step_reference(*arguments, **options)


STEPS = pytest.mark.parametrize("step", [tangent_step, tangent_step_reference, by_grams])


def pair(m: int, n: int, r: int, batch: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """A, B, G and the factor gradients G B, G^T A."""
    A, B = torch.randn(batch, m, r, dtype=torch.float64), torch.randn(batch, n, r, dtype=torch.float64)
    G = torch.randn(batch, m, n, dtype=torch.float64)
    return tuple(X.to(dtype) for X in (A, B, G, G @ B, G.mT @ A))


def projected(A: Tensor, B: Tensor, G: Tensor) -> Tensor:
    """P(G) = U U^T G + G V V^T - U U^T G V V^T."""
    U, V = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    left, right = U @ U.mT, V @ V.mT
    return left @ G + G @ right - left @ G @ right


def truncated(W: Tensor, r: int) -> Tensor:
    U, s, Vh = torch.linalg.svd(W)
    return (U[..., :r] * s[..., None, :r]) @ Vh[..., :r, :]


def relative(x: Tensor, y: Tensor) -> float:
    return ((x - y).norm() / y.norm()).item()


@STEPS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("s", [0.0, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("core", ["B", "mean"])
def test_it_is_the_nearest_rank_r_matrix_to_w_minus_s_p_of_g(step, shape, s, core) -> None:
    A, B, G, D_A, D_B = pair(*shape)
    moved = step(A, B, D_A, D_B, torch.tensor([s], dtype=torch.float64), core=core)
    assert moved.ok.all()
    W = A @ B.mT
    # float64 rounding, times 1 / gap of the singular values in the worst of these draws
    assert relative(moved.A @ moved.B.mT, truncated(W - s * projected(A, B, G), shape[2])) < 1e-12


@pytest.mark.parametrize(("m", "n"), [(5, 40), (40, 5), (16, 40), (40, 40)])
@pytest.mark.parametrize("core", ["B", "mean"])
@pytest.mark.parametrize("s", [0.003, 0.03, 0.3])
def test_float64_is_exact_to_rounding_at_every_rank(m, n, core, s) -> None:
    """Directions of no common gradient, conditions of the factors up to 100; dense in float64."""
    for r in range(1, min(m, n, 15) + 1):
        g = torch.Generator().manual_seed(r)
        A, B, D_A, D_B = (torch.randn(40, k, r, generator=g, dtype=torch.float64) for k in (m, n, m, n))
        moved = tangent_step(A, B, D_A, D_B, torch.full((40,), s, dtype=torch.float64), core=core)
        (U, R_A), (V, R_B) = torch.linalg.qr(A), torch.linalg.qr(B)
        Z_A, Z_B = D_A @ torch.linalg.inv(R_B), D_B @ torch.linalg.inv(R_A)
        K = Z_B.mT @ V if core == "B" else (U.mT @ Z_A + Z_B.mT @ V) / 2
        xi = U @ (K - U.mT @ Z_A - Z_B.mT @ V) @ V.mT + Z_A @ V.mT + U @ Z_B.mT
        W = truncated(A @ B.mT - s * xi, r)
        errors = (moved.A @ moved.B.mT - W).flatten(1).norm(dim=1) / W.flatten(1).norm(dim=1)
        assert float(errors.max()) < 1e-12


@STEPS
def test_full_rank_is_the_euclidean_step(step) -> None:
    A, B, G, D_A, D_B = pair(8, 8, 8)
    moved = step(A, B, D_A, D_B, torch.tensor([0.1], dtype=torch.float64))
    assert relative(moved.A @ moved.B.mT, A @ B.mT - 0.1 * G) < 1e-12


@STEPS
@pytest.mark.parametrize("retraction", ["svd", "orthographic"])
def test_first_order_to_the_projected_gradient(step, retraction) -> None:
    """Finite differences: (W' - W) / s + P(G) falls as s, for both retractions."""
    A, B, G, D_A, D_B = pair(20, 12, 4)
    P, errors = projected(A, B, G), []
    for s in (1e-2, 1e-3, 1e-4):
        moved = step(A, B, D_A, D_B, torch.tensor([s], dtype=torch.float64), retraction=retraction)
        errors.append(relative((A @ B.mT - moved.A @ moved.B.mT) / s, P))
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.2)
    assert errors[2] == pytest.approx(errors[1] / 10, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthographic_is_its_formula_and_differs_at_third_order(shape) -> None:
    A, B, G, D_A, D_B = pair(*shape)
    U, R_A = torch.linalg.qr(A)
    V, R_B = torch.linalg.qr(B)
    s = 1e-2
    K, P = U.mT @ G @ V, projected(A, B, G)
    Y_A, Y_B = P @ V - U @ K, P.mT @ U - V @ K.mT
    S = R_A @ R_B.mT - s * K
    expected = (U - s * Y_A @ S.inverse()) @ (V @ S.mT - s * Y_B).mT
    for step in (tangent_step, tangent_step_reference):
        moved = step(A, B, D_A, D_B, torch.tensor([s], dtype=torch.float64), retraction="orthographic")
        assert relative(moved.A @ moved.B.mT, expected) < 1e-12
    differences = []
    for s in (1e-2, 1e-3):
        size = torch.tensor([s], dtype=torch.float64)
        W1, W2 = (
            (x.A @ x.B.mT)
            for x in (tangent_step(A, B, D_A, D_B, size, retraction=k) for k in ("svd", "orthographic"))
        )
        differences.append((W1 - W2).norm().item())
    # Two second-order retractions agree to s^2: a tenth of s makes a thousandth of the difference (float64
    # rounding where there is none left to see, at r = 1).
    assert differences[1] < 2e-3 * differences[0] + 1e-13


@STEPS
def test_invariant_under_every_split(step) -> None:
    """(A, B) -> (A C, B C^-T): derivatives become D_A C^-T, D_B C; W' is the same."""
    A, B, _, D_A, D_B = pair(20, 12, 4)
    s = torch.tensor([0.1], dtype=torch.float64)
    plain = step(A, B, D_A, D_B, s)
    C = torch.randn(4, 4, dtype=torch.float64) * torch.tensor([10.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    inverse = C.inverse().mT
    other = step(A @ C, B @ inverse, D_A @ inverse, D_B @ C, s)
    # the condition of C, about 100, squared, times eps
    assert relative(other.A @ other.B.mT, plain.A @ plain.B.mT) < 1e-11


@STEPS
@pytest.mark.parametrize("retraction", ["svd", "orthographic"])
def test_balanced_afterwards_and_the_maps_belong_to_it(step, retraction) -> None:
    A, B, _, D_A, D_B = pair(20, 12, 4, batch=3)
    s = torch.tensor([0.0, 0.01, 0.3], dtype=torch.float64)
    moved = step(A, B, D_A, D_B, s, retraction=retraction)
    grams = moved.A.mT @ moved.A, moved.B.mT @ moved.B
    for gram in grams:
        assert (gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-11 * gram.max()
    torch.testing.assert_close(*grams, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(moved.T_A, torch.linalg.pinv(A) @ moved.A, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(moved.T_B, torch.linalg.pinv(B) @ moved.B, rtol=1e-9, atol=1e-10)
    # s = 0 changes the basis and nothing else
    torch.testing.assert_close(A[0] @ moved.T_A[0], moved.A[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(moved.T_B[0], moved.T_A[0].inverse().mT, rtol=1e-9, atol=1e-10)


@STEPS
@pytest.mark.parametrize("core", ["B", "mean"])
def test_length_is_that_of_the_tangent_vector(step, core) -> None:
    A, B, *_ = pair(20, 12, 4)
    D_A, D_B = torch.randn_like(A), torch.randn_like(B)  # of no single G: cores differ
    lengths = []
    for s in (1e-5, 1e-6):
        size, length = torch.tensor([s], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
        moved = step(A, B, D_A, D_B, size, core=core, length=length)
        lengths.append(((moved.A @ moved.B.mT - A @ B.mT).norm() / s).item())
    assert lengths == pytest.approx([3.0, 3.0], rel=1e-4)  # to first order in s
    still = step(A, B, 0 * D_A, 0 * D_B, size, core=core, length=length)
    assert relative(still.A @ still.B.mT, A @ B.mT) < 1e-13


def test_the_core_is_that_of_d_b_or_the_mean() -> None:
    A, B, *_ = pair(20, 12, 4)
    D_A, D_B = torch.randn_like(A), torch.randn_like(B)
    U, R_A = torch.linalg.qr(A)
    V, R_B = torch.linalg.qr(B)
    Z_A, Z_B = D_A @ R_B.inverse(), D_B @ R_A.inverse()
    K_1, K_2 = U.mT @ Z_A, Z_B.mT @ V
    assert relative(K_1, K_2) > 0.5
    s = 1e-6
    for core, K in (("B", K_2), ("mean", (K_1 + K_2) / 2)):
        for step in (tangent_step, tangent_step_reference):
            moved = step(A, B, D_A, D_B, torch.tensor([s], dtype=torch.float64), core=core)
            xi = (A @ B.mT - moved.A @ moved.B.mT) / s
            assert relative(U.mT @ xi @ V, K) < 1e-4, "first order in s"


@pytest.mark.parametrize("spread", [1.0, 30.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_equals_plain_for_columns_that_are_nearly_dependent(spread, dtype) -> None:
    """The accuracy classes: Gram matrices in the dtype, in float64, QR. Relative to the length of the
    step.
    """
    m, n, r = 24, 16, 4
    A, B, _, D_A, D_B = pair(m, n, r, batch=5)
    A[1::2, :, 1] = A[1::2, :, 0] + A[1::2, :, 1] / spread  # some pairs good, some bad
    A, B, D_A, D_B = (X.to(dtype) for X in (A, B, D_A, D_B))
    s = torch.full((5,), 0.05, dtype=dtype)
    length = torch.full((5,), 20.0, dtype=dtype)  # a step of length 1 from W of length 15 to 40
    fast = tangent_step(A, B, D_A, D_B, s, core="mean", length=length)
    wide = (X.double() for X in (A, B, D_A, D_B, s))
    plain = tangent_step_reference(*wide, core="mean", length=length.double())
    assert fast.ok.all()
    assert plain.ok.all()
    W, reference = (x.A.double() @ x.B.double().mT for x in (fast, plain))
    # float32: rounding of the stored factors, 6e-8 of 40, and 6e-8 / 0.05^2 of the step
    assert (W - reference).norm(dim=(1, 2)).max() < (5e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("retraction", ["svd", "orthographic"])
@pytest.mark.parametrize("condition", [1.0, 100.0, 1e4])
def test_fast_equals_plain_in_float32_whatever_the_condition(condition, retraction) -> None:
    """Factors of 96 x 24 and 64 x 24 with singular values from 1 down to 1 / condition in rotated columns,
    and a step of 1% to 20% of W: sizes as LORO takes them.
    """
    A, B, _, D_A, D_B = pair(96, 64, 24, batch=4)
    spectrum = torch.logspace(0, -torch.tensor(condition).log10().item(), 24, dtype=torch.float64)
    U, V, R = (torch.linalg.qr(X).Q for X in (A, B, torch.randn(4, 24, 24, dtype=torch.float64)))
    A, B = (U * spectrum) @ R, (V * spectrum) @ R
    length = torch.tensor([0.01, 0.05, 0.1, 0.2]) * (A @ B.mT).norm(dim=(1, 2))
    arguments = [X.float() for X in (A, B, D_A, D_B, torch.ones(4))]
    options = {"core": "mean", "retraction": retraction}
    fast = tangent_step(*arguments, length=length.float(), **options)
    wide = [X.double() for X in arguments]
    plain = tangent_step_reference(*wide, length=length.float().double(), **options)
    assert fast.ok.all()
    ways = (fast.A, fast.B), (plain.A, plain.B), wide[:2]
    W, expected, before = (x.double() @ y.double().mT for x, y in ways)
    # Of ||W||: float32 rounding of the products and of what is stored, measured 7e-7. Of the movement, which
    # an orthographic retraction makes far longer than asked for where it inverts small singular values: the
    # error that the inverse may have there.
    error, moved = (W - expected).norm(dim=(1, 2)), (expected - before).norm(dim=(1, 2))
    assert (error < 2e-6 * before.norm(dim=(1, 2)) + 1e-5 * moved).all()


def test_slow_convergence_ends_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step as long as W: discarded singular values close to the kept ones."""
    A, B, _, D_A, D_B = pair(12, 12, 4, batch=20)
    A *= torch.tensor([1.0, 1.0, 0.1, 0.01], dtype=torch.float64)
    calls = []
    reference = tangent_step_reference

    def counted(*arguments, **options):
        calls.append(arguments[0].shape[0])
        return reference(*arguments, **options)

    monkeypatch.setattr(fixed_rank, "tangent_step_reference", counted)
    s = torch.full((20,), 0.3, dtype=torch.float64)
    moved = tangent_step(A, B, D_A, D_B, s)
    assert sum(calls) > 0, "the case is too easy to test anything"
    plain = reference(A, B, D_A, D_B, s)
    assert relative(moved.A @ moved.B.mT, plain.A @ plain.B.mT) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("retraction", ["svd", "orthographic"])
@pytest.mark.parametrize("what", ["zero", "repeated", "nan", "inf gradient"])
def test_what_has_no_tangent_space_is_left_alone(dtype, retraction, what) -> None:
    A, B, _, D_A, D_B = pair(20, 12, 4, batch=3, dtype=dtype)
    if what == "zero":
        B[1] = 0  # a LoRA-style start
    elif what == "repeated":
        A[1, :, 2] = A[1, :, 0]
    elif what == "nan":
        A[1, 0, 0] = torch.nan
    else:
        D_A[1, 0, 0] = torch.inf
    s = torch.full((3,), 0.01, dtype=dtype)
    moved = tangent_step(A, B, D_A, D_B, s, retraction=retraction)
    assert moved.ok.tolist() == [True, False, True]
    assert torch.equal(moved.A[1].nan_to_num(), A[1].nan_to_num())
    assert torch.equal(moved.B[1], B[1])
    assert torch.equal(moved.T_A[1], torch.eye(4, dtype=dtype))
    alone = tangent_step(A[:1], B[:1], D_A[:1], D_B[:1], s[:1], retraction=retraction)
    W, expected = (x.A[0] @ x.B[0].mT for x in (moved, alone))
    torch.testing.assert_close(W, expected)


def test_the_misprint_of_algorithm_2_is_another_step() -> None:
    """With R_A itself in the lower-left block, W moves elsewhere by a third of the projected gradient at
    least.
    """
    A, B, G, D_A, D_B = pair(20, 12, 4)
    U, R_A = torch.linalg.qr(A)
    V, R_B = torch.linalg.qr(B)
    s, P = 1e-3, projected(A, B, G)
    K = U.mT @ G @ V
    Q_A, _ = torch.linalg.qr(P @ V - U @ K)
    Q_B, K_B = torch.linalg.qr(P.mT @ U - V @ K.mT)
    T = torch.cat(
        [
            torch.cat([R_A @ R_B.mT - s * K, -s * K_B.mT], dim=-1),
            torch.cat([-s * R_A, torch.zeros_like(K)], dim=-1),
        ],
        dim=-2,
    )
    misprint = truncated(torch.cat([U, Q_A], -1) @ T @ torch.cat([V, Q_B], -1).mT, 4)
    moved = tangent_step(A, B, D_A, D_B, torch.tensor([s], dtype=torch.float64))
    W = A @ B.mT
    assert relative((W - moved.A @ moved.B.mT) / s, P) < 0.02
    assert relative((W - misprint) / s, P) > 0.3
