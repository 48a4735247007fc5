"""One rank to two and back, each with another legal micro batch, and a branch: the same tokens and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import KINDS, on_ranks, option_runs
from small_runs import config_for, metrics, run_training, saved_weights

CONSTANT = {"schedule.name": "constant", "schedule.warmup": 2, "eval.every": 0, "log.telemetry_every": 0}


@pytest.mark.parametrize("data", KINDS[:2])
def test_from_one_to_two_and_back(data, text_folder, tmp_path: Path):
    settings = CONSTANT | {"train.grad_clip": 0.5}
    whole = {**settings, "train.steps": 9, "checkpoint.keep": 9}
    run_training(config_for(text_folder, "spectron", **whole), tmp_path / "one")
    here = {**settings, "train.steps": 3, "train.micro_batch_size": 4}
    run_training(config_for(text_folder, "spectron", **here), tmp_path / "moved")
    there = {**settings, "train.steps": 6, "train.micro_batch_size": 1, "parallel.data": data}
    there |= {"parallel.replicate_below": 65}
    init = {"init.run": str(tmp_path / "one"), "init.step": 4, "init.what": "all"}
    runs = {"moved": ("spectron", there), "branch": ("spectron", {**there, **init, "train.steps": 9})}
    on_ranks(2, tmp_path / "ranks", option_runs, text_folder, tmp_path, runs)
    back = {**settings, "train.steps": 9, "train.micro_batch_size": 2}
    run_training(config_for(text_folder, "spectron", **back), tmp_path / "moved")
    one, moved, branch = (saved_weights(tmp_path / name, 9) for name in ("one", "moved", "branch"))
    for name, weight in one.items():
        # Sums in float32 in another order; orthogonalized momenta enlarge their rounding.
        torch.testing.assert_close(moved[name], weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(branch[name], weight, rtol=1e-3, atol=1e-5)
    lines = {name: [x for x in metrics(tmp_path / name) if "loss" in x] for name in ("one", "moved")}
    assert [x["tokens"] for x in lines["moved"]] == [x["tokens"] for x in lines["one"]]
    for a, b in zip(lines["one"], lines["moved"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
