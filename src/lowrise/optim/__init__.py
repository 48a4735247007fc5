"""Optimizers: one file each, the mathematics in its docstring, on the common base of `base.py`."""

from lowrise.optim.adamw import AdamW
from lowrise.optim.apollo import APOLLO
from lowrise.optim.base import Optimizer
from lowrise.optim.fira import Fira
from lowrise.optim.galore import GaLore
from lowrise.optim.loro import LORO
from lowrise.optim.muon import Muon
from lowrise.optim.relora import ReLoRAAdamW
from lowrise.optim.spectron import Spectron
from lowrise.optim.tsvd import TSVD

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adamw": AdamW,
    "apollo": APOLLO,
    "fira": Fira,
    "galore": GaLore,
    "loro": LORO,
    "muon": Muon,
    "relora": ReLoRAAdamW,
    "spectron": Spectron,
    "tsvd": TSVD,
}

__all__ = [
    "APOLLO",
    "LORO",
    "OPTIMIZERS",
    "TSVD",
    "AdamW",
    "Fira",
    "GaLore",
    "Muon",
    "Optimizer",
    "ReLoRAAdamW",
    "Spectron",
]
