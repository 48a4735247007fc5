"""Whatever is changed in `checkpoint.json` is found: an error of ours, or the same weights, nothing else."""

import copy
import json
import random

import pytest
import torch

from lowrise.checkpoint import CheckpointStore
from lowrise.errors import LowriseError
from lowrise.files import is_plain_name, remove_left_behind, sealed, strict_json

WEIGHTS = torch.arange(6.0).reshape(3, 2)


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(5, {"model": {"w": WEIGHTS}, "optimizer": {"w.m": -WEIGHTS}}, {"step": 5, "tokens": 50})
    return store


def places(value, at=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from places(inner, (*at, key))


def edited(manifest, place, edit):
    result = copy.deepcopy(manifest)
    holder = result
    for key in place[:-1]:
        holder = holder[key]
    if edit == "remove":
        del holder[place[-1]]
    elif edit == "rename":
        holder[place[-1] + "x"] = holder.pop(place[-1])
    else:
        holder[place[-1]] = edit
    return result


def test_every_edit_of_a_key_is_found(store):
    path = store.path(5) / "checkpoint.json"
    manifest = json.loads(path.read_text())
    for place in places(manifest):
        for edit in ("remove", "rename", None, [], {}, "text", -1, 1.5, True, 10**30):
            path.write_text(json.dumps(edited(manifest, place, edit)))
            with pytest.raises(LowriseError):
                store.load(5)


def test_flipped_bits_are_found_or_change_nothing(store):
    path, draw = store.path(5) / "checkpoint.json", random.Random(1)
    whole = path.read_bytes()
    for _ in range(500):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            checkpoint = store.load(5)
        except LowriseError:
            continue
        assert checkpoint.numbers == {"step": 5, "tokens": 50}
        assert torch.equal(checkpoint.parts["model"]["w"], WEIGHTS)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b"1" * 5000])
def test_what_is_no_manifest_is_damaged(store, content):
    (store.path(5) / "checkpoint.json").write_bytes(content)
    with pytest.raises(LowriseError, match=r"checkpoint\.json"):
        store.load(5)


def test_a_renamed_folder_is_refused_by_name(store):
    store.path(5).rename(store.path(7))
    with pytest.raises(LowriseError, match="step-00000007 holds step 5"):
        store.load(7)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "a\\b", "C:x", "", ".", ".."])
def test_only_plain_names_lie_in_a_folder(name):
    assert not is_plain_name(name)
    assert is_plain_name("model.00003-of-00008.safetensors")


def test_names_outside_are_refused_under_a_checksum_that_fits(store):
    path = store.path(5) / "checkpoint.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["files"]["../model.safetensors"] = manifest["files"].pop("model.safetensors")
    path.write_text(json.dumps(sealed(manifest)))
    with pytest.raises(LowriseError, match="not the name of a file"):
        store.load(5)


def test_what_is_written_is_strict_json():
    text = strict_json({"loss": float("nan"), "deep": [{"a": float("-inf")}], "b": 1.5})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "loss": None,
        "loss_not_finite": "NaN",
        "deep": [{"a": None, "a_not_finite": "-Infinity"}],
        "b": 1.5,
    }


def test_temporary_files_of_the_dead_are_removed(tmp_path):
    left, living = tmp_path / ".summary.json.999999999.tmp", tmp_path / ".summary.json.1.tmp"
    left.touch(), living.touch()
    remove_left_behind(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [living.name]
