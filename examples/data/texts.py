"""Write the data of the tutorial on texts: real sentences, with labels of a simulated language model.

python texts.py [NAME]

The texts are the first sentences of the documentation of functions in packages that hesstune installs. Their
class is the field of the package. NAME.csv (default: answers.csv) gets 900 training texts with labels that
may be wrong, and test texts with correct labels. NAME_new.csv gets texts without labels, and NAME_truth.csv
the true class of every training text.
"""

import csv
import inspect
import re
import sys
from importlib import import_module

import numpy as np

PLACES = {
    "networks": "torch.nn torch.nn.functional torch.optim",
    "statistics": "scipy.stats scipy.stats.mstats",
    "tables": "pandas pandas.DataFrame pandas.Series",
    "plots": "matplotlib.pyplot matplotlib.axes.Axes matplotlib.figure.Figure matplotlib.patches",
    "algebra": "numpy.linalg scipy.linalg torch.linalg scipy.sparse.linalg",
    "signals": "scipy.signal scipy.fft scipy.ndimage numpy.fft",
}
# The simulated language model takes a quarter of each field for another one, and answers 5 % at random.
CONFUSED = {
    "networks": "algebra", "statistics": "algebra", "tables": "statistics", "plots": "tables",
    "algebra": "signals", "signals": "statistics",
}  # fmt: skip


def sentences(place):
    """Return the first sentence of the documentation of every function and class in a module or class."""
    try:
        top = import_module(place)
    except ModuleNotFoundError:
        module, _, name = place.rpartition(".")
        top = getattr(import_module(module), name)
    found = (getattr(top, name, None) for name in dir(top) if not name.startswith("_"))
    for documented in filter(callable, found):
        paragraph = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
        sentence = re.split(r"(?<=\w\.)\s", paragraph)[0]
        if 20 < len(sentence) < 200 and "deprecated" not in sentence.lower():
            yield sentence


name, rng = (sys.argv[1] if len(sys.argv) > 1 else "answers"), np.random.default_rng(0)
# Of sentences that begin alike or share most of their words, such as those of a function and a method of the
# same name, one is kept: a copy of a training text in the test part would raise the test accuracy.
found = {s: field for field, places in PLACES.items() for place in places.split() for s in sentences(place)}
kept = {}
for text in sorted(found):
    words = re.findall(r"[a-z]+", text.lower())
    start, own = " ".join(words[:4]), frozenset(words)
    if start not in kept and all(len(own & other) <= 0.6 * len(own | other) for _, other in kept.values()):
        kept[start] = text, own
true = {text: found[text] for text, _ in kept.values()}
texts = sorted(true)
texts = [texts[i] for i in rng.permutation(len(texts))]
train, test, new = texts[:900], texts[900:1200], texts[1200:]
fields, draw = list(PLACES), rng.random(len(train))
given = [
    CONFUSED[true[text]] if u < 0.25 else fields[rng.integers(6)] if u < 0.3 else true[text]
    for text, u in zip(train, draw, strict=True)
]


def write(path, columns, rows):
    """Write a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


rows = [(i, text, label, "train") for i, (text, label) in enumerate(zip(train, given, strict=True))]
rows += [(i, text, true[text], "test") for i, text in enumerate(test, start=len(train))]
write(f"{name}.csv", ("id", "text", "label", "split"), rows)
write(f"{name}_new.csv", ("text",), [(text,) for text in new])
write(f"{name}_truth.csv", ("id", "true_label"), [(i, true[text]) for i, text in enumerate(train)])
wrong = sum(label != true[text] for text, label in zip(train, given, strict=True))
print(f"{name}.csv: {len(train)} training texts, {wrong} with a wrong label; {len(test)} correct test texts")
