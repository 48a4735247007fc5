"""Generation: tokens per second of factored and dense maps in `FrozenDecoder`, beside `transformers`.

Random weights of the published shapes, ranks d / 4. The dense model of a size has the same shape as the
factored one; `transformers.generate` reads the dense model's very weights, with its static cache. All rows of
a size are measured in turn within each round, so that a slow minute of the machine hits every row, and ratios
are taken within a round; the table shows medians over the rounds.

    python benchmarks/inference.py [--presets 350m,1b] [--dtype auto] [--batches 1,8,32] [--rounds 5]

"auto" takes, for each size, the dtype in which dense decoding of one sequence was faster. The byte ratio,
dense over factored, of what a step reads (all maps, the head, which is dense in both, and the keys and
values of half the tokens decoded) is the limit of what factors can gain where memory is the limit; "GB/s" is
these bytes over the time of a step, and the title has the rate at which this machine reads and copies.
--step torch leaves out the step in C++. On a machine with other work --clock cpu leaves out the time that
others had the processor.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, publish

from lowrise.inference.decoder import FrozenDecoder
from lowrise.model import Llama, LlamaConfig, build_model

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CPU = torch.device("cpu")
clock: Callable[[], float] = time.perf_counter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", default="350m,1b")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="tokens decoded in each measurement")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: time that the process had a processor"
    )
    parser.add_argument("--step", default="native", choices=("native", "torch"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    global clock
    torch.set_num_threads(options.threads)
    if options.clock == "cpu":
        if options.threads != 1:
            parser.error("--clock cpu adds up the times of threads: use it with --threads 1.")
        clock = time.process_time
    torch.set_grad_enabled(False)

    rows, record = [], {}
    for preset in options.presets.split(","):
        measured = measure(preset, options)
        record[preset] = measured
        rows += table_rows(preset, measured)
    columns = ("", "dtype", "batch", "dense tok/s", "factored tok/s", "factored / dense", "limit (bytes)",
               "dense GB/s", "factored GB/s", "transformers tok/s", "dense / transformers", "prefill dense",
               "factored")  # fmt: skip
    rates = memory_rates()
    title = (
        f"Decoding after prompts of {options.prompt} tokens, rank d/4, {options.threads} thread(s), "
        f"step: {options.step}, {options.clock} time, medians of {options.rounds} rounds; memory: "
        f"{rates['read']:.1f} GB/s read by a sum, {rates['copy']:.1f} GB/s by a copy"
    )
    step = "" if options.step == "native" else f"_{options.step}"
    rows_at_a_time = (
        "" if options.batches.split(",")[0] == "1" else f"_batch{options.batches.replace(',', '_')}"
    )
    name = f"inference_{options.presets.replace(',', '_')}{rows_at_a_time}{step}_cpu"
    content = {
        "options": {**vars(options), "results": str(options.results.name)},
        "memory_gb_per_s": rates,
        "measured": record,
    }
    publish(name, title, columns, rows, content, CPU, options.results)
    write_markdown(options.results / f"{name}.md", title, columns, rows)


def measure(preset: str, options: argparse.Namespace) -> dict[str, object]:
    """Tokens a second of every form of a size, at every batch size."""
    config = LlamaConfig.preset(
        preset, vocab_size=options.vocab, max_seq_len=options.prompt + options.tokens + 8
    )
    dtype = DTYPES[preferred(config, options) if options.dtype == "auto" else options.dtype]
    ours, theirs = dense_pair(config, dtype)
    rank = config.hidden_size // 4
    low_rank = random_model(config, dtype, rank)
    batches = {}
    for batch in map(int, options.batches.split(",")):
        dense = factored = None  # of the batch before
        gc.collect()
        native = options.step == "native"
        dense, factored = (
            FrozenDecoder(m, forms="stored", rows=batch, native=native) for m in (ours, low_rank)
        )
        forms: dict[str, Callable[[], tuple[float, float]]] = {
            "dense": lambda d=dense, b=batch: decode(d, b, options),
            "factored": lambda d=factored, b=batch: decode(d, b, options),
            "transformers": lambda b=batch: generate(theirs, b, options),
        }
        for work in forms.values():
            work()  # warm up
        rounds = [{name: work() for name, work in forms.items()} for _ in range(options.rounds)]
        batches[batch] = summary(rounds)
        cache = cache_bytes(config, dtype, batch, options)
        read = {
            "dense": dense.weight_bytes_per_token + cache,
            "factored": factored.weight_bytes_per_token + cache,
        }
        batches[batch] |= {"bytes_a_step": read, "byte_ratio": read["dense"] / read["factored"]}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "rank": rank,
        "weight_bytes_dense": dense.weight_bytes_per_token,
        "weight_bytes_factored": factored.weight_bytes_per_token,
        "batches": batches,
    }


def cache_bytes(config: LlamaConfig, dtype: torch.dtype, batch: int, options: argparse.Namespace) -> int:
    """Bytes of keys and values that a step reads, on the average."""
    columns = options.prompt + options.tokens // 2
    return 2 * config.num_layers * config.kv_heads * config.head_dim * columns * batch * dtype.itemsize


def memory_rates() -> dict[str, float]:
    """GB/s at which a sum reads and a copy reads, of float32 that no cache holds; the best of seven."""
    x = torch.ones(256 * 2**20 // 4)
    y = torch.zeros_like(x)

    def best(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(7):
            started = clock()
            work()
            seconds.append(clock() - started)
        return x.nbytes / min(seconds) / 1e9

    return {"read": best(x.sum), "copy": best(lambda: y.copy_(x))}


def preferred(config: LlamaConfig, options: argparse.Namespace) -> str:
    """The dtype that decodes faster here, of a model of two blocks of this size."""
    small = LlamaConfig.preset(
        "nano",
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        vocab_size=options.vocab,
        max_seq_len=config.max_seq_len,
    )
    seconds = {}
    for name, dtype in DTYPES.items():
        decoder = FrozenDecoder(random_model(small, dtype))
        decode(decoder, 1, options)
        seconds[name] = statistics.median(decode(decoder, 1, options)[0] for _ in range(3))
    return min(seconds, key=seconds.__getitem__)


def dense_pair(config: LlamaConfig, dtype: torch.dtype) -> tuple[Llama, torch.nn.Module]:
    """A dense model of ours, and the same weights in transformers."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    ours = random_model(config, dtype)
    their_config = TheirConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_seq_len,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(their_config).to(dtype)
    theirs.load_state_dict(ours.state_dict(), assign=True)  # shares the weights, which memory likes
    for module in theirs.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:  # rotary wavelengths, which meta construction leaves empty
                setattr(module, name, wavelengths(config).to(torch.float32))
    return ours, theirs.eval()


def wavelengths(config: LlamaConfig) -> torch.Tensor:
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return 1.0 / config.rope_theta**exponents


def random_model(config: LlamaConfig, dtype: torch.dtype, rank: int | None = None) -> Llama:
    """A dense model, or one of factors; the same draws over and over, as nobody compares these weights."""
    layer = "dense" if rank is None else "lowrank"
    model = build_model(config, layer=layer, rank=rank, dtype=dtype, device="meta")
    model.to_empty(device="cpu")
    draws = torch.randn(2**20).mul_(0.02).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        else:
            for part in parameter.data.view(-1).split(len(draws)):
                part.copy_(draws[: len(part)])
    return model


def prompts_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(5, 500, (batch, length), generator=torch.Generator().manual_seed(0))


def decode(decoder: FrozenDecoder, batch: int, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a greedy step of the batch, and of reading the prompts."""
    prompts = prompts_of(batch, options.prompt).tolist()
    started = clock()
    state, logits = decoder.prefill(prompts, options.tokens)
    read = clock()
    for _ in range(options.tokens):
        logits = decoder.step(state, logits.float().argmax(-1))
    return (clock() - read) / options.tokens, read - started


def generate(model: torch.nn.Module, batch: int, options: argparse.Namespace) -> tuple[float, float]:
    """The same by `transformers.generate`; its own time for one token is reading the prompts."""

    def seconds(tokens: int) -> float:
        started = clock()
        model.generate(
            prompts_of(batch, options.prompt),
            attention_mask=torch.ones(batch, options.prompt, dtype=torch.int64),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
        )
        return clock() - started

    one = seconds(1)
    return (seconds(1 + options.tokens) - one) / options.tokens, one


def summary(rounds: list[dict[str, tuple[float, float]]]) -> dict[str, object]:
    def median(value: Callable[[dict[str, tuple[float, float]]], float]) -> float:
        return statistics.median(value(r) for r in rounds)

    return {
        "seconds_a_step": {name: median(lambda r, n=name: r[n][0]) for name in rounds[0]},
        "seconds_of_prefill": {name: median(lambda r, n=name: r[n][1]) for name in rounds[0]},
        "factored_over_dense": median(lambda r: r["dense"][0] / r["factored"][0]),
        "dense_over_transformers": median(lambda r: r["transformers"][0] / r["dense"][0]),
        "all_rounds": rounds,
    }


def table_rows(preset: str, measured: dict) -> list[tuple[str, ...]]:  # type: ignore[type-arg]
    rows = []
    for batch, result in measured["batches"].items():
        step, prefill = result["seconds_a_step"], result["seconds_of_prefill"]
        rows.append(
            (
                preset,
                measured["dtype"],
                str(batch),
                f"{batch / step['dense']:.1f}",
                f"{batch / step['factored']:.1f}",
                f"{result['factored_over_dense']:.2f}x",
                f"{result['byte_ratio']:.2f}x",
                *(f"{result['bytes_a_step'][form] / step[form] / 1e9:.1f}" for form in ("dense", "factored")),
                f"{batch / step['transformers']:.1f}",
                f"{result['dense_over_transformers']:.2f}x",
                f"{1e3 * prefill['dense']:.0f} ms",
                f"{1e3 * prefill['factored']:.0f} ms",
            )
        )
    return rows


def write_markdown(path: Path, title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)]
    path.write_text("\n".join([f"{title}.", "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
