"""The checkpoints of one run: what is written into them, when, and what a start goes on from."""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import Self

from torch import Tensor

from lowrise.checkpoint import Saver
from lowrise.config import RunConfig
from lowrise.distributed import check_alike
from lowrise.distributed.sharding import has_copies
from lowrise.runs.directory import RunDirectory
from lowrise.runs.environment import passes_of, precision_of, random_state
from lowrise.runs.tail_average import PART
from lowrise.runs.weights import model_tensors
from lowrise.train.course import Course
from lowrise.train.display import Display
from lowrise.train.resume import Origin, Start, go_on, text_numbers
from lowrise.train.step import TrainStep


class Keeping:
    """Saves a run and takes it up again. A `with` block around the run ends its saves, as `Saver` says."""

    def __init__(self, train_step: TrainStep, directory: RunDirectory, display: Display) -> None:
        self.train_step, self.directory, self.display = train_step, directory, display
        self.config, self.world = train_step.config, train_step.world
        kept = self.config.checkpoint
        self.saver = Saver(
            directory.checkpoints,
            self.world,
            keep=kept.keep,
            keep_every=kept.keep_every,
            asynchronous=kept.asynchronous,
            whole=kept.whole,
            warn=lambda text: display.say(text, style="yellow"),
        )
        self.asked = False
        """Whether a save was asked for from outside, since the last one."""
        self._saved_step = -1
        self._origin: Origin | None = None

    def __enter__(self) -> Self:
        self.saver.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.saver.__exit__(kind, error, trace)

    @property
    def is_saved(self) -> bool:
        """Whether the run is saved as it is."""
        return self._saved_step == self.train_step.progress.step

    def weights_changed(self) -> None:
        """The weights are others than those that were saved at this step."""
        self._saved_step = -1

    def is_due(self) -> bool:
        """Whether a save follows the last update."""
        every, step = self.config.checkpoint.every, self.train_step.progress.step
        return (self.asked or (every > 0 and step % every == 0)) and not self.is_saved

    def resume(self, before: RunConfig | None) -> Start:
        """Go on from what there is. `before`: the configuration of the last start, at rank 0. Collective."""
        start = go_on(self.train_step, self.directory, before, self.display.say)
        self._origin = start.origin
        progress = self.train_step.progress
        self._saved_step = progress.step if start.own else -1
        if self.world.leads:
            # The last evaluation comes after the last checkpoint, every other one before.
            ended = self._saved_step == self.config.train.steps or progress.weights_of_step > 0
            self.directory.rewind_metrics(self._saved_step, evaluated=not ended)
        return start

    def save(self) -> None:
        """If all ranks agree on the weights and state; written while training goes on (`Saver`).
        Collective.
        """
        step = self.train_step
        self.check_alike(f"after step {step.progress.step}")
        parts = {
            "model": model_tensors(step.model),
            "optimizer": step.optimizer.named_state(),
            "random": random_state(step.device) if self.world.leads else {},
        }
        if average := self._average():
            parts[PART] = average
        numbers = dataclasses.asdict(step.progress) | {
            **text_numbers(step.corpus),
            "mathematics": self.config.mathematics,
            "precision": precision_of(self.config, step.device),
            "passes": passes_of(step.optimizer, step.device),
            "course": Course.of(self.config).text(),
            "origin": self._origin.text() if self._origin else "",
        }
        self.saver.save(step.progress.step, parts, numbers)
        self._saved_step = step.progress.step
        self.asked = False

    def check_alike(self, when: str) -> None:
        """What all ranks should have alike; not rows of the only copy, and not the state of a matrix that one
        rank owns."""
        step = self.train_step
        averaged = {f"the average of {name}": t for name, t in self._average().items()}
        weights = {n: t for n, t in (model_tensors(step.model) | averaged).items() if has_copies(t)}
        check_alike(self.world, weights | step.optimizer.common_state(), when)

    def _average(self) -> dict[str, Tensor]:
        """The tail average by names, empty before it begins."""
        average = self.train_step.average
        return {} if average is None else average.tensors
