"""A run that has no room is refused before anything is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowrise.config import load
from lowrise.distributed import World
from lowrise.errors import UsageError
from lowrise.runs.planner import Planned
from lowrise.train import room

CPU = torch.device("cpu")


def config(**values: Any) -> Any:
    options = {f"train.{key}": value for key, value in values.items()}
    return load(None, {"method": "spectron", "model.preset": "nano", "train.seq_len": 64, **options})


def test_what_fits_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = Planned(config(), 300).on_device().peak
    monkeypatch.setattr(room, "free_bytes", lambda device: peak)
    room.require_room(config(), 300, World(), CPU)
    monkeypatch.setattr(room, "free_bytes", lambda device: peak - 1)
    with pytest.raises(UsageError, match=r"train\.micro_batch_size"):
        room.require_room(config(), 300, World(), CPU)


def test_the_sentence_names_need_room_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: 6 << 20)
    sentence = (
        r"needs [\d.]+ MiB on cpu, 6.00 MiB are free for it: with --train.micro_batch_size \d+ it takes"
    )
    with pytest.raises(UsageError, match=sentence):
        room.require_room(config(), 300, World(), CPU)
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    with pytest.raises(UsageError, match=r"1000 B are free for it: take a smaller model"):
        room.require_room(config(), 300, World(), CPU)


def test_the_advice_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: 6 << 20)
    with pytest.raises(UsageError) as error:
        room.require_room(config(), 300, World(), CPU)
    size = int(str(error.value).split("micro_batch_size ")[1].split()[0])
    room.require_room(config(micro_batch_size=size), 300, World(), CPU)


def test_compiled_blocks_count_without_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Planned(config(), 300).on_device()
    held = plan.weights + plan.gradients + plan.state
    assert held < plan.peak
    monkeypatch.setattr(room, "free_bytes", lambda device: held)
    room.require_room(config(compile=True), 300, World(), CPU)


def test_a_system_that_does_not_say_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: None)
    room.require_room(config(), 300, World(), CPU)


def test_free_bytes_of_this_machine() -> None:
    free = room.free_bytes(CPU)
    assert free is None or free > 1 << 20
