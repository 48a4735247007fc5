"""A model's weights as named tensors, for checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrise.errors import LowriseError
from lowrise.train.ranks import fit_ranks


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once (tied ones under their first name) and every persistent buffer."""
    parameters = dict(model.named_parameters())
    saved = model.state_dict().keys()
    return parameters | {name: b for name, b in model.named_buffers() if name in saved}


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy saved tensors into the model; a sentence for names or shapes that do not fit. Adaptive layers take
    the saved ranks.
    """
    fit_ranks(model, tensors)
    own = model_tensors(model)
    if own.keys() != tensors.keys():
        missing, extra = sorted(own.keys() - tensors.keys())[:3], sorted(tensors.keys() - own.keys())[:3]
        raise LowriseError(
            f"The checkpoint is of another model: it lacks {missing or 'nothing'}, and has "
            f"{extra or 'nothing'} more."
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise LowriseError(
                f"The checkpoint is of another model: {name} is {tuple(tensors[name].shape)} there, "
                f"{tuple(tensor.shape)} here."
            )
        tensor.copy_(tensors[name])
