"""What a run measures on held-out text, between its updates and at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowrise.config import RunConfig
from lowrise.data import Corpus
from lowrise.distributed import World, check_same_work
from lowrise.inference.evaluate import EvalResult, Stopped, evaluate_split, extra_texts
from lowrise.runs.environment import autocast_for
from lowrise.train.display import Display
from lowrise.train.step import TrainStep
from lowrise.train.summary import evaluation_record

Results = dict[str, EvalResult]
"""By the names of the texts; that of the held-out split is empty."""


class HeldOut:
    """The held-out split and the texts of `[eval.extra]`, by a run's weights and by their average (`[ema]`)
    once it has begun.
    """

    def __init__(
        self, config: RunConfig, corpus: Corpus, step: TrainStep, display: Display, world: World
    ) -> None:
        self.config, self.step, self.display, self.world = config, step, display, world
        extra = extra_texts(config, corpus, display.console)
        check_same_work(world, **{f"text eval.extra.{name}": c.fingerprint for name, c in extra.items()})
        self.texts = {"": corpus, **extra}
        self.results: Results = {}
        self.averaged: Results = {}
        """Those of the last evaluation; the second ones by the average."""

    def measure(self, limit: int, asked_to_stop: Callable[[], bool], of: str = "") -> EvalResult | None:
        """Evaluate on up to `limit` tokens of each text (0: all) and show it, with what it is `of`; returns
        what the held-out split gave. None, and the results of before, if a stop is asked for before the end.
        Collective.
        """
        average, averaged = self.step.average, Results()
        try:
            results = self._by_the_model(limit, asked_to_stop)
            if average is not None and average.tensors:
                with average.in_the_model(self.step.model):
                    averaged = self._by_the_model(limit, asked_to_stop)
        except Stopped:
            return None
        self.results, self.averaged = results, averaged
        beside = {name: result.loss for name, result in results.items() if name}
        beside |= {f"{name} ema".strip(): result.loss for name, result in averaged.items()}
        self.display.evaluated(self.step.progress.step, results[""], beside, of)
        return results[""]

    def _by_the_model(self, limit: int, asked_to_stop: Callable[[], bool]) -> Results:
        with autocast_for(self.config, self.step.device):
            return {
                name: evaluate_split(self.step.model, corpus, self.config, limit, asked_to_stop, self.world)
                for name, corpus in self.texts.items()
            }

    def record(self) -> dict[str, Any]:
        """Numbers of the last evaluation for metrics.jsonl."""
        return evaluation_record({"": self.results[""]}) | self.further_record()

    def further_record(self) -> dict[str, Any]:
        """Those beside the ones of the held-out split by the run's own weights, for summary.json."""
        further = evaluation_record({name: result for name, result in self.results.items() if name})
        return further | {f"ema_{key}": value for key, value in evaluation_record(self.averaged).items()}
