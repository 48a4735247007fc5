"""FLOPs per token of a Llama, by formula.

Conventions, stated because the literature has several:

- a multiply-add is 2 FLOPs; only matrix products count (no norms, softmax, rotary positions, activations,
  biases);
- a linear map costs 2 m n dense and 2 r (m + n) factorized; the head is included, the embedding look-up costs
  nothing;
- attention scores and their product with the values cost 4 L heads head_dim a token and layer at sequence
  length L: the full square, though a causal kernel may skip half;
- training is 3 times the forward pass, less where weights are frozen (`LedgerEntry.training_flops`), plus one
  forward pass of the blocks if they are recomputed (torch may stop that one product early); with
  `recompute="latents"` all of it but A of o_proj and down_proj, whose inputs are kept;
- a guide that takes part in the first half of training counts with half of its FLOPs;
- a weight that is formed in each pass (SLTrain) is shared out over the tokens of the pass, to a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lowrise.errors import UsageError
from lowrise.layers.base import LatentLayer, LedgerEntry, LowRankLayer
from lowrise.layers.dense import dense_weight
from lowrise.model.llama import Llama


@dataclass(frozen=True, kw_only=True)
class FlopsPerToken:
    """Forward FLOPs of one token by part; `forward` and `training` are the sums one usually wants."""

    linear: int
    """All linear maps of the blocks."""
    linear_training: int
    """The same for forward and backward pass."""
    attention: int
    """Scores and weighted values."""
    head: int
    """The output head."""
    recomputed: int
    """Forward FLOPs done a second time during training because of activation checkpointing."""
    guide: int
    """Training FLOPs of guides, the mean over a run; not in `linear`, `forward` and `recomputed`."""

    @property
    def forward(self) -> int:
        """One forward pass (evaluation, prefill)."""
        return self.linear + self.attention + self.head

    @property
    def backward(self) -> int:
        """The backward pass, twice the forward pass where every weight is trained; without what is done a
        second time.
        """
        return self.linear_training - self.linear + 2 * (self.attention + self.head)

    @property
    def training(self) -> int:
        """Forward and backward pass, recomputation and guides included."""
        return self.forward + self.backward + self.recomputed + self.guide


def linear_entry(module: nn.Module) -> LedgerEntry | None:
    """The ledger entry of a linear map, low-rank or dense; None for any other module."""
    if isinstance(module, LowRankLayer):
        return module.ledger()
    weight = dense_weight(module)
    if weight is None:
        return None
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    return LedgerEntry(parameters=parameters, forward_flops=2 * weight.numel(), saved_elements=0)


def flops_per_token(model: Llama, seq_len: int, *, sequences: int = 1) -> FlopsPerToken:
    """FLOPs of a token in a sequence of `seq_len` tokens, from shapes alone (a meta model will do).

    `sequences` is their number in one forward pass.
    """
    if seq_len < 1:
        raise UsageError(f"The sequence length must be at least 1 token, not {seq_len}.")
    config = model.config
    entries = [entry for entry in map(linear_entry, model.model.modules()) if entry is not None]
    tokens = seq_len * sequences
    linear = sum(e.forward_flops for e in entries) + round(sum(e.pass_flops for e in entries) / tokens)
    training = sum(3 * e.forward_flops if e.training_flops is None else e.training_flops for e in entries)
    guide = sum(entry.guide_flops for entry in entries)
    attention = config.num_layers * 4 * seq_len * config.num_heads * config.head_dim
    recomputed = 0 if config.recompute == "none" else linear + attention
    if config.recompute == "latents":
        for name in model.latent_layers():
            if name.endswith(("o_proj", "down_proj")):
                module = model.get_submodule(name)
                assert isinstance(module, LatentLayer)
                A, _ = module.role_parameters()
                recomputed -= 2 * A.numel()
    return FlopsPerToken(
        linear=linear,
        linear_training=training + round(sum(e.pass_training_flops for e in entries) / tokens),
        attention=attention,
        head=2 * model.lm_head.weight.numel(),
        recomputed=recomputed,
        guide=(4 if config.recompute == "block" else 3) * guide // 2,
    )
