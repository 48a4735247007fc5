"""Whether a run was made by this user: a seal over the places that its `config.toml` names.

A run folder that somebody has sent may name any file of this machine. The seal in `environment.json` is a
keyed hash (HMAC-SHA256) of the named places, under a key of this user's that never leaves the home folder: a
seal cannot be made elsewhere, and one that was made here does not fit other places. It tells no names, and it
holds on every machine that shares the home folder, where a number of the machine would not.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lowrise.config import RunConfig, resolved
from lowrise.config.places import named_code, named_origins, named_places
from lowrise.errors import UsageError

KEY_BYTES = 32


def seal(config: RunConfig) -> str:
    """The seal of the places that a configuration names; empty where this user has no place for a key."""
    key = _key(make=True)
    return _sealed(key, resolved(config).to_dict()) if key else ""


def require_trust(folder: Path, *, trust: bool, remedy: str, reads: Collection[str] | None = None) -> None:
    """Raise `UsageError`, before any of them is touched, where a run names files and this user did not make
    it.

    `remedy` says how the command does without these files; `reads` has those that it would read, where that
    is not all that is named.
    """
    values = recorded_values(folder)
    places = named_places(values) if reads is None else list(reads)
    if trust or not places or _is_own(values, folder):
        return
    raise UsageError(
        f"{folder} was not made by this user (or its config.toml was changed), and it would read "
        f"{', '.join(places[:3])}{f' and {len(places) - 3} more' if len(places) > 3 else ''}: {remedy}, or "
        "say --trust true if these are files that it may read."
    )


def require_trusted_recipe(folder: Path, config: RunConfig, *, trust: bool) -> None:
    """The same where training takes its recipe from a run's folder: for what `config` still has of it."""
    theirs = set(_places(recorded_values(folder)))
    reads = [place for place in _places(resolved(config).to_dict()) if place in theirs]
    remedy = "name your own (--data.source TEXT, --data.tokenizer FILE)"
    require_trust(folder, trust=trust, remedy=remedy, reads=reads)


def require_known_code(folder: Path, known: Collection[str] = ()) -> None:
    """Raise `UsageError`, before it is loaded, where a run that this user did not make names code that the
    user has not named too."""
    values = recorded_values(folder)
    code = [file for file in named_code(values) if file not in known]
    if code and not _is_own(values, folder):
        raise UsageError(
            f"{folder} was not made by this user (or its config.toml was changed), and it would run the code "
            f"in {', '.join(code)}: look at it, and take the plugin out of its config.toml if you do not "
            "know it."
        )


def recorded_values(folder: Path) -> dict[str, Any]:
    """`config.toml` of a run as it stands there, nothing checked and nothing loaded; empty where it cannot be
    read, which whoever loads it says."""
    try:
        return tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _is_own(values: Mapping[str, Any], folder: Path) -> bool:
    key = _key(make=False)
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["seal"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return key is not None and isinstance(found, str) and hmac.compare_digest(found, _sealed(key, values))


def _places(values: Mapping[str, Any]) -> list[str]:
    return [*named_places(values), *named_origins(values)]


def _sealed(key: bytes, values: Mapping[str, Any]) -> str:
    return hmac.new(key, json.dumps(_places(values)).encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """This user's key, made at its first use; None where there is none."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        path = Path(state).expanduser() / "lowrise" / "key"
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".key.{os.getpid()}.tmp")
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
            try:
                os.link(aside, path)  # of two processes that begin at once, one wins
            except FileExistsError:
                pass
            finally:
                aside.unlink()
        key = path.read_bytes()
    except (OSError, RuntimeError):  # no home folder, or not writable
        return None
    return key if len(key) == KEY_BYTES else None
