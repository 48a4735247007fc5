"""What bases that follow the one before catch of a language model's gradients, beside the exact ones."""

from __future__ import annotations

import itertools
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowrise.linalg.subspace import followed, leading_left
from lowrise.model import Llama, LlamaConfig
from lowrise.optim import GaLore
from lowrise.optim.rules import projection
from lowrise.optim.rules.projection import renewed

RENEWALS, GAP = 4, 10


def gradients_of_a_language_model() -> list[list[Tensor]]:
    """Of every matrix at each renewal: other weights and another batch of real text each time."""
    torch.manual_seed(0)
    library = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join((library / f"{name}.py").read_bytes() for name in ("argparse", "ast", "typing"))
    data = torch.tensor(list(text))
    config = LlamaConfig.preset("nano", vocab_size=256, num_layers=2)
    model = Llama(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    seen = []
    for step in range((RENEWALS - 1) * GAP + 1):
        starts = torch.randint(len(data) - 65, (8,))
        windows = torch.stack([data[i : i + 65] for i in starts])
        optimizer.zero_grad()
        model(windows[:, :-1], windows[:, 1:]).backward()
        if step % GAP == 0:
            seen.append(
                [p.grad.clone() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
            )
        optimizer.step()
    return seen


def energy(P: Tensor, G: Tensor) -> float:
    return (P.mT @ G).double().square().sum().item()


def test_warm_bases_catch_what_exact_ones_do() -> None:
    seen = gradients_of_a_language_model()
    bases: list[Tensor] = []
    for renewal, gradients in enumerate(seen):
        facing = [G if G.shape[0] <= G.shape[1] else G.mT for G in gradients]
        exact = [leading_left(G, G.shape[0] // 4) for G in facing]
        stale = list(bases)
        bases = [followed(G, P) for G, P in zip(facing, bases, strict=True)] if bases else exact
        shares = [energy(P, G) / energy(E, G) for P, E, G in zip(bases, exact, facing, strict=True)]
        assert max(shares) <= 1 + 1e-5
        if renewal:
            assert min(shares) >= 0.995, "measured: 0.9995"
            old = [energy(P, G) / energy(E, G) for P, E, G in zip(stale, exact, facing, strict=True)]
            assert min(old) < 0.95, "the old basis alone would not have done"
        for P in bases:
            assert (P.mT @ P - torch.eye(P.shape[1])).abs().max() < 2e-6


def test_a_power_step_converges_to_the_leading_subspace() -> None:
    g = torch.Generator().manual_seed(1)
    U, V = (torch.linalg.qr(torch.randn(k, 30, generator=g, dtype=torch.float64)).Q for k in (40, 60))
    G = (U * 2.0 ** -torch.arange(30.0, dtype=torch.float64)) @ V.T
    P = torch.linalg.qr(torch.randn(40, 6, generator=g, dtype=torch.float64)).Q
    best = energy(leading_left(G, 6), G)
    errors = []
    for _ in range(4):
        P = followed(G, P)
        errors.append(1 - energy(P, G) / best)
    # An error of a direction shrinks by (sigma_7 / sigma_6)^2 = 1/4 a step, the energy by its square.
    assert all(after <= before / 12 for before, after in itertools.pairwise(errors[1:]))
    assert errors[-1] < 1e-7
    assert torch.equal(followed(G, P, power=2), followed(G, followed(G, P)))


def test_the_first_basis_is_exact_matrix_by_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    G = torch.randn(3, 8, 20, dtype=torch.float64)
    before = torch.linalg.qr(torch.randn(3, 8, 2, dtype=torch.float64)).Q
    mixed = renewed("warm", G, before, "left", lambda d, k: torch.zeros(()), [0, 5, 0])
    exact = renewed("svd", G, before, "left", lambda d, k: torch.zeros(()), [0, 5, 0])
    torch.testing.assert_close(mixed[[0, 2]], exact[[0, 2]])
    assert not torch.allclose(mixed[1], exact[1])
    solved: list[int] = []
    honest = projection.leading_left
    monkeypatch.setattr(projection, "leading_left", lambda G, rank: solved.append(1) or honest(G, rank))
    W = torch.nn.Parameter(torch.randn(8, 20))
    optimizer = GaLore([W], rank=2, update_proj_gap=2, projection="warm")
    for _ in range(5):
        W.grad = torch.randn(8, 20)
        optimizer.step()
    assert solved == [1], "an eigensolver at the first renewal only"
