"""A run goes on by the meaning of its recipe: what changes the mathematics is refused by name, the rest is
accepted and written down; a run can be made longer, moved, branched."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from small_runs import config_for, final_tensors, metrics, run_training, trainer_for, write_text

from lowrise.config import RunConfig, load
from lowrise.config.identity import Kind, flatten, kind_of
from lowrise.errors import UsageError
from lowrise.layers import LAYERS
from lowrise.methods import METHODS
from lowrise.optim import OPTIMIZERS
from lowrise.signals import SaveRequest, saving_ends_nothing

WSD = {"schedule.name": "wsd", "schedule.warmup": 2, "schedule.decay": 3}
# A guide that fades by the length of the run, and events of adaptive ranks at shares of it.
BOUND_TO_A_LENGTH = ("selfguided", "stablespam", "tsvd")
CONSTANT = {"schedule.name": "constant", "schedule.warmup": 2}


def history(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "environment.json").read_text())["history"]


def stopped_at(config: RunConfig, run: Path, step: int) -> None:
    """The run, asked to stop after that update."""
    trainer = trainer_for(config, run)
    advance = trainer._advance

    def then_stop(board: Any) -> None:
        advance(board)
        if trainer.progress.step == step:
            trainer.keeping.saver.finish()
            raise InterruptedError

    trainer._advance = then_stop
    with pytest.raises(InterruptedError):
        trainer.run()


# --- kinds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_key_has_a_kind(method):
    for key in flatten(load(None, {"method": method}).to_dict()):
        assert isinstance(kind_of(key), Kind)


def test_no_key_is_classified_by_chance():
    """`train` decides on mathematics and execution alike, so no key of it may have a kind by its section."""
    with pytest.raises(KeyError):
        kind_of("train.something_new")
    with pytest.raises(KeyError):
        kind_of("new_section.key")


def test_every_class_may_be_classified():
    for layer in LAYERS:
        for optimizer in OPTIMIZERS:
            config = load(None, {"layer.name": layer, "optimizer.name": optimizer})
            assert all(kind_of(key) for key in flatten(config.to_dict()))


# --- what is refused, what is accepted ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("optimizer.lr", 0.5, r"optimizer\.lr: 0.0004 there, 0.5 here"),
        ("seed", 3, "seed: 0 there, 3 here"),
        ("other.weight_decay", 0.3, r"other\.weight_decay: 0.0 there, 0.3 here"),
        ("train.grad_clip", 0.5, r"train\.grad_clip: 1.0 there, 0.5 here"),
        (
            "train.precision",
            "bfloat16",
            r"precision: float32 there, bfloat16 here.*--train.precision float32",
        ),
        ("train.seq_len", 8, r"train\.seq_len: 16 there, 8 here"),
        ("train.global_batch_size", 8, r"train\.global_batch_size: 4 there, 8 here"),
        ("optimizer.state_format", "bfloat16", "state_format: float32 there, bfloat16 here"),
        ("data.valid_fraction", 0.3, r"text.*has changed.*data\.valid_fraction: 0.1 there, 0.3 here"),
        ("schedule.min_lr_ratio", 0.5, r"schedule\.min_lr_ratio: 0.1 there, 0.5 here.*init\.what all"),
    ],
)
def test_mathematics_is_refused_by_name_and_nothing_is_changed(
    key, value, sentence, text_folder, tmp_path
) -> None:
    run_training(config_for(text_folder, "adamw"), tmp_path)
    files = {f: f.read_bytes() for f in (tmp_path / "config.toml", tmp_path / "environment.json")}
    with pytest.raises(UsageError, match=f"(?s){sentence}"):
        run_training(config_for(text_folder, "adamw", **{key: value}), tmp_path)
    assert all(file.read_bytes() == content for file, content in files.items())


def test_how_it_is_computed_shown_and_kept_may_change(text_folder, tmp_path):
    settings: dict[str, Any] = {
        "train.threads": 2,
        "train.micro_batch_size": 2,
        "train.deterministic": False,
        "eval.every": 3,
        "eval.tokens": 64,
        "eval.batch_size": 8,
        "checkpoint.every": 3,
        "checkpoint.asynchronous": False,
        "log.every": 2,
        "log.telemetry_every": 0,
        "sample.tokens": 4,
        "parallel.data": "ddp",
        "model.recompute": "block",
        "data.workers": 1,
    }
    stopped_at(config_for(text_folder, "adamw"), tmp_path / "run", 5)
    again = trainer_for(config_for(text_folder, "adamw", **settings), tmp_path / "run")
    assert again.run()["status"] == "completed"
    said = again.display.console.file.getvalue()
    assert "Settings that may change have changed" in said
    first, second = history(tmp_path / "run")
    assert (first["step"], second["step"]) == (0, 4)
    assert {"data.workers"} | settings.keys() == second["changed"].keys() | {"data.workers"}
    assert second["changed"]["eval.every"] == [4, 3]
    assert load(tmp_path / "run" / "config.toml").eval.every == 3
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 6, 8]


def test_what_auto_comes_out_as_may_be_said(text_folder, tmp_path):
    stopped_at(config_for(text_folder, "adamw"), tmp_path, 5)
    run_training(config_for(text_folder, "adamw", **{"train.precision": "float32"}), tmp_path)
    assert history(tmp_path)[1]["changed"]["train.precision"] == ["auto", "float32"]
    report = (tmp_path / "report.html").read_text()
    assert "start at step 4" in report
    assert json.loads((tmp_path / "environment.json").read_text())["seal"] not in report


def test_the_result_is_the_same_with_other_cadences(text_folder, tmp_path):
    run_training(config_for(text_folder, "spectron"), tmp_path / "whole")
    stopped_at(config_for(text_folder, "spectron"), tmp_path / "parts", 5)
    other = {"eval.every": 0, "log.every": 3, "log.telemetry_every": 0, "checkpoint.every": 0}
    run_training(config_for(text_folder, "spectron", **other), tmp_path / "parts")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)


# --- the same text under another name -----------------------------------------------------------------------


def test_equal_text_under_another_name_continues(tmp_path, monkeypatch):
    write_text(tmp_path / "text.jsonl")
    monkeypatch.chdir(tmp_path)
    relative = {"data.source": ["text.jsonl"], "data.cache": "cache"}
    stopped_at(config_for(tmp_path, "adamw", **relative), tmp_path / "run", 5)
    written = load(tmp_path / "run" / "config.toml")
    assert written.data.source == (str(tmp_path / "text.jsonl"),)
    assert written.data.cache == str(tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "text.jsonl", tmp_path / "elsewhere" / "other.jsonl")
    monkeypatch.chdir("/")
    moved = {"data.source": [str(tmp_path / "elsewhere" / "other.jsonl")]}
    summary = run_training(config_for(tmp_path, "adamw", **moved), tmp_path / "run")
    assert summary["status"] == "completed"
    assert "data.source" in history(tmp_path / "run")[1]["changed"]


def test_eval_generate_and_info_work_from_any_folder(tmp_path, monkeypatch, capsys):
    from lowrise.cli import main

    write_text(tmp_path / "text.jsonl")
    monkeypatch.chdir(tmp_path)
    relative = {"data.source": ["text.jsonl"], "data.cache": "cache"}
    summary = run_training(config_for(tmp_path, "adamw", **relative), tmp_path / "run")
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    assert main(["eval", str(tmp_path / "run"), "--json", "true"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["val_loss"] == summary["val_loss"]
    assert main(["generate", str(tmp_path / "run"), "--tokens", "3"]) == 0
    assert main(["data", "info", str(tmp_path / "run")]) == 0
    assert "text.jsonl" in capsys.readouterr().out
    assert not any((tmp_path / "far").iterdir())


def test_first_weights_are_compared_by_content(text_folder, tmp_path, monkeypatch):
    run_training(config_for(text_folder, "adamw"), tmp_path / "dense")
    monkeypatch.chdir(tmp_path)
    stopped_at(config_for(text_folder, "lora", **{"init.run": "dense"}), tmp_path / "run", 5)
    assert load(tmp_path / "run" / "config.toml").init.run == str(tmp_path / "dense")
    shutil.copytree(tmp_path / "dense", tmp_path / "copy")
    same = {"init.run": str(tmp_path / "copy")}
    stopped_at(config_for(text_folder, "lora", **same), tmp_path / "run", 6)
    shutil.rmtree(tmp_path / "dense")  # what a run has begun from need not stay
    run_training(config_for(text_folder, "lora", **{"init.run": str(tmp_path / "dense")}), tmp_path / "run")
    for other in ({**same, "init.step": 4}, {}):
        with pytest.raises(UsageError, match=r"has begun from .*dense .*and init names"):
            run_training(config_for(text_folder, "lora", **other), tmp_path / "run")


# --- longer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [WSD, CONSTANT], ids=["wsd", "constant"])
def test_a_run_of_40_made_60_is_the_run_of_60(schedule, text_folder, tmp_path):
    settings = schedule | {"eval.every": 20, "checkpoint.every": 20}
    short, long = (config_for(text_folder, "spectron", **settings, **{"train.steps": n}) for n in (40, 60))
    run_training(long, tmp_path / "long")
    if schedule is WSD:  # its decay has not begun
        stopped_at(short, tmp_path / "grown", 30)
    else:
        run_training(short, tmp_path / "grown")
    summary = run_training(long, tmp_path / "grown")
    assert summary["steps"] == 60
    assert final_tensors(tmp_path / "grown", 60) == final_tensors(tmp_path / "long", 60)
    assert history(tmp_path / "grown")[1]["changed"]["train.steps"] == [40, 60]
    steps = [line["step"] for line in metrics(tmp_path / "grown") if "loss" in line]
    assert steps == list(range(1, 61))


@pytest.mark.parametrize("method", METHODS)
def test_a_longer_run_is_the_same_or_refused(method, text_folder, tmp_path):
    """Every method, with layers and optimizers that change with time: 8 updates made
    12."""
    short, long = (config_for(text_folder, method, **CONSTANT, **{"train.steps": n}) for n in (8, 12))
    run_training(short, tmp_path / "end")
    if method in BOUND_TO_A_LENGTH:
        with pytest.raises(UsageError, match=r"--init\.what all"):
            run_training(long, tmp_path / "end")
        assert load(tmp_path / "end" / "config.toml").train.steps == 8
    else:
        run_training(long, tmp_path / "end")
        run_training(long, tmp_path / "long")
        assert final_tensors(tmp_path / "end", 12) == final_tensors(tmp_path / "long", 12)


def test_a_merge_that_the_end_left_out_is_refused(text_folder, tmp_path):
    settings = CONSTANT | {"layer.merge_every": 4, "train.steps": 8}
    run_training(config_for(text_folder, "lora", **settings), tmp_path)
    with pytest.raises(UsageError, match=r"with 12 update 8 would have been another one.*LoRALinear"):
        run_training(config_for(text_folder, "lora", **settings | {"train.steps": 12}), tmp_path)


@pytest.mark.parametrize(
    ("settings", "steps", "sentence"),
    [
        ({}, 12, r"train.steps: 8 there, 12 here.*A cosine schedule is fixed by its length.*--init.what all"),
        ({"schedule.name": "linear"}, 12, "A linear schedule is fixed by its length"),
        (WSD, 12, "A wsd run can be made longer until its decay begins, and the updates from 6 to 8"),
        (
            CONSTANT | {"schedule.warmup": 0.25},
            12,
            r"schedule.warmup = 0.25 is a fraction.*--schedule.warmup 2",
        ),
        (CONSTANT, 6, "has done 8 updates already: give at least 8"),
    ],
)
def test_what_cannot_be_made_longer_is_told_the_way(settings, steps, sentence, text_folder, tmp_path) -> None:
    run_training(config_for(text_folder, "adamw", **settings), tmp_path)
    with pytest.raises(UsageError, match=sentence):
        run_training(config_for(text_folder, "adamw", **settings, **{"train.steps": steps}), tmp_path)


# --- branches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spectron", "relora", "adamw", "tsvd", "selfguided"])
def test_a_branch_with_all_is_the_run_gone_on(method, text_folder, tmp_path):
    config = config_for(text_folder, method)
    run_training(config, tmp_path / "whole")
    branch = {"init.run": str(tmp_path / "whole"), "init.step": 4, "init.what": "all"}
    summary = run_training(config_for(text_folder, method, **branch), tmp_path / "branch")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "branch", 8)
    assert summary["tokens"] == 8 * 4 * 16
    assert [line["step"] for line in metrics(tmp_path / "branch") if "loss" in line] == [5, 6, 7, 8]
    first = history(tmp_path / "branch")[0]
    assert (first["step"], Path(first["init"]).name) == (4, "step-00000004")
    again = run_training(config_for(text_folder, method, **branch), tmp_path / "branch")
    assert again["status"] == "completed"


def test_a_branch_has_a_schedule_of_its_own(text_folder, tmp_path):
    run_training(config_for(text_folder, "adamw", **WSD, **{"checkpoint.keep": 9}), tmp_path / "trunk")
    branch = {"init.run": str(tmp_path / "trunk"), "init.step": 4, "init.what": "all", "optimizer.lr": 1e-5}
    run_training(config_for(text_folder, "adamw", **CONSTANT, **branch), tmp_path / "branch")
    assert {line["lr"] for line in metrics(tmp_path / "branch") if "lr" in line} == {1e-5}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seed": 3}, "seed: 0 there, 3 here"),
        ({"train.global_batch_size": 8}, r"global_batch_size: 4 there, 8 here.*weights alone"),
        ({"init.step": 8}, "has done 8: give a larger number"),
        ({"data.vocab_size": 280}, "another tokenizer"),
    ],
)
def test_a_branch_that_cannot_be_is_a_sentence(settings, sentence, text_folder, tmp_path) -> None:
    run_training(config_for(text_folder, "adamw"), tmp_path / "trunk")
    branch = {"init.run": str(tmp_path / "trunk"), "init.step": 4, "init.what": "all"} | settings
    with pytest.raises(UsageError, match=sentence):
        run_training(config_for(text_folder, "adamw", **branch), tmp_path / "branch")


# --- SIGUSR1 ------------------------------------------------------------------------------------------------


def test_sigusr1_saves_and_goes_on(text_folder, tmp_path):
    config = config_for(text_folder, "spectron", **{"checkpoint.every": 0, "checkpoint.keep": 9})
    trainer = trainer_for(config, tmp_path)
    update = trainer.update

    def update_then_signal():
        if trainer.progress.step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return update()

    trainer.update = update_then_signal
    before = signal.getsignal(signal.SIGUSR1)
    assert trainer.run()["status"] == "completed"
    assert trainer.directory.checkpoints.steps() == [4, 8]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_sigusr1_ends_nothing_while_there_is_nothing_to_save():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        saving_ends_nothing()
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_request_to_save_is_taken_once():
    with SaveRequest() as request:
        assert not request.take()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.take()
        assert not request.take()
