"""`hesstune.compare`: tasks × methods × seeds, continued where it stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hesstune.checks import one_of
from hesstune.errors import ConfigError, RunError, unknown_name
from hesstune.runs.config import read_yaml
from hesstune.runs.folder import locked
from hesstune.storage.atomic import write_json, write_text
from hesstune.study.cell import CELL
from hesstune.study.cluster import work_on_cluster
from hesstune.study.plan import Cell, Settings, StudyPlan, make_plan
from hesstune.study.results import RESULTS, check_unchanged, read_results, results_of
from hesstune.study.tables import cells_csv, markdown
from hesstune.study.work import PLAN, STORE, finished, work

__all__ = ["Comparison", "compare", "plan_of"]

Progress = Callable[[int, int, str], None]
# Cells with cached features that one process has finished before a second one has started.
FEW = 12
POLL = 0.2
ENGINES = ("local", "ray")
KEYS = ("tasks", "methods", "seeds", "baseline", "search")


class Comparison:
    """A comparison, read from its folder.

    Attributes:
        path: The folder.
        results: What results.json holds (see `hesstune.study.results`).
    """

    def __init__(self, path: Path, results: dict[str, Any]) -> None:
        self.path = path
        self.results = results

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read a comparison's folder.

        Raises:
            RunError: If there is none.
        """
        return cls(Path(path), read_results(Path(path)))

    @property
    def finished(self) -> bool:
        """Whether every cell was run; some may have failed."""
        return all(cell["status"] != "pending" for cell in self.results["cells"])

    def markdown(self) -> str:
        """Return its tables as Markdown."""
        return markdown(self.results)

    def __repr__(self) -> str:
        cells = self.results["cells"]
        done = sum(c["status"] == "done" for c in cells)
        return f"Comparison({str(self.path)!r}, {done} of {len(cells)} cells done)"


def compare(
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    seeds: int | Sequence[int] | None = None,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    baseline: str | None = None,
    search: int | None = None,
    measure_examples: int | None = None,
    stability: bool = False,
    certify: bool = False,
    keep_runs: bool = False,
    jobs: int | None = None,
    engine: str = "local",
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> Comparison:
    """Fine-tune by several methods on several tasks and seeds, all with the same budget, and compare.

    The same call on the same folder continues a stopped comparison, and may add methods, tasks or seeds;
    a finished cell is never run again. Written are results.json, results.csv and README.md.

    Args:
        config: Options of `finetune` for all cells, or a YAML file of them; it may also hold `tasks`,
            `methods`, `seeds`, `baseline` and `search`.
        methods: Names, `["all"]`, or {name: options}; by default vanilla and robust.
        seeds: How many seeds, from 0, or which; by default 3.
        tasks: {name: options}; by default one, the data of `options`. `{seed}` and `{task}` stand for
            the seed and the task's name.
        out: The folder; a temporary one where None.
        baseline: The method that differences are taken from; by default vanilla, or the first.
        search: Trials of a search over each method's options, on noisy validation labels.
        measure_examples: Training examples measured: 0 none; by default all for a head, else 200.
        stability: Also noise stability.
        certify: Also a certificate where a head alone is trained.
        keep_runs: Keep every run's weights.
        jobs: Processes, which share the cores; by default one a core, or one where cells are short and few.
        engine: `local`, processes of this machine, or `ray`, tasks over a Ray cluster whose machines share
            `out`.
        overwrite: Start over: the folder's cells are removed.
        progress: Called with (cells done, cells in all, text).
        command: The command line, for the record.
        **options: Options of `finetune`, over those of `config`.

    Raises:
        HesstuneError: If an option is wrong, or differs from those of the cells finished before.

    Example:
        >>> import hesstune as ht
        >>> few = {"data": "digits", "train": "head", "limit": 64, "epochs": 1, "inject_noise": "pair:0.4"}
        >>> found = ht.compare(few, methods=["vanilla", "robust"], seeds=2)
        >>> found.finished, len(found.results["cells"])
        (True, 4)
    """
    values = read_yaml(config) if isinstance(config, str | Path) else dict(config or {})
    given = dict(zip(KEYS, (tasks, methods, seeds, baseline, search), strict=True))
    values |= options | {name: value for name, value in given.items() if value is not None}
    plan, base = plan_of(values, Settings(measure_examples, stability, certify, 0, keep_runs))
    one_of("engine", engine, ENGINES)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="hesstune-compare-"))
    _claim(folder, overwrite)
    with locked(folder):
        if engine == "ray":
            work_off = partial(work_on_cluster, folder, plan, jobs, progress)
        else:
            work_off = partial(_locally, folder, plan, _jobs(jobs, plan), progress)
        return _run(folder, plan, base, work_off, command)


def plan_of(values: Mapping[str, Any], settings: Settings | None = None) -> tuple[StudyPlan, str]:
    """Return the plan, and the baseline, of options that may also hold the names in KEYS.

    Raises:
        ConfigError: If an option is wrong.
    """
    own = {key: values.get(key) for key in KEYS}
    options = {key: value for key, value in values.items() if key not in KEYS}
    settings = replace(settings or Settings(), search=int(own["search"] or 0))
    plan = make_plan(options, own["tasks"], _methods(own["methods"]), _seeds(own["seeds"]), settings)
    names = list(dict.fromkeys(c.method for c in plan.cells))
    base = own["baseline"] or ("vanilla" if "vanilla" in names else names[0])
    if base not in names:
        raise unknown_name("baseline", str(base), names)
    return plan, str(base)


def _methods(given: Any) -> Sequence[str] | Mapping[str, Mapping[str, Any]]:
    if given is None:
        return ["vanilla", "robust"]
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",") if name.strip()]
    if not isinstance(given, Mapping | list | tuple) or not given:
        raise ConfigError(f"methods must be names or a mapping of names to options; got {given!r}")
    return given


def _seeds(given: Any) -> list[int]:
    seeds = range(3) if given is None else given
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        seeds = range(seeds)
    if not isinstance(seeds, range | list | tuple) or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise ConfigError(f"seeds must be a count or a list of integers from 0; got {given!r}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be at least one, each once; got {given!r}")
    return list(seeds)


def _jobs(given: int | None, plan: StudyPlan) -> int:
    if given is not None:
        if given < 1:
            raise ConfigError(f"jobs must be at least 1; got {given}")
        return given
    short = all(c.config.train == "head" for c in plan.cells) and len(plan.cells) <= FEW
    return 1 if short else _cores()


def _cores() -> int:
    """Return the number of cores that this process may use; of the machine, where it cannot be told."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _claim(folder: Path, overwrite: bool) -> None:
    """Make sure that a comparison may be written to the folder."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder} is a file; give the path of a folder")
    kept = [p for p in folder.iterdir() if p.name != ".lock"] if folder.is_dir() else []
    ours = any((folder / name).is_file() for name in (RESULTS, PLAN))
    if kept and not ours:
        raise RunError(f"the folder {folder} holds files but no comparison; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            with locked(folder):
                for name in ("cells", STORE):
                    shutil.rmtree(folder / name, ignore_errors=True)
                for name in (RESULTS, PLAN, "results.csv", "README.md"):
                    (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to --out {folder}: {error.strerror or error}") from error


def _run(
    folder: Path, plan: StudyPlan, baseline: str, work_off: Callable[[], None], command: str | None
) -> Comparison:
    if (folder / RESULTS).is_file():
        before = read_results(folder)
        check_unchanged(plan, before, folder)
        _unpack(folder, before, plan)
    plan.write(folder / PLAN)
    earlier = _earlier(folder, plan)
    for cell in plan.cells:  # an error may have been mended since
        if (record := finished(folder, cell)) and record["status"] == "failed":
            (folder / cell.folder / CELL).unlink()

    def gather() -> dict[str, Any]:
        records = [r for c in plan.cells if (r := finished(folder, c))]
        results = results_of(plan, [*records, *earlier], baseline, command)
        write_json(folder / RESULTS, results)
        return results

    try:
        if any(finished(folder, c) is None for c in plan.cells):
            work_off()
    finally:
        results = gather()
        write_text(folder / "results.csv", cells_csv(results))
        write_text(folder / "README.md", markdown(results))
    return Comparison(folder, results)


def _earlier(folder: Path, plan: StudyPlan) -> list[dict[str, Any]]:
    """Return the finished cells of an earlier call that this one does not name: they are kept."""
    if not (folder / RESULTS).is_file():
        return []
    planned = {c.key for c in plan.cells}
    cells: list[dict[str, Any]] = read_results(folder)["cells"]
    return [c for c in cells if (c["task"], c["method"], c["seed"]) not in planned and c["status"] == "done"]


def _unpack(folder: Path, before: Mapping[str, Any], plan: StudyPlan) -> None:
    """Restore finished cells from results.json alone: the folder may have come without them."""
    known = {(r["task"], r["method"], r["seed"]): r for r in before["cells"] if r["status"] == "done"}
    for cell in plan.cells:
        record = known.get(cell.key)
        if record is not None and finished(folder, cell) is None:
            (folder / cell.folder).mkdir(parents=True, exist_ok=True)
            write_json(folder / cell.folder / CELL, record)


def _locally(folder: Path, plan: StudyPlan, jobs: int, progress: Progress | None) -> None:
    jobs = min(jobs, sum(finished(folder, c) is None for c in plan.cells))
    if jobs == 1:
        _alone(folder, plan, progress)
    else:
        _together(folder, plan, jobs, progress)


def _alone(folder: Path, plan: StudyPlan, progress: Progress | None) -> None:
    def tell(cell: Cell | None) -> None:
        if progress is not None:
            count = sum(finished(folder, c) is not None for c in plan.cells)
            progress(count, len(plan.cells), "" if cell is None else f"{cell.task}, {cell.method}")

    tell(None)
    work(folder, plan, done=tell)


def _together(folder: Path, plan: StudyPlan, jobs: int, progress: Progress | None) -> None:
    """Work through the plan by several processes, each with its share of the cores."""
    threads = max(1, _cores() // jobs)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
    }
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(jobs):
            start = number * len(plan.cells) // jobs
            command = [sys.executable, "-m", "hesstune.study.work", str(folder.resolve())]
            command += [str(start), str(threads), str(os.getpid())]
            with (logs / f"worker-{number}.txt").open("wb") as log:
                workers.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
                )
        while any(w.poll() is None for w in workers):
            time.sleep(POLL)
            if progress is not None:
                count = sum((folder / c.folder / CELL).is_file() for c in plan.cells)
                progress(count, len(plan.cells), f"{jobs} processes")
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    for number, worker in enumerate(workers):
        if worker.returncode:
            text = (logs / f"worker-{number}.txt").read_text(errors="replace").strip().splitlines()
            raise RunError(
                f"a worker ended with exit code {worker.returncode} ({text[-1] if text else 'no message'}); "
                f"the same command continues; see {logs}"
            )
