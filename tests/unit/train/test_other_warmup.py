"""The rate of what is not a matrix with a warm-up of its own."""

import pytest
from small_runs import config_for, run_training, trainer_for

from lowrise.config import ScheduleSection, load
from lowrise.errors import UsageError
from lowrise.train.schedule import multiplier, of_others


def test_only_the_other_groups_follow_it(text_folder, tmp_path):
    config = config_for(
        text_folder,
        "muon",
        **{"schedule.warmup": 2.0, "schedule.other_warmup": 4.0, "schedule.name": "constant"},
    )
    trainer = trainer_for(config, tmp_path / "run")
    groups = trainer.optimizer.param_groups
    peaks = [group["lr"] for group in groups]
    assert {group["role"] for group in groups} == {"matrix", "other"}
    for number, own, others in ((1, 0.5, 0.25), (2, 1.0, 0.5), (3, 1.0, 0.75), (4, 1.0, 1.0), (5, 1.0, 1.0)):
        trainer.train_step._set_learning_rates(number)
        for group, peak in zip(groups, peaks, strict=True):
            assert group["lr"] == peak * (others if group["role"] == "other" else own)


def test_its_shape_after_the_warm_up_is_that_of_its_own_warm_up():
    section = ScheduleSection(name="linear", warmup=10.0, other_warmup=0.5, min_lr_ratio=0.0)
    assert multiplier(75, 100, of_others(section)) == 0.5
    assert multiplier(55, 100, section) == 0.5
    assert of_others(ScheduleSection(warmup=3.0)) == ScheduleSection(warmup=3.0)


def test_unset_it_is_no_part_of_the_configuration_s_identity():
    assert "other_warmup" not in load(None).to_dict()["schedule"]


def test_a_run_goes_on_with_another_one_only_where_nothing_was_other(text_folder, tmp_path):
    first = {"schedule.warmup": 2.0, "schedule.name": "constant", "train.steps": 8}
    run_training(config_for(text_folder, "muon", **first), tmp_path / "run")
    with pytest.raises(
        UsageError, match=r"under another schedule .*schedule.other_warmup: None there, 4.0 here"
    ):
        run_training(
            config_for(text_folder, "muon", **first | {"schedule.other_warmup": 4.0, "train.steps": 10}),
            tmp_path / "run",
        )
    again = first | {"schedule.other_warmup": 2.0, "train.steps": 10}
    assert run_training(config_for(text_folder, "muon", **again), tmp_path / "run")["steps"] == 10


def test_a_negative_one_is_refused():
    with pytest.raises(UsageError, match=r"schedule.other_warmup = -1.0 cannot be"):
        load(None, {"schedule.other_warmup": -1.0})
