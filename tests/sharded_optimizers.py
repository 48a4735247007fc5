"""Weights and state as sharded training has them, without a model: what ranks do in the tests of checkpoints.

`truth()` is what they make up together; `view(world, ...)` is what one rank has of it.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lowrise.checkpoint import CheckpointStore, Saver, writer
from lowrise.checkpoint.store import newest_checkpoint
from lowrise.distributed import World
from lowrise.distributed.collectives import FailedTogether, Words
from lowrise.errors import LowriseError

FORMS = [(1, "fsdp"), (2, "fsdp"), (2, "hsdp"), (4, "fsdp"), (4, "hsdp")]


def truth() -> dict[str, Tensor]:
    """Kind 1: "plain" and "step"; kind 2: "rows..."; kind 3: "own..."."""
    torch.manual_seed(7)
    return {
        "plain": torch.rand(3, 4),
        "step": torch.tensor(5.0),
        "rows.even": torch.rand(8, 3),
        "rows.uneven": torch.rand(5, 3),  # on 4 ranks 2, 2, 1 and 0
        "rows.one": torch.rand(1, 4),  # the others have none
        "rows.bf16": torch.rand(7, 2).bfloat16(),
        "rows.codes": torch.randint(0, 255, (9,), dtype=torch.uint8),
        "rows.double": torch.rand(6, 2, dtype=torch.float64),
        "rows.none": torch.rand(4, 0),
        "own.a": torch.rand(4, 4),
        "own.b": torch.rand(3, 5).bfloat16(),
        "own.c": torch.randint(0, 255, (11,), dtype=torch.uint8),
        "own.step": torch.tensor(3, dtype=torch.int64),
    }


def view(world: World, form: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this rank has of `values` in the form "copies", "fsdp" or "hsdp" (two groups of copies)."""
    if world.size == 1 or form == "copies":
        return {name: tensor.clone() for name, tensor in values.items()}
    groups = 2 if form == "hsdp" else 1
    shards = world.size // groups
    mesh = init_device_mesh("cpu", (groups, shards) if groups > 1 else (shards,))
    placements = [Replicate()] * (groups - 1) + [Shard(0)]
    found = {}
    for number, (name, tensor) in enumerate(values.items()):
        if name.startswith("rows"):
            found[name] = distribute_tensor(tensor.clone(), mesh, placements)
        elif not name.startswith("own") or number % shards == world.rank % shards:
            found[name] = tensor.clone()
    return found


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assert_equal(own: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert own.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert local(own[name]).dtype == local(tensor).dtype, name
        assert torch.equal(local(own[name]), local(tensor)), name


def path(folder: Path, size: int, form: str) -> Path:
    return folder / f"{size}-{form}"


def save_forms(world: World, folder: Path) -> None:
    """Each form of this number of ranks, by one `save`."""
    for size, form in FORMS:
        if size == world.size:
            parts = {"model": view(world, form, truth()), "random": {}}
            CheckpointStore(path(folder, size, form)).save(3, parts, {"tokens": 9}, world=world)


def load_forms(world: World, folder: Path) -> None:
    """All that any number of ranks saved, into each form of this one; and as whole tensors."""
    nothing = {name: torch.zeros_like(tensor) for name, tensor in truth().items()}
    for saved in FORMS:
        store = CheckpointStore(path(folder, *saved))
        checkpoint = newest_checkpoint(store, world, pytest.fail)
        assert checkpoint is not None
        assert checkpoint.numbers == {"tokens": 9}
        for size, form in [*FORMS, (world.size, "copies")]:
            if size == world.size:
                live = view(world, form, nothing)
                checkpoint.load_into("model", live, world)
                assert_equal(live, view(world, form, truth()))
        assert_equal(dict(checkpoint.parts["model"]), truth())


# --- on two ranks -----------------------------------------------------------------------------------------


def everything(world: World, folder: Path) -> None:
    save_forms(world, folder)
    threads_meet_no_collective(world, folder / "beside")
    collected(world, folder / "collected")
    failures(world, folder / "failures")
    refusals(world, folder / "refusals")


def threads_meet_no_collective(world: World, folder: Path) -> None:
    """Ranks go on with collectives and change weights while their threads write, at another pace each."""
    store = CheckpointStore(folder)
    live = view(world, "fsdp", truth())
    with flush_takes(0.3 * (1 + world.rank)), Saver(store, world, keep=2) as saver:
        saver.save(1, {"model": live}, {"tokens": 1})
        for tensor in live.values():
            local(tensor).zero_()
        assert [world.largest(number) for number in range(20)] == list(range(20))
        assert store.steps() == []
        saver.save(2, {"model": live}, {"tokens": 2})
    assert store.steps() == [1, 2]
    names = {file.name for file in store.path(1).iterdir()}
    assert names == {"checkpoint.json", *(f"model.0000{k}-of-00002.safetensors" for k in range(2))}
    first, second = (store.load(step) for step in (1, 2))
    assert_equal(dict(first.parts["model"]), truth())
    assert not any(tensor.any() for tensor in second.parts["model"].values())
    read = view(world, "fsdp", truth())
    second.load_into("model", read, world)
    assert_equal(read, live)
    # What all have is written by one; what is written is shared evenly.
    sizes = [(store.path(1) / f"model.0000{k}-of-00002.safetensors").stat().st_size for k in range(2)]
    assert sum(sizes) < 1.9 * max(sizes) + 600
    for name, files in first.files("model").items():
        assert len(files) == (2 if name.startswith("rows") and len(truth()[name]) > 1 else 1), name


def collected(world: World, folder: Path) -> None:
    """`whole`: the files that one rank would have written."""
    for beside in (True, False):
        store = CheckpointStore(folder / str(beside))
        with Saver(store, world, keep=2, asynchronous=beside, whole=True) as saver:
            saver.save(1, {"model": view(world, "fsdp", truth())}, {})
        alone = CheckpointStore(folder / "alone")
        if world.leads:
            alone.save(1, {"model": truth()}, {})
            files = [one.path(1) / "model.safetensors" for one in (store, alone)]
            assert files[0].read_bytes() == files[1].read_bytes()
    copies = CheckpointStore(folder / "copies")
    copies.save(1, {"model": view(world, "copies", truth())}, {}, world=world)
    assert {file.name for file in copies.path(1).iterdir()} == {"checkpoint.json", "model.safetensors"}


@contextmanager
def flush_takes(seconds: float) -> Iterator[None]:
    with mock.patch.object(writer, "flush", side_effect=lambda path: time.sleep(seconds)):
        yield


def save_and_wait(saver: Saver, step: int, parts: dict[str, dict[str, Tensor]]) -> None:
    saver.save(step, parts, {})
    saver.finish()


@contextmanager
def full_disk(here: bool) -> Iterator[None]:
    def full(*_: object) -> None:
        if here:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch.object(writer, "flush", full):
        yield


def failures(world: World, folder: Path) -> None:
    """No space at one rank: all of them hear of it, and the folder is as before."""
    parts = {"model": view(world, "fsdp", truth())}
    for rank, whole, beside in ((0, False, True), (1, False, True), (1, False, False), (0, True, True)):
        store = CheckpointStore(folder / f"{rank}{whole}{beside}")
        store.save(1, parts, {}, world=world)
        kind = LowriseError if world.rank == rank else FailedTogether
        with Saver(store, world, keep=2, asynchronous=beside, whole=whole) as saver:
            with full_disk(world.rank == rank), pytest.raises(kind, match=r"No space left.*step 2.*step 1"):
                save_and_wait(saver, 2, parts)
            assert store.steps() == [1]
            world.largest(0)
            assert [entry.name for entry in store.root.iterdir()] == ["step-00000001"]
            saver.save(3, parts, {})
        assert store.load(3).parts["model"]["step"] == 5


def refusals(world: World, folder: Path) -> None:
    """All ranks refuse alike, also where only one of them has what does not fit."""
    store = CheckpointStore(folder)
    other = torch.zeros(2 + world.rank)
    with pytest.raises(LowriseError, match=r"drifted apart: x is \(2,\) F32 and \(3,\) F32"):
        store.save(1, {"model": {"x": other}}, {}, world=world)
    part = view(world, "fsdp", {"rows.x": torch.zeros(4, 2)})
    with pytest.raises(LowriseError, match=r"rows \[\[2, 4\]\] of the 4 of rows.x"):
        store.save(1, {"model": part if world.rank else {}}, {}, world=world)
    mesh = init_device_mesh("cpu", (2,))
    columns = distribute_tensor(torch.zeros(2, 4), mesh, [Shard(1)])
    with pytest.raises(LowriseError, match=r"columns is laid out as .*Shard\(dim=1\)"):
        store.save(1, {"model": {"columns": columns}}, {}, world=world)
    assert store.steps() == []
    store.save(1, {"model": view(world, "fsdp", truth())}, {}, world=world)
    checkpoint = store.load(1)
    for change, sentence in (
        (lambda own: own.pop("own.a", None), r"no place for its own.a"),
        (lambda own: own.update({"new": torch.zeros(1)} if world.rank else {}), r"it has no new"),
        (lambda own: own.update({"plain": torch.zeros(3, 5)}), r"plain is \(3, 4\) .* there, \(3, 5\)"),
        (lambda own: own.update({"step": own["step"].double()}), r"step is .*float64 here"),
        (lambda own: own.update({"step": torch.zeros(world.rank)}), r"ranks do not have the same step"),
    ):
        live = view(world, "fsdp", {name: torch.zeros_like(t) for name, t in truth().items()})
        change(live)
        with pytest.raises(LowriseError, match=sentence):
            checkpoint.load_into("model", live, world)
        assert not any(local(tensor).any() for tensor in live.values())
    told = Words(world).all({"rank": world.rank, "text": "é" * (5 + 90 * world.rank)})
    assert [one["rank"] for one in told] == [0, 1]
    assert [len(one["text"]) for one in told] == [5, 95]


def killed_while_writing(world: World, folder: Path) -> None:
    """Rank 1 dies (SIGKILL) while the threads write step 2; rank 0 notices, and step 1 is whole."""
    store = CheckpointStore(folder)
    parts = {"model": view(world, "fsdp", truth())}
    with Saver(store, world, keep=2) as saver:
        save_and_wait(saver, 1, parts)
        if world.rank:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), 9)).start()
        with flush_takes(3 * world.rank), pytest.raises(LowriseError, match="lost the other ranks"):
            save_and_wait(saver, 2, parts)
    assert store.steps() == [1]
    assert_equal(dict(store.load(1).parts["model"]), truth())
    shutil.copytree(folder, folder.with_name("after"))


def in_group(rank: int, size: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with World(rank, size, rank).joined(torch.device("cpu")) as world:
        assert dist.is_initialized()
        killed_while_writing(world, folder)
