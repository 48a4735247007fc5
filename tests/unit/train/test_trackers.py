"""Trackers hear what metrics.jsonl gets; further texts are evaluated beside the held-out split."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from small_runs import config_for, console, corpus_of, metrics, run_training, trainer_for, write_text

from lowrise.config import load
from lowrise.errors import UsageError
from lowrise.evaluation.measure import evaluate_run
from lowrise.train import RunDirectory, Tracker, train
from lowrise.train.step import TrainStep


class Notes(Tracker):
    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def on_start(self, config, step):
        self.heard.append(("start", (config["method"], step)))

    def on_log(self, record):
        self.heard.append(("log", record))

    def on_evaluate(self, record):
        self.heard.append(("evaluate", record))

    def on_end(self, summary):
        self.heard.append(("end", summary["status"]))


def tracked(config, run, *trackers) -> dict[str, Any]:
    return train(config, corpus_of(config), RunDirectory(run), console(), trackers=trackers)


def test_a_tracker_hears_the_lines_of_metrics_in_their_order(text_folder, tmp_path):
    notes, others = Notes(), Notes()
    config = config_for(text_folder, "adamw", **{"log.tensorboard": True})
    tracked(config, tmp_path, notes, others)
    assert notes.heard[0] == ("start", ("adamw", 0))
    assert notes.heard[-1] == ("end", "completed")
    assert [json.loads(json.dumps(r)) for kind, r in notes.heard[1:-1]] == metrics(tmp_path)
    kinds = ["evaluate" if "val_loss" in r else "log" for r in metrics(tmp_path)]
    assert [kind for kind, _ in notes.heard[1:-1]] == kinds
    assert others.heard == notes.heard
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_continued_run_begins_where_it_is(text_folder, tmp_path):
    run_training(config_for(text_folder, "adamw"), tmp_path)
    notes = Notes()
    tracked(config_for(text_folder, "adamw"), tmp_path, notes)
    assert notes.heard[0] == ("start", ("adamw", 8))


def test_a_failure_ends_a_tracker_too(text_folder, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("broken")

    monkeypatch.setattr(TrainStep, "__call__", fail)
    notes = Notes()
    with pytest.raises(RuntimeError, match="broken"):
        tracked(config_for(text_folder, "adamw"), tmp_path, notes)
    assert notes.heard[-1] == ("end", "failed")


WRITER = """
import resource, sys
from pathlib import Path
from lowrise.train.trackers import open_tensorboard
folder = Path(sys.argv[1])
import torch.utils.tensorboard
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    with open_tensorboard(folder, 0) as board:
        for step in range(2000):
            board.on_log({"step": step, "loss": 1.0})
except OSError as error:
    print(error.filename, error.strerror)
"""


def test_a_full_disk_under_tensorboard_is_one_error_that_names_its_folder(tmp_path):
    pytest.importorskip("tensorboard")
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path / "events")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == f"{tmp_path / 'events'} File too large\n"
    assert "Traceback" not in done.stderr


def test_trackers_change_no_bit(text_folder, tmp_path):
    config = config_for(text_folder, "spectron")
    one = tracked(config, tmp_path / "a", Notes())
    two = run_training(config, tmp_path / "b")
    assert one["val_loss"] == two["val_loss"]


def test_further_texts_are_recorded_by_name(text_folder, tmp_path):
    write_text(tmp_path / "text.jsonl", documents=20)
    plain = run_training(config_for(text_folder, "adamw"), tmp_path / "plain")
    extra = {"eval.extra": {"small": str(tmp_path / "text.jsonl")}}
    config = config_for(text_folder, "adamw", **extra)
    summary = run_training(config, tmp_path / "run")
    assert summary["val_loss"] == plain["val_loss"]
    evaluations = [line for line in metrics(tmp_path / "run") if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [4, 8]
    assert evaluations[-1]["val_loss/small"] == summary["val_loss/small"]
    assert evaluations[0]["val_loss/small"] != summary["val_loss/small"]
    alone = evaluate_run(tmp_path / "run", "cpu", console(), source=[str(tmp_path / "text.jsonl")])
    assert alone["val_loss"] == summary["val_loss/small"]
    assert alone["val_tokens"] == summary["val_tokens/small"]
    assert load(tmp_path / "run" / "config.toml").eval.extra == extra["eval.extra"]
    again = run_training(config, tmp_path / "run")  # nothing twice
    assert len([line for line in metrics(tmp_path / "run") if "val_loss" in line]) == 2
    assert again["val_loss/small"] == summary["val_loss/small"]


def test_a_further_text_that_is_not_there_is_said_before_the_first_update(text_folder, tmp_path):
    config = config_for(text_folder, "adamw", **{"eval.extra": {"x": str(tmp_path / "absent")}})
    with pytest.raises(UsageError, match="matches no file"):
        trainer_for(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_names_are_words(name, text_folder):
    with pytest.raises(UsageError, match="a name is a word"):
        config_for(text_folder, "adamw", **{"eval.extra": {name: "x"}})
