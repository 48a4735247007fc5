"""Pictures of the docs: drawings that stand by themselves, and show what the committed results say."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import pytest
from doc_pages import ROOT

IMAGES = sorted((ROOT / "docs" / "images").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
# What belongs to a page around a drawing. A viewer of a file on its own shows nothing of what is inside.
OF_PAGES = {"figure", "div", "script", "table", "p", "span"}


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_a_drawing_holds_nothing_of_a_page(image) -> None:
    elements = list(ElementTree.parse(image).iter())
    assert all(element.tag.startswith(SVG) for element in elements)
    assert not OF_PAGES & {element.tag.removeprefix(SVG) for element in elements}


def test_the_figure_of_transfer_is_that_of_its_losses(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import transfer_figure

    committed = transfer_figure.FIGURE.read_text(encoding="utf-8")
    monkeypatch.setattr(transfer_figure, "FIGURE", tmp_path / "figure.svg")
    results = ROOT / "benchmarks" / "results" / "transfer_long_cpu.json"
    record = json.loads(results.read_text(encoding="utf-8"))
    transfer_figure.draw(record)
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8") == committed
    assert transfer_figure.summary(record) in (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8")
    sys.modules.pop("transfer_figure")
