"""Memory that a process needs to fine-tune and measure a network: a model, and its check.

`training` and `measuring` are the model. It is compared with the peak of resident memory of runs on
networks that fit on this machine, each in its own process, minus the peak of the same run on a network with
almost no weights.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
WIDTH, INPUTS, CLASSES = 1024, 768, 10
# `memory_mib` of the measured run beyond the layers' differences; the weights that `measure` probes at a
# time, in bytes.
MEASURE_MIB, PROBED = 64, 64 * 2**20


# What is run: mode, processes, blocks. Over eight processes the start sets the peak, over two the training.
POINTS = (("whole", 1, 6), ("whole", 1, 12), ("lora", 1, 12), ("sharded", 2, 12), ("sharded", 8, 12),
          ("measure", 1, 12))  # fmt: skip
MORE: dict[str, dict[str, Any]] = {"sharded": {"shard": True}, "lora": {"method": "lora"}}


@dataclass(frozen=True)
class Network:
    """What the memory model needs to know.

    Attributes:
        weights: Number of weights.
        block: Of the largest block that is put together at a time when sharded.
        layer: Of the largest layer.
        adapters: Of LoRA's adapters and the head.
    """

    weights: float
    block: float
    layer: float
    adapters: float


def training(net: Network, mode: str, processes: int = 1, activations: float = 0.0) -> dict[str, float]:
    """Return the bytes of a process while training with Adam in float32, by what they are for.

    Args:
        net: The network.
        mode: `whole`, `sharded` (FSDP2 over the processes) or `lora`.
        processes: Processes that share the weights when sharded.
        activations: Bytes that a step keeps for its backward pass.
    """
    share = processes if mode == "sharded" else 1
    trained = net.adapters if mode == "lora" else net.weights / share
    found = {
        "weights": 4 * net.weights / share,
        "reference": 4 * net.weights / share,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        # One layer's temporaries in the optimizer; whole weights and gradients of a block when sharded.
        "in passing": 8 * net.block if mode == "sharded" else 4 * min(net.layer, trained),
        "activations": activations,
    }
    # The constraint's differences take the place of the gradients, which are free by then. At the start
    # every process holds the whole network; without sharding the reference is there, too. Files are
    # written without copies of the tensors.
    floor = 4 * net.weights * (1 if mode == "sharded" else 2)
    found["total"] = max(sum(found.values()), floor)
    return found


def measuring(net: Network, layers: float = 1.0, activations: float = 0.0) -> dict[str, float]:
    """Return the bytes of a process while measuring, by what they are for.

    Args:
        net: The network.
        layers: The share of the weights measured at a time: their differences W - W(s) are kept.
        activations: What of `memory_mib` the differences leave, at most.
    """
    # Before the first batch exact layers are probed: a direction and a gradient of some weights at a time.
    probe = 2 * min(4 * net.weights * layers, max(PROBED, 4 * net.layer))
    found = {"weights": 4 * net.weights, "reference": 4 * net.weights,
             "differences": 4 * net.weights * layers, "in passing": max(activations, probe)}  # fmt: skip
    return {**found, "total": sum(found.values())}


# A transformer of the shape of the usual 7-billion-parameter models.
SEVEN = Network(weights=6.7e9, block=2.02e8, layer=4.5e7, adapters=2.0e7)
LAYERS, HIDDEN, HEADS, TOKENS = 32, 4096, 32, 512


def transformer_activations(batch: int, tokens: int = TOKENS, bytes_each: int = 2) -> float:
    """Return what a step keeps: s·b·h·(34 + 5·a·s/h) a layer at 2 bytes (Korthikanti et al. 2022)."""
    per_layer = tokens * batch * HIDDEN * (34 + 5 * HEADS * tokens / HIDDEN)
    return LAYERS * per_layer * bytes_each / 2


class Block(torch.nn.Module):
    """Two layers beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.inner(x)
        return x + inner


def build(blocks: int, width: int, num_classes: int) -> torch.nn.Sequential:
    """The network of the checks: 16 x 16 pixels, blocks of two layers."""
    nn = torch.nn
    return nn.Sequential(
        nn.Flatten(), nn.Linear(INPUTS, width), *[Block(width) for _ in range(blocks)],
        nn.Linear(width, num_classes),
    )  # fmt: skip


def network(num_classes: int) -> torch.nn.Module:
    """The network that the environment names, for `--model py:memory_model:network`."""
    torch.manual_seed(0)
    return build(int(os.environ["BLOCKS"]), int(os.environ["BLOCK_WIDTH"]), num_classes)


def sizes(blocks: int) -> Network:
    model = build(1, WIDTH, CLASSES)
    block = sum(p.numel() for p in model[2].parameters())
    others = sum(p.numel() for p in model.parameters()) - block
    head = sum(p.numel() for p in model[3].parameters())
    lora = 8 * (INPUTS + WIDTH) + blocks * 2 * 8 * 2 * WIDTH + head
    return Network(others + blocks * block, block, WIDTH * WIDTH, lora)


def one(mode: str, run: str) -> None:
    """Train or measure as one process of the run, and print the peak of memory and the CPU time of steps."""
    import hesstune as ht
    from hesstune.runtime.distributed import all_gather, rank, start_ranks

    torch.set_num_threads(1)
    options = {
        "data": "digits", "model": "py:memory_model:network", "inject_noise": "symmetric:0.2", "limit": 64,
        "epochs": 1,
        "image_size": 16, "head_init": "keep", "augment": "none", "device": "cpu", "test_fraction": 0.05,
    }  # fmt: skip
    if mode == "measure":
        from hesstune.analysis.measure import measure_run

        differences = 4 * sizes(int(os.environ["BLOCKS"])).weights / 2**20
        measure_run(ht.Run.load(run), trace=False, memory_mib=MEASURE_MIB + differences)
    else:
        more = MORE.get(mode, {})
        ht.finetune({**options, **more}, out=run)
    start_ranks()
    peak = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024])
    peaks = torch.cat(all_gather(peak))
    if rank() == 0:
        print(float(peaks.max()), flush=True)


@cache  # the smallest network, which is subtracted, serves several points
def peak(mode: str, blocks: int, width: int, processes: int) -> float:
    """Return the peak of resident memory of the largest process, in MiB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BLOCKS": str(blocks), "BLOCK_WIDTH": str(width),
                   "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        steps = ["whole", "measure"] if mode == "measure" else [mode]
        for step in steps:
            command = [sys.executable, __file__, step, run]
            if step == "sharded":
                command[1:1] = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes),
                                "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # fmt: skip
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the runs that are checked."""
    for mode, processes, blocks in POINTS:
        yield {"mode": mode, "processes": processes, "weights": int(sizes(blocks).weights)}


def measure(case: dict[str, Any], run: object) -> dict[str, float]:
    """Return the predicted and the measured value of one case."""
    mode, processes = case["mode"], case["processes"]
    blocks = next(b for m, p, b in POINTS if (m, p, int(sizes(b).weights)) == tuple(case.values()))
    net = sizes(blocks)
    found = peak(mode, blocks, WIDTH, processes) - peak(mode, 1, 8, processes)
    want = measuring(net, 1, MEASURE_MIB * 2**20) if mode == "measure" else training(net, mode, processes)
    return {"predicted_mib": want["total"] / 2**20, "measured_mib": found}


if __name__ == "__main__":
    one(*sys.argv[1:])
