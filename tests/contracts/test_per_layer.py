"""Moving every matrix within the backward pass is the ordinary update, with less gradient memory."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from contracts.test_optimizers import CASES, build, make_params, same, weights
from contracts.test_training import every_method
from small_runs import config_for, final_tensors, metrics, run_training, trainer_for
from torch import Tensor, nn

import lowrise
from lowrise.errors import UsageError
from lowrise.optim import AdamW, Optimizer, step_in_backward
from lowrise.runs.weights import model_tensors
from lowrise.train.loop import Trainer

PER_LAYER = {"train.per_layer": True, "train.grad_clip": 0.0}


def loss_of(named: list[tuple[str, nn.Parameter]], t: int) -> Tensor:
    """A loss whose gradients depend on the weights and on t."""
    g = torch.Generator().manual_seed(100 + t)
    return sum(
        (((p - torch.randn(p.shape, generator=g).to(p)) ** 2).sum() for _, p in named), torch.zeros(())
    )


def advance(
    optimizer: Optimizer, named: list[tuple[str, nn.Parameter]], t: int, passes: int, way: str
) -> None:
    """Update t, of `passes` backward passes, of which the last one moves the weights if `way` says so."""
    for k in range(passes - 1):
        loss_of(named, passes * t + k).backward()
    last = loss_of(named, passes * t + passes - 1)
    if way == "per layer":
        with step_in_backward(optimizer):
            last.backward()
    else:
        last.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("name", "role", "options"), CASES)
@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_ordinary_step_bitwise(name, role, options, passes, dtype) -> None:
    """With a schedule, accumulation and a resume in the middle. Bitwise at these sizes: rounding of one
    matrix in a batch and alone differs only where a kernel is chosen by size."""
    ends = []
    for way in ("at once", "per layer"):
        named = make_params(role, dtype)
        optimizer = build(name, role, named, options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
        for t in range(6):
            advance(optimizer, named, t, passes, way)
            scheduler.step()
            if t == 3 and way == "per layer":  # stop here, and go on in another optimizer
                file = io.BytesIO()
                torch.save((optimizer.state_dict(), scheduler.state_dict()), file)
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                optimizer = build(name, role, named, options)
                scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            assert all(p.grad is None for _, p in named)
        ends.append(weights(named) + list(optimizer.named_state().values()))
    assert same(*ends)


def nano() -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    model = lowrise.Llama(lowrise.LlamaConfig.preset("nano", vocab_size=300))
    return model, AdamW(lowrise.param_groups(model, lr=1e-2), lr=1e-2)


def nano_loss(model: nn.Module) -> Tensor:
    tokens = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(3))
    return lowrise.model.next_token_loss(model, tokens)


def test_gradients_are_freed_as_they_are_used() -> None:
    """Elements of gradients alive whenever one becomes complete: all of them by the end of an ordinary pass,
    at most two tensors per layer."""
    most = {}
    for way in ("at once", "per layer"):
        model, optimizer = nano()
        parameters = list(model.parameters())
        alive: list[int] = []

        def count(_: Tensor, parameters: list = parameters, alive: list = alive) -> None:
            alive.append(sum(p.grad.numel() for p in parameters if p.grad is not None))

        for p in parameters:
            p.register_post_accumulate_grad_hook(count)
        if way == "per layer":
            with step_in_backward(optimizer) as moved:
                nano_loss(model).backward()
            assert moved.units == len(parameters)
        else:
            nano_loss(model).backward()
        assert len(alive) == len(parameters)
        most[way] = max(alive)
    assert most["at once"] == sum(p.numel() for p in parameters)
    assert most["per layer"] == max(p.numel() for p in parameters)


def test_the_norm_is_that_of_all_gradients() -> None:
    model, _ = nano()
    nano_loss(model).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
    model, optimizer = nano()
    with step_in_backward(optimizer) as moved:
        nano_loss(model).backward()
    assert moved.grad_norm == pytest.approx(float(norm), rel=1e-6)  # the same sums in another order


def test_a_gradient_that_is_not_finite_stops_its_own_unit_alone() -> None:
    model, optimizer = nano()
    before = {k: v.clone() for k, v in [*model_tensors(model).items(), *optimizer.named_state().items()]}
    name = "model.layers.0.mlp.up_proj.weight"
    model.get_parameter(name).register_hook(lambda g: torch.full_like(g, math.inf))
    with step_in_backward(optimizer) as moved:
        nano_loss(model).backward()
    after = model_tensors(model) | optimizer.named_state()
    kept = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert kept == {name, f"{name}.step", f"{name}.exp_avg", f"{name}.exp_avg_sq"}
    assert (moved.left_alone, moved.grad_norm) == (1, math.inf)


def test_units_that_the_last_micro_batch_did_not_use_move_too() -> None:
    """An expert that is idle in it, and a pair of which only B took part."""
    ends = []
    for way in ("at once", "per layer"):
        named = make_params("factors")
        optimizer = build("spectron", "factors", named, {})
        loss_of(named, 0).backward()
        last = loss_of(named[1:2], 1)
        if way == "per layer":
            with step_in_backward(optimizer) as moved:
                last.backward()
            assert moved.units == 3
        else:
            last.backward()
            optimizer.step()
        ends.append(weights(named))
    assert same(*ends)


def test_hooks_and_schedulers_see_one_step(recwarn: pytest.WarningsRecorder) -> None:
    model, optimizer = nano()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    steps: list[int] = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    with step_in_backward(optimizer):
        nano_loss(model).backward()
    scheduler.step()
    assert len(steps) == 1
    assert not [w for w in recwarn if "lr_scheduler.step()" in str(w.message)]
    (counter,) = {float(s["step"]) for s in optimizer.state.values()}
    assert counter == 1
    nano_loss(model).backward()  # the hooks are gone: an ordinary pass moves nothing
    assert all(p.grad is not None for p in model.parameters())


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = nano()

    def twice() -> None:
        with step_in_backward(optimizer):
            nano_loss(model).backward()
            nano_loss(model).backward()

    with pytest.raises(UsageError, match=r"second gradient of lm_head\.weight"):
        twice()
    with (
        pytest.raises(UsageError, match=r"not a torch\.optim\.adamw\.AdamW"),
        step_in_backward(torch.optim.AdamW(model.parameters())),  # type: ignore[arg-type]
    ):
        pass
    half = AdamW([nn.Parameter(torch.zeros(2, 2, dtype=torch.float16))])
    with pytest.raises(UsageError, match="float16, whose gradients need GradScaler"), step_in_backward(half):
        pass
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UsageError, match="averaged over the 2 processes"), step_in_backward(optimizer):
        pass


def test_grad_scaler_says_at_the_first_step_that_it_has_nothing_to_do() -> None:
    model, optimizer = nano()
    scaler = torch.amp.GradScaler("cpu")
    with step_in_backward(optimizer):
        scaler.scale(nano_loss(model)).backward()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(optimizer)


# --- lowrise train ----------------------------------------------------------------------------------------


def moved_by(trainer: Trainer, updates: int) -> tuple[dict[str, Tensor], list[Any]]:
    """Movement of every tensor, and loss and gradient norm of each update."""
    start = {k: v.clone() for k, v in model_tensors(trainer.model).items()}
    seen = [trainer.update() for _ in range(updates)]
    assert all(update.applied for update in seen)
    return (
        {k: v - start[k] for k, v in model_tensors(trainer.model).items()},
        [(update.loss, update.grad_norm, update.lr) for update in seen],
    )


@every_method
@pytest.mark.parametrize("micro", [0, 1])
def test_training_per_layer_is_ordinary_training(method, micro, text_folder, tmp_path) -> None:
    """The same loop without clipping. The batched kernels of some rules round otherwise than the single ones,
    by some 1e-7 of an update; the updates after it see other weights, hence 2e-4 of the movement."""
    settings = {"train.grad_clip": 0.0, "train.micro_batch_size": micro}
    a, seen_a = moved_by(trainer_for(config_for(text_folder, method, **settings), tmp_path / "a"), 4)
    config = config_for(text_folder, method, **settings | PER_LAYER)
    b, seen_b = moved_by(trainer_for(config, tmp_path / "b"), 4)
    for left, right in zip(seen_a, seen_b, strict=True):
        assert right == pytest.approx(left, rel=1e-5)
    for name in a:
        difference = torch.linalg.vector_norm((a[name] - b[name]).double())
        assert difference <= 2e-4 * torch.linalg.vector_norm(a[name].double()), name


@every_method
def test_resume_per_layer_is_exact(method, text_folder, tmp_path) -> None:
    config = config_for(text_folder, method, **PER_LAYER, **{"train.micro_batch_size": 2})
    run_training(config, tmp_path / "whole")
    trainer = trainer_for(config, tmp_path / "parts")

    def stop_after_five(board: Any, advance: Any = trainer._advance) -> None:
        advance(board)
        if trainer.progress.step == 5:
            raise InterruptedError

    trainer._advance = stop_after_five
    with pytest.raises(InterruptedError):
        trainer.run()
    summary = run_training(config, tmp_path / "parts")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)
    assert summary["optimizer_step_ms"] > 0
    assert all(line["grad_norm"] > 0 for line in metrics(tmp_path / "parts") if "loss" in line)


def test_clipping_is_refused_with_the_reason(text_folder) -> None:
    with pytest.raises(UsageError, match=r"train.grad_clip = 0.5 cannot be: train.per_layer updates"):
        config_for(text_folder, "adamw", **PER_LAYER | {"train.grad_clip": 0.5})
    plain, other = (config_for(text_folder, "adamw", **s) for s in ({"train.grad_clip": 0.0}, PER_LAYER))
    assert plain.hash != other.hash


def test_what_is_not_finite_is_skipped_and_counted(text_folder, tmp_path) -> None:
    config = config_for(text_folder, "lowrank", **PER_LAYER, **{"train.micro_batch_size": 2})
    trainer = trainer_for(config, tmp_path)
    trainer.update()
    weights = {k: v.clone() for k, v in model_tensors(trainer.model).items()}
    A = trainer.optimizer.param_groups[0]["params"][0]
    handle = A.register_hook(lambda grad: grad * math.nan)
    update = trainer.update()
    handle.remove()
    assert not update.applied
    assert update.left_alone == 1
    assert math.isnan(update.grad_norm)
    now = model_tensors(trainer.model)
    kept = {name for name in now if torch.equal(now[name], weights[name])}
    assert len(kept) == 2  # the pair A, B
    assert trainer.progress.skipped == 1

    weights = {k: v.clone() for k, v in now.items()}
    handle = trainer.model.register_forward_hook(lambda module, args, out: out * math.inf)
    update = trainer.update()
    handle.remove()
    assert not update.applied
    assert update.left_alone == 0
    assert all(torch.equal(v, weights[k]) for k, v in model_tensors(trainer.model).items())
    assert trainer.progress.skipped_in_a_row == 2
    assert trainer.update().applied
    assert trainer.progress.skipped_in_a_row == 0
