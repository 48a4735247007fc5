"""A disk that fails once, at any place of any command that writes: one message that names the file and exit
code 1, nothing half written, and the next start ends as if nothing had been.

`lowrise train` is in `test_failing_disk.py`. Of comparisons and sweeps it is the command itself whose disk
fails: the runs that it starts are processes of their own.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fake_scaling
import fake_training
import pytest
from failing_disk import NUMBERS, FailingDisk
from small_runs import config_for, run_training, write_text

import lowrise.compare.recipes
import lowrise.scaling.sweep
from lowrise.cli import main
from tests.unit.track.test_track import add_entry, make_track

scaling_sweep = lowrise.scaling.sweep.sweep
real_load, real_planner = lowrise.compare.recipes.load_recipe, lowrise.compare.recipes.planner

Words = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Made:
    """What the commands read, made once."""

    folder: Path
    run: Path
    exported: Path
    compared: Path
    swept: Path


@dataclass(frozen=True)
class Command:
    """`words` for a work folder; `before` puts there what the command changes. `whole`: the output is a
    folder that is there whole or not at all."""

    words: Callable[[Made, Path], list[str]]
    before: Callable[[Made, Path], None] = lambda made, work: None
    whole: bool = False


def exporting(*flags: str) -> Command:
    return Command(
        lambda made, work: ["export", str(made.run), *flags, "--out", str(work / "out")], whole=True
    )


def replacing() -> Command:
    """An export in the place of an earlier one."""

    def before(made: Made, work: Path) -> None:
        shutil.copytree(made.exported, work / "out")

    words = exporting().words
    return Command(lambda made, work: [*words(made, work), "--force"], before, whole=True)


def comparing(made: Made, work: Path) -> list[str]:
    recipe = str(made.folder / "fake.toml")
    return ["compare", recipe, "--budget", "tokens=500", "--workers", "2", "--out", str(work / "out")]


def sweeping(search: str, made: Made, work: Path) -> list[str]:
    words = ["sweep", str(made.folder / "fake.toml"), "--vary", "optimizer.lr=0.01,0.02", "--workers", "2"]
    return [*words, "--search", search, "--trials", "2", "--budget", "tokens=500", "--out", str(work / "out")]


def copied(name: str) -> Callable[[Made, Path], None]:
    return lambda made, work: shutil.copytree(made.folder / name, work / name) and None


def without_results(made: Made, work: Path) -> None:
    """A track whose runs are done; their results are not written down yet."""
    for name in ("track", "track-runs"):
        shutil.copytree(made.folder / name, work / name)
    shutil.rmtree(work / "track" / "results")


COMMANDS = {
    "export": exporting(),
    "export factored": exporting("--form", "factored", "--shard_size", "100KB"),
    "export safetensors": exporting("--to", "safetensors"),
    "export gguf": exporting("--to", "gguf"),
    "export again": replacing(),
    "import": Command(lambda m, w: ["import", str(m.exported), "--run", str(w / "out")], whole=True),
    "factorize": Command(
        lambda m, w: [
            *["factorize", str(m.exported), "--rank", "4", "--tokens", "64", "--out", str(w / "out")],
            *["--measure", str(m.folder / "text.jsonl")],
        ],
        whole=True,
    ),
    "data prepare": Command(
        lambda m, w: [
            *["data", "prepare", "--source", str(m.folder / "text.jsonl"), "--vocab_size", "270"],
            *["--cache", str(w / "cache")],
        ]
    ),
    "compare": Command(comparing),
    "sweep": Command(functools.partial(sweeping, "grid")),
    "sweep random": Command(functools.partial(sweeping, "random")),
    "scaling run": Command(
        lambda m, w: [
            *["scaling", "run", str(m.folder / "scaled.toml"), "--budgets", "1e9,2e9", "--sizes", "3"],
            *["--tokens_per_parameter", "10", "--workers", "2", "--out", str(w / "out")],
        ]
    ),
    "scaling fit": Command(
        lambda m, w: ["scaling", "fit", str(m.folder / "points.csv"), "--out", str(w / "out")]
    ),
    "scaling plot": Command(
        lambda m, w: ["scaling", "plot", str(m.folder / "points.csv"), "--out", str(w / "out")]
    ),
    "track run": Command(
        lambda m, w: ["track", "run", str(w / "track"), "--out", str(w / "track-runs")], without_results
    ),
    "track table": Command(lambda m, w: ["track", "table", str(w / "track")], copied("track")),
    "report run": Command(lambda m, w: ["report", str(w / "run")], copied("run")),
    "report runs": Command(lambda m, w: ["report", str(m.run), str(m.run), "--out", str(w / "all.html")]),
    "report compare": Command(lambda m, w: ["report", str(w / "compared")], copied("compared")),
    "report sweep": Command(lambda m, w: ["report", str(w / "swept")], copied("swept")),
    "inspect": Command(lambda m, w: ["inspect", str(m.run), "--out", str(w / "page.html")]),
    "plan": Command(lambda m, w: ["plan", "--model", "nano", "--picture", str(w / "bytes.svg")]),
    "bench": Command(
        lambda m, w: [
            *["bench", "--methods", "adamw", "--preset", "nano", "--steps", "1", "--rounds", "1"],
            *["--out", str(w / "bench.md")],
        ]
    ),
}


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    write_text(folder / "text.jsonl", 60)
    (folder / "fake.toml").write_bytes(
        Path(fake_training.write_recipe(folder, "fake", best_lr=0.02)).read_bytes()
    )
    fake_scaling.write_recipe(folder, "scaled")
    track = make_track(folder / "track", folder)
    add_entry(track, "adamw")
    assert main(["track", "run", str(track), "--out", str(folder / "track-runs"), "--workers", "2"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRISE_CACHE", str(folder / "cache"))
        run_training(config_for(folder, "lowrank", **{"train.steps": 2, "eval.every": 2}), folder / "run")
        found = Made(folder, *(folder / name for name in ("run", "exported", "compared", "swept")))
        assert main(["export", str(found.run), "--out", str(found.exported)]) == 0
        with_fake_training(patch)
        for words, name in ((comparing, "compared"), (functools.partial(sweeping, "grid"), "swept")):
            assert main([word.replace("/out", f"/{name}") for word in words(found, folder)]) == 0
        assert main(COMMANDS["scaling run"].words(found, folder)) == 0
        (folder / "out" / "points.csv").rename(folder / "points.csv")
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch, made) -> None:
    monkeypatch.setenv("LOWRISE_CACHE", str(made.folder / "cache"))
    with_fake_training(monkeypatch)


def with_fake_training(patch: pytest.MonkeyPatch) -> None:
    """Comparisons and sweeps start a trainer of milliseconds."""
    from lowrise.compare.compare import compare
    from lowrise.sweep.sweep import sweep

    def load(path, overrides):
        return (fake_training.load_recipe if Path(path).name == "fake.toml" else real_load)(path, overrides)

    def planner(console):
        real = real_planner(console)  # of tracks, whose runs are done
        return lambda c: (fake_training.plan_run if isinstance(c, fake_training.FakeConfig) else real)(c)

    patch.setattr(lowrise.compare.recipes, "load_recipe", load)
    patch.setattr(lowrise.compare.recipes, "planner", planner)
    for function in (compare, sweep):
        patch.setitem(function.__kwdefaults__, "command", fake_training.COMMAND)

    def scaled(options, *, console, load_recipe, plan_run):
        fakes = {"load_recipe": fake_scaling.load_recipe, "plan_run": fake_scaling.plan_run}
        return scaling_sweep(options, console=console, command=fake_scaling.COMMAND, **fakes)

    patch.setattr(lowrise.scaling.sweep, "sweep", scaled)


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def start(command: Command, made: Made, work: Path, *, fresh: bool = True) -> int:
    if fresh:
        work.mkdir(parents=True)
        command.before(made, work)
    return main(command.words(made, work))


def places_of(command: Command, made: Made, work: Path, monkeypatch) -> list[str]:
    work.mkdir(parents=True)
    command.before(made, work)
    disk = FailingDisk(work)
    with disk.in_place(monkeypatch):
        assert start(command, made, work, fresh=False) == 0
    if not command.whole:  # a second start of some commands remembers more
        assert start(command, made, work, fresh=False) == 0
    return disk.done


def fail_at(place: int, name: str, made: Made, folder: Path, whole: list[str], monkeypatch, capsys) -> str:
    """One trial; how it ended."""
    command, work = COMMANDS[name], folder / f"place-{place}" / "work"
    work.mkdir(parents=True)
    command.before(made, work)
    earlier = names_in(work / "out") if (work / "out").exists() else None
    disk = FailingDisk(work, place, NUMBERS[place % len(NUMBERS)])
    capsys.readouterr()
    with disk.in_place(monkeypatch):
        code = start(command, made, work, fresh=False)
    said = capsys.readouterr().err
    if len(disk.done) <= place:
        return "not reached"
    what = f"{disk.done[place]} (error {disk.number}) ended with {code}: {said}"
    assert "Traceback" not in said, what
    if code == 0:
        ended = "unharmed"
    else:
        assert code == 1, what
        file = Path(asked(disk.done[place].split(" ", 1)[1]))
        known = [work / part for part in (file, *file.parents[:-1])]
        assert any(str(path) in asked(said) for path in known), what
        if command.whole and (work / "out").exists():
            assert names_in(work / "out") == (earlier if earlier is not None else names_of_out(whole)), what
        ended = "message"
    if not (command.whole and (work / "out").exists() and earlier is None):
        assert start(command, made, work, fresh=False) == 0, f"{what}\nthen {capsys.readouterr().err}"
    assert names_in(work) == whole, what
    return ended


def asked(text: str) -> str:
    """What was asked for in the place of the temporary names that are written first."""
    return re.sub(r"\.([^/\s]+?)\.\d+\.tmp", r"\1", text)


def names_of_out(whole: list[str]) -> list[str]:
    return [name.removeprefix("out/") for name in whole if name.startswith("out/")]


def try_places(name: str, every: bool, made: Made, folder: Path, monkeypatch, capsys) -> dict[str, int]:
    if "gguf" in name:
        pytest.importorskip("gguf")
    done = places_of(COMMANDS[name], made, folder / "whole" / "work", monkeypatch)
    whole = names_in(folder / "whole" / "work")
    assert done, "the command writes nothing"
    counts = {"message": 0, "unharmed": 0, "not reached": 0}
    for place in (
        range(len(done)) if every else sorted({0, len(done) // 3, 2 * len(done) // 3, len(done) - 1})
    ):
        counts[fail_at(place, name, made, folder, whole, monkeypatch, capsys)] += 1
    return counts


@pytest.mark.parametrize("name", COMMANDS)
def test_at_some_places(name, made, tmp_path, monkeypatch, capsys):
    counts = try_places(name, False, made, tmp_path, monkeypatch, capsys)
    assert counts["message"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", COMMANDS)
def test_at_every_place(name, made, tmp_path, monkeypatch, capsys):
    counts = try_places(name, True, made, tmp_path, monkeypatch, capsys)
    with capsys.disabled():
        print(f"\n{name}: {counts}")
