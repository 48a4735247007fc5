"""What one rank alone sees (another newest checkpoint, less memory, other files, another rounding) decides
nothing by itself: the ranks go on alike, or each of them says the same.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import SHARED, needs_fsdp, on_ranks, parallel_config, whole_tensors
from small_runs import config_for, console, corpus_of, run_training, saved_weights, trainer_for, write_text

from lowrise.checkpoint import CheckpointStore, store
from lowrise.config import RunConfig
from lowrise.data import Corpus, DataConfig
from lowrise.data.preparation import prepare_held_out
from lowrise.distributed import World
from lowrise.distributed.sharding import local
from lowrise.errors import LowriseError, UsageError
from lowrise.inference.generate import sample_of
from lowrise.inference.sampling import Sampler
from lowrise.train import held_out, loop, room
from lowrise.train.display import Display

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text and `one`, a run on one rank with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("views")
    write_text(folder / "text.jsonl")
    run_training(parallel_config(folder, "spectron"), folder / "one")
    return folder


def raised(kind: type[Exception], action: Callable[[], Any]) -> str:
    try:
        action()
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")


# ---- the checkpoint that a run begins from


def begin(world: World, folder: Path, data: str) -> dict[str, torch.Tensor]:
    """Weights of a run that begins from `one`, whose newest checkpoint rank 0 does not see yet."""
    if world.leads:
        CheckpointStore.steps = lambda self: [4] if self.root.parent.name == "one" else []  # type: ignore
    config = parallel_config(folder, "spectron", **{"init.run": str(folder / "one"), **SHARED[data]})
    trainer = trainer_for(config, folder / f"begun-{data}", world)
    trainer._resume()
    return whole_tensors(trainer.model)


@pytest.mark.parametrize("data", ["ddp", pytest.param("fsdp", marks=needs_fsdp)])
def test_all_begin_from_the_checkpoint_that_rank_0_finds(data, folder, tmp_path):
    saved = saved_weights(folder / "one", 4)
    for weights in on_ranks(2, tmp_path, begin, folder, data):
        assert weights.keys() == saved.keys()
        assert [name for name, weight in weights.items() if not torch.equal(weight, saved[name])] == []


def resume(world: World, folder: Path, runs: Path, late: float | None) -> str:
    """Continue the run `run-K` of this rank; that of rank 1 comes `late` seconds after."""
    store.SEEN_SECONDS = 5.0 if late else 0.2
    config = parallel_config(folder, "spectron", **SHARED["fsdp"])
    own = runs / f"run-{world.rank}"
    trainer = trainer_for(config, own, world)
    if late and not world.leads:
        threading.Timer(late, lambda: shutil.copytree(runs / "run-0", own)).start()
    if late:
        trainer._resume()
        return str(trainer.progress.step)
    return raised(LowriseError, trainer._resume)


@needs_fsdp
def test_a_checkpoint_of_the_same_name_and_other_content_is_refused(folder, tmp_path):
    """Rows of two checkpoints together would be a model that nobody has trained."""
    config = parallel_config(folder, "spectron", **SHARED["fsdp"])
    trainer = trainer_for(config, tmp_path / "run-0")
    trainer.directory.begin(config)
    trainer.keeping.save()
    trainer.keeping.saver.finish()
    shutil.copytree(tmp_path / "run-0", tmp_path / "run-1")
    there = CheckpointStore(tmp_path / "run-1" / "checkpoints")
    saved = there.load(0)
    parts = {part: dict(tensors) for part, tensors in saved.parts.items()}
    parts["model"] = {name: tensor + 1 for name, tensor in parts["model"].items()}
    there.save(0, parts, saved.numbers)
    for said in on_ranks(2, tmp_path / "ranks", resume, folder, tmp_path, None):
        assert "is another checkpoint at rank 1 than at rank 0" in said


@needs_fsdp
@pytest.mark.parametrize("late", [None, 1.0])
def test_a_disk_that_lags_is_waited_for(late, folder, tmp_path):
    config = parallel_config(folder, "spectron", **SHARED["fsdp"])
    trainer = trainer_for(config, tmp_path / "run-0")
    trainer.directory.begin(config)
    trainer.update()
    trainer.keeping.save()
    trainer.keeping.saver.finish()
    for said in on_ranks(2, tmp_path / "ranks", resume, folder, tmp_path, late):
        assert said == "1" if late else "Rank 1 does not see" in said


# ---- what a start asks of the machine and of its files


STARTS = {
    "recipe": "do not have the same recipe",
    "sharding": "do not have the same recipe",
    "memory": "This run needs",
    "torch": "do not have the same torch",
    "further text": "do not have the same text eval.extra.news",
    "passes": "do not have the same passes",
}
"""What rank 1 has otherwise -> what all say."""


def starts(world: World, folder: Path) -> dict[str, str]:
    return {what: start(world, folder, what) for what in STARTS}


def start(world: World, folder: Path, what: str) -> str:
    more: dict[str, Any] = {}
    corpus = corpus_of(config_for(folder, "spectron"))
    with pytest.MonkeyPatch.context() as here:
        if what == "recipe":
            more = {"log.every": 1 + world.rank}
        elif what == "sharding":
            more = SHARED["fsdp"] if world.leads else {}
        elif what == "memory" and not world.leads:
            here.setattr(room, "free_bytes", lambda device: 1000)
        elif what == "torch" and not world.leads:
            here.setattr(torch, "__version__", "2.7.0+cpu")
        elif what == "passes":
            here.setattr(loop, "passes_of", lambda *of: "native" if world.leads else "torch")
        elif what == "further text":
            more = {"eval.extra": {"news": str(folder / "text.jsonl")}}
            name = "text" if world.leads else "other"
            here.setattr(
                held_out, "extra_texts", lambda *given: {"news": news(folder / f"{name}.jsonl", corpus)}
            )
        config = parallel_config(folder, "spectron", **more)
        display = Display(console(), config.train.steps)
        directory = loop.RunDirectory(folder / f"started-{what}")
        return raised(UsageError, lambda: loop.Trainer(config, corpus, directory, display, world))


def news(text: Path, corpus: Corpus) -> Corpus:
    cache = replace(DataConfig(), cache=str(text.parent / "cache"))
    return prepare_held_out([str(text)], corpus.directory / "tokenizer.json", cache)


def test_all_ranks_refuse_what_one_of_them_has_otherwise(folder, tmp_path):
    write_text(folder / "other.jsonl", documents=50)
    for said in on_ranks(2, tmp_path, starts, folder):
        assert [what for what, sentence in STARTS.items() if sentence not in said[what]] == []


def run_without_packages(world: World, folder: Path, run: Path) -> str:
    if not world.leads:

        def missing(*arguments: object) -> Any:
            raise UsageError("log.services wandb needs the package wandb")

        loop.services_of = missing  # type: ignore[assignment]
    summary = run_training(parallel_config(folder, "spectron", **{"train.steps": 1}), run, world)
    return str(summary["status"])


def test_only_rank_0_needs_the_packages_of_services(folder, tmp_path):
    assert (
        on_ranks(2, tmp_path / "ranks", run_without_packages, folder, tmp_path / "run") == ["completed"] * 2
    )


# ---- numbers


def sample(world: World, folder: Path) -> str:
    """A sample where rank 1 would choose to end the text at once."""
    config: RunConfig = parallel_config(folder, "spectron", **SHARED["fsdp"], **{"sample.tokens": 6})
    trainer = trainer_for(config, folder / "sampled", world)
    separator = trainer.corpus.tokenizer.separator_id
    if not world.leads:
        Sampler.__call__ = lambda self, logits: torch.tensor([separator])  # type: ignore[method-assign]
    text = sample_of(trainer.model, config, trainer.corpus.tokenizer, trainer.device, world)
    assert text is not None
    return text


@needs_fsdp
def test_a_sample_is_made_of_the_tokens_of_rank_0(folder, tmp_path):
    first, second = on_ranks(2, tmp_path, sample, folder, seconds=120.0)
    assert first == second != ""


def change_a_copy(world: World, folder: Path) -> str:
    """One bit of a weight of the second copy of a model whose copies are shared by rows."""
    more = {"parallel.data": "hsdp", "parallel.shard_degree": 1, "parallel.replicate_below": 65}
    trainer = trainer_for(parallel_config(folder, "spectron", **more), folder / "copies", world)
    trainer.keeping.check_alike("before")
    if world.rank == 1:
        weight = local(trainer.model.model.embed_tokens.weight.detach()).view(-1)
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))
    return raised(LowriseError, trainer.keeping.save)


@needs_fsdp
def test_copies_that_are_shared_by_rows_do_not_drift_apart_unseen(folder, tmp_path):
    for said in on_ranks(2, tmp_path, change_a_copy, folder):
        assert "model.embed_tokens.weight is not the same on all of them (1 of" in said
