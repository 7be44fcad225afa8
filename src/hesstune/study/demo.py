"""The demo: plain and robust fine-tuning side by side, on real digits with noisy labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hesstune.runs.run import Run
from hesstune.runtime.signals import Progress

# 600 training images, 40 % of the labels changed at random, every layer trained. The budget is long enough
# for the plain run to fit the noise, without augmentation and with a constant learning rate.
SETTING: dict[str, Any] = {
    "model": "efficientnet_lite0",
    "data": "digits",
    "inject_noise": "symmetric:0.4",
    "train": "all",
    "image_size": 64,
    "limit": 600,
    "epochs": 20,
    "lr": 3e-4,
    "schedule": "constant",
    "augment": "none",
}
# Plain for all epochs; plain, stopped by noisy validation labels; the paper's method with the known noise
# matrix; and auto, without noise information.
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"method": "vanilla"},
    "plain, stopped": {"method": "vanilla", "patience": 3, "select": "best"},
    "robust": {"method": "robust"},
    "auto": {"method": "auto"},
}


def run_demo(
    out: Path, seeds: int = 1, progress: Callable[[str], Progress] | None = None
) -> dict[tuple[str, int], Run]:
    """Fine-tune by plain training, `robust` and `auto` on the same noisy labels.

    Args:
        out: Folder for the runs; if it exists, the first free of `out-2`, `out-3`, … is taken.
        seeds: Number of seeds, from 0.
        progress: Returns the progress callback of a run, by its title.

    Returns:
        The runs, by (name, seed), names as in RUNS.
    """
    from hesstune.training.finetune import finetune

    base, number, runs = out, 2, {}
    while out.exists():
        out, number = base.with_name(f"{base.name}-{number}"), number + 1
    for seed in range(seeds):
        for name, options in RUNS.items():
            stem = name.replace(", ", "-")
            folder = out / (stem if seeds == 1 else f"{stem}-seed{seed}")
            shown = progress(f"{name}, seed {seed}") if progress else None
            runs[name, seed] = finetune(SETTING, **options, seed=seed, out=str(folder), progress=shown)
    return runs
