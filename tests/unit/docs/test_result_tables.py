"""Numbers that pages show as measured are those of the files in benchmarks/results and tracks."""

import json
import re
from functools import cache

import pytest
from doc_pages import ROOT

from lowrise.compare.statistics import Statistic, welch

RESULTS = ROOT / "benchmarks" / "results"
TOKENS, FLOPS, WEIGHTS = "tiny-wiki-tokens", "tiny-wiki-flops", "tiny-wiki-weights-tokens"
STUDY, STUDY_FLOPS, NANO = "tiny-wiki-study-tokens", "tiny-wiki-study-flops", "nano-wiki-study-flops"
BYTES, PARAMS = "tiny-wiki-study-inference", "tiny-wiki-study-params"
STATE = ["galore", "fira", "fira-orthogonal", "apollo", "apollo-mini", "gwt", "swan", "sinkgd", "scale"]
FIRA_OF_THE_PAPER = 'fira, `residual = "orthogonal"`'


@cache
def page(path):
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def recipes(name):
    """Rows of a comparison by recipe."""
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return {row["label"].replace("-tiny", ""): row for row in rows}


def loss(name, recipe, what="val_loss"):
    found = recipes(name)[recipe][what]
    return f"{found['mean']:.3f} ± {found['sd']:.3f}"


def mean(name, recipe):
    return f"{recipes(name)[recipe]['val_loss']['mean']:.3f}"


def difference(name, recipe, other, first=0):
    """Of the seeds from `first` on."""
    one, two = (Statistic.of(recipes(name)[r]["val_loss"]["values"][first:]) for r in (recipe, other))
    found = welch(one, two)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def rows_of(text):
    """Cells of a table's rows, without bold."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("**", "") for cell in line.split("|")[1:-1]] for line in lines]


def section(path, heading):
    """What stands between the heading that begins so and the next of its kind or above."""
    found = re.search(
        rf"^(#+) {re.escape(heading)}.*?\n(.*?)(?=^##|\Z)", page(path), re.DOTALL | re.MULTILINE
    )
    assert found, f"{path} has no heading {heading!r}"
    return found[2]


@pytest.mark.parametrize("recipe", ["adamw", "muon", "lowrank", "spectron"])
def test_the_first_table_of_the_readme(recipe):
    (row,) = [row for row in rows_of(section("README.md", "Results")) if row[0] == f"`{recipe}`"]
    costs = recipes(TOKENS)[recipe]["costs"]
    parameters = f"{costs['params_total'] / 1e6:.2f} M"
    state = f"{costs['state_bytes_measured'] / 2**20:.1f} MiB"
    assert row[1:] == [loss(TOKENS, recipe), loss(FLOPS, recipe), parameters, state]


README = [
    f"ahead by {difference(FLOPS, 'lowrank', 'spectron').replace('+', '')} at equal FLOPs",
    *[f"`{name}` {mean(WEIGHTS, name)}" for name in ("sltrain", "relora", "cola", "lora", "selfguided")],
    f"`tsvd` {mean(WEIGHTS, 'tsvd')}, `loro` {mean(WEIGHTS, 'loro')}",
    f"spectral factors {mean('tiny-wiki-loro-spectral', 'loro-spectral')}, "
    f"and {mean('tiny-wiki-loro-lazy-spectral', 'loro-lazy-spectral')} with its lazy steps",
    *[f"`{m}` {mean(f'tiny-wiki-{m}', m)}" for m in STATE if m != "fira-orthogonal"],
    f"({mean('tiny-wiki-fira-orthogonal', 'fira-orthogonal')} with the paper's residual)",
    f"NorMuon and Muon are lowest: {loss(STUDY, 'normuon')} and {loss(STUDY, 'muon')}",
    f"LoRA-Muon {loss(STUDY, 'loramuon')}, Spectron {loss(STUDY, 'spectron')}",
    f"`muonh` {loss(STUDY, 'muonh-ema')}, `lowrank` {loss(STUDY, 'lowrank')}",
    f"`spectronh` {loss(STUDY, 'spectronh')}, `adamw` {loss(STUDY, 'adamw')}, `dlr` {loss(STUDY, 'dlr')}",
]
TEN_LINES = {
    1: [
        f"NorMuon and Muon end lowest: {loss(STUDY, 'normuon')} and {loss(STUDY, 'muon')}",
        f"not told apart ({difference(STUDY, 'normuon', 'muon')})",
        f"LoRA-Muon {loss(STUDY, 'loramuon')} ({difference(STUDY, 'loramuon', 'muon')} from Muon)",
        f"{loss(STUDY, 'spectron')} ({difference(STUDY, 'spectron', 'muon')})",
    ],
    2: [
        f"AdamW {loss(STUDY, 'adamw')}",
        f"AdamW reaches {loss(STUDY, 'lowrank')} ({difference(STUDY, 'lowrank', 'adamw')})",
        f"Spectron {difference(STUDY, 'spectron', 'adamw')}",
    ],
    3: [
        f"Spectron {difference(STUDY, 'spectron', 'lowrank')}",
        f"LoRA-Muon {difference(STUDY, 'loramuon', 'lowrank')}",
        f"({mean(STUDY, 'spectron-certified')}, {difference(STUDY, 'spectron-certified', 'spectron')})",
        f"({mean(STUDY, 'loramuon-tangent')}, {difference(STUDY, 'loramuon-tangent', 'loramuon')})",
        f"on factors {loss(STUDY, 'spectronh')} ({difference(STUDY, 'spectronh', 'spectron')} from Spectron",
        f"last weights {loss(STUDY, 'muonh-ema')} ({difference(STUDY, 'muonh-ema', 'muon')}",
        f"DLR {loss(STUDY, 'dlr')} is behind plain factors ({difference(STUDY, 'dlr', 'lowrank')})",
    ],
    4: [
        f"Spectron {loss(TOKENS, 'spectron')}, low-rank AdamW {mean(TOKENS, 'lowrank')}",
        f"Muon {mean(TOKENS, 'muon')}, AdamW {mean(TOKENS, 'adamw')}",
    ],
    5: [
        *[
            f"{shown} {loss(file, recipe)} ({difference(file, recipe, 'muon')})"
            for file in (STUDY_FLOPS, NANO)
            for shown, recipe in (("Spectron", "spectron"), ("LoRA-Muon", "loramuon"))
        ],
        f"Muon {mean(STUDY_FLOPS, 'muon')}",
        f"Muon {loss(NANO, 'muon')}",
        f"Spectron {mean(FLOPS, 'spectron')}, low-rank AdamW {mean(FLOPS, 'lowrank')}",
        f"AdamW {mean(FLOPS, 'adamw')}, Muon {mean(FLOPS, 'muon')}",
    ],
    6: [
        *[f"fits) {loss(file, 'muon')}, Spectron {loss(file, 'spectron')}" for file in (BYTES, PARAMS)],
        *[f"({difference(BYTES, recipe, 'muon')})" for recipe in ("spectron", "loramuon")],
        " and ".join(difference(BYTES, recipe, "muon", 3) for recipe in ("spectron", "loramuon")),
    ],
    8: [
        f"{loss(STUDY, 'loro-lazy-spectral')} alone from spectral factors",
        f"{loss(STUDY, 'loro-spectral')} with its exact steps and resets "
        f"({difference(STUDY, 'loro-spectral', 'loro-lazy-spectral')})",
    ],
}


def test_the_prose_of_the_readme():
    text = " ".join(section("README.md", "Results").split())
    assert [shown for shown in README if shown not in text] == []


@pytest.mark.parametrize("line", TEN_LINES)
def test_the_ten_lines(line):
    found = re.search(rf"^{line}\. (.*?)(?=^\d+\. |\n\n)", page("docs/results.md"), re.DOTALL | re.MULTILINE)
    assert found
    text = " ".join(found[1].split())
    assert [shown for shown in TEN_LINES[line] if shown not in text] == []


@pytest.mark.parametrize(
    ("heading", "files"),
    [
        ("All weight-side methods", [WEIGHTS]),
        ("Less optimizer state", [TOKENS, *(f"tiny-wiki-{name}" for name in STATE)]),
        ("Equal tokens", [TOKENS]),
        ("Equal FLOPs", [FLOPS]),
    ],
)
def test_the_tables_of_losses(heading, files):
    known = {recipe: (name, row) for name in files for recipe, row in recipes(name).items()}
    rows = [
        row
        for row in rows_of(section("benchmarks/results/README.md", heading))
        if len(row) > 3 and "±" in row[2]
    ]
    assert len(rows) >= 4
    for shown, rate, val_loss, bits_per_byte, *_ in rows:
        recipe = "fira-orthogonal" if shown == FIRA_OF_THE_PAPER else shown
        name, row = known[recipe]
        assert float(rate) == pytest.approx(row["best"]["lr"])
        assert val_loss == loss(name, recipe)
        assert bits_per_byte == f"{row['val_bits_per_byte']['mean']:.3f}"


def test_the_table_of_fine_tuning():
    rows = {row[0]: row for row in rows_of(page("docs/finetuning.md"))}
    names = {
        "AdamW": "adamw",
        "AdamW, bfloat16 moments": "adamw-bfloat16",
        "Fira, rank 25 of 64": "fira",
        "GaLore, rank 25 of 64": "galore",
        "LoRA, rank 20": "lora",
    }
    for shown, recipe in names.items():
        _, rate, val_loss, bits_per_byte, apart, state = rows[shown]
        row = recipes("finetuning-nano")[recipe]
        assert float(rate) == pytest.approx(row["best"]["lr"])
        assert val_loss == loss("finetuning-nano", recipe)
        assert bits_per_byte == loss("finetuning-nano", recipe, "val_bits_per_byte")
        assert apart == ("" if recipe == "adamw" else difference("finetuning-nano", recipe, "adamw"))
        assert float(state.split()[0]) == pytest.approx(
            row["costs"]["state_bytes_measured"] / 2**20, abs=0.006
        )


def test_the_times_of_steps():
    """The page, the Markdown and the JSON are of one run."""
    kept = json.loads((RESULTS / "paired_steps_60m_cpu.json").read_text(encoding="utf-8"))["rows"]
    assert rows_of((RESULTS / "paired_steps_60m_cpu.md").read_text(encoding="utf-8"))[2:] == kept
    shown = [
        row for row in rows_of(section("docs/performance.md", "Time on a CPU")) if len(row) == len(kept[0])
    ]
    assert shown[2:] == kept


def test_the_times_of_passes():
    kept = json.loads((RESULTS / "passes_60m_native.json").read_text(encoding="utf-8"))["rows"]
    assert rows_of((RESULTS / "passes_60m_native.md").read_text(encoding="utf-8"))[2:] == kept
    assert rows_of(section("docs/performance.md", "Passes in C++"))[2:] == kept


def test_the_operations_of_steps():
    kept = json.loads((RESULTS / "operations.json").read_text(encoding="utf-8"))["rows"]
    shown = [row for row in rows_of(section("docs/performance.md", "Operations")) if len(row) == 7]
    assert [[row[0], row[4], row[5]] for row in shown[2:]] == [[row[0], row[1], row[3]] for row in kept]


def test_the_leaderboard():
    track = ROOT / "tracks" / "cpu-tiny"
    shown = re.findall(
        r"^\| \[(\S+)\].*?\| +\d+ \| ([\d.]+) \| ([\d.]+) \|", page(track / "leaderboard.md"), re.M
    )
    kept = {}
    for path in (track / "results").glob("*.json"):
        losses = json.loads(path.read_text(encoding="utf-8"))["losses"]
        found = Statistic.of(losses.values())
        kept[path.stem] = (f"{found.mean:.4f}", f"{found.sd:.4f}")
    assert {name: (val_loss, sd) for name, val_loss, sd in shown} == kept
