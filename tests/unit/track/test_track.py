"""Entries keep to the budgets, results to their entries, and places to the rule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from lowrise.cli import main
from lowrise.errors import LowriseError, UsageError
from lowrise.track.results import Result, faults_of, read_result, write_result
from lowrise.track.rule import places, rule_in_words
from lowrise.track.track import read_entry, read_track

ROOT = Path(__file__).parents[3]


def make_track(folder: Path, text: Path, **budget: float) -> Path:
    (folder / "entries").mkdir(parents=True)
    values = {
        "title": "test",
        "budget": {"inference_bytes": 400_000, "train_flops": 3e8, **budget},
        "rule": {"seeds": [0, 1, 2], "alpha": 0.05},
        "fixed": {
            "data": {
                "source": [str(text / "text.jsonl")],
                "cache": str(text / "cache"),
                "valid_fraction": 0.1,
                "vocab_size": 300,
            },
            "train": {"seq_len": 16, "threads": 1, "device": "cpu"},
            "eval": {"every": 0},
            "log": {"tensorboard": False, "telemetry_every": 0},
            "sample": {"tokens": 0},
        },
    }
    (folder / "track.toml").write_text(tomli_w.dumps(values))
    return folder


def add_entry(track: Path, name: str, **recipe) -> Path:
    values = {"method": name, "model": {"preset": "nano"}, "train": {"global_batch_size": 4}} | recipe
    path = track / "entries" / f"{name}.toml"
    path.write_text(tomli_w.dumps(values | {"entry": {"title": f"the {name}", "by": "a | tester"}}))
    return path


def result(losses, **more) -> Result:
    values = {
        "identity": "",
        "losses": dict(enumerate(losses)),
        "bits_per_byte": dict(enumerate(losses)),
        "val_tokens": 1,
        "steps": 1,
        "tokens": 64,
        "params": 1000,
        "inference_bytes": 2000,
        "train_flops": 1e8,
        "seconds": 1.0,
    }
    return Result(**values | more)


@pytest.fixture
def track(text_folder, tmp_path):
    folder = make_track(tmp_path / "track", text_folder)
    add_entry(folder, "adamw")
    return folder


def said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


# ---- the rules


def test_a_track_is_run_checked_and_shown(track, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    add_entry(track, "lowrank")
    assert main(["track", "check", str(track)]) == 0
    assert "adamw: " in (text := said(capsys))
    assert "not run yet" in text
    assert main(["track", "run", str(track), "--workers", "2"]) == 0
    written = json.loads((track / "results" / "adamw.json").read_text())
    assert sorted(written["losses"]) == ["0", "1", "2"]
    assert len({*written["losses"].values()}) == 3
    assert written["train_flops"] <= 3e8 < written["train_flops"] * (1 + 1 / written["steps"])
    capsys.readouterr()
    assert main(["track", "run", str(track)]) == 0
    assert "Every entry has its result" in said(capsys)
    assert main(["track", "check", str(track)]) == 0
    assert said(capsys).count("its result counts") == 2
    assert main(["track", "table", str(track)]) == 0
    page, board = (track / "leaderboard.html").read_text(), (track / "leaderboard.md").read_text()
    assert "the adamw" in board
    assert "a \\| tester" in board
    assert rule_in_words(read_track(track)) in board
    assert page.count('<figure class="chart"') == 5
    # another recipe, and the result is no longer its own
    add_entry(track, "adamw", optimizer={"lr": 0.01})
    assert main(["track", "check", str(track), "adamw"]) == 1
    assert "of another recipe" in said(capsys)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"data": {"vocab_size": 200}}, "data.vocab_size is the track's"),
        ({"train": {"steps": 3}}, "train.steps is the track's"),
        ({"seed": 3}, "seed is the track's"),
        ({"model": {"preset": "nano", "vocab_size": 512}}, "model.vocab_size is the track's"),
        ({"model": {"preset": "tiny"}}, "more than the track's 400,000"),
        ({"train": {"global_batch_size": 4000}}, "more than the track's 3e"),
        ({"plugin": ["../other.py"]}, "must be a Python file beside the entry"),
        ({"optimizer": {"lrr": 1}}, "unknown key"),
    ],
)
def test_an_entry_that_breaks_a_rule_is_named(recipe, message, track, capsys):
    add_entry(track, "adamw", **recipe)
    assert main(["track", "check", str(track)]) == 1
    text = said(capsys)
    assert message in text
    assert "adamw" in text


def test_code_beside_an_entry_is_part_of_it(track):
    path = add_entry(track, "adamw", plugin=["adamw.py"])
    (path.parent / "adamw.py").write_text("x = 1\n")
    one = read_entry(read_track(track), "adamw")
    (path.parent / "adamw.py").write_text("x = 2\n")
    assert read_entry(read_track(track), "adamw").identity != one.identity
    assert one.recipe["plugin"] == [str(path.parent.resolve() / "adamw.py")]


def test_a_name_a_title_or_another_place_are_not_the_identity(track, tmp_path):
    one = read_entry(read_track(track), "adamw").identity
    path = track / "entries" / "adamw.toml"
    path.write_text(path.read_text().replace("the adamw", "another title"))
    shutil.copytree(track, tmp_path / "copy")
    assert read_entry(read_track(tmp_path / "copy"), "adamw").identity == one
    rules = tmp_path / "copy" / "track.toml"
    rules.write_text(rules.read_text().replace("300000000.0", "400000000.0"))
    assert read_entry(read_track(tmp_path / "copy"), "adamw").identity != one


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("alpha = 0.05", "alpha = 2", "a fraction between 0 and 1"),
        ("[budget]", "[bugdet]", r"the table \[budget\] is missing"),
        ("inference_bytes = 400000", "inference_bytes = true", "give a number above 0"),
        ('title = "test"', "title = ", "is not valid TOML"),
    ],
)
def test_rules_that_are_not_complete_are_named(was, now, message, track):
    path = track / "track.toml"
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, now))
    with pytest.raises(UsageError, match=message):
        read_track(track)


def test_wrong_words_get_a_message(track, tmp_path, capsys):
    assert main(["track", "runn", str(track)]) == 2
    assert main(["track", "check", str(tmp_path)]) == 2
    assert main(["track", "check", str(track), "adamv"]) == 2
    text = said(capsys)
    assert "there are lowrise track run, check and table" in text
    assert "is not a track: it has no track.toml" in text
    assert "there is no entry 'adamv': did you mean 'adamw'?" in text
    assert main(["track", "--help"]) == 0


# ---- results and places


def test_a_result_comes_back_as_it_was_written_and_damage_is_named(track):
    read = read_track(track)
    one = result([3.0, None, 3.2], environment={"torch": "2"})
    write_result(read, "adamw", one)
    back = read_result(read, "adamw")
    assert back.losses == {0: 3.0, 1: None, 2: 3.2}
    for text in ("{", "[]", '{"losses": {"a": 1}}', '{"losses": {"0": "x"}, "bits_per_byte": {}}'):
        read.result_path("adamw").write_text(text)
        with pytest.raises(LowriseError, match="is damaged"):
            read_result(read, "adamw")


def test_faults_of_results(track):
    read = read_track(track)
    entry = read_entry(read, "adamw")
    good = result([3.0, 3.1, 3.2], identity=entry.identity)
    assert faults_of(read, entry, good) == []
    bad = result([3.0, 3.1], identity="other", inference_bytes=500_000, train_flops=4e8)
    assert len(faults_of(read, entry, bad)) == 4


def test_places_follow_the_rule(track):
    read = read_track(track)
    found = {
        "best": result([3.00, 3.01, 3.02]),
        "as good": result([3.03, 3.00, 3.02]),
        "worse": result([3.50, 3.51, 3.52]),
        "diverged": result([2.0, None, 2.1]),
    }
    board = places(read, found)
    assert [place.name for place in board] == ["best", "as good", "worse", "diverged"]
    assert [place.place for place in board] == [1, 1, 3, None]
    assert board[2].better == ("best", "as good")
    assert board[1].behind.mean == pytest.approx(0.02 / 3)
    assert places(read, {}) == []


def test_equal_entries_are_rarely_set_apart(track):
    """With no true difference among six entries the chance of any verdict is alpha."""
    read, draw = read_track(track), np.random.default_rng(0)
    apart = sum(
        any(
            place.better
            for place in places(
                read, {f"e{i}": result(list(3 + 0.01 * draw.standard_normal(3))) for i in range(6)}
            )
        )
        for _ in range(200)
    )
    assert apart <= 16  # 5% of 200 and two standard deviations


def test_many_entries_at_three_seeds_are_told_apart(track):
    """28 entries a step of five spreads apart: each is behind all that are before it."""
    read, draw = read_track(track), np.random.default_rng(1)
    losses = {f"e{i:02}": result(list(3 + 0.1 * i + 0.01 * draw.standard_normal(3))) for i in range(28)}
    board = places(read, losses)
    assert [place.place for place in board] == list(range(1, 29))
    for place in board[1:]:
        assert (place.behind.low > 0) == (place.behind.p < read.alpha) == ("e00" in place.better)


def test_an_entry_that_spreads_hides_no_other(track):
    """One seed of it met a spike: its own pairs are undecided, those of the others are not."""
    read = read_track(track)
    found = {f"e{i}": result([3 + i, 3.01 + i, 3.02 + i]) for i in range(5)} | {
        "spiked": result([3.2, 3.21, 9.0])
    }
    board = {place.name: place for place in places(read, found)}
    assert [board[f"e{i}"].better for i in (1, 4)] == [("e0",), ("e0", "e1", "e2", "e3")]
    assert board["spiked"].better == ()
    assert board["spiked"].behind.low < 0 < board["spiked"].behind.p <= 1


@pytest.mark.parametrize("folder", sorted((ROOT / "tracks").iterdir()), ids=lambda path: path.name)
def test_the_shipped_tracks_and_entries_are_read(folder):
    track = read_track(folder)
    for name in track.entry_names():
        read_entry(track, name)
