"""Several samples in a row: none sees another, and each has the loss that it has by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrise.errors import UsageError
from lowrise.model import Llama, LlamaConfig, build_model, next_token_loss
from lowrise.model.llama import packed_mask, packed_positions

NUMBERS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, 3], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
PLACES = [(0, 0, 4), (0, 4, 7), (0, 7, 9), (0, 9, 10), (1, 0, 10)]


def model_of(**options: object) -> Llama:
    torch.manual_seed(0)
    values = {"vocab_size": 64, "num_kv_heads": 1} | options
    return Llama(LlamaConfig.preset("nano", **values)).double()


def test_positions_begin_anew_and_attention_stays_within() -> None:
    assert packed_positions(NUMBERS)[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 0]
    assert packed_positions(NUMBERS)[1].tolist() == list(range(10))
    mask = packed_mask(NUMBERS)
    assert mask.shape == (2, 1, 10, 10)
    assert mask[0, 0, 6].nonzero().flatten().tolist() == [4, 5, 6]
    assert torch.equal(mask[1, 0], torch.ones(10, 10, dtype=torch.bool).tril())


def test_a_sample_has_the_logits_that_it_has_alone() -> None:
    model, tokens = model_of(), torch.randint(64, (2, 10))
    packed = model(tokens, samples=NUMBERS)
    for row, start, stop in PLACES:
        alone = model(tokens[row : row + 1, start:stop])
        # float64: products of other shapes may add in another order
        torch.testing.assert_close(packed[row, start:stop], alone[0], rtol=0, atol=1e-14)
    whole = model(tokens)
    assert (packed[0, 4:] - whole[0, 4:]).abs().max() > 1e-3, "without the numbers they see each other"


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_nothing_leaks_not_a_bit(recompute: str) -> None:
    """In passes of one shape, what stands in the other samples of the row changes nothing at all."""
    model, tokens = model_of(recompute=recompute), torch.randint(64, (2, 10))
    packed = model(tokens, samples=NUMBERS)
    for row, start, stop in PLACES:
        others = torch.randint(64, (2, 10))
        others[row, start:stop] = tokens[row, start:stop]
        assert torch.equal(model(others, samples=NUMBERS)[row, start:stop], packed[row, start:stop])


def test_no_gradient_leaks() -> None:
    model, tokens = model_of(), torch.randint(64, (1, 10))
    embedded: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda *a: embedded.append(a[2]) or a[2].retain_grad())
    targets = torch.full((1, 10), -1)
    targets[0, 4:7] = torch.randint(64, (3,))
    model(tokens, targets, samples=NUMBERS[:1]).backward()
    moved = embedded[0].grad.abs().sum(-1)[0] > 0
    assert moved.tolist() == [False] * 4 + [True] * 3 + [False] * 3


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_loss_of_a_batch_is_the_mean_over_what_counts(chunk: int | None) -> None:
    model = model_of()
    batch = torch.stack([torch.randint(64, (2, 10)), torch.randint(64, (2, 10)), NUMBERS], dim=1)
    batch[:, 1, ::3] = -1
    counted = int((batch[:, 1] >= 0).sum())
    alone = sum(
        next_token_loss(model, batch[row : row + 1, :, start:stop], reduction="sum")
        for row, start, stop in PLACES
    )
    for micro in (1, 2):  # accumulation
        total = sum(next_token_loss(model, part, reduction="sum", chunk=chunk) for part in batch.split(micro))
        torch.testing.assert_close(total / counted, alone / counted, rtol=1e-14, atol=0)
    mean = next_token_loss(model, batch, chunk=chunk)
    torch.testing.assert_close(mean, alone / counted, rtol=1e-14, atol=0)


def test_recomputing_from_latents_keeps_samples_apart() -> None:
    config = LlamaConfig.preset("nano", vocab_size=64, recompute="latents")
    model = build_model(config, layer="lowrank", rank=8, device=torch.device("cpu"), seed=0)
    tokens = torch.randint(64, (2, 10))
    packed = model(tokens, samples=NUMBERS)
    others = tokens.clone()
    others[0, :4] = torch.randint(64, (4,))
    assert torch.equal(model(others, samples=NUMBERS)[0, 4:], packed[0, 4:])


def test_another_model_is_refused() -> None:
    class Other(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens[..., None].float()

    with pytest.raises(UsageError, match=r"Other cannot keep the samples of a row apart: lowrise\.Llama can"):
        next_token_loss(Other(), torch.zeros(1, 3, 4, dtype=torch.int64))
