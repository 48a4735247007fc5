"""Every method on several ranks: the same result as on one, resumed to the bit, and on another number of
ranks. A new row of the table of methods is tested by being there.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from many import float64_run, float64_updates, keep_only, on_ranks, parallel_config, train_methods
from safetensors.torch import load_file
from tiny import final_tensors, metrics, run_training

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
    # Whitening divides every singular value of the gradient by itself, the smallest ones too, which are all
    # rounding. Measured 2.5e-3.
    "swan": 2e-2,
}
# Of the movement in three float64 updates. SWAN's whitening enlarges 1e-16 to 4e-11 (see above), the others
# stay below 1e-12.
FLOAT64_BAR = {"swan": 1e-9}
every_method = pytest.mark.parametrize("method", METHODS)


class Runs:
    """The runs of all methods on one rank and on `size`."""

    def __init__(self, size: int, text: Path, folder: Path) -> None:
        self.text, self.folder = text, folder
        for method in METHODS:
            run_training(parallel_config(text, method), folder / "one" / method)
        on_ranks(size, folder / "ranks", train_methods, text, folder, list(METHODS), seconds=1500)

    def checkpoint(self, kind: str, method: str) -> Path:
        return self.folder / kind / method / "checkpoints" / "step-00000008"

    def distance(self, kind: str, method: str) -> float:
        """Of the weights from those of one rank."""
        one, other = (load_file(self.checkpoint(k, method) / "model.safetensors") for k in ("one", kind))
        assert one.keys() == other.keys()
        return max(relative(other[k], one[k]) for k in one)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-300))


@pytest.fixture(scope="module")
def runs(text_folder, tmp_path_factory) -> Runs:
    return Runs(2, text_folder, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def in_float64(text_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("float64")
    return on_ranks(2, folder / "ranks", float64_updates, text_folder, folder, list(METHODS))


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
    for key in ("tokens", "steps", "config_hash", "val_tokens", "params_total", "state_bytes_measured"):
        assert summaries[0][key] == summaries[1][key]


@every_method
def test_two_ranks_equal_one_in_float64(method, in_float64, text_folder, tmp_path):
    """Where rounding is 1e-16, what is left of it after three updates is below 1e-10 of the movement, clipped
    and accumulated: nothing but the order of sums differs."""
    bar = FLOAT64_BAR.get(method, 1e-10)
    one = float64_run(None, text_folder, tmp_path, method)
    for rank in range(2):
        many = in_float64[rank][method]
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
    run_training(parallel_config(runs.text, method), back)
    assert runs.distance("many_then_one", method) <= WIDER.get(method, BAR)
    for kind in ("one_then_many", "many_then_one"):
        steps = [line["step"] for line in metrics(runs.folder / kind / method) if "loss" in line]
        assert steps == list(range(1, 9))


def test_what_happens_in_mid_run_has_happened(runs):
    """A guide was dropped, ranks have changed: the tests above have met both."""
    guided = load_file(runs.checkpoint("many", "selfguided") / "model.safetensors")
    assert not any(name.endswith("guide") for name in guided)
    first = runs.folder / "many" / "tsvd" / "checkpoints" / "step-00000004"
    early, late = (load_file(c / "model.safetensors") for c in (first, runs.checkpoint("many", "tsvd")))
    name = "model.layers.0.mlp.up_proj.s"
    full = 16  # rank 0.25 of width 64
    assert len(late[name]) <= len(early[name]) < full


def test_each_rank_reports_its_memory_and_what_it_sent(runs):
    for line in metrics(runs.folder / "many" / "spectron"):
        if "loss" not in line:
            continue
        weights = load_file(runs.checkpoint("many", "spectron") / "model.safetensors")
        assert line["communicated_bytes"] == 4 * sum(t.numel() for t in weights.values())
        assert len(line["peak_memory_bytes"]) == 2
        assert all(value > 0 for value in line["peak_memory_bytes"])
        assert line["communication_wait_ms"] >= 0
    environment = json.loads((runs.folder / "many" / "spectron" / "environment.json").read_text())
    assert environment["ranks"] == 2


@pytest.mark.slow
def test_four_ranks(text_folder, tmp_path):
    """From three ranks on the order of a sum depends on where in a bucket an element lies, so this finds a
    bucket layout that a restart would change."""
    runs = Runs(4, text_folder, tmp_path)
    for method in METHODS:
        assert runs.distance("many", method) <= WIDER.get(method, BAR), method
        assert runs.distance("one_then_many", method) <= WIDER.get(method, BAR), method
        whole, killed = (final_tensors(runs.folder / kind / method, 8) for kind in ("many", "killed"))
        assert whole == killed, method
