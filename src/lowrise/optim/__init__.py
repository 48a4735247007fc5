"""Optimizers: one file each, the mathematics in its docstring, on the base of `engine/base.py`; what methods
share is in `rules/`."""

from lowrise.optim.adamw import AdamW
from lowrise.optim.apollo import APOLLO
from lowrise.optim.dion2 import Dion2
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.in_backward import step_in_backward
from lowrise.optim.engine.matrix import MatrixOptimizer
from lowrise.optim.fira import Fira
from lowrise.optim.galore import GaLore
from lowrise.optim.gwt import GWT
from lowrise.optim.loramuon import LoRAMuon
from lowrise.optim.loro import LORO
from lowrise.optim.muon import Muon
from lowrise.optim.normuon import NorMuon
from lowrise.optim.relora import ReLoRAAdamW
from lowrise.optim.scale import SCALE
from lowrise.optim.sinkgd import SinkGD
from lowrise.optim.spectron import Spectron
from lowrise.optim.stablespam import StableSPAM
from lowrise.optim.swan import SWAN
from lowrise.optim.tsvd import TSVD

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adamw": AdamW,
    "apollo": APOLLO,
    "dion2": Dion2,
    "fira": Fira,
    "galore": GaLore,
    "gwt": GWT,
    "loramuon": LoRAMuon,
    "loro": LORO,
    "muon": Muon,
    "normuon": NorMuon,
    "relora": ReLoRAAdamW,
    "scale": SCALE,
    "sinkgd": SinkGD,
    "spectron": Spectron,
    "stablespam": StableSPAM,
    "swan": SWAN,
    "tsvd": TSVD,
}

__all__ = [
    "APOLLO",
    "GWT",
    "LORO",
    "OPTIMIZERS",
    "SCALE",
    "SWAN",
    "TSVD",
    "AdamW",
    "Dion2",
    "Fira",
    "GaLore",
    "LoRAMuon",
    "MatrixOptimizer",
    "Muon",
    "NorMuon",
    "Optimizer",
    "ReLoRAAdamW",
    "SinkGD",
    "Spectron",
    "StableSPAM",
    "step_in_backward",
]
