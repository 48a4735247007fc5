"""Keys of recipes under their earlier names: read, with a warning, to the same configuration."""

from __future__ import annotations

import pytest

from lowrise.cli import main
from lowrise.config import from_dict
from lowrise.config.renamed import REMOVED, RENAMED, renamed_flag
from lowrise.errors import UsageError

VALUES = {
    "train.sequences": 8,
    "train.micro_sequences": 2,
    "train.clip": 0.25,
    "schedule.final": 0.5,
    "eval.sequences": 3,
    "parallel.gather": "float32",
    "parallel.shard_ranks": 2,
    "parallel.copy_below": 7,
    "parallel.share_work": False,
}


@pytest.mark.parametrize("old", RENAMED)
def test_an_earlier_key_is_read_with_a_warning(old):
    section, key = old.split(".")
    new_section, new_key = RENAMED[old].split(".")
    with pytest.warns(FutureWarning, match=f"{old} is called {RENAMED[old]} now"):
        config = from_dict({section: {key: VALUES[old]}}, source="r.toml")
    assert getattr(getattr(config, new_section), new_key) == VALUES[old]
    assert config.hash == from_dict({new_section: {new_key: VALUES[old]}}).hash
    with pytest.raises(UsageError, match=f"{old} is the earlier name of {RENAMED[old]}, and both are there"):
        from_dict({section: {key: VALUES[old], new_key: VALUES[old]}})


def test_every_earlier_key_is_tried():
    assert VALUES.keys() == RENAMED.keys()


def test_flags_of_earlier_keys_are_read(capsys):
    with pytest.warns(FutureWarning, match=r"train.clip is called train.grad_clip now"):
        assert renamed_flag("--train.clip=0.5") == "--train.grad_clip=0.5"
    assert renamed_flag("--train.grad-clip") == "--train.grad-clip"
    assert renamed_flag("train.clip") == "train.clip"
    assert main(["train", "--train.sequences", "0"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith(
        "warning: the command line: train.sequences is called train.global_batch_size now"
    )
    assert "train.global_batch_size = 0 cannot be" in error


def test_a_micro_batch_above_a_rank_s_share_is_that_share(tmp_path):
    from processes import parallel_config

    from lowrise.distributed import World
    from lowrise.runs.parallel import check_world

    check_world(parallel_config(tmp_path, "adamw", **{"train.micro_batch_size": 4}), World(0, 2))


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_is_read_with_the_value_that_holds_now(key):
    """Recorded recipes have every key; another value would be another method."""
    section, name = key.split(".")
    recorded = {"method": "loro", section: {name: REMOVED[key]}}
    assert from_dict(recorded).hash == from_dict({"method": "loro"}).hash
    with pytest.raises(UsageError, match=rf"r\.toml: {key} is gone, and '{REMOVED[key]}' holds always"):
        from_dict({"method": "loro", section: {name: "after"}}, source="r.toml")
