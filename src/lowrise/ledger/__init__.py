"""Planned cost of a model: parameters, FLOPs, bytes."""

from lowrise.ledger.activations import ActivationPlan, plan_activations
from lowrise.ledger.flops import FlopsPerToken, flops_per_token, linear_entry
from lowrise.ledger.memory import MemoryPlan, plan_memory
from lowrise.ledger.params import ParameterCount, count_parameters

__all__ = [
    "ActivationPlan",
    "FlopsPerToken",
    "MemoryPlan",
    "ParameterCount",
    "count_parameters",
    "flops_per_token",
    "linear_entry",
    "plan_activations",
    "plan_memory",
]
