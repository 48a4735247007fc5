"""Stable-SPAM: a plain version with every option, limits, and resets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowrise.config import load
from lowrise.errors import UsageError
from lowrise.model import LlamaConfig, build_model
from lowrise.optim import AdamW, StableSPAM
from lowrise.optim.stablespam import cosine_factor, counter, smoothed
from lowrise.runs.build import build_optimizer

F64 = torch.float64


def spiky(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    """Gradients with large entries and large norms here and there, and one of zero."""
    g = torch.Generator().manual_seed(3)
    grads = [torch.randn(shape, generator=g, dtype=F64) for _ in range(steps)]
    for t, G in enumerate(grads):
        G.mul_(20.0 if t % 7 == 4 else 1.0)
        G.view(-1)[0] *= 50.0 if t % 5 == 3 else 1.0
        if t == 6:
            G.zero_()
    return grads


def moved(optimizer: StableSPAM, weight: nn.Parameter, grads: list[Tensor]) -> Tensor:
    seen = []
    for G in grads:
        weight.grad = G.clone()
        optimizer.step()
        seen.append(weight.detach().clone())
    return torch.stack(seen)


def plain(start: Tensor, grads: list[Tensor], *, lr: float, wd: float, every: int, counter: str, when: str,
          total: int) -> np.ndarray:  # fmt: skip
    """The algorithm as the class's docstring has it, the counters kept as the released code keeps them."""
    W, (b1, b2, g1, g2, theta, eps) = start.numpy().copy(), (0.9, 0.999, 0.7, 0.9, 0.999, 1e-8)
    m, v = np.zeros_like(W), np.zeros_like(W)
    a = p = s = 0.0
    step, seen = 0, []
    for t, G in enumerate((g.numpy() for g in grads), 1):
        c = 0.5 + 0.5 * (1 + math.cos(math.pi * t / (total + 1))) / 2 if total else 1.0
        step += 1
        k = step if counter == "shared" else t
        W = W * (1 - lr * wd)
        largest = np.abs(G).max()
        a = theta * a + (1 - theta) * largest
        limit = a / (1 - theta**k)
        G = np.where(np.abs(G) > limit, np.sign(G) * np.abs(G) / (largest or 1.0) * limit, G)
        q = np.linalg.norm(G)
        p = g1 * c * p + (1 - g1 * c) * q
        s = g2 * s + (1 - g2) * q * q
        if q > 0:
            G = G / q * (p / (1 - (g1 * c) ** k)) / (math.sqrt(s / (1 - g2**k)) + eps)
        resets = every > 0 and t % every == 0
        if resets:
            step = 1
            if when == "before":
                m, v = np.zeros_like(W), np.zeros_like(W)
        m = b1 * c * m + (1 - b1 * c) * G
        v = b2 * v + (1 - b2) * G * G
        W = W - lr / (1 - (b1 * c) ** step) * m / (np.sqrt(v) / math.sqrt(1 - b2**step) + eps)
        if resets and when == "after":
            m, v = np.zeros_like(W), np.zeros_like(W)
        seen.append(W)
    return np.stack(seen)


@pytest.mark.parametrize("every", [0, 4])
@pytest.mark.parametrize("counter", ["shared", "separate"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("total", [0, 16])
def test_the_plain_algorithm(every, counter, when, total) -> None:
    grads = spiky((5, 7), 16)
    weight = nn.Parameter(torch.randn(5, 7, dtype=F64, generator=torch.Generator().manual_seed(1)))
    start = weight.detach().clone()
    optimizer = StableSPAM(
        [weight], lr=0.03, weight_decay=0.2,
        reset_every=every, reset_counter=counter, reset_moments=when, total_steps=total,
    )  # fmt: skip
    expected = plain(start, grads, lr=0.03, wd=0.2, every=every, counter=counter, when=when, total=total)
    torch.testing.assert_close(
        moved(optimizer, weight, grads), torch.from_numpy(expected), rtol=0, atol=1e-12
    )


def test_tensors_of_one_shape_keep_their_own_statistics() -> None:
    """Stacked in one call, moved as if alone; of any number of dimensions."""
    shapes = [(4, 3), (4, 3), (4, 3), (7,), ()]
    together, alone = ([nn.Parameter(torch.ones(s, dtype=F64)) for s in shapes] for _ in range(2))
    group = {"role": "other"}
    optimizers = [StableSPAM([{"params": together, **group}], reset_every=3)]
    optimizers += [StableSPAM([{"params": [p], **group}], reset_every=3) for p in alone]
    for t in range(6):
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            if (t + i) % 4:  # counters of their own
                p.grad = torch.randn_like(p) * 10.0**i
                q.grad = p.grad.clone()
            else:
                p.grad = q.grad = None
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=0)


def test_without_memory_it_is_adamw_on_gradients_of_norm_1() -> None:
    grads = spiky((5, 7), 6)
    one, two = (nn.Parameter(torch.ones(5, 7, dtype=F64)) for _ in range(2))
    options = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1}
    spam = StableSPAM([one], gamma1=0.0, gamma2=0.0, theta=0.0, reset_every=0, **options)
    adam = AdamW([two], **options)
    for G in grads:
        one.grad, two.grad = G, G / max(G.norm().item(), 1e-300)
        spam.step()
        adam.step()
    torch.testing.assert_close(one, two, rtol=0, atol=1e-7)  # eps beside the norm


def test_updates_do_not_depend_on_the_scale_of_gradients() -> None:
    ends = []
    for factor in (1.0, 1e-3, 1e6):
        weight = nn.Parameter(torch.zeros(5, 7, dtype=F64))
        optimizer = StableSPAM([weight], eps=1e-30, reset_every=4, total_steps=12)
        ends.append(moved(optimizer, weight, [factor * G for G in spiky((5, 7), 12)]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-10, atol=1e-15)


def test_after_a_reset_nothing_is_clipped_with_a_shared_counter() -> None:
    """a stays and its correction begins again: the limit is some 500 a, and falls for hundreds of updates."""
    optimizers = {}
    for kind in ("shared", "separate"):
        weight = nn.Parameter(torch.zeros(2, 2, dtype=F64))
        optimizers[kind] = StableSPAM([weight], reset_every=1000, reset_counter=kind)
        moved(optimizers[kind], weight, [torch.ones(2, 2, dtype=F64)] * 1000)
    a = optimizers["shared"].state[weight := optimizers["shared"].param_groups[0]["params"][0]]["m_max"]
    assert a.item() == pytest.approx(1 - 0.999**1000)
    spike = torch.tensor([[[40.0, 1.0], [1.0, 1.0]]], dtype=F64)
    for k, ratio in ((2, 40.0), (1001, 1.05), (20, 34.0)):  # shared, separate, shared after 20 updates
        scalars = [a.reshape(1).clone(), *(torch.ones(1, dtype=F64) for _ in range(2))]
        (G,) = smoothed([spike], scalars, k, gammas=(0.7, 0.9), theta=0.999, eps=1e-8)
        assert (G[0, 0, 0] / G[0, 1, 1]).item() == pytest.approx(ratio, rel=0.02)


def test_counters() -> None:
    assert [counter(t, 0) for t in (1, 5, 99)] == [1, 5, 99]
    assert [counter(t, 3) for t in range(1, 9)] == [1, 2, 1, 2, 3, 1, 2, 3]
    assert cosine_factor(7, 0, 0.5) == 1.0
    assert cosine_factor(0, 10, 0.5) == 1.0
    assert cosine_factor(11, 10, 0.5) == pytest.approx(0.5)


def test_resets_are_told_to_schedules() -> None:
    optimizer = StableSPAM([nn.Parameter(torch.zeros(2, 2))], reset_every=4)
    assert optimizer.resets(12) == (4, 8)
    assert optimizer.resets(13, skipped=2) == (6, 10)
    assert StableSPAM([nn.Parameter(torch.zeros(2, 2))], reset_every=0).resets(100) == ()


def test_state_and_flops() -> None:
    optimizer = StableSPAM([nn.Parameter(torch.zeros(6, 4))])
    assert optimizer.state_elements() == 2 * 24 + 3
    assert optimizer.step_flops() == 23 * 24


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gamma1": 1.0}, "StableSPAM has gamma1 = 1.0"),
        ({"theta": -0.1}, "theta = -0.1"),
        ({"reset_every": -1}, "reset_every = -1"),
        ({"reset_every": 1}, "leaves no moments"),
        ({"total_steps": -5}, "total_steps = -5"),
        ({"eta_min": 1.5}, "eta_min = 1.5"),
        ({"reset_counter": "own"}, "reset_counter = 'own'; choose one of shared, separate"),
        ({"reset_moments": "during"}, "reset_moments = 'during'; choose one of before, after"),
    ],
)
def test_options_that_cannot_be_get_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        StableSPAM([nn.Parameter(torch.zeros(4, 3))], **options)


def test_in_a_run_the_cosine_is_as_long_as_the_run() -> None:
    model = build_model(LlamaConfig.preset("nano", vocab_size=300))
    for settings, expected in (
        ({}, 70),
        ({"optimizer.total_steps": 0}, 0),
        ({"optimizer.total_steps": 9}, 9),
    ):
        config = load(None, {"method": "stablespam", "train.steps": 70, **settings})
        optimizer = build_optimizer(config, model)
        assert {group["total_steps"] for group in optimizer.param_groups} == {expected}
        longer = optimizer.timed(3, 70) != optimizer.timed(3, 90)
        assert longer == (expected == 70), "what was done would have been another update"
