"""The training loop: updates (`train/step.py`), and around them resume, log, spectral telemetry,
evaluation, checkpoints, stop signals, summary, report.

With N ranks all of them run it; rank 0 alone writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

import lowrise
from lowrise.config import RunConfig
from lowrise.config.identity import digest, told
from lowrise.console import Console
from lowrise.data import Corpus
from lowrise.data.chat import write_template
from lowrise.data.samples import sample_format
from lowrise.distributed import FailedElsewhere, World, check_same_work
from lowrise.distributed.world import lost_ranks_explained
from lowrise.errors import LowriseError, UsageError
from lowrise.files import write_whole
from lowrise.inference.evaluate import EvalResult
from lowrise.inference.generate import check_sample, sample_of
from lowrise.optim import Optimizer
from lowrise.report.run_report import write_report
from lowrise.runs.directory import RunDirectory
from lowrise.runs.environment import choose_device, describe, passes_of, precision_of
from lowrise.runs.parallel import shares_rows
from lowrise.runs.plan import RunPlan
from lowrise.signals import SaveRequest, StopRequest
from lowrise.train.display import Display
from lowrise.train.held_out import HeldOut
from lowrise.train.keeping import Keeping
from lowrise.train.records import update_record
from lowrise.train.resume import Start, accepted_changes
from lowrise.train.services import services_of
from lowrise.train.step import TrainStep, Update
from lowrise.train.stopping import EarlyStopping
from lowrise.train.summary import Progress, summarize, told_text
from lowrise.train.telemetry import measure, snapshot
from lowrise.train.trackers import Tracker, Trackers, open_tensorboard


class Interrupted(LowriseError):
    """The run was asked to stop and has saved; `exit_code` is the shell's for the signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Trainer:
    """One run: its updates, and what is read and written around them."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        run: RunDirectory,
        display: Display,
        world: World | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.config, self.corpus, self.directory, self.display = config, corpus, run, display
        self.world = world or World()
        check_same_work(self.world, **_work_of(config, corpus, self.world))
        self.train_step = TrainStep(config, corpus, self.world, notice=display.table, say=display.say)
        check_same_work(self.world, passes=passes_of(self.optimizer, self.train_step.device))
        self.update: Callable[[], Update] = self.train_step  # and nothing of what falls due after it
        self.model, self.device = self.train_step.model, self.train_step.device
        check_sample(self.model.config, config, corpus.tokenizer)
        self.dense_matrices = {
            name
            for group in self.optimizer.param_groups
            if group["role"] == "matrix"
            for name in group["param_names"]
        }
        self.given_trackers = Trackers(trackers if self.world.leads else ())
        self.stop, self.save_request = StopRequest(), SaveRequest()
        self.before: RunConfig | None = None
        self.held_out = HeldOut(config, corpus, self.train_step, display, self.world)
        self.keeping = Keeping(self.train_step, run, display)
        self.stopping = EarlyStopping(config, self.train_step, self.keeping, say=display.say)

    @property
    def optimizer(self) -> Optimizer:
        """What updates the model."""
        return self.train_step.optimizer

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.train_step.progress

    @property
    def plan(self) -> RunPlan:
        """Counts of the run with the ranks that its layers have now."""
        return self.train_step.plan

    # --- the run ------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end, or raise `Interrupted` after a stop signal; returns the summary."""
        config = self.config
        self.world.by_rank_0(self._begin)
        start = self._resume()
        self.world.by_rank_0(self.keeping.saver.retire)  # a kill comes between a save and what follows it
        self.keeping.check_alike("at the start")
        for line in told_text(self.corpus, config):
            self.display.say(line)
        self.world.by_rank_0(lambda: self._write_start(start))
        with (
            StopRequest(once=True) as self.stop,
            SaveRequest() as self.save_request,
            self._tracked() as board,
            self.keeping,
        ):
            if self.stopping.has_missed():
                self.stopping.watch(self._evaluate(board, whole=False))
            while self.stopping.goes_on() and not self._asked_to_stop():
                self._advance(board)
            if self.stopping.take_best():
                self.keeping.weights_changed()
            if not self.keeping.is_saved:
                self.keeping.save()
            with self._on_the_wall_clock():
                result = self._evaluate(board, whole=True)
                self.keeping.saver.finish()
            if result is None:
                raise self._interruption()
        return self._finish(result)

    def _begin(self) -> None:
        self.before = self.directory.begin(self.config)

    def _write_start(self, start: Start) -> None:
        """Say and write down what is other than at the last start, and where this one runs."""
        changed = accepted_changes(self.before, self.config)
        if changed:
            self.display.say(f"Settings that may change have changed: {told(changed, 9)}.")
        facts = describe(self.device, self.world.size) | {"passes": passes_of(self.optimizer, self.device)}
        entry = start.entry(self.progress.step, changed) | {
            k: facts[k] for k in ("ranks", "device", "passes")
        }
        self.directory.write_start(self.config, facts, entry)
        self.corpus.write_tokenizer(self.directory.tokenizer)
        template = sample_format(self.config.data).template if self.config.data.is_samples else None
        if template is not None:
            write_template(self.directory.path, template)

    def _asked_to_stop(self) -> bool:
        """Whether any rank was: the same answer on all, at the same place of the run. A request to save is
        heard of here too, and met after the update.

        A signal that comes while the ranks talk is told at the next place: this rank alone knows of it.
        """
        asked = [self.stop.signal or 0, int(self.save_request.take())]
        number, save = self.world.largest_of(asked)
        self.keeping.asked = self.keeping.asked or bool(save)
        if number:
            self.stop.request(number)
        return number > 0

    def _advance(self, board: Tracker | None) -> None:
        """One update and all that falls due after it."""
        config, progress = self.config, self.progress
        number = progress.step + 1
        measured = _due(number, config.log.telemetry_every) or (
            number == 1 and config.log.telemetry_every > 0
        )
        before = snapshot(self.model, self.dense_matrices, self.world) if measured else None
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
            record = update_record(self.train_step, update, seconds, self.world)
            if before is not None:
                record["matrices"] = measure(self.model, before, self.world)
            self._write(record, board)
        with self._on_the_wall_clock():
            if self.stopping.is_due(number):
                self.stopping.watch(self._evaluate(board, whole=False))
            if self.keeping.is_due() and not self.stopping.stops:
                self.keeping.save()

    def _skipped(self, update: Update) -> None:
        progress, limit = self.progress, self.config.train.nonfinite_limit
        left = update.left_alone
        what = (
            f"{left} matrices or vectors are left as they are, their gradients are not finite or too large"
            if left
            else "not finite or too large, the update is skipped"
        )
        self.display.say(
            f"step {progress.step}: loss {update.loss}, gradient norm {update.grad_norm}: {what} "
            f"({progress.skipped_in_a_row} in a row).",
            style="yellow",
        )
        if progress.skipped_in_a_row >= limit:
            self.keeping.save()
            self.keeping.saver.finish()
            raise LowriseError(
                f"{progress.skipped_in_a_row} updates in a row had a loss or gradient that is not finite "
                f"or too large (the last is update {progress.step}). The weights from before them are saved "
                f"in {self.directory.checkpoints.path(progress.step)}. Lower optimizer.lr or other.lr (now "
                f"{self.config.optimizer.lr:g} and {self.config.other.lr or self.config.optimizer.lr:g}) "
                "in a new run, or train.grad_clip."
            )

    # --- evaluation, records ------------------------------------------------------------------------------

    def _evaluate(self, board: Tracker | None, whole: bool) -> EvalResult | None:
        """Evaluate and record; None, and no record, if a stop signal comes before the end."""
        settings, kept = self.config.eval, self.progress.weights_of_step or self.progress.step
        # With patience the last step has an evaluation like those before it, and this one.
        what = f"the end: whole split, weights of step {kept}" if whole and settings.patience else ""
        result = self.held_out.measure(0 if whole else settings.tokens, self._asked_to_stop, what)
        if result is not None:
            progress = self.progress
            of = {"weights_of_step": progress.weights_of_step} if progress.weights_of_step else {}
            at = {"step": progress.step, "tokens": progress.tokens}
            self._write({**at, **of, **self.held_out.record()}, board)
        return result

    @contextmanager
    def _tracked(self) -> Iterator[Tracker | None]:
        """All trackers as one, at rank 0."""
        if not self.world.leads:
            yield None
            return
        with ExitStack() as stack:
            trackers: list[Tracker] = [self.given_trackers]
            if self.config.log.tensorboard:
                board = open_tensorboard(self.directory.tensorboard, self.progress.step)
                trackers.append(stack.enter_context(board))
            tracker = Trackers(trackers)
            tracker.on_start(self.config.to_dict(), self.progress.step)
            yield tracker

    def _write(self, record: dict[str, Any], board: Tracker | None) -> None:
        if self.world.leads:
            self.directory.append_metrics(record)
        if board is not None:
            (board.on_evaluate if "val_loss" in record else board.on_log)(record)

    def _resume(self) -> Start:
        start = self.keeping.resume(self.before)
        if start.own:
            self.stopping.begin()
        return start

    def _interruption(self) -> Interrupted:
        stop = self.stop
        assert stop.signal is not None
        summary = self.summary(None, "interrupted")
        self.world.by_rank_0(lambda: self._end(summary))
        return Interrupted(
            f"{stop.signal.name}: stopped after step {self.progress.step} of {self.config.train.steps}, "
            "saved. The same command continues from here.",
            exit_code=128 + stop.signal,
        )

    # --- the end ------------------------------------------------------------------------------------------

    def _finish(self, result: EvalResult) -> dict[str, Any]:
        summary = self.summary(result, "completed")
        # Where ranks share weights by rows, a forward pass needs all of them.
        together = self.world if shares_rows(self.config, self.world) else None
        speaks = self.world.leads or together is not None
        arguments = self.model, self.config, self.corpus.tokenizer, self.device, together
        sample = sample_of(*arguments) if speaks else None

        def write() -> None:
            if sample is not None:
                write_whole(self.directory.sample, sample)
                summary["sample"] = sample
            self._end(summary)

        self.world.by_rank_0(write)
        return summary

    def _end(self, summary: dict[str, Any]) -> None:
        """By rank 0."""
        self.directory.write_json(self.directory.summary, summary)
        write_report(self.directory.path)
        self.given_trackers.on_end(summary)

    def summary(self, result: EvalResult | None, status: str) -> dict[str, Any]:
        return (
            summarize(
                self.config,
                self.progress,
                self.plan,
                result,
                corpus=self.corpus,
                optimizer_ms=self.train_step.optimizer_ms,
                device=self.device,
                status=status,
            )
            | self.held_out.further_record()
        )

    # --- small things -------------------------------------------------------------------------------------

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
    trackers: Sequence[Tracker] = (),
) -> dict[str, Any]:
    """Train in the directory, or continue there; returns the summary. A failure is written into the summary
    too.

    With a `world` of several ranks each of them calls this, inside the `joined` block, with equal arguments.
    """
    world = world or World()
    with ExitStack() as stack, Display(console, config.train.steps) as display:
        world.by_rank_0(lambda: stack.enter_context(directory.locked()))
        services: list[Tracker] = []
        world.by_rank_0(  # the others need none of their packages
            lambda: services.extend(
                services_of(config, directory, lambda text: display.say(text, style="yellow"))
            )
        )
        trainer = Trainer(config, corpus, directory, display, world, [*trackers, *services])
        try:
            # FSDP2 and owners talk in the middle of forward passes, backward passes and steps.
            with lost_ranks_explained(world, among_others=True):
                return trainer.run()
        except (Interrupted, UsageError, FailedElsewhere):
            raise
        except Exception as error:
            failed = trainer.summary(None, "failed") | {"error": str(error) or type(error).__name__}
            if world.leads:
                with suppress(OSError):  # a disk that fails may be the error itself
                    trainer._end(failed)
            if isinstance(error, torch.OutOfMemoryError):
                raise LowriseError(
                    f"Out of memory at update {trainer.progress.step + 1}: lower train.micro_batch_size (now "
                    f"{config.train.micro_batch_size or config.train.global_batch_size}), or set "
                    "model.recompute."
                ) from error
            raise


def _work_of(config: RunConfig, corpus: Corpus, world: World) -> dict[str, str]:
    """What ranks must have alike before anything is built."""
    device = world.device(choose_device(config.train.device))
    return {
        "recipe": digest(config.to_dict()),
        "corpus": corpus.fingerprint,
        "lowrise": lowrise.__version__,
        "torch": torch.__version__.partition("+")[0],
        "kind of device": f"{device.type}, {precision_of(config, device)}",
    }


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
