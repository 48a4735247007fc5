"""Saving beside training: what is written is what was there when it was asked for."""

import errno
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lowrise import files
from lowrise.checkpoint import CheckpointStore, Saver, consolidate
from lowrise.checkpoint.store import newest_checkpoint
from lowrise.checkpoint.writer import Buffers
from lowrise.distributed import World
from lowrise.errors import LowriseError


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def gate(monkeypatch):
    """The thread stops before it renames, until the gate is opened."""
    gate = threading.Event()
    complete = CheckpointStore._complete

    def waiting(self, *arguments):
        assert gate.wait(60)
        complete(self, *arguments)

    monkeypatch.setattr(CheckpointStore, "_complete", waiting)
    return gate


def saver_of(store, **options):
    return Saver(store, World(), **{"keep": 2} | options)


def parts(weight):
    return {"model": {"w": weight}, "random": {}}


def test_an_update_after_the_save_is_not_in_it(store, gate):
    weight = torch.arange(6.0).reshape(2, 3).t()  # not contiguous
    before = weight.clone()
    with saver_of(store) as saver:
        saver.save(1, parts(weight), {"tokens": 1})
        weight.add_(1)
        assert store.steps() == []  # it is still being written
        gate.set()
        saver.finish()
        assert store.steps() == [1]
    assert torch.equal(store.load(1).parts["model"]["w"], before)


def test_the_next_save_waits_for_the_one_before(store, gate):
    threading.Timer(0.3, gate.set).start()
    with saver_of(store, keep=3) as saver:
        for step in (1, 2, 3):
            saver.save(step, parts(torch.full((2,), float(step))), {})
    assert store.steps() == [1, 2, 3]
    assert store.load(2).parts["model"]["w"].tolist() == [2.0, 2.0]


def test_memory_of_copies_is_kept_and_follows_the_tensors():
    """What a rank event or a dropped parameter changes is another tensor, and its old copy is gone."""
    buffers = Buffers()
    state = {"w": torch.zeros(2, 3), "b": torch.zeros(4)}
    first = buffers.copied({"model": state})["model"]
    second = buffers.copied({"model": {"w": torch.ones(2, 3).t().contiguous().t(), "b": torch.ones(2)}})[
        "model"
    ]
    assert second["w"] is first["w"]
    assert torch.equal(second["w"], torch.ones(2, 3))
    assert torch.equal(second["b"], torch.ones(2))
    gone = weakref.ref(first.pop("b"))
    assert gone() is None
    third = buffers.copied({"model": {"b": torch.ones(2, dtype=torch.float64)}})["model"]
    assert third["b"].dtype == torch.float64


def test_retention_follows_the_thread(store):
    with saver_of(store, keep=1, keep_every=2) as saver:
        for step in range(1, 6):
            saver.save(step, parts(torch.zeros(1)), {})
    assert store.steps() == [2, 4, 5]


def save(saver, *steps):
    for step in steps:
        saver.save(step, parts(torch.zeros(1)), {})


def full_disk(monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "flush", full)  # of the manifest, before the folder gets its name


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_told_at_the_next_place(store, monkeypatch, asynchronous):
    with saver_of(store) as saver:
        saver.save(1, parts(torch.zeros(1)), {})
        saver.finish()
        full_disk(monkeypatch)
        saver.asynchronous = asynchronous
        with pytest.raises(LowriseError, match=r"No space left.*step 2.*continues from step 1"):
            save(saver, 2, 3)
        saver.finish()  # told once
    assert [entry.name for entry in store.root.iterdir()] == ["step-00000001"]


def test_a_failure_of_the_run_waits_for_the_save_and_stays_the_failure(store, gate, monkeypatch):
    threading.Timer(0.3, gate.set).start()

    def run(step, warnings):
        with saver_of(store, warn=warnings.append) as saver:
            saver.save(step, parts(torch.zeros(1)), {})
            raise ZeroDivisionError

    warnings: list[str] = []
    with pytest.raises(ZeroDivisionError):
        run(1, warnings)
    assert (store.steps(), warnings) == ([1], [])
    full_disk(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        run(2, warnings)
    assert "No space left" in warnings[0]


KILLED = """
import sys, time, torch
from pathlib import Path
from lowrise.checkpoint import CheckpointStore, Saver, writer
from lowrise.distributed import World

saver = Saver(CheckpointStore(Path(sys.argv[1])), World(), keep=2)
saver.save(1, {"model": {"w": torch.ones(4)}, "optimizer": {"m": torch.ones(4)}}, {})
saver.finish()
flush = writer.flush

def slow(path):
    flush(path)
    print("written", path.name, flush=True)
    time.sleep(60)

writer.flush = slow
saver.save(2, {"model": {"w": torch.ones(4)}, "optimizer": {"m": torch.ones(4)}}, {})
print("training", flush=True)
time.sleep(60)
"""


def test_kill_9_while_a_thread_writes_leaves_the_last_one_whole(store):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
    ) as process:
        seen = {process.stdout.readline().split()[0] for _ in range(2)}
        process.send_signal(signal.SIGKILL)
    assert seen == {"training", "written"}  # the main thread went on
    assert process.returncode == -signal.SIGKILL
    assert {entry.name for entry in store.root.iterdir()} == {"step-00000001", ".writing-00000002"}
    assert newest_checkpoint(store, World(), pytest.fail).step == 1
    assert [entry.name for entry in store.root.iterdir()] == ["step-00000001"]


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def test_files_are_plain_safetensors_of_any_dtype_and_shape(store):
    torch.manual_seed(1)
    tensors = {f"t{i}.{dtype}": torch.rand(3, 2).to(dtype) for i, dtype in enumerate(DTYPES)}
    tensors |= {"scalar": torch.tensor(7.0), "none": torch.empty(0), "flat": torch.empty(3, 0)}
    tensors["nan"] = torch.tensor([float("nan"), -0.0])
    store.save(1, {"model": tensors}, {})
    by_others = load_file(store.path(1) / "model.safetensors")
    live = {name: torch.ones_like(t) for name, t in tensors.items()}
    store.load(1).load_into("model", live)
    for read in (by_others, store.load(1).parts["model"], live):
        assert set(read) == set(tensors)
        for name, tensor in tensors.items():
            assert read[name].shape == tensor.shape
            assert read[name].dtype == tensor.dtype
            assert same_bits(read[name], tensor)


def same_bits(a, b):
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def test_opening_reads_no_tensor(store, monkeypatch):
    store.save(1, parts(torch.zeros(2, 3, dtype=torch.bfloat16)), {})
    monkeypatch.setattr("lowrise.checkpoint.tensor_file.safe_open", pytest.fail)
    checkpoint = store.load(1)
    assert checkpoint.names("model") == ["w"]
    described = checkpoint.described("model")["w"]
    assert (described.shape, described.dtype) == ((2, 3), torch.bfloat16)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"v": torch.zeros(2)}, r"it has no v; there is no place for its w"),
        ({"w": torch.zeros(3)}, r"w is \(2,\) torch.float32 there, \(3,\)"),
        ({"w": torch.zeros(2).double()}, r"torch.float32 there, \(2,\) torch.float64 here"),
        ({"w": torch.zeros(2), "x": torch.zeros(1)}, r"it has no x \(1 in all\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changed(store, other, sentence):
    store.save(1, parts(torch.ones(2)), {})
    with pytest.raises(LowriseError, match=sentence):
        store.load(1).load_into("model", other)
    assert not any(tensor.any() for tensor in other.values())


def test_what_a_file_cannot_hold_gets_a_sentence(store):
    with pytest.raises(LowriseError, match=r"w has dtype torch.complex64"):
        store.save(1, parts(torch.zeros(1, dtype=torch.complex64)), {})
    assert store.steps() == []


def test_consolidate_refuses_a_folder_that_is_there(store, tmp_path):
    store.save(1, parts(torch.ones(2)), {})
    with pytest.raises(LowriseError, match="is there already"):
        consolidate(store.path(1), tmp_path)
