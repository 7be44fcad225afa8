"""Commands run in this process: importing torch takes longer than most commands."""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from hesstune.cli.main import run


def inside(*arguments, code=0):
    """Run a command that ends with this exit code; return what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        run([str(argument) for argument in arguments])
    assert end.value.code == code, err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


def refused(*arguments):
    """Return the one line of a command that is refused."""
    err = inside(*arguments, code=2).stderr
    assert len(err.splitlines()) == 1, err
    return err
