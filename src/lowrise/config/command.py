"""The flags of `lowrise train`, and the configuration that they start from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lowrise.config.places import resolved
from lowrise.config.reading import NO_RECIPE, load
from lowrise.config.tree import RunConfig
from lowrise.errors import UsageError


@dataclass(kw_only=True)
class Train:
    """Train a model, or continue a run whose folder holds checkpoints of the same recipe.

    Without a recipe: a small Spectron model on the Python standard library's source, in a few minutes.
    """

    recipe: Positional[Path | None] = None
    """TOML file; keys that it leaves out take the method's defaults. A run's folder: continue that run."""
    run: Path | None = None
    """Folder of the run; none: runs/METHOD-PRESET-HASH."""
    trust: bool = False
    """Read the files that a run of somebody else's, given as the recipe, names in its config.toml."""
    config: Annotated[RunConfig, arg(name="")] = field(default_factory=RunConfig)

    @property
    def given_folder(self) -> Path | None:
        """Where the run lies, if that was said."""
        if self.run is not None:
            return self.run.expanduser()
        if self.recipe is not None and self.recipe.expanduser().is_dir():
            return self.recipe.expanduser()
        return None

    def folder(self, config: RunConfig, corpus: str) -> Path:
        """Where the run lies: as was said, else by the name of the configuration on the text with this
        fingerprint.
        """
        name = f"{config.method}-{config.model.preset}-{resolved(config).name_on(corpus)[:8]}"
        return self.given_folder or Path("runs") / name


def starting_config(words: Sequence[str]) -> RunConfig:
    """What the flags start from: the recipe, with the names that decide which flags there are."""
    recipe = recipe_of(words)
    names: dict[str, str] = {}
    for key in ("plugin", "method", "layer.name", "optimizer.name"):
        for word, following in itertools.pairwise([*words, ""]):
            if word == f"--{key}":
                names[key] = following
            elif word.startswith(f"--{key}="):
                names[key] = word.split("=", 1)[1]
    return load(None if recipe is None else recipe_file(str(recipe)), names)


def recipe_folder(words: Sequence[str]) -> Path | None:
    """The folder of the run that the command line names as its recipe, if it does."""
    recipe = recipe_of(words)
    place = None if recipe is None else recipe.expanduser()
    return place if place is not None and place.is_dir() else None


def recipe_of(words: Sequence[str]) -> Path | None:
    """The word that is the recipe, before the flags that it decides are known."""
    return next((Path(word) for i, word in enumerate(words) if _is_recipe(i, word)), None)


def _is_recipe(index: int, word: str) -> bool:
    return not word.startswith("-") and (index == 0 or word.endswith(".toml"))


def recipe_file(path: str) -> Path:
    """The recipe at a path: a file, or the one of the run whose folder it is."""
    place = Path(path).expanduser()
    if not place.exists():
        raise UsageError(NO_RECIPE.format(path=path))
    if not place.is_dir():
        return place
    if not (place / "config.toml").is_file():
        raise UsageError(f"{path} is a folder and no run (it has no config.toml): give a TOML file or a run.")
    return place / "config.toml"
