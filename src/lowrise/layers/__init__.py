"""Low-rank layers, `factorize` to put them into a model, and `param_groups` to hand the model to an
optimizer.
"""

from lowrise.layers.base import LatentLayer, LedgerEntry, LowRankLayer, draws_whole
from lowrise.layers.cola import CoLALinear
from lowrise.layers.dlr import DLRLinear
from lowrise.layers.factorize import factorize
from lowrise.layers.inits import INITS
from lowrise.layers.lora import LoRALinear
from lowrise.layers.lowrank import LowRankLinear
from lowrise.layers.registry import LAYERS
from lowrise.layers.roles import ParamGroups, param_groups, parameter_roles
from lowrise.layers.selfguided import SelfGuidedLinear
from lowrise.layers.sltrain import SparseLowRankLinear
from lowrise.layers.svd import SVDLinear

__all__ = [
    "INITS",
    "LAYERS",
    "CoLALinear",
    "DLRLinear",
    "LatentLayer",
    "LedgerEntry",
    "LoRALinear",
    "LowRankLayer",
    "LowRankLinear",
    "ParamGroups",
    "SVDLinear",
    "SelfGuidedLinear",
    "SparseLowRankLinear",
    "draws_whole",
    "factorize",
    "param_groups",
    "parameter_roles",
]
