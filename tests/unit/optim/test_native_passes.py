"""The passes in C++ of SCALE, SinkGD and GWT against their form in torch's operations."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lowrise.errors import UsageError
from lowrise.linalg import passes
from lowrise.linalg.sinkhorn import GUARD, sinkhorn_vectors
from lowrise.optim import GWT, SCALE, Optimizer, SinkGD

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="there is no C++ compiler"
)
SHAPES = [(1, 1), (1, 37), (37, 2), (5, 64), (131, 67), (64, 300), (1100, 16), (16, 1025)]
CASES: list[tuple[type[Optimizer], str, dict[str, Any]]] = [
    (SCALE, "matrix", {}),
    (SCALE, "embedding", {"weight_decay": 0.1}),
    (SCALE, "head", {"weight_decay": 0.1}),
    (SinkGD, "matrix", {}),
    (SinkGD, "matrix", {"rows_first": False, "iters": 2, "weight_decay": 0.1}),
    (SinkGD, "matrix", {"target": "muon", "iters": 1}),
    (GWT, "matrix", {}),
    *(
        (GWT, "matrix", {"level": level, "weight_decay": 0.1, "correct_details": False})
        for level in (0, 1, 3, 5)
    ),
]
Change = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(passes.VARIABLE, raising=False)
    passes.follow(None)


def moved(
    cls: type[Optimizer], role: str, options: dict[str, Any], shapes: list[tuple[int, int]],
    way: str, monkeypatch: pytest.MonkeyPatch, *, place: Change = torch.clone, gradient: Change = torch.clone,
) -> list[torch.Tensor]:  # fmt: skip
    """Weights and state after five steps; `place` puts weights and gradients into other memory."""
    monkeypatch.setenv(passes.VARIABLE, way)
    g = torch.Generator().manual_seed(1)
    params = [nn.Parameter(place(torch.randn(shape, generator=g))) for shape in shapes]
    optimizer = cls([{"params": params, "role": role}], lr=0.05, **options)
    for _ in range(5):
        for p in params:
            p.grad = place(gradient(torch.randn(p.shape, generator=g)))
        optimizer.step()
    state = [t for p in params for key, t in optimizer.state[p].items() if key != "step"]
    return [p.detach() for p in params] + state


def compare(
    cls: type[Optimizer], role: str, options: dict[str, Any], shapes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch, gradient: Change,
) -> None:  # fmt: skip
    """Both forms beside float64: the C++ is as near as torch's operations, which it is not equal to."""

    def form(way: str, place: Change = torch.clone) -> list[torch.Tensor]:
        return moved(cls, role, options, shapes, way, monkeypatch, place=place, gradient=gradient)

    native, by_torch, exact = form("native"), form("torch"), form("torch", torch.Tensor.double)
    assert gradient is not torch.clone or any(
        not torch.equal(a, b) for a, b in zip(native, by_torch, strict=True)
    )
    for a, b, x in zip(native, by_torch, exact, strict=True):
        scale = x.abs().max()
        errors = [((y.double() - x).abs().max() / scale.clamp_min(1e-300)).item() for y in (a, b)]
        assert errors[0] <= 4 * errors[1] + 2e-6


def able(cls: type[Optimizer], options: dict[str, Any]) -> list[tuple[int, int]]:
    """Shapes that the rule takes: GWT's columns can be halved as often as its level says."""
    level = options.get("level", 2) if cls is GWT else 0
    return [shape for shape in SHAPES if (shape[1] - 1).bit_length() >= level]


@needs_compiler
@pytest.mark.parametrize(("cls", "role", "options"), CASES, ids=str)
def test_every_shape_is_torch_s_to_rounding(
    cls: type[Optimizer], role: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = able(cls, options)
    compare(cls, role, options, shapes, monkeypatch, torch.clone)


@needs_compiler
@pytest.mark.parametrize(("cls", "role", "options"), CASES, ids=str)
def test_rows_that_lie_apart(
    cls: type[Optimizer], role: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = able(cls, options)

    def apart(t: torch.Tensor) -> torch.Tensor:
        room = torch.full((t.shape[0], t.shape[1] + 3), math.nan)
        room[:, 1:-2] = t
        return room[:, 1:-2]

    plain, strided = (
        moved(cls, role, options, shapes, "native", monkeypatch, place=place)
        for place in (torch.clone, apart)
    )
    for a, b in zip(plain, strided, strict=True):
        if options.get("target") == "muon":  # whose products are torch's
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b)


@needs_compiler
@pytest.mark.parametrize(("cls", "role", "options"), CASES, ids=str)
def test_zero_lines_huge_and_tiny_gradients(
    cls: type[Optimizer], role: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeros(G: torch.Tensor) -> torch.Tensor:
        G = G.clone()
        G[::3] = 0.0
        G[:, ::5] = 0.0
        return G

    gradients: list[Change] = [zeros, lambda G: G * 1e12, lambda G: G * 1e-12, torch.zeros_like]
    for gradient in gradients:
        compare(cls, role, options, [(37, 41), (8, 64)], monkeypatch, gradient)


@needs_compiler
@pytest.mark.parametrize(("cls", "role", "options"), CASES, ids=str)
def test_neither_threads_nor_neighbours_nor_a_resume_change_a_bit(
    cls: type[Optimizer], role: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(131, 67), (16, 128), (131, 67)]
    expected = moved(cls, role, options, shapes, "native", monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several = moved(cls, role, options, shapes, "native", monkeypatch)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(expected, several, strict=True):
        if options.get("target") != "muon":  # whose products are torch's
            assert torch.equal(a, b)
    alone = moved(cls, role, options, shapes[:1], "native", monkeypatch)
    g = torch.Generator().manual_seed(1)
    first = nn.Parameter(torch.randn(shapes[0], generator=g))
    optimizer = cls([{"params": [first], "role": role}], lr=0.05, **options)
    for step in range(5):
        if step == 2:
            copy = nn.Parameter(first.detach().clone())
            resumed = cls([{"params": [copy], "role": role}], lr=0.05, **options)
            resumed.load_state_dict(optimizer.state_dict())
            first, optimizer = copy, resumed
        first.grad = torch.randn(shapes[0], generator=g)
        optimizer.step()
    assert torch.equal(first.detach(), alone[0])


@needs_compiler
@pytest.mark.parametrize(("cls", "role", "options"), CASES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_bad_gradients_leave_their_matrix_alone(
    cls: type[Optimizer], role: str, options: dict[str, Any], bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(passes.VARIABLE, "native")
    params = [nn.Parameter(torch.randn(9, 40)) for _ in range(2)]
    optimizer = cls([{"params": params, "role": role}], lr=0.05, **options)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn(9, 40)
    params[0].grad[3, 7] = bad  # type: ignore[index]
    optimizer.step()
    assert torch.equal(params[0].detach(), before[0])
    assert not torch.equal(params[1].detach(), before[1])
    assert all(t.isfinite().all() for t in optimizer.state[params[0]].values())
    assert int(optimizer.state[params[0]]["step"]) == 0


@needs_compiler
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen_in_the_scales(bad: float) -> None:
    G = torch.randn(40, 70)
    G[11, 13] = bad
    native = passes.passes_here()
    assert native is not None
    (r,), (c,) = native.sinkhorn([G], iters=5, rows_first=True, guard=GUARD)
    assert r[11].isnan()
    assert c.isnan().any()
    assert sinkhorn_vectors(G)[0][11].isnan()


@needs_compiler
def test_what_changed_in_place_is_known_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(passes.VARIABLE, "native")
    W = nn.Parameter(torch.randn(4, 6))
    loss = W.square().sum()
    W.grad = torch.randn(4, 6)
    SCALE([W]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_what_has_no_form_in_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor in (
        torch.ones(3, 4).double(),
        torch.ones(3, 4).bfloat16(),
        torch.ones(3, 4, device="meta"),
        torch.ones(4, 3).T,
        torch.ones(3, 8)[:, ::2],
        torch.ones(1, 4).expand(3, 4),
        torch.ones(0, 4),
    ):
        assert not passes.fits([tensor])
    assert passes.fits([torch.ones(3, 4)], [torch.ones(5)])
    assert not passes.fits([torch.ones(3, 4)], [torch.ones(8)[::2]])
    assert passes.passes_here() is not None
    with FakeTensorMode() as mode:
        assert passes.passes_here() is None
        assert not passes.fits([mode.from_tensor(torch.ones(3, 4))])
    with TorchDispatchMode():
        assert passes.passes_here() is None


def test_which_form_runs_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(passes.VARIABLE, "torch")
    assert passes.path() == "torch"
    assert passes.passes_here() is None
    monkeypatch.setenv(passes.VARIABLE, "fast")
    with pytest.raises(UsageError, match="LOWRISE_PASSES = 'fast'"):
        passes.path()
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv(passes.VARIABLE, "auto")
    assert passes.path() == "torch"
    monkeypatch.setenv(passes.VARIABLE, "native")
    with pytest.raises(UsageError, match="install g\\+\\+ or clang"):
        passes.path()


@needs_compiler
def test_a_direction_of_one_s_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Signs(SCALE):
        def direction(self, G: torch.Tensor, state: Any, options: Any, step: int) -> torch.Tensor:
            return G.sign()

    monkeypatch.setenv(passes.VARIABLE, "native")
    W = nn.Parameter(torch.zeros(4, 6))
    W.grad = torch.randn(4, 6)
    Signs([W], lr=0.5).step()
    assert torch.equal(W.detach(), -0.5 * W.grad.sign())
