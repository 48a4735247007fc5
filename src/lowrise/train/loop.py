"""The training loop.

One update, the same for every method (`Trainer.update`):
  1. batch k of the corpus, a pure function of (corpus, seed, k)
  2. layers that change with time learn the update's number (`before_update`);
     learning rates = peak rates x multiplier(update)
  3. forward and backward over micro-batches; the loss is the mean over all predicted tokens of the batch
  4. global gradient norm, clipped
  5. if loss or norm is not finite: count it and leave weights and optimizer alone; else optimizer step,
     `after_update` of the layers and of the optimizer, and rank events of adaptive layers
Steps 3 to 5 are `train/at_once.py`. With `train.per_layer` the steps 4 and 5 happen to each matrix by itself
during the last backward pass (`train/per_layer.py`).
With N ranks each has its rows of the batch; loss and gradients are summed, and all ranks make the same update
of their copies of weights and state. Rank 0 alone writes.
Around it (`Trainer.run`): resume, log, spectral telemetry, evaluation, checkpoints, stop signals, summary,
report.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lowrise.checkpoint.newest import newest_checkpoint
from lowrise.config import RunConfig
from lowrise.data import Corpus
from lowrise.dist import FailedElsewhere, GradientSum, World, check_alike, check_ranks, check_same_work
from lowrise.errors import LowriseError, UsageError
from lowrise.export.evaluate import EvalResult
from lowrise.lab.report import write_report
from lowrise.layers.base import LowRankLayer
from lowrise.model import next_token_loss
from lowrise.signals import StopRequest
from lowrise.train.at_once import step_at_once
from lowrise.train.build import build_optimizer, compile_blocks, model_from
from lowrise.train.display import Display
from lowrise.train.environment import (
    choose_device,
    describe,
    peak_memory_bytes,
    random_state,
    set_numerics,
    set_random_state,
)
from lowrise.train.evaluation import Stopped, autocast_for, evaluate_split
from lowrise.train.per_layer import StepResult, step_per_layer
from lowrise.train.plan import RunPlan, plan_of
from lowrise.train.ranks import change_ranks, check_adaptive, fit_ranks
from lowrise.train.run_directory import RunDirectory
from lowrise.train.sample import sample_of
from lowrise.train.schedule import multiplier, restarts_of
from lowrise.train.summary import Progress, summarize
from lowrise.train.telemetry import measure, snapshot
from lowrise.train.tensorboard import add_record, open_board
from lowrise.train.warm_start import warm_start
from lowrise.train.weights import load_model_tensors, model_tensors


class Interrupted(LowriseError):
    """The run was asked to stop and has saved; `exit_code` is the shell's for the signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class Update:
    """What one update did."""

    loss: float
    grad_norm: float
    lr: float
    applied: bool
    left_alone: int = 0
    """Matrices that were left alone in an update that moved others (`train.per_layer`)."""


class Trainer:
    """One run: the parts, the update, and what is written around it."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        run: RunDirectory,
        display: Display,
        world: World | None = None,
    ) -> None:
        self.config, self.corpus, self.directory, self.display = config, corpus, run, display
        self.world = world or World()
        check_ranks(config, self.world)
        self.gradients = GradientSum(self.world)
        train = config.train
        self.rows = self.world.share(train.sequences)
        self.device = self.world.device(choose_device(train.device))
        set_numerics(config, self.device)
        self.model = model_from(config, corpus.tokenizer.vocab_size, self.device)
        self.optimizer = build_optimizer(config, self.model, show=display.table)
        check_adaptive(self.model, self.optimizer)
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.plan: RunPlan = plan_of(config, self.model, self.optimizer, self.world.size)
        self.progress = Progress()
        self._place_restarts()
        self._note_state()
        self.stop = StopRequest()
        self.saved_step = -1
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

    # --- the update ---------------------------------------------------------------------------------------

    def update(self) -> Update:
        """Update number `progress.step + 1`; see the steps above."""
        train = self.config.train
        number = self.progress.step + 1
        batch = self.corpus.train.batch(
            number - 1,
            sequences=train.sequences,
            seq_len=train.seq_len,
            seed=self.config.seed,
            rows=self.rows,
        )
        self._tell_time(number)
        scale = multiplier(number, train.steps, self.config.schedule, self.restarts)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * scale
        step = self._step_per_layer if train.per_layer else self._step_at_once
        result = step(torch.from_numpy(batch), number)
        if result.moved:
            for layer in self.low_rank_layers:
                layer.after_update(number, train.steps)
            self.optimizer.after_update(number, train.steps)
        self.progress.train_flops += self.plan.flops_per_step
        if result.moved:
            self._change_ranks(number)
        self.optimizer.zero_grad(set_to_none=True)
        applied = result.moved and not result.left_alone
        self._count(applied, train.sequences * train.seq_len)
        lr = self.peak_lrs[0] * scale
        return Update(result.loss, result.grad_norm, lr, applied, result.left_alone)

    def _step_at_once(self, batch: Tensor, number: int) -> StepResult:
        """Steps 3 to 5. On a GPU the time of the optimizer is measured now and then, as it takes a wait."""
        timed = self.device.type == "cpu" or number % self.config.log.every == 0
        result = step_at_once(
            self._losses(batch),
            self._passes(batch),
            self.model,
            self.optimizer,
            self.gradients,
            clip=self.config.train.clip,
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
        return len(batch) // (self.config.train.micro_sequences or len(batch))

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
        predicted = train.sequences * train.seq_len
        for tokens in batch.split(train.micro_sequences or batch.shape[0]):
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
        self.plan = plan_of(self.config, self.model, self.optimizer, self.world.size)
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

    # --- the run ------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end, or raise `Interrupted` after a stop signal; returns the summary."""
        config = self.config
        check_same_work(self.world, recipe=config.hash, corpus=self.corpus.fingerprint)
        self.world.by_rank_0(self._begin)
        self._resume()
        self._check_alike("at the start")
        with StopRequest(once=True) as self.stop, self._board() as board:
            while self.progress.step < config.train.steps and not self._asked_to_stop():
                self._advance(board)
            if self.saved_step != self.progress.step:
                self._save()
            with self._on_the_wall_clock():
                result = self._evaluate(board, whole=True)
            if result is None:
                raise self._interruption()
        return self._finish(result)

    def _begin(self) -> None:
        self.directory.begin(self.config)
        self.directory.write_json(self.directory.environment, describe(self.device, self.world.size))
        self.corpus.write_tokenizer(self.directory.tokenizer)

    def _asked_to_stop(self) -> bool:
        """Whether any rank was: the same answer on all, at the same place of the run."""
        number = self.world.largest(self.stop.signal or 0)
        if number:
            self.stop.request(number)
        return bool(self.stop)

    def _advance(self, board: SummaryWriter | None) -> None:
        """One update and all that falls due after it."""
        config, progress = self.config, self.progress
        number = progress.step + 1
        measured = _due(number, config.log.telemetry_every) or (
            number == 1 and config.log.telemetry_every > 0
        )
        before = snapshot(self.model, self.dense_matrices) if measured and self.world.leads else None
        started = time.perf_counter()
        update = self.update()
        seconds = time.perf_counter() - started
        progress.train_seconds += seconds
        progress.wall_seconds += seconds
        if not update.applied:
            self._skipped(update)
        tokens_per_second = self.plan.tokens_per_step / seconds
        self.display.stepped(
            progress.step, update.loss, update.lr, tokens_per_second, progress.train_seconds / progress.step
        )
        if measured or _due(number, config.log.every) or number == config.train.steps:
            record: dict[str, Any] = {
                "step": progress.step,
                "tokens": progress.tokens,
                "loss": update.loss,
                "lr": update.lr,
                "grad_norm": update.grad_norm,
                "tokens_per_second": tokens_per_second,
                "step_ms": 1e3 * seconds,
                "skipped": progress.skipped,
            }
            if self.world.size > 1:
                record |= self._parallel_record()
            if before is not None:
                record["matrices"] = measure(self.model, before)
            self._write(record, board)
        with self._on_the_wall_clock():
            if _due(number, config.eval.every) and number < config.train.steps:
                self._evaluate(board, whole=False)
            if _due(number, config.checkpoint.every):
                self._save()

    def _parallel_record(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "communicated_bytes": self.gradients.payload_bytes,
            "peak_memory_bytes": self.world.gathered(peak_memory_bytes(self.device)),
        }
        if self.device.type == "cpu":
            record["communication_wait_ms"] = 1e3 * self.gradients.wait_seconds
        return record

    def _skipped(self, update: Update) -> None:
        progress, limit = self.progress, self.config.train.nonfinite_limit
        left = update.left_alone
        what = f"{left} matrices or vectors are left as they are" if left else "the update is skipped"
        self.display.say(
            f"step {progress.step}: loss {update.loss}, gradient norm {update.grad_norm}: not finite, "
            f"{what} ({progress.skipped_in_a_row} in a row).",
            style="yellow",
        )
        if progress.skipped_in_a_row >= limit:
            self._save()
            raise LowriseError(
                f"{progress.skipped_in_a_row} updates in a row had a loss or gradient that is not finite "
                f"(the last is update {progress.step}). The weights from before them are saved in "
                f"{self.directory.checkpoints.path(progress.step)}. Lower optimizer.lr or other.lr (now "
                f"{self.config.optimizer.lr:g} and {self.config.other.lr or self.config.optimizer.lr:g}) "
                "in a new run, or train.clip."
            )

    # --- evaluation, records ------------------------------------------------------------------------------

    def _evaluate(self, board: SummaryWriter | None, whole: bool) -> EvalResult | None:
        """Evaluate and record; None, and no record, if a stop signal comes before the end."""
        limit = 0 if whole else self.config.eval.tokens
        try:
            with autocast_for(self.config, self.device):
                result = evaluate_split(
                    self.model, self.corpus, self.config, limit, self._asked_to_stop, self.world
                )
        except Stopped:
            return None
        self.display.evaluated(self.progress.step, result.loss)
        self._write(
            {
                "step": self.progress.step,
                "tokens": self.progress.tokens,
                "val_loss": result.loss,
                "val_perplexity": result.perplexity,
                "val_bits_per_byte": result.bits_per_byte,
                "val_tokens": result.tokens,
            },
            board,
        )
        return result

    def _board(self) -> AbstractContextManager[SummaryWriter | None]:
        wanted = self.config.log.tensorboard and self.world.leads
        return open_board(self.directory.tensorboard, self.progress.step) if wanted else nullcontext()

    def _write(self, record: dict[str, Any], board: SummaryWriter | None) -> None:
        if self.world.leads:
            self.directory.append_metrics(record)
        if board is not None:
            add_record(board, record)

    # --- checkpoints --------------------------------------------------------------------------------------

    def _save(self) -> None:
        """By rank 0, if all ranks have the same weights and state; the others wait."""
        self._check_alike(f"after step {self.progress.step}")
        self.world.by_rank_0(self._write_checkpoint)
        self.saved_step = self.progress.step

    def _check_alike(self, when: str) -> None:
        check_alike(self.world, model_tensors(self.model) | self.optimizer.named_state(), when)

    def _write_checkpoint(self) -> None:
        parts = {
            "model": model_tensors(self.model),
            "optimizer": self.optimizer.named_state(),
            "random": random_state(self.device),
        }
        numbers = dataclasses.asdict(self.progress) | {"corpus": self.corpus.fingerprint}
        self.directory.checkpoints.save(self.progress.step, parts, numbers)
        self.directory.checkpoints.retire(self.config.checkpoint.keep, self.config.checkpoint.keep_every)

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(
            self.directory.checkpoints, self.world, lambda text: self.display.say(text, style="yellow")
        )
        if checkpoint is None:
            self._rewind(-1)
            if self.config.init.run is not None:
                spent = warm_start(self.model, self.config, self.corpus.tokenizer, self.display.say)
                self.progress.init_tokens, self.progress.init_flops = spent.tokens, spent.flops
            return
        if checkpoint.numbers["corpus"] != self.corpus.fingerprint:
            raise UsageError(
                f"The text of this run has changed since its checkpoint at step {checkpoint.step}: "
                "continuing would mix two corpora. Restore the text, or start a new run with --run."
            )
        if checkpoint.step:
            self._tell_time(checkpoint.step)
        if fit_ranks(self.model, checkpoint.parts["model"], self.optimizer):
            self._ranks_changed()
        load_model_tensors(self.model, checkpoint.parts["model"])
        self.optimizer.load_named_state(checkpoint.parts["optimizer"])
        set_random_state(checkpoint.parts["random"], self.device)
        known = {field.name for field in dataclasses.fields(Progress)}
        self.progress = Progress(**{k: v for k, v in checkpoint.numbers.items() if k in known})
        self.saved_step = self.progress.step
        self._place_restarts()
        self._rewind(self.progress.step)
        self.display.say(f"Continuing from step {self.progress.step} ({checkpoint.path}).")

    def _rewind(self, step: int) -> None:
        if self.world.leads:
            self.directory.rewind_metrics(step)

    def _interruption(self) -> Interrupted:
        stop = self.stop
        assert stop.signal is not None
        summary = self.summary(None, "interrupted")
        self.world.by_rank_0(lambda: self.directory.write_json(self.directory.summary, summary))
        return Interrupted(
            f"{stop.signal.name}: stopped after step {self.progress.step} of {self.config.train.steps}, "
            "saved. The same command continues from here.",
            exit_code=128 + stop.signal,
        )

    # --- the end ------------------------------------------------------------------------------------------

    def _finish(self, result: EvalResult) -> dict[str, Any]:
        summary = self.summary(result, "completed")

        def write() -> None:
            sample = sample_of(self.model, self.config, self.corpus.tokenizer, self.device)
            if sample is not None:
                self.directory.sample.write_text(sample, encoding="utf-8")
                summary["sample"] = sample
            self.directory.write_json(self.directory.summary, summary)
            write_report(self.directory.path)

        self.world.by_rank_0(write)
        return summary

    def summary(self, result: EvalResult | None, status: str) -> dict[str, Any]:
        return summarize(
            self.config,
            self.progress,
            self.plan,
            result,
            corpus=self.corpus,
            optimizer_ms=self.optimizer_ms,
            device=self.device,
            status=status,
        )

    def _note_state(self) -> None:
        """Layers may drop parameters or change their rank: what counts is the largest state of the run."""
        progress = self.progress
        progress.state_bytes_planned = max(progress.state_bytes_planned, self.plan.state_bytes)
        progress.state_bytes_measured = max(progress.state_bytes_measured, self.optimizer.state_bytes())

    # --- small things -------------------------------------------------------------------------------------

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def _on_the_wall_clock(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.progress.wall_seconds += time.perf_counter() - started


def train(
    config: RunConfig,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    world: World | None = None,
) -> dict[str, Any]:
    """Train in the directory, or continue there; returns the summary. A failure is written into the summary
    too.

    With a `world` of several ranks each of them calls this, inside the `joined` block, with equal arguments.
    """
    world = world or World()
    with ExitStack() as stack, Display(console, config.train.steps) as display:
        world.by_rank_0(lambda: stack.enter_context(directory.locked()))
        trainer = Trainer(config, corpus, directory, display, world)
        try:
            return trainer.run()
        except (Interrupted, UsageError, FailedElsewhere):
            raise
        except Exception as error:
            failed = trainer.summary(None, "failed") | {"error": str(error) or type(error).__name__}
            if world.leads:
                directory.write_json(directory.summary, failed)
            if isinstance(error, torch.OutOfMemoryError):
                raise LowriseError(
                    f"Out of memory at update {trainer.progress.step + 1}: lower train.micro_sequences (now "
                    f"{config.train.micro_sequences or config.train.sequences}), or set model.recompute."
                ) from error
            raise


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
