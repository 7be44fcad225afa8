"""Default radii of whole networks, on development tasks: `robust`, told the noise, in balls by several rules.

EfficientNet-Lite0 at 64 pixels on domains of PACS, MiniLM on sentences of SST-2; 500 training examples, every
layer trained. Rules: the constants 0.25 for the head and 0.05 for other layers; shares of the layers' norms,
with a share of the penalised head's; the distances at which plain fine-tuning is stopped by noisy validation;
no balls. Beside them plain fine-tuning. Seeds from 100 up, which no test has. Continues where it stopped. Of
the record, all rows of pictures but those of `share 0.003` ran on a GPU.

    python benchmarks/field/radii.py --data DATA [--jobs N]
"""

from __future__ import annotations

import csv
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import hesstune as ht
from records import RESULTS, add_row, arguments, read_rows

PATH = RESULTS / "field_radii_development.csv"
COLUMNS = ("epochs", "source", "noise", "seed", "rule", "accuracy")
SHORT = (
    (12, "photo", "symmetric:0.3", 103),
    (12, "art_painting", "pair:0.4", 103),
    (12, "art_painting", "symmetric:0.3", 103),
    (12, "cartoon", "pair:0.3", 103),
    (12, "cartoon", "symmetric:0.4", 101),
    (12, "art_painting", "symmetric:0.5", 106),
    (12, "photo", "instance:0.4", 107),
    (12, "cartoon", "instance:0.3", 108),
)
LONG = (
    (40, "photo", "symmetric:0.3", 103),
    (40, "art_painting", "pair:0.4", 103),
    (40, "cartoon", "instance:0.3", 108),
    (40, "art_painting", "symmetric:0.3", 103),
    (40, "cartoon", "pair:0.3", 103),
)
SENTENCES = ((12, "sst2", "symmetric:0.3", 110), (12, "sst2", "pair:0.3", 111))
Task = tuple[int, str, str, int]
ROBUST: dict[str, Any] = {"method": "robust", "noise_matrix": "true"}
STOPPED: dict[str, Any] = {"method": "vanilla", "patience": 3, "select": "best"}


def shares(layer: float, head: float = 2.0) -> dict[str, Any]:
    """Return the options of balls of these shares; a head beside other layers has a quarter of its own."""
    return {**ROBUST, "method_options": {"layer_share": layer, "head_share": head}}


RULES: dict[str, dict[str, Any]] = {
    "plain": {"method": "vanilla"},
    "plain, stopped": STOPPED,
    "constants": {**ROBUST, "radius": {"head": 0.25, "*": 0.05}},
    "share 0.003": shares(0.003),
    "share 0.006": shares(0.006),
    "share 0.02, head 8": shares(0.02, 8.0),
    "share 0.05, head 8": shares(0.05, 8.0),
    "share 0.15, head 8": shares(0.15, 8.0),
    "stopped distances": ROBUST,
    "no balls": {**ROBUST, "radius": 1e6},
}
# Which rule was tried where.
TRIED = {
    SHORT: [name for name in RULES if name not in ("share 0.006", "share 0.02, head 8")],
    LONG: [name for name in RULES if name not in ("share 0.006", "share 0.15, head 8")],
    SENTENCES: ["plain", "plain, stopped", "constants", "share 0.003", "share 0.006"],
}


def write_sentences(data: Path, path: Path) -> None:
    """Write 2,000 sentences to train on and 1,000 test sentences, with true labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "text", "label", "split"])
        for part, taken in (("train", 2000), ("test", 1000)):
            lines = (data / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
            lines = [line for line in lines if line.strip()]
            Random(0).shuffle(lines)
            for at, line in enumerate(lines[:taken]):
                text, _, label = line.rpartition("\t")
                out.writerow([f"{part}-{at}", text, label, part])


def cell(data: Path, task: Task, rule: str) -> float:
    """Train once; return test accuracy on true labels."""
    epochs, source, noise, seed = task
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {"limit": 500, "train": "all", "inject_noise": noise, "seed": seed}
        common |= {"epochs": epochs, "keep_weights": False}
        if source == "sst2":
            write_sentences(data, path := Path(folder) / "sst2.csv")
            common |= {"data": f"csv:{path}", "model": "minilm"}
        else:
            common |= {"data": f"folder:{data / 'pacs128' / source}", "image_size": 64}
        options = RULES[rule]
        if rule == "stopped distances":
            plain = ht.finetune(**common, **STOPPED, out=f"{folder}/plain").outcome
            options = {**options, "radius": {name: max(d, 1e-6) for name, d in plain.distances.items()}}
        return ht.finetune(**common, **options, out=f"{folder}/run").outcome.test_accuracy or 0.0


def main() -> None:
    parser = arguments(__doc__, "pacs128/ and sst2/")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    done = {tuple(str(row[name]) for name in COLUMNS[:-1]) for row in read_rows(PATH)}
    todo = [(task, rule) for tasks, rules in TRIED.items() for task in tasks for rule in rules]
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {
            pool.submit(cell, asked.data, task, rule): (*task, rule)
            for task, rule in todo
            if tuple(str(value) for value in (*task, rule)) not in done
        }
        for job in as_completed(jobs):
            if job.exception() is not None:  # one cell that fails leaves the others
                print(f"{jobs[job]} failed: {job.exception()!r}", flush=True)
                continue
            add_row(PATH, COLUMNS, [*jobs[job], round(job.result(), 4)])


if __name__ == "__main__":
    main()
