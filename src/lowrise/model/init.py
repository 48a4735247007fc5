"""Fresh weights, one random stream a module, keyed by the module's name.

Each weight is drawn from its own CPU generator, seeded by (seed, module name). So it does not depend on the
order of modules, on the device, on how many ranks there are, or on what the other modules are: at one seed
the dense and every factorized model have the same embeddings, head and norms, and a `spectral` factor pair is
the truncated SVD of the very matrix that the dense model has in its place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lowrise.distributed.sharding import whole_parameters
from lowrise.layers.base import LowRankLayer
from lowrise.layers.inits import normal
from lowrise.model.norm import RMSNorm
from lowrise.rng import name_seed


@torch.no_grad()
def init_weights(
    model: nn.Module,
    seed: int | None = None,
    *,
    std: float = 0.02,
    scales: Mapping[str, float] | None = None,
) -> None:
    """Draw all weights of a model in place: N(0, std^2) for linear maps and embeddings, 0 for biases, 1 for
    norms.

    Low-rank layers draw theirs by their own init. `scales`: name of a linear map -> what std is multiplied by
    there. `seed` None: one is drawn from torch's global generator. A module with parameters of another kind
    is a `TypeError`, since leaving it as it is could mean leaving uninitialized memory. Where ranks share a
    model by rows, each draws one module after the other as a whole and keeps its rows.
    """
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    for name, module in model.named_modules():
        generator = torch.Generator().manual_seed(name_seed(seed, name))
        with whole_parameters(module, read=False):
            _init_module(name, module, generator, std * (scales or {}).get(name, 1.0))


def _init_module(name: str, module: nn.Module, generator: torch.Generator, std: float) -> None:
    if isinstance(module, LowRankLayer):
        module.reset_parameters(generator)
    elif isinstance(module, nn.Linear | nn.Embedding):
        weight = module.weight
        weight.copy_(normal(weight.shape[0], weight.shape[1], std, generator, weight.device))
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, RMSNorm):
        module.weight.fill_(1.0)
    elif next(module.parameters(recurse=False), None) is not None:
        raise TypeError(f"no initialization is known for the parameters of {name} ({type(module).__name__})")
