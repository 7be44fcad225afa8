"""Sizes: two ranks compared with one, many examples within a memory budget, many runs.

Each part runs in processes of its own, with one thread each. Ratios are taken in one call; peaks are of
resident memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import hesstune as ht

# Enough that the fixed cost of planning, which every rank pays, is as small as in a real measurement.
RANK_EXAMPLES = 1024
BUDGETS_MIB = (128.0, 256.0, 512.0)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def printed(command: list[str]) -> str:
    """Run a command with one thread, and return the last line of its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout.splitlines()[-1]


def measured_once(run: str) -> None:
    """Measure a run, on as many ranks as there are; print the seconds, and the CPU seconds of the slowest."""
    from hesstune.analysis.measure import measure_run
    from hesstune.runtime.distributed import all_gather, all_reduce_sum, rank, start_ranks

    start_ranks()
    loaded = ht.Run.load(run)
    all_reduce_sum(torch.zeros(1))  # all start together
    started, spent = time.monotonic(), time.process_time()
    measure_run(loaded, trace=False)
    spent = time.process_time() - spent
    all_reduce_sum(torch.zeros(1))
    slowest = max(float(s) for s in torch.cat(all_gather(torch.tensor([spent]))))
    if rank() == 0:
        print(json.dumps([time.monotonic() - started, slowest]), flush=True)


def ranks(blocks: int = 5) -> dict[str, Any]:
    """Time `measure` on one rank and on two, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        ht.finetune(data="digits", inject_noise="symmetric:0.2", epochs=1, limit=RANK_EXAMPLES, image_size=64,
                    out=run)  # fmt: skip
        seconds: dict[int, list[list[float]]] = {1: [], 2: []}
        for _ in range(blocks):
            for count in (1, 2):
                command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
                command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
                seconds[count].append(json.loads(printed([*command, __file__, "run", run])))
    pairs = list(zip(seconds[1], seconds[2], strict=True))
    return {"examples": RANK_EXAMPLES, "model": "efficientnet_lite0, 64 px",
            "speed_ups": [one[0] / two[0] for one, two in pairs],
            "speed_ups_cpu": [one[1] / two[1] for one, two in pairs]}  # fmt: skip


def peak_of(budget: float, trace: bool) -> float:
    """Measure 10,000 examples; return the peak of memory beyond what the process held before, in MiB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    ref = ht.Reference.of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i in range(10):
            torch.manual_seed(i)
            yield torch.randn(1000, 3, 32, 32), torch.randint(0, 10, (1000,))

    ht.measure(model, ref, [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))], trace=trace)
    before = peak_mib()
    found = ht.measure(model, ref, batches(), memory_mib=budget, trace=trace)
    assert len(found.losses) == 10000
    return peak_mib() - before


def examples() -> dict[str, Any]:
    """Measure 10,000 examples within several budgets, each in a process of its own: its peak only grows."""
    peaks: dict[str, list[float]] = {"alone": [], "with traces": []}
    for trace, found in enumerate(peaks.values()):
        for budget in BUDGETS_MIB:
            found.append(float(printed([sys.executable, __file__, "peak", str(budget), str(trace)])))
    facts = {"examples": 10000, "batch": 1000, "budgets_mib": list(BUDGETS_MIB)}
    return {**facts, "peaks_beyond_start_mib": peaks}


def runs(count: int = 200) -> dict[str, Any]:
    """Fine-tune repeatedly in one process; return its resident memory after each tenth."""
    held = []
    for i in range(count):
        with tempfile.TemporaryDirectory() as folder:
            ht.finetune(data="digits", inject_noise="symmetric:0.2", model="py:scale:small", epochs=1,
                        limit=64, image_size=16, head_init="keep", seed=i, out=f"{folder}/a")  # fmt: skip
        if (i + 1) % (count // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            held.append(pages * resource.getpagesize() / 2**20)
    return {"runs": count, "resident_mib": held, "growth_over_the_last_half_mib": held[-1] - held[4]}


def small(num_classes: int) -> torch.nn.Module:
    """The network of the short runs."""
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(16, num_classes))  # fmt: skip


PARTS = {"ranks": ranks, "examples": examples, "runs": runs}


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Measure one part in a process of its own."""
    found: dict[str, Any] = json.loads(printed([sys.executable, __file__, "part", case["part"]]))
    return found


if __name__ == "__main__":
    if sys.argv[1] == "run":
        measured_once(sys.argv[2])
    elif sys.argv[1] == "peak":
        print(peak_of(float(sys.argv[2]), sys.argv[3] == "1"))
    else:
        print(json.dumps(PARTS[sys.argv[2]]()))
