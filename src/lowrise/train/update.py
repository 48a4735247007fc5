"""One update, the same for every method and any number of ranks.

  1. batch k of the corpus, a pure function of (corpus, seed, k)
  2. layers that change with time learn the update's number (`before_update`);
     learning rates = peak rates x multiplier(update)
  3. forward and backward over micro-batches; the loss is the mean over all predicted tokens of the batch
  4. global gradient norm, clipped
  5. if loss or norm is not finite: count it and leave weights and optimizer alone; else optimizer step,
     `after_update` of the layers and of the optimizer, and rank events of adaptive layers
Steps 3 to 5 are `train/at_once.py`. With `train.per_layer` the steps 4 and 5 happen to each matrix by itself
during the last backward pass (`train/per_layer.py`).
With N ranks each has its rows of the batch; loss and gradients are summed, and each rank moves its copies of
the weights, its rows of them, or the matrices that it owns (`train/parallel.py`, `optim/spread.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from lowrise.checkpoint import Checkpoint
from lowrise.config import RunConfig
from lowrise.data import Corpus
from lowrise.distributed import GradientSum, World
from lowrise.distributed.fsdp import Traffic
from lowrise.distributed.sharding import whole_parameters
from lowrise.layers.base import LowRankLayer
from lowrise.model import next_token_loss
from lowrise.optim.checks import require_match
from lowrise.runs.build import build_optimizer, compile_blocks
from lowrise.runs.environment import autocast_for, choose_device, set_numerics, set_random_state
from lowrise.runs.parallel import check_world, share_work, shared_model
from lowrise.runs.plan import RunPlan, plan_of
from lowrise.runs.weights import fit_ranks, load_saved_model
from lowrise.train.at_once import step_at_once
from lowrise.train.display import Display
from lowrise.train.per_layer import StepResult, step_per_layer
from lowrise.train.ranks import change_ranks, check_adaptive
from lowrise.train.schedule import multiplier, restarts_of
from lowrise.train.summary import Progress


@dataclasses.dataclass(frozen=True)
class Update:
    """What one update did."""

    loss: float
    grad_norm: float
    lr: float
    applied: bool
    left_alone: int = 0
    """Matrices that were left alone in an update that moved others (`train.per_layer`)."""


class Updater:
    """The parts of a run, and its updates."""

    def __init__(
        self, config: RunConfig, corpus: Corpus, display: Display, world: World | None = None
    ) -> None:
        self.config, self.corpus, self.display = config, corpus, display
        self.world = world or World()
        check_world(config, self.world)
        self.gradients = GradientSum(self.world)
        train = config.train
        self.rows = self.world.share(train.global_batch_size)
        self.device = self.world.device(choose_device(train.device))
        set_numerics(config, self.device)
        self.shared = shared_model(config, corpus.tokenizer.vocab_size, self.world, self.device)
        self.model = self.shared.model
        self.optimizer = build_optimizer(config, self.model, show=display.table)
        share_work(config, self.optimizer, self.shared.ranks)
        check_adaptive(self.model, self.optimizer)
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.plan: RunPlan = plan_of(config, self.model, self.optimizer, self.world)
        self.progress = Progress()
        self._place_restarts()
        self._note_state()
        self.optimizer_ms: list[float] = []
        self.low_rank_layers = [m for m in self.model.modules() if isinstance(m, LowRankLayer)]
        self.dense_matrices = {
            name
            for group in self.optimizer.param_groups
            if group["role"] == "matrix"
            for name in group["param_names"]
        }
        if train.compile:
            compile_blocks(self.model)

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over what was saved: weights, optimizer state, random state and counters. Collective."""
        if checkpoint.step:
            self._tell_time(checkpoint.step)
        if fit_ranks(self.model, checkpoint.described("model"), self.optimizer):
            self._ranks_changed()
        load_saved_model(self.model, checkpoint, self.world)
        checkpoint.load_into(
            "optimizer", self.optimizer.named_state(), self.world, partial(require_match, check_dtype=True)
        )
        set_random_state(checkpoint.parts["random"], self.device)
        known = {field.name for field in dataclasses.fields(Progress)}
        self.progress = Progress(**{k: v for k, v in checkpoint.numbers.items() if k in known})
        self._place_restarts()

    def update(self) -> Update:
        """Update number `progress.step + 1`: the steps above."""
        train = self.config.train
        number = self.progress.step + 1
        batch = self.corpus.train.batch(
            number - 1,
            sequences=train.global_batch_size,
            seq_len=train.seq_len,
            seed=self.config.seed,
            rows=self.rows,
        )
        self._tell_time(number)
        scale = multiplier(number, train.steps, self.config.schedule, self.restarts)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * scale
        self.shared.traffic.reset()
        step = self._step_per_layer if train.per_layer else self._step_at_once
        result = step(torch.from_numpy(batch), number)
        if result.moved:
            for layer in self.low_rank_layers:
                whole = layer.rewrites_after(number, train.steps)
                with whole_parameters(layer) if whole else nullcontext():
                    layer.after_update(number, train.steps)
            self.optimizer.after_update(number, train.steps)
        self.progress.train_flops += self.plan.flops_per_step
        if result.moved:
            self._change_ranks(number)
        self.optimizer.zero_grad(set_to_none=True)
        applied = result.moved and not result.left_alone
        self._count(applied, train.global_batch_size * train.seq_len)
        lr = self.peak_lrs[0] * scale
        return Update(result.loss, result.grad_norm, lr, applied, result.left_alone)

    def communication(self) -> Traffic:
        """Of the last update: gradients, weights shared by rows, matrices on their way to owners and back."""
        gradients, weights, optimizer = self.gradients, self.shared.traffic, self.optimizer
        return Traffic(
            gradients.sent_bytes + weights.sent_bytes + optimizer.sent_bytes,
            gradients.wait_seconds + weights.seconds + optimizer.wait_seconds,
        )

    def _step_at_once(self, batch: Tensor, number: int) -> StepResult:
        """Steps 3 to 5. On a GPU the time of the optimizer is measured now and then, as it takes a wait."""
        timed = self.device.type == "cpu" or number % self.config.log.every == 0
        result = step_at_once(
            self._losses(batch),
            self._passes(batch),
            self.model,
            self.optimizer,
            self.gradients,
            clip=self.config.train.grad_clip,
            synchronize=self._synchronize if timed else None,
        )
        if timed and result.moved:
            self.optimizer_ms.append(1e3 * result.seconds)
        return result

    def _step_per_layer(self, batch: Tensor, number: int) -> StepResult:
        """The same for each matrix by itself. On a GPU the time of a step cannot be told from the backward
        pass.
        """
        result = step_per_layer(self._losses(batch), self._passes(batch), self.optimizer)
        if self.device.type == "cpu" and result.moved:
            self.optimizer_ms.append(1e3 * result.seconds)
        return result

    def _passes(self, batch: Tensor) -> int:
        return -(-len(batch) // (self.config.train.micro_batch_size or len(batch)))

    def _tell_time(self, number: int) -> None:
        """Layers that change with time learn the update's number; the optimizer forgets what they drop."""
        for layer in self.low_rank_layers:
            layer.before_update(number, self.config.train.steps)
        self.optimizer.retain(self.model.parameters())

    def _losses(self, batch: Tensor) -> Iterator[Tensor]:
        """Forward pass of one micro-batch after the other: their shares of the global batch's mean loss
        (0-dim).
        """
        train = self.config.train
        predicted = train.global_batch_size * train.seq_len
        for tokens in batch.split(train.micro_batch_size or batch.shape[0]):
            with autocast_for(self.config, self.device):
                loss = next_token_loss(self.model, tokens.to(self.device), reduction="sum") / predicted
            yield loss

    def _change_ranks(self, number: int) -> None:
        """Rank events of this update; the plan and compiled blocks follow."""
        event = change_ranks(self.model, self.optimizer, number, self.config.train.steps, self.config.seed)
        if event is None:
            return
        self.display.say(f"step {number}: {event}.")
        if event.changed:
            self._ranks_changed()

    def _ranks_changed(self) -> None:
        self.plan = plan_of(self.config, self.model, self.optimizer, self.world)
        self._note_state()
        if self.config.train.compile:
            compile_blocks(self.model)

    def _count(self, applied: bool, tokens: int) -> None:
        progress = self.progress
        progress.step += 1
        progress.tokens += tokens
        progress.skipped += not applied
        progress.skipped_in_a_row = 0 if applied else progress.skipped_in_a_row + 1
        if not applied:
            self._place_restarts()

    def _place_restarts(self) -> None:
        """Where the learning rate dips; resets that count the optimizer's steps move with every skipped
        update.
        """
        steps = self.config.train.steps
        resets = self.optimizer.resets(steps, self.progress.skipped)
        self.restarts = restarts_of(self.config.schedule, resets, steps)

    def _note_state(self) -> None:
        """Layers may drop parameters or change their rank: what counts is the largest state of the run."""
        progress = self.progress
        progress.state_bytes_planned = max(progress.state_bytes_planned, self.plan.state_bytes)
        progress.state_bytes_measured = max(progress.state_bytes_measured, self.optimizer.state_bytes())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
