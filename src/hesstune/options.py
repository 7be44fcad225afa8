"""Options, each declared once: a function's keywords and a command's options are fields of one model.

A field says an option's type, default, range and meaning. `make_options` checks values against a model,
and `hesstune.cli.options` makes a command's options of them. Functions take them as `**options`: type
checkers know them from `hesstune.runs.keywords`, which is generated, and `takes_options` adds them to `help`.
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hesstune.checks import parse_integer, parse_number, parse_rate
from hesstune.errors import ConfigError, cut, plain, unknown_name


@dataclass(frozen=True)
class Shown:
    """How the command line takes an option, if its type does not determine it.

    Attributes:
        metavar: The word that stands for the value in the help.
        repeated: Whether the option is given once for each value.
        also: Types that Python takes beside the field's own, into which they are made, as written in code.
        names_file: Whether the value may name a file or folder whose contents count, as PATH or KIND:PATH.
        says_default: Whether the description says what the default is, or the command line has none.
    """

    metavar: str
    repeated: bool = False
    also: str = ""
    names_file: bool = False
    says_default: bool = False


# What other libraries call options of hesstune.
SYNONYMS = {
    "arch": "model", "backbone": "model", "batch": "batch_size", "bs": "batch_size", "checkpoint": "weights",
    "clip_grad_norm": "grad_clip", "dataset": "data", "early_stopping": "patience", "fp16": "mixed_precision",
    "gpu": "device", "gradient_accumulation_steps": "accumulate", "gradient_clip_val": "grad_clip",
    "img_size": "image_size", "input_size": "image_size", "learning_rate": "lr", "loss": "method",
    "lr_scheduler": "schedule", "lr_scheduler_type": "schedule", "max_epochs": "epochs",
    "max_grad_norm": "grad_clip", "max_seq_length": "max_length", "model_name": "model", "n_epochs": "epochs",
    "network": "model", "noise_rate": "noise_matrix", "num_epochs": "epochs", "num_train_epochs": "epochs",
    "optim": "optimizer", "output": "out", "output_dir": "out", "per_device_train_batch_size": "batch_size",
    "pretrained": "model", "random_state": "seed", "resolution": "image_size", "scheduler": "schedule",
    "target_column": "label_column", "test_size": "test_fraction", "transition_matrix": "noise_matrix",
    "val_size": "val_fraction", "validation_fraction": "val_fraction", "validation_split": "val_fraction",
    "warmup_ratio": "lr_warmup", "wd": "weight_decay",
}  # fmt: skip
# For values that only Python and YAML can write.
OFF_COMMAND_LINE = Shown("")


def _split_names(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return () if value is None else value


def numbers_by_name(value: Any, wanted: str) -> Any:
    """Parse NAME=NUMBER,NAME=NUMBER, or a mapping whose numbers may be texts; return other values as given.

    Raises:
        ValueError: With `wanted`, if a text has another form.
    """
    if isinstance(value, str):
        pairs = [part.partition("=")[::2] for part in value.split(",")]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        return value
    found = {
        name.strip() if isinstance(name, str) else name: parse_number(own) if isinstance(own, str) else own
        for name, own in pairs
    }
    if len(found) < len(pairs) or "" in found or any(number is None for number in found.values()):
        raise ValueError(wanted)
    return found


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names), Shown("NAME,NAME,…", also="str")]
FilePath = Annotated[str, Shown("FILE", names_file=True)]
DEVICE: Any = Field("auto", description="where to compute: cpu, cuda, mps or auto")


class Options(BaseModel):
    """Base of all options: they are frozen, and unknown names are errors.

    Attributes:
        heading: The heading of the class's options in a command's help.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    heading: ClassVar[str] = "Options"

    @model_validator(mode="before")
    @classmethod
    def _paths_as_text(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _text_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Read the text of a number; of a share (a field with the maximum 1) also a percentage."""
        field = cls.model_fields[info.field_name or ""]
        kinds = kinds_of(field.annotation)
        if not isinstance(value, str) or kinds not in ([int], [float]):
            return value
        if kinds == [int]:
            number: float | None = parse_integer(value)
        else:
            is_share = any(1 in (getattr(m, "le", None), getattr(m, "lt", None)) for m in field.metadata)
            number = parse_rate(value) if is_share else parse_number(value)
        if number is None:
            raise ValueError(f"must be {'an integer' if kinds == [int] else 'a number'}")
        return number

    @classmethod
    def heading_of(cls, name: str) -> str:
        """Return the heading of the class that declares an option."""
        for kind in reversed(cls.__mro__):
            if issubclass(kind, Options) and name in kind.model_fields:
                return kind.heading
        raise KeyError(name)

    @classmethod
    def naming_files(cls) -> list[str]:
        """Return the names of the options whose values may name a file or folder."""
        return [
            name for name, field in cls.model_fields.items() if any(m.names_file for m in shown_of(field))
        ]

    def given(self) -> dict[str, Any]:
        """Return the options that were given, not left at their defaults, by name."""
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in fields if name in self.model_fields_set}


def shown_of(field: FieldInfo) -> list[Shown]:
    """Return how the command line takes a field, or the members of its union."""
    inner = (m for part in get_args(field.annotation) for m in getattr(part, "__metadata__", ()))
    return [m for m in (*field.metadata, *inner) if isinstance(m, Shown)]


def kinds_of(annotation: Any) -> list[Any]:
    """Return what a value may be, other than None: types, and the names of a Literal."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    if origin is Literal:
        return list(get_args(annotation))
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in kinds_of(part)]
    return [] if annotation is type(None) else [annotation]


O = TypeVar("O", bound=Options)  # noqa: E741
F = TypeVar("F", bound=Callable[..., Any])


def make_options(kind: type[O], values: Mapping[str, Any], style: str = "{}") -> O:
    """Check options by name.

    Args:
        kind: The model that declares them.
        values: {name: value}; values may be texts, as on the command line.
        style: Shows a name as its user writes it, such as `--{}`.

    Raises:
        ConfigError: Naming the first wrong one, with what is needed, or the nearest valid name.

    Example:
        >>> class Steps(Options):
        ...     most_steps: int = Field(16, gt=0, description="steps at most")
        >>> make_options(Steps, {"most_steps": "4"}).most_steps
        4
        >>> make_options(Steps, {"most_steps": 0}, "--{}")
        Traceback (most recent call last):
        hesstune.errors.ConfigError: --most-steps must be above 0; got 0
    """
    for name, value in values.items():
        if name not in kind.model_fields:
            synonyms = {other: _name_written(now, style) for other, now in SYNONYMS.items()}
            valid = [_name_written(each, style) for each in kind.model_fields]
            raise unknown_name("option", str(name), valid, synonyms=synonyms)
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
        if plain(text) != text:
            raise ConfigError(
                f"{_name_written(name, style)} {cut(text)} is not UTF-8, so no record could hold it: rename "
                "the file or folder, or give a link to it of another name"
            )
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
    raise _option_error(kind, problem, values, style)


def _name_written(name: str, style: str) -> str:
    return style.format(name.replace("_", "-") if style.startswith("--") else name)


def names_written(text: str, kind: type[Options] | None = None, style: str = "{}") -> str:
    """Write the options that a text names in braces, {lr}, as their user does; {{lr}} becomes {lr}.

    Args:
        text: A description or a message.
        kind: The model whose options alone are meant, for messages that quote a user's text; None: every
            name in braces is an option's.
        style: Shows a name as its user writes it, such as `--{}`.
    """

    def written(found: re.Match[str]) -> str:
        literal, name = found.groups()
        if literal is not None and kind is None:
            return "{" + literal + "}"
        is_option = name is not None and (kind is None or name in kind.model_fields)
        return _name_written(name, style) if is_option else found[0]

    return re.sub(r"\{\{(\w+)\}\}|\{(\w+)\}", written, text)


def _option_error(
    kind: type[Options], problem: ErrorDetails, values: Mapping[str, Any], style: str
) -> Exception:
    """Return the error that says what is wrong with which option."""
    if not problem["loc"]:  # of several options at once: the message names them
        return ConfigError(names_written(_reason(problem), kind, style))
    name = str(problem["loc"][0])
    shown, given = _name_written(name, style), values.get(name)
    kinds = kinds_of(kind.model_fields[name].annotation)
    if problem["type"] == "literal_error" and all(isinstance(each, str) for each in kinds):
        return unknown_name(f"value of {shown}", str(given), kinds)
    reason = names_written(_reason(problem), kind, style)
    sep = " " if reason.startswith("must ") else ": "
    return ConfigError(f"{shown}{sep}{reason}; got {cut(' '.join(repr(given).split()))}")


# Of pydantic's messages, those about numbers and kinds, in our words.
_REASONS = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "int_type": "must be an integer",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
}


def _reason(problem: ErrorDetails) -> str:
    bounds = {k: f"{v:g}" for k, v in problem.get("ctx", {}).items() if isinstance(v, int | float)}
    if problem["type"] in _REASONS:
        return _REASONS[problem["type"]].format(**bounds)
    return " ".join(problem["msg"].removeprefix("Value error, ").split())


def takes_options(kind: type[Options], without: Collection[str] = ()) -> Callable[[F], F]:
    """Show a model's options in the help of a function that takes them as `**options`.

    The signature lists each with its type and default, and the docstring's Args with its meaning, before the
    line `**options: …`.

    Args:
        kind: The model.
        without: Options that the function refuses.
    """

    def shown(function: F) -> F:
        signature = inspect.signature(function)
        skipped = {*signature.parameters, *without}
        fields = {name: field for name, field in kind.model_fields.items() if name not in skipped}
        made = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=taken(f))
            for name, f in fields.items()
        ]
        parameters = sorted([*signature.parameters.values(), *made], key=lambda each: each.kind)
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]

        def entries(indent: re.Match[str]) -> str:
            first, more = indent[0], f"{indent[0]}    "
            texts = (f"{name}: {_sentence(field)}" for name, field in fields.items())
            lines = [textwrap.fill(t, 108, initial_indent=first, subsequent_indent=more) for t in texts]
            return "\n".join([*lines, first])

        function.__doc__ = re.sub(r"(?m)^ +(?=\*\*options: )", entries, function.__doc__ or "", count=1)
        return function

    return shown


def taken(field: FieldInfo) -> str:
    """Return the type of what Python gives for an option, as code."""
    shown = [m for m in field.metadata if isinstance(m, Shown)]
    return _as_code(Annotated[field.annotation, *shown] if shown else field.annotation)


def _as_code(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        shown = [m for m in parts[1:] if isinstance(m, Shown)]
        paths = ["PathLike[str]"] if any(m.names_file for m in shown) else []
        also = [other for m in shown for other in m.also.split(" | ") if other]
        return " | ".join(dict.fromkeys([*_as_code(parts[0]).split(" | "), *paths, *also]))
    if origin in (Union, UnionType):
        return " | ".join(map(_as_code, parts))
    if origin in (tuple, list):
        return f"Sequence[{_as_code(parts[0])}]"
    if origin is dict:
        return f"Mapping[{_as_code(parts[0])}, {_as_code(parts[1])}]"
    if annotation is type(None):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else repr(annotation).removeprefix("typing.")


def _sentence(field: FieldInfo) -> str:
    text = names_written(field.description or "")
    return f"{text[:1].upper()}{text[1:]}."
