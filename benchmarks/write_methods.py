"""Write docs/methods.md from the methods themselves: what each does, its options, their source.

python benchmarks/write_methods.py
"""

from __future__ import annotations

import inspect

from hesstune.methods import TIERS, Method, method_class, method_names
from records import DOCS

PAGE = DOCS / "methods.md"

TEXT = """# Methods

*This page is written by `python benchmarks/write_methods.py` from the methods' own files.*

`hesstune finetune --method NAME` chooses a method, and `--method-options NAME=VALUE` sets the options in the
tables below. `hesstune compare --methods NAME,NAME,…` runs several with the same budget, split and selection
rule. The methods in three tiers:

{tiers}

A method marked *F* uses a noise matrix (`--noise-matrix`). A method marked *constrained* keeps every layer
near its pretrained weights (`--radius`, `--norm`). A head that is trained alone (`--train head`) without a
constraint has a ridge penalty, chosen by cross-validation on the given labels unless `--weight-decay` is
given. It is part of the loss with every optimizer. To add a method, add a file to `src/hesstune/methods`.

`hesstune.methods.estimator_method` makes a method of a scikit-learn estimator on frozen features. It is
fitted to the labels as given, or to labels that a function makes of the votes. Use it from Python:

```python
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hesstune as ht
from hesstune.methods import estimator_method

peer = estimator_method("sklearn_cv", make_pipeline(StandardScaler(), LogisticRegressionCV()))
options = {{"data": "digits", "limit": 300, "train": "head"}}
found = ht.compare(options, methods=["auto", peer], seeds=1, baseline="auto")
```

{methods}
"""


def page() -> str:
    """Return the page."""
    listed = [f"- {tier}: {', '.join(f'`{name}`' for name in _of(tier))}" for tier in TIERS]
    sections = [_section(name) for tier in TIERS for name in _of(tier)]
    return TEXT.format(tiers="\n".join(listed), methods="\n\n".join(sections))


def _of(tier: str) -> list[str]:
    return [name for name in method_names() if method_class(name).tier == tier]


def _section(name: str) -> str:
    found = method_class(name)
    text = inspect.getdoc(found) or ""
    title, _, rest = text.partition("\n\n")
    parts = [f"## {name}", _marks(found) + _plain(title), _plain(rest), _options(found)]
    return "\n\n".join(part for part in parts if part)


def _plain(text: str) -> str:
    """Return a docstring's text on one line, its square brackets and stars as they are."""
    return " ".join(text.split()).replace("*", r"\*").replace("[", r"\[")


def _marks(found: type[Method]) -> str:
    marks = [m for m, has in (("F", found.uses_noise()), ("constrained", found.constrained)) if has]
    return f"*{', '.join(marks)}.* " if marks else ""


def _options(found: type[Method]) -> str:
    if not found.own_options:
        return ""
    rows = ["| option | default | where the default comes from |", "|---|---|---|"]
    rows += [f"| `{n}` | {o.default:g} | {o.source} |" for n, o in found.own_options.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
