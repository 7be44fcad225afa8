"""The records of a run folder, each optional but the configuration and run.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hesstune.errors import RunError
from hesstune.storage.reading import read_json, read_rows, read_text, reading

__all__ = ["Records", "read_records"]


@dataclass(frozen=True)
class Records:
    """What a run folder says; None or empty where a file is absent."""

    path: Path
    config: dict[str, Any]
    run: dict[str, Any]
    metrics: list[dict[str, Any]]
    noise: dict[str, Any] | None
    estimate: dict[str, Any] | None
    measure: dict[str, Any] | None
    quadratic: Any
    stability: dict[str, Any] | None
    certificate: dict[str, Any] | None
    doubtful: list[dict[str, str]] | None
    pictures: dict[str, dict[str, str]]
    train: list[dict[str, str]]

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their indices."""
        return [str(name) for name in self.run["classes"]]

    @property
    def rate(self) -> float | None:
        """The share of training labels that are wrong, as far as it is known or believed."""
        noise = self.run["noise"]
        rate = noise["realised_rate"] if noise["injected"] else noise["told_rate"]
        return None if rate is None else float(rate)

    @property
    def measured(self) -> list[dict[str, str]]:
        """The training examples that were measured, in the order of the measurement's rows."""
        if self.quadratic is None or not self.measure:
            return []
        rows = self.train
        if ids := self.measure.get("ids"):
            known = {row["id"]: row for row in rows}
            rows = [known[i] for i in ids if i in known]
        return rows if len(rows) == len(self.quadratic) else []


def read_records(path: Path) -> Records:
    """Read a run folder.

    Raises:
        RunError: If it is none, or a record is damaged.
    """
    if not path.is_dir():
        raise RunError(f"the run folder {path} does not exist")
    for name in ("config.yaml", "run.json"):
        if not (path / name).is_file():
            raise RunError(f"{path} is no run folder: {name} is missing")
    run = _json(path / "run.json")
    if not isinstance(run, dict) or "result" not in run:
        raise RunError(f"the run in {path} has not finished; continue it with hesstune finetune --resume")
    with reading(path / "config.yaml", "YAML"):
        config = dict(yaml.safe_load(read_text(path / "config.yaml", most_mib=1)))
    return Records(
        path=path,
        config=config,
        run=run,
        metrics=_lines(path / "metrics.jsonl"),
        noise=_json(path / "noise_matrix.json"),
        estimate=_json(path / "noise_estimate.json"),
        measure=_json(path / "measure.json"),
        quadratic=_quadratic(path / "measure.safetensors"),
        stability=_json(path / "noise_stability.json"),
        certificate=_json(path / "certificate.json") or _json(path / "diagnostic.json"),
        doubtful=_csv(path / "doubtful.csv"),
        pictures=_json(path / "examples.json") or {},
        train=[row for row in _csv(path / "labels.csv") or [] if row.get("part") == "train"],
    )


def _json(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with reading(path, "one JSON object an epoch"):
        return [dict(json.loads(line)) for line in read_text(path).splitlines() if line]


def _csv(path: Path) -> list[dict[str, str]] | None:
    return read_rows(path) if path.is_file() else None


def _quadratic(path: Path) -> Any:
    if not path.is_file():
        return None
    from safetensors import safe_open

    with reading(path, "a measurement"), safe_open(str(path), framework="np") as file:
        return file.get_tensor("quadratic")
