"""Learning-rate multipliers against ReLoRA's released schedule and against their own definition."""

import json
from itertools import pairwise

import numpy as np
import pytest

from lowrise.config import ScheduleSection
from lowrise.train.schedule import multiplier, restarts_of


def test_jagged_cosine_is_the_released_one(shared):
    data = np.load(shared / "fixtures" / "relora_small.npz")
    for case in json.loads(str(data["index"]))["schedules"]:
        assert case["adjust"] == 0
        section = ScheduleSection(
            warmup=float(case["warmup"]),
            min_lr_ratio=case["min_ratio"],
            cycle=case["every"],
            restart_warmup=case["restart_warmup"],
        )
        restarts = restarts_of(section, (), case["total"])
        ours = [multiplier(t, case["total"], section, restarts) for t in range(case["total"])]
        # The same formula in float64: equal to rounding.
        np.testing.assert_allclose(ours, data[case["name"] + "/multiplier"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_warms_up_from_one_step_and_ends_at_the_floor(name):
    section = ScheduleSection(name=name, warmup=0.1, min_lr_ratio=0.1, decay=0.2)
    values = [multiplier(u, 100, section) for u in range(1, 101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == 1.0
    assert values[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(values[9:]))


def test_wsd_is_flat_until_the_decay():
    section = ScheduleSection(name="wsd", warmup=10.0, decay=0.25, min_lr_ratio=0.0)
    assert {multiplier(u, 100, section) for u in range(10, 76)} == {1.0}
    assert multiplier(88, 100, section) == pytest.approx(12 / 25)


def test_constant_without_warmup_is_one_everywhere():
    section = ScheduleSection(name="constant", warmup=0.0)
    assert {multiplier(u, 50, section) for u in range(1, 51)} == {1.0}


def test_a_reset_of_the_optimizer_begins_a_dip():
    section = ScheduleSection(warmup=10.0, min_lr_ratio=0.0, restart_warmup=4)
    restarts = restarts_of(section, (50,), 100)
    plain = ScheduleSection(warmup=10.0, min_lr_ratio=0.0)
    assert restarts == (51,)
    assert multiplier(50, 100, section, restarts) == multiplier(50, 100, plain)
    target = multiplier(55, 100, plain)
    dip = [multiplier(u, 100, section, restarts) for u in range(51, 56)]
    assert dip == pytest.approx([0, target / 4, target / 2, 3 * target / 4, target])


def test_resets_make_no_dip_unless_asked():
    assert restarts_of(ScheduleSection(), (50,), 100) == ()


def test_a_reset_within_the_warm_up_begins_a_dip_too():
    section = ScheduleSection(warmup=20.0, restart_warmup=4)
    restarts = restarts_of(section, (8,), 100)
    dip = [multiplier(u, 100, section, restarts) for u in range(8, 14)]
    target = 13 / 20  # the curve at update 9 + 4
    assert dip == pytest.approx([8 / 20, 0, target / 4, target / 2, 3 * target / 4, target])
    # Restarts of the cycle wait for the end of the warm-up (ReLoRA's released schedule).
    cyclic = ScheduleSection(warmup=20.0, cycle=8, restart_warmup=4)
    assert multiplier(16, 100, cyclic, restarts_of(cyclic, (), 100)) == 16 / 20
    assert multiplier(24, 100, cyclic, restarts_of(cyclic, (), 100)) == 0
