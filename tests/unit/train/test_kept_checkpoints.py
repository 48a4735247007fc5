"""More checkpoints than are to be kept, as a kill between a save and their removal leaves them."""

from small_runs import config_for, final_tensors, run_training


def test_checkpoints_beyond_keep_are_retired_at_the_next_start(text_folder, tmp_path):
    many = config_for(text_folder, "muon", **{"checkpoint.every": 2, "checkpoint.keep": 9})
    run_training(many, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert len([*folder.iterdir()]) == 4
    weights = final_tensors(tmp_path / "run", 8)
    few = config_for(text_folder, "muon", **{"checkpoint.keep": 2, "checkpoint.keep_every": 2})
    run_training(few, tmp_path / "run")
    assert len([*folder.iterdir()]) == 4, "all are multiples of keep_every"
    run_training(config_for(text_folder, "muon", **{"checkpoint.keep": 2}), tmp_path / "run")
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000006", "step-00000008"]
    assert final_tensors(tmp_path / "run", 8) == weights
