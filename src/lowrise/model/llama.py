"""The Llama decoder (Touvron et al. 2023, arXiv 2302.13971), with the parameter names of Hugging Face's
`LlamaForCausalLM`.

One block, for x of shape (B, L, d):

1. h = x + o_proj(attention(rope(q), rope(k), v)), q, k, v = {q,k,v}_proj(RMSNorm(x)), causal, head_dim^-1/2
   scaling
2. y = h + down_proj(silu(gate_proj(n)) * up_proj(n)), n = RMSNorm(h);
   without silu if `mlp_activation` is "none"

The model: embed_tokens, blocks, RMSNorm, lm_head. No biases, no dropout, no buffers: the state dict is the
weights, and rotary angles are computed from positions. State dicts of this class and of `LlamaForCausalLM`
are interchangeable. Layers are ordinary `nn.Linear`, so `factorize` works on this model as on any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowrise.errors import UsageError
from lowrise.layers.base import LatentLayer
from lowrise.model.cache import KVCache
from lowrise.model.config import LlamaConfig
from lowrise.model.init import init_weights
from lowrise.model.loss import head_loss
from lowrise.model.norm import RMSNorm
from lowrise.model.swiglu import swiglu

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


def rope_angles(
    start: int, length: int, head_dim: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin (each length x head_dim/2, float32) of position * theta^(-2i/head_dim), positions from
    `start`.
    """
    wavelengths = theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / wavelengths)
    return angles.cos(), angles.sin()


def packed_positions(samples: Tensor) -> Tensor:
    """The place of each token within its own sample, from 0: int64 (B, L) for the numbers of the samples
    that tokens belong to, (B, L), equal neighbours being of one sample.
    """
    places = torch.arange(samples.shape[1], device=samples.device).expand_as(samples)
    begins = torch.ones_like(samples, dtype=torch.bool)
    begins[:, 1:] = samples[:, 1:] != samples[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def packed_mask(samples: Tensor) -> Tensor:
    """Which tokens see which, bool (B, 1, L, L): those before them in their own sample, and themselves."""
    length = samples.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=samples.device).tril()
    return (causal & (samples[:, :, None] == samples[:, None, :])).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the half-split convention: entries i and i + head_dim/2 form a pair. x: (B, L,
    heads, head_dim); cos and sin: (L, 1, head_dim/2) or (B, L, 1, head_dim/2).
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(self.attend(q, k, v, cos, sin, cache, mask))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Weighted values (B, L, hidden_size) of queries, keys and values as the projections give them.
        Without a `mask` (bool, see `packed_mask`) attention is causal; with one there is no cache.
        """
        B, L, _ = q.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(B, L, y.shape[-1] // self.head_dim, self.head_dim)

        # Heads after positions in memory, as the projections give them: so is then the output, and uncopied.
        q, k, v = rotate(heads(q), cos, sin), rotate(heads(k), cos, sin), heads(v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, L, head_dim)
        past = 0 if cache is None else cache.length
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        # With a past, query i sees keys up to past + i; SDPA's own causal mask would align the two sequences
        # at their starts.
        causal = past == 0 and mask is None
        if past and L > 1:
            mask = torch.ones(L, past + L, dtype=torch.bool, device=q.device).tril(past)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
        )
        return y.transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """SwiGLU, down(silu(gate(x)) * up(x)), or without the silu."""

    def __init__(self, width: int, inner_width: int, activation: str = "silu") -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(width, inner_width, bias=False)
        self.up_proj = nn.Linear(width, inner_width, bias=False)
        self.down_proj = nn.Linear(inner_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.combine(self.gate_proj(x), self.up_proj(x)))

    def combine(self, gate: Tensor, up: Tensor) -> Tensor:
        """The input of down_proj."""
        return swiglu(gate, up) if self.activation == "silu" else gate * up


class Block(nn.Module):
    """One decoder layer: attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.mlp_activation)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        recompute_from_latents: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        if recompute_from_latents:
            return self.forward_from_latents(x, cos, sin, mask)
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, mask)
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward_from_latents(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """The block's output (B, L, d) for x (B, L, d); only the residual stream and the r-wide latents are
        kept for the backward pass (CoLA-M: Liu et al. 2025, arXiv 2502.10940; authors' checkpointed layer).

        All seven maps are `LatentLayer`s (y = decode(encode(x))). With [..] a checkpointed region of which
        only the inputs are kept:

        1. [ n = RMSNorm(x); q, k, v latents = encode(n) ]                 keeps x: d
        2. [ decode q, k, v; rotary positions; attention; encode for o ]   keeps 3 latents: 3 r
        3. h = x + decode(o latent)                                        keeps the latent: r
        4. [ n = RMSNorm(h); gate, up latents = encode(n) ]                keeps h: d
        5. [ decode gate, up; product; encode for down ]                   keeps 2 latents: 2 r
        6. y = h + decode(down latent)                                     keeps the latent: r

        In all 2 d + 7 r elements per token; nothing of the attention or the MLP's width. Steps 3 and 6 need
        no region, as a linear map keeps its input alone; the authors recompute these two, and cut the modules
        at the same places, so that `down` of one block lives in the next. Here the module tree is the same
        with and without recomputation, and so are loss and gradients, to the last bit.
        """
        attention: Any = self.self_attn
        mlp: Any = self.mlp

        def into_attention(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            n = self.input_layernorm(x)
            return attention.q_proj.encode(n), attention.k_proj.encode(n), attention.v_proj.encode(n)

        def through_attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            q, k, v = attention.q_proj.decode(q), attention.k_proj.decode(k), attention.v_proj.decode(v)
            return attention.o_proj.encode(attention.attend(q, k, v, cos, sin, mask=mask))

        def into_mlp(h: Tensor) -> tuple[Tensor, Tensor]:
            n = self.post_attention_layernorm(h)
            return mlp.gate_proj.encode(n), mlp.up_proj.encode(n)

        def through_mlp(gate: Tensor, up: Tensor) -> Tensor:
            return mlp.down_proj.encode(mlp.combine(mlp.gate_proj.decode(gate), mlp.up_proj.decode(up)))

        q, k, v = _region(into_attention, x)
        h = x + attention.o_proj.decode(_region(through_attention, q, k, v, cos, sin))
        gate, up = _region(into_mlp, h)
        return h + mlp.down_proj.decode(_region(through_mlp, gate, up))


class Decoder(nn.Module):
    """Embedding, blocks and final norm. Exists as a module of its own for the parameter names
    (`model.layers.0...`).
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class Llama(nn.Module):
    """A Llama language model.

    `model(tokens)` gives logits; `model(tokens, targets)` the loss without ever holding all logits. Blocks
    are in `model.model.layers`, the unit of compilation, checkpointing and sharding. Built on the meta device
    it has no values: call `to_empty` and `init_weights`, or let `build_model` do it.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.init_scales: dict[str, float] = {}  # linear maps whose first weights are not of std init_std
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        self.register_load_state_dict_pre_hook(_head_of_tied)
        if not self.lm_head.weight.is_meta:
            self.init_weights()

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        reduction: str = "mean",
        chunk: int | None = None,
        samples: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, L, vocab) of `tokens` (B, L) int64, or, with `targets` (B, L), the loss as a scalar.

        Negative targets are ignored; `reduction` ("mean" over the others, or "sum") and `chunk` (tokens whose
        logits exist at one time; None: chosen) are those of `lowrise.model.loss.head_loss`. With a `cache`,
        `tokens` continue the sequences in it. With `samples` (B, L) each row holds several texts, and
        equal neighbours are of one: attention stays within it, and its positions begin at 0.
        """
        hidden = self.hidden(tokens, cache=cache, samples=samples)
        if targets is None:
            return self.lm_head(hidden)
        return head_loss(hidden, self.lm_head.weight, targets, reduction=reduction, chunk=chunk)

    def hidden(
        self, tokens: Tensor, *, cache: KVCache | None = None, samples: Tensor | None = None
    ) -> Tensor:
        """The final, normalized residual stream (B, L, hidden_size): what the head is applied to."""
        assert cache is None or samples is None, "packed texts are not continued"
        length = tokens.shape[1]
        past = 0
        if cache is not None:
            cache.check_room(length)
            past = cache.length
        if past + length > self.config.max_seq_len:
            raise UsageError(
                f"A sequence of {past + length} tokens is longer than "
                f"model.max_seq_len {self.config.max_seq_len}; "
                f"shorten it or raise the setting."
            )
        x = self.model.embed_tokens(tokens)
        cos, sin = rope_angles(past, length, self.config.head_dim, self.config.rope_theta, tokens.device)
        mask = None
        if samples is not None:
            places = packed_positions(samples)
            cos, sin = cos[places], sin[places]  # (B, L, head_dim/2)
            mask = packed_mask(samples)
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # alike for all heads
        recompute = self.config.recompute if torch.is_grad_enabled() and cache is None else "none"
        if recompute == "latents":
            self.latent_layers()
        for block in self.model.layers:
            if recompute == "block":
                x = cast(Tensor, checkpoint(block, x, cos, sin, mask=mask, use_reentrant=False))
            else:
                x = block(x, cos, sin, cache, recompute == "latents", mask)
        if cache is not None:
            cache.length += length
        return self.model.norm(x)

    def new_cache(self, max_tokens: int | None = None) -> KVCache:
        """An empty KV cache for `max_tokens` (None: `max_seq_len`) tokens per sequence."""
        return KVCache(self.config.num_layers, max_tokens or self.config.max_seq_len)

    def init_weights(self, seed: int | None = None) -> None:
        """Draw all weights anew (see `lowrise.model.init`); without a seed, one is drawn from torch's global
        generator.
        """
        init_weights(self, seed, std=self.config.init_std, scales=self.init_scales)

    def latent_layers(self) -> list[str]:
        """Names of the maps of all blocks; `UsageError` unless every one has a latent."""
        names = [f"model.layers.{i}.{name}" for i in range(len(self.model.layers)) for name in MAPS]
        for name in names:
            module = self.get_submodule(name)
            if not isinstance(module, LatentLayer):
                raise UsageError(
                    f'model.recompute = "latents" keeps the latents of low-rank maps, and {name} '
                    f"({type(module).__name__}) has none: factorize every map of the blocks with the layer "
                    'lowrank or cola, or choose "block".'
                )
        return names

    def tie_weights(self) -> None:
        """Let the head share the embedding's weight, if the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding; the name is Hugging Face's."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head, named as in Hugging Face; `factorize` and `param_groups` ask for it."""
        return self.lm_head

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # torch moves module by module, and `to_empty` from the meta device thereby makes two tensors out of
        # one tied weight.
        super()._apply(fn, recurse)
        self.tie_weights()
        return self


def _head_of_tied(model: Llama, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Files of tied models hold the shared weight once, under the name of the embedding or the head."""
    if not model.config.tie_embeddings:
        return
    names = (f"{prefix}model.embed_tokens.weight", f"{prefix}lm_head.weight")
    for own, other in (names, names[::-1]):
        if own not in state and other in state:
            state[own] = state[other]
