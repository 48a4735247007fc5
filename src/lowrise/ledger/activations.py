"""Bytes of activations and of workspace in one forward and backward pass of a Llama, from shapes alone.

Counted are the storages that eager autograd keeps, each once. With d the width, k that of keys and values, f
the MLP's, H heads; w bytes of a wide element, e of an element in products (2 under autocast, else w), a block
keeps for each token

    norms       2 (d + 1) w             the stream before each and its scale
    inputs      2 d w                   outputs of the norms; under autocast a narrow copy for each reader
    attention   (2 d + 2 k) e + 4 H     rotated q and k, v, the output, logsumexp
    MLP         3 f e                   gate, up, product
    maps        saved_elements e        `LedgerEntry` of each

and under autocast narrow copies of the weights and of the rotary angles. With recompute "block" only the
stream (d w), with "latents" the stream twice and the latents stay (`Block.forward_from_latents`). A compiled
block keeps less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lowrise.layers.base import LatentLayer, LedgerEntry
from lowrise.ledger.flops import linear_entry
from lowrise.model.llama import MAPS, Llama
from lowrise.model.loss import chunk_tokens, softmax_rows

_READERS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
_NARROW = 2  # bytes of bfloat16 and float16


@dataclass(frozen=True, kw_only=True)
class ActivationPlan:
    """Bytes of one pass over a micro-batch."""

    blocks: tuple[int, ...]
    """What each block keeps from its forward pass, narrow copies of its weights included."""
    outside: int
    """Kept outside the blocks: tokens, angles, the last norm, the gradient that the loss forms of it."""
    head_gradient: int
    """Gradient of the head's weight, which the loss forms in its forward pass."""
    recomputed: tuple[int, ...]
    """What is formed again at one time in each block's backward pass; zeros without recomputation."""
    backward: int
    """Gradients of activations at one time in the backward pass of a block's MLP, and of the stream."""
    cast: int
    """Narrow copies of weights that autocast holds to the end of the forward pass and no block keeps."""
    logits: int
    """Most that the loss holds at one time for a chunk of logits."""

    @property
    def kept(self) -> int:
        """All that is kept from the forward to the backward pass."""
        return sum(self.blocks) + self.outside + self.head_gradient


def plan_activations(
    model: Llama,
    seq_len: int,
    *,
    sequences: int = 1,
    autocast: bool = False,
    recompute: str | None = None,
    chunk: int | None = None,
    on_cpu: bool = False,
) -> ActivationPlan:
    """Plan of a pass over `sequences` of `seq_len` tokens; `recompute` None: the model's own; `chunk` as in
    `lowrise.model.loss.chunk_tokens`. On a CPU the softmax takes a part of a chunk at a time.
    """
    mode = recompute or model.config.recompute
    config, tokens = model.config, seq_len * sequences
    width, wide = config.hidden_size, model.lm_head.weight.element_size()
    own_angles = autocast and mode == "none"
    angles = 0 if own_angles else 4 * seq_len * config.head_dim
    parts = [_Parts.of(model, block, seq_len, sequences, autocast) for block in model.model.layers]
    head = model.lm_head.weight
    last_norm = tokens * (width * wide + max(4, wide))
    return ActivationPlan(
        blocks=tuple(part.kept(mode) for part in parts),
        outside=8 * tokens + angles + last_norm + tokens * width * wide,
        head_gradient=head.numel() * max(4, wide) if head.requires_grad else 0,
        recomputed=tuple(part.recomputed(mode) for part in parts),
        backward=tokens * (2 * config.intermediate_size * (_NARROW if autocast else wide) + width * wide),
        cast=sum(part.cast - part.cast_kept(mode) for part in parts),
        logits=_logits(
            chunk_tokens(tokens, chunk),
            head.shape[0],
            width,
            _NARROW if autocast else wide,
            max(4, wide),
            on_cpu,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """Bytes of one block by part."""

    stream: int
    norms: int
    """Without the two streams."""
    inputs: tuple[int, ...]
    attention: int
    mlp: int
    maps: int
    latents: int
    cast: int
    cast_decoders: int
    """Of `cast`, what o_proj and down_proj apply outside the regions of recompute "latents"."""
    angles: int

    @classmethod
    def of(cls, model: Llama, block: nn.Module, seq_len: int, sequences: int, autocast: bool) -> _Parts:
        config, tokens = model.config, seq_len * sequences
        d, wide = config.hidden_size, model.lm_head.weight.element_size()
        e = _NARROW if autocast else wide
        kv, f = config.kv_heads * config.head_dim, config.intermediate_size
        entries = {name: linear_entry(block.get_submodule(name)) for name in MAPS}
        return cls(
            stream=tokens * d * wide,
            norms=2 * tokens * max(4, wide),
            inputs=tuple(
                tokens * d * (e * sum(_reads(entries[name]) for name in names) if autocast else wide)
                for names in _READERS
            ),
            attention=tokens * ((2 * d + 2 * kv) * e + config.num_heads * 4),
            mlp=tokens * 3 * f * e,
            maps=tokens * e * sum(entry.saved_elements for entry in entries.values() if entry),
            latents=tokens * e * sum(_rank(block, name) for name in MAPS),
            cast=e * sum(_elements(block, MAPS)) if autocast else 0,
            cast_decoders=e * _decoders(block) if autocast else 0,
            angles=2 * seq_len * config.head_dim * e if autocast else 0,
        )

    @property
    def whole(self) -> int:
        """All that is kept without recomputation."""
        activations = 2 * self.stream + self.norms + sum(self.inputs) + self.attention + self.mlp + self.maps
        return activations + self.cast + self.angles

    def cast_kept(self, mode: str) -> int:
        return {"none": self.cast, "block": 0, "latents": self.cast_decoders}[mode]

    def kept(self, mode: str) -> int:
        if mode == "none":
            return self.whole
        if mode == "block":
            return self.stream
        return 2 * self.stream + self.latents + self.cast_decoders

    def recomputed(self, mode: str) -> int:
        """The block, or with "latents" the larger one of attention and MLP."""
        if mode == "none":
            return 0
        if mode == "block":
            return self.whole - self.stream
        return max(self.attention, self.mlp) + self.cast // 2


def _reads(entry: LedgerEntry | None) -> int:
    """Products that keep the map's input for themselves."""
    return 2 if entry is not None and entry.guide_flops else 1


def _rank(block: nn.Module, name: str) -> int:
    return int(getattr(block.get_submodule(name), "rank", 0))


def _elements(block: nn.Module, names: Sequence[str]) -> list[int]:
    return [sum(p.numel() for p in block.get_submodule(name).parameters()) for name in names]


def _decoders(block: nn.Module) -> int:
    """Elements of A of o_proj and down_proj."""
    modules = (block.get_submodule(name) for name in ("self_attn.o_proj", "mlp.down_proj"))
    return sum(m.role_parameters()[0].numel() for m in modules if isinstance(m, LatentLayer))


def _logits(rows: int, vocabulary: int, width: int, e: int, wide: int, on_cpu: bool) -> int:
    """A chunk of `rows` logits (step 1 of `model.loss`) beside the larger one of its softmax (step 2) and,
    where products are narrow, the product for the head's gradient (step 3); with the narrow copy of the head.
    """
    at_once = softmax_rows(rows, vocabulary, on_cpu=on_cpu)
    softmax = at_once * vocabulary * (2 * wide if e < wide else wide)
    narrow = vocabulary * width * e if e < wide else 0
    return rows * vocabulary * e + max(softmax, narrow) + narrow
