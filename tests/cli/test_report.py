"""`lowrise report`: of one run again, of several one page; stopped and failed runs have one by themselves."""

from __future__ import annotations

import os
import signal

import pytest
from small_runs import config_for, run_training, trainer_for

from lowrise.cli import main
from lowrise.train.loop import Interrupted
from lowrise.train.step import TrainStep


@pytest.fixture
def two_runs(text_folder, tmp_path):
    run_training(config_for(text_folder, "adamw"), tmp_path / "a" / "run")
    run_training(config_for(text_folder, "lowrank", **{"layer.rank": 8}), tmp_path / "b" / "run")
    return tmp_path


def test_the_report_of_a_run_is_written_again(two_runs, capsys):
    page = two_runs / "a" / "run" / "report.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", str(page.parent)]) == 0
    assert page.read_text() == before
    assert str(page) in capsys.readouterr().out.replace("\n", "")


def test_several_runs_make_one_page(two_runs, monkeypatch):
    monkeypatch.chdir(two_runs)
    assert main(["report", "a/run", "b/run", "--out", "both.html"]) == 0
    page = (two_runs / "both.html").read_text()
    assert "<th>a/run</th><th>b/run</th>" in page
    assert "<td>layer.rank</td><td>unset</td><td>8</td>" in page
    assert "<td>method</td><td>adamw</td><td>lowrank</td>" in page
    assert "train.steps" not in page
    assert page.count('<figure class="chart"') == 4
    assert main(["report", "a/run", "a/run"]) == 0
    assert "They are the same in every key." in (two_runs / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a folder: a run (lowrise train)"),
        (["absent"], "absent is not there: lowrise report takes the folder of a run"),
        (["a/run", "b/run", "--out", "a"], "is a folder: name the HTML file"),
    ],
)
def test_wrong_requests_get_a_message(words, message, two_runs, monkeypatch, capsys):
    monkeypatch.chdir(two_runs)
    assert main(["report", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_may_not_be_read_is_no_track(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.setattr("lowrise.pages.os.access", lambda path, mode: path != folder)  # root may read all
    assert main(["report", str(folder)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "may not be read, so lowrise report cannot tell whether it is a run (lowrise train)" in message
    assert "change its rights" in message
    assert "track.toml" not in message


def test_a_stopped_run_has_a_report(text_folder, tmp_path):
    trainer = trainer_for(config_for(text_folder, "adamw"), tmp_path)
    advance = trainer._advance

    def advance_then_stop(board):
        advance(board)
        os.kill(os.getpid(), signal.SIGTERM)

    trainer._advance = advance_then_stop
    with pytest.raises(Interrupted):
        trainer.run()
    assert "This run was interrupted" in (tmp_path / "report.html").read_text()


def test_a_failed_run_has_a_report(text_folder, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("broken by the test")

    monkeypatch.setattr(TrainStep, "__call__", fail)
    with pytest.raises(RuntimeError):
        run_training(config_for(text_folder, "adamw"), tmp_path)
    assert "This run failed. broken by the test" in (tmp_path / "report.html").read_text()
