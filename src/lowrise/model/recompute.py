"""CoLA-M's recomputation: of each block only the residual stream and the r-wide latents are kept (Liu et al.
2025, arXiv 2502.10940, section on CoLA-M; authors' checkpointed decoder layer).

A block whose seven maps pass through latents (`LatentLayer`: y = decode(encode(x))) is cut where it is
narrow. For x (tokens x d), with [..] a checkpointed region of which only the inputs are kept:

1. [ n = RMSNorm(x); q, k, v latents = encode(n) ]                 keeps x: d
2. [ decode q, k, v; rotary positions; attention; encode for o ]   keeps 3 latents: 3 r
3. h = x + decode(o latent)                                        keeps the latent: r
4. [ n = RMSNorm(h); gate, up latents = encode(n) ]                keeps h: d
5. [ decode gate, up; product; encode for down ]                   keeps 2 latents: 2 r
6. y = h + decode(down latent)                                     keeps the latent: r

In all 2 d + 7 r elements a token and block; nothing of the attention or the MLP's width. Steps 3 and 6 need
no region, as a linear map keeps its input alone; the authors recompute these two, and cut the modules at the
same places, so that `down` of one block lives in the next. Here the module tree is the same with and without
recomputation, and so are loss and gradients, to the last bit: the graph of operations is one and the same.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lowrise.errors import UsageError
from lowrise.layers.base import LatentLayer

if TYPE_CHECKING:
    from lowrise.model.llama import Block, Llama

# No region draws random numbers, so the generators need not be saved and put back.
_region: Any = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)

MAPS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def block_from_latents(block: Block, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The block's output (B, L, d) for x (B, L, d), by the steps above; all seven maps are `LatentLayer`s."""
    attention: Any = block.self_attn
    mlp: Any = block.mlp

    def into_attention(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = block.input_layernorm(x)
        return attention.q_proj.encode(n), attention.k_proj.encode(n), attention.v_proj.encode(n)

    def through_attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = attention.q_proj.decode(q), attention.k_proj.decode(k), attention.v_proj.decode(v)
        return attention.o_proj.encode(attention.attend(q, k, v, cos, sin))

    def into_mlp(h: Tensor) -> tuple[Tensor, Tensor]:
        n = block.post_attention_layernorm(h)
        return mlp.gate_proj.encode(n), mlp.up_proj.encode(n)

    def through_mlp(gate: Tensor, up: Tensor) -> Tensor:
        return mlp.down_proj.encode(mlp.combine(mlp.gate_proj.decode(gate), mlp.up_proj.decode(up)))

    q, k, v = _region(into_attention, x)
    h = x + attention.o_proj.decode(_region(through_attention, q, k, v, cos, sin))
    gate, up = _region(into_mlp, h)
    return h + mlp.down_proj.decode(_region(through_mlp, gate, up))


def latent_layers(model: Llama) -> list[str]:
    """Names of the maps of all blocks; `UsageError` unless every one has a latent."""
    names = [f"model.layers.{i}.{name}" for i in range(len(model.model.layers)) for name in MAPS]
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, LatentLayer):
            raise UsageError(
                f'model.recompute = "latents" keeps the latents of low-rank maps, and {name} '
                f"({type(module).__name__}) has none: factorize every map of the blocks with the layer "
                'lowrank or cola, or choose "block".'
            )
    return names
