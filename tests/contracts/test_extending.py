"""A method from outside the package, in one file: contract tests, sharding, recipes and commands come by
themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import SHARED, on_ranks, option_runs, parallel_config, supported
from small_runs import run_training, saved_weights
from torch import nn

from lowrise import cli
from lowrise.config import load
from lowrise.errors import LowriseError, UsageError
from lowrise.methods import Method, register
from lowrise.optim import OPTIMIZERS, Muon
from lowrise.plugins import load_plugins

ROOT = Path(__file__).parents[2]
DION = ROOT / "examples" / "dion.py"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")


def test_the_example_is_short():
    assert len(DION.read_text().splitlines()) <= 90


def test_the_example_follows_the_published_trajectory(shared):
    load_plugins([str(DION)])
    arrays = np.load(shared / "fixtures" / "muon_small.npz")
    for case in json.loads(str(arrays["index"]))["dion"]:
        name = f"dion_{case['name']}"
        W = nn.Parameter(torch.tensor(arrays[f"{name}/W0"]))
        options = {"rank": case["rank"], "momentum": case["mu"], "weight_decay": case["wd"]}
        optimizer = OPTIMIZERS["dion"]([W], lr=case["lr"], **options)  # type: ignore[call-arg]
        optimizer.state[W]["Q"].copy_(torch.tensor(arrays[f"{name}/Q0"]))
        for G, expected in zip(arrays[f"{name}/G"], arrays[f"{name}/W"], strict=True):
            W.grad = torch.tensor(G)
            optimizer.step()
            torch.testing.assert_close(W.detach(), torch.tensor(expected), rtol=0, atol=1e-12)
        torch.testing.assert_close(optimizer.state[W]["momentum"], torch.tensor(arrays[f"{name}/momentum"]))


@pytest.mark.parametrize("file", ["test_optimizers.py", "test_changed_parameters.py", "test_training.py"])
def test_the_contracts_hold_for_a_plugin(file):
    done = subprocess.run(
        [*PYTEST, "-k", "dion", str(ROOT / "tests" / "contracts" / file)],
        env={**os.environ, "LOWRISE_TEST_PLUGINS": str(DION), "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@pytest.mark.xdist_group("ranks")
def test_two_ranks_equal_one(text_folder, tmp_path):
    settings = {"plugin": [str(DION)], "optimizer.rank": 4}
    run_training(parallel_config(text_folder, "dion", **settings), tmp_path / "one")
    runs = {data: ("dion", settings | SHARED[data]) for data in supported("ddp", "fsdp")}
    on_ranks(2, tmp_path, option_runs, text_folder, tmp_path, runs)
    one, *others = (saved_weights(tmp_path / name, 8) for name in ("one", *runs))
    for name, expected in one.items():
        for weights in others:
            error = torch.linalg.vector_norm(weights[name] - expected) / torch.linalg.vector_norm(expected)
            assert float(error) < 1e-4, name


def test_the_commands_take_a_plugin(text_folder, tmp_path, monkeypatch, capsys):
    flags = {
        "--plugin": os.path.relpath(DION),
        "--method": "dion",
        "--model.preset": "nano",
        "--data.source": str(text_folder / "text.jsonl"),
        "--data.cache": str(text_folder / "cache"),
        "--data.vocab_size": "300",
        "--data.valid_fraction": "0.1",
        "--train.steps": "3",
        "--train.global_batch_size": "4",
        "--optimizer.rank": "2",
        "--sample.tokens": "3",
        "--log.tensorboard": "False",
    }
    words = [word for pair in flags.items() for word in pair]
    assert cli.main(["train", *words, "--run", str(tmp_path / "run")]) == 0
    config = load(tmp_path / "run" / "config.toml")
    assert (config.method, config.optimizer.name, config.optimizer.rank) == ("dion", "dion", 2)
    assert config.plugin == (str(DION),)
    monkeypatch.chdir(tmp_path)  # the run does not depend on the working folder
    assert cli.main(["eval", "run"]) == 0
    assert cli.main(["generate", "run", "--prompt", "a", "--tokens", "2"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_wrong_plugins_get_a_message(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"There is no plugin '.*nowhere\.py'"):
        load_plugins([str(tmp_path / "nowhere.py")])
    with pytest.raises(UsageError, match=r"There is no plugin 'no_such_module_here'"):
        load_plugins(["no_such_module_here"])
    (tmp_path / "a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"There is no plugin 'a_folder' \(a_folder is a folder without"):
        load_plugins(["a_folder"])
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(LowriseError, match=r"broken\.py failed: ZeroDivisionError"):
        load_plugins([str(broken)])
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "dion.py"
    second.write_text("")
    load_plugins([str(DION)])
    with pytest.raises(UsageError, match="have one name"):
        load_plugins([str(second)])


def test_a_taken_name_is_refused():
    row = Method(name="adamw", layer="dense", optimizer="muon", summary="x", source="x")
    with pytest.raises(UsageError, match="There is a method 'adamw' already"):
        register(row)
    register(optimizer=Muon)  # the same again is no harm
