"""Options of commands, made from the models that declare them, and how their help groups them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand

from hesstune.options import (
    OFF_COMMAND_LINE,
    Options,
    kinds_of,
    make_options,
    names_written,
    shown_of,
)

# How users of the command line write an option.
STYLE = "--{}"
FIRST, LAST = "Most used", "Output"
HELP_ALL = "--help-all"
# A help of more options than this shows the most used ones alone.
MOST_SHOWN = 14
RUN = Annotated[Path, typer.Argument(metavar="RUN", help="the run folder")]
CONFIG = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML file of options; the command line wins", rich_help_panel="Run"),
]
DRY_RUN = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="read the data, say what it holds and what would be run, and stop",
        rich_help_panel="Run",
    ),
]
JSON = Annotated[
    bool, typer.Option("--json", help="print one JSON object as the last line", rich_help_panel=LAST)
]
QUIET = Annotated[
    bool,
    typer.Option("--quiet", help="print nothing but errors (and --json's object)", rich_help_panel=LAST),
]


def replacing(what: str) -> Any:
    """Return the option `--overwrite`, of a command that writes `what`."""
    return typer.Option("--overwrite", help=f"replace {what}", rich_help_panel=LAST)


class GroupedCommand(TyperCommand):
    """A command whose help shows options under headings, in the order in which they first occur.

    `--help` shows the most used options if there are many; `--help-all` shows every option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read `--help-all` as `--help` of all options."""
        ctx.meta[HELP_ALL] = HELP_ALL in args
        return super().parse_args(ctx, ["--help" if arg == HELP_ALL else arg for arg in args])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each heading."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], FIRST: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                heading = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or LAST
                sections.setdefault(heading, []).append(record)
        hidden = 0
        if sections[FIRST] and sum(map(len, sections.values())) > MOST_SHOWN and not ctx.meta.get(HELP_ALL):
            others = [heading for heading in sections if heading not in ("Arguments", FIRST)]
            hidden = sum(len(sections.pop(heading)) for heading in others)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
        if hidden:
            formatter.write_paragraph()
            formatter.write_text(f"{hidden} more options: {ctx.command_path} {HELP_ALL}")


def with_options(*, hidden: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of the models in its signature.

    A parameter of type `Model` receives the checked options; one of type `Annotated[dict[str, Any], Model]`
    receives the options that were given, by name, unchecked.

    Args:
        hidden: Options that the help leaves out.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        parameters = list(inspect.signature(command, eval_str=True).parameters.values())
        models = {p.name: kind for p in parameters if (kind := _model_of(p.annotation))}
        checked = {p.name for p in parameters if p.annotation is models.get(p.name)}
        # The most used options of all models come first.
        names = [(kind, name) for kind in models.values() for name in kind.first]
        names += [(kind, n) for kind in models.values() for n in kind.model_fields if n not in kind.first]
        shown = [
            _parameter(kind, name, name in hidden)
            for kind, name in names
            if OFF_COMMAND_LINE not in shown_of(kind.model_fields[name])
        ]
        shown += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters if p.name not in models]

        def wrapper(**given: Any) -> None:
            for at, kind in models.items():
                values = {name: given.pop(name) for name in kind.model_fields if name in given}
                values = {name: v for name, v in values.items() if v not in (None, [])}
                given[at] = make_options(kind, values, STYLE) if at in checked else values
            command(**given)

        wrapper.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in shown}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorated


def _model_of(annotation: Any) -> type[Options] | None:
    for kind in get_args(annotation) if get_origin(annotation) is Annotated else (annotation,):
        if isinstance(kind, type) and issubclass(kind, Options):
            return kind
    return None


def _parameter(model: type[Options], name: str, hidden: bool) -> inspect.Parameter:
    """Return an option as a parameter of a function that typer reads."""
    field = model.model_fields[name]
    flag = STYLE.format(name.replace("_", "-"))
    kinds, shown = kinds_of(field.annotation), shown_of(field)
    kind: Any = str | None
    more: dict[str, Any] = {"metavar": shown[-1].metavar if shown else _metavar(kinds)}
    if bool in kinds:
        kind, more = bool | None, {}
        flag = flag if name.startswith("no_") else f"{flag}/--no-{flag[2:]}"
    elif shown and shown[-1].repeated:
        kind = list[str] | None
    option = typer.Option(
        flag,
        help=names_written(field.description or "", style=STYLE) + _default(field.default),
        show_default=False,
        hidden=hidden,
        rich_help_panel=FIRST if name in model.first else model.heading_of(name),
        **more,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _metavar(kinds: list[Any]) -> str:
    if all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    if kinds == [int]:
        return "N"
    return "NUMBER" if kinds == [float] else "TEXT"


def _default(value: Any) -> str:
    if value in (None, ()):
        return ""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return f" [default: {','.join(value) if isinstance(value, tuple) else value}]"
