"""The commands as a user types them: real processes, real kills, wrong flags."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import final_tensors, overrides

from lowrise.cli import main
from lowrise.config import load

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def lowrise(*words: object) -> list[str]:
    return [sys.executable, "-m", "lowrise", *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(lowrise(*words), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


@pytest.fixture
def recipe(text_folder, tmp_path) -> Path:
    path = tmp_path / "recipe.toml"
    values = overrides(
        text_folder, "spectron", **{"train.steps": 100, "checkpoint.every": 7, "eval.every": 25}
    )
    path.write_text(load(None, values).to_toml())
    return path


def test_train_eval_generate(recipe, tmp_path):
    folder = tmp_path / "run"
    done = run("train", recipe, "--run", folder, "--train.steps", "9")
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
    assert "bits per byte" in done.stdout
    assert str(folder / "report.html") in done.stdout.replace("\n", "")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 9

    evaluated = run("eval", folder, "--json", "true")
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(evaluated.stdout.strip().splitlines()[-1])
    assert result["val_loss"] == summary["val_loss"]
    assert result["val_bits_per_byte"] == summary["val_bits_per_byte"]

    texts = [run("generate", folder, "--prompt", "the rank", "--tokens", 12, "--seed", 3) for _ in range(2)]
    assert texts[0].returncode == 0, texts[0].stderr
    assert texts[0].stdout.startswith("the rank")
    assert texts[0].stdout == texts[1].stdout

    written = (folder / "metrics.jsonl").read_text()
    again = run("train", recipe, "--run", folder, "--train.steps", "9")
    assert again.returncode == 0, again.stderr
    assert (folder / "metrics.jsonl").read_text() == written, "nothing is there twice"
    assert "Continuing from step 9" in again.stdout
    assert json.loads((folder / "summary.json").read_text())["val_loss"] == summary["val_loss"]


def test_sigkill_at_any_moment_then_the_same_bits(recipe, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("train", recipe, "--run", whole).returncode == 0
    draw = random.Random(0)
    for step in (5, 23, 41):
        process = subprocess.Popen(
            lowrise("train", recipe, "--run", killed), env=ENVIRONMENT, stdout=subprocess.DEVNULL
        )
        metrics = killed / "metrics.jsonl"
        while process.poll() is None and not reached(metrics, step):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed: make it longer"
    assert run("train", recipe, "--run", killed).returncode == 0
    assert final_tensors(whole, 100) == final_tensors(killed, 100)
    assert loss_by_step(whole) == loss_by_step(killed)


def test_sigterm_exits_143_with_a_checkpoint(recipe, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        lowrise("train", recipe, "--run", folder),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not reached(folder / "metrics.jsonl", 10):
        time.sleep(0.005)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "The same command continues from here." in errors
    assert "Traceback" not in errors
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"


def reached(metrics: Path, step: int) -> bool:
    return metrics.exists() and f'"step": {step},' in metrics.read_text()


def loss_by_step(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss", line.get("val_loss"))) for line in lines]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--optimizer.momentun", "0.9"], "--optimizer.momentum"),
        (["train", "--train.steps", "many"], "--train.steps"),
        (["train", "--train.steps", "0"], "train.steps = 0 cannot be"),
        (["train", "--method", "spectrom"], "the nearest is 'spectron'"),
        (["train", "nowhere.toml"], "no recipe at nowhere.toml"),
        (["train", "--train.device", "tpu9", "--data.source", "{text}"], "tpu9"),
        (["train", "--data.source", "nowhere.jsonl"], "nowhere.jsonl"),
        (["train", "--layer.rank", "4000", "--data.source", "{text}"], "4000"),
        (["trian"], "the nearest is 'train'"),
        (["eval", "nowhere"], "nowhere is not a run directory"),
        (["generate", "nowhere"], "nowhere is not a run directory"),
        (["data", "prepair"], "data prepare"),
        (["methods", "muom"], "the nearest is 'muon'"),
        (["compare"], ""),
    ],
)
def test_usage_errors_are_sentences_with_code_2(words, expected, text_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOWRISE_CACHE", str(text_folder / "cache"))
    words = [str(text_folder / "text.jsonl") if word == "{text}" else word for word in words]
    try:
        code = main(words)
    except SystemExit as error:  # tyro ends the process itself
        code = error.code
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert code == 2, printed
    assert expected in " ".join(printed.split())
    assert "Traceback" not in printed


def test_help_and_tables(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert main(["methods"]) == 0
    assert main(["methods", "spectron"]) == 0
    printed = capsys.readouterr().out
    for word in ("train", "compare", "generate", "spectron", "2602.12429", 'variant = "published"'):
        assert word in printed
