"""The command line's options for a run, made from the fields of the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from hesstune.errors import ConfigError
from hesstune.runs.config import RENAMED, FinetuneConfig, renamed_option

__all__ = ["JSON", "QUIET", "with_config_options"]

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
QUIET = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors (and --json's object).")]


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kinds = {a for a in (get_args(annotation) or (annotation,)) if a is not type(None)}
    if kinds == {int}:
        return "N"
    return "NUMBER" if kinds == {float} else "TEXT"


def _parameter(name: str, annotation: Any, default: Any, text: str) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    if annotation is bool:
        kind: Any = bool | None
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=f"{text} [default: no]", show_default=False)
    else:
        kind = str | None
        shown = "" if default is None else f" [default: {default}]"
        option = typer.Option(flag, metavar=_metavar(annotation), help=text + shown, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _hidden(name: str) -> inspect.Parameter:
    """Return an option by its former name, taken only to say what it is called now."""
    option = typer.Option("--" + name.replace("_", "-"), hidden=True)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per field of FinetuneConfig; it receives those given as `options`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
    made = [
        _parameter(name, field.annotation, field.default, field.description or "")
        for name, field in FinetuneConfig.model_fields.items()
    ]

    former = [_hidden(name) for name in RENAMED]

    def wrapper(**given: Any) -> None:
        for old in RENAMED:
            if given.pop(old) is not None:
                raise ConfigError(renamed_option(old, "--{}"))
        options = {p.name: given.pop(p.name) for p in made}
        command(**given, options={k: v for k, v in options.items() if v is not None})

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    wrapper.__signature__ = inspect.Signature([*made, *former, *keyword_only])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*made, *former, *keyword_only]}
    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    return wrapper
