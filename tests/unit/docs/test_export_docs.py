"""The commands of README's "Take it with you" and the Python of docs/export.md run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from served import serving
from small_runs import config_for, run_training

from lowrise.cli import main
from lowrise.console import Console
from lowrise.runs.load import load_run

pytest.importorskip("transformers")
pytest.importorskip("gguf")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def here(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that both pages speak of."""
    folder = tmp_path_factory.mktemp("pages")
    config = config_for(text_folder, "spectron", **{"train.steps": 2, "eval.every": 0})
    run_training(config, folder / "runs" / "s60m")
    return folder


def test_readme_and_page(here: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HOME", str(here / "hf"))
    monkeypatch.setenv("LOWRISE_CACHE", str(here / "cache"))
    section = (ROOT / "README.md").read_text().split("## Take it with you")[1].split("\n## ")[0]
    (block,) = re.findall(r"```\n(.*?)```", section, flags=re.DOTALL)
    text = str(text_folder / "text.jsonl")
    small = {
        "train": ["--train.steps", "2", "--sample.tokens", "0", "--data.source", text],
        "generate": ["--tokens", "3"],
        "factorize": ["--measure", text, "--tokens", "128"],
    }
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert len(lines) == 10
    assert {words[0] for words in lines} == {"import", "export", "serve", *small}
    for words in lines:
        if words[0] == "serve":
            openai = pytest.importorskip("openai")
            with serving(*words[1:]) as url:
                client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
                answer = client.completions.create(model="hf-factored", prompt="the", max_tokens=3)
                assert answer.usage.completion_tokens <= 3
        else:
            assert main([*words, *small.get(words[0], [])]) == 0, words
    names: dict[str, object] = {}
    page = (ROOT / "docs" / "export.md").read_text()
    remote, known, own = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(remote, names)
    # of the folder, or ours where another test of this process has told transformers about it
    assert type(names["model"]).__name__ == "LowriseForCausalLM"
    exec(known, names)
    assert type(names["model"]).__module__ == "lowrise.export.modeling_lowrise"
    exec(own, names)
    run = load_run(Path("runs/s60m"), "cpu", Console(quiet=True))
    assert torch.equal(names["model"](names["ids"]), run.model(names["ids"]))
    assert names["model"].training
    assert all(p.grad is not None for p in names["model"].parameters())
