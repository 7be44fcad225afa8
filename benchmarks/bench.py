"""Run benchmarks, and write the tables and figures of the documentation from their records.

    python benchmarks/bench.py list
    python benchmarks/bench.py run benchmarks/configs/deeper.yaml --data DATA
    python benchmarks/bench.py tables
    python benchmarks/bench.py figures

A configuration names a module of this folder or of tests/bounds, what to install, the folders of DATA that it
needs, the settings, and the cases: lists of values by name, of which every combination is measured. A module
can yield cases by `cases(settings)` instead. Its `measure(case, run)` returns the result of one case, or None
if it does not apply. Each result is one line of results/NAME.jsonl, NAME being the name of the configuration.
Cases that the record has are measured again only with `--again`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

import records
from hesstune.errors import ConfigError, HesstuneError
from records import Run

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"
sys.path[:0] = [
    str(folder)
    for folder in (HERE / "field", *(records.ROOT / name for name in ("examples", "tests/bounds", "tests")))
]
Case = dict[str, Any]


def read_config(path: Path) -> Run:
    """Read a configuration.

    Raises:
        ConfigError: If the file is missing or is no mapping of the attributes of `Run`.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; `bench.py list` shows the configurations")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    known = {f.name for f in fields(Run)} - {"name", "data_folder", "case_seed"}
    wanted = {"module", "about", "install"}
    if not isinstance(found, dict) or not wanted <= set(found) <= known:
        raise ConfigError(f"{path} must be a mapping with {sorted(wanted)}, and no keys but {sorted(known)}")
    if importlib.util.find_spec(found["module"]) is None:
        raise ConfigError(f"{path} names the module {found['module']!r}, which is not in {HERE}")
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    return Run(name=path.stem, **options)


def measure(run: Run, case: Case) -> Case | None:
    """Measure one case; its result also has the seconds that it took."""
    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HESSTUNE_CACHE"] = ""  # features that an earlier command kept would save time
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    started = time.perf_counter()
    found: Case | None = importlib.import_module(run.module).measure(case, run)
    return found and {"seconds": round(time.perf_counter() - started, 1), **found}


def cases_of(run: Run) -> Iterator[Case]:
    """Yield what is measured; without `cases` it is one thing."""
    module = importlib.import_module(run.module)
    if hasattr(module, "cases"):
        yield from module.cases(run.settings)
        return
    for grid in run.cases:
        yield from (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))


def todo(run: Run, only: str, again: bool = False) -> Iterator[tuple[Run, Case]]:
    """Yield the cases that the record lacks, or all of them."""
    done = {records.key(line["case"], line["seed"]) for line in records.lines(run.name) if not again}
    for usual in run.seeds:
        for case in cases_of(run):
            seed = case.pop("seed", usual)
            named = " ".join(map(str, case.values()))
            if only in named and (key := records.key(case, seed)) not in done:
                done.add(key)
                yield replace(run, case_seed=seed), case


def run_all(run: Run, jobs: int, only: str, again: bool = False) -> int:
    """Measure what is missing, or everything; return the number of cases that failed."""
    for name in run.needs:
        run.folder(name)
    failed = 0
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        asked = {
            pool.submit(measure, one, case): (one.case_seed, case) for one, case in todo(run, only, again)
        }
        for job in as_completed(asked):
            seed, case = asked[job]
            if (error := job.exception()) is not None:  # the other cases go on
                print(f"{case}, seed {seed}, failed: {error!r}", file=sys.stderr, flush=True)
                failed += 1
                continue
            if (found := job.result()) is not None:
                records.append(run.name, case, seed, found)
                print(case, seed, found, flush=True)
    return failed


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the configurations, and how to install what each needs")
    commands.add_parser("tables", help="write the tables of the documentation from the records")
    commands.add_parser("figures", help="draw the figures of the documentation")
    one = commands.add_parser("run", help="run a benchmark")
    one.add_argument("config", type=Path)
    one.add_argument("--data", type=Path, help="folder with the data sets that `list` names")
    one.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    one.add_argument("--only", default="", help="only the cases that have this text in their names")
    one.add_argument("--again", action="store_true", help="measure cases that the record has, too")
    asked = parser.parse_args()
    if asked.command in ("tables", "figures"):
        importlib.import_module(asked.command).write()
        return
    if asked.command == "list":
        for path in sorted(CONFIGS.glob("*.yaml")):
            run = read_config(path)
            needs = f" DATA: {', '.join(run.needs)}." if run.needs else ""
            print(f"{path.stem}: {run.about} Install: `{run.install}`.{needs}")
        return
    try:
        run = replace(read_config(asked.config), data_folder=asked.data)
        failed = run_all(run, asked.jobs, asked.only, asked.again)
    except HesstuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
