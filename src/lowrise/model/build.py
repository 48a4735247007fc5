"""From a config and a layer's name to a model that is ready to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lowrise.errors import UsageError
from lowrise.layers.factorize import Rank, factorize
from lowrise.layers.registry import layer_class, option_names
from lowrise.model.config import LlamaConfig
from lowrise.model.llama import Llama


def build_model(
    config: LlamaConfig,
    *,
    layer: str = "dense",
    rank: Rank | None = None,
    layer_options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Llama:
    """A Llama, dense or with `layer` in the place of its attention and MLP matrices, initialized from `seed`
    alone.

    The global generator is neither read nor moved. At one seed, models of all layers share embeddings, head
    and norms, and draws do not depend on the device (`lowrise.model.init`). On `device="meta"` there are
    shapes only. `layer_options` go to `factorize` (`skip`, `targets`) and the layer's constructor; `init_std`
    is the config's unless given there. Raises `UsageError` as `factorize` does, and for a rank without a
    layer or a layer without a rank, and for `recompute="latents"` with maps that have none.
    """
    options = dict(layer_options or {})
    if layer == "dense" and (rank is not None or options):
        raise UsageError(
            "A dense model has no rank and no layer options; leave them out or choose a low-rank layer."
        )
    if layer != "dense" and rank is None:
        raise UsageError(f"The layer {layer!r} needs a rank: an integer or a fraction such as 0.25.")
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    if layer != "dense" and rank is not None:
        if "init_std" in option_names(layer_class(layer)):
            options.setdefault("init_std", config.init_std)
        factorize(model, layer=layer, rank=rank, **options)
    if config.recompute == "latents":
        model.latent_layers()
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.init_weights(seed)
    return model
