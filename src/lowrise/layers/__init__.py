"""Low-rank layers, `factorize` to put them into a model, and `param_groups` to hand the model to an
optimizer.
"""

from lowrise.layers.base import LedgerEntry, LowRankLayer
from lowrise.layers.factorize import factorize
from lowrise.layers.inits import INITS
from lowrise.layers.lowrank import LowRankLinear
from lowrise.layers.registry import LAYERS
from lowrise.layers.roles import ParamGroups, param_groups, parameter_roles
from lowrise.layers.svd import SVDLinear

__all__ = [
    "INITS",
    "LAYERS",
    "LedgerEntry",
    "LowRankLayer",
    "LowRankLinear",
    "ParamGroups",
    "SVDLinear",
    "factorize",
    "param_groups",
    "parameter_roles",
]
