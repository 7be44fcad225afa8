"""What people see: progress bars on a terminal, and small tables."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hesstune.cli.exits import is_first

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.training.run import Run

__all__ = ["Output", "progress_bars", "results_table"]

# Columns below which the table of results is turned.
NARROW = 70
ProgressFor = Callable[[str], Callable[[int, int, str], None]]


class Output:
    """Where a command writes: text for people unless quiet, one JSON line for scripts if asked."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self.quiet = quiet or not is_first()
        self.as_json = as_json and is_first()

    def say(self, *items: Any) -> None:
        """Print text or tables for people."""
        if not self.quiet:
            from rich.console import Console

            if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without ᵀ and Σ shows ? for them
                sys.stdout.reconfigure(errors="replace")
            console = Console(highlight=False, soft_wrap=True)
            for item in items:
                console.print(item, markup=False) if isinstance(item, str) else console.print(item)

    def record(self, record: dict[str, Any]) -> None:
        """Print the final record as the last line, if --json was given."""
        if self.as_json:
            sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
            sys.stdout.flush()


@contextlib.contextmanager
def progress_bars(quiet: bool) -> Iterator[ProgressFor | None]:
    """Show a progress bar a run on standard error, if it is a terminal; else yield None."""
    if quiet or not is_first() or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def progress_for(title: str) -> Callable[[int, int, str], None]:
            task = bars.add_task(title, total=None, text="")
            return lambda done, total, text: bars.update(task, completed=done, total=total, text=text)

        yield progress_for


def results_table(runs: dict[str, Run]) -> Table:
    """Return the table that ends a fine-tune: accuracies, gap and distance.

    A row a run; on a narrow terminal a column a run.
    """
    from rich.console import Console
    from rich.table import Table

    from hesstune.training.card import test_labels

    against = test_labels(next(iter(runs.values())).record)
    titles = (
        f"test accuracy\n({against})",
        "train accuracy\n(as trained on)",
        "gap in cross-\nentropy",
        "distance from\nreference",
    )
    rows = {name: _figures(run.result) for name, run in runs.items()}
    narrow = Console().width < NARROW
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("run")
    for title in rows if narrow else titles:
        table.add_column(title, justify="right", no_wrap=narrow)
    if narrow:
        for title, values in zip(titles, zip(*rows.values(), strict=True), strict=True):
            table.add_row(title.split("\n")[0].removesuffix(" from").removesuffix(" in cross-"), *values)
    else:
        for name, values in rows.items():
            table.add_row(name, *values)
    return table


def _figures(result: dict[str, Any]) -> tuple[str, ...]:
    return (
        _share(result["test_accuracy"]),
        _share(result["train_accuracy"]),
        "-" if result["gap"] is None else f"{result['gap']:+.2f}",
        f"{result['distance']:.2f}",
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
