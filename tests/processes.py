"""Several processes on this machine that meet over gloo, for tests: what each rank does lies here, where a
new process can import it.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import config_for, run_training, trainer_for
from torch import Tensor, nn

from lowrise.config import RunConfig
from lowrise.distributed import (
    FailedElsewhere,
    GradientSum,
    LostRanks,
    World,
    check_alike,
    check_same_work,
    fsdp,
)
from lowrise.distributed.sharding import whole
from lowrise.errors import LowriseError, UsageError
from lowrise.optim.engine import ownership as spread
from lowrise.runs.build import build_optimizer
from lowrise.runs.parallel import share_work
from lowrise.runs.plan import plan_of
from lowrise.runs.planner import Planned
from lowrise.runs.weights import model_tensors
from lowrise.train.loop import Trainer

Work = Callable[..., Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_ranks(size: int, folder: Path, work: Work, *arguments: Any, seconds: float = 300.0) -> list[Any]:
    """`work(world, *arguments)` at each of `size` ranks; their results by rank. An exception at any rank is
    raised here, with its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = torch.multiprocessing.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(rank, size, port, folder, work, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    failures = [path.read_text() for path in sorted(folder.glob("failure-*.txt"))]
    assert not failures, "\n".join(failures)
    assert not late, f"{len(late)} of {size} ranks had not ended after {seconds} s"
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(size)]


def _rank(rank: int, size: int, port: int, folder: Path, work: Work, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with World(rank, size, rank).joined(torch.device("cpu")) as world:
            torch.save(work(world, *arguments), folder / f"result-{rank}.pt")
    except BaseException:
        (folder / f"failure-{rank}.txt").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise


# --- what ranks do ----------------------------------------------------------------------------------------


class Killed(Exception):
    """The end of a run that nobody prepared for."""


def parallel_config(folder: Path, method: str, **more: Any) -> RunConfig:
    """Eight updates with accumulation (on two ranks: two passes of one sequence) and clipping."""
    settings: dict[str, Any] = {
        "train.micro_batch_size": 1,
        "train.grad_clip": 0.5,
        "checkpoint.keep": 3,
        "log.telemetry_every": 0,
        "eval.every": 0,
        "sample.tokens": 0,
    }
    if method == "tsvd":  # ranks change after updates 2 and 4
        settings |= {
            "layer.energy": 0.5,
            "layer.rank_multiple": 2,
            "layer.min_rank": 4,
            "layer.max_drop": 0.5,
            "layer.rank_events": [0.25, 0.5],
        }
    return config_for(folder, method, **settings | more)


def kill_after(trainer: Trainer, step: int) -> None:
    """Run until `step` updates are made, and then no further."""
    advance = trainer._advance

    def advance_then_die(board: Any) -> None:
        advance(board)
        if trainer.progress.step == step:
            raise Killed

    trainer._advance = advance_then_die  # type: ignore[method-assign]
    try:
        trainer.run()
    except Killed:
        return
    raise AssertionError("the run ended before it was killed")


def drift(world: World, folder: Path, run: Path) -> None:
    """A weight of the last rank changes by one bit after update 2: nothing is saved after update 4."""
    trainer = trainer_for(parallel_config(folder, "muon"), run, world)
    advance = trainer._advance

    def advance_then_change(board: Any) -> None:
        if trainer.progress.step == 2 and world.rank == world.size - 1:
            weight = trainer.model.model.embed_tokens.weight.data.view(-1)
            weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))
        advance(board)

    trainer._advance = advance_then_change  # type: ignore[method-assign]
    with pytest.raises(LowriseError, match=r"drifted apart: after step 4, model\.embed_tokens\.weight"):
        trainer.run()
    assert trainer.directory.checkpoints.steps() == []


def keep_only(run: Path, step: int) -> None:
    """A run as it was when its checkpoint of `step` was the newest."""
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != f"step-{step:08d}":
            shutil.rmtree(checkpoint)


SHARED: dict[str, dict[str, Any]] = {
    "ddp": {"parallel.data": "ddp"},
    # Without norms (64 elements), which would be copies in any case, all parameters of the nano preset.
    "fsdp": {"parallel.data": "fsdp", "parallel.replicate_below": 65},
    "hsdp": {"parallel.data": "hsdp", "parallel.replicate_below": 65, "parallel.shard_degree": 2},
}
"""Settings of each way to share a model."""
needs_fsdp = pytest.mark.skipif(
    not fsdp.is_supported(), reason=f"FSDP needs torch 2.8 or newer, not {torch.__version__}"
)
KINDS = ["ddp", *(pytest.param(kind, marks=needs_fsdp) for kind in ("fsdp", "hsdp"))]
"""The keys of `SHARED` as parameters of tests."""


def supported(*kinds: str) -> list[str]:
    """Those of `kinds` that this torch can do."""
    return [kind for kind in kinds if kind == "ddp" or fsdp.is_supported()]


def train_methods(world: World, folder: Path, runs: Path, data: str, methods: list[str]) -> None:
    """For each method: a whole run, one that is killed and resumed, and the second half of the one-rank run
    that lies in `one/METHOD`.
    """
    if data == "ddp":
        drift(world, folder, runs / "drifted")
    for method in methods:
        config = parallel_config(folder, method, **SHARED[data])
        run_training(config, runs / "many" / method, world)
        kill_after(trainer_for(config, runs / "killed" / method, world), 5)
        run_training(config, runs / "killed" / method, world)
        copy = runs / "one_then_many" / method
        if world.leads:
            shutil.copytree(runs / "one" / method, copy)
            keep_only(copy, 4)
        world.largest(0)  # wait for the copy
        run_training(config, copy, world)


def option_runs(world: World, text: Path, folder: Path, runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Runs by name, each of a method with its settings."""
    for name, (method, more) in runs.items():
        run_training(parallel_config(text, method, **more), folder / name, world)


def float64_updates(world: World, folder: Path, runs: Path, kinds: list[str], methods: list[str]) -> Any:
    """`float64_run` of each method in each way to share."""
    return {data: {m: float64_run(world, folder, runs, data, m) for m in methods} for data in kinds}


def float64_run(world: World | None, folder: Path, runs: Path, data: str, method: str) -> dict[str, Any]:
    """Three updates in float64: losses, gradient norms, first and last weights, bytes of state."""
    config = parallel_config(folder, method, **SHARED[data])
    if data == "hsdp":  # a matrix or two at a time; the others send all at once
        spread.TRANSFER_ELEMENTS = 1 << 11
    trainer = trainer_for(config, runs / "float64" / method, world)
    trainer.model.double()
    trainer.train_step.optimizer = build_optimizer(config, trainer.model)
    share_work(config, trainer.optimizer, trainer.train_step.shared.ranks)
    start = whole_tensors(trainer.model)
    updates = [trainer.update() for _ in range(2)]
    optimizer = trainer.optimizer
    planned = plan_of(config, trainer.model, optimizer, world).communicated_bytes  # of the next update
    updates.append(trainer.update())
    ahead = Planned(config, trainer.corpus.tokenizer.vocab_size, devices=world.size if world else 1)
    ahead.model.double()
    device = ahead.on_device()
    return {
        "ahead": (device.communicated, device.state),
        "losses": [update.loss for update in updates],
        "norms": [update.grad_norm for update in updates],
        "start": start,
        "end": whole_tensors(trainer.model),
        "state": optimizer.state_bytes(),
        "planned": optimizer.planned_bytes_here(),
        "sent": trainer.train_step.communication().sent_bytes,
        "formula": planned,
    }


def twenty_updates(world: World | None, folder: Path, runs: Path, data: str, methods: list[str]) -> Any:
    """Weights of each method after twenty updates in float32."""
    ends = {}
    for method in methods:
        config = parallel_config(folder, method, **SHARED[data] | {"train.steps": 20})
        trainer = trainer_for(config, runs / "twenty" / method, world)
        for _ in range(20):
            trainer.update()
        ends[method] = whole_tensors(trainer.model)
    return ends


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(t.detach()).clone() for name, t in model_tensors(model).items()}


def words(world: World) -> dict[str, object]:
    """What ranks tell each other; a failure at any rank is one of the test."""
    told: dict[str, object] = {
        "total": world.total(world.rank + 0.5, 2**40 + 1.0),
        "largest": world.largest(7 * world.rank),
        "gathered": world.gathered(world.rank**2),
        "by_rank_0": world.by_rank_0(lambda: 40 + world.rank),
    }
    check_same_work(world, recipe="abc")
    with pytest.raises(UsageError, match=f"do not have the same recipe .rank {world.rank}: abc{world.rank}"):
        check_same_work(world, recipe=f"abc{world.rank}")

    def full_disk() -> None:
        raise LowriseError("no space left")

    kind = LowriseError if world.leads else FailedElsewhere
    with pytest.raises(kind, match="no space" if world.leads else "its own message") as e:
        world.by_rank_0(full_disk)
    told["exit_code"] = getattr(e.value, "exit_code", 1)
    same = {"a": torch.ones(3), "steps": torch.tensor(2.0), "seed": torch.tensor([1, 2])}
    check_alike(world, same, "now")
    other = same | {"steps": torch.tensor(2.0 + world.rank)}
    with pytest.raises(LowriseError, match=r"now, steps is not the same on all of them .1 of 3 tensors"):
        check_alike(world, other, "now")
    with pytest.raises(LowriseError, match="the list of tensors"):
        check_alike(world, {"a": torch.ones(3 + world.rank)}, "now")
    return told


def summed(world: World, bucket_bytes: int, passes: int) -> dict[str, Tensor]:
    """Gradients of a loss of which each rank has one row of the batch, and one parameter that has none."""
    model, batch = toy(4)
    gradients = GradientSum(world, bucket_bytes)
    for number in range(passes):
        loss = model(batch[world.share(4)][number::passes]).square().sum()
        if number < passes - 1:
            loss.backward()
            continue
        with gradients.over_ranks(reversed(list(model.parameters())), loss.device):
            loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"payload": torch.tensor(gradients.payload_bytes)}


def toy(rows: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model.frozen = nn.Parameter(torch.ones(9, dtype=torch.float64), requires_grad=False)
    return model, torch.randn(rows, 6, dtype=torch.float64)


def everything(world: World) -> dict[str, object]:
    return {
        "words": words(world),
        "sums": {(b, p): summed(world, b, p) for b in (1, 200, 2**20) for p in (1, 2)},
    }


def late(world: World) -> float:
    """Rank 1 is alive and does not come."""
    started = time.monotonic()
    if world.leads:
        with pytest.raises(LostRanks, match="Rank 0 has lost the other ranks"):
            world.largest(0)
    else:
        time.sleep(8)
    return time.monotonic() - started


def late_world(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with World(rank, 2, rank).joined(torch.device("cpu"), patience=timedelta(seconds=4)) as world:
        assert late(world) < 30
