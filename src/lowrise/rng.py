"""Normal numbers as a function of a key and a place: nothing to store, the same on every device.

Number j of key k comes from the 64-bit word h = mix(k + (j // 2 + 1) * 0x9E3779B97F4A7C15), where mix is the
finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; Stafford's variant 13): its two halves give two
uniforms of 24 bits, and Box and Muller's transform two normals, the first for even j, the second for odd j.

Integer arithmetic is exact, so words agree everywhere; logarithm, root and cosine are evaluated in float32
and may differ in the last places between devices. |x| <= 5.8, as a uniform is at least 2^-24.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def key_of(*parts: int | str) -> int:
    """A 64-bit key (as a signed integer) of names and numbers: the same in every process."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def name_seed(seed: int, name: str) -> int:
    """A 63-bit seed that is a pure function of (seed, name), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def counter_normal(
    keys: Sequence[int], shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(len(keys), *shape) of independent N(0, 1), made in float32 whatever `dtype` is."""
    (normals,) = counter_normals([(keys, shape)], device=device, dtype=dtype)
    return normals


def counter_normals(
    blocks: Sequence[tuple[Sequence[int], tuple[int, ...]]], *, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """`counter_normal` for several (keys, shape) at once, the same numbers."""
    keys = torch.tensor([key for own, _ in blocks for key in own], dtype=torch.int64)
    keys = keys.to(device, non_blocking=True).unsqueeze(-1)
    halves = [(math.prod(shape) + 1) // 2 for _, shape in blocks]
    places = torch.arange(1, max(halves) + 1, device=device, dtype=torch.int64) * _signed(_GOLDEN)
    sums = [
        (places[:half] + own).flatten()
        for half, own in zip(halves, keys.split([len(own) for own, _ in blocks]), strict=True)
    ]
    words = mix_(sums[0] if len(sums) == 1 else torch.cat(sums))
    radius = _uniform(words >> 40).log_().mul_(-2.0).sqrt_()
    angle = _uniform(words >> 8).mul_(2.0 * math.pi)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).to(dtype)
    sizes = [len(own) * half for (own, _), half in zip(blocks, halves, strict=True)]
    return [
        part.reshape(len(own), -1)[:, : math.prod(shape)].reshape(len(own), *shape)
        for (own, shape), part in zip(blocks, pairs.split(sizes), strict=True)
    ]


def mix_(words: Tensor) -> Tensor:
    """The finalizer, in place on int64; products wrap around, as int64 does on every device."""
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1])):
        words = words.bitwise_xor_(_shifted(words, shift)).mul_(_signed(factor))
    return words.bitwise_xor_(_shifted(words, 31))


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def _shifted(words: Tensor, shift: int) -> Tensor:
    """Right shift that brings in zeros; torch's brings in the sign."""
    return (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)


def _uniform(words: Tensor) -> Tensor:
    """(0, 1] from the 24 lowest bits, exact in float32."""
    return words.bitwise_and_((1 << 24) - 1).add_(1).float().mul_(2.0**-24)
