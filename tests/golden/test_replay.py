"""The golden fixtures, replayed through the public optimizers in both dtypes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    path = Path(__file__).with_name("replay.py")
    spec = importlib.util.spec_from_file_location("golden_replay", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "method",
    [
        "apollo",
        "cola",
        "dlr",
        "fira",
        "galore",
        "gwt",
        "hyperball",
        "loramuon",
        "loro",
        "muon",
        "normuon",
        "relora",
        "sinkgd",
        "sinkgd_spectral",
        "spectron",
        "stablespam",
        "swan",
        "tsvd",
    ],
)
def test_fixture_is_reproduced(
    replay: ModuleType, shared: Path, capsys: pytest.CaptureFixture[str], method: str, dtype: str
) -> None:
    file = shared / "fixtures" / f"{method}_small.npz"
    code = replay.main([method, str(file), "--dtype", dtype])
    printed = capsys.readouterr().out
    assert code == 0, printed
    least = 6 if method == "sinkgd_spectral" else 10  # its file has three groups
    assert printed.count(" ok") >= least, "nearly nothing was compared"


@pytest.mark.parametrize("key", ["pub_A", "pub_rho", "pub_uB", "exact_sigmaA", "exact_dW_norm"])
def test_a_wrong_number_fails(
    replay: ModuleType, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    with np.load(shared / "fixtures" / "spectron_small.npz") as archive:
        data = {name: archive[name] for name in archive.files}
    data[key] = data[key] * (1 + 1e-6)  # far above the float64 bar of 1e-10, far below what one would see
    np.savez(tmp_path / "wrong.npz", **data)
    assert replay.main(["spectron", str(tmp_path / "wrong.npz")]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_dion_is_listed_and_not_claimed(
    replay: ModuleType, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay.main(["muon", str(shared / "fixtures" / "muon_small.npz")])
    lines = [line for line in capsys.readouterr().out.splitlines() if "dion" in line]
    assert lines
    assert all(line.endswith("not covered") for line in lines)


def test_requests_that_cannot_be_right_get_a_sentence(
    replay: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "empty.npz", nothing=np.zeros(1))
    (tmp_path / "text.npz").write_text("no archive")
    for arguments in (
        ["sgd", "x.npz"],
        ["muon", str(tmp_path / "absent.npz")],
        ["muon", str(tmp_path / "empty.npz")],
        ["spectron", str(tmp_path / "text.npz")],
    ):
        assert replay.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "method",
    [
        "cola",
        "galore",
        "gwt",
        "loramuon",
        "loro",
        "muon",
        "normuon",
        "relora",
        "sinkgd",
        "sinkgd_spectral",
        "stablespam",
        "swan",
        "tsvd",
    ],
)
def test_a_case_without_its_numbers_is_one_line_and_the_others_go_on(
    replay: ModuleType, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    with np.load(shared / "fixtures" / f"{method}_small.npz") as archive:
        data = {name: archive[name] for name in archive.files}
    first = next(
        k for k in data if "/" in k and k.rsplit("/", 1)[1] in ("G", "a", "G_A", "lr", "W0", "A0", "G0")
    )
    del data[first]
    np.savez(tmp_path / "part.npz", **data)
    assert replay.main([method, str(tmp_path / "part.npz")]) == 0
    printed = capsys.readouterr().out
    assert "refused: the file lacks" in printed
    assert printed.count(" ok") >= 5


def test_a_file_of_which_nothing_is_covered_fails(
    replay: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "none.npz", index=np.array('{"cases": [], "dion": [{"name": "x"}]}'))
    assert replay.main(["muon", str(tmp_path / "none.npz")]) == 1
    assert "nothing" in capsys.readouterr().out
