"""The entry point `hesstune`: parse commands, print errors in one line, and set the exit code."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Any

import typer

from hesstune._version import __version__
from hesstune.cli import label_commands, run_commands, training_commands
from hesstune.cli.options import STYLE, GroupedCommand
from hesstune.cli.render import Interrupted, is_first
from hesstune.options import SYNONYMS
from hesstune.runtime.signals import ENDING

INTERRUPTED = 130
# As wide as a terminal of 100 columns, so that the most used options fit its first screen.
WIDTH = {"max_content_width": 100}

app = typer.Typer(
    name="hesstune",
    help="Fine-tune pretrained networks on small, noisily labelled data; say how far to trust the result.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=WIDTH,
)
# In the order of a user's work.
COMMANDS = (
    training_commands.demo,
    label_commands.clean,
    label_commands.label,
    training_commands.finetune,
    run_commands.predict,
    run_commands.measure,
    run_commands.certify,
    run_commands.check,
    training_commands.compare,
    run_commands.report,
    run_commands.export,
    run_commands.noise,
    training_commands.methods,
)
for command in COMMANDS:
    app.command(command.__name__, cls=GroupedCommand, context_settings=WIDTH)(command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hesstune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Fine-tune pretrained networks on small, noisily labelled data; say how far to trust the result."""


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong input, 130 interrupted, 1 anything else."""
    from hesstune.errors import HesstuneError

    for number in ENDING:
        signal.signal(number, _interrupt)
    # Threads that spin while they wait make training many times slower on cores that other work uses.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else arguments
    shown, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        code = app(args=arguments or ["--help"], standalone_mode=False)
    except HesstuneError as error:
        _fail(error, 2)
    except Interrupted as error:
        _fail(error, INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        # Usage errors of the parser (its classes are private) format themselves.
        if hasattr(error, "format_message"):
            name = str(getattr(error, "option_name", "")).removeprefix("--").replace("-", "_")
            if name in SYNONYMS:
                given, now = (STYLE.format(each.replace("_", "-")) for each in (name, SYNONYMS[name]))
                _fail(f"unknown option {given}; did you mean {now}?", 2)
            _fail(error.format_message() or "see --help", 2)
        raise
    finally:
        warnings.showwarning = shown
    if code == INTERRUPTED:
        _fail("interrupted", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


_SHOW_WARNING = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Show a warning of this package as one line, like an error, and others as Python does."""
    from hesstune.errors import HesstuneWarning

    if not issubclass(category, HesstuneWarning):
        _SHOW_WARNING(message, category, *where, **more)
    elif is_first():
        sys.stderr.write(f"hesstune: warning: {_one_line(message)}\n")


def _fail(message: object, code: int) -> None:
    if is_first():
        sys.stderr.write(f"hesstune: {_one_line(message)}\n")
    sys.exit(code)
