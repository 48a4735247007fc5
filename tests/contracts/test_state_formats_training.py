"""What the trainer promises holds with moments in bfloat16 and 8 bits: exact resume, planned bytes, loss."""

import pytest
import torch
from small_runs import config_for, final_tensors, run_training, trainer_for

from lowrise.checkpoint import CheckpointStore
from lowrise.config import from_dict, load
from lowrise.errors import UsageError
from lowrise.optim.engine import state_formats as formats

CASES = [
    ("adamw", {"optimizer.state_format": "8bit"}),
    ("spectron", {"optimizer.state_format": "bfloat16", "other.state_format": "8bit"}),
    # Ranks change during training, and moments follow.
    ("tsvd", {"optimizer.state_format": "8bit"}),
    # Moments are dropped during training.
    ("relora", {"optimizer.state_format": "bfloat16"}),
]
every_case = pytest.mark.parametrize(("method", "options"), CASES, ids=[name for name, _ in CASES])


@pytest.fixture(autouse=True)
def compress_small_moments_too(monkeypatch):
    """In a model this small most factors are below 4096 elements."""
    monkeypatch.setattr(formats, "LEAST_ELEMENTS", 256)


@every_case
def test_resume_is_exact_and_planned_is_measured(method, options, text_folder, tmp_path):
    config = config_for(text_folder, method, **options)
    whole = run_training(config, tmp_path / "whole")
    assert whole["state_bytes_planned"] == whole["state_bytes_measured"]
    exact = trainer_for(config_for(text_folder, method), tmp_path / "float32").plan.state_bytes
    assert whole["state_bytes_measured"] < 0.6 * exact

    trainer = trainer_for(config, tmp_path / "parts")

    class Killed(Exception):
        pass

    advance = trainer._advance

    def advance_then_die(board):
        advance(board)
        if trainer.progress.step == 5:
            raise Killed

    trainer._advance = advance_then_die
    with pytest.raises(Killed):
        trainer.run()
    run_training(config, tmp_path / "parts")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)


@pytest.mark.parametrize("state_format", ["bfloat16", "8bit"])
def test_the_loss_is_that_of_float32(state_format, text_folder, tmp_path):
    more = {"train.steps": 60, "optimizer.lr": 3e-3, "eval.every": 0, "checkpoint.every": 0}
    losses = {}
    for name in ("float32", state_format):
        config = config_for(text_folder, "adamw", **more, **{"optimizer.state_format": name})
        losses[name] = run_training(config, tmp_path / name)["val_loss"]
    assert losses["float32"] < 3.3, "it learns: log 300 is 5.7, and the words alone are worth 3.0"
    # Another seed moves the loss by some hundredths here; the format by less than one.
    assert losses[state_format] == pytest.approx(losses["float32"], abs=0.02)


def test_a_checkpoint_holds_the_formats(text_folder, tmp_path):
    config = config_for(text_folder, "adamw", **{"optimizer.state_format": "8bit"})
    run_training(config, tmp_path)
    checkpoint = CheckpointStore(tmp_path / "checkpoints").newest(warn=print)
    tensors = checkpoint.parts["optimizer"]
    name = "model.layers.0.self_attn.q_proj.weight.exp_avg"
    assert tensors[f"{name}_codes"].dtype == torch.uint8
    assert tensors[f"{name}_scales"].shape == (16,)
    with pytest.raises(UsageError, match=r"optimizer\.state_format"):
        run_training(config_for(text_folder, "adamw"), tmp_path)


def test_the_configuration_knows_formats():
    plain = load(None, {"method": "adamw"})
    eight = load(None, {"method": "adamw", "optimizer.state_format": "8bit"})
    assert plain.optimizer.state_format == "float32"
    assert plain.other.state_format is None
    assert eight.optimizer.state_format == "8bit"
    assert "state_format" in eight.to_toml()
    # The identity of runs from before the option is what it was.
    values = plain.to_dict()
    del values["optimizer"]["state_format"]
    assert from_dict(values).hash == plain.hash != eight.hash
    with pytest.raises(UsageError, match=r"optimizer.state_format = '8bits' should be one of 'float32'"):
        load(None, {"optimizer.state_format": "8bits"})
