"""The user's cache: files that later commands read instead of computing their content again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hesstune.errors import RunError
from hesstune.storage.tensors import Tree, load_tree, save_tree

# The environment variable that names the user's cache; if it is empty, nothing is kept there.
CACHE = "HESSTUNE_CACHE"
MOST_MIB = 2048


def user_cache() -> Path | None:
    """Return the folder of files that later commands read; None if CACHE is empty or there is no home."""
    if (asked := os.environ.get(CACHE)) is not None:
        return Path(asked).absolute() / "features" if asked else None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # as in a container whose user is in no table of users
        return None
    return base.absolute() / "hesstune" / "features"


def mark_used(path: Path) -> None:
    """Let a file of the cache count as used now."""
    with contextlib.suppress(OSError):  # it cannot be changed, or another process deleted it
        os.utime(path)


def read_cached(path: Path) -> Tree | None:
    """Return what a file of the cache holds; None if it is absent or damaged."""
    with contextlib.suppress(RunError):
        found = load_tree(path)
        mark_used(path)
        return found
    return None


def write_cached(path: Path, tree: Tree, most: int = MOST_MIB * 2**20) -> None:
    """Write a file if possible; of the cache delete what was not used for longest beyond `most` bytes."""
    with contextlib.suppress(RunError, OSError):  # a full disk, or deleted by another process
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tree(path, tree)
        others = (one for one in path.parent.glob("*.safetensors") if one != path)
        room = most - path.stat().st_size
        for one in sorted(others, key=lambda one: -one.stat().st_mtime):
            room -= one.stat().st_size
            if room < 0:
                one.unlink(missing_ok=True)
