"""The command line: one function a command, no logic of its own.

Exit codes: 0 done, 1 failure, 2 usage, 128 + N stopped by signal N with everything saved.
"""

from __future__ import annotations

import errno
import itertools
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagConversionOff, Positional, arg

from lowrise import __version__
from lowrise.config import RunConfig, load, lookup, resolved, validate
from lowrise.config.renamed import renamed_flag
from lowrise.data import DataConfig, cache_root, open_corpus, prepare
from lowrise.data.log import log_path
from lowrise.data.progress import prepare_with_progress
from lowrise.distributed import World
from lowrise.distributed.launcher import prefix_of, require_one_process, told_to_torchrun
from lowrise.errors import LowriseError, UsageError, printable
from lowrise.methods import METHODS
from lowrise.signals import saving_ends_nothing

Arguments = Sequence[str]
_REMEDIES = {
    errno.ENOSPC: "no space left on the device, free some and start again",
    errno.EACCES: "change its rights, or choose another place",
    errno.EPERM: "change its rights, or choose another place",
    errno.EROFS: "the disk is read-only, choose another place",
    errno.ENOTDIR: "a part of this path is a file, choose another place",
    errno.EEXIST: "there is a file where a folder belongs, choose another place",
    errno.EISDIR: "a folder lies where a file belongs, name the file",
    errno.ENOENT: "create it, or correct the path",
    errno.EMFILE: "too many files are open, raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_STYLE = (FlagConversionOff,)


@dataclass(kw_only=True)
class Train:
    """Train a model, or continue a run whose folder holds checkpoints of the same recipe.

    Without a recipe: a small Spectron model on the Python standard library's source, in a few minutes.
    """

    recipe: Positional[Path | None] = None
    """TOML file; keys that it leaves out take the method's defaults."""
    run: Path | None = None
    """Folder of the run; none: runs/METHOD-PRESET-HASH."""
    config: Annotated[RunConfig, arg(name="")] = field(default_factory=RunConfig)


@dataclass(kw_only=True)
class OtherText:
    """Text to evaluate on instead of the run's held-out text."""

    source: tuple[str, ...] = ()
    """Files, directories, globs, "hf:NAME...": all of it, with the run's tokenizer."""


@dataclass(kw_only=True)
class Eval:
    """Exact validation loss, perplexity and bits per byte of a run's newest checkpoint."""

    run: Positional[Path]
    """Folder of the run."""
    data: OtherText = field(default_factory=OtherText)
    trust: bool = False
    """Read the files that a run of somebody else's names in its config.toml."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object instead of a sentence."""


@dataclass(kw_only=True)
class Generate:
    """Continue a text with a run's newest checkpoint."""

    run: Positional[Path]
    """Folder of the run."""
    prompt: str = ""
    """Text to continue; empty: begin a document."""
    tokens: int = 200
    """Most tokens to generate."""
    temperature: float = 0.8
    """Softmax temperature; 0: the likeliest token always."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens with this probability."""
    seed: int = 0
    """Seed of the sampling."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(kw_only=True)
class DataPrepare:
    """Tokenize a corpus into shards, once; a second call finds them."""

    config: Annotated[DataConfig, arg(name="")] = field(default_factory=DataConfig)


@dataclass(kw_only=True)
class DataInfo:
    """What a prepared corpus holds: documents, tokens, bytes, tokenizer."""

    folder: Positional[Path]
    """Folder of a prepared corpus, or of a run."""
    trust: bool = False
    """Read the files that a run of somebody else's names in its config.toml."""


def train(arguments: Arguments, console: Console) -> int:
    from lowrise.runs.environment import choose_device
    from lowrise.runs.parallel import check_world
    from lowrise.runs.text import with_text_limit
    from lowrise.train import RunDirectory
    from lowrise.train import train as run_training

    saving_ends_nothing()
    command = _parse(Train, arguments, "train", default=Train(config=_base_config(arguments)))
    validate(command.config)
    config = with_text_limit(command.config, command.run and command.run.expanduser())
    world = World.from_environment()
    check_world(config, world)
    device = world.device(choose_device(config.train.device))
    console.quiet = not world.leads
    corpus = prepare_with_progress(config.data, console)
    name = resolved(config).name_on(corpus.fingerprint)
    folder = (
        command.run.expanduser()
        if command.run
        else Path("runs") / f"{config.method}-{config.model.preset}-{name[:8]}"
    )
    with world.joined(device):
        summary = run_training(config, corpus, RunDirectory(folder), console, world)
    console.print(
        f"validation loss {summary['val_loss']:.4f}, perplexity {summary['val_perplexity']:.3f}, "
        f"{summary['val_bits_per_byte']:.4f} bits per byte over {summary['val_tokens']:,} tokens",
        style="bold",
        highlight=False,
    )
    if summary.get("sample"):
        console.rule("sample", align="left")
        console.print(printable(summary["sample"]), markup=False, highlight=False)
        console.rule()
    console.print(f"Report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return 0


def evaluate(arguments: Arguments, console: Console) -> int:
    from lowrise.inference.evaluate import evaluate_run

    command = _parse(Eval, arguments, "eval")
    result = evaluate_run(
        command.run, command.device, console, source=command.data.source, trust=command.trust
    )
    if command.json:
        print(json.dumps(result))
    else:
        console.print(
            f"step {result['step']}: validation loss {result['val_loss']:.6f}, "
            f"perplexity {result['val_perplexity']:.4f}, {result['val_bits_per_byte']:.5f} bits per byte "
            f"over {result['val_tokens']:,} tokens",
            highlight=False,
        )
    return 0


def generate(arguments: Arguments, console: Console) -> int:
    from lowrise.inference.generate import generate_from_run

    command = _parse(Generate, arguments, "generate")
    pieces = generate_from_run(
        command.run,
        command.prompt,
        console,
        device=command.device,
        max_new_tokens=command.tokens,
        temperature=command.temperature,
        top_k=command.top_k or None,
        top_p=command.top_p,
        seed=command.seed,
    )
    shown = printable if sys.stdout.isatty() else str  # a file gets the text as it is
    first = next(pieces, "")  # what cannot be run is said before anything is shown
    for piece in itertools.chain((command.prompt, first), pieces):
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def data(arguments: Arguments, console: Console) -> int:
    action, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if action == "prepare":
        command = _parse(DataPrepare, rest, "data prepare")
        corpus = prepare_with_progress(command.config, console)
        console.print(str(corpus), highlight=False)
        log = log_path(cache_root(command.config.cache), corpus.fingerprint)
        if log.exists():
            console.print(f"Log: {log}", markup=False, highlight=False, soft_wrap=True)
        return 0
    if action == "info":
        console.print(_info(_parse(DataInfo, rest, "data info")), highlight=False)
        return 0
    if action in ("-h", "--help"):
        console.print("lowrise data prepare: tokenize a corpus\nlowrise data info FOLDER: what it holds")
        return 0
    raise UsageError(f"lowrise data {action}: there are lowrise data prepare and lowrise data info.")


def methods(arguments: Arguments, console: Console) -> int:
    if arguments:
        row = lookup(METHODS, arguments[0], "method", "lowrise methods")
        print(f"# {row.name}: {row.summary}\n# {row.source}\n")
        print(load(None, {"method": row.name}).to_toml(), end="")
        return 0
    table = Table("method", "layer", "optimizer", "what", "source", box=None, header_style="bold")
    for row in METHODS.values():
        table.add_row(row.name, row.layer, row.optimizer, row.summary, row.source)
    console.print(table)
    return 0


def compare(arguments: Arguments, console: Console) -> int:
    from lowrise.compare.compare import CompareConfig
    from lowrise.compare.compare import compare as run_compare
    from lowrise.runs.text import with_text_limit
    from lowrise.train import plan_run

    command = _parse(CompareConfig, arguments, "compare")

    def plan(config: RunConfig) -> Any:
        return plan_run(config, prepare_with_progress(config.data, console).tokenizer.vocab_size)

    def load_recipe(path: str, settings: dict[str, Any]) -> RunConfig:
        return with_text_limit(load(path, settings))  # as lowrise train, so that the hashes are those of runs

    return run_compare(command, load_recipe=load_recipe, plan_run=plan, console=console)


COMMANDS: dict[str, tuple[Callable[[Arguments, Console], int], str]] = {
    "train": (train, "train a model, or continue a run"),
    "eval": (evaluate, "exact validation loss, perplexity, bits per byte of a run"),
    "generate": (generate, "continue a text with a trained model"),
    "compare": (compare, "methods side by side at one budget, learning rates tuned alike, several seeds"),
    "data": (data, "prepare a corpus, or look into one"),
    "methods": (methods, "the table of methods; with a name, its defaults"),
}


def main(arguments: Arguments | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = [renamed_flag(w) for w in (sys.argv[1:] if arguments is None else arguments)]
    console, errors = Console(), Console(stderr=True)
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_commands(console)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        console.print(f"lowrise {__version__}", highlight=False)
        return 0
    world = World.from_environment()
    try:
        command, _ = lookup(COMMANDS, arguments[0], "command", "lowrise")
        if command is not train:
            require_one_process(arguments[0], world)
        with told_to_torchrun():
            return command(arguments[1:], console)
    except LowriseError as error:
        prefix = prefix_of(error, world)
        if prefix is not None:
            errors.print(
                f"{prefix}{printable(str(error))}", style="red", markup=False, highlight=False, soft_wrap=True
            )
        return 2 if isinstance(error, UsageError) else getattr(error, "exit_code", 1)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stdout = None
        return 128 + signal.SIGPIPE
    except OSError as error:
        errors.print(_disk_error(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted: the same command continues.", style="yellow", highlight=False)
        return 128 + signal.SIGINT


def _disk_error(error: OSError) -> str:
    """A message for what the file system refused, with the file where the system names it."""
    place = " -> ".join(printable(str(f)) for f in (error.filename, error.filename2) if f is not None)
    what = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "look at the disk and at the file's rights and start again")
    return f"error: {place or 'a file'}: {what}: {remedy}. What was written stays."


def _print_commands(console: Console) -> None:
    console.print("lowrise: pretrain language models from scratch in low rank\n", highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, (_, summary) in COMMANDS.items():
        table.add_row(f"lowrise {name}", summary)
    console.print(table)
    console.print("\nlowrise COMMAND --help shows a command's options.", highlight=False)


def _parse(kind: type, arguments: Arguments, name: str, default: Any = None) -> Any:
    """Arguments as `kind`; a wrong one ends the process with code 2 and names the nearest."""
    words = [{"true": "True", "false": "False"}.get(word, word) for word in arguments]
    options: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=words, prog=f"lowrise {name}", use_underscores=True, config=_STYLE, **options)


def _base_config(arguments: Arguments) -> RunConfig:
    """The configuration that the flags start from: the recipe, with the names that decide which flags there
    are."""
    recipe = next((word for i, word in enumerate(arguments) if _is_recipe(i, word)), None)
    names: dict[str, str] = {}
    for key in ("method", "layer.name", "optimizer.name"):
        for word, following in itertools.pairwise([*arguments, ""]):
            if word == f"--{key}":
                names[key] = following
            elif word.startswith(f"--{key}="):
                names[key] = word.split("=", 1)[1]
    return load(recipe, names)


def _is_recipe(index: int, word: str) -> bool:
    return not word.startswith("-") and (index == 0 or word.endswith(".toml"))


def _info(command: DataInfo) -> str:
    from lowrise.runs.trust import require_known_code, require_trust

    folder = command.folder
    if not (folder / "config.toml").is_file():
        return str(open_corpus(folder))
    remedy = "look into the corpus itself, lowrise data info CORPUS"
    require_trust(folder, trust=command.trust, remedy=remedy)
    require_known_code(folder)
    return str(prepare(load(folder / "config.toml").data))
