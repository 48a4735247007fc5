"""A Llama decoder whose linear maps are stored as two factors, for Hugging Face transformers.

This file stands alone: it needs torch and transformers, and lies in every folder that `lowrise export --to hf
--form factored` writes (`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`).

`LowriseConfig` is `LlamaConfig` and `factors`: for each factored map, by its name in the base model, a dict
of

- `rank`: r, the width between the factors;
- `activation`: "silu" between the factors (CoLA); left out: none, and up @ down is an ordinary weight;
- `sparse`: z, the number of entries of a sparse matrix that is added (SLTrain); left out: none.

Such a map (n -> m) has `down` (`nn.Linear`, r x n) and `up` (`nn.Linear`, m x r), both without bias.
Attention, norms, cache, masks, checkpointing and generation are those of the installed transformers' Llama,
so that its attention back ends (`ALL_ATTENTION_FUNCTIONS`) and what is built on them work here too.

Under tensor parallelism `down` is cut by rows of its weight (column-wise) and `up` by columns (row-wise):
each process has a share of the r latents, and one sum gives the whole output of a map, so that attention sees
all heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

MAPS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
ACTIVATIONS = ("none", "silu")
AUTO_MAP = {
    "AutoConfig": "modeling_lowrise.LowriseConfig",
    "AutoModel": "modeling_lowrise.LowriseModel",
    "AutoModelForCausalLM": "modeling_lowrise.LowriseForCausalLM",
}


class LowriseConfig(LlamaConfig):
    """`LlamaConfig` and the ranks of the factored maps (see the module)."""

    model_type = "lowrise"
    base_model_tp_plan = {  # noqa: RUF012
        f"layers.*.{part}.{name}.{factor}": style
        for part, names in MAPS.items()
        for name in names
        for factor, style in (("down", "colwise"), ("up", "rowwise"))
    }

    def __init__(self, factors: dict[str, dict[str, Any]] | None = None, **kwargs: Any) -> None:
        self.factors = dict(factors or {})
        # Saving a model adds its own class alone, and servers begin with AutoModel.
        super().__init__(**{"auto_map": dict(AUTO_MAP)} | kwargs)


class FactoredLinear(nn.Module):
    """y = up(activation(down(x))) + S x for x (..., n), with S sparse or absent."""

    index: Tensor

    def __init__(
        self, in_features: int, out_features: int, rank: int, activation: str = "none", sparse: int = 0
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}.")
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.activation = activation
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)
        self.values: nn.Parameter | None = None
        if sparse:
            # Flat positions, row by row, in the narrower dtype that can count them.
            dtype = torch.int32 if in_features * out_features <= 2**31 else torch.int64
            self.values = nn.Parameter(torch.zeros(sparse))
            self.register_buffer("index", torch.arange(sparse, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        latent = self.down(x)
        y = self.up(F.silu(latent) if self.activation == "silu" else latent)
        return y if self.values is None else y + F.linear(x, self.sparse_weight().to(x.dtype))

    def sparse_weight(self) -> Tensor:
        """S (m x n), formed anew: the entries alone are kept."""
        assert self.values is not None
        S = self.values.new_zeros(self.out_features * self.in_features)
        return S.index_add(0, self.index, self.values).view(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        sparse = "" if self.values is None else f", sparse={self.values.numel()}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"activation={self.activation}{sparse}"
        )


def factorize_(model: nn.Module, factors: dict[str, dict[str, Any]]) -> None:
    """Put a `FactoredLinear` in the place of every `nn.Linear` of the base model that `factors` names."""
    for name, options in factors.items():
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        dense = getattr(parent, child)
        if not isinstance(dense, nn.Linear) or dense.bias is not None:
            raise ValueError(f"factors: {name} is not a linear map without bias of this model.")
        setattr(parent, child, FactoredLinear(dense.in_features, dense.out_features, **options))


class LowriseModel(LlamaModel):
    """The decoder without its head."""

    config_class = LowriseConfig

    def __init__(self, config: LowriseConfig) -> None:
        super().__init__(config)
        factorize_(self, config.factors)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        _init_weights(super()._init_weights, module)


class LowriseForCausalLM(LlamaForCausalLM):
    """The decoder with its language-model head."""

    config_class = LowriseConfig

    def __init__(self, config: LowriseConfig) -> None:
        super().__init__(config)
        self.model = LowriseModel(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        _init_weights(super()._init_weights, module)


def _init_weights(init_others: Any, module: nn.Module) -> None:
    """Fresh sparse parts are zero, on the first positions; `nn.init` leaves what was loaded as it is."""
    init_others(module)
    if isinstance(module, FactoredLinear) and module.values is not None:
        nn.init.zeros_(module.values)
        if not getattr(module.index, "_is_hf_initialized", False):
            module.index.copy_(torch.arange(module.index.numel(), device=module.index.device))
