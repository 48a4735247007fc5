"""Recipes as `lowrise compare` and `lowrise sweep` load and plan them: as `train` does.

What needs torch is imported when it is used: a recipe that is not there is refused without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrise.config import RunConfig, load
from lowrise.config.command import recipe_file
from lowrise.console import Console
from lowrise.runs.text import with_text_limit
from lowrise.runs.trust import require_known_code, require_trusted_recipe


def load_recipe(path: str | Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration that `train` would make of a recipe with these settings, so that the hashes agree."""
    from lowrise.pretrained.adopt import adopted

    return with_text_limit(adopted(load(path, overrides)))


def planner(console: Console) -> Callable[[RunConfig], Any]:
    """Plans a run; prepares its text first, since the vocabulary is the tokenizer's. Each text once."""
    from lowrise.data.progress import prepare_with_progress
    from lowrise.train import plan_run

    sizes: dict[str, int] = {}

    def plan(config: RunConfig) -> Any:
        text = repr(config.data)
        if text not in sizes:
            sizes[text] = prepare_with_progress(config.data, console).tokenizer.vocab_size
        return plan_run(config, sizes[text])

    return plan


def recipe_files(recipes: Sequence[str], *, trust: bool) -> tuple[str, ...]:
    """The TOML file of each recipe; what runs of others name is asked about first."""
    for folder in filter(Path.is_dir, (Path(path).expanduser() for path in recipes)):
        require_known_code(folder)
        require_trusted_recipe(folder, load(recipe_file(str(folder))), trust=trust)
    return tuple(str(recipe_file(path)) for path in recipes)
