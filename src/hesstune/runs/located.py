"""Where a run finds again what its configuration names by paths, from whatever working folder it is used."""

from __future__ import annotations

from pathlib import Path

from hesstune.checks import expanded
from hesstune.errors import ModelError
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.records import RunRecord

__all__ = ["base_folder", "located", "missing_data", "refuse_missing_base"]

DATA_KINDS = ("folder", "csv", "array", "hf")


def base_folder(config: FinetuneConfig) -> str:
    """Return the absolute path of the folder that a run's network comes from, or ""."""
    kind, _, path = config.model.partition(":")
    return str(expanded(path).absolute()) if kind == "hf" and path and expanded(path).is_dir() else ""


def located(config: FinetuneConfig, facts: RunRecord) -> FinetuneConfig:
    """Return a run's configuration with its paths as they are to be found from here.

    A relative path that leads nowhere from this working folder, but somewhere from the one where the run was
    made, is taken to begin there.
    """
    changes = {}
    for name in ("data", "model", "clean_labels", "inject_noise", "split"):
        value = getattr(config, name)
        if not isinstance(value, str) or not facts.working_folder:
            continue
        kind, sign, path = _split(name, value)
        there = Path(facts.working_folder) / path if path else None
        if there is not None and not expanded(path).exists() and there.exists():
            changes[name] = f"{kind}{sign}{there}"
    return config.model_copy(update=changes)


def _split(name: str, value: str) -> tuple[str, str, str]:
    kind, sign, path = value.partition(":")
    if kind in (DATA_KINDS if name == "data" else ("hf",) if name == "model" else ("file",)):
        return kind, sign, path
    return "", "", "" if name in ("data", "model") else value


def missing_data(config: FinetuneConfig, facts: RunRecord) -> str:
    """Say where a run's data was, if it is a path that is not there; else nothing."""
    path = _split("data", config.data)[2]
    if not path or expanded(path).exists():
        return ""
    there = Path(facts.working_folder) / expanded(path)
    return (
        f"; the run's data was {there}: put it back, or say in Python where it is, Run.load(path, data=…)"
        if facts.working_folder
        else ""
    )


def refuse_missing_base(config: FinetuneConfig, facts: RunRecord) -> None:
    """Raise ModelError if the folder that a run's network comes from is gone."""
    if facts.base_folder and not base_folder(config):
        raise ModelError(
            f"the run's network comes from the folder {facts.base_folder}, which is not there now: put it "
            "back, or give the network in Python, Run.load(path, model=…)"
        )
