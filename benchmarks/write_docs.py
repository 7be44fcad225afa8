"""Write docs/benchmarks.md from the committed records in benchmarks/results.

python benchmarks/write_docs.py
"""

from __future__ import annotations

from typing import Any

from docs_scale import scale
from docs_text import text, text_rules, versions
from records import DOCS, read_record

PAGE = DOCS / "benchmarks.md"

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


def last_stage(record: dict[str, Any]) -> str:
    setting = record["setting"]
    rows = "\n".join(
        f"| {row['run']} | {row['times faster']:.1f} | {row['computed']} | {row['test accuracy']:.1%} |"
        for row in record["rows"]
    )
    apart = record["largest difference of a weight, kept and anew"]
    same = f"differ by at most {apart:.1g}" if apart else "are the same, bit for bit"
    return f"""## The last stage alone

`{record["command"]}` ({record["machine"]}): EfficientNet-Lite0, {setting["limit"]} digits at {setting["image_size"]} px,
{setting["epochs"]} epochs, from reading the data to the finished run. What is trained is `--train {setting["stage"]}`;
frozen layers run once an image, or once a view of it (`--augment-views`).

| run | times faster than all layers | activations computed | test accuracy |
|---|---|---|---|
{rows}

Weights of the run whose activations were kept and of the one that computed them anew {same}.
"""


def demo(record: dict[str, Any]) -> str:
    setting, runs = record["setting"], record["runs"]
    names = list(dict.fromkeys(r["name"] for r in runs))
    seeds = len({r["seed"] for r in runs})
    mean = {name: sum(r["test_accuracy"] for r in runs if r["name"] == name) / seeds for name in names}
    shown = ", ".join(f"{name} {mean[name]:.1%}" for name in names)
    return f"""## The demo

`{record["command"]}`: {setting["limit"]} digits at {setting["image_size"]} px, {setting.get("inject_noise") or setting["noise"]} noise,
{setting["epochs"]} epochs, {seeds} seeds. Mean test accuracy on true labels: {shown}; each seed is in the README.
"""


def measure_efficientnet(record: dict[str, Any]) -> str:
    setting, public = record["setting"], record["public"]
    skipped = "".join(
        f"| {row['classes']} | {row['mean_top_probability']:.2f} | {row['passes']} of {row['passes_all']} | {row['ratio_seconds']:.1f} "
        f"| {row['largest_relative_error']:.1e} | {row['largest_relative_error_of_a_trace']:.1e} |\n"
        for row in record["skipped_classes"]
    )
    return f"""## The measure, exact path

`{record["command"]}` ({record["machine"]}, torch {record["torch"]}): EfficientNet-Lite0,
{setting["layers"]} layers, {setting["classes"]} classes, {setting["pixels"]} px, {setting["examples"]} examples,
batches of {setting["batch"]}; CPU time.

| comparison | ratio | goal |
|---|---|---|
| block Lanczos (curvlinops products, per example and layer, to a 1 % bracket, scaled) to exact path | {record["ratio_block_lanczos_to_exact"]:.0f} | at least 500 |
| one block Hessian product per example and layer to exact path | {record["ratio_one_product_each_to_exact"]:.0f} | |
| the paper code's one product of a batch of 4, an example, to exact path | {record["ratio_paper_to_exact"]:.1f} | at least 3 |
| exact path to its limit (two forward passes, K backward passes to activations) | {record["ratio_exact_to_limit"]:.2f} | at most 1.5 |
| peak memory, exact path to training step of the same batch | {record["ratio_peak_exact_to_training"]:.2f} | at most 2 |
| `measure`, its plan included, to the limit, {public["examples"]} examples | {public["ratio_measure"]:.2f} | at most 1.1 |
| the same, with the traces of all layers | {public["ratio_measure_with_traces"]:.2f} | at most 1.5 |

The two sides of the first row differ by at most {record["block_lanczos"]["largest_relative_difference"]:.1%}. Unlikely classes left out
as by default (`skip_classes={record["skipped_classes"][0]["tolerance"]}`), with traces, beside all passes; ten training steps on {setting["batch"]}
examples, the head then scaled by three, so that little mass lies on classes that none of them has (*sure*: the mean
probability of the likeliest class):

| classes | sure | passes | times faster | largest relative error of an entry | of a trace |
|---|---|---|---|---|---|
{skipped}
Traces take as long again: the layers' inputs are unfolded for them, and fresh memory of that size costs most.
Growth in examples and classes is drawn in [the measure](measure.md).
"""


def measure_minilm(record: dict[str, Any]) -> str:
    return f"""## The measure, smooth path

`{record["command"]}` ({record["machine"]}, torch {record["torch"]}): a 6-layer MiniLM after {record["epochs"]} epochs
on SST-2 with wrong labels, {record["layers"]} Linear layers, {record["examples"]} sentences padded to {record["length"]} tokens
(mean length {record["mean_length"]:.0f}), against {record["steps"]} Lanczos steps by double backward per example and layer.

| comparison | ratio | goal |
|---|---|---|
| baseline to the full matrix, sentences padded | {record["ratio_matrix"]:.1f} | at least 2 |
| baseline to the full matrix, the baseline given no padding | {record["ratio_matrix_unpadded"]:.1f} | |
| baseline to the full matrix, both on all {record["length"]} tokens | {record["ratio_matrix_all_tokens"]:.1f} | |

Batching alone gains little on a CPU: three quarters of the time is matrix products that no batching
saves; cutting the padding does.
"""


def coverage(record: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {kind} | {r['failures']} of {r['trials']} | {r['most']} |"
        for kind in ("sound", "broken")
        for name, r in record[kind].items()
    ]
    table = "\n".join(rows)
    return f"""## Coverage of the certificates

`python benchmarks/certificate_coverage.py`: training sets drawn again and again from a known distribution, δ =
{record["delta"]}; "at most" is δ beyond a binomial 99 % margin. Broken certificates are there to show
that the check can fail.

| certificate | | violated | at most |
|---|---|---|---|
{table}
"""


def report_page(record: dict[str, Any]) -> str:
    setting = record["setting"]
    return f"""## The report of a large run

`{record["command"]}`: {setting["layers"]} layers, {setting["n"]:,} examples, {setting["k"]} classes. The page has
{record["megabytes"]:.1f} MB (goal: under 5), and Chromium opens it in {record["seconds_to_open"]:.2f} s (median; slowest
{record["seconds_to_open_slowest"]:.2f} s; goal: under 1 s), with other work on the machine.
"""


def compare_speed(record: dict[str, Any]) -> str:
    heads = record["heads"]
    decoded = record["decodes_an_image_in_four_runs_of_three_epochs"]
    return f"""## What a comparison costs

`{record["command"]}`: {len(heads["methods"])} methods by {heads["seeds"]} seeds, heads on {heads["limit"]} digits, take
{record["six_heads_over_one"]} times the processor time of one method with one seed: features are computed once. In four
runs of three epochs an image was decoded {decoded:g} time{"s" * (decoded != 1)}. Two processes on whole networks kept
{record["two_cores_busy"]:.0%} of two cores' time busy, starting up included.
"""


def auto_cost(record: dict[str, Any]) -> str:
    made = record["comparison"]
    methods = ", ".join(f"`{name}`" for name in made["methods"])
    lines = "\n".join(
        f"| {head['n']:,} | {head['auto_over_own']:.1f} | {head['auto_over_scikit-learn']:.1f} |"
        for head in record["heads"]
    )
    return f"""## What `auto` costs

`{record["command"]}`: processor time of `auto`'s head, on features that are
there and CIFAR-10N's worst labels, over that of one head with its penalty by cross-validation: our own, and
scikit-learn's `LogisticRegressionCV` (the goal is 3 at most).

| examples | over our own | over scikit-learn's |
|---:|---:|---:|
{lines}

{len(made["methods"])} methods ({methods}) by {made["seeds"]} seeds on {made["images"]:,} images take
{made["seconds_beyond_one_cell"]:.0f} seconds longer than one method with one seed, which computes the features, on
{made["threads"]} cores; the goal of under 60 is {"reached" if made["goal_reached"] else "missed"} on this machine.
"""


SECTIONS = {
    "demo": demo,
    "training_step": training_step,
    "last_stage": last_stage,
    "measure_efficientnet": measure_efficientnet,
    "measure_minilm": measure_minilm,
    "coverage": coverage,
    "text": text,
    "text_rules": text_rules,
    "versions": versions,
    "scale": scale,
    "compare_speed": compare_speed,
    "auto_cost": auto_cost,
    "report_page": report_page,
}


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        if record := read_record(name, {}):
            parts.append(section(record))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
