"""A model's weights as named tensors, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lowrise.checkpoint import Checkpoint
from lowrise.distributed import World
from lowrise.distributed.fsdp import reshard
from lowrise.errors import LowriseError
from lowrise.layers.base import is_adaptive
from lowrise.optim import Optimizer
from lowrise.optim.engine.exchange import Exchange, exchange


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once (tied ones under their first name) and every persistent buffer.

    The one door to the weights between two steps: sharded ones are resharded first.
    """
    reshard(model)
    parameters = dict(model.named_parameters())
    saved = model.state_dict().keys()
    return parameters | {name: b for name, b in model.named_buffers() if name in saved}


def load_saved_model(model: nn.Module, checkpoint: Checkpoint, world: World | None = None) -> None:
    """Copy a checkpoint's weights into the model, which `world`'s ranks may share in any way; a sentence, and
    nothing changed, for names or shapes that do not fit. Adaptive layers take the saved ranks. Collective.
    """
    fit_ranks(model, checkpoint.described("model"))
    checkpoint.load_into("model", model_tensors(model), world, require_same_model)


def require_same_model(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise `LowriseError` for saved weights whose names or shapes are not those of the model."""
    if own.keys() != saved.keys():
        missing, extra = sorted(own.keys() - saved.keys())[:3], sorted(saved.keys() - own.keys())[:3]
        raise LowriseError(
            f"The checkpoint is of another model: it lacks {missing or 'nothing'}, and has "
            f"{extra or 'nothing'} more."
        )
    for name, tensor in own.items():
        there = saved[name].shape
        if tensor.shape != there:
            raise LowriseError(
                f"The checkpoint is of another model: {name} is {tuple(there)} there, "
                f"{tuple(tensor.shape)} here."
            )


def fit_ranks(model: nn.Module, tensors: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> bool:
    """Give adaptive layers the ranks that saved tensors have, before these are loaded; whether any changed.

    Values and, in an optimizer, state of a layer that changed are empty until then.
    """
    fitted = False
    for name, layer in model.named_modules():
        saved = tensors.get(f"{name}.s")
        if saved is None or not is_adaptive(layer) or len(saved) == layer.rank:
            continue
        old = layer.role_parameters()
        layer.resize(len(saved))
        fitted = True
        if optimizer is not None:
            exchange(optimizer, [Exchange(a, b) for a, b in zip(old, layer.role_parameters(), strict=True)])
    return fitted
