"""A loop of the user's own around `fully_shard`, on a mesh of one rank: in this process over gloo, and over
NCCL with bfloat16 and compiled blocks where there is a GPU.
"""

import pytest
import torch
import torch.distributed as dist
from processes import needs_fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import lowrise
from lowrise.distributed.sharding import whole
from lowrise.model import LlamaConfig, build_model
from lowrise.model.loss import next_token_loss
from lowrise.optim import OPTIMIZERS

pytestmark = pytest.mark.xdist_group("own process group")
CONFIG = LlamaConfig.preset("nano", vocab_size=300)
MOVES = {"spectron": "lowrank", "tsvd": "svd", "loro": "lowrank", "relora": "lora", "adamw": "dense"}


# torch 2.6 shards on GPUs alone.
@pytest.fixture(params=[pytest.param("cpu", marks=needs_fsdp), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    backend = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}[request.param]
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield torch.device(request.param)
    finally:
        dist.destroy_process_group()


def updates(name: str, device: torch.device, sharded: bool) -> lowrise.Llama:
    layer = MOVES.get(name, "dense")
    model = build_model(CONFIG, layer=layer, rank=None if layer == "dense" else 8, device=device)
    if device.type == "cuda":
        for block in model.model.layers:
            block.compile()
    if sharded:
        mesh = init_device_mesh(device.type, (1,))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    rule = OPTIMIZERS[name]
    optimizer = rule(lowrise.param_groups(model, lr=1e-2, roles=rule.roles), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens = torch.randint(0, 300, (4, 17), generator=draw).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            next_token_loss(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    if sharded:
        owned = any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
        assert owned
        # What a copy of the state says, the state takes back, whole or shared.
        saved = {key: whole(t).clone() for key, t in optimizer.named_state().items()}
        optimizer.load_named_state(saved)
        for key, t in optimizer.named_state().items():
            assert torch.equal(whole(t), saved[key]), key
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_mesh_of_one_rank_changes_nothing(name, device):
    plain, sharded = (dict(updates(name, device, s).named_parameters()) for s in (False, True))
    # On a CPU it is the same arithmetic. On a GPU kernels may differ in the last bit of bfloat16, which the
    # first updates of Adam enlarge.
    bar = 0.0 if device.type == "cpu" else 2e-2
    for key, p in plain.items():
        q = whole(sharded[key].detach())
        distance = torch.linalg.vector_norm(q - p) / torch.linalg.vector_norm(p)
        assert distance <= bar, (key, float(distance))
