"""What `lowrise plan` says: one row for each method, as tables of 80 columns, as JSON and as a picture."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from lowrise.config import RunConfig, from_dict, load, validate
from lowrise.config.command import recipe_file
from lowrise.console import Console, counted, narrow_table
from lowrise.data import Tokenizer
from lowrise.errors import UsageError, did_you_mean
from lowrise.files import is_known, write_whole
from lowrise.ledger import flops_per_token
from lowrise.methods import METHODS
from lowrise.model.config import PRESETS
from lowrise.names import lookup
from lowrise.report.bars import Stack, stacked_bars, standalone
from lowrise.report.formatting import bytes_, duration, scientific, si
from lowrise.runs.build import multipliers
from lowrise.runs.fit import Fitted, largest_fit
from lowrise.runs.plan_options import PlanOptions
from lowrise.runs.planner import Planned, changes, remedy
from lowrise.runs.rates import measured_rates
from lowrise.runs.recipes import SIZES, recipe
from lowrise.runs.transfer import Multiplier, table
from lowrise.runs.trust import require_known_code

_KINDS = ("weights", "gradients", "state", "activations", "workspace", "peak")
_LINES = ("weights", "gradients", "state", "average", "activations", "workspace", "peak")
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))
_INFERENCE_ELEMENT = 2  # bytes of a weight in bfloat16


def plans(
    options: PlanOptions, adopt: Callable[[RunConfig], RunConfig] = lambda config: config
) -> list[dict[str, Any]]:
    """One row for each method that was asked for, with plain numbers. The search of `--fit` takes seconds a
    method, so a terminal sees how far it is. `adopt` gives a recipe what `train` would take from the folder
    that its `init.model` names.
    """
    options.check()
    rates = None if options.rate is None else measured_rates(options.rate)
    what = "planning" if options.fit is None else "fitting"
    configs = list(_configs(options, adopt))
    shown = counted(configs, what, lambda config: config.method, Console(stderr=True))
    return [_row(config, options, rates) for config in shown]


def show(rows: list[dict[str, Any]], options: PlanOptions, console: Console) -> None:
    """One method as a list, several as two tables; before them, what fits."""
    if options.fit is not None:
        console.print(_fits(rows))
        console.print(
            "Family: width d, d/64 layers (2 at least), MLP 8/3 d, heads of 64; ranks "
            f"{'as given' if options.rank is not None else 'in proportion to the width'}; all else as in "
            f"{options.recipe or options.base}.",
            soft_wrap=True,
        )
        console.print()
    if len(rows) == 1:
        console.print(_list(rows[0]))
    else:
        console.print(_costs(rows))
        console.print()
        console.print(_memory(rows))
    for row in rows:
        if row["fits"] is False:
            console.print(f"{row['method']}: {_advice(row, options)}", soft_wrap=True)
        if row["transfer"]:
            console.print(f"\n{table([Multiplier(**m) for m in row['transfer']])}\n", soft_wrap=True)
    if options.rate is not None and (without := [r["method"] for r in rows if r["seconds"] is None]):
        console.print(f"No rate in {options.rate} for {', '.join(without)}: no time.", soft_wrap=True)
    console.print(
        "Peak, activations and workspace are estimates for eager kernels; the rest is exact.", soft_wrap=True
    )


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the bytes of a device by kind, a bar for each method, as an SVG file."""
    kinds = [k for k in _LINES if k != "peak" and any(row["bytes_per_device"][k] for row in rows)]
    bars = [
        Stack(
            row["method"],
            tuple(row["bytes_per_device"][kind] for kind in kinds),
            mark=row["bytes_per_device"]["peak"],
        )
        for row in rows
    ]
    memory = rows[0]["device_memory"] if rows else None
    most = max((sum(bar.parts) for bar in bars), default=0)
    unit, name = next((u, n) for u, n in _UNITS if most >= u or u == 1)
    svg = stacked_bars(
        bars,
        parts=kinds,
        label=f"{name} of a device",
        show=bytes_,
        tick=unit,
        mark="peak",
        line=None if memory is None else ("its memory", memory),
    )
    write_whole(path, standalone(svg, "Bytes of a device by kind"))


# ---- what is planned


def _configs(options: PlanOptions, adopt: Callable[[RunConfig], RunConfig]) -> Iterator[RunConfig]:
    if options.recipe is not None:
        folder = options.recipe.expanduser()
        if folder.is_dir():
            require_known_code(folder)  # before its plugins are loaded
            config = _with(load(recipe_file(str(options.recipe))), options)
            own = folder / "tokenizer.json"  # shape and ranks are in the run's config.toml
            yield _with_entries(config, own) if own.is_file() else config
            return
        config = _with(load(recipe_file(str(options.recipe))), options)
        if options.fit is not None and config.init.model is not None:
            raise UsageError(
                f"lowrise plan --fit {options.fit}: {options.recipe} has the shape of init.model = "
                f"{config.init.model}; leave --fit out, or plan a recipe without init.model."
            )
        config = adopt(config)
        named = config.data.tokenizer
        yield config if named is None else _with_entries(config, Path(named).expanduser())
        return
    size = options.base
    assert size is not None
    if size not in PRESETS:
        raise UsageError(f"lowrise plan --model {size}: {did_you_mean(size, PRESETS)}")
    if options.method != "all":
        lookup(METHODS, options.method, "method", "lowrise plan --method")
    for name in METHODS if options.method == "all" else [options.method]:
        if size in SIZES:
            config = from_dict(tomllib.loads(recipe(name, size, options.plugin)))
        else:
            config = load(None, {"method": name, "model.preset": size, "plugin": options.plugin})
        yield _with(config, options)


def _with_entries(config: RunConfig, tokenizer: Path) -> RunConfig:
    """The configuration with as many entries as this tokenizer has; its own number is of one that is still to
    be trained."""
    entries = Tokenizer.load(tokenizer, separator_token=config.data.separator_token).vocab_size
    return replace(config, data=replace(config.data, vocab_size=entries))


def _with(config: RunConfig, options: PlanOptions) -> RunConfig:
    """The configuration with what the options say in its place."""
    train, model, parallel = config.train, config.model, config.parallel
    if options.tokens is not None:
        steps = max(1, round(options.tokens / (train.global_batch_size * train.seq_len)))
        train = replace(train, steps=steps)
    if options.micro_batch_size is not None:
        train = replace(train, micro_batch_size=options.micro_batch_size)
    if options.precision is not None:
        train = replace(train, precision=options.precision)
    if options.recompute is not None:
        model = replace(model, recompute=options.recompute)  # type: ignore[call-arg]
    if options.parallel is not None:
        parallel = replace(parallel, data=options.parallel)
    layer, optimizer = config.layer, config.optimizer
    if options.rank is not None:
        if hasattr(layer, "rank"):
            layer = replace(layer, rank=options.rank)  # type: ignore[call-arg]
        elif hasattr(optimizer, "rank"):
            optimizer = replace(optimizer, rank=options.rank)  # type: ignore[call-arg]
    changed = replace(config, train=train, model=model, parallel=parallel, layer=layer, optimizer=optimizer)
    validate(changed)
    if train.global_batch_size % options.devices:
        raise UsageError(
            f"lowrise plan --devices {options.devices}: train.global_batch_size = {train.global_batch_size} "
            "sequences cannot be shared evenly; give a number that divides them."
        )
    return changed


def _row(config: RunConfig, options: PlanOptions, rates: Mapping[str, float] | None) -> dict[str, Any]:
    autocast = config.train.precision != "float32"
    fitted = None
    if options.fit is not None:
        assert options.memory is not None
        hold = options.rank is not None
        fitted = largest_fit(
            config, options.memory, devices=options.devices, autocast=autocast, hold_rank=hold
        )
        config = fitted.config
    planned = Planned(config, config.data.vocab_size, devices=options.devices, autocast=autocast)
    device, run, model = planned.on_device(), planned.run, planned.model
    rate = options.flops_per_second if rates is None else rates.get(config.method)
    row: dict[str, Any] = {
        "method": config.method,
        "params_total": run.params_total,
        "params_non_embedding": run.params_non_embedding,
        "tokens": run.steps * run.tokens_per_step,
        "steps": run.steps,
        "train_flops": run.train_flops,
        "flops_of_update": run.flops_of_update,
        "flops_per_second": rate,
        "seconds": run.train_flops / (rate * options.devices) if rate else None,
        "devices": options.devices,
        "layout": asdict(planned.layout),
        "bytes_per_device": {kind: getattr(device, kind) for kind in _LINES},
        "communicated_bytes_per_update": device.communicated,
        "inference_bytes": _INFERENCE_ELEMENT * run.params_total,
        "inference_cache_bytes_per_token": _INFERENCE_ELEMENT
        * 2
        * model.config.num_layers
        * model.config.kv_heads
        * model.config.head_dim,
        "inference_flops_per_token": flops_per_token(model, config.train.seq_len).forward,
        "device_memory": options.memory,
        "fits": None if options.memory is None else device.peak <= options.memory,
        "change": None,
        "transfer": [asdict(m) for m in multipliers(config, model)],
        "fit": None if fitted is None else _shape(fitted),
    }
    if row["fits"] is False and options.memory is not None:
        found = remedy(planned, options.memory)
        if found is not None:
            layout, plan = found
            row["change"] = {"settings": changes(planned.layout, layout), "peak": plan.peak}
    return row


def _shape(fitted: Fitted) -> dict[str, Any]:
    return {
        **asdict(fitted.shape),
        "rank": _rank(fitted.config),
        "next_width": fitted.next_width,
        "next_peak": fitted.next_peak,
    }


def _rank(config: RunConfig) -> Any:
    """Of the layer, or of the optimizer where the layer has none; None: there is no rank."""
    ranks = (getattr(section, "rank", None) for section in (config.layer, config.optimizer))
    return next((rank for rank in ranks if rank is not None), None)


# ---- what is shown


def _advice(row: Mapping[str, Any], options: PlanOptions) -> str:
    needs = f"needs {bytes_(row['bytes_per_device']['peak'])}, {bytes_(options.memory)} are there"
    if row["change"] is None:
        tried = (
            "no micro batch, recomputation or fsdp"
            if options.devices > 1
            else "no micro batch or recomputation"
        )
        return f"{needs}: {tried} makes it fit; take more devices, a smaller rank or a smaller model."
    settings = " ".join(f"--{key} {value}" for key, value in row["change"]["settings"].items())
    return f"{needs}: with {settings} it takes {bytes_(row['change']['peak'])}."


def _list(row: Mapping[str, Any]) -> Table:
    layout, there = row["layout"], row["bytes_per_device"]
    table = Table(box=None, show_header=False, pad_edge=False)
    lines = [
        ("method", row["method"]),
        ("parameters", f"{row['params_total']:,}"),
        ("  without embedding and head", f"{row['params_non_embedding']:,}"),
        ("training", f"{si(row['tokens'])} tokens in {row['steps']:,} updates"),
        ("training FLOPs", scientific(row["train_flops"])),
        *_shares(row["flops_of_update"]),
        ("time", duration(row["seconds"])),
        ("micro batch, recompute", f"{layout['micro_batch_size']} sequences, {layout['recompute']}"),
        ("devices", f"{row['devices']}{', weights shared by rows' if layout['fsdp'] else ''}"),
        *((f"  {kind}", bytes_(there[kind])) for kind in _LINES if there[kind] or kind in _KINDS),
        ("sent by a device in an update", bytes_(row["communicated_bytes_per_update"])),
        ("inference: weights in bfloat16", bytes_(row["inference_bytes"])),
        ("  cache for a token", bytes_(row["inference_cache_bytes_per_token"])),
        ("  FLOPs for a token", scientific(row["inference_flops_per_token"])),
    ]
    if row["fits"] is not None:
        lines.append(("fits", f"{_yes(row)}, in {bytes_(row['device_memory'])}"))
    for name, value in lines:
        table.add_row(name, value)
    return table


def _shares(flops: Mapping[str, int]) -> list[tuple[str, str]]:
    """What the FLOPs of an update are spent on; what costs nothing is left out."""
    total = sum(flops.values())
    return [(f"  {part}", f"{amount / total:.1%}") for part, amount in flops.items() if amount]


def _fits(rows: list[dict[str, Any]]) -> Table:
    table = _table("method", "width", "layers", "MLP", "rank", "params", "non-emb.", "peak", "next")
    for row in rows:
        fit = row["fit"]
        rank = "–" if fit["rank"] is None else f"{fit['rank']:g}" if is_known(fit["rank"]) else "table"
        table.add_row(
            row["method"],
            str(fit["width"]),
            str(fit["layers"]),
            str(fit["mlp"]),
            rank,
            si(row["params_total"]),
            si(row["params_non_embedding"]),
            bytes_(row["bytes_per_device"]["peak"]),
            "–" if fit["next_width"] is None else f"{fit['next_width']}: {bytes_(fit['next_peak'])}",
        )
    return table


def _costs(rows: list[dict[str, Any]]) -> Table:
    table = _table("method", "params", "non-emb.", "FLOPs", "time", "sent", "inference", "FLOPs/tok")
    for row in rows:
        table.add_row(
            row["method"],
            si(row["params_total"]),
            si(row["params_non_embedding"]),
            scientific(row["train_flops"]),
            duration(row["seconds"]),
            bytes_(row["communicated_bytes_per_update"]),
            bytes_(row["inference_bytes"]),
            si(row["inference_flops_per_token"]),
        )
    return table


def _memory(rows: list[dict[str, Any]]) -> Table:
    table = _table("method", "weights", "grads", "state", "activ.", "work", "peak", "fits")
    for row in rows:
        kinds = (bytes_(row["bytes_per_device"][kind]) for kind in _KINDS)
        table.add_row(row["method"], *kinds, _yes(row))
    return table


def _table(*names: str) -> Table:
    table = narrow_table()
    table.add_column(names[0], no_wrap=True)
    for name in names[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _yes(row: Mapping[str, Any]) -> str:
    return "–" if row["fits"] is None else "yes" if row["fits"] else "no"
