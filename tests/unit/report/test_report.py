"""The report of one run: complete, half finished, damaged, hostile, tiny and huge."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrise.errors import UsageError
from lowrise.report.charts import Series, chart, decimate, smooth
from lowrise.report.run_report import matrix_type, telemetry_by_type, write_report
from lowrise.report.several import write_several
from lowrise.report.ticks import log_ticks, nice_ticks, tick_label
from lowrise.runs.history import last_metrics, read_run


def write_run(path: Path, lines: list[dict[str, Any]], **summary: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "summary.json").write_text(json.dumps({"method": "spectron", "status": "completed", **summary}))
    return path


def training(count: int) -> list[dict[str, Any]]:
    return [
        {"step": s, "tokens": 64 * s, "loss": 3 + 1 / s, "lr": 0.01, "grad_norm": 1.0}
        for s in range(1, count + 1)
    ]


def svgs(page: str) -> list[ET.Element]:
    """Every drawing, parsed: what is not well-formed raises."""
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


def test_a_full_run_shows_its_figures_and_needs_no_network(tmp_path: Path) -> None:
    lines = training(20)
    lines[9]["val_loss"] = 3.2
    lines[9]["matrices"] = {
        f"model.layers.{i}.mlp.up_proj": {"weight_spectral_norm": 1.0 + i, "update_spectral_norm": 0.005}
        for i in (0, 1)
    }
    run = write_run(
        tmp_path / "r", lines, val_loss=3.1234, params_total=12_345_678, train_flops=4.56e15, sample="a <b>"
    )
    (run / "config.toml").write_text('[model]\npreset = "tiny"\n')
    (run / "environment.json").write_text(json.dumps({"torch": "2", "device": {"name": "cpu"}}))
    page = write_report(run).read_text()
    for shown in (
        "3.1234",
        "12.3 M",
        "4.56e15",
        "model tiny",
        "a &lt;b&gt;",
        "up_proj",
        "device.name",
        "64 tokens each",
    ):
        assert shown in page
    assert len(svgs(page)) == 5  # loss, learning rate, gradient norm, weight norm, update norm over rate
    assert not re.search(r"(src|href)=|url\((?!#)|@import", page)


@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_few_lines_are_enough(tmp_path: Path, count: int) -> None:
    page = write_report(write_run(tmp_path / "r", training(count))).read_text()
    svgs(page)
    assert ("No step was logged" in page) == (count == 0)


def test_many_lines_make_no_larger_page(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "r", training(100_000))).read_text()
    # at most two points a pixel, 860 pixels, five curves of some 13 characters a point, and their numbers
    assert len(page) < 2 * 860 * 5 * (14 + 16) + 40_000


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    lines = [*training(3), {"step": 4, "loss": float("nan"), "lr": 0.01}]
    page = write_report(
        write_run(tmp_path / "r", lines, status="failed", error="<script>no</script>")
    ).read_text()
    assert "This run failed. &lt;script&gt;" in page
    assert "<script>no" not in page


def test_damaged_and_missing_files_are_named_not_fatal(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", training(3))
    (run / "summary.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    (run / "config.toml").write_text("not toml <")
    page = write_report(run).read_text()
    for problem in ("summary.json is damaged", "Environment.json is missing", "1 line(s) of metrics.jsonl"):
        assert problem.lower() in page.lower()
    with pytest.raises(UsageError, match="not a run directory"):
        write_report(tmp_path)


def test_steps_repeated_after_a_resume_replace_the_lost_ones(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": 1.0} for s in (1, 2, 3)]
    lines += [{"step": 2, "loss": 5.0}, {"step": 2, "val_loss": 6.0}]
    run = read_run(write_run(tmp_path / "r", lines))
    assert run.metrics == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 5.0, "val_loss": 6.0}]
    assert last_metrics(tmp_path / "r" / "metrics.jsonl") == {"step": 2, "loss": 5.0, "val_loss": 6.0}


def test_matrices_are_grouped_by_type_and_updates_divided_by_their_rate(tmp_path: Path) -> None:
    assert matrix_type("model.layers.3.mlp.gate_proj.A") == "gate_proj"
    assert matrix_type("model.layers.11.self_attn.q_proj.weight") == "q_proj"
    matrices = {"layers.0.q": {"update_spectral_norm": 0.01}, "layers.1.q": {"update_spectral_norm": 0.03}}
    run = read_run(write_run(tmp_path / "r", [{"step": 5, "lr": 0.02, "matrices": matrices}]))
    assert telemetry_by_type(run)["update_over_lr"]["q"][5] == pytest.approx([0.5, 1.5])


def test_thinning_keeps_every_spike() -> None:
    y = np.zeros(100_000)
    y[[12_345, 77_777]] = 9.0, -9.0
    kept = decimate(np.arange(100_000.0), y, 500)
    assert len(kept) <= 1002
    assert {0, 12_345, 77_777, 99_999} <= set(kept.tolist())


def test_smoothing_has_no_lag_and_no_offset() -> None:
    line = np.arange(1000.0)
    assert smooth(line) == pytest.approx(line, abs=1e-9)  # a centred mean of a line is the line, to rounding
    assert smooth([1.0, np.nan, 3.0], 1.0).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (3.2, 3.9), (-5.0, 120.0), (0.0, 3.7e14), (0.0, 2e6), (1e-6, 4e-6)]
)
def test_ticks_lie_inside_and_have_different_labels(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 6)
    assert 3 <= len(ticks) <= 12
    assert all(low - 1e-9 * high <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert len({tick_label(tick, ticks) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.011), (0.004, 0.05), (1e-5, 3.0), (1e3, 1e18)])
def test_logarithmic_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 10
    assert len({tick_label(tick, ticks) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("y", [[1.0], [0.0, 0.0], [1.0, float("nan"), 2.0], [-1.0, 5.0], [float("inf")], []])
def test_any_values_give_a_drawing_or_a_sentence(y: list[float], log: bool) -> None:
    drawing = chart([Series("<a>", range(len(y)), y)], x_label="x", y_label="<y>", log_y=log)
    assert "<a>" not in drawing
    root = ET.fromstring(drawing)
    assert "nan" not in ET.tostring(root, encoding="unicode").lower()


def test_dots_lie_inside_of_the_plot_and_curves_fill_it() -> None:
    def places(kind: str) -> list[float]:
        series = [Series(str(i), [float(i)], [float(i)], i, kind) for i in (1, 2, 3)]  # type: ignore[arg-type]
        (svg,) = svgs(chart(series, x_label="x", y_label="y", width=400))
        return [float(dot.get("cx", "nan")) for dot in svg.iter("circle")][-3:]

    assert min(places("points")) > 62 + 5
    assert max(places("points")) < 400 - 14 - 5
    assert (min(places("both")), max(places("both"))) == (62, 400 - 14)


def test_a_short_run_beside_long_ones_is_inside_the_picture(tmp_path: Path) -> None:
    long = write_run(tmp_path / "long", training(1000))
    short = write_run(tmp_path / "short", [{"step": 1, "tokens": 64, "loss": 6.9, "lr": 0.01}])
    page = write_several([long, short], tmp_path / "both.html").read_text()
    drawn = svgs(page)[-1]  # the training loss comes last
    size = [float(value) for value in drawn.attrib["viewBox"].split()]
    (dot,) = [circle for circle in drawn.iter() if circle.tag.endswith("circle") and circle.get("cy")]
    assert 0 < float(dot.attrib["cy"]) < size[3] / 2
