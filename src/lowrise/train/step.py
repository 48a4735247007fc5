"""One update, the same for every method and any number of ranks.

  1. batch k of the corpus, a pure function of (corpus, seed, k); with N ranks each has its rows of it
  2. layers that change with time learn the update's number; learning rates = peak rates x multiplier(update)
  3. forward passes over micro-batches, each followed by its backward pass: gradients accumulate, and the
     loss is the mean over all predicted tokens of the batch, on all ranks (of samples for fine-tuning, over
     those that count)
  4. in the last backward pass gradients are summed over ranks (`lowrise.distributed.GradientSum`), so that
     all ranks decide and update alike; the loss is summed too
  5. global gradient norm, clipped
  6. if loss or norm is not finite: count it and leave weights and optimizer as they are; else
     `optimizer.step()`, which skips single matrices where even the clipped norm is too large for it
     (`optim/engine/guard.py`)
  7. `after_update` of the layers and of the optimizer, rank events of adaptive layers
  8. gradients are dropped; the average of the last weights follows (`[ema]`, `runs/tail_average.py`)

With `train.per_layer` every matrix is updated within the last backward pass, when its gradient is complete
(`lowrise.optim.engine.in_backward`), which takes the place of steps 4 to 6; a loss that is not finite skips
the update before that pass. Each rank updates its copies of the weights, its rows of them, or the matrices
that it owns (`runs/parallel.py`, `optim/engine/ownership.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from lowrise.checkpoint import Checkpoint
from lowrise.config import RunConfig
from lowrise.data import Corpus
from lowrise.distributed import GradientSum, World, clip_gradients_
from lowrise.distributed.fsdp import CommStats
from lowrise.distributed.sharding import whole_parameters
from lowrise.layers.base import LowRankLayer
from lowrise.model import next_token_loss
from lowrise.optim import step_in_backward
from lowrise.optim.engine.guard import usable
from lowrise.optim.engine.options import require_match
from lowrise.optim.engine.units import units_of
from lowrise.runs.build import build_optimizer, compile_blocks
from lowrise.runs.environment import autocast_for, choose_device, set_numerics, set_random_state
from lowrise.runs.parallel import check_world, share_work, shared_model
from lowrise.runs.plan import RunPlan, plan_of
from lowrise.runs.tail_average import Tail, TailAverage
from lowrise.runs.weights import fit_ranks, load_saved_model
from lowrise.train.ranks import change_ranks, check_adaptive
from lowrise.train.room import require_room
from lowrise.train.schedule import multiplier, of_others, restarts_of
from lowrise.train.summary import Progress


@dataclass(frozen=True)
class Update:
    """What one update did."""

    loss: float
    """Mean cross-entropy of the batch before the update, in nats per token."""
    grad_norm: float
    """Global norm of the gradients before clipping; NaN where a per-layer update was skipped."""
    lr: float
    applied: bool
    """Whether every matrix was updated."""
    left_alone: int = 0
    """Matrices and vectors that were skipped in an update of the others, for gradients that are not finite or
    too large.
    """


class TrainStep:
    """The parts of a run that an update needs, and the update, which is a call of it.

    `notice` shows the table of parameter groups, `say` a line. All ranks of `world` build it together.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        world: World,
        *,
        notice: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.corpus, self.world, self.say = config, corpus, world, say
        check_world(config, world)
        self.gradients = GradientSum(world)
        self.rows = world.share(config.train.global_batch_size)
        self.device = world.device(choose_device(config.train.device))
        require_room(config, corpus.tokenizer.vocab_size, world, self.device)
        set_numerics(config, self.device)
        self.shared = shared_model(config, corpus.tokenizer.vocab_size, world, self.device)
        self.model = self.shared.model
        self.optimizer = build_optimizer(config, self.model, show=notice)
        share_work(config, self.optimizer, self.shared.ranks)
        check_adaptive(self.model, self.optimizer)
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.plan: RunPlan = plan_of(config, self.model, self.optimizer, world)
        self.progress = Progress()
        self.place_restarts()
        self._note_state()
        self.optimizer_ms: list[float] = []
        self.low_rank_layers = [m for m in self.model.modules() if isinstance(m, LowRankLayer)]
        tail = Tail.of(config.ema, config.train.steps)
        self.average = None if tail is None else TailAverage(tail, self.optimizer)
        if config.train.compile:
            compile_blocks(self.model)

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over what was saved: weights, optimizer state, random state and counters. Collective."""
        if checkpoint.step:
            self.notify_layers(checkpoint.step)
        if fit_ranks(self.model, checkpoint.described("model"), self.optimizer):
            self.ranks_changed()
        load_saved_model(self.model, checkpoint, self.world)
        checkpoint.load_into(
            "optimizer", self.optimizer.named_state(), self.world, partial(require_match, check_dtype=True)
        )
        set_random_state(checkpoint.parts["random"], self.device)
        known = {field.name for field in fields(Progress)}
        self.progress = Progress(**{k: v for k, v in checkpoint.numbers.items() if k in known})
        self.place_restarts()
        if self.average is not None:
            self.average.load(checkpoint, self.world)

    # --- the update, from top to bottom -------------------------------------------------------------------

    def __call__(self) -> Update:
        """Update number `progress.step + 1`."""
        train, number = self.config.train, self.progress.step + 1
        batch = self._batch(number)
        self.notify_layers(number)
        lr = self._set_learning_rates(number)
        self.shared.traffic.reset()

        predicted = self.corpus.train.predicted(
            number - 1,
            sequences=train.global_batch_size,
            seq_len=train.seq_len,
            seed=self.config.seed,
        )
        total: Tensor | None = None
        micro_batches = batch.split(train.micro_batch_size or len(batch))
        for i, tokens in enumerate(micro_batches, start=1):
            with autocast_for(self.config, self.device):
                loss = next_token_loss(self.model, tokens.to(self.device), reduction="sum") / predicted
            total = loss.detach() if total is None else total + loss.detach()
            if i < len(micro_batches):
                loss.backward()
        assert total is not None

        seconds: float | None = None
        skipped_matrices = 0
        if train.per_layer:
            loss_value, grad_norm, updated, skipped_matrices, seconds = self._in_backward(loss, total)
        else:
            with self.gradients.over_ranks(self._parameters_last_first(), loss.device):
                loss.backward()
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = clip_gradients_(parameters, train.grad_clip or math.inf)
            numbers = torch.stack([self.world.sum_(total).float(), norm.float()])
            loss_value, grad_norm = numbers.tolist()  # the update's one wait for the device
            updated = math.isfinite(loss_value) and math.isfinite(grad_norm)
            started = time.perf_counter()
            if updated:
                bound = min(grad_norm, train.grad_clip or math.inf)
                before = self.optimizer.skipped_updates()
                self.optimizer.step(grad_norm=bound)
                if not usable(bound):
                    skipped_matrices = self.optimizer.skipped_updates() - before
                    updated = skipped_matrices < self._units_with_gradients()
            if self._is_timed(number):
                seconds = time.perf_counter() - started

        if not updated:
            skipped_matrices = 0
        rewritten = self._after_update(number) if updated else []
        self.progress.train_flops += self.plan.flops_per_step
        if updated:
            rewritten += self._change_ranks(number)
            if seconds is not None:
                self.optimizer_ms.append(1e3 * seconds)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.after_update(number, rewritten)
        applied = updated and not skipped_matrices
        self.progress.skipped_units += skipped_matrices
        self.progress.skipped_in_part += updated and not applied
        self._count(applied, train.global_batch_size * train.seq_len)
        return Update(loss_value, grad_norm, lr, applied, skipped_matrices)

    def _batch(self, number: int) -> Tensor:
        """Step 1: this rank's rows, int64 (rows, seq_len + 1), or of samples (rows, 3, seq_len)."""
        train = self.config.train
        rows = self.corpus.train.batch(
            number - 1,
            sequences=train.global_batch_size,
            seq_len=train.seq_len,
            seed=self.config.seed,
            rows=self.rows,
        )
        return torch.from_numpy(rows)

    def notify_layers(self, number: int) -> None:
        """Step 2: layers learn the update's number; the optimizer forgets the parameters that they drop."""
        for layer in self.low_rank_layers:
            layer.before_update(number, self.config.train.steps)
        self.optimizer.retain(self.model.parameters())

    def _set_learning_rates(self, number: int) -> float:
        """Step 2: the rate of every group; returns the first group's."""
        schedule, steps = self.config.schedule, self.config.train.steps
        scale = multiplier(number, steps, schedule, self.restarts)
        others = scale
        if schedule.other_warmup is not None:
            others = multiplier(number, steps, of_others(schedule), self.restarts)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * (others if group["role"] == "other" else scale)
        return float(self.optimizer.param_groups[0]["lr"])

    def _in_backward(self, loss: Tensor, total: Tensor) -> tuple[float, float, bool, int, float | None]:
        """Steps 4 to 6 for each matrix by itself: the batch's loss, the gradient norm (NaN where nothing was
        computed), whether anything was updated, matrices that were skipped, seconds.
        """
        value = float(total)
        if not math.isfinite(value):
            return value, math.nan, False, 0, None
        with step_in_backward(self.optimizer) as moved:
            loss.backward()
        seconds = moved.seconds if self.device.type == "cpu" else None  # on a GPU mostly the backward pass
        return value, moved.grad_norm, moved.units > 0, moved.left_alone, seconds

    def _units_with_gradients(self) -> int:
        """Parameter tuples of which one parameter has a gradient."""
        units = (unit for group in self.optimizer.param_groups for unit in units_of(group))
        return sum(any(p.grad is not None for p in unit) for unit in units)

    def _is_timed(self, number: int) -> bool:
        """Whether the optimizer's time is taken: on a GPU at logged updates alone, as that waits for it."""
        if self.device.type == "cpu":
            return True
        due = number % self.config.log.every == 0
        if due and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return due

    def _parameters_last_first(self) -> list[Tensor]:
        """The optimizer's parameters in the order in which gradients come. Between forward and backward pass
        the model may hold gathered stand-ins for parameters that ranks share by rows: these are not among
        them.
        """
        members = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [p for p in reversed(list(self.model.parameters())) if id(p) in members]

    def _after_update(self, number: int) -> list[Tensor]:
        """Step 7; what is in another basis since this update."""
        steps = self.config.train.steps
        rewritten = self.optimizer.rewritten() if self.average is not None else []
        for layer in self.low_rank_layers:
            whole = layer.rewrites_after(number, steps)
            rewritten += layer.role_parameters() if whole else ()
            with whole_parameters(layer) if whole else nullcontext():
                layer.after_update(number, steps)
        self.optimizer.after_update(number, steps)
        return rewritten

    def _change_ranks(self, number: int) -> list[Tensor]:
        """Step 7: rank events of this update; the plan and compiled blocks follow. The layers' parameters."""
        event = change_ranks(self.model, self.optimizer, number, self.config.train.steps, self.config.seed)
        if event is None:
            return []
        self.say(f"step {number}: {event}.")
        if event.changed:
            self.ranks_changed()
        return [p for name in event.after for p in self.model.get_submodule(name).parameters()]

    # --- what is counted ----------------------------------------------------------------------------------

    def _count(self, applied: bool, tokens: int) -> None:
        progress = self.progress
        progress.step += 1
        progress.tokens += tokens
        progress.skipped += not applied
        progress.skipped_in_a_row = 0 if applied else progress.skipped_in_a_row + 1
        if not applied:
            self.place_restarts()

    def ranks_changed(self) -> None:
        """Follow layers whose rank is another now."""
        self.plan = plan_of(self.config, self.model, self.optimizer, self.world)
        self._note_state()
        if self.config.train.compile:
            compile_blocks(self.model)

    def place_restarts(self) -> None:
        """Where the learning rate dips; resets that count the optimizer's steps move with every update that
        was skipped as a whole.
        """
        steps, progress = self.config.train.steps, self.progress
        resets = self.optimizer.resets(steps, progress.skipped - progress.skipped_in_part)
        self.restarts = restarts_of(self.config.schedule, resets, steps)

    def _note_state(self) -> None:
        """Layers may drop parameters or change their rank: what counts is the largest state of the run."""
        progress = self.progress
        progress.state_bytes_planned = max(progress.state_bytes_planned, self.plan.state_bytes)
        progress.state_bytes_measured = max(progress.state_bytes_measured, self.optimizer.state_bytes())

    def communication(self) -> CommStats:
        """Of the last update: gradients, weights shared by rows, matrices on their way to owners and back."""
        gradients, weights, optimizer = self.gradients, self.shared.traffic, self.optimizer
        return CommStats(
            gradients.sent_bytes + weights.sent_bytes + optimizer.ownership.sent_bytes,
            gradients.wait_seconds + weights.seconds + optimizer.ownership.wait_seconds,
        )
