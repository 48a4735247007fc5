"""A checkpoint is whole or absent."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from lowrise.checkpoint import CheckpointStore
from lowrise.errors import LowriseError


def parts(value: float):
    return {"model": {"w": torch.full((3, 2), value)}, "optimizer": {"w.m": torch.full((3, 2), -value)}}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def save(store, *steps):
    for step in steps:
        store.save(step, parts(step), {"tokens": 10 * step})


def test_comes_back_as_it_was(store):
    save(store, 5)
    checkpoint = store.newest(warn=pytest.fail)
    assert (checkpoint.step, checkpoint.numbers) == (5, {"tokens": 50})
    assert torch.equal(checkpoint.parts["optimizer"]["w.m"], parts(5)["optimizer"]["w.m"])


def test_nothing_there_is_none(store):
    assert store.newest(warn=pytest.fail) is None


@pytest.mark.parametrize(
    "damage", ["flip a bit", "truncate", "remove a file", "remove the manifest", "half a manifest"]
)
def test_damaged_newest_is_set_aside_and_the_one_before_used(store, damage):
    save(store, 5, 10)
    file, manifest = store.path(10) / "model.safetensors", store.path(10) / "checkpoint.json"
    if damage == "flip a bit":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "remove a file":
        file.unlink()
    elif damage == "remove the manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:40])
    warnings = []
    assert store.newest(warn=warnings.append).step == 5
    assert "step 10" in warnings[0]
    assert (store.root / "step-00000010.damaged").is_dir()
    save(store, 10)
    assert store.newest(warn=pytest.fail).step == 10


def test_a_kill_while_writing_leaves_no_checkpoint(store, monkeypatch):
    save(store, 5)

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(10, parts(10), {})
    monkeypatch.undo()
    assert store.steps() == [5]
    save(store, 10)
    assert store.newest(warn=pytest.fail).step == 10


def test_saving_a_step_again_replaces_it(store):
    save(store, 5)
    store.save(5, parts(7), {"tokens": 7})
    assert store.newest(warn=pytest.fail).numbers == {"tokens": 7}
    assert [entry.name for entry in store.root.iterdir()] == ["step-00000005"]


def test_retention_keeps_the_newest_and_the_milestones(store):
    for step in range(1, 11):
        save(store, step)
        store.retire(keep=2, keep_every=4)
    assert store.steps() == [4, 8, 9, 10]


def test_full_disk_gets_a_sentence_and_leaves_the_rest(store, monkeypatch):
    save(store, 5)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LowriseError, match=r"No space left.*continues from step 5"):
        store.save(10, parts(10), {})
    monkeypatch.undo()
    assert [entry.name for entry in store.root.iterdir()] == ["step-00000005"]


def test_a_newer_format_is_refused_not_called_damaged(store):
    save(store, 5)
    manifest = store.path(5) / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(LowriseError, match="format 99"):
        store.newest(warn=pytest.fail)
