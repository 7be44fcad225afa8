"""A run's network from its weights, wherever these are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from hesstune.errors import ModelError
from hesstune.models.load import LoadedModel, ModelObject, load_model, set_parameters
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.located import located, refuse_missing_base
from hesstune.runs.records import RunRecord

__all__ = ["network_of"]


def network_of(
    config: FinetuneConfig,
    facts: RunRecord,
    weights: Mapping[str, torch.Tensor],
    source: str,
    model: ModelObject | None = None,
) -> LoadedModel:
    """Rebuild a fine-tuned network with its preprocessing, in eval mode, on the CPU.

    Args:
        config: The run's.
        facts: What its run.json holds.
        weights: All parameters and buffers by name.
        source: Where they come from, for messages.
        model: The network, where it was given in Python; a copy of it takes the weights.

    Raises:
        ModelError: If the weights do not fit the network, or it is needed and not given.
    """
    config = located(config, facts)
    if model is None:
        refuse_missing_base(config, facts)
    try:
        loaded = load_model(
            config.model if model is None else model,
            len(facts.classes),
            head_init="keep",
            text=facts.kind == "text",
            pretrained=False,
            head=[facts.head, *facts.other_heads],
            dtype=config.dtype,
        )
    except ModelError as error:
        if model is not None:
            raise ModelError(f"the model given does not fit the run in {source}: {error}") from error
        if not config.model.startswith("py:") or facts.working_folder in ("", str(Path.cwd())):
            raise
        raise ModelError(f"{error}; the run was made in {facts.working_folder}: use it from there") from error
    set_parameters(loaded.model, dict(weights), source)
    loaded.model.eval()
    shape = facts.normalisation
    return replace(loaded, mean=shape.mean, std=shape.std)
