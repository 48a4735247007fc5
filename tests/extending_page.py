"""A plugin of pytest that first runs the layer example of docs/extending.md: `pytest -p extending_page ...`.

The contract tests then run over a table that has the example's layer in it.
"""

from doc_pages import blocks_of

exec(compile(blocks_of("docs/extending.md", "python")[0], "docs/extending.md", "exec"), {})
