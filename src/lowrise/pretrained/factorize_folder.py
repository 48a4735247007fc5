"""`lowrise factorize`: a dense Hugging Face folder becomes a factored one, without training.

1. Text, if any, is cut into windows; the second moments of the inputs of every map are summed over them.
2. Every attention and MLP map is decomposed (`spectra`), its rank chosen, and the map replaced where its
   factors have fewer elements than it. One decomposition is held at a time.
3. The held-out text is measured before and after, and the folder written with a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from lowrise import __version__
from lowrise.console import Console
from lowrise.data import Corpus, DataConfig
from lowrise.data.batches import TokenStream
from lowrise.data.progress import prepare_with_progress
from lowrise.errors import UsageError
from lowrise.export.folder import whole_folder
from lowrise.export.huggingface import write_folder
from lowrise.export.shards import parse_size
from lowrise.files import strict_json, write_whole
from lowrise.inference.evaluate import evaluate
from lowrise.layers import LowRankLinear
from lowrise.linalg.energy import energy_count
from lowrise.linalg.rank import resolve_rank
from lowrise.model import Llama
from lowrise.model.llama import MAPS
from lowrise.pretrained.folder import Pretrained, open_folder
from lowrise.pretrained.import_run import check_vocabulary
from lowrise.pretrained.options import FactorizeOptions
from lowrise.pretrained.spectra import Profile, Spectrum, spectrum_of, spread_ranks

TABLE = "factorize.json"
_BATCH = 8
# Maps of a block that are applied to the same tensor.
_SAME_INPUT = (MAPS[:3], MAPS[3:4], MAPS[4:6], MAPS[6:7])


@dataclass(frozen=True)
class Row:
    """What became of one map."""

    name: str
    rows: int
    columns: int
    rank: int | None
    """None: left dense, as factors would be no smaller."""
    energy_kept: float
    """Of the weight."""
    error: float
    """Relative, of the output on the calibration text; of the weight without one."""


@dataclass(frozen=True)
class Factorized:
    """The result."""

    rows: list[Row]
    parameters_before: int
    parameters_after: int
    perplexity_before: float
    perplexity_after: float


def factorize_folder(options: FactorizeOptions, console: Console) -> Factorized:
    """Write the factored folder, whole or not at all, and return its table. Raises `UsageError` for a folder
    that is not dense, a rank that is impossible or makes nothing smaller, and a place that is taken.
    """
    _check(options)
    source = open_folder(options.folder)
    if source.layer != "dense":
        raise UsageError(f"{options.folder} is factored already: give a folder with dense weights.")
    origin = {"format": "hf-factored", "lowrise": __version__, "rank": options.rank, "energy": options.energy}
    with whole_folder(options.out.expanduser(), force=options.force, origin=origin) as aside:
        model = source.sound_model()
        corpus = _corpus(options, source, console)
        before = _perplexity(model, corpus, options.tokens)
        size = sum(p.numel() for p in model.parameters())
        rows = _replace_maps(model, options, corpus)
        after = _perplexity(model, corpus, options.tokens)
        result = Factorized(rows, size, sum(p.numel() for p in model.parameters()), before, after)
        dtype: torch.dtype = getattr(torch, options.dtype)
        write_folder(aside, model, source.tokenizer(), "factored", dtype, parse_size("5GB"))
        write_whole(aside / TABLE, strict_json(asdict(result), indent=2) + "\n")
    return result


def table_of(result: Factorized, weighted: bool) -> Table:
    """The table for a terminal."""
    error = "output error" if weighted else "weight error"
    table = Table("map", "shape", "rank", "energy kept", error, box=None, header_style="bold")
    for row in result.rows:
        rank = "dense" if row.rank is None else str(row.rank)
        table.add_row(
            row.name, f"{row.rows} x {row.columns}", rank, f"{row.energy_kept:.4f}", f"{row.error:.4f}"
        )
    return table


def _check(options: FactorizeOptions) -> None:
    if (options.rank is None) == (options.energy is None):
        raise UsageError("Say how small: --rank N, --rank RATIO or --energy SHARE, one of them.")
    if options.energy is not None and not 0 < options.energy <= 1:
        raise UsageError(f"--energy {options.energy!r} cannot be: it is a fraction above 0 and up to 1.")
    if options.tokens < 1:
        raise UsageError(f"--tokens {options.tokens} cannot be: at least one is needed.")


def _corpus(options: FactorizeOptions, source: Pretrained, console: Console) -> Corpus:
    tokenizer = source.tokenizer()
    check_vocabulary(source.config, tokenizer.vocab_size, source.folder)
    return prepare_with_progress(
        DataConfig(
            source=options.calibrate or options.measure,
            tokenizer=str(source.folder / "tokenizer.json"),
            separator_token=tokenizer.separator_token,
        ),
        console,
    )


def _windows(model: Llama, stream: TokenStream, tokens: int) -> Iterator[np.ndarray]:
    """Batches of windows that hold about `tokens` tokens at most, and one batch at least."""
    length = min(512, model.config.max_seq_len, tokens)
    batch = max(1, min(_BATCH, tokens // length))
    return itertools.islice(stream.windows(length, batch), max(1, tokens // (length * batch)))


def _perplexity(model: Llama, corpus: Corpus, tokens: int) -> float:
    return evaluate(
        model, _windows(model, corpus.valid, tokens), text_bytes=corpus.valid.text_bytes
    ).perplexity


def _replace_maps(model: Llama, options: FactorizeOptions, corpus: Corpus) -> list[Row]:
    windows = _windows(model, corpus.train, options.tokens)
    moments = _moments(model, windows) if options.calibrate else {}
    names = [f"model.layers.{i}.{name}" for i in range(model.config.num_layers) for name in MAPS]

    def decomposed(name: str) -> Spectrum:
        return spectrum_of(_weight(model, name), moments.get(name))

    shared: dict[str, int] = {}
    if options.spread == "energy":
        profiles = {name: decomposed(name).profile for name in names}
        alike = {name: _rank(profile, name, options) for name, profile in profiles.items()}
        shared = spread_ranks(profiles, sum(rank * profiles[name].cost for name, rank in alike.items()))
    rows = []
    for name in names:
        spectrum = decomposed(name)
        rank = shared.get(name) or _rank(spectrum.profile, name, options)
        rows.append(_replace(model, name, spectrum, rank))
    if all(row.rank is None for row in rows):
        raise UsageError(
            "No map would be smaller as two factors, of r (m + n) elements against m n: give a lower --rank "
            "or --energy."
        )
    return rows


def _replace(model: Llama, name: str, spectrum: Spectrum, rank: int) -> Row:
    profile = spectrum.profile
    if rank > profile.largest_useful:
        return Row(name, profile.rows, profile.columns, None, 1.0, 0.0)
    model.set_submodule(name, _layer(spectrum, rank))
    kept, error = spectrum.energy_kept(rank), spectrum.error(rank)
    return Row(name, profile.rows, profile.columns, rank, kept, error)


def _weight(model: Llama, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def _rank(profile: Profile, name: str, options: FactorizeOptions) -> int:
    if options.energy is not None:
        return max(1, energy_count(profile.s, options.energy))
    return resolve_rank(options.rank, profile.rows, profile.columns, where=name)


def _layer(spectrum: Spectrum, rank: int) -> LowRankLinear:
    profile = spectrum.profile
    layer = LowRankLinear(profile.columns, profile.rows, rank, device="meta").to_empty(device="cpu")
    A, B = spectrum.factors(rank)
    with torch.no_grad():
        layer.A.copy_(A)
        layer.B.copy_(B)
    return layer.eval()


@torch.no_grad()
def _moments(model: Llama, batches: Iterator[np.ndarray]) -> dict[str, Tensor]:
    """Name -> mean of x x^T (n x n, float64) over the inputs of that map; q, k and v share one, gate and up
    one.
    """
    sums: dict[str, Tensor] = {}
    counted = 0

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0][kept].double()  # tokens x n, padding left out
            sums[name] = sums[name].addmm_(x.T, x) if name in sums else x.T @ x

        return hook

    blocks = [f"model.layers.{i}" for i in range(model.config.num_layers)]
    inputs = [[f"{block}.{name}" for name in names] for block in blocks for names in _SAME_INPUT]
    handles = [model.get_submodule(n[0]).register_forward_pre_hook(watch(n[0])) for n in inputs]
    try:
        for batch in batches:
            tokens = torch.as_tensor(batch[:, :-1], dtype=torch.int64)
            kept = tokens >= 0
            counted += int(kept.sum())
            model.hidden(tokens.clamp_min(0))
    finally:
        for handle in handles:
            handle.remove()
    for total in sums.values():
        total.div_(max(1, counted))
    return {name: sums[names[0]] for names in inputs for name in names}


def summary(result: Factorized) -> str:
    """One sentence for the end."""
    share = result.parameters_after / result.parameters_before
    change = (
        result.perplexity_after / result.perplexity_before
        if math.isfinite(result.perplexity_after)
        else math.inf
    )
    return (
        f"{result.parameters_before:,} -> {result.parameters_after:,} parameters ({100 * share:.1f}%), "
        f"perplexity {result.perplexity_before:.4f} -> {result.perplexity_after:.4f} ({change:.3f} times)"
    )
