"""Every optimizer behind accelerate's FSDP2 (and so the Trainer with `fsdp_version=2`), which exchanges the
Parameters of a finished optimizer for sharded ones: the weights are those of one process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import needs_fsdp, on_ranks, whole_tensors
from torch import Tensor, nn

import lowrise
from lowrise.distributed import World
from lowrise.methods import METHODS
from lowrise.optim import OPTIMIZERS, Optimizer

pytest.importorskip("transformers")
pytest.importorskip("accelerate", minversion="1.6", reason="accelerate exchanges the parameters, from 1.6 on")

STEPS = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "loro": {"exact_every": 2},
    **{name: {"rank": 4, "update_proj_gap": 2} for name in ("apollo", "fira", "galore")},
}


def model_and_optimizer(name: str) -> tuple[nn.Module, Optimizer]:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    layer = next((m.layer for m in METHODS.values() if m.optimizer == name), "dense")
    if layer != "dense":
        lowrise.factorize(model, layer=layer, rank=4)
    model.double()
    return model, OPTIMIZERS[name].from_model(model, lr=1e-2, **OPTIONS.get(name, {}))


def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, 64, (4, 16), generator=draw) for _ in range(STEPS)]


def sharded_weights(world: World, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """At each rank: the whole weights after a few steps of `Accelerator.prepare` and a user's loop."""
    from accelerate import Accelerator, DistributedType
    from accelerate.utils import FullyShardedDataParallelPlugin

    os.environ |= {name: str(world.rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ["WORLD_SIZE"] = str(world.size)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
    )
    ends = {}
    for name in names:
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        # accelerate 1.15 shards on accelerators alone; what it does to an optimizer is the same on a CPU.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
        model, optimizer = accelerator.prepare(*model_and_optimizer(name))
        for batch in batches():
            ids = batch[2 * world.rank :][:2]
            accelerator.backward(model(input_ids=ids, labels=ids).loss)
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        ends[name] = whole_tensors(model)
    return ends


def one_process(name: str) -> dict[str, Tensor]:
    model, optimizer = model_and_optimizer(name)
    for ids in batches():
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return {key: tensor.detach() for key, tensor in model.named_parameters()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("accelerate")
    return on_ranks(2, folder, sharded_weights, list(OPTIMIZERS))


@needs_fsdp
@pytest.mark.xdist_group("accelerate")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_behind_fsdp2_updates_as_in_one_process(name, sharded):
    expected = one_process(name)
    # SWAN whitens gradients of hardly any rank, so rounding of their sum over ranks is much enlarged.
    atol = 1e-6 if name == "swan" else 1e-11
    for rank in sharded:
        for key, tensor in expected.items():
            assert (rank[name][key] - tensor).abs().max() < atol, key
