"""Every optimizer in Hugging Face's Trainer: it trains, saves, and resumes to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrise
from lowrise.errors import UsageError
from lowrise.methods import METHODS
from lowrise.optim import OPTIMIZERS, AdamW, Muon, Optimizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")

# The layer that an optimizer moves: that of the first method which uses it.
LAYER = {
    name: next((m.layer for m in METHODS.values() if m.optimizer == name), "dense") for name in OPTIMIZERS
}
# What happens now and then should happen within six updates, before and after the checkpoint.
OPTIONS: dict[str, dict[str, Any]] = {
    "loro": {"exact_every": 2},
    **{name: {"rank": 4, "update_proj_gap": 2} for name in ("apollo", "fira", "galore")},
}


def llama(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config)


def gpt2(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)  # with dropout: the Trainer restores the generators


def build(name: str, model: nn.Module, **options: Any) -> Optimizer:
    if LAYER[name] != "dense":
        lowrise.factorize(model, layer=LAYER[name], rank=4)
    groups = lowrise.param_groups(
        model, lr=1e-2, weight_decay=0.1, other_weight_decay=0.1, roles=OPTIMIZERS[name].roles
    )
    return OPTIMIZERS[name](groups, lr=1e-2, **OPTIONS.get(name, {}), **options)


def trainer_of(model: nn.Module, optimizer: Optimizer, folder: Path, **settings: Any) -> Any:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "save_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    tokens = torch.randint(64, (16, 12), generator=torch.Generator().manual_seed(5))
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(**values | settings),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizers=(optimizer, None),
    )


def rates_into(rates: list[float]) -> Any:
    """A callback that notes the rate of each update: logs give the next one's in some versions."""

    class Rates(transformers.TrainerCallback):
        def on_step_begin(self, *arguments: Any, optimizer: Any, **others: Any) -> None:
            optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
            rates.append(optimizer.param_groups[0]["lr"])

    return Rates()


def state_of(trainer: Any, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        k: v.detach().clone()
        for k, v in [*trainer.model.named_parameters(), *optimizer.named_state().items()]
    }


@pytest.mark.parametrize("architecture", [llama, gpt2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stopped_and_resumed_is_the_run_that_never_stopped(name, architecture, tmp_path) -> None:
    model = architecture(1)
    optimizer = build(name, model)
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    trainer = trainer_of(model, optimizer, tmp_path)
    rates: list[float] = []
    trainer.add_callback(rates_into(rates))
    trainer.train()
    whole = state_of(trainer, optimizer)
    assert all(not torch.equal(v, whole[k]) for k, v in start.items() if model.get_parameter(k).requires_grad)
    assert rates[:3] == pytest.approx([0.0, 0.005, 0.01])  # the group's rate, warmed up over 2 updates
    assert all(line["grad_norm"] > 0 for line in trainer.state.log_history if "grad_norm" in line)

    model = architecture(2)  # other weights, which the checkpoint replaces
    optimizer = build(name, model)
    trainer = trainer_of(model, optimizer, tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    parts = state_of(trainer, optimizer)
    assert list(parts) == list(whole)
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []


def test_accumulation_and_clipping_are_those_of_a_plain_loop(tmp_path) -> None:
    """The Trainer's updates against the same ones written out: same gradients, so equal to rounding of the
    loss's scale and of the norm, enlarged by Adam's first steps, whose sign a rounding can turn."""
    model = llama(1).double()
    twin = copy.deepcopy(model)
    optimizer = build("adamw", model)
    trainer = trainer_of(
        model, optimizer, tmp_path, lr_scheduler_type="constant", warmup_steps=0, max_steps=3
    )
    seen: list[Tensor] = []
    original = trainer.compute_loss

    def record(model: nn.Module, inputs: dict[str, Tensor], **more: Any) -> Any:
        seen.append(inputs["input_ids"].clone())
        return original(model, inputs, **more)

    trainer.compute_loss = record
    trainer.train()

    optimizer = build("adamw", twin)
    for t in range(3):
        batch = torch.cat(seen[2 * t : 2 * t + 2])
        twin(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        # Updates are 1e-2 an entry; transformers 4.48 takes the loss in float32.
        assert torch.allclose(p, q, rtol=0, atol=1e-6), name


def test_state_follows_a_model_that_was_moved_after_the_optimizer_was_built() -> None:
    """accelerate moves the model, then loads the optimizer's own state. "meta" stands for the old device."""
    optimizer = build("adamw", llama(1))
    saved = copy.deepcopy(optimizer.state_dict())
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].to("meta")
    optimizer.load_state_dict(saved)
    assert {t.device.type for t in optimizer.named_state().values()} == {"cpu"}
    assert all(torch.equal(t, torch.zeros_like(t)) for t in optimizer.named_state().values())


def leading(G: Tensor, rank: int, side: str, step: int) -> Tensor:
    """A basis of one's own."""
    return torch.linalg.qr((G if side == "left" else G.mT)[:, :rank]).Q


def test_options_that_are_functions_resume(tmp_path) -> None:
    def fira(seed: int, **options: Any) -> tuple[nn.Module, Optimizer]:
        model = llama(seed)
        return model, build("fira", model, **options)

    model, optimizer = fira(1, projection=leading)
    trainer = trainer_of(model, optimizer, tmp_path)
    trainer.train()
    whole = state_of(trainer, optimizer)
    saved = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["projection"] == f"function {__name__}.leading"
    model, optimizer = fira(2, projection=leading)
    trainer = trainer_of(model, optimizer, tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    parts = state_of(trainer, optimizer)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert optimizer.param_groups[0]["projection"] is leading

    _, plain = fira(1)
    with pytest.raises(UsageError, match=r"projection = 'function .*leading', this one 'svd'"):
        plain.load_state_dict(saved)
    with pytest.raises(UsageError, match=r"projection = 'svd', this one 'function .*leading'"):
        optimizer.load_state_dict(plain.state_dict())


def test_the_trainers_own_groups_get_a_sentence() -> None:
    """`optimizer_cls_and_kwargs` builds groups without roles, norms among them."""
    parameters = [p for _, p in llama(1).named_parameters()]
    with pytest.raises(UsageError, match=r"lowrise.param_groups\(model, lr=...\)"):
        Muon([{"params": parameters, "weight_decay": 0.1}])
    AdamW([{"params": parameters, "weight_decay": 0.1}])
