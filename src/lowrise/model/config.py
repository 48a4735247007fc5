"""The shape of a Llama model, and the sizes that the papers use.

| preset | hidden / mlp / layers / heads | source |
|---|---|---|
| 60m, 130m, 350m, 1b, 7b | see `PRESETS` | configs of GaLore (Zhao et al. 2024), used unchanged by LORO,
CoLA, SLTrain, APOLLO |
| 3b | 2560 / 6848 / 32 / 32 | GaLore's `llama_3b.json` |
| nano, tiny, mini | small | ours, for CPUs; MLP about 8/3 of the width, rounded up to a multiple of 16 |
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from lowrise.errors import UsageError, did_you_mean

RECOMPUTE = ("none", "block", "latents")
MLP_ACTIVATIONS = ("silu", "none")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a Llama decoder, checked when it is made. `preset(name, **overrides)` gives the published
    sizes.
    """

    vocab_size: int
    """Number of token ids."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width of the MLP between gate/up and down."""
    num_layers: int
    """Number of blocks."""
    num_heads: int
    """Number of query heads; head_dim = hidden_size / num_heads."""
    num_kv_heads: int | None = None
    """Number of key and value heads (grouped-query attention); None: as many as query heads."""
    max_seq_len: int = 1024
    """Longest sequence, in tokens, that `model(tokens)` and a KV cache accept. Rotary positions need no
    weights.
    """
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = False
    """Whether the output head shares the embedding's weight."""
    init_std: float = 0.02
    """Standard deviation of fresh linear and embedding weights."""
    recompute: str = "none"
    """Activation checkpointing: "none"; "block" keeps each block's input and recomputes the rest; "latents"
    keeps the residual stream and the r-wide latents of factorized maps (CoLA-M)."""
    mlp_activation: str = "silu"
    """Activation of the MLP's gate: "silu" (SwiGLU), or "none" where activations in the low-rank maps replace
    it (CoLA's `only_lr_act`)."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "max_seq_len",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"model.{name} must be an integer of at least 1, not {value!r}.")
        for name in ("rope_theta", "norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise UsageError(f"model.{name} must be positive, not {getattr(self, name)!r}.")
        if self.hidden_size % self.num_heads:
            raise UsageError(
                f"model.hidden_size {self.hidden_size} is not a multiple of "
                f"model.num_heads {self.num_heads}; every head needs the same width."
            )
        if self.head_dim % 2:
            raise UsageError(
                f"model.hidden_size / model.num_heads is {self.head_dim}; "
                f"rotary positions need an even head width."
            )
        if self.num_kv_heads is not None and (self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
            raise UsageError(
                f"model.num_kv_heads {self.num_kv_heads} does not divide model.num_heads {self.num_heads}; "
                f"every key head must serve the same number of query heads."
            )
        for name, choices in (("recompute", RECOMPUTE), ("mlp_activation", MLP_ACTIVATIONS)):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"model.{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}."
                )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, resolved."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A size of `PRESETS` with some fields changed. Raises `UsageError` naming the nearest preset or
        field.
        """
        if name not in PRESETS:
            raise UsageError(f"There is no model preset {name!r}; {did_you_mean(name, PRESETS)}")
        fields = [field.name for field in dataclasses.fields(cls)]
        for key in overrides:
            if key not in fields:
                raise UsageError(f"The model has no setting {key!r}; {did_you_mean(key, fields)}")
        return cls(**{**PRESETS[name], **overrides})


def _size(hidden: int, mlp: int, layers: int, heads: int, vocab: int = 32_000) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "vocab_size": vocab,
    }


PRESETS: dict[str, dict[str, Any]] = {
    # GaLore, configs/llama_*.json; vocabulary of the t5-base tokenizer rounded to 32,000
    "60m": _size(512, 1376, 8, 8),
    "130m": _size(768, 2048, 12, 12),
    "350m": _size(1024, 2736, 24, 16),
    "1b": _size(2048, 5461, 24, 32),
    "3b": _size(2560, 6848, 32, 32),
    "7b": _size(4096, 11008, 32, 32),
    # ours; the vocabulary is the tokenizer's at run time and 4,096 until then
    "nano": _size(64, 176, 2, 2, vocab=4096),
    "tiny": _size(128, 352, 4, 4, vocab=4096),
    "mini": _size(256, 688, 4, 4, vocab=4096),
}
"""Name -> fields of `LlamaConfig`; everything else is the default."""
