"""Pure tensor functions, batched over leading dimensions; each states its bound or accuracy."""

from lowrise.linalg.balance import rebalance
from lowrise.linalg.energy import energy_count, energy_rank
from lowrise.linalg.fixed_rank import tangent_step, tangent_step_reference
from lowrise.linalg.norms import (
    power_iteration,
    product_singular_values,
    singular_values,
    spectral_norm,
    spectral_norm_upper,
)
from lowrise.linalg.orthonormal import (
    complement,
    orthonormality_error,
    qf,
    retract_polar,
    retract_qr,
    tangent,
)
from lowrise.linalg.polar import (
    POLAR_EXPRESS,
    QUINTIC,
    newton_schulz,
    polar_express,
    polar_svd,
)
from lowrise.linalg.sinkhorn import sinkhorn, sinkhorn_vectors
from lowrise.linalg.whitening import standardize, whiten, whiten_diagonal

__all__ = [
    "POLAR_EXPRESS",
    "QUINTIC",
    "complement",
    "energy_count",
    "energy_rank",
    "newton_schulz",
    "orthonormality_error",
    "polar_express",
    "polar_svd",
    "power_iteration",
    "product_singular_values",
    "qf",
    "rebalance",
    "retract_polar",
    "retract_qr",
    "singular_values",
    "sinkhorn",
    "sinkhorn_vectors",
    "spectral_norm",
    "spectral_norm_upper",
    "standardize",
    "tangent",
    "tangent_step",
    "tangent_step_reference",
    "whiten",
    "whiten_diagonal",
]
