"""A checkpoint that was copied from another run is refused by name, by every command that would use it."""

from __future__ import annotations

import shutil

import pytest
from small_runs import config_for, run_training, write_text

from lowrise.cli import main


@pytest.mark.parametrize("other", [{"seed": 1}, {"optimizer.lr": 0.02}], ids=str)
def test_a_checkpoint_of_another_seed_or_recipe_is_refused(other, tmp_path, capsys):
    write_text(tmp_path / "text.jsonl")
    settings = {"train.steps": 2, "checkpoint.every": 2, "eval.every": 2, "log.tensorboard": False}
    for name, more in (("own", {}), ("other", other)):
        run_training(config_for(tmp_path, "lowrank", **settings, **more), tmp_path / name)
    own = tmp_path / "own" / "checkpoints" / "step-00000002"
    shutil.rmtree(own)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-00000002", own)
    run = str(tmp_path / "own")
    for words in (["train", run], ["eval", run], ["generate", run], ["export", run], ["inspect", run]):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert f"{own} was written by a run of another recipe or seed" in error
        assert "it was copied here" in error
