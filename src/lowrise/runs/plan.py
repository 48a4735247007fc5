"""The numbers of a run that are known before it starts, from shapes alone (meta device)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowrise.config import RunConfig
from lowrise.distributed import World
from lowrise.ledger import count_parameters, flops_per_token
from lowrise.ledger.communication import planned_communication
from lowrise.ledger.flops import FlopsPerToken
from lowrise.model import Llama
from lowrise.optim import Optimizer
from lowrise.runs.build import build_optimizer, model_from


@dataclass(frozen=True)
class RunPlan:
    """Counts of one run. `train_flops` is matrix multiplications of forward, backward and optimizer.

    Parameters are those of the model that results; a guide that is dropped on the way counts in FLOPs (their
    mean over the run) and in state.
    """

    steps: int
    tokens_per_step: int
    params_total: int
    params_non_embedding: int
    flops_of_token: FlopsPerToken
    """Of the model, by part."""
    optimizer_flops_per_step: int
    state_bytes: int
    communicated_bytes: int
    """Sent by one rank in an update, the mean of all ranks."""

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs of a token in the model."""
        return self.flops_of_token.training

    @property
    def flops_of_update(self) -> dict[str, int]:
        """`flops_per_step` by what it is spent on."""
        model, tokens = self.flops_of_token, self.tokens_per_step
        return {
            "forward": tokens * model.forward,
            "backward": tokens * model.backward,
            "recomputed": tokens * model.recomputed,
            "guide": tokens * model.guide,
            "optimizer": self.optimizer_flops_per_step,
        }

    @property
    def train_flops(self) -> int:
        return self.steps * self.flops_per_step

    @property
    def flops_per_step(self) -> int:
        return self.tokens_per_step * self.flops_per_token + self.optimizer_flops_per_step


def plan_run(config: RunConfig, vocab_size: int) -> RunPlan:
    """Plan from the configuration, without data or memory for weights."""
    model = model_from(config, vocab_size, torch.device("meta"))
    return plan_of(config, model, build_optimizer(config, model))


def plan_of(config: RunConfig, model: Llama, optimizer: Optimizer, world: World | None = None) -> RunPlan:
    """Plan of a model and an optimizer that are there.

    FLOPs of the optimizer are counted once, also where ranks repeat them; bytes of state are this rank's.
    """
    params = count_parameters(model)
    train, ranks = config.train, (world or World()).size
    share = train.global_batch_size // ranks
    pass_sequences = min(train.micro_batch_size or share, share)
    return RunPlan(
        steps=config.train.steps,
        tokens_per_step=config.train.global_batch_size * config.train.seq_len,
        params_total=params.total - params.temporary,
        params_non_embedding=params.non_embedding - params.temporary,
        flops_of_token=flops_per_token(model, train.seq_len, sequences=pass_sequences),
        optimizer_flops_per_step=optimizer.step_flops(),
        state_bytes=optimizer.planned_bytes_here(),
        communicated_bytes=planned_communication(
            model,
            model.model.layers,
            optimizer,
            ranks=ranks,
            passes=-(-share // pass_sequences),
            gathered_bytes=2 if config.parallel.param_dtype == "bfloat16" else None,
        ),
    )
