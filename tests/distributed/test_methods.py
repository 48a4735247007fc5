"""Every method on several ranks, which have copies of the weights or share them by rows: the same result as
on one, resumed to the bit, and on another number of ranks. A new row of the table of methods is tested by
being there.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import (
    KINDS,
    SHARED,
    float64_run,
    float64_updates,
    keep_only,
    on_ranks,
    parallel_config,
    supported,
    train_methods,
    twenty_updates,
)
from small_runs import final_tensors, metrics, run_training, saved_weights

from lowrise.methods import METHODS

# One worker: the runs of all methods are made once, and its two processes are company enough for the rest.
pytestmark = pytest.mark.xdist_group("ranks")

# Largest |W_N - W_1|_F / |W_1|_F of any parameter after eight updates in float32. Ranks add the same numbers
# in another order, so gradients differ by some 1e-7, and weights move by a small part of themselves.
BAR = 1e-5
WIDER = {
    # A factor that was zeroed at update 6 has moved twice: Adam's first updates are g / |g|, where an entry
    # of g far below the others is all rounding. Measured 1.4e-4.
    "relora": 2e-3,
    # The basis comes from the SVD of the gradient, and its rounding is enlarged by 1 / (gap of singular
    # values). Measured 1.5e-5 and 1.2e-5.
    "galore": 2e-4,
    "fira": 2e-4,
    # Details are divided by the denominator of their approximation, which is small where that is. Measured
    # 4.9e-6.
    "gwt": 5e-5,
    # Its updates are four times Muon's at this width, and so is what rounding of the iteration does. Measured
    # 1.05e-5.
    "dion2": 5e-5,
    # A whole matrix is scaled by the ratio of two norms in one random direction. Measured 1.1e-5 after twenty
    # updates.
    "apollo-mini": 5e-5,
    # Whitening divides every singular value of the gradient by itself, the smallest ones too, which are all
    # rounding. Measured 6.6e-3.
    "swan": 2e-2,
    # As with Muon and Spectron the quintic enlarges rounding in directions at 1/490 of the momentum's norm,
    # and a step is longer than Spectron's by the sum of the factors' norms and 1. Measured 1.2e-5.
    "loramuon": 5e-5,
}
# After twenty updates, in which SWAN's difference grows: at its rate of 2.5e-3 measured 6.9e-2, at 1e-3 5e-3.
WIDER_AFTER_TWENTY = {**WIDER, "swan": 0.2}
# Of the movement in three float64 updates. SWAN's whitening enlarges 1e-16 to 4e-11 (see above), the others
# stay below 1e-12.
FLOAT64_BAR = {"swan": 1e-9}
# Methods with state that a rank owns where all have copies of the weights.
OWNED = {"muon", "loramuon", "loro", "spectron", "tsvd", "galore", "fira", "apollo", "apollo-mini", "gwt"}
OWNED |= {"normuon", "dion2", "stablespam", "sinkgd-spectral", "muonh", "spectronh"}
every_method = pytest.mark.parametrize("method", METHODS)


class Runs:
    """The runs of all methods on `size` ranks, beside those on one rank in `one`."""

    def __init__(self, size: int, text: Path, one: Path, folder: Path, data: str) -> None:
        self.text, self.folder, self.data = text, folder, data
        shutil.copytree(one, folder / "one")
        on_ranks(size, folder / "ranks", train_methods, text, folder, data, list(METHODS), seconds=1500)

    def weights(self, kind: str, method: str, step: int = 8) -> dict[str, torch.Tensor]:
        return saved_weights(self.folder / kind / method, step)

    def distance(self, kind: str, method: str) -> float:
        """Of the weights from those of one rank."""
        one, other = (self.weights(k, method) for k in ("one", kind))
        assert one.keys() == other.keys()
        return max(relative(other[k], one[k]) for k in one)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-300))


@pytest.fixture(scope="module")
def one(text_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    for method in METHODS:
        run_training(parallel_config(text_folder, method), folder / method)
    return folder


@pytest.fixture(scope="module", params=KINDS[:2])
def runs(request, text_folder, one, tmp_path_factory) -> Runs:
    return Runs(2, text_folder, one, tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def one_in_float64(text_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-float64")
    return {method: float64_run(None, text_folder, folder, "ddp", method) for method in METHODS}


@pytest.fixture(scope="module")
def in_float64(text_folder, tmp_path_factory):
    """Ways to share -> results by rank: two ranks, and four as two copies of two shards."""
    folder, methods = tmp_path_factory.mktemp("float64"), list(METHODS)
    many = {}
    for size, kinds in ((2, supported("ddp", "fsdp")), (4, supported("hsdp"))):
        if not kinds:
            continue
        results = on_ranks(size, folder / str(size), float64_updates, text_folder, folder, kinds, methods)
        many |= {data: [result[data] for result in results] for data in kinds}
    return many


@every_method
def test_two_ranks_equal_one(method, runs):
    assert runs.distance("many", method) <= WIDER.get(method, BAR)
    one, many = (
        [line for line in metrics(runs.folder / kind / method) if "loss" in line] for kind in ("one", "many")
    )
    assert [line["tokens"] for line in one] == [line["tokens"] for line in many]
    # The loss depends on all weights, and WIDER is about the worst tensor. Measured for SWAN: 1.7e-5.
    loss_bar = max(1e-5, WIDER.get(method, BAR) / 100)
    for a, b in zip(one, many, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=loss_bar)
        assert b["lr"] == a["lr"]
        # The norm weighs the small entries of WIDER like the others: the same reasons, the same bars.
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=WIDER.get(method, BAR))
    summaries = [json.loads((runs.folder / k / method / "summary.json").read_text()) for k in ("one", "many")]
    assert summaries[0]["val_loss"] == pytest.approx(summaries[1]["val_loss"], rel=loss_bar)
    for key in ("tokens", "steps", "config_hash", "val_tokens", "params_total"):
        assert summaries[0][key] == summaries[1][key]
    assert summaries[1]["state_bytes_measured"] == summaries[1]["state_bytes_planned"]
    assert summaries[1]["state_bytes_measured"] <= summaries[0]["state_bytes_measured"]


@every_method
@pytest.mark.parametrize("data", KINDS)
def test_ranks_equal_one_in_float64(method, data, in_float64, one_in_float64):
    """Where rounding is 1e-16, what is left of it after three updates is below 1e-10 of the movement, clipped
    and accumulated: nothing but the order of sums differs."""
    bar = FLOAT64_BAR.get(method, 1e-10)
    one = one_in_float64[method]
    for result in in_float64[data]:
        many = result[method]
        assert many["state"] == many["planned"]
        assert many["losses"] == pytest.approx(one["losses"], rel=1e-6)  # reported in float32
        assert many["norms"] == pytest.approx(one["norms"], rel=1e-6)
        for name, end in one["end"].items():
            if not end.is_floating_point():  # seeds and supports do not move
                assert torch.equal(end, many["end"][name])
                continue
            start = one["start"][name]  # of another shape where the rank has changed
            moved = torch.linalg.vector_norm(end - start if start.shape == end.shape else end)
            assert torch.linalg.vector_norm(end - many["end"][name]) <= bar * moved, name


@every_method
def test_resume_on_the_same_number_of_ranks_is_exact(method, runs):
    whole, killed = (final_tensors(runs.folder / kind / method, 8) for kind in ("many", "killed"))
    assert whole == killed


@every_method
def test_resume_on_another_number_of_ranks(method, runs, tmp_path):
    """1 -> 2 and 2 -> 1, at half of the run."""
    assert runs.distance("one_then_many", method) <= WIDER.get(method, BAR)
    back = runs.folder / "many_then_one" / method
    shutil.copytree(runs.folder / "many" / method, back)
    keep_only(back, 4)
    run_training(parallel_config(runs.text, method, **SHARED[runs.data]), back)
    assert runs.distance("many_then_one", method) <= WIDER.get(method, BAR)
    for kind in ("one_then_many", "many_then_one"):
        steps = [line["step"] for line in metrics(runs.folder / kind / method) if "loss" in line]
        assert steps == list(range(1, 9))


def test_what_happens_in_mid_run_has_happened(runs):
    """A guide was dropped, ranks have changed: the tests above have met both."""
    guided = runs.weights("many", "selfguided")
    assert not any(name.endswith("guide") for name in guided)
    early, late = (runs.weights("many", "tsvd", step) for step in (4, 8))
    name = "model.layers.0.mlp.up_proj.s"
    full = 16  # rank 0.25 of width 64
    assert len(late[name]) <= len(early[name]) < full


@every_method
@pytest.mark.parametrize("data", KINDS)
def test_state_is_spread_over_the_ranks(method, data, in_float64, one_in_float64):
    """What is moved by rows or by owners is there once in every copy of the model; the rest is copied."""
    one = one_in_float64[method]
    copies = 2 if data == "hsdp" else 1
    ranks = [result[method] for result in in_float64[data]]
    total = sum(r["state"] for r in ranks)
    assert total >= copies * one["state"]
    if data != "ddp" and method not in ("selfguided", "tsvd"):  # those have copies of what they change
        # Norms are copies; so little that half of all state is at each rank.
        assert total <= copies * one["state"] * 1.02 + 20_000
    if data == "ddp":
        assert (total < len(ranks) * one["state"]) == (method in OWNED)


@every_method
@pytest.mark.parametrize("data", KINDS)
def test_ranks_send_what_the_formula_says(method, data, in_float64):
    ranks = [result[method] for result in in_float64[data]]
    sent = sum(r["sent"] for r in ranks) / len(ranks)
    # FSDP2 pads rows that do not come out even: SLTrain's vectors of values.
    assert sent == pytest.approx(ranks[0]["formula"], rel=1e-3 if method == "sltrain" else 1e-9, abs=2)


@every_method
@pytest.mark.parametrize("data", KINDS[:2])
def test_what_ranks_send_and_keep_is_known_before_they_are_there(method, data, in_float64):
    if method == "tsvd":
        pytest.skip("its ranks fall during the run")
    ranks = [result[method] for result in in_float64[data]]
    sent, state = ranks[0]["ahead"]
    assert sent == ranks[0]["formula"]
    assert state == max(r["planned"] for r in ranks)


def test_each_rank_reports_its_memory_and_what_it_sent(runs):
    summary = json.loads((runs.folder / "many" / "spectron" / "summary.json").read_text())
    planned = summary["communicated_bytes_planned"]
    for line in metrics(runs.folder / "many" / "spectron"):
        if "loss" not in line:
            continue
        # Rank 0's, which differs from the mean by a matrix or two that it owns more or less.
        assert line["communicated_bytes"] == pytest.approx(planned, rel=0.02)
        for key in ("peak_memory_bytes", "state_bytes"):
            assert len(line[key]) == 2
            assert all(value > 0 for value in line[key])
        assert line["communication_wait_ms"] >= 0
        assert 0 <= line["communication_share"] <= 1
    environment = json.loads((runs.folder / "many" / "spectron" / "environment.json").read_text())
    assert environment["ranks"] == 2


@pytest.mark.slow
def test_twenty_updates(text_folder, tmp_path):
    """Rounding has more updates in which to grow than in the tests above."""
    methods = list(METHODS)
    one = twenty_updates(None, text_folder, tmp_path / "one", "ddp", methods)
    worst = {}
    for data in supported("ddp", "fsdp"):
        where = tmp_path / data
        (many, _) = on_ranks(2, where / "ranks", twenty_updates, text_folder, where, data, methods)
        for method in methods:
            pairs = [(many[method][k], t) for k, t in one[method].items() if t.is_floating_point()]
            worst[method, data] = max(relative(a, b) for a, b in pairs)
    print(*(f"{method} {data}: {distance:.1e}" for (method, data), distance in worst.items()), sep="\n")
    assert not {key: d for key, d in worst.items() if d > WIDER_AFTER_TWENTY.get(key[0], BAR)}


@pytest.mark.slow
@pytest.mark.parametrize("data", KINDS[:2])
def test_four_ranks(data, text_folder, one, tmp_path):
    """From three ranks on the order of a sum depends on where in a bucket an element lies, so this finds a
    bucket layout that a restart would change."""
    runs = Runs(4, text_folder, one, tmp_path, data)
    for method in METHODS:
        back = runs.folder / "many_then_one" / method
        shutil.copytree(runs.folder / "many" / method, back)
        keep_only(back, 4)
        run_training(parallel_config(text_folder, method), back)
        assert runs.distance("many_then_one", method) <= WIDER.get(method, BAR), method
        assert runs.distance("many", method) <= WIDER.get(method, BAR), method
        assert runs.distance("one_then_many", method) <= WIDER.get(method, BAR), method
        whole, killed = (final_tensors(runs.folder / kind / method, 8) for kind in ("many", "killed"))
        assert whole == killed, method
