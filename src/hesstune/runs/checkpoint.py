"""Checkpoints of a run: the last two are kept, and a damaged one gives way to the one before it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from hesstune.errors import HesstuneWarning, RunError
from hesstune.runs.records import ASIDE, CHECKPOINTS, checkpoint_name
from hesstune.runtime.distributed import on_main_process, world
from hesstune.storage.atomic import PART
from hesstune.storage.tensors import Tree, load_tree, save_tree

__all__ = ["Checkpoints", "discard"]

KEPT = 2


class Checkpoints:
    """The states of a run in its folder, `checkpoint-STEP.safetensors`, each with a checksum.

    A checkpoint is written beside, synced and renamed, so that a kill at any moment leaves whole ones.

    Args:
        folder: The run folder.
        start: Checksums of what the run started from. A state that has others is of another run.
    """

    def __init__(self, folder: Path, start: Mapping[str, str] | None = None) -> None:
        self.folder, self.start = folder, dict(start or {})

    def files(self) -> list[Path]:
        """List the checkpoints, the newest first."""
        return sorted(self.folder.glob(CHECKPOINTS), reverse=True)

    def save(self, step: int, tree: Tree) -> None:
        """Write the state after `step` steps and keep the one before it.

        Raises:
            RunError: If it cannot be written; the earlier ones are then all there.
        """
        save_tree(self.folder / checkpoint_name(step), tree)
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)
        discard(self.folder)

    def load(self) -> Tree | None:
        """Read the newest state that is whole; None where there is no checkpoint.

        Warns with HesstuneWarning where a newer one is damaged, and removes that one.

        Raises:
            RunError: If there are checkpoints, and all are damaged.
        """
        damaged: list[tuple[Path, RunError]] = []
        for path in self.files():
            try:
                tree = load_tree(path)
            except RunError as error:
                damaged.append((path, error))
                continue
            for wrong, reason in damaged:
                warnings.warn(f"{reason}; going on from {path.name}", HesstuneWarning, stacklevel=2)
                wrong.unlink(missing_ok=True)
            return tree
        if damaged:
            raise RunError(f"{damaged[0][1]}, nor is any other in {self.folder}; start over with --overwrite")
        return None

    def load_together(self) -> Tree | None:
        """Read it on every process: the first one sorts out damaged ones before the others look."""
        if world() > 1:
            on_main_process(self.load)
        return self.load()

    def clear(self) -> None:
        """Remove all checkpoints."""
        for path in self.files():
            path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove the run that was set aside, as the new one stands: all of it or, after a kill, none."""
    trash = folder / f"{ASIDE}{PART}"
    if (folder / ASIDE).is_dir():
        (folder / ASIDE).replace(trash)
        shutil.rmtree(trash, ignore_errors=True)
