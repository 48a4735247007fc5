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
from pathlib import Path

from lowrise.config import RunConfig
from lowrise.config.places import named_places
from lowrise.errors import UsageError

KEY_BYTES = 32


def seal(config: RunConfig) -> str:
    """The seal of the places that a configuration names; empty where this user has no place for a key."""
    key = _key(make=True)
    return _sealed(key, config) if key else ""


def require_trust(config: RunConfig, folder: Path, *, trust: bool, remedy: str) -> None:
    """Raise `UsageError`, before any file is touched, where a run names files and this user did not make it.

    `remedy` says how the command does without these files.
    """
    places = named_places(config)
    if trust or not places or _is_own(config, folder):
        return
    raise UsageError(
        f"{folder} was not made by this user (or its config.toml was changed), and it would read "
        f"{', '.join(places[:3])}{f' and {len(places) - 3} more' if len(places) > 3 else ''}: {remedy}, or "
        "say --trust true if these are files that it may read."
    )


def _is_own(config: RunConfig, folder: Path) -> bool:
    key = _key(make=False)
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["seal"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return key is not None and isinstance(found, str) and hmac.compare_digest(found, _sealed(key, config))


def _sealed(key: bytes, config: RunConfig) -> str:
    return hmac.new(key, json.dumps(named_places(config)).encode(), hashlib.sha256).hexdigest()


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
