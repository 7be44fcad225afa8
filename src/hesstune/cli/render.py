"""What commands print: text, tables, progress bars, and the JSON record."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.data.describe import DataFacts
    from hesstune.runs.run import Run


def is_first() -> bool:
    """Return whether this process prints: the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class Interrupted(Exception):
    """The user stopped the command; the message says how to continue. Exit code 130.

    Its own class because the parser turns KeyboardInterrupt into a bare exit code.
    """


# The width of tables that go to a pipe.
PIPE = 160
# The least widths of names in a table's first column, and of sentences.
NAME, SENTENCE = 24, 40
# Seconds over which speed is averaged: longer than a few steps of any network.
STEPS = 3600.0
# Seconds between lines of progress where there is no terminal.
LINE_SECONDS = 5.0
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
            pipe = not sys.stdout.isatty() and "COLUMNS" not in os.environ
            console = Console(highlight=False, soft_wrap=True, width=PIPE if pipe else None)
            for item in items:
                shown = item if isinstance(item, str) or _needed(item) <= console.width else None
                if shown is None:
                    shown = _listed(item, console.width)
                if isinstance(shown, str):
                    console.print(shown, markup=False)
                else:  # names give way if a table is too wide, so it is not soft
                    console.print(shown, soft_wrap=False)

    def end(self, record: dict[str, Any], following: str, mark: str = "") -> None:
        """End the output with the command to run next or, with --json, the record.

        Args:
            record: The final record, JSON-ready.
            following: The next command, such as `command_line` makes it.
            mark: What its line begins with.
        """
        if self.as_json:
            sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
            sys.stdout.flush()
        else:
            self.say(f"{mark}Next: {following}")

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int, str], None] | None]:
        """Show a progress bar on standard error, if it is a terminal; else yield None."""
        with progress_bars(self.quiet) as bars:
            yield bars(title) if bars else None


def command_line(*words: object) -> str:
    """Return a command of hesstune that a shell reads."""
    return shlex.join(["hesstune", *map(str, words)])


def without_dry_run() -> str:
    """Return the command that was given, without --dry-run."""
    return command_line(*(word for word in sys.argv[1:] if word != "--dry-run"))


def say_data(output: Output, facts: DataFacts | None) -> None:
    """End a dry run with what the data holds."""
    output.say(*(facts.lines() if facts else ()))
    output.end({"data": facts and facts.to_dict()}, without_dry_run())


def _needed(table: Table) -> int:
    """Return the columns below which a table would cut figures or squeeze sentences; names give way."""
    from rich.cells import cell_len

    widths = []
    for at, column in enumerate(table.columns):
        texts = [str(column.header), *map(str, column.cells)]
        width = max((cell_len(line) for text in texts for line in text.splitlines()), default=0)
        widths.append(min(width, NAME if at == 0 else width if column.no_wrap else SENTENCE))
    return sum(widths) + 3 * (len(widths) - 1)


def _listed(table: Table, width: int) -> str:
    """Return a table as text: for each row its name, then its figures, wrapped between figures."""
    titles = [" ".join(str(column.header).replace("-\n", "").split()) for column in table.columns]
    lines = [str(table.title)] if table.title else []
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        # No line ends within a figure, short of one that is wider than the terminal.
        figures = [f"{title} {cell}" for title, cell in zip(titles[1:], map(str, cells), strict=True) if cell]
        joined = ", ".join(text.replace(" ", "\0") if len(text) < width - 2 else text for text in figures)
        joined = re.sub(r"\S+ \[[^]]*\]", lambda interval: interval[0].replace(" ", "\0"), joined)
        folded = textwrap.wrap(joined, max(width, 20), initial_indent="  ", subsequent_indent="  ")
        lines += textwrap.wrap(f"{titles[0]} {name}", width, subsequent_indent="  ")
        lines += [line.replace("\0", " ") for line in folded]
    return "\n".join(lines)


@contextlib.contextmanager
def progress_bars(quiet: bool) -> Iterator[ProgressFor | None]:
    """Show a progress bar a run on standard error, if it is a terminal; else yield None."""
    if quiet or not is_first() or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class TimeLeft(TimeRemainingColumn):
        """The time that is left, from the first step on, which rich's own does not show."""

        def render(self, task: Task) -> Text:
            if task.time_remaining is None and task.total and 0 < task.completed < task.total:
                seconds = int((task.elapsed or 0.0) * (task.total - task.completed) / task.completed)
                return Text(str(timedelta(seconds=seconds)), style="progress.remaining")
            return super().render(task)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeLeft(),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=STEPS) as bars:

        def progress_for(title: str) -> Callable[[int, int, str], None]:
            task = bars.add_task(title, total=None, text="")
            return lambda done, total, text: bars.update(task, completed=done, total=total, text=text)

        yield progress_for


@contextlib.contextmanager
def progress_lines(quiet: bool) -> Iterator[ProgressFor | None]:
    """Show progress as `progress_bars`; without a terminal write a line every LINE_SECONDS."""
    if quiet or not is_first() or sys.stderr.isatty():
        with progress_bars(quiet) as bars:
            yield bars
        return
    start, ended, now = time.monotonic(), threading.Event(), {"title": "start", "state": ""}

    def write() -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            sys.stderr.write(f"{time.monotonic() - start:.0f} s: {now['title']}{now['state']}\n")
            sys.stderr.flush()

    def write_regularly() -> None:
        while not ended.wait(LINE_SECONDS):
            write()

    def progress_for(title: str) -> Callable[[int, int, str], None]:
        def update(done: int, total: int, text: str) -> None:
            now["state"] = f", step {done} of {total}, {text}" if total else ""

        now.update(title=title, state="")
        write()
        return update

    write()
    thread = threading.Thread(target=write_regularly, daemon=True)
    thread.start()
    try:
        yield progress_for
    finally:
        ended.set()
        thread.join()


def name_table(
    first: str, *titles: str, names: Sequence[str] = (), widths: Mapping[str, int] | None = None
) -> Table:
    """Return a table without rows: columns of names, and columns of numbers with their least widths.

    On a narrow terminal the names are cut, the numbers stay whole.
    """
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for title in (first, *names):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for title, width in {**dict.fromkeys(titles, None), **(widths or {})}.items():
        table.add_column(title, justify="right", no_wrap=True, min_width=width or len(title))
    return table


def results_table(runs: dict[str, Run]) -> Table:
    """Return the accuracies, the gap and the distance of runs, a row for each."""
    from hesstune.runs.model_card import test_labels

    against = test_labels(next(iter(runs.values())).facts)
    table = name_table(
        "run",
        widths={
            f"test accuracy\n({against})": 13,
            "train accuracy\n(as trained on)": 15,
            "gap in\ncross-entropy": 13,
            "distance from\nreference": 13,
        },
    )
    for name, run in runs.items():
        result = run.outcome
        accuracies = percent(result.test_accuracy), percent(result.train_accuracy)
        gap = "-" if result.gap is None else f"{result.gap:+.2f}"
        table.add_row(name, *accuracies, gap, f"{result.distance:.2f}")
    return table


def percent(value: float | None) -> str:
    """Return a share in percent, or - for None."""
    return "-" if value is None else f"{100 * value:.1f} %"
