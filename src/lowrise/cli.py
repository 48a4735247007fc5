"""The command line: one function a command, no logic of its own.

Exit codes: 0 done, 1 failure, 2 usage, 128 + N stopped by signal N with everything saved.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.table import Table

from lowrise import __version__
from lowrise.allocator import keep_freed_memory
from lowrise.console import STANDARD_OUTPUT, Console, plain_warnings, survive_any_encoding
from lowrise.errors import LowriseError, UsageError, disk_error
from lowrise.files import require_folder_place, strict_json
from lowrise.flags import parse
from lowrise.methods import METHODS
from lowrise.names import lookup
from lowrise.plugins import load_plugins
from lowrise.signals import saving_ends_nothing, speaks, told

# What needs torch is imported by the commands that do: help, tables and usage errors come at once.

Arguments = Sequence[str]


def train(arguments: Arguments, console: Console) -> int:
    saving_ends_nothing()
    from lowrise.config import advice, validate
    from lowrise.config.command import Train, recipe_folder, recipe_of, starting_config
    from lowrise.config.renamed import renamed_flag
    from lowrise.runs.trust import require_known_code, require_trusted_recipe

    arguments = [renamed_flag(word) for word in arguments]
    given = recipe_folder(arguments)
    if given is not None:  # before its plugins are loaded
        require_known_code(given)
    command = parse(Train, arguments, "train", default=Train(config=starting_config(arguments)))
    if command.recipe is not None and command.recipe != recipe_of(arguments):
        raise UsageError(f"lowrise train: the recipe {command.recipe} comes first, before the flags.")
    validate(command.config)
    if given is not None:
        require_trusted_recipe(given, command.config, trust=command.trust)
    from lowrise.data.progress import prepare_with_progress
    from lowrise.distributed import World
    from lowrise.pretrained.adopt import adopted
    from lowrise.runs.build import check_parts
    from lowrise.runs.environment import choose_device
    from lowrise.runs.parallel import check_world
    from lowrise.runs.text import with_text_limit
    from lowrise.runs.transfer import check_transfer
    from lowrise.train import RunDirectory
    from lowrise.train import train as run_training

    config = with_text_limit(adopted(command.config), command.given_folder)
    world = World.from_environment()
    check_world(config, world)
    check_transfer(config)
    check_parts(config)
    device = world.device(choose_device(config.train.device))
    console.quiet = not world.leads
    for sentence in advice(config):
        console.print(f"warning: {sentence}", style="yellow", soft_wrap=True)
    require_folder_place(command.given_folder or Path("runs"), "--run")
    corpus = prepare_with_progress(config.data, console)
    folder = command.folder(config, corpus.fingerprint)
    with world.joined(device):
        summary = run_training(config, corpus, RunDirectory(folder), console, world)
    console.print(
        f"validation loss {summary['val_loss']:.4f}, perplexity {summary['val_perplexity']:.3f}, "
        f"{summary['val_bits_per_byte']:.4f} bits per byte over {summary['val_tokens']:,} tokens",
        style="bold",
    )
    if summary.get("sample"):
        console.rule("sample", align="left")
        console.print(summary["sample"])
        console.rule()
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    return 0


def evaluate(arguments: Arguments, console: Console) -> int:
    from lowrise.evaluation.options import EvalOptions

    options = parse(EvalOptions, arguments, "eval")
    options.check()
    from lowrise.evaluation.command import evaluate_models, show_all

    # Objects alone go to standard output, for the program that reads them.
    results = evaluate_models(options, Console(stderr=True) if options.json else console)
    if options.json:
        print("\n".join(map(strict_json, results)))
    else:
        show_all(results, console)
    return 0


def generate(arguments: Arguments, console: Console) -> int:
    from lowrise.inference.options import GenerateConfig

    command = parse(GenerateConfig, arguments, "generate")
    from lowrise.inference.terminal import generate_on_terminal
    from lowrise.pretrained.load import load_model

    load = partial(load_model, weights=command.weights)
    return generate_on_terminal(command, console, Console(stderr=True), load)


def serve(arguments: Arguments, console: Console) -> int:
    from lowrise.serve.options import ServeConfig

    command = parse(ServeConfig, arguments, "serve")
    from lowrise.serve.server import serve as run_server

    return run_server(command, console)


def export(arguments: Arguments, console: Console) -> int:
    from lowrise.export.options import ExportOptions

    command = parse(ExportOptions, arguments, "export")
    from lowrise.export.export import export_run

    done = export_run(command, console)
    console.print(f"{done.folder}: step {done.step}, {done.size_bytes:,} bytes", soft_wrap=True)
    return 0


def import_(arguments: Arguments, console: Console) -> int:
    from lowrise.pretrained.options import ImportOptions

    command = parse(ImportOptions, arguments, "import")
    from lowrise.pretrained.import_run import import_run

    config = import_run(command)
    console.print(f"{command.run}: layer {config.layer.name}", soft_wrap=True)
    return 0


def factorize(arguments: Arguments, console: Console) -> int:
    from lowrise.pretrained.options import FactorizeOptions

    command = parse(FactorizeOptions, arguments, "factorize")
    from lowrise.pretrained.factorize_folder import factorize_folder, summary, table_of

    result = factorize_folder(command, console)
    console.print(table_of(result, weighted=bool(command.calibrate)))
    console.print(summary(result), soft_wrap=True)
    console.print(str(command.out), soft_wrap=True)
    return 0


def data(arguments: Arguments, console: Console) -> int:
    action, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if action == "prepare":
        from lowrise.data import DataConfig

        about = "Tokenize a corpus into shards, once; a second call finds them."
        config = parse(DataConfig, rest, "data prepare", about=about)
        from lowrise.data import cache_root
        from lowrise.data.log import log_path
        from lowrise.data.progress import prepare_with_progress

        corpus = prepare_with_progress(config, console)
        console.print(str(corpus))
        log = log_path(cache_root(config.cache), corpus.fingerprint)
        if log.exists():
            console.print(f"Log: {log}", soft_wrap=True)
        return 0
    if action == "info":
        from lowrise.runs.corpus_info import DataInfo, corpus_info

        console.print(corpus_info(parse(DataInfo, rest, "data info"), console))
        return 0
    if action in ("-h", "--help"):
        console.print("lowrise data prepare: tokenize a corpus\nlowrise data info FOLDER: what it holds")
        return 0
    raise UsageError(f"lowrise data {action}: there are lowrise data prepare and lowrise data info.")


def methods(arguments: Arguments, console: Console) -> int:
    from lowrise.runs.method_text import MethodOptions, method_text

    command = parse(MethodOptions, arguments, "methods")
    load_plugins(command.plugin)
    if command.name is not None:
        print(method_text(command), end="")
        return 0
    for flag in ("cite", "size", "write"):
        if getattr(command, flag):
            raise UsageError(f"lowrise methods --{flag}: name a method, for example lowrise methods muon.")
    table = Table("method", "layer", "optimizer", "what", "source", box=None, header_style="bold")
    for row in METHODS.values():
        table.add_row(row.name, row.layer, row.optimizer, row.summary, row.source)
    console.print(table)
    return 0


def compare(arguments: Arguments, console: Console) -> int:
    from lowrise.compare.options import CompareConfig

    command = parse(CompareConfig, arguments, "compare")
    from lowrise.compare.recipes import load_recipe, planner, recipe_files

    recipes = recipe_files(command.recipes, trust=command.trust)
    from lowrise.compare.compare import compare as run_compare

    out = str(require_folder_place(Path(command.out), "--out"))
    request = replace(command, recipes=recipes, out=out)
    return run_compare(request, load_recipe=load_recipe, plan_run=planner(console), console=console)


def sweep(arguments: Arguments, console: Console) -> int:
    from lowrise.sweep.options import SweepConfig

    command = parse(SweepConfig, arguments, "sweep")
    from lowrise.compare.recipes import load_recipe, planner, recipe_files

    (recipe,) = recipe_files([command.recipe], trust=command.trust)
    from lowrise.sweep.sweep import sweep as run_sweep

    out = str(require_folder_place(Path(command.out), "--out"))
    request = replace(command, recipe=recipe, out=out)
    return run_sweep(request, load_recipe=load_recipe, plan_run=planner(console), console=console)


def track(arguments: Arguments, console: Console) -> int:
    from lowrise.track.options import CheckOptions, RunOptions, TableOptions

    action, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if action in ("-h", "--help"):
        for name, kind in (("run", RunOptions), ("check", CheckOptions), ("table", TableOptions)):
            console.print(f"lowrise track {name} TRACK: {str(kind.__doc__).splitlines()[0]}", soft_wrap=True)
        return 0
    if action == "table":
        options = parse(TableOptions, rest, "track table")
        from lowrise.track.table import table

        return table(options, console)
    if action not in ("run", "check"):
        raise UsageError(f"lowrise track {action}: there are lowrise track run, check and table.")
    command = parse(RunOptions if action == "run" else CheckOptions, rest, f"track {action}")
    from lowrise.compare.recipes import load_recipe, planner
    from lowrise.track import run as runs

    work = runs.run if action == "run" else runs.check
    return work(command, load_recipe=load_recipe, plan_run=planner(console), console=console)


def report(arguments: Arguments, console: Console) -> int:
    from lowrise.report.options import ReportOptions

    command = parse(ReportOptions, arguments, "report")
    from lowrise.pages import write_pages

    for target in write_pages(command.folders, command.out):
        console.print(f"Report: {target}", soft_wrap=True)
    return 0


def bench(arguments: Arguments, console: Console) -> int:
    from lowrise.compare.bench_options import BenchOptions

    options = parse(BenchOptions, arguments, "bench")
    load_plugins(options.plugin)
    options.check()
    from lowrise.compare import bench as benchmark

    # The object alone goes to standard output, for the program that reads it.
    result = benchmark.bench(options, Console(stderr=True) if options.json else console)
    if options.out is not None:
        benchmark.write(result, options.out.expanduser())
    if options.json:
        print(strict_json(result))
    else:
        benchmark.show(result, console)
    return 0


def plan(arguments: Arguments, console: Console) -> int:
    from lowrise.runs.plan_options import PlanOptions

    options = parse(PlanOptions, arguments, "plan")
    options.check()
    if options.recipe is not None:
        from lowrise.config.command import recipe_file

        recipe_file(str(options.recipe))
    load_plugins(options.plugin)
    from lowrise.pretrained.adopt import adopted
    from lowrise.report.plan_report import picture, plans, show

    rows = plans(options, adopted)
    if options.picture is not None:
        picture(rows, options.picture.expanduser())
    if options.json:
        print(strict_json({"plans": rows}))
    else:
        show(rows, options, console)
    return 0


def scaling(arguments: Arguments, console: Console) -> int:
    from lowrise.scaling.command import scaling as run_scaling

    return run_scaling(arguments, console)


def inspect(arguments: Arguments, console: Console) -> int:
    from lowrise.audit.options import InspectOptions

    options = parse(InspectOptions, arguments, "inspect")
    options.check()
    from lowrise.audit.inspect_folder import inspect_folder

    # The object alone goes to standard output, for the program that reads it.
    inspect_folder(options, console, Console(stderr=True) if options.json else console)
    return 0


COMMANDS: dict[str, tuple[Callable[[Arguments, Console], int], str]] = {
    "train": (train, "train a model, or continue a run"),
    "eval": (evaluate, "exact loss, perplexity, bits per byte of runs and exports; tasks of lm-eval"),
    "generate": (generate, "continue texts with a trained model"),
    "serve": (serve, "answer requests in the OpenAI format with a trained model"),
    "export": (
        export,
        "write a run for others: a Hugging Face folder (dense or factored), GGUF, safetensors",
    ),
    "import": (import_, "make a run out of a Hugging Face folder, dense or factored"),
    "factorize": (factorize, "split the maps of a dense Hugging Face folder into two factors each"),
    "compare": (compare, "methods side by side at one budget, tuned on one grid, over several seeds"),
    "sweep": (sweep, "one recipe with other settings: a grid, random draws or optuna; the best recipe"),
    "plan": (plan, "what a run will cost: parameters, FLOPs, bytes per device, time, before it starts"),
    "bench": (bench, "what this machine does: tokens per second, step time, memory of methods in one run"),
    "track": (track, "entries under one budget, decided by a rule written before: run, check, table"),
    "report": (report, "write the report of a run, comparison, sweep or track again; of runs one page"),
    "scaling": (scaling, "isoFLOP sweeps and scaling laws: run, fit, plot"),
    "inspect": (inspect, "what the matrices of a run, an export or a folder make of their rank"),
    "data": (data, "prepare a corpus, or look into one"),
    "methods": (methods, "the table of methods; with a name, its defaults, its recipe, its papers"),
}


def main(arguments: Arguments | None = None) -> int:
    """Run one command; returns the exit code."""
    survive_any_encoding()
    console, errors = Console(), Console(stderr=True)

    def complain(text: str, style: str = "red") -> None:
        errors.print(text, style=style, soft_wrap=True)

    try:
        with plain_warnings(lambda text: complain(text, "yellow") if speaks() else None):
            words = sys.argv[1:] if arguments is None else list(arguments)
            _require_text(words)
            _require_working_folder()
            if not words or words[0] in ("-h", "--help"):
                _print_commands(console)
                return 0 if words else 2
            if words[0] in ("-V", "--version"):
                console.print(f"lowrise {__version__}")
                return 0
            keep_freed_memory()
            command, _ = lookup(COMMANDS, words[0], "command", "lowrise")
            with _among_ranks(words[0], alone=command is not train):
                return command(words[1:], console)
    except LowriseError as error:
        prefix = _prefix_of(error)
        if prefix is not None:
            complain(f"{prefix}{error}")
        return 2 if isinstance(error, UsageError) else getattr(error, "exit_code", 1)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stdout = None
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename in (None, STANDARD_OUTPUT) and _output_fails():
            error.filename = STANDARD_OUTPUT
        complain(f"error: {disk_error(error)}")
        return 1
    except KeyboardInterrupt:
        complain(told(signal.SIGINT), "yellow")
        return 128 + signal.SIGINT


def _require_text(words: Sequence[str]) -> None:
    """Refuse bytes that are no text; they would fail wherever they are first written."""
    for word in words:
        if any(0xD800 <= ord(c) <= 0xDFFF for c in word):
            raise UsageError(f"{word!a} on the command line is not text in UTF-8.")


def _require_working_folder() -> None:
    """Refuse to work in a folder that has been removed; libraries end the process over it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("The working folder is not there any more: change to one that is (cd).") from None


def _output_fails() -> bool:
    """Whether what is printed cannot be written; then it is left, so that the end does not fail over it
    again."""
    try:
        sys.stdout.write("\n")  # what has failed once may have been dropped
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
        return True
    except (AttributeError, ValueError):  # there is none
        return True
    return False


def _among_ranks(name: str, *, alone: bool) -> AbstractContextManager[None]:
    """What a command does as one of the processes that torchrun has started; nothing where it is the only
    one."""
    if "WORLD_SIZE" not in os.environ:
        return nullcontext()
    from lowrise.distributed.launcher import among_ranks

    return among_ranks(name, alone=alone)


def _prefix_of(error: LowriseError) -> str | None:
    if "WORLD_SIZE" not in os.environ:
        return "error: "
    from lowrise.distributed.launcher import prefix_of

    return prefix_of(error)


def _print_commands(console: Console) -> None:
    console.print("lowrise: pretrain language models from scratch in low rank\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, (_, summary) in COMMANDS.items():
        table.add_row(f"lowrise {name}", summary)
    console.print(table)
    console.print("\nlowrise COMMAND --help shows a command's options.")
