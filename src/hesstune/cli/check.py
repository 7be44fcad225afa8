"""`hesstune check`."""

from __future__ import annotations

from hesstune.cli.options import JSON, QUIET, RUN, with_options
from hesstune.cli.render import Output
from hesstune.runs.options.analysis import CheckOptions

__all__ = ["check"]


@with_options()
def check(run: RUN, options: CheckOptions, json: JSON = False, quiet: QUIET = False) -> None:
    """Draw examples at random for a person to label, and write the sheet for `certify --checked`."""
    from hesstune.analysis.certify import check_run
    from hesstune.runs.run import Run

    path = check_run(Run.load(run), **options.given())
    output = Output(quiet, json)
    output.say(
        f"Written: {path}. Fill in true_label for every example, then run hesstune certify {run} "
        f"--checked {path}, with the same --prior-fraction and --seed."
    )
    output.record({"path": str(path)})
