"""Early stopping (`eval.patience`): which evaluation was the best, and when the run has waited long enough.

All that is remembered is in `Progress` and so in every checkpoint: a run that goes on decides as one that
never stopped. The checkpoint of the best step is kept besides those that `checkpoint.keep` keeps, and the run
ends with its weights, in a checkpoint of the step at which it ended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from lowrise.checkpoint.store import load_by_all
from lowrise.config import RunConfig
from lowrise.inference.evaluate import EvalResult
from lowrise.train.keeping import Keeping
from lowrise.train.step import TrainStep
from lowrise.train.summary import Progress


class EarlyStopping:
    """What `eval.patience` asks of one run; without it, nothing. Ranks decide alike, as they have the same
    numbers. `say` shows a line.
    """

    def __init__(
        self,
        config: RunConfig,
        train_step: TrainStep,
        keeping: Keeping,
        *,
        say: Callable[..., None],
    ) -> None:
        self.settings, self.total = config.eval, config.train.steps
        self.train_step, self.world = train_step, train_step.world
        self.keeping, self.saver, self.say = keeping, keeping.saver, say
        self.stops = False
        """Whether the run ends here."""

    @property
    def _progress(self) -> Progress:
        return self.train_step.progress

    def goes_on(self) -> bool:
        """Whether there is another update."""
        progress = self._progress
        return progress.step < self.total and not self.stops and not progress.weights_of_step

    def is_due(self, number: int) -> bool:
        """Whether an evaluation follows this update. The one at the end covers the whole split and comes by
        itself, but to be compared with the others it is made as they are."""
        due = self.settings.every > 0 and number % self.settings.every == 0
        last = number == self.total
        return (due or last) if self.settings.patience else (due and not last)

    def begin(self) -> None:
        """After the run has found what it goes on from."""
        progress = self._progress
        self._keep_best()
        if progress.weights_of_step and progress.step < self.total:
            self.say(
                f"This run has stopped early at step {progress.step}, with the weights of step "
                f"{progress.weights_of_step}; to train them further, begin a run with init.run."
            )

    def has_missed(self) -> bool:
        """Whether a signal came between the update that was saved and the evaluation that follows it."""
        progress = self._progress
        waits = self.settings.patience and not progress.weights_of_step
        return bool(waits) and progress.step > progress.evaluated_step and self.is_due(progress.step)

    def watch(self, result: EvalResult | None) -> None:
        """Keep the best weights so far, or stop after long enough without better ones. Collective."""
        patience, progress = self.settings.patience, self._progress
        if not patience or result is None:
            return
        if note_evaluation(progress, result.loss, self.settings.min_delta or 0.0):
            self._keep_best()
            self.keeping.save()
        elif progress.worse_evaluations >= patience and progress.step < self.total:
            self.stops = True
            self.say(self._reason())

    def take_best(self) -> bool:
        """At the end: load the weights of the best evaluation, where these are not the last; whether that was
        so. Collective."""
        progress, best = self._progress, self._progress.best_step
        at_end = self.stops or progress.step == self.total
        seen = progress.evaluated_step == progress.step and not progress.weights_of_step
        if not (self.settings.patience and at_end and seen and best) or best == progress.step:
            return False
        self.saver.finish()
        store = self.saver.store
        if not self.world.by_rank_0(lambda: int(best in store.steps())):
            self.say(
                f"The checkpoint of step {best} is gone: the weights of step {progress.step} stay.",
                style="yellow",
            )
            return False
        self.train_step.load(load_by_all(store, best, self.world))
        self.train_step.progress = dataclasses.replace(progress, weights_of_step=best)
        self.say(f"The weights are those of step {best}, whose validation loss was the lowest.")
        return True

    def _keep_best(self) -> None:
        self.saver.besides = frozenset({self._progress.best_step} - {0})

    def _reason(self) -> str:
        progress, min_delta = self._progress, self.settings.min_delta
        best = (
            f"lower than {progress.best_loss:.4f} (step {progress.best_step})"
            if progress.best_step
            else "that is a number"
        )
        return (
            f"step {progress.step}: {progress.worse_evaluations} evaluations in a row (eval.patience) had no "
            f"validation loss {best}{f' by {min_delta:g}' if min_delta else ''}: stopping early."
        )


def note_evaluation(progress: Progress, loss: float, min_delta: float) -> bool:
    """Count an evaluation at `progress.step`; whether it is the best so far."""
    progress.evaluated_step = progress.step
    is_best = math.isfinite(loss) and (not progress.best_step or loss < progress.best_loss - min_delta)
    if is_best:
        progress.best_step, progress.best_loss, progress.worse_evaluations = progress.step, loss, 0
    else:
        progress.worse_evaluations += 1
    return is_best
