"""Run the demo over three seeds, record it, and write its table into the README.

python benchmarks/demo.py            # runs, records and writes the table
python benchmarks/demo.py --table    # the table alone, from the record
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from hesstune.study.demo import SETTING, run_demo
from records import ROOT, arguments, read_record, write_record

README = ROOT / "README.md"
START, END = (
    "<!-- demo table: made by benchmarks/demo.py from benchmarks/results/demo.json -->\n",
    "<!-- end of demo",
)
TITLES = {
    "plain": "plain, all epochs",
    "plain, stopped": "plain, stopped on noisy validation",
    "robust": "robust, told the rate",
    "auto": "auto, told nothing",
}
KEPT = ("test_accuracy", "train_accuracy", "gap", "distance", "epochs")


def record_runs(seeds: int) -> dict[str, Any]:
    runs = run_demo(Path(tempfile.mkdtemp()) / "demo", seeds)
    return {
        "command": "python benchmarks/demo.py",
        "setting": SETTING,
        "torch": torch.__version__,
        "runs": [
            {"name": m, "seed": s, "noise": run.record["noise"], **{k: run.result[k] for k in KEPT}}
            for (m, s), run in runs.items()
        ],
    }


def table(record: dict[str, Any]) -> str:
    """Return the README's table of a record."""
    by_run = {(r["name"], r["seed"]): r for r in record["runs"]}
    seeds = sorted({seed for _, seed in by_run})
    names = list(dict.fromkeys(name for name, _ in by_run))
    lines = ["| seed | " + " | ".join(TITLES[name] for name in names) + " |", "|" + "---|" * (1 + len(names))]
    for seed in seeds:
        accuracies = [f"{by_run[name, seed]['test_accuracy']:.1%}" for name in names]
        lines.append(f"| {seed} | " + " | ".join(accuracies) + " |")
    means = [sum(by_run[name, s]["test_accuracy"] for s in seeds) / len(seeds) for name in names]
    lines.append("| mean | " + " | ".join(f"{mean:.1%}" for mean in means) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--table", action="store_true", help="write the table from the record, run nothing")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if not asked.table:
        write_record("demo", record_runs(asked.seeds))
    text = README.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END, 1)
    README.write_text(before + START + "\n" + table(read_record("demo")) + "\n" + END + after)


if __name__ == "__main__":
    main()
