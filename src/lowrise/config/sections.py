"""The sections of a configuration: dataclasses with one line of help under each field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

DENSE = "dense"


@dataclass(kw_only=True)
class ModelSection:
    """The decoder. Fields left out take the preset's value."""

    preset: str = "tiny"
    """Named size; the others override single numbers of it."""


@dataclass(kw_only=True)
class LayerSection:
    """How the matrices of the blocks are stored."""

    role: ClassVar[str | None] = None
    """What the layer's weights are to an optimizer, "factors" or "svd"; None: dense matrices."""
    name: str = DENSE
    """Layer class, or "dense" for ordinary linear layers."""


@dataclass(kw_only=True)
class FactorizedSection(LayerSection):
    """How the matrices of the blocks are stored."""

    rank: int | float | dict[str, int | float] | Literal["init"] = 0.25
    """Rank as an integer, or as a fraction of min(rows, columns) in (0, 1], or a table of patterns; init: as
    in the factored folder that init.model names."""
    targets: tuple[str, ...] = ()
    """Patterns of module names to factorize; empty: every linear layer but the head."""
    skip: tuple[str, ...] = ()
    """Patterns of module names to leave dense."""


@dataclass(kw_only=True)
class OptimizerSection:
    """The rule that updates the matrices."""

    name: str = "adamw"
    """Optimizer class."""
    lr: float = 1e-3
    """Peak learning rate of the matrices."""
    state_format: Literal["float32", "bfloat16", "8bit"] = "float32"
    """How moments are stored between steps; bfloat16 and 8bit round stochastically, 8bit needs torchao."""
    hyperball: bool = False
    """Keep each weight's Frobenius norm (of factors, that of A B^T), so that lr is the angle of a step;
    without decay, and with a schedule that ends near 0."""


@dataclass(kw_only=True)
class OtherSection:
    """AdamW for what is not a matrix of the optimizer: embedding, head, norms, biases, layers left dense."""

    lr: float | None = None
    """Peak learning rate; none: the matrices' rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    state_format: Literal["float32", "bfloat16", "8bit"] | None = None
    """How its moments are stored; none: as the matrices'."""


@dataclass(kw_only=True)
class ScheduleSection:
    """Learning-rate multiplier over the updates."""

    name: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup: float = 0.05
    """Warm-up: a fraction of all updates (below 1) or a number of updates."""
    other_warmup: float | None = None
    """Warm-up of the rate of what is not a matrix (other.lr); none: the same."""
    min_lr_ratio: float = 0.1
    """Multiplier at the last update."""
    decay: float = 0.2
    """wsd: fraction of the updates (or number of updates) of the final linear decay."""
    cycle: int = 0
    """Restart the warm-up every so many updates; 0: never."""
    restart_warmup: int = 0
    """Updates of the warm-up after a restart or after the optimizer reset its moments; 0: no dip."""


@dataclass(kw_only=True)
class TransferSection:
    """Learning rates that were tuned at a small model and hold for this one (docs/transfer.md)."""

    base: int | str | None = None
    """Where the rates were tuned: a preset, or the width of a model like this one; none: at this size."""
    rank: int | float | dict[str, int | float] | None = None
    """Rank of the layer there; none: as layer.rank says of that model."""


@dataclass(kw_only=True)
class EmaSection:
    """An average of the last weights, kept beside them: evaluated, saved, exported (docs/ema.md)."""

    start: float | None = None
    """Where it begins: a fraction of all updates (below 1) or the number of an update; none: no average."""
    horizon: int | None = None
    """Updates that it reaches back: each adds 1 / horizon of the difference. None: a fifth of those from the
    start to the end."""
    blend: float | None = None
    """Fraction of the average in the weights that are evaluated and exported, the rest are the last ones; 1:
    the average alone. None: 0.6."""


@dataclass(kw_only=True)
class InitSection:
    """Where the first weights come from; fresh ones unless a run is named."""

    run: str | None = None
    """Folder of a run whose weights this one starts from; dense ones are taken over by any layer."""
    step: int | None = None
    """Checkpoint of that run; none: its newest."""
    model: str | None = None
    """Hugging Face folder whose weights this run starts from, instead of a run; `lowrise train` takes the
    model's shape and the tokenizer from it where the recipe does not say."""
    what: Literal["weights", "all"] = "weights"
    """all: a branch of that run, with its optimizer state, its place in the data and its counters."""


@dataclass(kw_only=True)
class TrainSection:
    """The loop."""

    steps: int = 1000
    """Updates of the weights."""
    global_batch_size: int = 16
    """Sequences per update (the global batch)."""
    micro_batch_size: int = 0
    """Sequences per forward pass (on one rank); gradients are accumulated over the passes of an update. 0:
    all in one pass."""
    seq_len: int = 128
    """Predicted tokens per sequence."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    per_layer: bool = False
    """Update every matrix within the backward pass and free its gradient at once; goes without clipping."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16: autocast over float32 master weights. auto: bfloat16 on a GPU, float32 on a CPU."""
    compile: bool = False
    """torch.compile each block."""
    threads: int = 0
    """CPU threads; 0: torch's choice."""
    deterministic: bool = True
    """Ask torch for deterministic kernels, so that the same recipe gives the same bits."""
    nonfinite_limit: int = 10
    """Stop after so many updates in a row were skipped for a loss or gradient that is not finite."""


@dataclass(kw_only=True)
class ParallelSection:
    """Several processes, started by torchrun."""

    data: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    """ddp: every rank keeps all weights. fsdp: ranks share weights, gradients and state by rows. hsdp: copies
    of the model, each shared by the ranks of a machine. auto: ddp under torchrun."""
    distribute_optimizer: bool = True
    """Let one rank update, and keep the state of, each matrix whose rule needs it whole; not all the same."""
    shard_degree: int = 0
    """hsdp: ranks that share one copy; 0: the ranks of one machine."""
    replicate_below: int = 8192
    """fsdp, hsdp: parameters with fewer elements are copied to every rank."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """fsdp, hsdp: how weights travel; bfloat16 needs train.precision bfloat16 and halves their bytes."""


@dataclass(kw_only=True)
class EvalSection:
    """Validation. The last evaluation always covers the whole held-out split."""

    every: int = 100
    """Updates between evaluations; 0: only at the end."""
    tokens: int = 0
    """Held-out tokens of an evaluation during training; 0: the whole split."""
    batch_size: int = 32
    """Sequences a forward pass, over all ranks."""
    patience: int | None = None
    """Stop early after so many evaluations in a row without a lower validation loss, and end with the weights
    of the lowest; none: train to the end and keep the last."""
    min_delta: float | None = None
    """patience: a loss is lower if it is so by more than this; none: 0."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further texts, name and source, evaluated whenever the held-out split is, as val_loss/NAME."""


@dataclass(kw_only=True)
class CheckpointSection:
    """What is kept to continue from."""

    every: int = 200
    """Updates between checkpoints; 0: only at the end or when stopped."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    asynchronous: bool = True
    """Write beside training, from a copy in CPU memory; the same bits are saved."""
    whole: bool = False
    """Collect sharded weights and state at rank 0, one file for all ranks."""


@dataclass(kw_only=True)
class LogSection:
    """What is written while training."""

    every: int = 10
    """Updates between lines of metrics.jsonl."""
    telemetry_every: int = 100
    """Updates between spectral measurements of every matrix; 0: never."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    services: tuple[str, ...] = ()
    """Experiment services that get the same numbers: wandb, trackio, mlflow, each an extra of its name."""


@dataclass(kw_only=True)
class SampleSection:
    """The text generated at the end."""

    prompt: str | None = None
    """Beginning of the sample; none: the document separator."""
    tokens: int = 120
    """Tokens to generate; 0: no sample."""
    temperature: float = 0.8
    """Softmax temperature; 0: greedy."""
    top_p: float = 0.95
    """Nucleus: the smallest set of tokens with this probability."""
