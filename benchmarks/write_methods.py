"""Write docs/methods.md from the methods themselves: what each does, its options, their source.

python benchmarks/write_methods.py
"""

from __future__ import annotations

import importlib
import inspect

from hesstune.methods import Method, method_class, method_names
from records import DOCS

PAGE = DOCS / "methods.md"

TEXT = """# Methods

*This page is written by `python benchmarks/write_methods.py` from the methods' own files.*

`hesstune finetune --method NAME`, with `--method-options NAME=VALUE` for what is in the tables;
`hesstune compare --methods NAME,NAME,…` runs several under the same budget, split and selection rule. A
method marked *F* makes use of a noise matrix (`--noise-matrix`); one marked *balls* keeps every layer near
its pretrained weights (`--radius`, `--norm`). A head that is trained alone (`--train head`), in no ball, has
a ridge penalty, chosen by cross-validation on the labels as given, where `--weight-decay` names none. It is
a penalty of the loss with every optimizer. A method is one file in `src/hesstune/methods`.

{methods}
"""


def page() -> str:
    """Return the page."""
    return TEXT.format(methods="\n\n".join(_section(name) for name in method_names()))


def _section(name: str) -> str:
    found = method_class(name)
    text = inspect.getdoc(importlib.import_module(f"hesstune.methods.{name}")) or ""
    title, _, rest = text.partition("\n\n")
    parts = [f"## {name}", _marks(found) + _plain(title), _plain(rest), _options(found)]
    return "\n\n".join(part for part in parts if part)


def _plain(text: str) -> str:
    """Return a docstring's text on one line, its square brackets and stars as they are."""
    return " ".join(text.split()).replace("*", r"\*").replace("[", r"\[")


def _marks(found: type[Method]) -> str:
    marks = [m for m, has in (("F", found.uses_noise()), ("balls", found.constrained)) if has]
    return f"*{', '.join(marks)}.* " if marks else ""


def _options(found: type[Method]) -> str:
    if not found.own_options:
        return ""
    rows = ["| option | default | where the default comes from |", "|---|---|---|"]
    rows += [f"| `{n}` | {o.default:g} | {o.source} |" for n, o in found.own_options.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
