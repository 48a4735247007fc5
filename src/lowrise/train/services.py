"""Experiment services as trackers of a run: Weights & Biases, trackio, MLflow (`log.services`).

A service is an aid, so it can neither slow a run down nor end it: records go through a queue to a thread of
the service's own; what a service refuses is tried again while the run goes on, told once, and what is not
sent `PATIENCE` seconds after the end of the run is counted and left: metrics.jsonl has every line. A run
that is continued continues the remote run, whose identity lies in `services.json` of its folder. Records
that the run had sent after its last checkpoint are sent a second time under the same steps.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from lowrise.config import RunConfig
from lowrise.config.identity import flatten
from lowrise.errors import LowriseError, UsageError, did_you_mean
from lowrise.files import is_known
from lowrise.runs.directory import RunDirectory
from lowrise.train.trackers import Tracker

PATIENCE = 30.0
"""Seconds after the end of a run for what a service has not got yet."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before what failed is tried again: doubled each time."""
WAITING = 10_000
"""Records kept for a service that is away; later ones are dropped and counted."""


class Service(Protocol):
    """One remote run. Every method may raise whatever the service's package does."""

    def open(self, config: Mapping[str, Any], name: str, identity: str | None) -> str:
        """Begin a remote run, or go on with the one of this identity; returns its identity."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers of one step by name."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """The run has ended, as summary.json says."""


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of metrics.jsonl but its step; those of matrices as `key/matrix`."""
    numbers = {key: value for key, value in record.items() if is_known(value) and key != "step"}
    for name, values in record.get("matrices", {}).items():
        numbers |= {f"{key}/{name}": value for key, value in values.items() if is_known(value)}
    return numbers


class Background(Tracker):
    """A service behind a queue and a thread; `say` tells what went wrong, once."""

    def __init__(self, name: str, service: Service, run: RunDirectory, say: Callable[[str], None]) -> None:
        self.name, self._service, self._run, self._say = name, service, run, say
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=f"lowrise-{name}", daemon=True)
        self._dropped, self._told = 0, False
        self._over = threading.Event()

    def on_start(self, config: Mapping[str, Any], step: int) -> None:
        def open_run() -> None:
            identity = self._service.open(config, self._run.path.name, self._identities().get(self.name))
            self._run.write_json(self._run.services, self._identities() | {self.name: identity})

        self._put(open_run)
        self._thread.start()

    def on_log(self, record: Mapping[str, Any]) -> None:
        numbers, step = numbers_of(record), record["step"]
        self._put(lambda: self._service.log(numbers, step))

    def on_evaluate(self, record: Mapping[str, Any]) -> None:
        self.on_log(record)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        if not self._thread.is_alive():
            return  # the run failed before it began
        self._put(lambda: self._service.close(summary))
        self._put(None)
        self._thread.join(PATIENCE)
        self._over.set()
        left = self._jobs.qsize() + self._dropped
        if self._thread.is_alive() or left:
            self._say(
                f"{self.name}: {max(left, 1)} records were not sent within {PATIENCE:.0f} s of the run's "
                f"end; {self._run.metrics} has all of them."
            )

    def _put(self, job: Callable[[], object] | None) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._dropped += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            for pause in _pauses():
                try:
                    job()
                    break
                except Exception as error:  # whatever a service's package raises
                    self._tell(error)
                if self._over.wait(pause):
                    return

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            text = " ".join(str(error).split()) or type(error).__name__
            self._say(f"{self.name} does not answer ({text[:200]}): the run goes on, and it is tried again.")

    def _identities(self) -> dict[str, str]:
        try:
            found = json.loads(self._run.services.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


# ---- the services


class WandB:
    """Weights & Biases: `WANDB_PROJECT`, `WANDB_MODE=offline` and the like are its own variables."""

    def open(self, config: Mapping[str, Any], name: str, identity: str | None) -> str:
        import wandb

        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.api.api_key:
            raise LowriseError("no key is known: wandb login, or WANDB_MODE=offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lowrise"),
            id=identity or secrets.token_hex(4),
            name=name,
            config=dict(config),
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own step counts calls and never goes back, as a run does that continues from a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def close(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(numbers_of(summary) | {"status": summary["status"]})
        self._run.finish(exit_code=0 if summary["status"] == "completed" else 1)


class Trackio:
    """trackio: local files, or a Space (`TRACKIO_SPACE_ID`), which it looks up itself."""

    def open(self, config: Mapping[str, Any], name: str, identity: str | None) -> str:
        import trackio

        identity = identity or f"{name}-{secrets.token_hex(2)}"
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "lowrise"),
            name=identity,
            config=flatten(config),
            resume="allow",
            embed=False,
        )
        return identity

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, summary: Mapping[str, Any]) -> None:
        self._run.finish()


class MLflow:
    """MLflow: `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say where."""

    def open(self, config: Mapping[str, Any], name: str, identity: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        if identity is None:
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "lowrise")
            experiment = self._client.get_experiment_by_name(title)
            place = experiment.experiment_id if experiment else self._client.create_experiment(title)
            identity = str(self._client.create_run(place, run_name=name).info.run_id)
            values = flatten(config).items()
            params = [Param(key, str(value)) for key, value in values if value is not None]
            for start in range(0, len(params), 100):  # its limit of a request
                self._client.log_batch(identity, params=params[start : start + 100])
        else:
            self._client.update_run(identity, status="RUNNING")
        self._identity = identity
        return identity

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, float(value), now, step) for key, value in numbers.items()]
        for start in range(0, len(metrics), 1000):  # its limit of a request
            self._client.log_batch(self._identity, metrics=metrics[start : start + 1000])

    def close(self, summary: Mapping[str, Any]) -> None:
        status = {"completed": "FINISHED", "interrupted": "KILLED"}.get(summary["status"], "FAILED")
        self._client.set_terminated(self._identity, status=status)


SERVICES: dict[str, Callable[[], Service]] = {"wandb": WandB, "trackio": Trackio, "mlflow": MLflow}


def services_of(config: RunConfig, run: RunDirectory, say: Callable[[str], None]) -> list[Background]:
    """The trackers that `log.services` names. Raises `UsageError` for one that is unknown or not
    installed."""
    for name in config.log.services:
        if name not in SERVICES:
            raise UsageError(f"log.services has {name!r}: {did_you_mean(name, SERVICES)}")
        if find_spec(name) is None:
            raise UsageError(f"log.services {name} needs the package {name}: pip install 'lowrise[{name}]'.")
        import_module(name)  # here: a first import in a thread would meet those of the run
    return [Background(name, SERVICES[name](), run, say) for name in dict.fromkeys(config.log.services)]
