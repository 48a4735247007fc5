"""The largest model that fits: exact for every method, against all widths one by one."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lowrise.config import RunConfig, load
from lowrise.errors import UsageError
from lowrise.methods import METHODS
from lowrise.model.shapes import FINE_WIDTHS, shape_of
from lowrise.runs import fit
from lowrise.runs.fit import largest_fit, with_width
from lowrise.runs.planner import Planned

WIDTHS = FINE_WIDTHS[:9]


def config_of(method: str, **more: object) -> RunConfig:
    small = {"model.preset": "nano", "train.seq_len": 32, "train.global_batch_size": 4}
    return load(None, {"method": method, **small, **more})


def peak(config: RunConfig, width: int, devices: int = 1) -> int:
    return (
        Planned(with_width(config, width), config.data.vocab_size, devices=devices, autocast=True)
        .on_device()
        .peak
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_found_width_fits_and_the_next_does_not(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "FINE_WIDTHS", WIDTHS)
    config = config_of(method)
    peaks = [peak(config, width) for width in WIDTHS]
    assert peaks == sorted(set(peaks)), "the peak grows with the width"
    for place in (0, 3, 6):
        for room, expected in ((peaks[place], place), (peaks[place + 1] - 1, place)):
            found = largest_fit(config, room, devices=1, autocast=True)
            assert (found.shape.width, found.peak) == (WIDTHS[expected], peaks[expected])
            assert (found.next_width, found.next_peak) == (WIDTHS[expected + 1], peaks[expected + 1])
            assert found.peak <= room < found.next_peak
    with pytest.raises(UsageError, match=rf"at width 16, .* needs {peaks[0]:,}"):
        largest_fit(config, peaks[0] - 1, devices=1, autocast=True)
    widest = largest_fit(config, peaks[-1] * 10, devices=1, autocast=True)
    assert (widest.shape.width, widest.next_width) == (WIDTHS[-1], None)


@pytest.mark.parametrize("method", ["adamw", "spectron", "galore"])
def test_more_devices_and_recomputed_blocks_take_larger_models(method: str) -> None:
    def found(devices: int = 1, **more: object) -> int:
        config = config_of(method, **{"train.seq_len": 64, "train.global_batch_size": 32}, **more)
        return largest_fit(config, room, devices=devices, autocast=True).shape.width

    room = peak(config_of(method, **{"train.seq_len": 64, "train.global_batch_size": 32}), 96)
    assert found() == 96
    assert found(devices=4, **{"parallel.data": "fsdp"}) > 96
    assert found(**{"model.recompute": "block"}) > 96


def test_a_rank_keeps_its_proportion_unless_it_is_held() -> None:
    config = config_of("lowrank", **{"layer.rank": 16})  # of a width of 64
    assert with_width(config, 128).layer.rank == 32
    assert with_width(config, 16).layer.rank == 4
    assert with_width(config, 128, hold_rank=True).layer.rank == 16
    share = config_of("lowrank", **{"layer.rank": 0.25})
    assert with_width(share, 128).layer.rank == 0.25
    one = config_of("apollo-mini")
    assert one.optimizer.rank == with_width(one, 128).optimizer.rank == 1


def test_a_width_below_the_rank_is_too_small() -> None:
    config = config_of("lowrank", **{"layer.rank": 48})
    room = Planned(with_width(config, 64, hold_rank=True), config.data.vocab_size, autocast=True)
    there = room.on_device().peak
    assert largest_fit(config, there, devices=1, autocast=True, hold_rank=True).shape.width == 64
    with pytest.raises(UsageError, match="at width 48, the smallest that its settings allow"):
        largest_fit(config, 1000, devices=1, autocast=True, hold_rank=True)


def test_heads_and_layers_of_the_family_are_valid_shapes() -> None:
    for width in FINE_WIDTHS:
        shape = shape_of(width)
        assert width % shape.heads == 0
        assert width // shape.heads in (8, 16, 32, 64)
        assert shape.mlp % 16 == 0
    sizes = [(s.width, s.layers, s.mlp) for s in map(shape_of, FINE_WIDTHS)]
    assert all(a[0] < b[0] and a[1] <= b[1] and a[2] < b[2] for a, b in pairwise(sizes))
