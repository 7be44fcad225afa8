"""From rules to a network, by the defaults: SST-2's sentences, examples/sentiment_rules.py, MiniLM's head.

Labels come from `hesstune.label_data` with the rules and no other option, and the head from
`hesstune.finetune` with `train="head"` and no other; beside it scikit-learn and plain cross-entropy on the
majority's labels. Test accuracy on true labels.

    python benchmarks/field/rules.py --data DATA [--seeds N]
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import hesstune as ht

sys.path.insert(0, str(Path(__file__).parents[1]))
import peers  # noqa: F401  # makes sklearn_cv known
from records import ROOT, arguments, write_record

RULES = "py:sentiment_rules:RULES"


def write_sentences(data: Path, path: Path) -> None:
    """Write the sentences with their parts; labels are true, and no label model reads them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "text", "split", "true_label"])
        for part in ("train", "test"):
            lines = (data / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
            for at, line in enumerate(line for line in lines if line.strip()):
                text, _, label = line.rpartition("\t")
                name = "positive" if label == "1" else "negative"
                out.writerow([f"{part}-{at}", text, part, name])


def main() -> None:
    parser = arguments(__doc__, "sst2")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT / "examples"))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sentences(asked.data, folder / "sentences.csv")
        right = {}
        for model in ("auto", "majority"):
            made = ht.label_data(target=f"csv:{folder / 'sentences.csv'}", functions=RULES, label_model=model)
            made.save(folder / f"{model}.csv")
            right[model] = made.accuracy(made.labels)
        for seed in range(asked.seeds):
            for labels, method in (("auto", "auto"), ("majority", "vanilla"), ("majority", "sklearn_cv")):
                run = ht.finetune(
                    f"csv:{folder / f'{labels}.csv'}", model="minilm", train="head", method=method, seed=seed
                )
                found = run.outcome.test_accuracy
                rows.append({"labels": labels, "method": method, "seed": seed, "accuracy": found})
                print(rows[-1], flush=True)
    command = "python benchmarks/field/rules.py --data DATA"
    write_record("field_rules", {"command": command, "labels right": right, "runs": rows})


if __name__ == "__main__":
    main()
