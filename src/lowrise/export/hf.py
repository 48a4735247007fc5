"""Factored folders for those who have lowrise: importing this module tells transformers their class, so that
`AutoModelForCausalLM.from_pretrained(folder)` needs no code from the folder."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from lowrise.export.modeling_lowrise import FactoredLinear, LowriseConfig, LowriseForCausalLM, LowriseModel

__all__ = ["FactoredLinear", "LowriseConfig", "LowriseForCausalLM", "LowriseModel", "register"]


def register() -> None:
    """Make `model_type` "lowrise" known to transformers; again does no harm."""
    AutoConfig.register(LowriseConfig.model_type, LowriseConfig, exist_ok=True)
    AutoModel.register(LowriseConfig, LowriseModel, exist_ok=True)
    AutoModelForCausalLM.register(LowriseConfig, LowriseForCausalLM, exist_ok=True)
    # What is saved again has the modelling file beside it too, for those without lowrise.
    LowriseConfig.register_for_auto_class()
    LowriseModel.register_for_auto_class("AutoModel")
    LowriseForCausalLM.register_for_auto_class("AutoModelForCausalLM")


register()
