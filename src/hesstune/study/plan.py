"""The cells of a comparison, each a task, a method and a seed, with a digest of their inputs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hesstune.checks import expanded
from hesstune.data.examples import MEMORY
from hesstune.data.formats import listing, table_paths
from hesstune.data.reading import Reading, Voting
from hesstune.errors import ConfigError, DataError, HesstuneError
from hesstune.methods import method_class, method_names
from hesstune.noise.matrix import is_written_out
from hesstune.options import make_options
from hesstune.resizing import Size
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runs.loading import reading_of, size_of
from hesstune.runs.options import TaskOptions
from hesstune.storage.files import write_json
from hesstune.study.options import CellRecord, OptionValues, Settings
from hesstune.training.prepare import as_trained

# Options of a run that do not change what it computes; the data is identified by its digest.
ELSEWHERE = ("out", "track", "device", "cache_mib", "activations_mib", "data", "weights")


class Contents:
    """Digests of files, folders and modules by path, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def named_by(self, value: object) -> str | None:
        """Return a digest of what PATH, KIND:PATH or py:MODULE:NAME names; None if nothing is there."""
        if not isinstance(value, str) or not value or is_written_out(value):
            return None
        if expanded(value).is_file():
            return self.of(expanded(value))
        kind, sign, name = value.partition(":")
        path = _module_file(name.partition(":")[0]) if kind == "py" else expanded(name) if name else None
        if path is None or not path.exists():
            return None
        return f"{kind}{sign}{name if kind == 'py' else ''}{self.of(path)}"

    def of(self, path: Path) -> str:
        """Return the digest of a file, or of all files below a folder with their names."""
        path = path.absolute()
        if path in self._known:
            return self._known[path]
        try:
            if path.is_dir():
                files = sorted(each for each in path.rglob("*") if each.is_file())
                parts = [[each.relative_to(path).as_posix(), self.of(each)] for each in files]
                found = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            else:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        self._known[path] = found
        return found


def _module_file(name: str) -> Path | None:
    """Return the file of a module that `py:MODULE:NAME` names; the working folder is searched first."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):  # the cell fails with the reason
        return None
    finally:
        sys.path[:] = before
    return None if found is None or not found.has_location or found.origin is None else Path(found.origin)


def fingerprint(config: FinetuneConfig, data: str, settings: Settings, contents: Contents) -> str:
    """Return the digest of everything that a cell's result depends on."""
    values = {name: v for name, v in config.to_dict().items() if name not in ELSEWHERE}
    for name in FinetuneConfig.naming_files():
        # By content: a path may hold something else tomorrow.
        if name != "data" and (found := contents.named_by(getattr(config, name))) is not None:
            values[name] = found
    asked = {name: v for name, v in settings.model_dump().items() if name != "keep_runs"}
    text = json.dumps([values, data, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DataFacts:
    """A data set: the digest of its examples, its k classes, and the width of feature vectors or None."""

    digest: str
    k: int
    is_text: bool
    width: int | None


def data_facts(data: Any, size: Size, how: Reading, contents: Contents) -> DataFacts:
    """Return what a comparison needs to know of a data set, named by a string or given as an object.

    The digest is of ids, labels, parts, votes and soft labels, of images, texts or vectors, and of the table
    or archive that holds them.
    """
    found = listing(data, size, how=how)
    digest = hashlib.sha256(json.dumps([found.ids, found.classes, found.parts, found.texts]).encode())
    if found.labels is not None:
        digest.update(np.ascontiguousarray(found.labels).data)
    if found.array is not None:
        digest.update(np.ascontiguousarray(found.array.numpy()).data)
    for own in (found.soft, None if found.votes is None else found.votes.table):
        if own is not None and not isinstance(data, str):
            digest.update(np.ascontiguousarray(own).data)
    if found.vectors is not None:
        digest.update(found.vectors.digest.encode())
    for each in (*(table_paths(data) if isinstance(data, str) else ()), *(found.paths or ())):
        digest.update(contents.of(each).encode())
    width = None if found.vectors is None else found.vectors.width
    return DataFacts(digest.hexdigest(), len(found.classes), found.texts is not None, width)


def is_object(data: Any) -> bool:
    """Tell whether data is an object, not its name."""
    return data is not None and not isinstance(data, str | os.PathLike)


@dataclass(frozen=True)
class KnownFacts:
    """What is known of the data of a comparison's tasks: each data set is read once."""

    objects: Mapping[str, Any]
    contents: Contents
    known: dict[tuple[object, ...], DataFacts] = field(default_factory=dict)

    def __call__(self, task: str, options: TaskOptions) -> DataFacts:
        """Return the facts of a task's data, as a run with these options reads it."""
        how = replace(reading_of(options, seed=0), voting=Voting())
        key = (task if task in self.objects else "", options.data, size_of(options), how)
        if key not in self.known:
            data = self.objects.get(task, options.data)
            self.known[key] = data_facts(data, size_of(options), how, self.contents)
        return self.known[key]


_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: its resolved configuration, and a digest of all that its result depends on."""

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

    def options(self) -> OptionValues:
        """Return the resolved options that other seeds share."""
        own = ("out", "cache_mib", "seed", "fold")
        return {name: value for name, value in self.config.to_dict().items() if name not in own}

    def record(self, **fields: Any) -> CellRecord:
        """Return the cell's record with its status, error and metrics."""
        fields = {"error": None, "metrics": {}, **fields}
        return CellRecord(
            task=self.task, method=self.method, seed=self.seed, fingerprint=self.fingerprint, **fields
        )


@dataclass(frozen=True)
class StudyPlan:
    """All cells of a comparison, tasks outermost, and what is done with each.

    Attributes:
        left_out: {method: why} of methods that do not apply to the options given.
        objects: {task: data} of the tasks with data given in Python.
    """

    cells: list[Cell]
    settings: Settings
    left_out: dict[str, str]
    objects: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the plan for workers."""
        cells = [{**vars(cell), "config": cell.config.model_dump(mode="json")} for cell in self.cells]
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

    In a text `{seed}` and `{task}` stand for the seed and the task's name. The method `all` stands for every
    method that applies, and the option `method` may name another one. With K folds in place of one split,
    those of seed s are tested on by runs of the seeds sK to sK + K − 1.

    Args:
        options: Options of `finetune` that all cells share.
        tasks: {name: options}; None for one task, the data of `options`.
        methods: Names; or {name: options}.
        seeds: The seeds.
        settings: What is computed besides training.
        folds: K.
    """
    instead = {"method": "methods", "seed": "seeds", "fold": "folds", "out": "the comparison's own folder"}
    for name in instead.keys() & options.keys():
        raise ConfigError(f"a comparison sets the option {name} itself; use {instead[name]}")
    runs: list[tuple[int, OptionValues]] = [(seed, {}) for seed in seeds]
    if folds is not None:
        parts = [(s * folds + part, f"{part + 1}/{folds}") for s in seeds for part in range(folds)]
        runs = [(seed, {"fold": fold}) for seed, fold in parts]
    named = _tasks(options, tasks)
    variants, left_out = _variants(methods), dict[str, str]()
    cells: list[Cell] = []
    contents = Contents()
    objects = {task: data for task, own in named.items() if is_object(data := {**options, **own}.get("data"))}
    named = {task: {**own, "data": MEMORY} if task in objects else own for task, own in named.items()}
    facts_of = KnownFacts(objects, contents)
    head_only: dict[tuple[object, ...], bool] = {}
    for task, own in named.items():
        # An error of every method is raised once, even if `all` leaves out methods that do not apply.
        make_config(_filled({**options, **own}, task, seeds[0]))
        for seed, fold in runs:
            for method, more in variants.items():
                values = _filled({**options, **own, **more, **fold, "seed": seed}, task, seed)
                try:
                    config = make_config(values).resolved()
                    facts = facts_of(task, config)
                    config = _as_trained(config, facts, head_only)
                    config.check_trained(facts.is_text)
                except ConfigError as error:
                    if methods == "all" or "all" in methods:
                        left_out[method] = str(error)
                        continue
                    raise ConfigError(f"task {task}, method {method}: {error}") from None
                made_from = fingerprint(config, facts.digest, settings, contents)
                cells.append(Cell(task, method, seed, config, made_from))
    if not cells:
        raise ConfigError("there is nothing to compare: give at least one method, task and seed")
    return StudyPlan(cells, settings, left_out, objects)


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
    given = options.get("data", "digits")
    data = MEMORY if is_object(given) else os.fspath(given)
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", Path(data.partition(":")[2] or data).name).strip("-.")
    return {name or "task": {}}


def _variants(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, OptionValues]:
    given = {name: {} for name in methods} if not isinstance(methods, Mapping) else methods
    if len(given) < len(methods):
        raise ConfigError("a method is named twice; give each once")
    variants: dict[str, OptionValues] = {}
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


def _filled(values: OptionValues, task: str, seed: int) -> OptionValues:
    """Replace `{task}` and `{seed}` in texts."""
    return {
        name: value.replace("{seed}", str(seed)).replace("{task}", task) if isinstance(value, str) else value
        for name, value in values.items()
    }


def _as_trained(
    config: FinetuneConfig, facts: DataFacts, known: dict[tuple[object, ...], bool]
) -> FinetuneConfig:
    """Return a configuration as the run will have it; each network is loaded once."""
    if facts.width is not None:
        return config.on_features(facts.width)[0]
    if facts.is_text:
        config, _ = config.on_texts()
    key = (config.model, config.weights, config.train, facts.k, facts.is_text)
    if key not in known:
        try:
            known[key] = as_trained(config, config.model, facts.k, facts.is_text).head_only
        except HesstuneError:  # the cell fails with the reason
            known[key] = config.head_only
    return config.as_head_only() if known[key] and not config.head_only else config
