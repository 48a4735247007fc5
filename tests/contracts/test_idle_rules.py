"""An optimizer whose own rule would move nothing says so: its name would stand for what AdamW did. Over
every optimizer and every layer.
"""

import warnings

import pytest
import torch
from torch import nn

import lowrise
from lowrise.config import load
from lowrise.errors import UsageError
from lowrise.layers import LAYERS
from lowrise.layers.roles import IdleRule
from lowrise.optim import OPTIMIZERS
from lowrise.runs.build import check_parts

KINDS = {"dense": "matrix"} | {name: kind.role for name, kind in LAYERS.items()}
# Refused for another reason: these rules choose other factors of the same product.
REFUSED = {("loro", "cola"), ("loro", "dlr"), ("loramuon", "dlr")}
PAIRS = [(name, layer) for name in OPTIMIZERS for layer in KINDS if (name, layer) not in REFUSED]


def a_model(layer: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 10))
    return model if layer == "dense" else lowrise.factorize(model, layer=layer, rank=4)


def is_idle(name: str, layer: str) -> bool:
    """A self-guided layer has a dense guide, which is a matrix for half of the run."""
    roles = OPTIMIZERS[name].roles
    return KINDS[layer] not in roles and not (layer == "selfguided" and "matrix" in roles)


@pytest.mark.parametrize(("name", "layer"), PAIRS)
def test_a_rule_that_moves_nothing_is_told(name, layer):
    model, kind = a_model(layer), OPTIMIZERS[name]
    idle = is_idle(name, layer)
    guessed = KINDS[layer] not in kind.roles  # without roles a guide is "other"
    for make, expected in (
        (lambda: kind.from_model(model, lr=1e-3), idle),
        (lambda: kind(lowrise.param_groups(model, roles=kind.roles), lr=1e-3), idle),
        (lambda: kind(lowrise.param_groups(model), lr=1e-3), guessed),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            make()
        assert any(w.category is IdleRule for w in told) == expected


@pytest.mark.parametrize(("name", "layer"), PAIRS)
def test_a_run_by_such_a_rule_is_refused_before_its_text_is_read(name, layer):
    settings = {"optimizer.name": name, "layer.name": layer, "model.preset": "nano"}
    config = load(None, settings | ({} if layer == "dense" else {"layer.rank": 8}))
    if is_idle(name, layer):
        with pytest.raises(UsageError, match=f'"{name}" moves nothing of layer.name = "{layer}"'):
            check_parts(config)
    else:
        check_parts(config)


def test_groups_of_everything_else_alone_are_nobody_s_mistake():
    """A stage of a pipeline may hold nothing but norms and embeddings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OPTIMIZERS["muon"]([{"params": [nn.Parameter(torch.zeros(3))], "role": "other"}], lr=1e-3)


def test_weights_in_one_row_are_refused():
    class FullyShardedDataParallel(nn.Module):  # as torch's, which needs several processes
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Parameter(torch.zeros(100))

    with pytest.raises(UsageError, match="fully_shard"):
        lowrise.param_groups(FullyShardedDataParallel())
