"""Write docs/benchmarks.md from the committed records in benchmarks/results.

python benchmarks/write_docs.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Made by `python benchmarks/write_docs.py` from the records in `benchmarks/results`; each section names
the command that makes its record. Figures are ratios of two sides that took turns in one process:
seconds differ between machines and between hours.
"""


def training_step(record: dict[str, Any]) -> str:
    blocks = record["ratio_robust_to_plain_by_block"]
    return f"""## The training step

`{record["command"]}` ({record["machine"]}, torch {record["torch"]}): EfficientNet-Lite0,
{record["setting"]["layers"]} layers, {record["setting"]["classes"]} classes, {record["setting"]["pixels"]} px,
batches of {record["setting"]["batch"]}.

| comparison | ratio of medians | goal |
|---|---|---|
| robust step (consistent loss, projection of all layers) to plain step | {record["ratio_robust_to_plain"]:.3f} | at most 1.05 |
| plain step to a bare PyTorch loop doing the same work | {record["ratio_plain_to_bare"]:.3f} | at most 1.05 |

The first ratio ran from {min(blocks):.3f} to {max(blocks):.3f} over {len(blocks)} blocks.
"""


def demo(record: dict[str, Any]) -> str:
    setting, runs = record["setting"], record["runs"]
    mean = {
        m: sum(r["test_accuracy"] for r in runs if r["method"] == m) / (len(runs) / 2)
        for m in ("vanilla", "robust")
    }
    return f"""## The demo

`{record["command"]}`: {setting["limit"]} digits at {setting["image_size"]} px, {setting["noise"]} noise,
{setting["epochs"]} epochs, {len(runs) // 2} seeds. Mean test accuracy on true labels: plain
{mean["vanilla"]:.1%}, robust {mean["robust"]:.1%}; each seed is in the README.
"""


SECTIONS = {"demo": demo, "training_step": training_step}


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts.append(section(json.loads(path.read_text())))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
