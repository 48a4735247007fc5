"""Self-guided layers: the fade, what is dropped when, and that a run cannot tell where it was stopped."""

from __future__ import annotations

import io
import math

import pytest
import torch
from processes import Killed
from safetensors.torch import load_file
from small_runs import config_for, console, final_tensors, metrics, run_training, trainer_for
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrise.errors import UsageError
from lowrise.evaluation.measure import evaluate_run
from lowrise.layers import LowRankLinear, SelfGuidedLinear, param_groups
from lowrise.layers.selfguided import guide_share
from lowrise.ledger import count_parameters, flops_per_token
from lowrise.model import LlamaConfig, build_model
from lowrise.optim import OPTIMIZERS, AdamW, Spectron
from lowrise.runs.load import load_run


def layer_at(number: int, total: int, *, rank: int = 3) -> SelfGuidedLinear:
    layer = SelfGuidedLinear(7, 9, rank, dtype=torch.float64)
    assert layer.guide is not None
    with torch.no_grad():
        layer.guide.add_(torch.randn_like(layer.guide))
    layer.before_update(number, total)
    return layer


def test_alpha_is_a_cosine_from_one_to_zero_over_the_half() -> None:
    half = 50
    shares = [guide_share(k, half) for k in range(1, half + 1)]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert guide_share(26, half) == pytest.approx(0.5, abs=1e-15)
    assert 0 < shares[-1] < 2e-3
    assert guide_share(half + 1, half) == pytest.approx(0.0, abs=1e-15)  # the drop continues the curve


@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_forward_dense_and_gradients_are_the_mixture(number: int) -> None:
    layer = layer_at(number, 10)
    W, alpha = layer.guide, guide_share(number, 5)
    assert W is not None
    x = torch.randn(11, 7, dtype=torch.float64)
    gy = torch.randn(11, 9, dtype=torch.float64)
    y = layer(x)
    # alpha is a float32 number in a float64 layer
    close = {"rtol": 1e-6, "atol": 1e-7}
    mixture = alpha * W + (1 - alpha) * layer.A @ layer.B.T
    torch.testing.assert_close(layer.dense(), mixture, **close)
    torch.testing.assert_close(y, x @ mixture.T, **close)
    torch.testing.assert_close(y, x @ layer.dense().T, rtol=1e-12, atol=1e-13)
    y.backward(gy)
    G = gy.T @ x
    torch.testing.assert_close(W.grad, alpha * G, **close)
    torch.testing.assert_close(layer.A.grad, (1 - alpha) * G @ layer.B, **close)
    torch.testing.assert_close(layer.B.grad, (1 - alpha) * G.T @ layer.A, **close)


def test_the_guide_starts_as_the_product_and_so_changes_nothing() -> None:
    layer = SelfGuidedLinear(12, 20, 4)
    plain = LowRankLinear(12, 20, 4)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "guide"})
    x = torch.randn(5, 12)
    assert torch.equal(layer(x), plain(x)), "nobody told it the time: the plain map"
    for number in (1, 3, 5):
        layer.before_update(number, 10)
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-6)  # float32 rounding
    layer.before_update(6, 10)
    assert torch.equal(layer(x), plain(x))
    assert layer.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(layer.dense(), plain.dense(), rtol=0, atol=0)


def test_small_shares_survive_bfloat16() -> None:
    """1 - alpha of the second update of 10,000 is 2.5e-7: 1 - bfloat16(alpha) would be 0."""
    layer = SelfGuidedLinear(12, 20, 4, dtype=torch.bfloat16)
    layer.before_update(2, 10_000)
    layer(torch.randn(5, 12, dtype=torch.bfloat16)).float().sum().backward()
    assert layer.A.grad is not None
    assert layer.A.grad.any()
    layer = SelfGuidedLinear(12, 20, 4)
    layer.before_update(2, 10_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(5, 12))
    y.float().sum().backward()
    assert layer.A.grad is not None
    assert layer.A.grad.any()


def test_a_dropped_guide_does_not_come_back() -> None:
    layer = layer_at(6, 10)
    assert layer.guide is None
    assert "guide=False" in repr(layer)
    with pytest.raises(UsageError, match=r"Update 5 of 10 lies in the half with a guide.*dropped"):
        layer.before_update(5, 10)
    layer.before_update(10, 10)
    layer.reset_parameters()
    assert layer.guide is None


@pytest.mark.parametrize("total", [1, 2, 3, 9])
def test_any_number_of_updates_ends_without_a_guide(total: int) -> None:
    layer = SelfGuidedLinear(7, 9, 3)
    for number in range(1, total + 1):
        layer.before_update(number, total)
        assert (layer.guide is not None) == (number <= total // 2)


def test_one_compiled_graph_serves_all_shares() -> None:
    torch._dynamo.reset()
    layer = SelfGuidedLinear(7, 9, 3)
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.randn(5, 7)
    for number in range(1, 11):
        layer.before_update(number, 10)
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 2  # with the guide, and without


# --- roles, ledger ----------------------------------------------------------------------------------------


def small_model(**overrides: object) -> nn.Module:
    return build_model(LlamaConfig.preset("nano", vocab_size=50, **overrides), layer="selfguided", rank=8)


def test_the_guide_is_a_dense_matrix_for_optimizers() -> None:
    model = small_model()
    guides = [n for n, _ in model.named_parameters() if n.endswith("guide")]
    by_role = {g["role"]: [n for n, _ in g["params"]] for g in param_groups(model, lr=1.0, roles=AdamW.roles)}
    assert by_role["matrix"] == guides
    assert len(by_role["factors"]) == 2 * len(guides) == 28
    spectron = {
        g["role"]: [n for n, _ in g["params"]] for g in param_groups(model, lr=1.0, roles=Spectron.roles)
    }
    assert set(guides) <= set(spectron["other"])


def test_counts_tell_the_result_from_the_guide() -> None:
    count = count_parameters(small_model())
    plain = count_parameters(build_model(LlamaConfig.preset("nano", vocab_size=50), layer="lowrank", rank=8))
    assert count.total - count.temporary == plain.total
    assert count.temporary == count.by_role["matrix"] == 2 * (4 * 64 * 64 + 3 * 64 * 176)
    assert plain.temporary == 0


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_planned_flops_are_the_mean_of_both_halves(recompute: str) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.checkpoint import set_checkpoint_early_stop

    model = small_model(recompute=recompute)
    planned = flops_per_token(model, 24).training
    tokens = torch.randint(50, (2, 24))
    counts = []
    for number in (1, 2, 3, 4):
        for module in model.modules():
            if isinstance(module, SelfGuidedLinear):
                module.before_update(number, 4)
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), set_checkpoint_early_stop(False), counter:
            model(tokens).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > counts[2] == counts[3]
    assert sum(counts) == 4 * planned * 2 * 24


# --- runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 7])
def test_resume_is_bitwise_on_both_sides_of_the_half(stop, text_folder, tmp_path) -> None:
    """8 updates, the guide gone before the fifth; a checkpoint after each."""
    config = config_for(text_folder, "selfguided", **{"checkpoint.every": 1, "checkpoint.keep": 8})
    run_training(config, tmp_path / "whole")
    trainer = trainer_for(config, tmp_path / "parts")
    advance = trainer._advance

    def advance_then_die(board: object) -> None:
        advance(board)
        if trainer.progress.step == stop:
            raise Killed

    trainer._advance = advance_then_die
    with pytest.raises(Killed):
        trainer.run()
    saved = load_file(tmp_path / "parts" / "checkpoints" / f"step-{stop:08d}" / "model.safetensors")
    assert any(name.endswith(".guide") for name in saved) == (stop <= 4)
    run_training(config, tmp_path / "parts")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)


def test_a_run_ends_as_a_low_rank_model_and_the_numbers_say_so(text_folder, tmp_path) -> None:
    summary = run_training(config_for(text_folder, "selfguided"), tmp_path / "guided")
    plain = run_training(config_for(text_folder, "lowrank"), tmp_path / "plain")
    final, expected = (
        load_file(tmp_path / name / "checkpoints" / "step-00000008" / "model.safetensors")
        for name in ("guided", "plain")
    )
    assert final.keys() == expected.keys()
    assert summary["params_total"] == plain["params_total"] == sum(t.numel() for t in final.values())
    assert summary["state_bytes_planned"] == summary["state_bytes_measured"] > plain["state_bytes_measured"]
    assert summary["flops_per_token"] > plain["flops_per_token"]
    state = load_file(tmp_path / "guided" / "checkpoints" / "step-00000008" / "optimizer.safetensors")
    assert not any("guide" in name for name in state)


def test_after_the_half_the_guide_has_neither_gradient_nor_state_nor_step(text_folder, tmp_path) -> None:
    trainer = trainer_for(config_for(text_folder, "selfguided"), tmp_path)
    flops, state = trainer.optimizer.step_flops(), trainer.optimizer.state_bytes()
    for _ in range(4):
        trainer.update()
    assert trainer.optimizer.state_bytes() == state == trainer.plan.state_bytes
    trainer.update()
    plain = trainer_for(config_for(text_folder, "lowrank"), tmp_path / "plain")
    assert trainer.optimizer.state_bytes() == plain.optimizer.state_bytes() < state
    assert trainer.optimizer.step_flops() == plain.optimizer.step_flops() < flops
    assert [g["role"] for g in trainer.optimizer.param_groups] == ["factors", "matrix", "other"]
    assert trainer.optimizer.param_groups[1]["params"] == []


def test_a_run_stopped_in_the_fade_is_evaluated_with_its_guide(text_folder, tmp_path) -> None:
    config = config_for(text_folder, "selfguided", **{"checkpoint.every": 3, "eval.every": 3})
    trainer = trainer_for(config, tmp_path)
    advance = trainer._advance

    def advance_then_die(board: object) -> None:
        advance(board)
        if trainer.progress.step == 3:
            raise Killed

    trainer._advance = advance_then_die
    with pytest.raises(Killed):
        trainer.run()
    during = next(line["val_loss"] for line in metrics(tmp_path) if "val_loss" in line)
    assert evaluate_run(tmp_path, "cpu", console())["val_loss"] == during
    run = load_run(tmp_path, "cpu", console())
    layer = next(m for m in run.model.modules() if isinstance(m, SelfGuidedLinear))
    assert layer.guide is not None
    assert layer.mix.tolist() == pytest.approx([guide_share(3, 4), 1 - guide_share(3, 4)])


# --- Optimizer.retain -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_retain_leaves_the_others_as_they_were(name: str) -> None:
    """Two runs, one of which never had the second matrix, move the first one alike."""

    def run(drop: bool) -> tuple[Tensor, bytes]:
        torch.manual_seed(0)
        factors = [("A", nn.Parameter(torch.randn(6, 2))), ("B", nn.Parameter(torch.randn(5, 2)))]
        other = [("w", nn.Parameter(torch.randn(4, 3))), ("b", nn.Parameter(torch.randn(3)))]
        groups = [{"params": factors, "role": "factors"}, {"params": other, "role": "other"}]
        optimizer = OPTIMIZERS[name](groups, lr=0.1)
        for t in range(4):
            if drop and t == 2:
                optimizer.retain([p for n, p in (*factors, *other) if n != "w"])
            for n, p in (*factors, *other):
                p.grad = None if n == "w" and t >= 2 else torch.full_like(p, 0.1 * (t + 1)) + p.detach()
            optimizer.step()
        file = io.BytesIO()
        torch.save({k: v for k, v in optimizer.named_state().items() if not k.startswith("w.")}, file)
        assert ("w.step" in optimizer.named_state()) != drop
        return torch.cat([p.detach().flatten() for n, p in (*factors, *other)]), file.getvalue()

    kept, dropped = run(False), run(True)
    assert torch.equal(kept[0], dropped[0])
    assert kept[1] == dropped[1]


def test_retain_does_not_tear_a_unit_apart() -> None:
    A, B = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(5, 2))
    optimizer = Spectron([{"params": [A, B], "role": "factors"}], lr=0.1)
    with pytest.raises(UsageError, match="cannot lose a part of its parameters"):
        optimizer.retain([A])
    assert optimizer.param_groups[0]["params"] == [A, B]
    optimizer.retain([])
    assert optimizer.param_groups[0]["params"] == []
    assert optimizer.state_elements() == optimizer.step_flops() == 0
    assert math.isfinite(0.0 if optimizer.step() is None else 1.0)
