"""A disk that fails once, at any place of a run: one message that names the file; the next start goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing_disk import NUMBERS, FailingDisk
from small_runs import config_for, final_tensors, write_text

from lowrise.cli import main


class Trial:
    """One run that prepares its corpus, trains eight updates, saves twice and reports."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        write_text(folder / "text.jsonl", 60)
        self.root = folder / "work"
        settings = {"log.tensorboard": False, "checkpoint.asynchronous": False, "checkpoint.keep": 1}
        settings |= {"data.cache": str(self.root / "cache"), "data.vocab_size": 270}
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(config_for(folder, "lowrank", **settings).to_toml())

    def start(self) -> int:
        return main(["train", str(self.recipe), "--run", str(self.root / "run")])

    def weights(self) -> dict[str, bytes]:
        return final_tensors(self.root / "run", 8)


def fail_at(places: list[int], tmp_path: Path, monkeypatch, capsys) -> dict[str, int]:
    """One trial a place; how they ended, counted."""
    whole = Trial(tmp_path / "whole")
    assert whole.start() == 0
    counts = {"message": 0, "unharmed": 0, "not reached": 0}
    for place in places:
        trial = Trial(tmp_path / f"place-{place}")
        disk = FailingDisk(trial.root, place, NUMBERS[place % len(NUMBERS)])
        capsys.readouterr()
        with disk.in_place(monkeypatch):
            code = trial.start()
        said = capsys.readouterr().err
        reached = len(disk.done) > place
        if reached and code:
            what = f"{disk.done[place]}: {said}"
            assert code == 1, what
            assert "Traceback" not in said, what
            file = disk.done[place].split(" ", 1)[1]
            known = [trial.root / part for part in (Path(file), *Path(file).parents[:-1])]
            assert any(str(path) in said for path in known), what
        counts["message" if code else "unharmed" if reached else "not reached"] += 1
        assert trial.start() == 0, f"{disk.done[place]}: {capsys.readouterr().err}"
        assert trial.weights() == whole.weights(), disk.done[place]
    return counts


def places_of_a_run(tmp_path: Path, monkeypatch) -> int:
    trial = Trial(tmp_path / "counted")
    disk = FailingDisk(trial.root)
    with disk.in_place(monkeypatch):
        assert trial.start() == 0
    print(*dict.fromkeys(disk.done), sep="\n")
    return len(disk.done)


def test_a_failing_disk_is_a_message_and_the_next_start_goes_on(tmp_path, monkeypatch, capsys):
    places = places_of_a_run(tmp_path, monkeypatch)
    assert places > 60
    counts = fail_at(list(range(3, places, places // 8)), tmp_path, monkeypatch, capsys)
    assert counts["message"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_at_every_place(tmp_path, monkeypatch, capsys):
    places = places_of_a_run(tmp_path, monkeypatch)
    counts = fail_at(list(range(places)), tmp_path, monkeypatch, capsys)
    with capsys.disabled():
        print(f"\n{places} places: {counts}")
    assert counts["message"] >= 0.8 * places
