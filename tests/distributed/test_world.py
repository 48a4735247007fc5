"""The room itself: shares, words between ranks, buckets, rules."""

import pytest
import torch
from processes import everything, free_port, late_world, on_ranks, parallel_config, toy

from lowrise.cli import main
from lowrise.config import load
from lowrise.distributed import World
from lowrise.distributed.consistency import checksums
from lowrise.distributed.gradients import layout
from lowrise.errors import UsageError
from lowrise.runs.parallel import check_world


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp("two"), everything)


def test_ranks_tell_each_other(two):
    for result in two:
        told = result["words"]
        assert told["total"] == [2.0, 2.0 * (2**40 + 1)]
        assert (told["largest"], told["gathered"], told["by_rank_0"]) == (7, [0, 1], 40)
        assert told["exit_code"] == 1


def test_gradients_are_the_sums_over_all_rows(two):
    """In any number of buckets, with and without accumulation; equal at both ranks to the bit."""
    model, batch = toy(4)
    model(batch).square().sum().backward()
    for key, own in two[0]["sums"].items():
        for name, p in model.named_parameters():
            assert (name in own) == (p.grad is not None), name  # what has no gradient keeps none
            if p.grad is not None:
                torch.testing.assert_close(own[name], p.grad, rtol=1e-13, atol=1e-14)  # order of sums
                assert torch.equal(own[name], two[1]["sums"][key][name])
        elements = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert own["payload"] == 8 * elements


def test_buckets_are_a_function_of_the_parameters_alone():
    params = [torch.zeros(3), torch.zeros(9, dtype=torch.float64), torch.zeros(2), torch.zeros(100)]
    params.append(torch.zeros(1))
    found = [[p.numel() for p in bucket.params] for bucket in layout(params, 40)]
    assert found == [[3, 2], [100], [1], [9]]


def test_a_rank_that_does_not_come_is_waited_for_so_long():
    context = torch.multiprocessing.get_context("spawn")
    port = free_port()
    processes = [context.Process(target=late_world, args=(rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def test_shares_are_consecutive_and_whole():
    for size in (1, 2, 3, 5):
        for count in (1, 4, 15):
            rows = [i for rank in range(size) for i in range(count)[World(rank, size).share(count)]]
            assert rows == list(range(count))


def test_a_changed_bit_changes_the_checksum():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool):
        tensor = torch.zeros(5, dtype=dtype)
        other = tensor.clone()
        other[3] = 1
        assert checksums({"t": tensor}) != checksums({"t": other})
    assert checksums({"empty": torch.zeros(0), "none": torch.zeros(())}) == [0, 0]


@pytest.mark.parametrize(
    ("size", "settings", "sentence"),
    [
        (3, {}, r"train\.global_batch_size = 4 .* 3 ranks cannot share it evenly: set it to a multiple of 3"),
        (2, {"train.per_layer": True, "train.grad_clip": 0.0}, r"per_layer = true .* over the 2 ranks"),
    ],
)
def test_what_ranks_cannot_share_gets_a_sentence(size, settings, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        check_world(parallel_config(tmp_path, "adamw", **settings), World(0, size))


def test_what_is_not_there_gets_a_sentence():
    with pytest.raises(UsageError, match=r"parallel\.data = 'zero' should be one of 'auto', 'ddp'"):
        load(None, {"parallel.data": "zero"})


def test_ranks_do_not_change_the_identity_of_a_result():
    assert load(None, {"parallel.data": "ddp"}).hash == load(None).hash


def test_one_process_commands_refuse_torchrun(monkeypatch, capfd):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert main(["methods"]) == 2
    assert "runs in one process" in capfd.readouterr().err


def test_torchrun_names_the_ranks():
    assert World.from_environment({}) == World()
    assert World.from_environment({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == World()
    world = World.from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (world.rank, world.size, world.local_rank, world.leads) == (5, 8, 1, False)


def test_every_rank_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert World(3, 4, 1).device(torch.device("cuda")) == torch.device("cuda", 1)
    assert World(3, 4, 1).device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UsageError, match="which has 2 CUDA devices"):
        World(3, 4, 3).device(torch.device("cuda"))
    with pytest.raises(UsageError, match="'cuda:1' with 4 ranks"):
        World(3, 4, 1).device(torch.device("cuda:1"))
