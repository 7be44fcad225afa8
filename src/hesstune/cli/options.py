"""Options of commands, made from the models that declare them, and how their help groups them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand

from hesstune.cli.render import Output
from hesstune.data.formats import WITH_PATH
from hesstune.data.reading import ROLES
from hesstune.errors import ConfigError
from hesstune.options import OFF_COMMAND_LINE, Options, kinds_of, make_options, names_written, shown_of

# How users of the command line write an option.
STYLE = "--{}"
FIRST, LAST = "Most used", "Output"
HELP_ALL = "--help-all"
# A help of more options than this shows the most used ones alone.
MOST_SHOWN = 16
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
# Of every command.
COMMON = {
    "json": typer.Option("--json", help="print one JSON object as the last line"),
    "quiet": typer.Option("--quiet", help="print nothing but errors (and --json's object)"),
}


def replacing(what: str) -> Any:
    """Return the option `--overwrite`, of a command that writes `what`."""
    return typer.Option("--overwrite", help=f"replace {what}")


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
        first: tuple[str, ...] = getattr(self.callback, "first", ())
        rank = {name: at for at, name in enumerate(first)}
        for parameter in sorted(self.get_params(ctx), key=lambda p: rank.get(p.name, len(first))):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = getattr(parameter, "rich_help_panel", None) or LAST
                heading = "Arguments" if parameter.param_type_name == "argument" else heading
                sections.setdefault(FIRST if parameter.name in first else heading, []).append(record)
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


def with_options(
    *first: str, hidden: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of the models in its signature, and `--json` and `--quiet`.

    A parameter of type `Model` receives the checked options; one of type `Annotated[dict[str, Any], Model]`
    receives the options that were given, by name, unchecked. The parameter `output` receives where to write.

    Args:
        first: The options that most people need, in the order of the help.
        hidden: Options that the help leaves out.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters
        models = {name: kind for name, p in parameters.items() if (kind := _model_of(p.annotation))}
        checked = {name for name, kind in models.items() if parameters[name].annotation is kind}
        shown = [
            _parameter(kind, name, name in hidden)
            for kind in models.values()
            for name, field in kind.model_fields.items()
            if OFF_COMMAND_LINE not in shown_of(field)
        ]
        own = [p for name, p in parameters.items() if name not in (*models, "output")]
        shown += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        shown += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
            )
            for name, option in COMMON.items()
        ]

        def wrapper(*, json: bool, quiet: bool, **given: Any) -> None:
            for at, kind in models.items():
                values = {name: given.pop(name) for name in kind.model_fields if name in given}
                values = {name: v for name, v in values.items() if v not in (None, [])}
                given[at] = make_options(kind, values, STYLE) if at in checked else values
            command(output=Output(quiet, json), **given)

        wrapper.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in shown}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        wrapper.first = first  # type: ignore[attr-defined]
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
    text = names_written(field.description or "", style=STYLE)
    if not (shown and shown[-1].says_default):
        text += default(field.default)
    option = typer.Option(
        flag,
        help=text,
        show_default=False,
        hidden=hidden,
        rich_help_panel=model.heading_of(name),
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


def default(value: Any) -> str:
    """Return what a help says of a default; nothing of None, which the description explains."""
    if value in (None, ()):
        return ""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return f"; default: {','.join(value) if isinstance(value, tuple) else value}"


def needed_data(data: str | None) -> str:
    """Return the data, or raise ConfigError if none is given."""
    if data is None:
        forms = ", ".join(f"{name}:PATH" for name in WITH_PATH)
        raise ConfigError(
            f"give --data: a path such as photos/ or reviews.csv, or {forms}; hesstune demo needs no data"
        )
    return data


def column_words(options: Any) -> list[str]:
    """Return the words of the columns that options name."""
    named = {f"--{role}-column": getattr(options, f"{role}_column", None) for role in ROLES}
    return [word for flag, name in named.items() if name is not None for word in (flag, name)]
