"""`FrozenDecoder`: a Llama with frozen weights, arranged for decoding token by token.

What it does otherwise than `Llama.forward(cache=...)`, which stays the plain reference:

1. q, k, v and gate, up share their first product (`lowrise.inference.frozen`).
2. Keys and values lie in one buffer a layer, allocated once for the longest the batch can become.
3. Rotary angles come from a table. The outputs of q and k are reordered when the weights are frozen, so that
   the two entries of a rotary pair lie side by side and a rotation is one complex product; scores, which are
   sums over these entries, stay the same.
4. Prompts of different lengths are padded on the left: all rows write the same column, each counts positions
   from its own first token, and padding is masked.
5. On a CPU with a C++ compiler a step of one sequence is one call (`lowrise.inference.native_step`); other
   bfloat16 products have their matrices packed for oneDNN.

Logits equal the reference's but for rounding. Weights are only read, so several generations may use one
decoder at a time; each has a `DecodeState` of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrise.allocator import give_freed_memory_back
from lowrise.errors import UsageError, did_you_mean
from lowrise.inference.frozen import (
    FORMS,
    Call,
    Choice,
    FormChooser,
    Forms,
    FrozenMap,
    MapGroup,
    frozen_map,
)
from lowrise.inference.native_step import Library, NativeStep, in_reading_order, native_library
from lowrise.model.llama import Block, Llama, rope_angles

PLACES = ("q, k, v", "o", "gate, up", "down")
"""The groups of a block, by their maps."""


@dataclass
class _Layer:
    """The four groups of a block."""

    qkv: MapGroup
    o: MapGroup
    gate_up: MapGroup
    down: MapGroup


class DecodeState:
    """Keys, values and positions of one batch that is being decoded."""

    def __init__(self, decoder: FrozenDecoder, padding: Sequence[int], columns: int) -> None:
        c = decoder.config
        batch = len(padding)
        self._pads = list(padding)
        shape = (c.num_layers, 2, batch, c.kv_heads, columns, c.head_dim)
        buffer = torch.empty(shape, dtype=decoder.dtype, device=decoder.device)
        self.caches: tuple[Tensor, ...] = buffer.unbind(0)
        self.columns = columns
        self.length = 0
        """Columns that hold keys and values."""
        self._native: tuple[ctypes.Array[ctypes.c_void_p], Tensor] | None = None
        self.padding: Tensor | None = None
        if any(padding):
            self.padding = torch.tensor(padding, device=decoder.device)[:, None]  # B x 1

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self.caches = tuple(cache[:, list(rows)] for cache in self.caches)
        self._pads = [self._pads[row] for row in rows]
        self._native = None
        if self.padding is not None:
            self.padding = self.padding[list(rows)]

    def native_step(self, step: NativeStep, token: int) -> Tensor:
        """Logits (1, vocab) of a batch of one sequence after one more token."""
        if self._native is None:
            addresses = (ctypes.c_void_p * len(self.caches))(*(cache.data_ptr() for cache in self.caches))
            self._native = addresses, step.scratch(self.columns)
        addresses, scratch = self._native
        logits = step(addresses, self.columns, self._pads[0], self.length, token, scratch)
        self.length += 1
        return logits

    def rotation(self, table: Tensor, length: int) -> Tensor:
        """Rotations (B or 1, L, 1, head_dim / 2) of the next `length` columns."""
        if self.padding is None:
            return table[None, self.length : self.length + length, None]
        columns = torch.arange(self.length, self.length + length, device=table.device)
        return table[(columns - self.padding).clamp(min=0)][:, :, None]

    def mask(self, length: int) -> Tensor | None:
        """What the next `length` columns may see, (B, 1, L, columns so far); None: SDPA's own rule."""
        if self.padding is None and (length == 1 or self.length == 0):
            return None
        end = self.length + length
        keys = torch.arange(end, device=self.caches[0].device)
        queries = keys[self.length :, None]
        seen = keys <= queries
        if self.padding is None:
            return seen
        # A column of padding sees itself, since a row that sees nothing would be NaN.
        real = keys >= self.padding[:, :, None]  # B x 1 x columns
        return ((seen & real) | (keys == queries))[:, None]


class FrozenDecoder:
    """The weights of `model` in `dtype` (None: the model's), arranged for decoding.

    What need not be copied is shared with the model, which must not be trained meanwhile; the C++ step and
    packed products have a copy of every matrix. `release` takes the weights over instead: as soon as those of
    a block are in place its parameters are given up (they are left on the meta device, without values), so
    that the memory of the weights is never needed twice.

    `rows` is the number of sequences at a time that the arrangement is best for; any number works. `forms`
    says how factored maps are used, and `choices` tells what became of it. `native` allows the step in C++
    where there can be one, and says afterwards whether there is. The model itself is not needed afterwards.
    Raises `UsageError` for a map of an unknown kind.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Llama,
        *,
        dtype: torch.dtype | None = None,
        forms: Forms = "auto",
        rows: int = 1,
        native: bool = True,
        release: bool = False,
    ) -> None:
        if forms not in FORMS:
            raise UsageError(f"forms = {forms!r}: {did_you_mean(str(forms), FORMS)}")
        weight = model.lm_head.weight
        self.config = c = model.config
        self.dtype = dtype or weight.dtype
        self.device = weight.device
        self.embedding = model.model.embed_tokens.weight.detach().to(self.dtype)
        # Angles in float32 as in the reference, whatever the dtype.
        cos, sin = rope_angles(0, c.max_seq_len, c.head_dim, c.rope_theta, self.device)
        self._wide = torch.promote_types(self.dtype, torch.float32)
        self._rotations = torch.complex(cos.to(self._wide), sin.to(self._wide))
        self._library = native_library(self.device, self.dtype) if native and rows == 1 else None
        self.native = self._library is not None
        chooser = FormChooser(forms, rows, self._ready)
        blocks = [cast(Block, block) for block in model.model.layers]
        self.layers: list[_Layer] = []
        for i, block in enumerate(blocks):
            groups = [
                chooser(maps, self._group(place, i, block), partial(self._following, place, i, blocks))
                for place, maps in enumerate(PLACES)
            ]
            self.layers.append(_Layer(*self._arranged(groups)))
            if release:
                del groups  # it may share what is given up
                block.to_empty(device="meta")
                give_freed_memory_back()  # else holes stay into which the next block does not fit
        self.choices: list[Choice] = chooser.choices
        head = MapGroup([frozen_map("lm_head", model.lm_head, self.dtype)], model.model.norm)
        (self.head,) = self._arranged([head])
        del head
        if c.tie_embeddings and self.native:
            self.embedding = self.head.first
        if release:
            model.to_empty(device="meta")
            give_freed_memory_back()
        self._step: NativeStep | None = None
        if self._library is not None:
            self._step = self._native_step(self._library, [*self._groups_in_order(), self.head])

    def _arranged(self, groups: Sequence[MapGroup]) -> list[MapGroup]:
        return in_reading_order(groups) if self.native else [group.packed() for group in groups]

    def _groups_in_order(self) -> list[MapGroup]:
        return [group for x in self.layers for group in (x.qkv, x.o, x.gate_up, x.down)]

    def _native_step(self, library: Library, groups: Sequence[MapGroup]) -> NativeStep:
        return NativeStep(library, self.config, groups, self.embedding, self._rotations)

    def _ready(self, groups: Sequence[MapGroup]) -> Sequence[Call]:
        """Groups as a step of this decoder calls them, to measure their times."""
        if self._library is None:
            return [g.packed() for g in groups]
        step = self._native_step(self._library, groups)
        scratch = step.scratch(0)
        return [partial(self._apply_one, step, i, scratch) for i in range(len(groups))]

    @staticmethod
    def _apply_one(step: NativeStep, group: int, scratch: Tensor, x: Tensor) -> Tensor:
        return step.apply(group, x[0].float(), scratch)

    def _following(self, place: int, first: int, blocks: Sequence[Block], most: int) -> list[MapGroup]:
        """The groups of one place in up to `most` blocks from `first` on."""
        return [self._group(place, i, blocks[i]) for i in range(first, min(first + most, len(blocks)))]

    def _group(self, place: int, layer: int, block: Block) -> MapGroup:
        """The maps of a block at one of `PLACES`."""

        def frozen(part: str, name: str, order: Tensor | None = None) -> FrozenMap:
            module = getattr(getattr(block, part), name)
            return frozen_map(f"model.layers.{layer}.{part}.{name}", module, self.dtype, order)

        c = self.config
        if place == 0:
            q = frozen("self_attn", "q_proj", _pairs_side_by_side(c.num_heads, c.head_dim, self.device))
            k = frozen("self_attn", "k_proj", _pairs_side_by_side(c.kv_heads, c.head_dim, self.device))
            return MapGroup([q, k, frozen("self_attn", "v_proj")], block.input_layernorm)
        if place == 1:
            return MapGroup([frozen("self_attn", "o_proj")])
        if place == 2:
            both = [frozen("mlp", "gate_proj"), frozen("mlp", "up_proj")]
            return MapGroup(both, block.post_attention_layernorm)
        return MapGroup([frozen("mlp", "down_proj")])

    @property
    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that one decoding step of one sequence reads: all maps and the head."""
        return sum(g.elements for g in (*self._groups_in_order(), self.head)) * self.dtype.itemsize

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[DecodeState, Tensor]:
        """Read prompts of any lengths (at least 1); the state, and logits (B, vocab) after each."""
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        state = DecodeState(self, padding, longest + max_new_tokens)
        rows = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        return state, self._advance(state, torch.tensor(rows, device=self.device))

    @torch.no_grad()
    def step(self, state: DecodeState, tokens: Tensor) -> Tensor:
        """Logits (B, vocab) after one more token (B,) of every row."""
        if state.length >= state.columns:
            raise UsageError(
                f"The decoder's state holds {state.columns} tokens and is full: make it with more new tokens."
            )
        if self._step is not None and len(tokens) == 1:
            return state.native_step(self._step, int(tokens))
        return self._advance(state, tokens[:, None])

    def _advance(self, state: DecodeState, tokens: Tensor) -> Tensor:
        B, L = tokens.shape
        c = self.config
        x = self.embedding[tokens]  # B x L x d
        rotation, mask = state.rotation(self._rotations, L), state.mask(L)
        for layer, cache in zip(self.layers, state.caches, strict=True):
            heads = layer.qkv(x).view(B, L, -1, c.head_dim)
            y = self._attend(heads, cache, state.length, rotation, mask)
            x = x + layer.o(y.reshape(B, L, c.hidden_size))
            gate, up = layer.gate_up(x).chunk(2, -1)
            x = x + layer.down((F.silu(gate) if c.mlp_activation == "silu" else gate) * up)
        state.length += L
        return self.head(x[:, -1])

    def _attend(
        self, heads: Tensor, cache: Tensor, start: int, rotation: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Weighted values (B, L, heads, head_dim) of q, k, v side by side (B, L, heads + 2 kv_heads,
        head_dim); keys and values are stored from column `start`."""
        c = self.config
        L = heads.shape[1]
        rotary = c.num_heads + c.kv_heads
        pairs = heads[:, :, :rotary].to(self._wide).unflatten(-1, (-1, 2))
        turned = torch.view_as_real(torch.view_as_complex(pairs) * rotation).flatten(-2).to(self.dtype)
        end = start + L
        cache[0, :, :, start:end] = turned[:, :, c.num_heads :].transpose(1, 2)
        cache[1, :, :, start:end] = heads[:, :, rotary:].transpose(1, 2)
        y = F.scaled_dot_product_attention(
            turned[:, :, : c.num_heads].transpose(1, 2),
            cache[0, :, :, :end],
            cache[1, :, :, :end],
            attn_mask=mask,
            is_causal=mask is None and L > 1,
            enable_gqa=c.num_heads != c.kv_heads,
        )
        return y.transpose(1, 2)


def _pairs_side_by_side(heads: int, head_dim: int, device: torch.device) -> Tensor:
    """The order of outputs in which entries i and i + head_dim / 2 of every head become neighbours."""
    rows = torch.arange(heads * head_dim, device=device).view(heads, 2, head_dim // 2)
    return rows.transpose(1, 2).flatten()
