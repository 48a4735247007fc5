"""Elements a token and block that autograd keeps for the backward pass, dense, low-rank and CoLA, by kind of
recomputation, and the time of forward and backward.

Counted by saved-tensor hooks over distinct storages, weights left out; a block's share is the difference of
models of two depths. CoLA-M is CoLA with "latents": 2 d + 7 r.

    python benchmarks/activation_memory.py [--preset 60m] [--seq-len 256] [--sequences 4] [--device auto]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from common import publish, timed
from torch import Tensor

from lowrise.model import LlamaConfig, build_model
from lowrise.model.llama import Llama
from lowrise.runs.environment import choose_device

RANKS = {"nano": 16, "60m": 128, "130m": 256, "350m": 256, "1b": 512}
CASES = [
    ("dense", "none"),
    ("dense", "block"),
    ("lowrank", "none"),
    ("lowrank", "block"),
    ("lowrank", "latents"),
    ("cola", "none"),
    ("cola", "block"),
    ("cola", "latents"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="60m", choices=RANKS)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    rank = RANKS[options.preset]
    tokens = torch.randint(1000, (options.sequences, options.seq_len), device=device)

    def model(layer: str, recompute: str, blocks: int) -> Llama:
        config = LlamaConfig.preset(
            options.preset, vocab_size=1000, num_layers=blocks, recompute=recompute, max_seq_len=4096
        )
        arguments: dict[str, Any] = {} if layer == "dense" else {"layer": layer, "rank": rank}
        return build_model(config, device=device, **arguments)

    kept = {
        case: (kept_elements(model(*case, 3), tokens) - kept_elements(model(*case, 2), tokens))
        // tokens.numel()
        for case in CASES
    }
    models = {case: model(*case, 2) for case in CASES}
    times: dict[tuple[str, str], list[float]] = {case: [] for case in CASES}
    for round_number in range(options.rounds + 1):
        for case, built in models.items():
            seconds = timed(lambda built=built: built.hidden(tokens).sum().backward(), device)  # type: ignore[misc]
            if round_number:  # the first round warms up
                times[case].append(seconds)
    plain = {layer: kept[(layer, "none")] for layer, _ in CASES}
    rows = []
    for layer, recompute in CASES:
        elements, median = kept[(layer, recompute)], statistics.median(times[(layer, recompute)])
        rows.append(
            (
                layer,
                recompute,
                f"{elements:,}",
                f"{elements / plain[layer]:.3f}",
                f"{elements / plain['dense']:.3f}",
                f"{median / statistics.median(times[(layer, 'none')]):.2f}",
            )
        )
    config = LlamaConfig.preset(options.preset)
    d = config.hidden_size
    title = (
        f"{options.preset}: width {d}, MLP {config.intermediate_size}, rank {rank}, sequence "
        f"{options.seq_len}, float32. 2 d + 7 r = {2 * d + 7 * rank:,}."
    )
    elements = "elements per token and block"
    columns = ("layer", "recompute", elements, "of none", "of dense none", "time of none")
    record = {
        "options": vars(options),
        "elements": {f"{layer} {recompute}": n for (layer, recompute), n in kept.items()},
        "seconds": {f"{layer} {recompute}": t for (layer, recompute), t in times.items()},
    }
    publish(f"activation_memory_{options.preset}_{device.type}", title, columns, rows, record, device)


def kept_elements(model: Llama, tokens: Tensor) -> int:
    """Elements of all distinct storages, other than weights, that the forward pass keeps."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = model.hidden(tokens)  # alive until counted, so that no address is used twice
    assert hidden.requires_grad
    return sum(found.values())


if __name__ == "__main__":
    main()
