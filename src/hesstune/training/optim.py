"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import torch

from hesstune.runs.config import FinetuneConfig

__all__ = ["make_optimizer", "make_schedule"]


def make_optimizer(config: FinetuneConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build torch's Adam, AdamW or SGD from the configuration."""
    assert config.lr is not None
    lr, decay = config.lr, config.weight_decay or 0.0
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=decay)


def make_schedule(
    config: FinetuneConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the schedule: a linear rise over `lr_warmup` of the steps, then cosine, step or constant."""
    rise = max(1, round(config.lr_warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise if config.lr_warmup else 1.0
        done = (step - rise) / max(1, steps - rise)
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if config.schedule == "step":
            return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
