"""Every block of Python in the pages and in docstrings runs, and every block of TOML is a recipe.

A page's blocks share one namespace, in their order. It starts with what the pages take as given: a small
model, an optimizer, batches. Sizes are replaced by ones that a test has time for.
"""

from __future__ import annotations

import contextlib
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from doc_pages import PAGES, blocks_of, docstring_blocks
from small_runs import WORDS, config_for, run_training, write_text
from torch import nn

import lowrise
from lowrise import layers, optim
from lowrise.checkpoint import CheckpointStore, Saver
from lowrise.config import load
from lowrise.console import Console
from lowrise.data import corpora, prepare
from lowrise.distributed import World
from lowrise.model import LlamaConfig, build_model, next_token_loss
from lowrise.runs.directory import RunDirectory

# Tested beside this: methods/*.md in test_method_docs.py, huggingface.md in test_huggingface_docs.py,
# export.md in test_export_docs.py, commands/serve.md in unit/serve/test_openai_client.py, the tutorial's
# client in test_commands_in_docs.py.
ELSEWHERE = {
    "docs/huggingface.md",
    "docs/export.md",
    "docs/commands/serve.md",
    *(page for page in PAGES if page.startswith("docs/methods/")),
}
WITH_PYTHON = [page for page in PAGES if page not in ELSEWHERE and blocks_of(page, "python")]
WITH_TOML = [page for page in PAGES if blocks_of(page, "toml")]
IN_DOCSTRINGS = docstring_blocks()

Place = Callable[[Path], dict[str, Any]]


def small(code: str) -> str:
    """The code with sizes that a test has time for."""
    code = re.sub(r'preset\("60m"\)', 'preset("nano", vocab_size=300)', code)
    code = code.replace("vocab_size=8192", "vocab_size=300").replace("seq_len=256", "seq_len=16")
    return re.sub(r"rank=\d{2,}", "rank=8", code)


def usual() -> dict[str, Any]:
    """What every page takes as given."""
    model = build_model(LlamaConfig.preset("nano", vocab_size=300))
    optimizer = optim.AdamW.from_model(model)
    names = {name: getattr(room, name) for room in (layers, optim) for name in room.__all__}
    return names | {
        "lowrise": lowrise,
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
        "batches": [torch.randint(300, (4, 17)) for _ in range(2)],
        "loss_of": lambda model, batch: next_token_loss(model, batch),
        "device": torch.device("cpu"),
        "step": 1,
        "k": 0,
    }


def with_checkpoint(folder: Path) -> dict[str, Any]:
    names = usual()
    world = World.from_environment()
    with Saver(CheckpointStore(folder / "runs/a/checkpoints"), world, keep=1) as saver:
        saver.save(1000, {"model": dict(names["model"].named_parameters())}, {"step": 1000})
    return names


def with_texts(folder: Path) -> dict[str, Any]:
    text = " ".join(WORDS * 200)
    (folder / "books").mkdir()
    (folder / "books" / "one.txt").write_text(text)
    write_text(folder / "held-out.jsonl")
    (folder / "held-out.jsonl.xz").write_bytes(lzma.compress((folder / "held-out.jsonl").read_bytes()))
    return usual()


def with_run(folder: Path) -> dict[str, Any]:
    write_text(folder / "text.jsonl")
    run_training(config_for(folder, "muon"), folder / "runs/my-run")
    return usual()


def with_convolutions(folder: Path) -> dict[str, Any]:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 8, 4))

    model = nn.Sequential()
    model.add_module("patch_embed", nn.Conv2d(3, 8, 2))
    model.add_module("linear", nn.Linear(8, 8))
    model.add_module("experts", Experts())
    model.add_module("block", nn.Sequential())
    model.block.add_module("experts", Experts())
    return usual() | {"model": model, "torch": torch}


def with_tracked_run(folder: Path) -> dict[str, Any]:
    write_text(folder / "text.jsonl")
    config = config_for(folder, "muon")
    corpus = prepare(config.data)
    console = Console(quiet=True)
    parts = {
        "config": config,
        "corpus": corpus,
        "directory": RunDirectory(folder / "run"),
        "console": console,
    }
    return usual() | parts


def with_table(folder: Path) -> dict[str, Any]:
    rows = [f"{i}\t{' '.join(WORDS)} {i}" for i in range(300)]
    (folder / "notes.tsv").write_text("\n".join(rows))
    return usual()


PLACES: dict[str, Place] = {
    "docs/checkpoints.md": with_checkpoint,
    "docs/commands/report.md": with_run,
    "docs/data.md": with_texts,
    "docs/extending.md": with_table,
    "docs/optimizers.md": with_convolutions,
    "docs/runs.md": with_tracked_run,
}


@contextlib.contextmanager
def one_process() -> Iterator[Any]:
    """A process group of one, as torchrun would make it, and its mesh."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield torch.distributed.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


def check_readme(names: dict[str, Any]) -> None:
    assert {group["role"] for group in names["optimizer"].param_groups} == {"factors", "other"}


def check_tutorial(names: dict[str, Any]) -> None:
    assert 0 < float(names["loss"].detach()) < 7


def check_data(names: dict[str, Any]) -> None:
    assert names["batch"].shape == (64, 17)


def check_checkpoints(names: dict[str, Any]) -> None:
    assert Path("whole/step-00001000/model.safetensors").is_file()


def check_extending(names: dict[str, Any]) -> None:
    assert {group["role"] for group in names["optimizer"].param_groups} == {"factors", "other"}
    documents = re.findall(r"^(?:train|valid) +([\d,]+)", str(names["corpus"]), flags=re.MULTILINE)
    assert sum(int(number.replace(",", "")) for number in documents) == 300


def check_report(names: dict[str, Any]) -> None:
    assert Path("runs/my-run/report.html").is_file()


CHECKS = {
    "README.md": check_readme,
    "docs/tutorial.md": check_tutorial,
    "docs/data.md": check_data,
    "docs/checkpoints.md": check_checkpoints,
    "docs/commands/report.md": check_report,
    "docs/extending.md": check_extending,
}
TABLES: tuple[dict[str, Any], ...] = (layers.LAYERS, corpora.READERS, corpora.KIND_OF_SUFFIX)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOWRISE_CACHE", str(tmp_path / "cache"))
    for table in TABLES:  # a page may add to them
        for key in table:
            monkeypatch.setitem(table, key, table[key])
    names = PLACES.get(page, lambda folder: usual())(tmp_path)
    for code in blocks_of(page, "python"):
        if "from openai import" in code:
            continue  # it asks a server: test_commands_in_docs.py
        with one_process() if "mesh" in code else contextlib.nullcontext() as mesh:
            exec(compile(small(code), page, "exec"), names | {"mesh": mesh} if mesh else names)
    CHECKS.get(page, lambda names: None)(names)


@pytest.mark.parametrize("file", IN_DOCSTRINGS)
def test_the_python_of_docstrings_runs(file: str) -> None:
    names = usual() | {"loss": next_token_loss}
    model, batch = names["model"], names["batches"][0]
    names["loss"] = next_token_loss(model, batch)
    for code in IN_DOCSTRINGS[file]:
        exec(compile(small(code), file, "exec"), names)


@pytest.mark.parametrize("page", WITH_TOML)
def test_the_toml_of_a_page_is_a_recipe(page: str, tmp_path: Path) -> None:
    for code in blocks_of(page, "toml"):
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(code)
        load(recipe)


def test_pages_with_a_place_of_their_own_are_there() -> None:
    assert PLACES.keys() | CHECKS.keys() <= set(WITH_PYTHON)
