"""Fine-tune a small Hugging Face model: all weights with an optimizer of lowrise, and LoRA (peft) beside it.

    python examples/finetune_hf.py --optimizer fira

Nothing is downloaded:

1. text A: source of the Python standard library (its top-level modules), with a tokenizer trained on it;
   text B: the English manual that Python carries (`pydoc_data.topics`), every fifth topic held out
2. a small Llama of transformers is pretrained on A
3. per way and learning rate, a copy of it is fine-tuned on B with `transformers.Trainer`; both ways see the
   same batches, as many rates, and the same rank where the optimizer has one
4. the best rate of each way, by the loss on the held-out topics, is a row of the table
"""

from __future__ import annotations

import argparse
import copy
import math
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

import lowrise
from lowrise.data import DataConfig, Tokenizer, prepare
from lowrise.optim import OPTIMIZERS, AdamW, Optimizer
from lowrise.optim.engine.cost import option_defaults

DENSE_SIDE = sorted(name for name, cls in OPTIMIZERS.items() if "matrix" in cls.roles)


@dataclass(frozen=True)
class Row:
    """One fine-tuning."""

    way: str
    lr: float
    loss: float
    trained: int
    state_bytes: int


def main(arguments: list[str] | None = None) -> list[Row]:
    """Print the table; returns its rows."""
    args = parse(arguments)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(args.seed)
    corpus = prepare(DataConfig(source=(args.pretrain_text,), vocab_size=args.vocab, cache=args.cache))
    tokenizer = corpus.tokenizer
    train, valid = manual(tokenizer, args.seq_len)
    sequences = torch.from_numpy(
        corpus.train.batch(
            0, sequences=args.pretrain_steps * args.batch, seq_len=args.seq_len - 1, seed=args.seed
        )
    )
    model = small_llama(tokenizer.vocab_size, args)
    optimizer = AdamW(lowrise.param_groups(model, lr=3e-3, roles=AdamW.roles), lr=3e-3)
    print(f"pretraining: {args.pretrain_steps} updates on {args.pretrain_text}", flush=True)
    fit(model, optimizer, sequences, args.pretrain_steps, args)
    before = mean_loss(model, valid)
    ways: dict[str, Callable[[nn.Module, float], tuple[nn.Module, Optimizer]]] = {
        f"{args.optimizer}, all weights": lambda m, lr: (m, full_optimizer(m, lr, args)),
        "LoRA (peft), AdamW": lambda m, lr: lora(m, lr, args),
    }
    rows = []
    for way, build in ways.items():
        tried = [finetune(way, build, model, lr, train, valid, args) for lr in args.lrs]
        rows.append(min(tried, key=lambda row: row.loss))
    show(rows, before, args)
    return rows


def manual(tokenizer: Tokenizer, seq_len: int) -> tuple[Tensor, Tensor]:
    """Text B as (sequences, seq_len) tokens: to train on, and held out."""
    from pydoc_data.topics import topics

    streams: tuple[list[int], list[int]] = ([], [])
    for i, name in enumerate(sorted(topics)):
        streams[i % 5 == 0].extend([*tokenizer.encode(topics[name]), tokenizer.separator_id])
    train, valid = (torch.tensor(s[: len(s) // seq_len * seq_len]).view(-1, seq_len) for s in streams)
    return train, valid


def small_llama(vocab_size: int, args: argparse.Namespace) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=args.width,
            intermediate_size=8 * args.width // 3 // 16 * 16,
            num_hidden_layers=args.layers,
            num_attention_heads=4,
            max_position_embeddings=args.seq_len,
            tie_word_embeddings=True,
        )
    )


def full_optimizer(model: nn.Module, lr: float, args: argparse.Namespace) -> Optimizer:
    """The optimizer of `--optimizer` over all parameters; what is no matrix is moved by built-in AdamW."""
    chosen = OPTIMIZERS[args.optimizer]
    own = {"rank": args.rank, "update_proj_gap": args.update_proj_gap}
    options = {key: value for key, value in own.items() if key in option_defaults(chosen)}
    groups = lowrise.param_groups(model, lr=lr, other_lr=args.other_lr, roles=chosen.roles)
    construct: Callable[..., Optimizer] = chosen
    return construct(groups, lr=lr, **options)


def lora(model: nn.Module, lr: float, args: argparse.Namespace) -> tuple[nn.Module, Optimizer]:
    """LoRA on every linear layer but the head, by AdamW."""
    import peft

    config = peft.LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(model, config)
    return wrapped, AdamW(lowrise.param_groups(wrapped, lr=lr, roles=AdamW.roles), lr=lr)


def finetune(
    way: str,
    build: Callable[[nn.Module, float], tuple[nn.Module, Optimizer]],
    pretrained: nn.Module,
    lr: float,
    train: Tensor,
    valid: Tensor,
    args: argparse.Namespace,
) -> Row:
    torch.manual_seed(args.seed)
    model, optimizer = build(copy.deepcopy(pretrained), lr)
    fit(model, optimizer, train, args.steps, args)
    loss = mean_loss(model, valid)
    print(f"{way}, lr {lr:g}: held-out loss {loss:.4f}", flush=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Row(way, lr, loss, trained, optimizer.state_bytes())


def fit(
    model: nn.Module, optimizer: Optimizer, sequences: Tensor, steps: int, args: argparse.Namespace
) -> None:
    """The Trainer with an optimizer of lowrise: `optimizers=(optimizer, None)`, the schedule is its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=args.batch,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 10),
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
            seed=args.seed,
        )
        dataset = [{"input_ids": row, "labels": row} for row in sequences.long()]
        trainer = transformers.Trainer(model, settings, train_dataset=dataset, optimizers=(optimizer, None))
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


@torch.no_grad()
def mean_loss(model: nn.Module, sequences: Tensor) -> float:
    """Mean over every predicted token, in nats."""
    model.eval()
    device = next(model.parameters()).device
    losses = [
        float(model(input_ids=part, labels=part).loss) * len(part) for part in sequences.to(device).split(32)
    ]
    model.train()
    return math.fsum(losses) / len(sequences)


def show(rows: list[Row], before: float, args: argparse.Namespace) -> None:
    print(f"\nBest of the rates {', '.join(f'{lr:g}' for lr in args.lrs)} for each way, rank {args.rank}:")
    print("way                        lr       loss before  after   trained parameters  optimizer state")
    for row in rows:
        edge = " (at the edge of the rates)" if row.lr in (min(args.lrs), max(args.lrs)) else ""
        print(
            f"{row.way:<25}  {row.lr:<7g}  {before:<11.4f}  {row.loss:.4f}  {row.trained:<18,}  "
            f"{row.state_bytes:,} bytes{edge}"
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top_level = str(Path(sysconfig.get_path("stdlib")) / "*.py")
    add = parser.add_argument
    add("--optimizer", choices=DENSE_SIDE, default="adamw", help="what moves all weights")
    add("--lrs", type=lambda text: [float(x) for x in text.split(",")], default=[3e-3, 1e-2, 3e-2])
    add("--other-lr", type=float, help="rate of embedding and norms with all weights; unset: the same")
    add("--rank", type=int, default=16, help="of LoRA, and of the optimizer where it has one")
    add("--update-proj-gap", type=int, default=50, help="of the optimizer, where it has one")
    add("--steps", type=int, default=100, help="updates of a fine-tuning")
    add("--pretrain-steps", type=int, default=200)
    add("--pretrain-text", default=top_level, help="files, a folder or a glob (docs/data.md)")
    add("--batch", type=int, default=8)
    add("--seq-len", type=int, default=64)
    add("--vocab", type=int, default=2048)
    add("--width", type=int, default=128)
    add("--layers", type=int, default=4)
    add("--seed", type=int, default=0)
    add("--cache", help="folder for the prepared text; unset: that of lowrise")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
