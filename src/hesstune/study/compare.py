"""`hesstune.compare`: tasks × methods × seeds; a stopped comparison continues."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from filelock import FileLock, Timeout

from hesstune.data.load import reusing_decoded
from hesstune.display import as_html
from hesstune.errors import ConfigError, MissingExtraError, RunError, unknown_name
from hesstune.inputs.features import FeatureStore, sharing
from hesstune.methods import method_names
from hesstune.options import make_options, takes_options
from hesstune.runs.config import read_yaml
from hesstune.runs.folder import locked
from hesstune.runs.keywords import CompareKeywords
from hesstune.runs.records import RECORD, RunRecord
from hesstune.runtime.signals import Progress
from hesstune.storage.files import made_folder, one_line, write_text
from hesstune.storage.remembered import remembering
from hesstune.storage.stored import read_record, write_record
from hesstune.study.cell import CELL, run_cell
from hesstune.study.options import CellRecord, CompareOptions, Settings, StudyResults
from hesstune.study.plan import Cell, StudyPlan, make_study_plan
from hesstune.study.results import (
    RESULTS,
    cells_csv,
    cells_table,
    check_unchanged,
    markdown,
    method_rows,
    read_results,
    results_of,
)
from hesstune.training.finetune import is_config

if TYPE_CHECKING:
    from pandas import DataFrame

PLAN, STORE = "plan.json", "features"
# How often a cell is started again after its process or machine was lost.
RETRIES = 5
# With cached features, one process finishes so many short cells before a second one has started.
FEW_CELLS = 12
POLL_SECONDS = 0.2
# The first word of the header lines about the data.
DATA = "Data"


def finished(out: Path, cell: Cell) -> CellRecord | None:
    """Return the record of a cell that has been run as it is planned now, else None."""
    path = out / cell.folder / CELL
    try:
        record = CellRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return record if record.fingerprint == cell.fingerprint else None


def work(
    out: Path,
    plan: StudyPlan,
    start: int = 0,
    done: Callable[[Cell], None] | None = None,
    parent: int | None = None,
    threads: int | None = None,
) -> None:
    """Run every cell that is neither finished nor claimed by another process, from cell `start` on.

    `done` is called with each cell when it is finished. The worker stops between cells once the process
    `parent` is no longer its parent (not on Windows). One worker computes features with all `threads` while
    others wait.
    """
    order = plan.cells[start:] + plan.cells[:start]
    with sharing(FeatureStore(out / STORE, threads=threads)), remembering(out / STORE), reusing_decoded():
        for cell in order:
            if parent is not None and os.getppid() != parent:
                return
            if not finished(out, cell) and _run_claimed(out, plan, cell) and done is not None:
                done(cell)


def _run_claimed(out: Path, plan: StudyPlan, cell: Cell, wait: bool = False) -> bool:
    """Run a cell unless it is finished; return False if another process runs it and `wait` is False."""
    folder = made_folder(out / cell.folder)
    try:
        with FileLock(folder / ".claimed", blocking=wait):
            if not finished(out, cell):  # another worker may have run it meanwhile
                run_cell(cell, folder, plan.settings, plan.objects.get(cell.task))
    except Timeout:
        return False
    return True


def _work_on_cluster(folder: Path, plan: StudyPlan, jobs: int | None, show: Callable[[str], None]) -> None:
    """Run every unfinished cell as a Ray task, each on one core; the folder must be on a shared file system.

    The cluster is the one that RAY_ADDRESS names, else one that runs on this machine, else a new one on this
    machine alone. Ray runs the cells of a lost machine again; they continue from the last checkpoint.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray", "--engine ray") from None
    starts_cluster, folder = not ray.is_initialized(), folder.resolve()
    if starts_cluster:
        _connect_to_cluster(ray)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_run_on_cluster)
    waiting = [index for index, cell in enumerate(plan.cells) if finished(folder, cell) is None]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            show("Ray")
            while waiting and (jobs is None or len(running) < jobs):
                index = waiting.pop(0)
                running[task.remote(str(folder), index)] = index
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in ready:
                cell = plan.cells[running.pop(reference)]
                try:
                    problem = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
                    raise RunError(
                        f"the cell {cell.task}, {cell.method}, seed {cell.seed} was lost {RETRIES + 1} times "
                        f"or failed ({reason.strip()}); the same command continues"
                    ) from error
                if problem:
                    raise RunError(problem)
        show("Ray")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if starts_cluster:
            ray.shutdown()


def _connect_to_cluster(ray: Any) -> None:
    environment = {"PYTHONPATH": _import_paths(), "OMP_NUM_THREADS": "1"}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        ray.init(**quiet, runtime_env={"env_vars": environment})
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place = os.environ.get("RAY_ADDRESS", "on this machine")
        raise RunError(f"cannot reach the Ray cluster {place}: {one_line(error)}") from error


def _run_on_cluster(folder: str, index: int) -> str:
    """Run one cell on a machine of the cluster; return an error message, or an empty text."""
    import torch

    torch.set_num_threads(1)
    out = Path(folder)
    if not (out / PLAN).is_file():
        return f"a machine of the cluster does not see {out}: --out must be on a file system that all share"
    plan = StudyPlan.read(out / PLAN)
    with sharing(FeatureStore(out / STORE)), reusing_decoded():
        # The process of a lost machine may still be about to end.
        _run_claimed(out, plan, plan.cells[index], wait=True)
    return ""


class Comparison:
    """A comparison, read from its folder.

    Attributes:
        path: The folder.
        results: What results.json holds (see `hesstune.study.results`).
    """

    def __init__(self, path: Path, results: StudyResults) -> None:
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
        return all(cell.status != "pending" for cell in self.results.cells)

    def markdown(self) -> str:
        """Return its tables as Markdown."""
        return markdown(self.results)

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame with a row for each cell, as results.csv.

        Columns: task, method, seed, status (`done`, `failed` or `pending`), and each metric by its name, such
        as test_accuracy, gap, measure, distance and seconds; NaN if a cell has none.
        """
        from pandas import DataFrame

        header, rows = cells_table(self.results)
        return DataFrame(rows, columns=header)

    def _repr_html_(self) -> str:
        from pandas import DataFrame

        tasks = self.results.tasks
        header, rows = method_rows(self.results, None if len(tasks) > 1 else tasks[0])
        return as_html(repr(self), self.results.header, DataFrame(rows, columns=header))

    def __repr__(self) -> str:
        cells = self.results.cells
        done = sum(c.status == "done" for c in cells)
        return f"Comparison({str(self.path)!r}, {done} of {len(cells)} cells done)"


@takes_options(CompareOptions)
def compare(
    config: Any = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Unpack[CompareKeywords],
) -> Comparison:
    """Fine-tune by several methods on several tasks and seeds, all with the same budget, and compare.

    The same call on the same folder continues a stopped comparison, and may add methods, tasks or seeds;
    a finished cell is never run again. Written are results.json, results.csv and README.md.

    Args:
        config: Options of `finetune` for all cells, or a YAML file of them; it may also hold the options of
            `CompareOptions`. Or the data, if it is an object as for `finetune`: a DataFrame, (X, y), or a
            data set. Objects, also those of the option `data`, are compared in this process (`jobs` 1).
        overwrite: Start over: the folder's cells are removed.
        progress: Called with (cells done, cells in all, text).
        command: The command line, for the record.
        **options: Options of `CompareOptions`, and of `finetune`, by name, over those of `config`.
            `out` is the comparison's folder.

    Raises:
        HesstuneError: If an option is wrong, or differs from those of the cells finished before.

    Example:
        >>> import hesstune as ht
        >>> few = {"data": "digits", "train": "head", "limit": 64, "epochs": 1, "inject_noise": "pair:0.4"}
        >>> found = ht.compare(few, methods=["vanilla", "robust"], seeds=2)
        >>> found.finished, len(found.results.cells)
        (True, 4)
    """
    if config is not None and not isinstance(config, str | Path) and not is_config(config):
        if "data" in options:
            raise ConfigError("data is given twice, by position and by name; give it once")
        config = {"data": config}
    out = options.pop("out", None)
    values = read_yaml(config) if isinstance(config, str | Path) else dict(config or {})
    values |= {k: v for k, v in options.items() if v is not None or k not in CompareOptions.model_fields}
    plan, asked = plan_of(values)
    jobs = _jobs(plan, asked)
    folder = Path(out) if out else Path(tempfile.mkdtemp(prefix="hesstune-compare-"))
    _claim(folder, overwrite)
    with locked(folder):
        return _run(folder, plan, asked, jobs, progress, command)


def plan_of(values: Mapping[str, Any]) -> tuple[StudyPlan, CompareOptions]:
    """Return the plan, and how it is run, of options of runs and of the comparison, by name.

    Raises:
        ConfigError: If an option is wrong.
    """
    fields = CompareOptions.model_fields
    asked = make_options(CompareOptions, {name: v for name, v in values.items() if name in fields})
    shared = {name: v for name, v in values.items() if name not in fields}
    settings = Settings(**{name: getattr(asked, name) for name in Settings.model_fields})
    plan = make_study_plan(shared, asked.tasks, asked.methods, asked.seeds, settings, asked.folds)
    names = list(dict.fromkeys(c.method for c in plan.cells))
    base = asked.baseline or ("vanilla" if "vanilla" in names else names[0])
    if base not in names:
        raise unknown_name("baseline", base, names)
    return plan, asked.model_copy(update={"baseline": base})


def _jobs(plan: StudyPlan, asked: CompareOptions) -> int | None:
    """Return the number of processes: by default one per core, or one if cells are short and few.

    None on a cluster is one per core of the cluster.
    """
    own = sorted({c.config.method for c in plan.cells} - set(method_names()))
    several = asked.engine == "ray" or (asked.jobs or 1) > 1
    if own and several:
        raise ConfigError(
            f"method '{own[0]}' is a class of this process; other processes cannot run it: use jobs=1"
        )
    if plan.objects and several:
        raise ConfigError(
            "the data was given in Python, where other processes cannot read it: use jobs=1, or write it to "
            "a file and name that"
        )
    if asked.engine == "ray":
        return asked.jobs
    short = all(c.config.head_only for c in plan.cells) and len(plan.cells) <= FEW_CELLS
    return asked.jobs or (1 if short or own or plan.objects else _cores())


def _cores() -> int:
    """Return the number of cores that this process may use, or those of the machine if that is unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _claim(folder: Path, overwrite: bool) -> None:
    """Create the folder, or refuse one that does not hold a comparison; remove an old one on request."""
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
    folder: Path,
    plan: StudyPlan,
    asked: CompareOptions,
    jobs: int | None,
    progress: Progress | None,
    command: str | None,
) -> Comparison:
    """Run the unfinished cells and write the results."""
    notes: list[str] = []
    earlier: list[CellRecord] = []
    if (folder / RESULTS).is_file():
        before = read_results(folder)
        notes = [line for line in before.header if line.startswith(DATA)]
        check_unchanged(plan, before, folder)
        done = {record.key: record for record in before.cells if record.status == "done"}
        for cell in plan.cells:  # the folder may have come without the files of its cells
            record = done.pop(cell.key, None)
            if record is not None and finished(folder, cell) is None:
                made_folder(folder / cell.folder)
                write_record(folder / cell.folder / CELL, record)
        earlier = list(done.values())
    plan.write(folder / PLAN)
    for cell in plan.cells:  # the cause of a failure may have been fixed
        if (record := finished(folder, cell)) and record.status == "failed":
            (folder / cell.folder / CELL).unlink()

    def show(text: str) -> None:
        if progress is not None:
            done = sum((folder / cell.folder / CELL).is_file() for cell in plan.cells)
            progress(done, len(plan.cells), text)

    try:
        if any(finished(folder, cell) is None for cell in plan.cells):
            run_cells = _work_on_cluster if asked.engine == "ray" else _work_here
            run_cells(folder, plan, jobs, show)
    finally:
        records = [record for cell in plan.cells if (record := finished(folder, cell))]
        notes = _data_notes(folder, plan) or notes
        results = results_of(plan, records + earlier, str(asked.baseline), command, notes)
        write_record(folder / RESULTS, results)
        write_text(folder / "results.csv", cells_csv(results))
        write_text(folder / "README.md", markdown(results))
    return Comparison(folder, results)


def _data_notes(folder: Path, plan: StudyPlan) -> list[str]:
    """Return what the runs report about their data: what was left out, changed or guessed."""
    several = len({cell.task for cell in plan.cells}) > 1
    found: dict[str, None] = {}
    for cell in plan.cells:
        facts = read_record(folder / cell.folder / "run" / RECORD, RunRecord)
        for note in facts.data_notes if facts else ():
            found[f"{DATA}{f' of {cell.task}' if several else ''}: {note}"] = None
    return list(found)


def _work_here(folder: Path, plan: StudyPlan, jobs: int | None, show: Callable[[str], None]) -> None:
    """Run every unfinished cell in this process, or in several, each with its share of the cores."""
    jobs = min(jobs or 1, sum(finished(folder, c) is None for c in plan.cells))
    if jobs == 1:
        show("")
        work(folder, plan, done=lambda cell: show(f"{cell.task}, {cell.method}"))
        return
    threads, logs = max(1, _cores() // jobs), made_folder(folder / "logs")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": _import_paths()}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(jobs):
            numbers = (number * len(plan.cells) // jobs, threads, threads * jobs, os.getpid())
            command = [sys.executable, "-m", __name__, str(folder.resolve()), *map(str, numbers)]
            with (logs / f"worker-{number}.txt").open("wb") as log:
                workers.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
                )
        while any(w.poll() is None for w in workers):
            time.sleep(POLL_SECONDS)
            show(f"{jobs} processes")
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


def _import_paths() -> str:
    """Return a PYTHONPATH with which a worker imports from the same folders as this process."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _main() -> None:
    import torch

    folder, start, threads, together, parent = Path(sys.argv[1]), *(int(a) for a in sys.argv[2:6])
    torch.set_num_threads(threads)
    work(folder, StudyPlan.read(folder / PLAN), start, parent=parent, threads=together)


if __name__ == "__main__":
    _main()
