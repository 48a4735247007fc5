"""GWT: against a plain one-matrix version and AdamW, its limiter, its first steps, its state."""

from __future__ import annotations

import math

import pytest
import torch
from reference.haar import haar, inverse_haar
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.optim import GWT, AdamW
from lowrise.optim.rules.adamw import adamw_update_

F64 = torch.float64


class PlainGWT:
    """methods/gwt.md, section 2, for one matrix; `corrected`: details over the bias-corrected root."""

    def __init__(self, W: Tensor, *, level: int, scale: float, b1: float, b2: float, eps: float) -> None:
        self.W, self.level, self.scale, self.b1, self.b2, self.eps = W.clone(), level, scale, b1, b2, eps
        A, _ = haar(W, level)
        self.m, self.v, self.norm, self.t = torch.zeros_like(A), torch.zeros_like(A), 0.0, 0

    def step(self, G: Tensor, lr: float, wd: float, *, corrected: bool) -> None:
        self.t += 1
        A, details = haar(G, self.level)
        self.m = self.b1 * self.m + (1 - self.b1) * A
        self.v = self.b2 * self.v + (1 - self.b2) * A**2
        den = self.v.sqrt() + self.eps
        N = self.m / den
        size = N.norm().item()
        lim = 1.0 if self.t == 1 else max(size / (self.norm + 1e-8), 1.01) / 1.01
        self.norm = size / lim
        rate = math.sqrt(1 - self.b2**self.t) / (1 - self.b1**self.t)
        damped = []
        for D in details:
            extra = (1 - self.b1**self.t) if corrected else 1.0
            damped.append(D * extra / (den[..., : D.shape[-1]] * lim))
            den = den.repeat_interleave(2, dim=-1)
        U = inverse_haar(N / lim, damped, self.W.shape[1])
        self.W = self.W - lr * rate * self.scale * U
        self.W = self.W - lr * wd * self.W


def gradients(shape: tuple[int, int], steps: int = 8) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    burst = [1, 1, 1, 30, 1, 1, 30, 1]
    return [burst[t % 8] * torch.randn(shape, dtype=F64, generator=g) for t in range(steps)]


@pytest.mark.parametrize(("shape", "level"), [((6, 16), 2), ((12, 8), 1), ((5, 13), 2), ((4, 11), 3)])
@pytest.mark.parametrize("corrected", [False, True])
def test_equals_the_plain_one_matrix_algorithm(shape, level, corrected) -> None:
    params = [nn.Parameter(torch.randn(shape, dtype=F64)) for _ in range(3)]
    numbers = {"level": level, "scale": 0.5, "eps": 1e-4}
    plain = [PlainGWT(p.detach(), **numbers, b1=0.8, b2=0.9) for p in params]
    optimizer = GWT(
        params, betas=(0.8, 0.9), weight_decay=0.3, correct_details=corrected, limiter="reference", **numbers
    )
    for t, G in enumerate(gradients(shape)):
        optimizer.param_groups[0]["lr"] = lr = 0.01 * (t + 1)
        for k, (p, reference) in enumerate(zip(params, plain, strict=True)):
            if k == 1 and t == 2:  # a counter that stands still for one step
                p.grad = None
                continue
            p.grad = (k + 1) * G
            reference.step(p.grad, lr, 0.3, corrected=corrected)
        optimizer.step()
    for p, reference in zip(params, plain, strict=True):
        # float64 rounding of weights that have moved by up to some hundreds
        torch.testing.assert_close(p.detach(), reference.W, rtol=1e-11, atol=1e-11)
        assert optimizer.state[p]["update_norm"].item() == pytest.approx(reference.norm, rel=1e-12)


def test_level_0_is_adamw_with_eps_on_the_uncorrected_root() -> None:
    """Without the limiter; and the same rule for other roles, which is that of the release."""
    params = [nn.Parameter(torch.randn(5, 7, dtype=F64)) for _ in range(2)]
    groups = [{"params": [params[0]], "role": "matrix"}, {"params": [params[1]], "role": "other"}]
    numbers = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 0.1, "weight_decay": 0.2}
    optimizer = GWT(groups, level=0, scale=1.0, limiter="off", **numbers)
    expected = [p.detach().clone() for p in params]
    m, v = ([torch.zeros_like(p) for p in expected] for _ in range(2))
    for t, G in enumerate(gradients((5, 7)), 1):
        for p in params:
            p.grad = G
        optimizer.step()
        adamw_update_(expected, [G, G], m, v, [t, t], form="hf", **numbers)
    for p, golden in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), golden, rtol=0, atol=1e-13)  # float64 rounding


def test_a_gradient_constant_on_blocks_is_adam_on_the_means() -> None:
    """Details vanish; A is sqrt(w) times the mean, and N / sqrt(w) takes that back."""
    W = nn.Parameter(torch.zeros(3, 8, dtype=F64))
    V = nn.Parameter(torch.zeros(3, 2, dtype=F64))
    ours = GWT([W], lr=0.01, scale=2.0, eps=1e-14, limiter="off")  # scale sqrt(w): entries of N as they are
    theirs = AdamW([V], lr=0.01, betas=(0.9, 0.999), eps=1e-14)
    for G in gradients((3, 2)):
        W.grad, V.grad = G.repeat_interleave(4, dim=1), G.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(W.detach(), V.detach().repeat_interleave(4, dim=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("limiter", ["safe", "reference"])
def test_the_norm_grows_by_gamma_at_most(limiter: str) -> None:
    W = nn.Parameter(torch.zeros(6, 16, dtype=F64))
    optimizer = GWT([W], limiter=limiter)
    before, limited = None, 0
    for G in gradients((6, 16), 24):
        W.grad = G
        optimizer.step()
        norm = optimizer.state[W]["update_norm"].item()
        if before is not None:
            assert norm <= 1.01 * (before + 1e-8) * (1 + 1e-12)
            limited += norm >= 1.01 * before * (1 - 1e-6)
        before = norm
    assert limited > 0, "the bursts must make it act"


def test_zero_and_non_finite_gradients_leave_the_safe_limiter_usable() -> None:
    """The authors' rule takes some 1,500 steps to recover from one zero gradient, and never from a NaN."""
    sizes = {}
    for limiter in ("safe", "reference"):
        W = nn.Parameter(torch.zeros(6, 16, dtype=F64))
        optimizer = GWT([W], lr=0.01, betas=(0.0, 0.999), limiter=limiter)
        for t, G in enumerate(gradients((6, 16), 6)):
            W.grad = torch.zeros_like(G) if t == 3 else G
            optimizer.step()
        sizes[limiter] = optimizer.state[W]["update_norm"].item()
    assert sizes["reference"] < 1e-6 < 1e-1 < sizes["safe"]

    optimizer = GWT([W], limiter="safe")
    for value in (1.0, math.nan, math.inf):
        W.grad = torch.full_like(W, value)
        optimizer.step()
        assert optimizer.state[W]["update_norm"].isfinite()
        assert optimizer.state[W]["update_norm"] > 0


def test_first_updates_of_white_noise_are_huge_as_published_and_ten_times_smaller_corrected() -> None:
    """Dossier: RMS 290, 28, 5.2 at t = 1, 2, 3 and 0.87 later. The ratio of Gaussians scatters from draw to
    draw, the ratio of both variants does not: 1 - b1^t is 0.1 at t = 1.
    """
    rms: dict[bool, list[float]] = {}
    for corrected in (False, True):
        W = nn.Parameter(torch.zeros(64, 256, dtype=F64))
        optimizer = GWT([W], lr=1.0, scale=1.0, correct_details=corrected)
        g, rms[corrected] = torch.Generator().manual_seed(5), []
        for _ in range(100):
            W.grad = torch.randn(64, 256, dtype=F64, generator=g)
            before = W.detach().clone()
            optimizer.step()
            rms[corrected].append((W.detach() - before).square().mean().sqrt().item())
    assert rms[False][0] > 50
    assert rms[True][0] == pytest.approx(0.1 * rms[False][0], rel=0.01)  # details are nearly all of it
    for sizes in rms.values():
        assert sizes[-1] == pytest.approx(0.87, abs=0.03)


@pytest.mark.parametrize(
    ("shape", "level", "kept"), [((6, 16), 2, 24), ((5, 13), 2, 20), ((3, 5461), 3, 2049)]
)
def test_state_is_the_formula(shape, level, kept) -> None:
    """2 m K + 1 with K = ceil(n / 2^l), which is the ceil taken level by level."""
    columns = shape[1]
    for _ in range(level):
        columns = math.ceil(columns / 2)
    assert shape[0] * columns == kept
    options = {"level": level}
    assert GWT.planned_state_elements("matrix", [shape], options) == 2 * kept + 1
    W = nn.Parameter(torch.zeros(shape))
    optimizer = GWT([W], **options)
    assert optimizer.state_bytes() == 4 * (2 * kept + 1)
    assert optimizer.step_flops() == 6 * W.numel() + 18 * kept


def test_narrow_weights_have_float32_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRISE_PASSES", "torch")  # which narrow weights always take
    W = nn.Parameter(torch.randn(4, 10).bfloat16())
    V = nn.Parameter(W.detach().float())
    narrow, wide = GWT([W]), GWT([V])
    for _ in range(3):
        W.grad = torch.randn(4, 10).bfloat16()
        V.grad = W.grad.float()
        narrow.step()
        wide.step()
    assert torch.equal(narrow.state[W]["exp_avg_sq"], wide.state[V]["exp_avg_sq"])
    assert W.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"level": 4}, r"level = 4.*shape \(4, 8\) can be halved 0 to 3 times"),
        ({"level": -1}, "level = -1"),
        ({"eps": 0.0}, "eps = 0.0; it must be above 0"),
        ({"scale": -1.0}, "scale = -1.0"),
        ({"limiter": "soft"}, "limiter = 'soft'; choose one of safe, reference, off"),
    ],
)
def test_impossible_options_get_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        GWT([nn.Parameter(torch.zeros(4, 8))], **options)
