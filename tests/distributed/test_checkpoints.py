"""Checkpoints of any number of ranks, read on any other, to the bit."""

import pytest
import sharded_optimizers as sharded
import torch
from processes import free_port, on_ranks

from lowrise.checkpoint import CheckpointStore, consolidate
from lowrise.distributed import World

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What 1, 2 and 4 ranks have saved, and 4 ranks have read."""
    folder = tmp_path_factory.mktemp("sharded")
    sharded.save_forms(World(), folder)
    on_ranks(2, folder / "ranks", sharded.everything, folder)
    on_ranks(4, folder / "ranks", save_and_load, folder)
    return folder


def save_and_load(world: World, folder) -> None:
    sharded.save_forms(world, folder)
    sharded.load_forms(world, folder)


def test_what_n_ranks_saved_one_reads(folder):
    sharded.load_forms(World(), folder)


def test_what_n_ranks_saved_two_read(folder):
    on_ranks(2, folder / "ranks", sharded.load_forms, folder)


@pytest.mark.parametrize("saved", sharded.FORMS)
def test_consolidated_is_what_one_rank_would_have_written(saved, folder, tmp_path):
    out = tmp_path / "checkpoints" / "step-00000003"
    assert consolidate(CheckpointStore(sharded.path(folder, *saved)).path(3), out) == out
    alone = CheckpointStore(sharded.path(folder, 1, "fsdp")).path(3)
    for name in ("model.safetensors", "random.safetensors"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()
    assert CheckpointStore(out.parent).newest(pytest.fail).numbers == {"tokens": 9}


@pytest.mark.parametrize("damage", ["flip a bit", "remove"])
def test_a_damaged_shard_is_a_damaged_checkpoint(damage, folder, tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"model": sharded.truth()}, {})
    consolidate_source = CheckpointStore(sharded.path(folder, 2, "fsdp")).path(3)
    target = store.path(3)
    target.mkdir()
    for file in consolidate_source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    assert store.newest(pytest.fail).step == 3
    shard = target / "model.00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content) if damage == "flip a bit" else shard.unlink()
    warnings = []
    assert store.newest(warnings.append).step == 1
    assert shard.name in warnings[0]


def test_a_rank_that_is_killed_while_threads_write(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=sharded.in_group, args=(rank, 2, port, tmp_path / "checkpoints"))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, -9]
    assert (tmp_path / "after").is_dir()  # rank 0 came to its end
