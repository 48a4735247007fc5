"""Linear maps with frozen weights, stored for speed: maps of one input share their first product.

For maps 1..k that read the same n numbers (q, k, v; gate, up), factored as W_i = up_i act(down_i .):

1. z = [down_1; ...; down_k] x        (R x n) (n), R the sum of the ranks: one product instead of k
2. y_i = up_i act(z_i)                k products into the slices of one vector

A dense map has its rows of W in the place of `down` and no `up`. The norm before the maps belongs to them: on
a CPU one vector takes its 1 / rms as the scale of product 1, which costs nothing.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.inference.options import Forms
from lowrise.layers.base import LowRankLayer, dense_weight
from lowrise.model.norm import RMSNorm

FORMS: tuple[str, ...] = get_args(Forms)
_GAIN = 0.95  # merging costs memory: it must save at least a twentieth of the time
_MEASURED_LAYERS = 4  # so many layers in turn, so that no cache holds what it would not hold in decoding


@dataclass(frozen=True)
class FrozenMap:
    """y = up act(first x) + bias, or first x + bias without `up`."""

    first: Tensor
    """r x n, or the dense m x n."""
    up: Tensor | None = None
    """m x r."""
    silu: bool = False
    bias: Tensor | None = None

    @property
    def elements(self) -> int:
        return self.first.numel() + (0 if self.up is None else self.up.numel())

    @property
    def outputs(self) -> int:
        return self.first.shape[0] if self.up is None else self.up.shape[0]

    @property
    def mergeable(self) -> bool:
        return self.up is not None and not self.silu

    def merged(self) -> FrozenMap:
        """The same map as one dense matrix, the product formed in float32 at least and rounded once."""
        if not self.mergeable:
            return self
        assert self.up is not None
        wide = torch.promote_types(self.first.dtype, torch.float32)
        dense = (self.up.to(wide) @ self.first.to(wide)).to(self.first.dtype)
        return FrozenMap(dense, bias=self.bias)


@torch.no_grad()
def frozen_map(name: str, module: nn.Module, dtype: torch.dtype, order: Tensor | None = None) -> FrozenMap:
    """The map of a module (dense or any low-rank layer) in `dtype`, its outputs in `order` (m,) if given."""

    def ordered(x: Tensor) -> Tensor:
        return (x if order is None else x[order]).detach().to(dtype).contiguous()

    bias = getattr(module, "bias", None)
    bias = None if bias is None else ordered(bias)
    if isinstance(module, LowRankLayer):
        form = module.factored_form()
        if form is None or form.values is not None:  # a dense part, or a sparse one that makes it dense
            return FrozenMap(ordered(module.dense()), bias=bias)
        down = form.down.detach().to(dtype).contiguous()
        return FrozenMap(down, ordered(form.up), form.activation == "silu", bias)
    weight = dense_weight(module)
    if weight is None:
        raise UsageError(
            f"{name} is a {type(module).__name__}, which fast generation does not know: it reads nn.Linear "
            "and the low-rank layers. Generate with lowrise.inference.generate.generate instead."
        )
    return FrozenMap(ordered(weight), bias=bias)


class MapGroup:
    """Frozen maps of one input, with the norm before them if there is one."""

    def __init__(self, maps: Sequence[FrozenMap], norm: RMSNorm | None = None) -> None:
        self.maps = tuple(maps)
        alone = len(self.maps) == 1
        self.first = self.maps[0].first if alone else torch.cat([m.first for m in self.maps])
        # The stacked copy is the one that is kept: the maps look into it.
        pieces = self.first.split([m.first.shape[0] for m in self.maps])
        self.maps = tuple(replace(m, first=piece) for m, piece in zip(self.maps, pieces, strict=True))
        self._latents = [m.first.shape[0] for m in self.maps]
        self._outputs = [m.outputs for m in self.maps]
        self._dense = all(m.up is None for m in self.maps)
        biases = [m.bias for m in self.maps]
        self._bias = None
        if any(b is not None for b in biases):
            zero = self.first.new_zeros
            self._bias = torch.cat([zero(m.outputs) if m.bias is None else m.bias for m in self.maps])
        dtype = self.first.dtype
        self._norm = None if norm is None else norm.weight.detach().to(dtype)
        self._eps = 0.0 if norm is None else norm.eps

    @property
    def elements(self) -> int:
        return sum(m.elements for m in self.maps)

    @property
    def signature(self) -> tuple[object, ...]:
        """Groups with equal signatures do the same work."""
        return tuple((m.first.shape, None if m.up is None else m.up.shape, m.silu) for m in self.maps)

    def merged(self) -> MapGroup:
        """The same group with every mergeable map merged."""
        group = MapGroup([m.merged() for m in self.maps])
        group._norm, group._eps = self._norm, self._eps
        return group

    @property
    def takes_vectors(self) -> bool:
        """Whether one vector (n,) is faster than one row (1, n), and possible."""
        return self.first.device.type == "cpu" and not self.first.is_mkldnn

    def for_rows(self, rows: int) -> MapGroup:
        """The group for so many rows at a time: where these are several and oneDNN has bfloat16 products (on
        a CPU), a group with its matrices packed for these, which takes no vector (n,) and cannot be merged.
        """
        if rows == 1 or not packs(self.first):
            return self
        group = copy.copy(self)
        shapes = [torch.empty_like(m.first, device="meta") for m in self.maps]  # the values are in `first`
        ups = [None if m.up is None else _packed(m.up) for m in self.maps]
        parts = zip(self.maps, shapes, ups, strict=True)
        group.maps = tuple(replace(m, first=shape, up=up) for m, shape, up in parts)
        group.first = _packed(self.first)
        return group

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs side by side, (..., sum of m_i), for x (..., n); a single vector (n,) goes the way
        that is fastest on a CPU."""
        y = self._of_vector(x) if x.dim() == 1 else self._of_rows(x)
        return y if self._bias is None else y + self._bias

    def add_to_(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + y(x), the residual overwritten where that is faster."""
        (only,) = self.maps
        if x.dim() == 1 and self._norm is None and self._bias is None:
            if only.up is None:
                return residual.addmv_(only.first, x)
            return residual.addmv_(only.up, self._latent(torch.mv(only.first, x), only))
        return residual + self(x)

    def _of_rows(self, x: Tensor) -> Tensor:
        if self._norm is not None:
            x = F.rms_norm(x, self._norm.shape, self._norm, self._eps)
        z = _product(x, self.first)
        if self._dense:
            return z
        parts = zip(self.maps, z.split(self._latents, -1), strict=True)
        outputs = [p if m.up is None else _product(self._latent(p, m), m.up) for m, p in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)

    def _of_vector(self, x: Tensor) -> Tensor:
        z = self.first.new_empty(self.first.shape[0])
        if self._norm is None:
            torch.mv(self.first, x, out=z)
        else:
            wide = x if x.dtype == torch.float64 else x.float()
            scale = (wide.dot(wide).item() / x.numel() + self._eps) ** -0.5
            z.addmv_(self.first, x * self._norm, beta=0, alpha=scale)
        if self._dense:
            return z
        y = self.first.new_empty(sum(self._outputs))
        for m, part, out in zip(self.maps, z.split(self._latents), y.split(self._outputs), strict=True):
            if m.up is None:
                out.copy_(part)
            else:
                torch.mv(m.up, self._latent(part, m), out=out)
        return y

    @staticmethod
    def _latent(z: Tensor, m: FrozenMap) -> Tensor:
        return F.silu(z) if m.silu else z


def packs(weight: Tensor) -> bool:
    """Whether packed products exist for this matrix: operators that torch.compile uses on CPUs."""
    ops = torch.ops.mkldnn
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
        and bool(ops._is_mkldnn_bf16_supported())
    )


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, packed or not."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Why maps are used as they are; one row of what `--explain` shows."""

    maps: str
    layers: int
    stored_elements: int
    merged_elements: int
    stored_us: float | None
    """Microseconds a call; None: not measured."""
    merged_us: float | None
    used: str
    """stored or merged."""


def choose_forms(
    groups: Sequence[MapGroup], maps: str, forms: Forms, rows: int
) -> tuple[list[MapGroup], list[Choice]]:
    """The groups of all layers in the form that `forms` asks for, alike where they do the same work."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for i, group in enumerate(groups):
        kinds.setdefault(group.signature, []).append(i)
    chosen, choices = list(groups), []
    for members in kinds.values():
        same = [groups[i] for i in members]
        choice = _choice(same, maps, forms, rows)
        choices.append(choice)
        if choice.used == "merged":
            for i in members:
                chosen[i] = groups[i].merged()
    return chosen, choices


def _choice(groups: Sequence[MapGroup], maps: str, forms: Forms, rows: int) -> Choice:
    first = groups[0]
    mergeable = any(m.mergeable for m in first.maps)
    after = sum(m.outputs * m.first.shape[1] if m.mergeable else m.elements for m in first.maps)
    stored_us = merged_us = None
    if forms == "measured" and mergeable:
        sample = groups[:_MEASURED_LAYERS]
        stored = [g.for_rows(rows) for g in sample]
        stored_us, merged_us = _microseconds(stored, [g.merged().for_rows(rows) for g in sample], rows)
        merge = merged_us < _GAIN * stored_us
    else:
        merge = mergeable and (forms == "merged" or (forms == "auto" and after <= first.elements))
    return Choice(
        maps=maps,
        layers=len(groups),
        stored_elements=first.elements,
        merged_elements=after,
        stored_us=stored_us,
        merged_us=merged_us,
        used="merged" if merge else "stored",
    )


@torch.no_grad()
def _microseconds(
    stored: Sequence[MapGroup], merged: Sequence[MapGroup], rows: int, rounds: int = 7
) -> tuple[float, float]:
    """Median time of a call in both forms, measured in turn so that a slow moment hits both."""
    weight = stored[0].first
    x = torch.randn(rows, weight.shape[1], device=weight.device).to(weight.dtype)
    if rows == 1 and stored[0].takes_vectors:
        x = x[0]
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds + 1):
        for which, groups in enumerate((stored, merged)):
            times[which].append(_seconds(groups, x))
    micro = [1e6 * statistics.median(times[which][1:]) / len(stored) for which in (0, 1)]
    return micro[0], micro[1]


def _seconds(groups: Sequence[MapGroup], x: Tensor) -> float:
    _drain(x.device)
    started = time.perf_counter()
    for group in groups:
        group(x)
    _drain(x.device)
    return time.perf_counter() - started


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
