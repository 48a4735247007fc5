"""What a run goes on from, and whether that is its own: text, first weights, settings, a branch's parent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowrise.checkpoint import Checkpoint
from lowrise.checkpoint.manifest import MANIFEST
from lowrise.checkpoint.store import load_by_all, newest_checkpoint
from lowrise.config import RunConfig, load, resolved
from lowrise.config.identity import Changes, Kind, differences, told
from lowrise.config.sections import InitSection
from lowrise.data import Corpus
from lowrise.distributed import World, check_same_work
from lowrise.errors import UsageError
from lowrise.linalg.passes import VARIABLE, follow, path, wanted
from lowrise.model.finite import require_finite
from lowrise.pretrained.folder import weights_digest
from lowrise.runs.directory import RunDirectory, open_run, require_numbers, require_recipe
from lowrise.runs.environment import precision_of
from lowrise.train.course import Course, require_same_course
from lowrise.train.step import TrainStep
from lowrise.train.warm_start import require_same_tokenizer, start_from_model, warm_start


def accepted_changes(before: RunConfig | None, config: RunConfig) -> Changes:
    """Settings that differ from those of the last start, which a run may change."""
    if before is None:
        return {}
    free = (kind for kind in Kind if kind is not Kind.MATHEMATICS)
    return differences(before.to_dict(), resolved(config).to_dict(), *free)


@dataclass(frozen=True)
class Start:
    """What a start of a run went on from."""

    own: bool = False
    """A checkpoint of the run itself."""
    origin: Origin | None = None
    path: Path | None = None
    """The checkpoint of another run, or the folder, that gave the first weights."""

    def entry(self, step: int, changed: Changes) -> dict[str, Any]:
        """The line for the history in environment.json."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry: dict[str, Any] = {"time": time, "step": step}
        if self.path is not None:
            entry["init"] = str(self.path.absolute())
        return entry | {"changed": {key: list(values) for key, values in changed.items()}}


def go_on(
    step: TrainStep, directory: RunDirectory, before: RunConfig | None, say: Callable[..., None]
) -> Start:
    """From the run's newest checkpoint, from the run or folder that `init` names, or from fresh weights.
    Collective.

    `before`: the configuration of the last start, at rank 0. `say`: shows a line (`Display.say`). Raises
    `UsageError` where the run would be another one, before anything of `step` has changed.
    """
    config = step.config
    checkpoint = newest_checkpoint(directory.checkpoints, step.world, lambda text: say(text, style="yellow"))
    if checkpoint is not None:
        require_recipe(checkpoint, config)
        require_same_text(checkpoint, step.corpus, before, config)
        require_numbers(checkpoint, "precision", "origin", "course", "skipped")
        require_same_precision(checkpoint, precision_of(config, step.device))
        choose_passes(checkpoint, step, say)
        origin = require_same_origin(checkpoint, config)
        require_same_course(
            Course.read(checkpoint.numbers["course"]),
            Course.of(config),
            checkpoint.step,
            skipped=checkpoint.numbers["skipped"],
            layers=step.low_rank_layers,
            optimizer=step.optimizer,
        )
        step.load(checkpoint)
        say(f"Continuing from step {checkpoint.step} ({checkpoint.path}).")
        return Start(own=True, origin=origin)
    choose_passes(None, step, say)
    if config.init.model is not None:
        origin = Origin.of_model(config.init)
        check_same_work(step.world, **{"weights in init.model": origin.sha256})
        start_from_model(step.model, config, step.corpus.tokenizer, say)
        return Start(origin=origin, path=Path(config.init.model).expanduser())
    if config.init.run is None:
        return Start()
    checkpoint = origin_checkpoint(config.init, step.world)
    if config.init.what == "all":
        check_branch(checkpoint, config, step.corpus, say)
        remedy = "Branch off at an earlier step, init.step."
        require_finite(checkpoint.parts["model"], checkpoint.path, remedy)
        choose_passes(checkpoint, step, say)
        step.load(checkpoint)
    else:
        spent = warm_start(step.model, config, checkpoint, step.corpus.tokenizer, say)
        step.progress.init_tokens, step.progress.init_flops = spent.tokens, spent.flops
    return Start(origin=Origin.of(config.init, checkpoint), path=checkpoint.path)


# --- the text ---------------------------------------------------------------------------------------------


def mixture_of(corpus: Corpus) -> str:
    """How a mixture's sources divide the text; empty where there is none."""
    return json.dumps([part.tokens for part in corpus.train.parts]) if corpus.train.parts else ""


def require_same_text(
    checkpoint: Checkpoint, corpus: Corpus, before: RunConfig | None, config: RunConfig
) -> None:
    """Refuse other tokens, whatever the sources are called; settings that may have caused it are named."""
    numbers = checkpoint.numbers
    same = numbers["corpus"] == corpus.fingerprint
    if same and numbers.get("mixture") == mixture_of(corpus):
        return
    changed = {}
    if before is not None:
        changed = differences(before.to_dict(), resolved(config).to_dict(), Kind.TEXT)
    raise UsageError(
        f"The text of this run has changed since its checkpoint at step {checkpoint.step} "
        f"({told(changed) if changed else 'the files are others, under the same names'}): "
        "continuing would mix two corpora. Restore the text, or start a new run with --run."
    )


def require_same_precision(checkpoint: Checkpoint, here: str) -> None:
    """Refuse another arithmetic, which `train.precision = "auto"` may become on another device."""
    there = checkpoint.numbers["precision"]
    if there != here:
        raise UsageError(
            f"train.precision: {there} there, {here} here (auto goes by the device), and this run has begun "
            f"with {there}: continue it with --train.precision {there}."
        )


def choose_passes(checkpoint: Checkpoint | None, step: TrainStep, say: Callable[..., None]) -> None:
    """Keep the form of the optimizer's passes (`linalg/passes.py`) that the checkpoint was made with: it
    decides the last bits. None: that of this machine, with a line where it is the slower one.

    $LOWRISE_PASSES decides against the checkpoint, and that is said. Raises `UsageError` for a checkpoint
    made in C++ where there is none.
    """
    follow(None)
    if not step.optimizer.native_passes or step.device.type != "cpu":
        return
    here = path()
    if checkpoint is None:
        if here == "torch" and wanted() == "auto":
            say(
                "Optimizer steps go by torch's operations: their form in C++, some twice as fast, needs a "
                "compiler (g++, c++ or clang++, or the one that CXX names).",
                style="yellow",
            )
        return
    there = checkpoint.numbers.get("passes", "torch")  # an earlier version had no other
    if there == here:
        return
    if wanted() != "auto":
        say(f"{VARIABLE} = {here}: this run began with {there}; from here on results differ in rounding.")
    elif there == "torch":
        follow("torch")
    else:
        raise UsageError(
            f"The optimizer steps of this run were made in C++ ({checkpoint.path}), and there is no compiler "
            f"here: install g++ or clang++, or go on with torch's operations by {VARIABLE}=torch; results "
            "then differ in rounding."
        )


# --- first weights ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where a run's first weights came from: as it was asked for, and their content."""

    run: str | None
    model: str | None
    step: int | None
    what: str
    sha256: str

    @classmethod
    def of(cls, init: InitSection, checkpoint: Checkpoint) -> Origin:
        """A checkpoint of another run."""
        manifest = (checkpoint.path / MANIFEST).read_bytes()
        return cls(*_asked(init), sha256=hashlib.sha256(manifest).hexdigest())

    @classmethod
    def of_model(cls, init: InitSection) -> Origin:
        """A Hugging Face folder."""
        assert init.model is not None
        return cls(*_asked(init), sha256=weights_digest(Path(init.model).expanduser()))

    @classmethod
    def read(cls, text: str) -> Origin | None:
        return cls(**json.loads(text)) if text else None

    def text(self) -> str:
        """For a checkpoint."""
        return json.dumps(asdict(self))


def require_same_origin(checkpoint: Checkpoint, config: RunConfig) -> Origin | None:
    """The origin that a run's checkpoint tells of. Raises `UsageError` where `[init]` names other weights
    now; the same under another path are the same."""
    init = config.init
    fresh = init.run is None and init.model is None
    origin = Origin.read(checkpoint.numbers["origin"])
    if origin is None and fresh:
        return None
    if origin is not None and not fresh:
        if _asked(init) == (origin.run, origin.model, origin.step, origin.what):
            return origin  # it need not be there any more
        if init.what == origin.what and _found(init).sha256 == origin.sha256:
            return origin
    raise UsageError(
        f"This run has begun from {_named(origin)}, and init names {_named(None if fresh else init)} now: "
        "continue it with what it began from, or give another folder with --run."
    )


def _asked(init: InitSection) -> tuple[str | None, str | None, int | None, str]:
    """The fields of an `Origin` that `[init]` says, its places absolute."""
    config = RunConfig()
    config.init.run, config.init.model = init.run, init.model
    places = resolved(config).init
    return places.run, places.model, init.step, init.what


def _found(init: InitSection) -> Origin:
    """The origin that `[init]` names now. Raises `UsageError` where it is not there."""
    return Origin.of_model(init) if init.model is not None else Origin.of(init, origin_checkpoint(init))


def _named(origin: Origin | InitSection | None) -> str:
    if origin is None:
        return "fresh weights"
    if origin.model is not None:
        return origin.model
    step = "its newest checkpoint" if origin.step is None else f"step {origin.step}"
    return f"{origin.run} ({step}, {origin.what})"


def origin_checkpoint(init: InitSection, world: World | None = None) -> Checkpoint:
    """The checkpoint that `[init]` names. Reads only: a damaged one of another run is not put aside here.

    Rank 0 chooses: a run that still goes on may save its next while the ranks look. Collective.
    """
    assert init.run is not None
    world, run = world or World(), open_run(init.run)
    return load_by_all(run.checkpoints, world.by_rank_0(lambda: _origin_step(run, init.step)), world)


def _origin_step(run: RunDirectory, step: int | None) -> int:
    steps = run.checkpoints.steps()
    if not steps:
        raise UsageError(f"init.run = {run.path} has no checkpoint yet: train it first.")
    if step is not None and step not in steps:
        raise UsageError(
            f"init.step = {step} is no checkpoint of {run.path}; it has {', '.join(map(str, steps))} "
            "(checkpoint.keep_every keeps more)."
        )
    return steps[-1] if step is None else step


# --- a branch ---------------------------------------------------------------------------------------------

# What decides which sequences batch k has, besides the text.
_PLACE = ("seed", "train.global_batch_size", "train.seq_len", "data.weights")


def check_branch(
    checkpoint: Checkpoint, config: RunConfig, corpus: Corpus, say: Callable[[str], None]
) -> None:
    """Before all of a run is taken over (`init.what = "all"`): refuse another tokenizer, another order of
    batches, no update left to do. Learning rates, schedule, clipping and so on may differ."""
    assert config.init.run is not None
    run = open_run(config.init.run)
    before = load(run.config)
    require_same_tokenizer(run, before, corpus.tokenizer)
    changed = differences(before.to_dict(), config.to_dict(), Kind.MATHEMATICS)
    moved = {key: values for key, values in changed.items() if key in _PLACE}
    if moved:
        raise UsageError(
            f'init.what = "all" goes on at the place in the data where {run.path} was, and batches are '
            f"others here ({told(moved)}): keep these settings, or take the weights alone (init.what = "
            '"weights").'
        )
    if checkpoint.step >= config.train.steps:
        raise UsageError(
            f"train.steps = {config.train.steps} counts from the beginning of {run.path}, and its checkpoint "
            f"{checkpoint.path.name} has done {checkpoint.step}: give a larger number."
        )
    what = f"; changed: {told(changed, 9)}" if changed else ""
    say(f"A branch of {run.path} from step {checkpoint.step}, with its optimizer state{what}.")
    if checkpoint.numbers["corpus"] != corpus.fingerprint:
        say(f"The text is another one: batches go on with number {checkpoint.step + 1} of it.")


def text_numbers(corpus: Corpus) -> Mapping[str, str]:
    """What a checkpoint tells of the text."""
    return {"corpus": corpus.fingerprint, "mixture": mixture_of(corpus)}
