"""The command line: one function a command, no logic of its own.

Exit codes: 0 done, 1 failure, 2 usage, 128 + N stopped by signal N with everything saved.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagConversionOff, FlagCreatePairsOff, Positional, arg

from lowrise import __version__
from lowrise.allocator import keep_freed_memory
from lowrise.config import RunConfig, load, lookup, validate
from lowrise.config.renamed import renamed_flag
from lowrise.data import DataConfig, open_corpus
from lowrise.data.progress import prepare_with_progress, verify_with_progress
from lowrise.distributed import World
from lowrise.distributed.launcher import prefix_of, require_one_process, told_to_torchrun
from lowrise.errors import LowriseError, UsageError, printable
from lowrise.files import strict_json
from lowrise.methods import METHODS

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
class Eval:
    """Exact validation loss, perplexity and bits per byte of the newest checkpoints of runs."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs; several are shown in one table."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print a JSON object for every run, one a line."""


@dataclass(kw_only=True)
class DataPrepare:
    """Tokenize a corpus into shards, once; a second call finds them."""

    config: Annotated[DataConfig, arg(name="")] = field(default_factory=DataConfig)


@dataclass(kw_only=True)
class DataInfo:
    """What a prepared corpus holds: documents, tokens, bytes, tokenizer."""

    folder: Positional[Path]
    """Folder of a prepared corpus, or of a run."""
    verify: bool = False
    """Read every shard and compare it with its checksums."""


@dataclass(kw_only=True)
class Methods:
    """The table of methods; with a name, the configuration that it starts from, as TOML."""

    name: Positional[str | None] = None
    """A method."""
    cite: bool = False
    """Print the BibTeX of its papers instead."""


def train(arguments: Arguments, console: Console) -> int:
    from lowrise.pretrained.adopt import adopted
    from lowrise.runs.environment import choose_device
    from lowrise.runs.parallel import check_world
    from lowrise.train import RunDirectory
    from lowrise.train import train as run_training

    command = _parse(Train, arguments, "train", default=Train(config=_base_config(arguments)))
    validate(command.config)
    config = adopted(command.config)
    world = World.from_environment()
    check_world(config, world)
    device = world.device(choose_device(config.train.device))
    console.quiet = not world.leads
    corpus = prepare_with_progress(config.data, console)
    folder = (
        command.run.expanduser()
        if command.run
        else Path("runs") / f"{config.method}-{config.model.preset}-{config.hash[:8]}"
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
    from lowrise.inference.evaluate import check_runs, evaluate_run, show

    command = _parse(Eval, arguments, "eval")
    check_runs(command.runs)
    results = [evaluate_run(run, command.device, console) for run in command.runs]
    if command.json:
        print("\n".join(map(strict_json, results)))
    else:
        show(results, console)
    return 0


def generate(arguments: Arguments, console: Console) -> int:
    from lowrise.inference.terminal import GenerateConfig, generate_on_terminal

    command = _parse(GenerateConfig, arguments, "generate")
    return generate_on_terminal(command, console, Console(stderr=True))


def serve(arguments: Arguments, console: Console) -> int:
    from lowrise.serve.server import ServeConfig
    from lowrise.serve.server import serve as run_server

    return run_server(_parse(ServeConfig, arguments, "serve"), console)


def export(arguments: Arguments, console: Console) -> int:
    from lowrise.export.export import ExportOptions, export_run

    done = export_run(_parse(ExportOptions, arguments, "export"), console)
    console.print(
        f"{done.folder}: step {done.step}, {done.size_bytes:,} bytes",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def import_(arguments: Arguments, console: Console) -> int:
    from lowrise.pretrained.import_run import ImportOptions, import_run

    command = _parse(ImportOptions, arguments, "import")
    config = import_run(command)
    console.print(f"{command.run}: layer {config.layer.name}", markup=False, highlight=False, soft_wrap=True)
    return 0


def factorize(arguments: Arguments, console: Console) -> int:
    from lowrise.pretrained.factorize_folder import FactorizeOptions, factorize_folder, summary, table_of

    command = _parse(FactorizeOptions, arguments, "factorize")
    result = factorize_folder(command, console)
    console.print(table_of(result, weighted=bool(command.calibrate)))
    console.print(summary(result), highlight=False, soft_wrap=True)
    console.print(str(command.out), markup=False, highlight=False, soft_wrap=True)
    return 0


def data(arguments: Arguments, console: Console) -> int:
    action, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if action == "prepare":
        command = _parse(DataPrepare, rest, "data prepare")
        corpus = prepare_with_progress(command.config, console)
        console.print(str(corpus), highlight=False)
        return 0
    if action == "info":
        command = _parse(DataInfo, rest, "data info")
        console.print(_info(command.folder, command.verify, console), markup=False, highlight=False)
        return 0
    if action in ("-h", "--help"):
        console.print("lowrise data prepare: tokenize a corpus\nlowrise data info FOLDER: what it holds")
        return 0
    raise UsageError(f"lowrise data {action}: there are lowrise data prepare and lowrise data info.")


def methods(arguments: Arguments, console: Console) -> int:
    command = _parse(Methods, arguments, "methods", style=(FlagCreatePairsOff,))
    if command.name is not None:
        row = lookup(METHODS, command.name, "method", "lowrise methods")
        if command.cite:
            print(row.bibtex())
            return 0
        print(f"# {row.name}: {row.summary}\n# {row.source}\n")
        print(load(None, {"method": row.name}).to_toml(), end="")
        return 0
    if command.cite:
        raise UsageError("lowrise methods --cite: name a method, for example lowrise methods muon --cite.")
    table = Table("method", "layer", "optimizer", "what", "source", box=None, header_style="bold")
    for row in METHODS.values():
        table.add_row(row.name, row.layer, row.optimizer, row.summary, row.source)
    console.print(table)
    return 0


def compare(arguments: Arguments, console: Console) -> int:
    from lowrise.compare.compare import CompareConfig
    from lowrise.compare.compare import compare as run_compare
    from lowrise.pretrained.adopt import adopted
    from lowrise.train import plan_run

    command = _parse(CompareConfig, arguments, "compare")

    def plan(config: RunConfig) -> Any:
        return plan_run(config, prepare_with_progress(config.data, console).tokenizer.vocab_size)

    def recipe(path: str | Path | None, overrides: Mapping[str, Any]) -> RunConfig:
        return adopted(load(path, overrides))  # as `train` does, so that the hashes agree

    return run_compare(command, load_recipe=recipe, plan_run=plan, console=console)


COMMANDS: dict[str, tuple[Callable[[Arguments, Console], int], str]] = {
    "train": (train, "train a model, or continue a run"),
    "eval": (evaluate, "exact validation loss, perplexity, bits per byte of runs"),
    "generate": (generate, "continue texts with a trained model"),
    "serve": (serve, "answer requests in the OpenAI format with a trained model"),
    "export": (
        export,
        "write a run for others: a Hugging Face folder (dense or factored), GGUF, safetensors",
    ),
    "import": (import_, "make a run out of a Hugging Face folder, dense or factored"),
    "factorize": (factorize, "split the maps of a dense Hugging Face folder into two factors each"),
    "compare": (compare, "methods side by side at one budget, tuned on one grid, over several seeds"),
    "data": (data, "prepare a corpus, or look into one"),
    "methods": (methods, "the table of methods; with a name, its defaults, or with --cite its papers"),
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
        keep_freed_memory()
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


def _parse(
    kind: type, arguments: Arguments, name: str, default: Any = None, style: tuple[Any, ...] = _STYLE
) -> Any:
    """Arguments as `kind`; a wrong one ends the process with code 2 and names the nearest."""
    words = _with_values(kind, [{"true": "True", "false": "False"}.get(word, word) for word in arguments])
    options: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=words, prog=f"lowrise {name}", use_underscores=True, config=style, **options)


def _with_values(kind: type, words: list[str]) -> list[str]:
    """`--json` as `--json True`, for the switches of a command itself."""
    switches = {f"--{name.replace('_', mark)}" for name in _switches(kind) for mark in "_-"}
    filled: list[str] = []
    for word, following in itertools.pairwise([*words, ""]):
        filled.append(word)
        if word in switches and following not in ("True", "False"):
            filled.append("True")
    return filled


def _switches(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if f.type in (bool, "bool")]


def _base_config(arguments: Arguments) -> RunConfig:
    """The configuration that the flags start from: the recipe, with the names that decide which flags there
    are."""
    recipe = next((word for i, word in enumerate(arguments) if _is_recipe(i, word)), None)
    names: dict[str, str] = {}
    for key in ("plugin", "method", "layer.name", "optimizer.name"):
        for word, following in itertools.pairwise([*arguments, ""]):
            if word == f"--{key}":
                names[key] = following
            elif word.startswith(f"--{key}="):
                names[key] = word.split("=", 1)[1]
    return load(recipe, names)


def _is_recipe(index: int, word: str) -> bool:
    return not word.startswith("-") and (index == 0 or word.endswith(".toml"))


def _info(folder: Path, verify: bool, console: Console) -> str:
    recipe = folder / "config.toml"
    corpus = prepare_with_progress(load(recipe).data, console) if recipe.exists() else open_corpus(folder)
    if verify:
        verify_with_progress(corpus, console)
        return f"{corpus}\n\nEvery block is as it was written."
    return str(corpus)
