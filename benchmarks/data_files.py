"""Tables for `hesstune.finetune` from the data sets that benchmarks use."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PACS = ("art_painting", "cartoon", "photo", "sketch")
CIFAR_TRAIN, CIFAR_TEST = 5000, 1000


def write_table(path: Path, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Path:
    """Write a CSV table and return its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *lines])
    return path


def cifar10n_lines(folder: Path) -> list[dict[str, str]]:
    """Return the rows of CIFAR-10N's table, the images by their paths."""
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        return [{**line, "image": str(folder / line["image"])} for line in csv.DictReader(file)]


def sentences(data: Path, name: str, part: str) -> list[tuple[tuple[str, ...], str]]:
    """Return the sentences of SST-2, or the pairs of MRPC, of one part, with their labels."""
    lines = (data / name / f"{part}.tsv").read_text(encoding="utf-8-sig").splitlines()
    cells = [line.split("\t") for line in lines if line.strip()]
    if name == "mrpc":  # label, two numbers, two sentences, below a header
        return [((row[3], row[4]), row[0]) for row in cells[1:]]
    return [((row[0],), row[1]) for row in cells]


def data_string(data: Path, source: str, folder: Path, sizes: Sequence[int] | None, seed: int = 0) -> str:
    """Return the data argument for a source: a domain of PACS, `cifar10n`, `sst2` or `mrpc`.

    Args:
        data: Folder of the data sets.
        source: Its name. `cifar10n` has the labels `worse` in its training part.
        folder: Folder for a table.
        sizes: Training and test sentences that are drawn; None takes all, in order.
        seed: Seed of that draw.
    """
    if source == "cifar10n":
        lines = cifar10n_lines(data / "cifar10n")
        train = [line for line in lines if line["split"] != "test"][:CIFAR_TRAIN]
        test = [line for line in lines if line["split"] == "test"][:CIFAR_TEST]
        rows = [(r["id"], r["image"], r["worse"], "train") for r in train]
        rows += [(r["id"], r["image"], r["true_label"], "test") for r in test]
        return f"csv:{write_table(folder / 'cifar10n.csv', ('id', 'image', 'label', 'split'), rows)}"
    if source not in ("sst2", "mrpc"):
        return f"folder:{data / 'pacs128' / source}"
    rng = np.random.default_rng(seed)
    drawn = []
    for part, own in (("train", 0), ("test", 1)) if sizes else (("train", 0), ("dev", 0), ("test", 1)):
        found = sentences(data, source, part)
        order = rng.permutation(len(found))[: sizes[own]].tolist() if sizes else range(len(found))
        drawn += [(*found[i][0], found[i][1], ("train", "test")[own]) for i in order]
    columns = ("text", *(("text2",) if source == "mrpc" else ()), "label", "split")
    return f"csv:{write_table(folder / f'{source}.csv', columns, drawn)}"
