"""For mkdocs: links to files outside of docs/ become their names, as the site has only docs/."""

from __future__ import annotations

import posixpath
import re
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def named(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return f"{link[1]} (`{target.removeprefix('../')}`)" if target.startswith("../") else link[0]

    return re.sub(r"\[([^]]+)\]\((\.\.[^)#]+)\)", named, markdown)
