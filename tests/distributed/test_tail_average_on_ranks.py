"""The average of the last weights on several ranks: that of one rank, and exact after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import SHARED, needs_fsdp, on_ranks, option_runs
from small_runs import config_for, metrics, run_training

from lowrise.checkpoint import CheckpointStore
from lowrise.runs.tail_average import PART

EMA = {
    "ema.start": 3,
    "ema.horizon": 3,
    "schedule.name": "constant",
    "schedule.warmup": 2,
    "log.telemetry_every": 0,
}


def saved(run: Path, part: str) -> dict[str, torch.Tensor]:
    return dict(CheckpointStore(run / "checkpoints").load(8).parts[part])


@pytest.mark.parametrize(
    ("method", "data", "ranks"),
    [
        ("spectron", "ddp", 2),
        pytest.param("spectron", "fsdp", 2, marks=needs_fsdp),
        pytest.param("spectron", "hsdp", 4, marks=needs_fsdp),
        # Norms of whole matrices, of which a rank has rows.
        pytest.param("muonh", "fsdp", 2, marks=needs_fsdp),
        pytest.param("spectronh", "fsdp", 2, marks=needs_fsdp),
    ],
)
def test_equal_to_one_rank_and_exact_after_a_stop(method, data, ranks, text_folder, tmp_path: Path):
    settings = EMA | SHARED[data]
    run_training(config_for(text_folder, method, **EMA), tmp_path / "one")
    runs = {"whole": (method, settings), "stopped": (method, settings | {"train.steps": 5})}
    on_ranks(ranks, tmp_path / "ranks", option_runs, text_folder, tmp_path, runs)
    on_ranks(ranks, tmp_path / "again", option_runs, text_folder, tmp_path, {"stopped": runs["whole"]})
    for part in ("model", PART):
        one, whole, stopped = (saved(tmp_path / name, part) for name in ("one", "whole", "stopped"))
        for name, tensor in one.items():
            assert torch.equal(whole[name], stopped[name])
            # Sums in float32 in another order, and AdamW makes parts of a step (3e-3) of tiny gradients.
            torch.testing.assert_close(whole[name], tensor, rtol=1e-3, atol=5e-4)
    one, many = (
        next(x["ema_val_loss"] for x in metrics(tmp_path / name) if "val_loss" in x and x["step"] == 8)
        for name in ("one", "whole")
    )
    assert many == pytest.approx(one, rel=1e-5)
