"""What a comparison runs: its cells, each a task, a method and a seed, with a fingerprint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hesstune.data.reading import Reading, Voting
from hesstune.errors import ConfigError, HesstuneError
from hesstune.methods import method_class, method_names
from hesstune.options import make_options
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runs.task import reading_of
from hesstune.study.fingerprint import Contents, data_digest, fingerprint
from hesstune.study.options import Settings
from hesstune.study.records import Options
from hesstune.training.prepare import as_trained

__all__ = ["Cell", "StudyPlan", "check_name", "make_study_plan"]

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        task: The task's name.
        method: The method's name in this comparison.
        seed: Seed of split, noise, order and augmentation.
        config: The run's resolved configuration.
        fingerprint: Digest of everything that the cell's result depends on.
    """

    task: str
    method: str
    seed: int
    config: FinetuneConfig
    fingerprint: str

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, method and seed."""
        return self.task, self.method, self.seed

    @property
    def folder(self) -> Path:
        """The cell's folder, below the comparison's."""
        return Path("cells") / self.task / self.method / f"seed-{self.seed}"

    def options(self) -> Options:
        """Return the resolved options that other seeds share."""
        values = self.config.to_dict()
        return {
            name: value for name, value in values.items() if name not in ("out", "cache_mib", "seed", "fold")
        }


@dataclass(frozen=True)
class StudyPlan:
    """All cells of a comparison, tasks outermost and methods innermost.

    Attributes:
        cells: The cells.
        settings: What is done with each.
        left_out: {method: why} of methods that do not apply to the options given.
    """

    cells: list[Cell]
    settings: Settings
    left_out: dict[str, str]

    def write(self, path: Path) -> None:
        """Write the plan for workers."""
        from hesstune.storage.atomic import write_json

        cells = [
            {"task": c.task, "method": c.method, "seed": c.seed, "fingerprint": c.fingerprint,
             "config": c.config.model_dump(mode="json")}
            for c in self.cells
        ]  # fmt: skip
        write_json(path, {"cells": cells, "settings": self.settings.model_dump(), "left_out": self.left_out})

    @classmethod
    def read(cls, path: Path) -> StudyPlan:
        """Read what `write` wrote."""
        record = json.loads(path.read_text(encoding="utf-8"))
        cells = [Cell(**{**c, "config": make_config(c["config"])}) for c in record["cells"]]
        return cls(cells, make_options(Settings, record["settings"]), record["left_out"])


def make_study_plan(
    options: Mapping[str, Any],
    tasks: Mapping[str, Mapping[str, Any]] | None,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    settings: Settings,
    folds: int | None = None,
) -> StudyPlan:
    """Lay out a comparison and check every option before anything runs.

    Args:
        options: Options of `finetune` that all cells share.
        tasks: {name: options}; None for one task, the data of `options`. `{seed}` and `{task}` in a
            text stand for the seed and the task's name.
        methods: Names; or {name: options}, where the option `method` may name another method. The name
            `all` stands for every method that applies.
        seeds: The seeds.
        settings: See `hesstune.study.options.Settings`.
        folds: K folds in place of one split: those of seed s are tested on by runs of the seeds sK to
            sK + K − 1.

    Raises:
        ConfigError: If a name is unknown, there is nothing to run, or an option is wrong.
    """
    for name in ("method", "seed", "out", "fold"):
        if name in options:
            instead = {"method": "methods", "seed": "seeds", "fold": "folds"}
            instead |= {"out": "the comparison's own folder"}
            raise ConfigError(f"a comparison sets the option {name} itself; use {instead[name]}")
    named = _tasks(options, tasks)
    variants, left_out = _variants(methods), dict[str, str]()
    cells: list[Cell] = []
    data: dict[tuple[str, int, Reading], tuple[str, int, bool]] = {}
    contents = Contents()
    networks = _Networks()
    for task, own in named.items():
        # What is wrong for every method is told once, also where `all` leaves out those that do not apply.
        make_config(_filled({**options, **own}, task, seeds[0]))
        for seed, fold in _runs(seeds, folds):
            for method, more in variants.items():
                values = _filled({**options, **own, **more, **fold, "seed": seed}, task, seed)
                try:
                    config = make_config(values).resolved()
                    assert config.image_size is not None
                    key = (config.data, config.image_size, replace(reading_of(config), voting=Voting()))
                    if key not in data:
                        data[key] = data_digest(*key, contents)
                    digest, k, texts = data[key]
                    config = networks.as_trained(config, k, texts)
                    config.check_trained(texts)
                except ConfigError as error:
                    if methods == "all" or "all" in methods:
                        left_out[method] = str(error)
                        continue
                    raise ConfigError(f"task {task}, method {method}: {error}") from None
                cells.append(
                    Cell(task, method, seed, config, fingerprint(config, digest, settings, contents))
                )
    if not cells:
        raise ConfigError("there is nothing to compare: give at least one method, task and seed")
    return StudyPlan(cells, settings, left_out)


def _runs(seeds: Sequence[int], folds: int | None) -> Iterator[tuple[int, Options]]:
    """Yield the seed of each run of a method on a task, and the fold it is tested on."""
    for seed in seeds:
        if folds is None:
            yield seed, {}
        else:
            yield from ((seed * folds + i, {"fold": f"{i + 1}/{folds}"}) for i in range(folds))


def check_name(kind: str, name: str) -> str:
    """Return a name that is safe as a folder's; raise ConfigError otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the {kind} name '{name}' may hold letters, digits and _ + - . only, no leading dot"
        )
    return name


def _tasks(
    options: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]] | None
) -> Mapping[str, Mapping[str, Any]]:
    if tasks is not None:
        return {check_name("task", str(name)): _mapping("task", name, own) for name, own in tasks.items()}
    data = str(options.get("data", "digits"))
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", Path(data.partition(":")[2] or data).name).strip("-.")
    return {name or "task": {}}


def _variants(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Options]:
    given = {name: {} for name in methods} if not isinstance(methods, Mapping) else methods
    if len(given) < len(methods):
        raise ConfigError("a method is named twice; give each once")
    variants: dict[str, Options] = {}
    for name, own in given.items():
        if name == "all":
            variants |= {each: {"method": each} for each in method_names() if each not in variants}
            continue
        made = {"method": str(name), **_mapping("method", name, own)}
        method_class(made["method"])
        variants[check_name("method", str(name))] = made
    return variants


def _mapping(kind: str, name: object, own: object) -> Mapping[str, Any]:
    if own is None:
        return {}
    if not isinstance(own, Mapping):
        raise ConfigError(f"the {kind} '{name}' needs options by name; got {own!r}")
    return {str(key).replace("-", "_"): value for key, value in own.items()}


def _filled(values: Options, task: str, seed: int) -> Options:
    """Replace `{task}` and `{seed}` in texts."""
    return {
        name: value.replace("{seed}", str(seed)).replace("{task}", task) if isinstance(value, str) else value
        for name, value in values.items()
    }


class _Networks:
    """Which spellings of `train` name the head alone, each network loaded once."""

    def __init__(self) -> None:
        self._head_only: dict[tuple[object, ...], bool] = {}

    def as_trained(self, config: FinetuneConfig, k: int, texts: bool) -> FinetuneConfig:
        """Return a configuration as the run will have it; of a network that does not load, as it is."""
        key = (config.model, config.weights, config.train, k, texts)
        if key not in self._head_only:
            try:
                self._head_only[key] = as_trained(config, config.model, k, texts).head_only
            except HesstuneError:  # the cell fails with it
                self._head_only[key] = config.head_only
        known = self._head_only[key]
        return config.as_head_only() if known and not config.head_only else config
