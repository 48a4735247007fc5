"""The decoder for frozen weights against the plain forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from lowrise.errors import UsageError
from lowrise.inference.batch import Batch
from lowrise.inference.decoder import FrozenDecoder
from lowrise.inference.frozen import FormChooser, FrozenMap, MapGroup
from lowrise.inference.generate import generate
from lowrise.inference.sampling import Sampling
from lowrise.layers import LAYERS
from lowrise.model import Llama, LlamaConfig, build_model

VOCAB = 51
PROMPT = [3, 1, 4, 1, 5]


def build(layer: str = "lowrank", dtype: torch.dtype = torch.float32, rank: int = 8, **changes) -> Llama:
    values = {"vocab_size": VOCAB, "num_kv_heads": 1, "max_seq_len": 40, "init_std": 0.2, **changes}
    config = LlamaConfig.preset("nano", **values)
    model = build_model(config, layer=layer, rank=None if layer == "dense" else rank, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, dtype=dtype))
            elif name.endswith(".A") and not parameter.any():  # LoRA and SLTrain begin with a product of 0
                parameter.normal_(std=0.1)
    return model.eval()


@torch.no_grad()
def decoded(decoder: FrozenDecoder, model: Llama, steps: int = 8) -> float:
    """The largest difference of logits from the plain pass, along its greedy tokens."""
    cache = model.new_cache(len(PROMPT) + steps)
    state, logits = decoder.prefill([PROMPT], steps)
    expected = model(torch.tensor([PROMPT]), cache=cache)[0, -1]
    worst = 0.0
    for _ in range(steps):
        worst = max(worst, float((logits[0] - expected).abs().max() / expected.abs().max()))
        token = expected.argmax().view(1)
        logits = decoder.step(state, token)
        expected = model(token[None], cache=cache)[0, -1]
    return worst


@pytest.mark.parametrize("forms", ["auto", "stored", "merged", "measured"])
@pytest.mark.parametrize("layer", ["dense", *LAYERS])
def test_logits_are_those_of_the_plain_pass(layer: str, forms: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        model = build(layer, dtype)
        assert decoded(FrozenDecoder(model, forms=forms), model) < tolerance


@pytest.mark.parametrize(
    "changes",
    [{"num_kv_heads": 2}, {"tie_embeddings": True}, {"mlp_activation": "none"}, {"rope_theta": 500.0}],
    ids=str,
)
def test_every_shape_of_the_model(changes: dict) -> None:
    model = build("lowrank", torch.float64, **changes)
    assert decoded(FrozenDecoder(model), model) < 1e-13


def test_a_guide_that_has_a_part_in_the_output_is_not_lost() -> None:
    model = build("selfguided", torch.float64)
    for module in model.modules():
        if hasattr(module, "guide"):
            with torch.no_grad():
                module.guide.add_(torch.randn_like(module.guide) * 0.1)
            module.before_update(2, 10)
    assert decoded(FrozenDecoder(model), model) < 1e-7  # the shares of the guide are float32


def test_layers_of_different_kinds_and_ranks() -> None:
    model = build("dense", torch.float64)
    from lowrise.layers import factorize

    factorize(model, layer="lowrank", rank={"*q_proj": 5, "*v_proj": 16, "*gate_proj": 7})
    assert decoded(FrozenDecoder(model), model) < 1e-13


def test_bfloat16_is_near_the_model_in_bfloat16() -> None:
    model = build("lowrank", torch.bfloat16)
    # bfloat16 has 8 bits; two orders of rounding over two layers
    assert decoded(FrozenDecoder(model), model) < 0.05
    assert decoded(FrozenDecoder(model, rows=8), model) < 0.05  # packed where the CPU has such products
    assert FrozenDecoder(build("lowrank"), dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 20, "top_p": 0.9, "seed": 7}], ids=str)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_each_row_of_a_batch_is_its_own_generation(settings: dict, penalty: float) -> None:
    model = build("lowrank", torch.float64)
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3], [5], [8, 8]]
    stop = list(generate(model, [1], max_new_tokens=12, repetition_penalty=penalty, **settings))[4]
    sampling = Sampling(repetition_penalty=penalty, **settings)
    batch = Batch(FrozenDecoder(model), prompts, max_new_tokens=12, sampling=sampling, stop_token=stop)
    rows: list[list[int]] = [[] for _ in prompts]
    for step in batch:
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None else [token]
    alone = [
        list(generate(model, p, max_new_tokens=12, repetition_penalty=penalty, stop_token=stop, **settings))
        for p in prompts
    ]
    assert rows == alone
    assert batch.stopped == [len(row) < 12 for row in alone]
    assert any(batch.stopped)


def test_logits_of_padded_rows_are_those_of_single_rows() -> None:
    decoder = FrozenDecoder(build("lowrank", torch.float64))
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3]]
    state, logits = decoder.prefill(prompts, 4)
    singles = [decoder.prefill([prompt], 4) for prompt in prompts]
    for _ in range(4):
        expected = torch.cat([each for _, each in singles])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
        tokens = expected.argmax(-1)
        logits = decoder.step(state, tokens)
        singles = [(s, decoder.step(s, t.view(1))) for (s, _), t in zip(singles, tokens, strict=True)]


def test_a_row_that_the_reader_ends_stays_ended() -> None:
    batch = Batch(FrozenDecoder(build()), [[1], [2], [3]], max_new_tokens=9, sampling=Sampling(temperature=0))
    seen = []
    for number, step in enumerate(batch):
        seen.append([token is not None for token in step])
        batch.over[number % 3] = number < 2
    assert seen[:3] == [[True] * 3, [False, True, True], [False, False, True]]


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ([], 3, "prompt is empty"),
        ([VOCAB], 3, "token 51, but"),
        ([-1], 3, "token -1, but"),
        ([1], 40, "max_seq_len 40"),
    ],
)
def test_a_prompt_that_does_not_fit_is_a_message_at_once(prompt: list, tokens: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Batch(FrozenDecoder(build()), [[1], prompt], max_new_tokens=tokens, sampling=Sampling())


def test_a_full_state_and_an_unknown_map_are_messages() -> None:
    model = build()
    decoder = FrozenDecoder(model)
    state, _ = decoder.prefill([[1, 2]], 1)
    decoder.step(state, torch.tensor([1]))
    with pytest.raises(UsageError, match="holds 3 tokens and is full"):
        decoder.step(state, torch.tensor([1]))
    with pytest.raises(UsageError, match=r"did you mean 'merged'\?"):
        FrozenDecoder(model, forms="merge")  # type: ignore[arg-type]
    model.model.layers[0].mlp.up_proj = nn.Identity()
    with pytest.raises(UsageError, match=r"layers.0.mlp.up_proj is a Identity"):
        FrozenDecoder(model)


def maps(rank: int, m: int = 40, n: int = 30) -> MapGroup:
    return MapGroup([FrozenMap(torch.randn(rank, n), torch.randn(m, rank)) for _ in range(2)])


def test_choices_are_told_place_after_place_and_once_a_kind() -> None:
    chooser = FormChooser("auto", 1, ready=list)
    for place, rank in (("o", 3), ("down", 3), ("o", 4), ("down", 3), ("o", 3)):
        chooser(place, maps(rank), lambda most: [])
    kinds = [(c.maps, c.stored_elements // 140, c.layers) for c in chooser.choices]
    assert kinds == [("o", 3, 2), ("o", 4, 1), ("down", 3, 2)]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_released_model_gives_its_blocks_up_one_after_another(
    native: bool, dtype: torch.dtype, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("lowrank", tie_embeddings=tied)
    prompt, twin = [[3, 1, 4]], build("lowrank", tie_embeddings=tied)
    twin.load_state_dict(model.state_dict())

    def texts(decoder: FrozenDecoder) -> list[list[int | None]]:
        return list(Batch(decoder, prompt, max_new_tokens=9, sampling=Sampling(temperature=0)))

    left: list[int] = []
    arranged = FrozenDecoder._arranged

    def counted(self: FrozenDecoder, groups: Sequence[MapGroup]) -> list[MapGroup]:
        left.append(sum(not p.is_meta for p in model.parameters()))
        return arranged(self, groups)

    expected = texts(FrozenDecoder(twin, dtype=dtype, native=native))
    monkeypatch.setattr(FrozenDecoder, "_arranged", counted)
    decoder = FrozenDecoder(model, dtype=dtype, native=native, release=True)
    outside = 2 if tied else 3  # embedding, last norm, head
    each = len(list(twin.model.layers[0].parameters()))
    assert left == [outside + 2 * each, outside + each, outside]
    assert all(p.is_meta for p in model.parameters())
    assert texts(decoder) == expected


@pytest.mark.parametrize(("rank", "used"), [(17, "stored"), (18, "merged")])
def test_auto_takes_the_form_of_fewer_elements(rank: int, used: str) -> None:
    # 40 * 30 / (40 + 30) is 17.1
    chooser = FormChooser("auto", 1, ready=list)
    groups = [chooser("gate, up", maps(rank), lambda most: []) for _ in range(2)]
    (choice,) = chooser.choices
    assert (choice.used, choice.layers) == (used, 2)
    assert all((g.elements == 2 * 1200) == (used == "merged") for g in groups)
    assert choice.stored_us is None


def test_measured_takes_the_faster_form_and_tells_both_times() -> None:
    # 16 times the elements: no machine is so busy that their median is mistaken
    large = [MapGroup([FrozenMap(torch.randn(32, 1024), torch.randn(1024, 32))])]
    chooser = FormChooser("measured", 1, ready=list)
    assert chooser("o", large[0], lambda most: large) is large[0]
    (choice,) = chooser.choices
    assert choice.used == "stored"
    assert choice.stored_us is not None
    assert choice.merged_us is not None
    assert 0 < choice.stored_us < choice.merged_us


def test_bytes_of_a_step_are_those_of_its_weights() -> None:
    model = build("lowrank")
    maps_and_head = sum(p.numel() for name, p in model.named_parameters() if "norm" not in name)
    embedding = model.model.embed_tokens.weight.numel()
    assert FrozenDecoder(model, forms="stored").weight_bytes_per_token == 4 * (maps_and_head - embedding)
