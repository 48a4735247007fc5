"""Experiment services get every line, continue a continued run, and cannot harm one."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
from small_runs import config_for, console, corpus_of, final_tensors, metrics, run_training

from lowrise.config import load
from lowrise.console import Console
from lowrise.errors import UsageError
from lowrise.train import RunDirectory, services, train
from lowrise.train.services import numbers_of


class Remote:
    """A service that a test can look into; `failures` calls of it fail first."""

    calls: ClassVar[list[tuple[str, Any]]] = []
    failures: ClassVar[int] = 0
    silent: ClassVar[threading.Event] = threading.Event()

    def _call(self, kind: str, what: Any) -> None:
        if Remote.failures:
            Remote.failures -= 1
            raise ConnectionError("no route to the service")
        Remote.silent.wait(20)
        Remote.calls.append((kind, what))

    def open(self, config, name, identity):
        self._call("open", (config["method"], name, identity))
        return identity or "remote-7"

    def log(self, numbers, step):
        self._call("log", (step, numbers))

    def close(self, summary):
        self._call("close", summary["status"])


@pytest.fixture
def remote(monkeypatch):
    """The service `json`, whose package is there wherever Python is."""
    monkeypatch.setattr(services, "SERVICES", {"json": Remote})
    monkeypatch.setattr(services, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(Remote, "calls", [])
    monkeypatch.setattr(Remote, "failures", 0)
    answering = threading.Event()
    answering.set()
    monkeypatch.setattr(Remote, "silent", answering)
    return Remote


def config(folder: Path, **more: Any):
    return config_for(folder, "lowrank", **{"log.services": ["json"], **more})


def told(folder: Path, run: Path, **more: Any) -> str:
    """What a run with the service said."""
    screen, given = io.StringIO(), config(folder, **more)
    train(given, corpus_of(given), RunDirectory(run), Console(file=screen, width=200))
    return screen.getvalue()


def sent(run: Path) -> list[tuple[int, dict[str, float]]]:
    return [(line["step"], numbers_of(line)) for line in metrics(run)]


def test_a_service_gets_every_line_under_its_step(text_folder, tmp_path, remote):
    run_training(config(text_folder), tmp_path / "run")
    assert remote.calls[0] == ("open", ("lowrank", "run", None))
    assert [what for _, what in remote.calls[1:-1]] == sent(tmp_path / "run")
    assert remote.calls[-1] == ("close", "completed")
    numbers = remote.calls[4][1][1]
    assert numbers["weight_spectral_norm/model.layers.0.self_attn.q_proj"] > 0
    assert "step" not in numbers


def test_a_continued_run_continues_the_remote_one(text_folder, tmp_path, remote):
    run_training(config(text_folder, **{"schedule.name": "constant"}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "services.json").read_text()) == {"json": "remote-7"}
    remote.calls.clear()
    longer = {"schedule.name": "constant", "train.steps": 10}
    run_training(config(text_folder, **longer), tmp_path / "run")
    assert remote.calls[0] == ("open", ("lowrank", "run", "remote-7"))
    assert [what[0] for kind, what in remote.calls if kind == "log"] == [9, 10, 10]


def test_what_fails_is_tried_again_and_told_once(text_folder, tmp_path, remote):
    remote.failures = 3
    said = told(text_folder, tmp_path / "run")
    assert said.count("json does not answer (no route to the service): the run goes on") == 1
    assert "not sent" not in said
    assert [what for _, what in remote.calls[1:-1]] == sent(tmp_path / "run")


def test_a_service_that_is_away_changes_nothing(text_folder, tmp_path, remote, monkeypatch):
    run_training(config(text_folder, **{"log.services": []}), tmp_path / "alone")
    monkeypatch.setattr(services, "PATIENCE", 0.2)
    remote.failures = 10**9
    said = told(text_folder, tmp_path / "run")
    assert said.count("does not answer") == 1
    assert "json: 12 records were not sent within 0 s" in said
    assert final_tensors(tmp_path / "run", 8) == final_tensors(tmp_path / "alone", 8)
    assert not remote.calls


def test_a_service_that_stands_still_does_not_hold_the_run(text_folder, tmp_path, remote, monkeypatch):
    monkeypatch.setattr(services, "PATIENCE", 0.2)
    remote.silent.clear()
    assert "were not sent" in told(text_folder, tmp_path / "run")
    remote.silent.set()  # lets its thread end


def test_records_beyond_what_is_kept_are_counted(text_folder, tmp_path, remote, monkeypatch):
    monkeypatch.setattr(services, "PATIENCE", 0.2)
    monkeypatch.setattr(services, "WAITING", 4)
    remote.silent.clear()
    said = told(text_folder, tmp_path / "run")
    assert "records were not sent" in said
    assert int(said.split("json: ")[1].split()[0]) >= 7
    remote.silent.set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ("absent", r"the package absent: pip install 'lowrise.absent"),
    ],
)
def test_unknown_services_and_those_not_installed_are_refused(
    name, message, text_folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(services.SERVICES, "absent", Remote)
    given = config(text_folder, **{"log.services": [name]})
    with pytest.raises(UsageError, match=message):
        train(given, corpus_of(given), RunDirectory(tmp_path / "run"), console())


def test_services_may_change_between_two_starts(text_folder, tmp_path, remote):
    run_training(config(text_folder, **{"log.services": []}), tmp_path / "run")
    run_training(config(text_folder), tmp_path / "run")
    assert load(tmp_path / "run" / "config.toml").log.services == ("json",)


# ---- the real packages, on files of their own


def test_weights_and_biases_offline(text_folder, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the package of the service is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert "not" not in told(text_folder, tmp_path / "run", **{"log.services": ["wandb"]})
    identity = json.loads((tmp_path / "run" / "services.json").read_text())["wandb"]
    assert any(identity in folder.name for folder in (tmp_path / "wandb").glob("offline-run-*"))


def test_trackio(text_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="the package of the service is not installed")
    told(text_folder, tmp_path / "run", **{"log.services": ["trackio"]})
    identity = json.loads((tmp_path / "run" / "services.json").read_text())["trackio"]
    runs = {run.name: run for run in trackio.Api().runs("lowrise")}
    assert identity in runs


def test_mlflow(text_folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the package of the service is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    constant = {"log.services": ["mlflow"], "schedule.name": "constant"}
    told(text_folder, tmp_path / "run", **constant)
    told(text_folder, tmp_path / "run", **constant | {"train.steps": 10})
    client = mlflow.MlflowClient()
    identity = json.loads((tmp_path / "run" / "services.json").read_text())["mlflow"]
    remote = client.get_run(identity)
    assert remote.info.status == "FINISHED"
    assert remote.data.params["method"] == "lowrank"
    losses = {point.step: point.value for point in client.get_metric_history(identity, "loss")}
    assert losses == {line["step"]: line["loss"] for line in metrics(tmp_path / "run") if "loss" in line}
    assert os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite")
