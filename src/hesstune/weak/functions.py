"""Labeling functions: Python callables that look at one example and vote, or abstain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from hesstune.errors import ConfigError, DataError, unknown_name
from hesstune.user_code import import_user_module
from hesstune.weak.vote_files import abstains, class_index, class_of
from hesstune.weak.votes import ABSTAIN, Votes

Function = Callable[[Mapping[str, str]], object]
Answers = list[list[object]]
"""What each labeling function returned for each example."""


def load_functions(spec: str) -> list[tuple[str, Function]]:
    """Import labeling functions: `py:module:name`, where the name is a function or a list of them.

    The module is imported and run: use it with code you trust.

    Returns:
        (name, function) pairs, each name once.

    Raises:
        ConfigError: If the module or name is missing, or holds no function.
    """
    kind, _, rest = spec.partition(":")
    module_name, _, attribute = rest.partition(":")
    if kind != "py" or not attribute:
        raise ConfigError(f"labeling functions '{spec}' must be written py:module:name")
    try:
        module = import_user_module(module_name)
    except Exception as error:  # a module that is run may fail in any way
        raise ConfigError(
            f"cannot import the module '{module_name}': {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise unknown_name(f"name in {module_name}", attribute, names)
    found = getattr(module, attribute)
    functions = list(found) if isinstance(found, list | tuple) else [found]
    if not functions or not all(callable(f) for f in functions):
        raise ConfigError(f"{spec} must be a function, or a list of functions; got {type(found).__name__}")
    names = [str(getattr(f, "__name__", attribute)) for f in functions]
    # Lambdas are all called alike.
    unique = [n if names.count(n) == 1 else f"{n}{i}" for i, n in enumerate(names)]
    return list(zip(unique, functions, strict=True))


def call_functions(functions: Sequence[tuple[str, Function]], rows: Iterable[Mapping[str, str]]) -> Answers:
    """Call each labeling function on each example; one list a function.

    Args:
        functions: (name, function) pairs. A function gets an example as a mapping of text (a CSV
            file's row; `id` and `path` for images) and returns a class name, a class index, or None.
        rows: The examples.

    Raises:
        DataError: If a function fails, by name and example.
    """
    answers: Answers = [[] for _ in functions]
    for n, row in enumerate(rows):
        for (name, function), found in zip(functions, answers, strict=True):
            try:
                found.append(function(row))
            except Exception as error:
                raise DataError(
                    f"labeling function {name} failed on example {row.get('id', n)}: "
                    f"{type(error).__name__}: {error}"
                ) from error
    return answers


def names_in(answers: Answers) -> set[str]:
    """Return what was answered other than abstentions, as text."""
    found = {str(value).strip() for column in answers for value in column if value is not None}
    return {value for value in found if not abstains(value)}


def votes_of_answers(
    answers: Answers, names: Sequence[str], classes: Sequence[str], ids: Sequence[object]
) -> Votes:
    """Turn the functions' answers into votes.

    Raises:
        DataError: If an answer is no class, by function and example.
    """
    index = class_index(classes)
    table = np.full((len(answers[0]), len(names)), ABSTAIN)
    for j, (name, column) in enumerate(zip(names, answers, strict=True)):
        table[:, j] = [
            class_of(value, index, f"labeling function {name}, example {example},")
            for example, value in zip(ids, column, strict=True)
        ]
    return Votes(table, len(classes), list(names))


def apply_functions(
    functions: Sequence[tuple[str, Function]],
    rows: Sequence[Mapping[str, str]],
    classes: Sequence[str],
) -> Votes:
    """Call each labeling function on each example and collect the votes; see `call_functions`.

    Example:
        >>> rule = ("long", lambda row: "yes" if len(row["text"]) > 3 else None)
        >>> apply_functions([rule], [{"text": "ab"}, {"text": "abcd"}], ["no", "yes"]).table.tolist()
        [[-1], [1]]
    """
    names, ids = [name for name, _ in functions], [row.get("id", n) for n, row in enumerate(rows)]
    return votes_of_answers(call_functions(functions, rows), names, classes, ids)
