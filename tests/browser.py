"""Pages of reports in a real browser, for tests: what their scripts do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from lowrise.report import html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

# What the tests say to the page, in its own language.
HELPERS = """
const chart = document.querySelector("figure.chart"), svg = chart.querySelector("svg");
const tip = () => chart.querySelector(".tip").hidden ? null : chart.querySelector(".tip").innerText;
const ticks = () => [...svg.querySelectorAll("g.axes text")].map((text) => text.textContent);
const key = (key) => chart.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const pointer = (kind, share) => {
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent(kind, { bubbles: true, pointerId: 1, pointerType: "mouse",
    clientX: box.left + share * box.width, clientY: box.top + box.height / 2 }));
};
svg.setPointerCapture = () => {};
const button = (text) => [...chart.querySelectorAll("button")].find((one) => one.textContent === text);
const column = (i) => [...document.querySelectorAll("tbody tr")].map((row) => row.cells[i].textContent);
"""


def in_browser(body: list[str], script: str, folder: Path) -> Any:
    """What an expression is in the page of `body`, as JSON."""
    page = html.page("a <page>", body, "footer")
    told = (
        f"<script>{HELPERS}\nlet said; try {{ said = (() => {{ {script} }})() }} catch (error) "
        "{ said = `failed: ${error.stack}` }\n"
        'const pre = document.createElement("pre"); pre.id = "said"; '
        "pre.textContent = JSON.stringify(said ?? null); document.body.append(pre)</script></body>"
    )
    file = folder / "page.html"
    file.write_text(page.replace("</body>", told))
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
    words += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    said = json.loads(unescape(found[1]))
    assert not (isinstance(said, str) and said.startswith("failed: ")), said
    return said
