"""Moments in bfloat16 and 8 bits: the rounding, its draws, what is compressed, and what is refused."""

from __future__ import annotations

import builtins
import math

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.optim import OPTIMIZERS, AdamW, Muon, Optimizer, ReLoRAAdamW
from lowrise.optim.engine import state_formats as F
from lowrise.optim.engine.cost import option_defaults
from lowrise.optim.engine.exchange import Exchange, exchange

COMPACT = ["bfloat16", "8bit"]
SHAPE = (64, 80)  # 5120 elements: 20 blocks


def lanes_for(size: int, key: int) -> Tensor:
    return F.lanes_of_(torch.arange(key, key + size // 4))


def built(build: type[Optimizer], state_format: str, *params: nn.Parameter, **options: object) -> Optimizer:
    group = {"params": list(params), "role": "matrix", "state_format": state_format}
    return build([group], **options)  # type: ignore[call-arg]


def moments(optimizer: Optimizer, param: Tensor) -> dict[str, Tensor]:
    return F.loaded(optimizer.state[param])


def decode(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The plain reference."""
    values = F.value_map(signed, codes.device)[codes.long()]
    return values * scales.repeat_interleave(F.BLOCK)[: len(values)]


# ---- draws


def finalizer(x: int) -> int:
    """That of SplitMix64, in whole numbers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


@pytest.mark.parametrize("key", [0, 12345, -(1 << 61), F.draw_key("0/3", "exp_avg", 7)])
def test_draws_are_the_hash_in_whole_numbers(key: int) -> None:
    words = [finalizer((key + i) % 2**64) for i in range(50)]
    expected = [word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    assert lanes_for(200, key).tolist() == expected


def test_draws_are_uniform_and_do_not_repeat_over_elements_and_steps() -> None:
    n = 1 << 20
    first, second = (lanes_for(n, F.draw_key("0/0", "exp_avg", t)).double() for t in (1, 2))
    other = lanes_for(n, F.draw_key("0/1", "exp_avg", 1)).double()
    # Standard error of a mean of n uniform numbers of [0, 65536); five of them.
    assert abs(first.mean() - 32767.5) < 5 * 65536 / math.sqrt(12 * n)
    for a, b in ((first[1:], first[:-1]), (first[4:], first[:-4]), (first, second), (first, other)):
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(n)  # five standard errors of an empirical correlation of 0


# ---- rounding


@pytest.mark.parametrize("x", [0.3, -0.3, 1.0 + 2.0**-20, -7.9e-30, 3.2e30])
def test_bfloat16_rounds_to_a_neighbour_and_its_mean_is_the_number(x: float) -> None:
    n = 1 << 20
    values = torch.full((n,), x)
    rounded = F.to_bfloat16(values, lanes_for(n, 5)).float()
    low, high = rounded.min(), rounded.max()
    assert low <= values[0] <= high
    assert high - low <= 2.0**-7 * abs(x), "two neighbours"
    # Each draw is at most (high - low) / 2 from the mean in standard deviation; five standard errors.
    assert abs(rounded.double().mean() - values[0].double()) <= 5 * float(high - low) / 2 / math.sqrt(n)


def test_bfloat16_keeps_what_it_can_hold() -> None:
    exact = torch.tensor([0.0, -0.0, 1.5, -(2.0**-126), math.inf, -math.inf, 2.0**-133, 3.3895e38, 1.0])
    exact = exact.bfloat16().float().repeat(4)[:36]
    for key in range(20):
        assert torch.equal(F.to_bfloat16(exact, lanes_for(36, key)).float(), exact)
    assert F.to_bfloat16(torch.full((4,), math.nan), lanes_for(4, 0)).isnan().all()


@pytest.mark.parametrize("signed", [True, False])
def test_8_bits_round_to_a_neighbour_of_the_map(signed: bool) -> None:
    theirs = pytest.importorskip("torchao.optim.quant_utils")
    torch.manual_seed(0)
    x = torch.randn(40 * F.BLOCK) * torch.logspace(-6, 2, 40).repeat_interleave(F.BLOCK)
    x = x if signed else x.square()
    codes, scales = F.to_8bit(x, lanes_for(len(x), 3), signed=signed)
    assert codes.dtype == torch.uint8
    table = F.value_map(signed, x.device)
    assert (table.diff() > 0).all()
    scaled = x / scales.repeat_interleave(F.BLOCK)
    below, above = (table[(codes.long() + step).clamp(0, 255)] for step in (-1, 1))
    assert ((below <= scaled) & (scaled <= above) | (codes == 0) & (scaled < table[1])).all()
    torchaos_scaled, torchaos_scales = theirs.scale_tensor(x, F.BLOCK)
    assert torch.equal(scales, torchaos_scales)
    nearest = theirs.quantize_8bit_with_qmap(torchaos_scaled, table)
    assert (nearest.int() - codes.int()).abs().max() == 1, "the nearest, or the neighbour on the other side"


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_found_as_by_bisection(signed: bool) -> None:
    table = F.value_map(signed, torch.device("cpu"))
    edges = torch.cat([table, -table, torch.tensor([0.0, -0.0, 1.0, -1.0])])
    near = [torch.nextafter(edges, torch.full_like(edges, end)) for end in (-2.0, 2.0)]
    x = torch.cat([edges, *near, torch.rand(100_000) * 2 - 1, torch.logspace(-12, 0, 100_000)]).clamp(-1, 1)
    expected = (torch.bucketize(x, table, right=True) - 1).clamp(0, 254)
    assert torch.equal(F.codes_below(x, signed=signed).long(), expected)


@pytest.mark.parametrize(("signed", "x"), [(True, 0.3), (True, -0.0123), (False, 0.3), (False, 2e-5)])
def test_8_bits_have_the_number_as_their_mean(signed: bool, x: float) -> None:
    n = 1 << 18
    values = torch.full((n // F.BLOCK, F.BLOCK), x)
    values[:, 0] = 1.0  # the scale
    codes, scales = F.to_8bit(values.flatten(), lanes_for(n, 9), signed=signed)
    rounded = decode(codes, scales, signed=signed).view_as(values)[:, 1:].double()
    spread = float(rounded.max() - rounded.min())
    assert spread > 0
    # As above; and the draws have 16 bits, so a probability is right to 2^-17 of the distance.
    bound = 5 * spread / 2 / math.sqrt(rounded.numel()) + spread * 2.0**-17
    assert abs(rounded.mean() - float(values[0, 1])) <= bound


def test_a_second_moment_above_zero_is_never_stored_as_zero() -> None:
    values = torch.full((F.BLOCK,), 1e-9)
    values[0], values[1] = 1.0, 0.0
    for key in range(50):
        codes, _ = F.to_8bit(values, lanes_for(F.BLOCK, key), signed=False)
        assert codes[1] == 0
        assert (codes[2:] == 1).all(), "at 1e-9 of the scale nearly all draws would give 0"


def test_weights_survive_rare_gradients_beside_large_ones() -> None:
    """Rows of an embedding: after a small gradient, none for a while. With a second moment of 0 the step
    would be lr m / eps."""
    p = nn.Parameter(torch.zeros(16, 256))
    optimizer = AdamW([{"params": [p], "role": "other", "state_format": "8bit"}], lr=0.01)
    for t in range(20):
        p.grad = torch.zeros_like(p)
        p.grad[:, 0] = 1.0
        if t == 0:
            p.grad[:, 1:] = 1e-4
        optimizer.step()
    # Adam moves a weight by at most lr times a number of order one a step.
    assert p.detach().abs().max() < 20 * 0.01 * 4


@pytest.mark.parametrize("state_format", COMPACT)
def test_zeros_are_zeros(state_format: str) -> None:
    p = nn.Parameter(torch.zeros(SHAPE))
    optimizer = built(AdamW, state_format, p)
    assert not any(moments(optimizer, p)[k].any() for k in ("exp_avg", "exp_avg_sq"))
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not any(moments(optimizer, p)[k].any() for k in ("exp_avg", "exp_avg_sq"))


# ---- what rounding to the nearest would do


def second_moments_after_a_drop(state_format: str) -> tuple[float, float]:
    """Mean root of v, b2 = 0.999, 1,000 steps after v = 1 where gradients are N(0, 0.01) from then on: in
    blocks where all are, and in blocks where every second one is N(0, 1).
    """
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(16, F.BLOCK))  # a row is a block
    optimizer = built(AdamW, state_format, p, lr=0.0, betas=(0.9, 0.999))
    p.grad = torch.full_like(p, math.sqrt(1000.0))
    optimizer.step()
    size = torch.full_like(p, 0.1)
    size[8:, ::2] = 1.0
    for _ in range(1000):
        p.grad = torch.randn_like(p) * size
        optimizer.step()
    root = moments(optimizer, p)["exp_avg_sq"].sqrt()
    return float(root[:8].mean()), float(root[8:, 1::2].mean())


def test_second_moments_do_not_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """galore.md, section 2: rounded to the nearest, a second moment in bfloat16 stays where it was. 8 bits to
    the nearest stay behind where only a part of a block falls, since the scale does not fall then.
    """
    exact = second_moments_after_a_drop("float32")
    expected = math.sqrt(0.01 + 0.99 * math.exp(-1.0))
    assert exact == pytest.approx((expected, expected), rel=0.01)  # 0.001 of noise in v
    for state_format in COMPACT:
        # The root bends noise down: by 1/8 of its relative variance, some tenths of a percent.
        assert second_moments_after_a_drop(state_format) == pytest.approx(exact, rel=0.02)
    half = torch.tensor(0x8000, dtype=torch.int32)
    monkeypatch.setattr(F, "lanes_of_", lambda words: half.expand(4 * len(words)))
    assert min(second_moments_after_a_drop("bfloat16")) > 0.95
    assert second_moments_after_a_drop("8bit")[1] > 0.7, "the scale stays"


# ---- what is compressed


def test_only_moments_of_4096_elements_and_more() -> None:
    large, small = nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.zeros(64, 63))
    optimizer = built(AdamW, "8bit", large, small)
    assert {k: (t.dtype, tuple(t.shape)) for k, t in optimizer.state[large].items()} == {
        "step": (torch.float32, ()),
        "exp_avg_codes": (torch.uint8, (64, 64)),
        "exp_avg_scales": (torch.float32, (16,)),
        "exp_avg_sq_codes": (torch.uint8, (64, 64)),
        "exp_avg_sq_scales": (torch.float32, (16,)),
    }
    assert {t.dtype for t in optimizer.state[small].values()} == {torch.float32}
    optimizer = built(Muon, "bfloat16", large)
    assert optimizer.state[large]["momentum"].dtype == torch.bfloat16


@pytest.mark.parametrize("state_format", COMPACT)
@pytest.mark.parametrize("shape", [(64, 80), (61, 71)])  # 4331 elements: the last block has 235
def test_one_step_from_zero_is_the_step_of_float32(state_format: str, shape: tuple[int, int]) -> None:
    """What is rounded is the state, after the update."""
    torch.manual_seed(1)
    start, grad = torch.randn(shape), torch.randn(shape)
    ends, states = [], []
    for name in ("float32", state_format):
        p = nn.Parameter(start.clone())
        optimizer = built(AdamW, name, p, lr=0.1)
        p.grad = grad
        optimizer.step()
        ends.append(p.detach())
        states.append(moments(optimizer, p))
    assert torch.equal(*ends)
    assert grad.abs().max() < 5  # so m < 0.1 * 5 and v < 0.05 * 25
    for name, largest in (("exp_avg", 0.5), ("exp_avg_sq", 1.25)):
        # Two neighbours: 2^-7 of a power of two apart in bfloat16, 0.9 / 64 of the largest in 8 bits.
        bound = (
            2.0 ** (math.ceil(math.log2(largest)) - 8) if state_format == "bfloat16" else 0.9 / 64 * largest
        )
        assert (states[0][name] - states[1][name]).abs().max() <= bound


@pytest.mark.parametrize("state_format", COMPACT)
def test_chunks_do_not_change_the_result(state_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for open_elements, round_elements in ((1 << 24, 1 << 22), (1, 3 * F.BLOCK), (11_000, 16 * F.BLOCK)):
        monkeypatch.setattr("lowrise.optim.engine.step.OPEN_ELEMENTS", open_elements)
        monkeypatch.setattr(F, "ROUND_ELEMENTS_CPU", round_elements)
        torch.manual_seed(2)
        params = [nn.Parameter(torch.randn(64 + i, 71)) for i in range(5)]
        optimizer = built(AdamW, state_format, *params)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        tensors = [*params, *(t for p in params for t in optimizer.state[p].values())]
        results.append([t.detach().clone() for t in tensors])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("state_format", COMPACT)
def test_few_moments_are_open_at_once(state_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrise.optim.engine.step.OPEN_ELEMENTS", 3 * 2 * 5120)
    params = [nn.Parameter(torch.zeros(SHAPE)) for _ in range(7)]
    optimizer = built(AdamW, state_format, *params)
    seen = []
    update = AdamW._update
    monkeypatch.setattr(AdamW, "_update", lambda o, g, units: (seen.append(len(units)), update(o, g, units)))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert seen == [3, 3, 1]


@pytest.mark.parametrize("state_format", COMPACT)
def test_equal_parameters_round_differently(state_format: str) -> None:
    torch.manual_seed(3)
    grad = torch.randn(SHAPE)
    params = [nn.Parameter(torch.zeros(SHAPE)) for _ in range(2)]
    optimizer = built(AdamW, state_format, *params)
    for p in params:
        p.grad = grad
    optimizer.step()
    first, second = (moments(optimizer, p)["exp_avg"] for p in params)
    assert not torch.equal(first, second)


def test_draws_leave_torchs_generator_alone() -> None:
    p = nn.Parameter(torch.zeros(SHAPE))
    optimizer = built(AdamW, "bfloat16", p)
    p.grad = torch.randn(SHAPE)
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


# ---- training


@pytest.mark.parametrize("build", [AdamW, Muon])
def test_a_regression_ends_near_the_loss_of_float32(build: type[Optimizer]) -> None:
    """250 steps on y = W x + noise of variance 1, at a constant rate: what stays is noise of the steps."""
    excess = {}
    for state_format in F.STATE_FORMATS:
        torch.manual_seed(4)
        target = torch.randn(64, 80) / 9
        W = nn.Parameter(torch.zeros(64, 80))
        optimizer = built(build, state_format, W, lr=3e-3)
        for _ in range(250):
            x = torch.randn(128, 80)
            y = x @ target.T + torch.randn(128, 64)
            (x @ W.T - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        excess[state_format] = float((W.detach() - target).square().sum(1).mean())
    assert excess["float32"] < 0.2, "the target's own size is 1"
    for state_format in COMPACT:
        # Roundings average out over some 20 steps; 10% is several times what was measured.
        assert excess[state_format] == pytest.approx(excess["float32"], rel=0.1)


# ---- resets, exchanges


@pytest.mark.parametrize("state_format", COMPACT)
@pytest.mark.parametrize("reset", ["zero", "joint", "magnitude"])
def test_resets_reach_compressed_moments(state_format: str, reset: str) -> None:
    A, B = (nn.Parameter(torch.randn(k, 64)) for k in (80, 96))
    group = {"params": [A, B], "role": "factors", "state_format": state_format}
    optimizer = ReLoRAAdamW([group], reset_every=1, reset=reset, prune=0.5)
    A.grad, B.grad = torch.randn_like(A), torch.randn_like(B)
    optimizer.step()
    optimizer.after_update(1, 10)
    for p in (A, B):
        zeros = float((moments(optimizer, p)["exp_avg"] == 0).float().mean())
        assert zeros == 1.0 if reset == "zero" else 0.45 < zeros < 0.6  # equal codes at the quantile


@pytest.mark.parametrize("state_format", COMPACT)
def test_exchanged_parameters_take_their_moments_along(state_format: str) -> None:
    """From 80 columns to 70 (still compressed) and to 40 (too small for it)."""
    old = nn.Parameter(torch.randn(SHAPE))
    optimizer = built(AdamW, state_format, old)
    old.grad = torch.randn(SHAPE)
    optimizer.step()
    before = moments(optimizer, old)
    for columns in (70, 40):
        new = nn.Parameter(old.detach()[:, :columns].clone())
        exchange(optimizer, [Exchange(old, new, lambda name, t, keep=columns: t[:, :keep])])
        after = moments(optimizer, new)
        assert after["step"] == 1
        for name in ("exp_avg", "exp_avg_sq"):
            kept = before[name][:, :columns]
            # What bfloat16 holds it keeps; 8 bits have new blocks: a neighbour, as above.
            bound = 0.0 if state_format == "bfloat16" else 0.9 / 64 * float(kept.abs().max())
            assert (after[name] - kept).abs().max() <= bound
        old, before = new, after
    assert optimizer.state[old]["exp_avg"].dtype == torch.float32


# ---- refusals


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: built(AdamW, "fp8", nn.Parameter(torch.zeros(4, 4))),
            "state_format = 'fp8'; choose one of float32",
        ),
        (
            lambda: built(AdamW, "bfloat16", nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))),
            "float64 parameters",
        ),
    ],
)
def test_impossible_formats_get_a_sentence(build, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build()


def test_8_bits_without_torchao_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.split(".")[0] == "torchao":
            raise ImportError(name)
        return load(name, *rest, **more)  # type: ignore[arg-type]

    F._torchao.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"needs torchao.*lowrise\[lowbit\].*bfloat16"):
        built(AdamW, "8bit", nn.Parameter(torch.zeros(4, 4)))
    built(AdamW, "bfloat16", nn.Parameter(torch.zeros(4, 4)))


def test_a_state_of_another_format_is_refused() -> None:
    """Rounding it on the way would make a resumed run another run, silently."""

    def of(state_format: str) -> Optimizer:
        p = ("w", nn.Parameter(torch.zeros(SHAPE)))
        return AdamW([{"params": [p], "role": "matrix", "state_format": state_format}])

    for saved in F.STATE_FORMATS:
        for own in F.STATE_FORMATS:
            if saved == own:
                continue
            with pytest.raises(UsageError, match=f"state_format {saved!r} and is {own!r} here"):
                of(own).load_state_dict(of(saved).state_dict())
            with pytest.raises(UsageError, match=r"w\.exp_avg.* is missing|w\.exp_avg has dtype"):
                of(own).load_named_state(of(saved).named_state())


def test_states_saved_before_there_were_formats_are_float32() -> None:
    p = nn.Parameter(torch.ones(SHAPE))
    saved = built(AdamW, "float32", p).state_dict()
    for key in ("state_format", "view"):
        del saved["param_groups"][0][key]
    optimizer = built(AdamW, "float32", p)
    optimizer.load_state_dict(saved)
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(UsageError, match="'float32' and is '8bit'"):
        built(AdamW, "8bit", p).load_state_dict(saved)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_every_optimizer_are_known(name: str) -> None:
    """A state as large as its matrix is a moment: a new name for one needs its line in MOMENTS."""
    cls = OPTIMIZERS[name]
    shapes = {"factors": ((24, 6), (18, 6)), "svd": ((24, 6), (6,), (18, 6))}
    for role in cls.roles:
        unit = shapes.get(role, ((24, 18),))
        for shape, layout in zip(unit, cls._state_layout(role, unit, option_defaults(cls)), strict=True):
            if len(shape) == 2:
                assert {key for key, stored in layout.items() if stored == shape} <= F.MOMENTS.keys()
