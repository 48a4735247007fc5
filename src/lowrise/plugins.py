"""Methods from outside the package: Python files or installed modules that call `lowrise.methods.register`.

A configuration names it (`plugin = ["my_method.py"]`, `--plugin my_method.py`), so a run, its workers in a
comparison, `eval` and `generate` find the method again. Loading one executes its code. Installed packages
may also offer theirs under the entry point group `lowrise.plugins`, to be named by the entry point.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from lowrise.errors import LowriseError, UsageError

GROUP = "lowrise.plugins"


def absolute(plugins: Iterable[str]) -> tuple[str, ...]:
    """The same with full paths, so that they hold in another working folder; names of modules stay."""
    return tuple(str(Path(p).expanduser().resolve()) if p.endswith(".py") else p for p in plugins)


def load_plugins(plugins: Iterable[str]) -> None:
    """Import each once. Raises `UsageError` for one that is not there, `LowriseError` for one that fails."""
    for plugin in absolute(plugins):
        try:
            if plugin.endswith(".py"):
                _load_file(Path(plugin))
            else:
                found = next(iter(entry_points(group=GROUP, name=plugin)), None)
                module = importlib.import_module(plugin if found is None else found.module)
                if module.__file__ is None:  # Python takes any folder for a package without code
                    raise ModuleNotFoundError(f"{plugin} is a folder without an __init__.py")
        except (LowriseError, FileNotFoundError, ModuleNotFoundError) as error:
            if isinstance(error, LowriseError):
                raise
            raise UsageError(
                f"There is no plugin {plugin!r} ({error}): give a Python file, an installed module or an "
                f"entry point of the group {GROUP}."
            ) from error
        except Exception as error:
            raise LowriseError(f"The plugin {plugin} failed: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> None:
    name = f"lowrise_plugin_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None:
        if Path(str(loaded.__file__)) != path:
            raise UsageError(f"{path} and {loaded.__file__} have one name: rename one of them.")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
