"""Checkpoints of a run, and sharded training (FSDP2).

The last two checkpoints are kept; if one is damaged, the one before it is used. accelerate silently turns
FSDP into data parallelism on a CPU, so torch's `fully_shard` is applied here on a mesh of the run's device.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from hesstune.errors import ConfigError, HesstuneError, HesstuneWarning, RunError
from hesstune.reference import Reference, layer_names
from hesstune.runs.records import ASIDE, checkpoint_name
from hesstune.runtime.distributed import all_gather, all_reduce_sum, on_main_process, rank, world
from hesstune.runtime.sharding import whole
from hesstune.storage.files import PART, replace_file
from hesstune.storage.tensors import Tree, load_tree, save_tree, stream_tensors

KEPT = 2


class Checkpoints:
    """The states of a run in its folder, `checkpoint-STEP.safetensors`, each with a checksum.

    A checkpoint is written to a temporary file, synced and renamed, so a kill leaves only complete ones. In a
    sharded run each process writes one file a step with its parts, and all processes call each method alike.

    Args:
        folder: The run folder.
        start: Checksums of what the run started from. A state that has others is of another run.
        sharded: Whether each process keeps its own part of the state.
    """

    def __init__(self, folder: Path, start: Mapping[str, str] | None = None, sharded: bool = False) -> None:
        self.folder, self.start, self.sharded = folder, dict(start or {}), sharded
        self._part = f".{rank()}of{world()}" if sharded else ""

    def files(self) -> list[Path]:
        """List the checkpoints, of a sharded run this process's, the newest first."""
        return sorted(self.folder.glob(checkpoint_name("*", self._part)), reverse=True)

    def _path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step, self._part)

    def save(self, step: int, tree: Tree) -> None:
        """Write the state after `step` steps and keep the one before it.

        Raises:
            RunError: If it cannot be written; the earlier ones are then all there.
        """
        save_tree(self._path(step), tree)
        if self.sharded:
            all_reduce_sum(torch.zeros(1))  # a step counts once all have written it
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)
        if rank() == 0:
            discard(self.folder)

    def load(self) -> Tree | None:
        """Read the newest state that is whole on every process; None if there is no checkpoint.

        Warns with HesstuneWarning if a newer one is damaged, and removes that one.

        Raises:
            RunError: If there are checkpoints, and none is whole, or they are of another number of processes.
        """
        own = [int(path.name.split("-")[1].split(".")[0]) for path in self.files()][: KEPT + 1]
        padded = torch.tensor([*own, *[-1] * (KEPT + 1 - len(own))])
        steps = sorted({int(s) for s in torch.cat(all_gather(padded)) if s >= 0}, reverse=True)
        reason = ""
        for step in steps:
            tree = None
            try:
                tree = load_tree(self._path(step))
            except RunError as error:
                reason = reason or str(error)
            if int(all_reduce_sum(torch.tensor(int(tree is not None)))) == world():
                for path in self.files():
                    if path > self._path(step):
                        path.unlink(missing_ok=True)
                if step != steps[0] and rank() == 0:
                    reason = reason or "another process did not write a whole checkpoint"
                    text = f"{reason}; going on from {self._path(step).name}"
                    warnings.warn(text, HesstuneWarning, stacklevel=2)
                return tree
        if steps:
            raise RunError(f"{reason}, nor is any other in {self.folder}; start over with --overwrite")
        if other := next(iter(Checkpoints(self.folder).files()), None):
            raise RunError(
                f"{other} was written by another number of processes; resume with as many, or start over "
                "with --overwrite"
            )
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        for path in self.files():
            path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove the run that was set aside, once the new one has a checkpoint: all of it or nothing."""
    trash = folder / f"{ASIDE}{PART}"
    if (folder / ASIDE).is_dir():
        (folder / ASIDE).replace(trash)
        shutil.rmtree(trash, ignore_errors=True)


def refuse_one(shard: bool) -> None:
    """Raise ConfigError if a network is to be sharded over one process."""
    if shard and world() == 1:
        raise ConfigError(
            "--shard distributes the network over several processes, but there is one; start it with "
            "torchrun --nproc-per-node N -m hesstune finetune …, or leave --shard out"
        )


def weights_of(model: nn.Module) -> Reference:
    """Return a network's weights as a reference that shares their memory, to be written, not kept."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return Reference({name: t.detach() for name, t in tensors.items()}, layer_names(model))


def shard_(model: nn.Module, device: torch.device) -> None:
    """Shard a network's parameters over the processes, in place, one repeated block at a time.

    Each process keeps a part of dimension 0 of each parameter; the whole parameter exists only while its
    block computes. Buffers are not sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cpu" and sys.platform == "linux":
        # Memory of tensors from 1 MiB on goes back to the system when it is freed: M_MMAP_THRESHOLD (-3). By
        # default glibc keeps freed blocks up to 32 MiB in its heap, which then outgrows the whole network.
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(-3, 1 << 20)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(device.type, (world(),))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    # The weights outside the blocks, too: they would stay whole after a forward pass without a backward one.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """List the elements of the network's module lists and sequences, the outermost ones only.

    Elements that share a parameter with another part of the network, and lists, which have no forward method,
    are left out.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []
    inside: set[int] = set()
    for container in model.modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential) or id(container) in inside:
            continue
        for block in container:
            own = Counter(id(p) for _, p in block.named_parameters(remove_duplicate=False))
            alone = all(uses[key] == count for key, count in own.items())
            if own and alone and not isinstance(block, nn.ModuleList | nn.ModuleDict):
                found.append(block)
                inside |= {id(module) for module in block.modules()}
    return found


def write_model(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a network's parameters and buffers, whole, as safetensors; all processes call this alike.

    Of a sharded network one tensor at a time is put together.

    Raises:
        RunError: On every process, if it cannot be written.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    parts = (whole(tensor) for tensor in tensors.values())
    failed: HesstuneError | None = None
    try:
        if rank() == 0:
            replace_file(path, lambda part: stream_tensors(part, tensors, parts, metadata))
    except HesstuneError as error:
        failed = error
    for _ in parts:  # the other processes take part, and after an error the first one, too
        pass

    def raise_failure() -> None:
        if failed is not None:
            raise failed

    on_main_process(raise_failure)
