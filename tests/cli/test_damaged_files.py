"""Files of a run or a corpus that are not what they were: every command ends with a code and a message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lowrise.cli import main
from lowrise.runs.history import last_metrics, read_run, read_summary
from tests.small_runs import config_for, corpus_of, run_training, write_text

DAMAGES: dict[str, bytes | None] = {
    "a folder": None,
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "nested too deep": b"[" * 100_000,
    "a number of 5,000 digits": b'{"step": ' + b"9" * 5_000 + b"}",
    "another kind of value": b"[null]",
}
OF_THE_RUN = (
    "config.toml",
    "metrics.jsonl",
    "summary.json",
    "environment.json",
    "sample.txt",
    "tokenizer.json",
)
OF_THE_CORPUS = ("index.json", "tokenizer.json", "train-00000.bin")


@dataclass(frozen=True)
class Trained:
    run: Path
    corpus: Path
    recipe: Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("original")
    write_text(folder / "text.jsonl")
    config = config_for(folder, "adamw", **{"train.steps": 2, "checkpoint.every": 1, "eval.every": 2})
    (folder / "recipe.toml").write_text(config.to_toml())
    run_training(config, folder / "run")
    return Trained(folder / "run", corpus_of(config).directory, folder / "recipe.toml")


@pytest.fixture
def damage(
    original: Trained, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[str, str, str], Path]:
    """Damage a file of a copy of the run, or of the corpus, which is mended afterwards; the run's folder."""

    def damaged(where: str, name: str, kind: str) -> Path:
        run = shutil.copytree(original.run, tmp_path / "run")
        path = (run if where == "run" else original.corpus) / name
        kept = path.read_bytes()

        def mend() -> None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            path.write_bytes(kept)

        if where == "corpus":
            request.addfinalizer(mend)
        path.unlink()
        content = DAMAGES[kind]
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        return run

    return damaged


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(
    ("where", "name"), [*(("run", n) for n in OF_THE_RUN), *(("corpus", n) for n in OF_THE_CORPUS)]
)
def test_every_command_ends_with_a_message(
    where: str,
    name: str,
    kind: str,
    damage: Callable[[str, str, str], Path],
    original: Trained,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = damage(where, name, kind)
    commands = (
        ["eval", str(run), "--device", "cpu"],
        ["generate", str(run), "--tokens", "1", "--device", "cpu"],
        ["data", "info", str(run)],
        ["data", "info", str(original.corpus), "--verify"],
        ["train", str(original.recipe), "--run", str(run)],
    )
    codes = []
    for command in commands:
        codes.append(main(command))
        error = capfd.readouterr().err
        assert codes[-1] in (0, 1, 2), command
        assert "Traceback" not in error, command
        assert codes[-1] == 0 or len(error) < 1_500, command  # a message, not the file
    if where == "corpus":
        assert codes[0] != 0
        assert codes[2:] != [0, 0, 0]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", OF_THE_RUN)
def test_what_reports_and_comparisons_read_names_the_damage(
    name: str, kind: str, damage: Callable[[str, str, str], Path]
) -> None:
    run = damage("run", name, kind)
    found = read_run(run)
    assert isinstance(last_metrics(run / "metrics.jsonl"), dict)
    if name == "summary.json":
        assert read_summary(run) is None
    else:
        assert read_summary(run) is not None
    if name in ("summary.json", "environment.json"):
        assert any(name in problem for problem in found.problems)
