"""First weights from another run, `[init] run = FOLDER` (with `what = "all"`: `train/resume.py`), or from a
Hugging Face folder, `[init] model = FOLDER`.

ReLoRA's full-rank phase is such a run (arXiv 2307.05695: most of its quality comes from there), and its dense
weights become W0. The optimizer, the schedule and the batches begin anew.

For each tensor of the new model, in the run's checkpoint or the folder:
1. the same name and shape: copied;
2. of a low-rank layer NAME that the run has dense, as NAME.weight: the layer takes that weight over
   (`LowRankLayer.load_dense_`: LoRA exactly, the others by their `from_dense`);
3. anything else is a sentence, and nothing has been changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrise.checkpoint import Checkpoint
from lowrise.config import RunConfig, load, resolved
from lowrise.data import Tokenizer
from lowrise.distributed.sharding import copy_whole_, whole_parameters
from lowrise.errors import UsageError
from lowrise.layers.base import LowRankLayer
from lowrise.model.finite import require_finite
from lowrise.pretrained.adopt import check_fits, cut_ranks, weights_for
from lowrise.pretrained.folder import open_folder
from lowrise.runs.directory import RunDirectory, open_run
from lowrise.runs.plan import plan_run


@dataclass(frozen=True)
class PriorCost:
    """What was spent on the weights that a run starts from, in the runs before it."""

    tokens: int
    flops: int


def start_from_model(
    model: nn.Module, config: RunConfig, tokenizer: Tokenizer, say: Callable[[str], None]
) -> None:
    """Load the weights of the Hugging Face folder that `config.init` names into the model. Raises
    `UsageError` for what does not fit.
    """
    assert config.init.model is not None
    folder = open_folder(config.init.model)
    check_fits(folder, model, tokenizer)
    load_weights_(model, weights_for(folder, model), source=f"init.model = {config.init.model}")
    say(f"Starting from the weights of {config.init.model}.")
    if told := cut_ranks(folder, model):
        say(told)


def warm_start(
    model: nn.Module,
    config: RunConfig,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> PriorCost:
    """Load the weights of a checkpoint of the run that `config.init` names into the model. Raises
    `UsageError` for what does not fit.
    """
    assert config.init.run is not None
    run = open_run(config.init.run)
    before = load(run.config)
    require_same_tokenizer(run, before, tokenizer)
    load_weights_(model, checkpoint.parts["model"], source=f"init.run = {config.init.run}")
    say(f"Starting from the weights of {checkpoint.path}, a run of the method {before.method}.")
    if before.seed == config.seed and before.data == resolved(config).data:
        say(
            f"Its batches come again in the same order, since the seed is {config.seed} here too: "
            "give this run another seed to go on with other text."
        )
    numbers = checkpoint.numbers
    own_flops = checkpoint.step * plan_run(before, tokenizer.vocab_size).flops_per_step
    return PriorCost(
        numbers["tokens"] + numbers.get("init_tokens", 0), own_flops + numbers.get("init_flops", 0)
    )


def require_same_tokenizer(run: RunDirectory, before: RunConfig, tokenizer: Tokenizer) -> None:
    """Refuse weights whose token ids mean other text."""
    if Tokenizer.load(run.tokenizer, separator_token=before.data.separator_token).sha256 != tokenizer.sha256:
        raise UsageError(
            f"init.run = {run.path} was trained with another tokenizer: set data.tokenizer to its "
            f"{run.tokenizer}, or train on its corpus."
        )


@torch.no_grad()
def load_weights_(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """The three cases of the module's docstring. All is checked before the first tensor is changed."""
    require_finite(tensors, source, "Begin from weights of an earlier step, init.step, or from others.")
    own: dict[str, Tensor] = dict(model.named_parameters())
    dense: dict[str, LowRankLayer] = {}
    wanted: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, LowRankLayer) and _taken_over(name, module, tensors, source):
            dense[name] = module
            own = {key: p for key, p in own.items() if not key.startswith(f"{name}.")}
            wanted |= {f"{name}.weight", f"{name}.bias"} & tensors.keys()
    buffers = {key: b for key, b in model.named_buffers() if key in tensors and _owner(key) not in dense}
    for key, tensor in own.items():
        if key not in tensors:
            raise UsageError(f"{source} does not fit: it has no {key}, which this model has.")
        if tensor.shape != tensors[key].shape:
            raise UsageError(
                f"{source} does not fit: {key} is {tuple(tensors[key].shape)} there and "
                f"{tuple(tensor.shape)} here."
            )
    unused = sorted(tensors.keys() - own.keys() - buffers.keys() - wanted)
    if unused:
        raise UsageError(f"{source} does not fit: it has {unused[0]}, for which this model has no place.")
    for name, module in dense.items():
        bias = tensors.get(f"{name}.bias")
        device = next(module.parameters()).device
        with whole_parameters(module):
            module.load_dense_(
                tensors[f"{name}.weight"].to(device), None if bias is None else bias.to(device)
            )
    for key, tensor in {**own, **buffers}.items():
        copy_whole_(tensor, tensors[key])


def _taken_over(name: str, layer: LowRankLayer, tensors: Mapping[str, Tensor], source: str) -> bool:
    """Whether the run has this layer as a dense map; refuses one of another size or without its bias."""
    weight = tensors.get(f"{name}.weight")
    if weight is None:
        return False
    here = (layer.out_features, layer.in_features)
    if tuple(weight.shape) != here:
        raise UsageError(
            f"{source} does not fit: {name}.weight is {tuple(weight.shape)} there and {here} here."
        )
    if (f"{name}.bias" in tensors) != (layer.bias is not None):
        raise UsageError(f"{source} does not fit: {name} has a bias on one side only.")
    return True


def _owner(key: str) -> str:
    return key.rpartition(".")[0]
