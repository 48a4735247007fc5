"""RMSNorm and the gated product: what they keep for the backward pass, and that nothing else is different."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowrise.model.norm import RMSNorm, plain_rms_norm
from lowrise.model.swiglu import swiglu

SHAPE = (3, 5, 32)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    module = RMSNorm(len(weight), 1e-6)
    return torch.func.functional_call(module, {"weight": weight}, (x,))


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return plain_rms_norm(x, weight, 1e-6)[0]


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


CASES = {
    "norm": (norm, plain_norm, SHAPE[-1:]),
    "swiglu": (swiglu, plain_swiglu, SHAPE),
}


def inputs(second: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(SHAPE, dtype=dtype, requires_grad=True), torch.randn(
        second, dtype=dtype, requires_grad=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_those_of_plain_autograd(name: str, dtype: torch.dtype) -> None:
    own, plain, second = CASES[name]
    both = inputs(second, dtype)
    values = own(*both), plain(*both)
    assert torch.equal(*values)
    along = torch.randn_like(values[0])
    gradients = [torch.autograd.grad(value, both, along) for value in values]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_it_can_be_differentiated_twice(name: str) -> None:
    own, _, second = CASES[name]
    both = inputs(second, torch.float64)
    small = tuple(t.detach()[..., :4].clone()[:1].requires_grad_() for t in both)
    if name == "norm":
        small = (small[0], both[1].detach()[:4].clone().requires_grad_())
    assert torch.autograd.gradcheck(own, small)
    assert torch.autograd.gradgradcheck(own, small)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("frozen", [0, 1])
def test_one_gradient_is_enough(name: str, frozen: int) -> None:
    own, plain, second = CASES[name]
    both = inputs(second, torch.float32)
    both[frozen].requires_grad_(False)
    wanted = both[1 - frozen]
    (ours,) = torch.autograd.grad(own(*both).sum(), wanted)
    (theirs,) = torch.autograd.grad(plain(*both).sum(), wanted)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("function", "elements"),
    [
        (partial(norm, weight=torch.ones(32, requires_grad=True)), 3 * 5),  # the scales
        (partial(swiglu, up=torch.ones(SHAPE)), 0),
    ],
    ids=CASES,
)
def test_only_inputs_and_scales_are_kept(function: Callable[[Tensor], Tensor], elements: int) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    given = {x.data_ptr(), *(t.data_ptr() for t in function.keywords.values())}  # type: ignore[attr-defined]
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(x)
    assert kept
    assert sum(t.numel() for t in kept if t.data_ptr() not in given) == elements


def test_compiled_parts_are_the_plain_formulas() -> None:
    x, y = inputs(SHAPE, torch.float32)
    compiled = torch.compile(swiglu, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, y), swiglu(x, y))
    module = RMSNorm(32, 1e-6)
    assert torch.equal(torch.compile(module, backend="aot_eager", fullgraph=True)(x), module(x))
