"""How moments are stored between two steps: float32, bfloat16 or 8 bits. A rule always works in float32; the
base opens the moments of a part of the parameters, calls the rule, and stores them again.

With x a moment in float32 and u uniform in [0, 1), drawn anew for each element and step:

1. "float32": x itself.                                                                 4 bytes per element
2. "bfloat16": one of the two bfloat16 numbers around x, a <= |x| <= b, the one away from zero where
   u < (|x| - a) / (b - a).                                                             2 bytes
3. "8bit": blocks of 256 elements in row-major order, one scale s = max |x| a block, and for x / s one of
   the 256 values of the dynamic map of Dettmers (arXiv 1511.04561, 2110.02861), the upper of its two
   neighbours c <= x / s <= d where u < (x / s - c) / (d - c).                          1 + 4 / 256 bytes
   The last block is filled with zeros. First moments use the signed map, second moments the unsigned one.

Rounding is stochastic, so that the mean of what is stored is x (within the map: -s itself is stored as
-0.993 s). To the nearest, a second moment with decay 0.999 could not fall: a thousandth is less than half the
distance of two neighbours, in bfloat16 and in the map alike. One exception: a second moment above 0 is never
stored as 0 in 8 bits but at least as the map's smallest value, 3.25e-7 s, since m / (sqrt(0) + eps) would
throw the weight away.

u has 16 bits, a pure function of (place of the parameter, name of the moment, step, element): a 64-bit
counter through the finalizer of SplitMix64 (`rng.py`), four lanes a word. No generator is
involved, so a resumed run draws the same on any device.

What is compressed: state tensors named in `MOMENTS` with at least 4096 elements, the rule of bitsandbytes.
Projectors, norms and counters stay as they are. In 8 bits the moment NAME is two state tensors, `NAME_codes`
(uint8, of the moment's shape) and `NAME_scales` (float32, one a block). All zeros mean zero in every format.

torchao has the same codes, scales and map (`OptimState8bit`); its table and its blockwise scaling are used
here on plain tensors. It rounds codes to the nearest and bfloat16 by torch's global generator, leaves tensors
in float32 whose size is no multiple of 256, and keeps a tensor subclass in the state, which safetensors
cannot save.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.optim.engine.units import step_of
from lowrise.rng import key_of, mix_

StateFormat = Literal["float32", "bfloat16", "8bit"]
STATE_FORMATS: tuple[StateFormat, ...] = ("float32", "bfloat16", "8bit")

# State name -> whether its values have a sign. Other names are never compressed.
MOMENTS: dict[str, bool] = {"exp_avg": True, "momentum": True, "exp_avg_sq": False}

LEAST_ELEMENTS = 4096
BLOCK = 256

# Most elements of moments that are open at once (64 MiB in float32; one unit at least), and most that are
# rounded at once: few launches on a GPU, what fits the caches on a CPU. Multiples of BLOCK.
OPEN_ELEMENTS = 1 << 24
ROUND_ELEMENTS_CPU = 1 << 18
ROUND_ELEMENTS = 1 << 22

CODES, SCALES = "_codes", "_scales"

Stored = dict[str, tuple[tuple[int, ...], torch.dtype]]  # state name -> shape and dtype


def format_of(group: Mapping[str, Any]) -> str:
    """The group's format; float32 where a group does not say, as in the state of a torch.optim.AdamW."""
    return str(group.get("state_format", "float32"))


def check_format(group: Mapping[str, Any], *, where: str) -> None:
    """Raise `UsageError` for an unknown format, float64 parameters, and 8 bits without torchao."""
    state_format = format_of(group)
    if state_format not in STATE_FORMATS:
        raise UsageError(
            f"{where} has state_format = {state_format!r}; choose one of {', '.join(STATE_FORMATS)}."
        )
    if state_format == "float32":
        return
    if any(p.dtype == torch.float64 for p in group["params"]):
        raise UsageError(
            f"{where} has state_format = {state_format!r} and float64 parameters, whose moments are float64; "
            'use state_format = "float32" (which keeps them in float64) for these.'
        )
    if state_format == "8bit":
        _torchao()


def stored_layout(layout: Mapping[str, tuple[int, ...]], state_format: str, dtype: torch.dtype) -> Stored:
    """What is stored for one parameter: `layout` (names and shapes of its state) in the format, the rest in
    `dtype`.
    """
    stored: Stored = {}
    for name, shape in layout.items():
        elements = math.prod(shape)
        if state_format == "float32" or name not in MOMENTS or elements < LEAST_ELEMENTS:
            stored[name] = (shape, dtype)
        elif state_format == "bfloat16":
            stored[name] = (shape, torch.bfloat16)
        else:
            stored[name + CODES] = (shape, torch.uint8)
            stored[name + SCALES] = ((math.ceil(elements / BLOCK),), torch.float32)
    return stored


# ---- opening and storing


class Moment(NamedTuple):
    """One compressed moment: whose it is, its name, what stores it, its place in a buffer of its kind."""

    owner: int
    name: str
    values: Tensor
    scales: Tensor | None
    start: int

    @property
    def size(self) -> int:
        return self.values.numel()

    @property
    def end(self) -> int:
        """Of its last, possibly incomplete, block."""
        return self.start + math.ceil(self.size / BLOCK) * BLOCK


@dataclass(frozen=True)
class Buffer:
    """Moments of one device and sign in float32, one after the other, each from a multiple of BLOCK on."""

    signed: bool
    moments: list[Moment]
    values: Tensor

    def parts(self, of: Tensor) -> list[Tensor]:
        """`of`, as long as the buffer, cut into the moments in their shapes."""
        return [of[m.start : m.start + m.size].view(m.values.shape) for m in self.moments]


def compressed_elements(states: Iterable[Mapping[str, Tensor]]) -> int:
    """Elements of moments that have to be opened for these states."""
    return sum(m.size for owner, state in enumerate(states) for m in _compressed(owner, state))


@contextmanager
def opened(states: Sequence[dict[str, Tensor]], places: Sequence[str]) -> Iterator[list[dict[str, Tensor]]]:
    """The states with every moment in float32, under its own name; at the end what was written in place is
    stored.

    `places` name the parameters, each its own; the draws of the rounding depend on them and on each `step`.
    Where nothing is compressed these are the states themselves. After an exception nothing is stored.
    """
    buffers = _load(states)
    yield _with_moments(states, buffers)
    for buffer in buffers:
        keys = [draw_key(places[m.owner], m.name, step_of(states[m.owner])) for m in buffer.moments]
        _store(buffer, keys)


def uncompressed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state that no format concerns."""
    return {
        key: tensor
        for key, tensor in state.items()
        if tensor.dtype != torch.bfloat16 and not key.endswith((CODES, SCALES))
    }


def loaded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One state with every moment in float32, to be read."""
    return _with_moments([state], _load([state]))[0]


def _with_moments(states: Sequence[dict[str, Tensor]], buffers: Sequence[Buffer]) -> list[dict[str, Tensor]]:
    """The states, where those with moments in a buffer have these in the place of what stores them."""
    result = list(states)
    for owner in {moment.owner for buffer in buffers for moment in buffer.moments}:
        result[owner] = {k: t for k, t in states[owner].items() if not k.endswith((CODES, SCALES))}
    for buffer in buffers:
        for moment, part in zip(buffer.moments, buffer.parts(buffer.values), strict=True):
            result[moment.owner][moment.name] = part
    return result


def _compressed(owner: int, state: Mapping[str, Tensor]) -> Iterator[Moment]:
    for key, tensor in state.items():
        if key.endswith(CODES):
            name = key.removesuffix(CODES)
            yield Moment(owner, name, tensor, state[name + SCALES], 0)
        elif tensor.dtype == torch.bfloat16:
            yield Moment(owner, key, tensor, None, 0)


def _load(states: Sequence[Mapping[str, Tensor]]) -> list[Buffer]:
    kinds: dict[tuple[bool, torch.device, bool], list[Moment]] = {}
    for owner, state in enumerate(states):
        for moment in _compressed(owner, state):
            kind = (MOMENTS[moment.name], moment.values.device, moment.scales is None)
            before = kinds.setdefault(kind, [])
            before.append(moment._replace(start=before[-1].end if before else 0))
    buffers = []
    for (signed, device, _), moments in kinds.items():
        values = torch.empty(moments[-1].end, dtype=torch.float32, device=device)
        buffer = Buffer(signed, moments, values)
        if moments[0].scales is None:
            torch._foreach_copy_(buffer.parts(values), [m.values for m in moments])
        else:
            _decode(buffer)
        padding = [values[m.start + m.size : m.end] for m in moments if m.end > m.start + m.size]
        if padding:
            torch._foreach_zero_(padding)
        buffers.append(buffer)
    return buffers


def _decode(buffer: Buffer) -> None:
    """Values from codes and scales. What this leaves in the padding is of no use."""
    codes = torch.zeros(buffer.values.shape, dtype=torch.uint8, device=buffer.values.device)
    torch._foreach_copy_(buffer.parts(codes), [m.values for m in buffer.moments])
    scales = torch.cat([m.scales for m in buffer.moments if m.scales is not None])
    table = value_map(buffer.signed, codes.device)
    size = round_elements(codes.device)
    for at in range(0, codes.numel(), size):
        values = buffer.values[at : at + size]
        part = codes[at : at + size]
        block_scales = scales[at // BLOCK : (at + values.numel()) // BLOCK]
        values.copy_(_torchao().dequant_with_qmap(part, table, block_scales))


def _store(buffer: Buffer, keys: Sequence[int]) -> None:
    """Round the buffer into what the moments are stored in."""
    values, moments = buffer.values, buffer.moments
    eight = moments[0].scales is not None
    words = _words(moments, keys, values.device)
    result = torch.empty(values.shape, dtype=torch.uint8 if eight else torch.bfloat16, device=values.device)
    scales = torch.empty(values.numel() // BLOCK, dtype=torch.float32, device=values.device)
    size = round_elements(values.device)
    for at in range(0, values.numel(), size):
        part = slice(at, at + size)
        lanes = lanes_of_(words[at // 4 : (at + size) // 4])
        if eight:
            blocks = slice(at // BLOCK, (at + size) // BLOCK)
            result[part], scales[blocks] = to_8bit(values[part], lanes, signed=buffer.signed)
        else:
            result[part] = to_bfloat16(values[part], lanes)
    torch._foreach_copy_([m.values for m in moments], buffer.parts(result))
    if eight:
        cuts = [scales[m.start // BLOCK : m.end // BLOCK] for m in moments]
        torch._foreach_copy_([m.scales for m in moments if m.scales is not None], cuts)


def _words(moments: Sequence[Moment], keys: Sequence[int], device: torch.device) -> Tensor:
    """The counters of all moments, int64, one for four elements: from its key on for each."""
    lengths = [(moment.end - moment.start) // 4 for moment in moments]
    starts = [key - moment.start // 4 for moment, key in zip(moments, keys, strict=True)]
    sent = torch.tensor([starts, lengths], dtype=torch.int64).to(device, non_blocking=True)
    words = torch.repeat_interleave(sent[0], sent[1], output_size=sum(lengths))
    return words.add_(torch.arange(sum(lengths), dtype=torch.int64, device=device))


def round_elements(device: torch.device) -> int:
    """Elements that are rounded at once; any number gives the same result."""
    return ROUND_ELEMENTS_CPU if device.type == "cpu" else ROUND_ELEMENTS


# ---- draws


def draw_key(place: str, name: str, step: int) -> int:
    """First counter of one moment at one step, in [-2^61, 2^61), so that counting on does not wrap."""
    return key_of("round", place, name, step) >> 2


def lanes_of_(counters: Tensor) -> Tensor:
    """16 uniform bits in int32 for four times as many elements; the int64 `counters` are used up.

    Lanes are taken from the low end on.
    """
    assert sys.byteorder == "little"
    return mix_(counters).view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)


# ---- rounding


def to_bfloat16(values: Tensor, lanes: Tensor) -> Tensor:
    """float32 `values` to bfloat16: away from zero where their 16 lower bits exceed 65535 - lane."""
    bits = values.view(torch.int32) + lanes
    return bits.bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)


def to_8bit(values: Tensor, lanes: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, as long as `values`) and scales (one each BLOCK elements) of flat float32 `values`."""
    table = value_map(signed, values.device)
    scaled, scales = _torchao().scale_tensor(values, BLOCK)
    lower = codes_below(scaled, signed=signed)
    low = table.index_select(0, lower)
    share = scaled.sub(low).div_(table.index_select(0, lower + 1).sub_(low))
    draws = lanes.to(torch.float32).add_(0.5).mul_(2.0**-16)
    codes = lower.add_(draws < share)
    if not signed:
        codes = torch.maximum(codes, values > 0)  # at least 1 above 0
    return codes.to(torch.uint8), scales


def codes_below(scaled: Tensor, *, signed: bool) -> Tensor:
    """The largest code in [0, 254] whose value is at most that of flat `scaled`, or 0; int32.

    What torch.bucketize finds by bisection, at a tenth of its time on a CPU: the upper 16 bits of a number
    leave at most one value of the map open.
    """
    upper = scaled.view(torch.int32).bitwise_right_shift(16).add_(1 << 15)
    codes = _codes_by_upper_bits(signed, scaled.device).index_select(0, upper)
    next_value = value_map(signed, scaled.device).index_select(0, codes + 1)
    return codes.add_(scaled >= next_value).clamp_(max=254)


@cache
def _codes_by_upper_bits(signed: bool, device: torch.device) -> Tensor:
    """For each upper half in [-2^15, 2^15): `codes_below` of the smallest float32 that has it."""
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32)
    smallest = ((halves << 16) | torch.where(halves < 0, 0xFFFF, 0)).to(torch.int32).view(torch.float32)
    found = torch.bucketize(smallest.nan_to_num(), value_map(signed, torch.device("cpu")), right=True)
    return found.sub_(1).clamp_(0, 254).to(torch.int32).to(device)


@cache
def value_map(signed: bool, device: torch.device) -> Tensor:
    """The 256 values of the dynamic map, ascending, in [-0.993, 1] or [0, 1]."""
    return torch.tensor(_torchao().create_dynamic_map(signed), dtype=torch.float32, device=device)


class _Functions(NamedTuple):
    create_dynamic_map: Callable[[bool], list[float]]
    scale_tensor: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    dequant_with_qmap: Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def _torchao() -> _Functions:
    """torchao's functions for plain tensors. Importing it takes seconds, hence only where it is used."""
    try:
        from torchao.optim import quant_utils
    except ImportError:
        raise UsageError(
            'state_format = "8bit" needs torchao 0.11 or newer: pip install "lowrise[lowbit]", '
            'or use state_format = "bfloat16".'
        ) from None
    return _Functions(quant_utils.create_dynamic_map, quant_utils.scale_tensor, quant_utils.dequant_with_qmap)
