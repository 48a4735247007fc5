"""Linear maps with frozen weights, stored for speed: maps of one input share their first product.

For maps 1..k that read the same n numbers (q, k, v; gate, up), factored as W_i = up_i act(down_i .):

1. z = [down_1; ...; down_k] x        (R x n) (n), R the sum of the ranks: one product instead of k
2. y_i = up_i act(z_i)                k products into the slices of one vector

A dense map has its rows of W in the place of `down` and no `up`. The norm before the maps belongs to them.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.inference.options import Forms
from lowrise.layers.base import LowRankLayer
from lowrise.layers.dense import dense_weight
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
        biases = [m.bias for m in self.maps]
        self.bias: Tensor | None = None
        """Of all outputs; None: none."""
        if any(b is not None for b in biases):
            zero = self.first.new_zeros
            self.bias = torch.cat([zero(m.outputs) if m.bias is None else m.bias for m in self.maps])
        self.norm = None if norm is None else norm.weight.detach().to(self.first.dtype)
        self.eps = 0.0 if norm is None else norm.eps

    @property
    def inputs(self) -> int:
        return self.maps[0].first.shape[1]

    @property
    def latents(self) -> int:
        """Rows of the first product."""
        return sum(self._latents)

    @property
    def outputs(self) -> int:
        return sum(m.outputs for m in self.maps)

    @property
    def factored(self) -> bool:
        return any(m.up is not None for m in self.maps)

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
        group.norm, group.eps = self.norm, self.eps
        return group

    @property
    def matrices(self) -> list[Tensor]:
        """What a call reads, in this order."""
        return [self.first, *(m.up for m in self.maps if m.up is not None)]

    def moved(self, place: Callable[[Tensor], Tensor]) -> MapGroup:
        """The group with every matrix, in the order of `matrices`, where `place` puts it."""
        group = copy.copy(self)
        group.first = place(self.first)
        parts = zip(self.maps, group.first.split(self._latents), strict=True)
        group.maps = tuple(
            replace(m, first=piece, up=None if m.up is None else place(m.up)) for m, piece in parts
        )
        return group

    def packed(self) -> MapGroup:
        """The group with its matrices packed for oneDNN where this has bfloat16 products (on a CPU). It
        cannot be merged, and its maps' `first` hold no values."""
        if not packs(self.first):
            return self
        group = copy.copy(self)
        shapes = [torch.empty_like(m.first, device="meta") for m in self.maps]  # the values are in `first`
        ups = [None if m.up is None else _packed(m.up) for m in self.maps]
        parts = zip(self.maps, shapes, ups, strict=True)
        group.maps = tuple(replace(m, first=shape, up=up) for m, shape, up in parts)
        group.first = _packed(self.first)
        return group

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs side by side, (..., sum of m_i), for x (..., n)."""
        if self.norm is not None:
            x = F.rms_norm(x, self.norm.shape, self.norm, self.eps)
        z = _product(x, self.first)
        if self.factored:
            parts = zip(self.maps, z.split(self._latents, -1), strict=True)
            outputs = [z if m.up is None else _product(F.silu(z) if m.silu else z, m.up) for m, z in parts]
            z = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return z if self.bias is None else z + self.bias


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


Call = Callable[[Tensor], Tensor]
Ready = Callable[[Sequence[MapGroup]], Sequence[Call]]
"""Groups -> these as decoding will call them."""


class FormChooser:
    """Says in which form each group is used, which it decides when the first group of a kind comes: groups of
    one place in a block (`maps`) that do the same work are of one kind."""

    def __init__(self, forms: Forms, rows: int, ready: Ready) -> None:
        self._forms: Forms = forms
        self._rows = rows
        self._ready = ready
        self._chosen: dict[tuple[object, ...], Choice] = {}

    def __call__(
        self, maps: str, group: MapGroup, following: Callable[[int], Sequence[MapGroup]]
    ) -> MapGroup:
        """The group in its form. `following(n)` gives the groups of this place in up to n blocks from
        this one on; it is asked where times are measured."""
        key = (maps, *group.signature)
        choice = self._chosen.get(key)
        if choice is None:
            measured = self._forms == "measured" and any(m.mergeable for m in group.maps)
            sample = following(_MEASURED_LAYERS) if measured else [group]
            alike = [g for g in sample if g.signature == group.signature]
            choice = _choice(alike, maps, self._forms, self._rows, self._ready)
        self._chosen[key] = choice = replace(choice, layers=choice.layers + 1)
        return group.merged() if choice.used == "merged" else group

    @property
    def choices(self) -> list[Choice]:
        """Of each kind of map, place after place in the order of a block."""
        places = list(dict.fromkeys(choice.maps for choice in self._chosen.values()))
        return sorted(self._chosen.values(), key=lambda choice: places.index(choice.maps))


def _choice(groups: Sequence[MapGroup], maps: str, forms: Forms, rows: int, ready: Ready) -> Choice:
    first = groups[0]
    mergeable = any(m.mergeable for m in first.maps)
    after = sum(m.outputs * m.first.shape[1] if m.mergeable else m.elements for m in first.maps)
    stored_us = merged_us = None
    if forms == "measured" and mergeable:
        x = torch.randn(rows, first.inputs, device=first.first.device).to(first.first.dtype)
        stored_us, merged_us = _microseconds(ready(groups), ready([g.merged() for g in groups]), x)
        merge = merged_us < _GAIN * stored_us
    else:
        merge = mergeable and (forms == "merged" or (forms == "auto" and after <= first.elements))
    return Choice(
        maps=maps,
        layers=0,  # counted as they come
        stored_elements=first.elements,
        merged_elements=after,
        stored_us=stored_us,
        merged_us=merged_us,
        used="merged" if merge else "stored",
    )


@torch.no_grad()
def _microseconds(
    stored: Sequence[Call], merged: Sequence[Call], x: Tensor, rounds: int = 7
) -> tuple[float, float]:
    """Median time of a call in both forms, measured in turn so that a slow moment hits both."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds + 1):
        for which, calls in enumerate((stored, merged)):
            times[which].append(_seconds(calls, x))
    micro = [1e6 * statistics.median(times[which][1:]) / len(stored) for which in (0, 1)]
    return micro[0], micro[1]


def _seconds(calls: Sequence[Call], x: Tensor) -> float:
    _drain(x.device)
    started = time.perf_counter()
    for call in calls:
        call(x)
    _drain(x.device)
    return time.perf_counter() - started


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
