"""`hesstune.compare`: tasks × methods × seeds, continued where it stopped."""

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
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hesstune.data.load import reusing_decoded
from hesstune.errors import MissingExtraError, RunError, unknown_name
from hesstune.inputs.features import FeatureStore, sharing
from hesstune.options import make_options, takes_options
from hesstune.runs.config import read_yaml
from hesstune.runs.folder import locked
from hesstune.runs.records import RECORD, RunRecord
from hesstune.runtime.signals import Progress
from hesstune.storage.atomic import made_folder, write_text
from hesstune.storage.remembered import remembering
from hesstune.storage.stored import read_record, write_record
from hesstune.study.cell import CELL, run_cell
from hesstune.study.options import CellRecord, CompareOptions, Settings, StudyResults
from hesstune.study.plan import Cell, StudyPlan, make_study_plan
from hesstune.study.results import RESULTS, cells_csv, check_unchanged, markdown, read_results, results_of

__all__ = ["PLAN", "Comparison", "compare", "finished", "one", "plan_of", "work"]

PLAN, STORE = "plan.json", "features"


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
    """Run every cell that is neither finished nor in another process's hands.

    Args:
        out: The comparison's folder.
        plan: Its plan.
        start: The cell to begin with, so that workers begin apart.
        done: Called with each cell when it is finished.
        parent: Stop between cells once this process is no longer the parent. (Windows never names another
            one: there a worker whose parent has gone does the rest.)
        threads: Of all workers together: one computes features while the others wait for them.
    """
    order = plan.cells[start:] + plan.cells[:start]
    with sharing(FeatureStore(out / STORE, threads=threads)), remembering(out / STORE), reusing_decoded():
        for cell in order:
            if parent is not None and os.getppid() != parent:
                return
            if finished(out, cell) or not one(out, plan, cell):
                continue
            if done is not None:
                done(cell)


def one(out: Path, plan: StudyPlan, cell: Cell, wait: bool = False) -> bool:
    """Run one cell unless it is finished; return False where it is in another process's hands."""
    folder = out / cell.folder
    made_folder(folder)
    claim = FileLock(folder / ".claimed")
    try:
        claim.acquire(blocking=wait)
    except Timeout:
        return False
    try:
        if not finished(out, cell):  # another worker may have had it meanwhile
            run_cell(cell, folder, plan.settings)
    finally:
        claim.release()
    return True


# How often a cell is started anew when its process or its machine is lost; it continues from the run's
# last checkpoint.
RETRIES = 5


def work_on_cluster(
    folder: Path, plan: StudyPlan, most: int | None, progress: Callable[[int, int, str], None] | None = None
) -> None:
    """Run every unfinished cell as a Ray task, each on one core.

    The cluster is the one that RAY_ADDRESS names, else the one started on this machine, else a new one
    on this machine alone. The folder must be on a file system that all its machines share.

    Raises:
        MissingExtraError: If Ray is not installed.
        RunError: If the cluster cannot be reached, or a cell was lost too often.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray", "--engine ray") from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    try:
        _run_all(ray, folder.resolve(), plan, most, progress)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> None:
    # Workers import what this process imports, from the same folders.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    try:
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
            runtime_env={"env_vars": environment},
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = os.environ.get("RAY_ADDRESS", "on this machine")
        raise RunError(f"cannot reach the Ray cluster {where}: {' '.join(str(error).split())}") from error


def _run_all(
    ray: Any,
    folder: Path,
    plan: StudyPlan,
    most: int | None,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_cell)
    waiting = [index for index, cell in enumerate(plan.cells) if finished(folder, cell) is None]
    done = len(plan.cells) - len(waiting)
    running: dict[Any, int] = {}
    if progress is not None:
        progress(done, len(plan.cells), "Ray")
    try:
        while waiting or running:
            while waiting and (most is None or len(running) < most):
                index = waiting.pop(0)
                running[task.remote(str(folder), index)] = index
            ready, _ = ray.wait(list(running), timeout=POLL)
            for reference in ready:
                _check(ray, reference, plan, running.pop(reference))
                done += 1
                if progress is not None:
                    progress(done, len(plan.cells), "Ray")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _check(ray: Any, reference: Any, plan: StudyPlan, index: int) -> None:
    try:
        told = ray.get(reference)
    except ray.exceptions.RayError as error:
        cell = plan.cells[index]
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RunError(
            f"the cell {cell.task}, {cell.method}, seed {cell.seed} was lost {RETRIES + 1} times or broke "
            f"({lines[-1].strip() if lines else type(error).__name__}); the same command continues"
        ) from error
    if told:
        raise RunError(told)


def _cell(folder: str, index: int) -> str:
    """Run one cell on a machine of the cluster; return what is wrong there, or nothing."""
    import torch

    from hesstune.data.load import reusing_decoded
    from hesstune.inputs.features import FeatureStore, sharing

    torch.set_num_threads(1)
    out = Path(folder)
    if not (out / PLAN).is_file():
        return (
            f"a machine of the cluster does not see {out}: --out must be on a file system that all machines "
            "share"
        )
    plan = StudyPlan.read(out / PLAN)
    with sharing(FeatureStore(out / STORE)), reusing_decoded():
        # The process of a lost machine may still be about to end.
        one(out, plan, plan.cells[index], wait=True)
    return ""


# Cells with cached features that one process has finished before a second one has started.
FEW = 12
POLL = 0.2
# How lines of the header begin that say how data was read.
DATA = "Data"


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

    def __repr__(self) -> str:
        cells = self.results.cells
        done = sum(c.status == "done" for c in cells)
        return f"Comparison({str(self.path)!r}, {done} of {len(cells)} cells done)"


@takes_options(CompareOptions, more=True)
def compare(
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> Comparison:
    """Fine-tune by several methods on several tasks and seeds, all with the same budget, and compare.

    The same call on the same folder continues a stopped comparison, and may add methods, tasks or seeds;
    a finished cell is never run again. Written are results.json, results.csv and README.md.

    Args:
        config: Options of `finetune` for all cells, or a YAML file of them; it may also hold the options of
            `CompareOptions`.
        out: The folder; a temporary one where None.
        overwrite: Start over: the folder's cells are removed.
        progress: Called with (cells done, cells in all, text).
        command: The command line, for the record.
        **options: Options of `CompareOptions`, and of `finetune`, by name, over those of `config`.

    Raises:
        HesstuneError: If an option is wrong, or differs from those of the cells finished before.

    Example:
        >>> import hesstune as ht
        >>> few = {"data": "digits", "train": "head", "limit": 64, "epochs": 1, "inject_noise": "pair:0.4"}
        >>> found = ht.compare(few, methods=["vanilla", "robust"], seeds=2)
        >>> found.finished, len(found.results.cells)
        (True, 4)
    """
    values = read_yaml(config) if isinstance(config, str | Path) else dict(config or {})
    values |= {k: v for k, v in options.items() if v is not None or k not in CompareOptions.model_fields}
    plan, asked = plan_of(values)
    jobs = _jobs(plan, asked)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="hesstune-compare-"))
    _claim(folder, overwrite)
    with locked(folder):
        if asked.engine == "ray":
            work_off = partial(work_on_cluster, folder, plan, asked.jobs, progress)
        else:
            work_off = partial(_locally, folder, plan, jobs, progress)
        return _run(folder, plan, str(asked.baseline), work_off, command)


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


def _jobs(plan: StudyPlan, asked: CompareOptions) -> int:
    """Return the number of processes: by default one a core, or one if cells are short and few.

    Raises:
        ConfigError: If other processes should run a method that is a class of this one.
    """
    own = sorted({c.config.method for c in plan.cells} - set(method_names()))
    if own and (asked.engine == "ray" or (asked.jobs or 1) > 1):
        raise ConfigError(
            f"method '{own[0]}' is a class of this process; other processes cannot run it: use jobs=1"
        )
    short = all(c.config.head_only for c in plan.cells) and len(plan.cells) <= FEW
    return asked.jobs or (1 if short or own else _cores())


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
    told: list[str] = []
    if (folder / RESULTS).is_file():
        before = read_results(folder)
        told = [line for line in before.header if line.startswith(DATA)]
        check_unchanged(plan, before, folder)
        _unpack(folder, before, plan)
    plan.write(folder / PLAN)
    earlier = _earlier(folder, plan)
    for cell in plan.cells:  # an error may have been mended since
        if (record := finished(folder, cell)) and record.status == "failed":
            (folder / cell.folder / CELL).unlink()

    def gather() -> StudyResults:
        records = [r for c in plan.cells if (r := finished(folder, c))]
        results = results_of(plan, [*records, *earlier], baseline, command)
        results = results.model_copy(
            update={"header": [*results.header, *(_data_notes(folder, plan) or told)]}
        )
        write_record(folder / RESULTS, results)
        return results

    try:
        if any(finished(folder, c) is None for c in plan.cells):
            work_off()
    finally:
        results = gather()
        write_text(folder / "results.csv", cells_csv(results))
        write_text(folder / "README.md", markdown(results))
    return Comparison(folder, results)


def _data_notes(folder: Path, plan: StudyPlan) -> list[str]:
    """Say what the runs left out, changed or guessed when they read their data."""
    several = len({cell.task for cell in plan.cells}) > 1
    found: dict[str, None] = {}
    for cell in plan.cells:
        facts = read_record(folder / cell.folder / "run" / RECORD, RunRecord)
        for note in facts.data_notes if facts else ():
            found[f"{DATA}{f' of {cell.task}' if several else ''}: {note}"] = None
    return list(found)


def _earlier(folder: Path, plan: StudyPlan) -> list[CellRecord]:
    """Return the finished cells of an earlier call that this one does not name: they are kept."""
    if not (folder / RESULTS).is_file():
        return []
    planned = {c.key for c in plan.cells}
    cells = read_results(folder).cells
    return [c for c in cells if c.key not in planned and c.status == "done"]


def _unpack(folder: Path, before: StudyResults, plan: StudyPlan) -> None:
    """Restore finished cells from results.json alone: the folder may have come without them."""
    known = {r.key: r for r in before.cells if r.status == "done"}
    for cell in plan.cells:
        record = known.get(cell.key)
        if record is not None and finished(folder, cell) is None:
            made_folder(folder / cell.folder)
            write_record(folder / cell.folder / CELL, record)


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
    logs = made_folder(folder / "logs")
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(jobs):
            start = number * len(plan.cells) // jobs
            command = [sys.executable, "-m", "hesstune.study.compare", str(folder.resolve())]
            command += [str(start), str(threads), str(threads * jobs), str(os.getpid())]
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


def _main() -> None:
    import torch

    folder, start, threads, together, parent = Path(sys.argv[1]), *(int(a) for a in sys.argv[2:6])
    torch.set_num_threads(threads)
    work(folder, StudyPlan.read(folder / PLAN), start, parent=parent, threads=together)


if __name__ == "__main__":
    _main()
