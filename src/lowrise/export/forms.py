"""A trained model as named tensors, dense or factored, with the names of Hugging Face's Llama.

Tensors come one at a time, so that the dense form of a large model is never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers.base import FactoredForm, LowRankLayer
from lowrise.linalg.precision import full_precision_matmul
from lowrise.model import Llama
from lowrise.model.finite import require_finite, rounded_to

Form = Literal["dense", "factored"]
Named = Iterator[tuple[str, Tensor]]
_BASE = "model."


FACTORED = "export this run with --to hf --form factored"


def check_dense(model: Llama, remedy: str = FACTORED) -> None:
    """Raise `UsageError` for a model that no plain Llama computes, naming the first layer that says so."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LowRankLayer):
            continue
        form = layer.factored_form()
        if form is not None and form.activation != "none":
            raise UsageError(
                f"{name} has the activation {form.activation} between its factors, so no dense weight equals "
                f"it: {remedy}."
            )
    if model.config.mlp_activation != "silu":
        raise UsageError(
            f"model.mlp_activation is {model.config.mlp_activation}, and model.layers.0.mlp of a plain Llama "
            f"has silu: {remedy}."
        )


def factors_of(model: Llama) -> dict[str, FactoredForm]:
    """Full name -> factors of every map of the blocks that has them. Layers of which a dense matrix is part
    (LoRA's W0, a guide at work) have none and are merged, as factors beside it would only add to it.
    """
    layers = dict(model.model.layers.named_modules(prefix="model.layers"))
    forms = {n: m.factored_form() for n, m in layers.items() if isinstance(m, LowRankLayer)}
    return {name: form for name, form in forms.items() if form is not None}


def described(factors: dict[str, FactoredForm]) -> dict[str, dict[str, Any]]:
    """Name in the base model -> options of `modeling_lowrise.FactoredLinear`."""
    return {name.removeprefix(_BASE): _options(form) for name, form in factors.items()}


def _options(form: FactoredForm) -> dict[str, Any]:
    options: dict[str, Any] = {"rank": form.down.shape[0]}
    if form.activation != "none":
        options["activation"] = form.activation
    if form.values is not None and form.values.numel():
        options["sparse"] = form.values.numel()
    return options


@torch.no_grad()
def tensors(model: Llama, factors: dict[str, FactoredForm], dtype: torch.dtype) -> Named:
    """Name, value of every weight, computed in the weights' own precision and rounded once to `dtype`. What
    is not in `factors` is dense; a tied head is left out.
    """
    for name, module in model.named_modules():
        if name in factors:
            yield from _factor_tensors(name, factors[name], dtype)
        elif isinstance(module, LowRankLayer):
            with full_precision_matmul(next(module.parameters()).device):
                yield f"{name}.weight", _stored(f"{name}.weight", module.dense(), dtype)
        elif not _within_layer(model, name):
            for key, parameter in module.named_parameters(recurse=False):
                if not (module is model.lm_head and model.config.tie_embeddings):
                    yield f"{name}.{key}", _stored(f"{name}.{key}", parameter.detach(), dtype)


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is written. Factors that are finite may have a product that is not."""
    require_finite({name: value}, "The export", "Export --form factored, or an earlier checkpoint.")
    return rounded_to(name, value, dtype)


def _within_layer(model: nn.Module, name: str) -> bool:
    parent = name.rpartition(".")[0]
    return bool(parent) and isinstance(model.get_submodule(parent), LowRankLayer)


def _factor_tensors(name: str, form: FactoredForm, dtype: torch.dtype) -> Named:
    yield f"{name}.down.weight", _stored(f"{name}.down.weight", form.down, dtype).contiguous()
    yield f"{name}.up.weight", _stored(f"{name}.up.weight", form.up, dtype).contiguous()
    if form.values is not None and form.index is not None and form.values.numel():
        yield f"{name}.values", _stored(f"{name}.values", form.values, dtype)
        yield f"{name}.index", form.index
