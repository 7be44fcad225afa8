"""Write the generated parts of README.md and docs: tables of records, lists from the code, the examples.

A page has each part between `<!-- generated: NAME -->` and `<!-- end of generated -->`; NAME is in `TABLES`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

import analysis as a
import code_tables
import head_tables
import memorisation as learnt
import memory_model as memory
from analysis import bold_best, joined, listed, markdown, signed, with_interval
from hesstune.storage.files import write_text
from hesstune.study.results import paired_difference
from records import DOCS, ROOT, lines, result, rows

BLOCK = re.compile(r"<!-- generated: (\w+) -->\n.*?<!-- end of generated -->", re.DOTALL)
TABLES: dict[str, Callable[[], str]] = code_tables.TABLES | head_tables.TABLES


def table(make: Callable[[], str]) -> Callable[[], str]:
    """Register a table under the name of its function."""
    TABLES[make.__name__] = make
    return make


def pages() -> Iterator[Path]:
    """Yield the pages that may have tables."""
    yield ROOT / "README.md"
    yield from sorted(DOCS.rglob("*.md"))


def filled(text: str) -> str:
    """Return a page's text with its tables made again.

    Raises:
        KeyError: If the page names a table that this file does not have.
    """
    return BLOCK.sub(
        lambda m: f"<!-- generated: {m[1]} -->\n\n{TABLES[m[1]]()}\n\n<!-- end of generated -->", text
    )


def write() -> None:
    """Write the tables into all pages."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            write_text(page, new)
            print(page.relative_to(ROOT))


# The commands


@table
def jobs() -> str:
    found = rows("jobs")
    for row in found:
        epochs = row["epochs"] if row["command"] == "finetune" else 1
        row["command"] = f"`{row['command']}`{', an epoch of all layers' if epochs > 1 else ''}"
        row |= {"seconds": row["cpu_seconds"] / epochs, "gib": row["peak_mib"] / 1024}
    columns = {"data": "{examples:,} {data}", "command": "{command}", "processor seconds": "{seconds:.0f}"}
    return listed(found, {**columns, "peak memory, GiB": "{gib:.1f}"})


@table
def after_clean() -> str:
    found = pd.DataFrame(rows("after_clean"))
    found["way"] = "`" + found["method"] + "`, " + found["labels"]
    means = 100 * found.pivot_table(index="task", columns="way", values="accuracy", sort=False)
    means = means[sorted(means.columns, key=lambda way: way.startswith("`v"))]
    means.loc["mean"] = means.mean()
    noise = found.groupby("task")["noise"].mean()
    shown = []
    for task, own in means.iterrows():
        rate = "" if task == "mean" else f"{100 * noise[task]:.0f}"
        best = own.max()
        shown.append([task, rate, *(f"**{v:.1f}**" if v == best else f"{v:.1f}" for v in own)])
    return markdown(["task", "wrong labels, %", *means.columns], shown)


# Speed and memory


@table
def demo() -> str:
    titles = {"plain": "plain, all epochs", "plain, stopped": "plain, stopped on noisy validation"}
    titles |= {"robust": "robust, known noise rate", "auto": "auto, no noise information"}
    found = pd.DataFrame(result("demo")["runs"]).pivot(index="seed", columns="name", values="test_accuracy")
    found.loc["mean"] = found.mean()
    cells = ([str(seed), *(f"{own[name]:.1%}" for name in titles)] for seed, own in found.iterrows())
    return markdown(["seed", *titles.values()], cells)


@table
def training_step() -> str:
    found = result("training_step")
    blocks = found["ratio_robust_to_plain_by_block"]
    first = f"{found['ratio_robust_to_plain']:.3f} ({min(blocks):.3f} to {max(blocks):.3f})"
    return markdown(
        ["comparison", "ratio of medians (range over blocks)"],
        [
            ["`robust` step to plain step", first],
            ["plain step to a PyTorch loop", f"{found['ratio_plain_to_bare']:.3f}"],
        ],
    )


@table
def last_stage() -> str:
    columns = {"run": "{run}", "speed relative to all layers": "{times faster:.1f}"}
    columns |= {"computed activations": "{computed}", "test accuracy": "{test accuracy:.1%}"}
    return listed(result("last_stage")["runs"], columns)


@table
def measure() -> str:
    found = result("measure")
    found |= found["public"]
    ways = (
        ("block Lanczos (curvlinops, per example and layer, to 1 %) to exact path",
         "{ratio_block_lanczos_to_exact:.0f}"),
        ("one block Hessian product per example and layer to exact path",
         "{ratio_one_product_each_to_exact:.0f}"),
        ("the paper code's product of a batch of 4, per example, to exact path",
         "{ratio_paper_to_exact:.1f}"),
        ("exact path to its limit (2 forward passes, K backward passes to activations)",
         "{ratio_exact_to_limit:.2f}"),
        ("peak memory of the exact path to that of a training step",
         "{ratio_peak_exact_to_training:.2f}"),
        ("`measure` with its planning to the limit, 256 examples", "{ratio_measure:.2f}"),
        ("the same with the traces of all layers", "{ratio_measure_with_traces:.2f}"),
    )  # fmt: skip
    return markdown(["comparison", "ratio"], ([w, f.format_map(found)] for w, f in ways))


@table
def measure_skipped_classes() -> str:
    columns = {"classes": "{classes}", "mean top probability": "{mean_top_probability:.2f}"}
    columns |= {"passes": "{passes} of {passes_all}", "times faster": "{ratio_seconds:.1f}"}
    columns |= {"largest relative error": "{largest_relative_error:.1e}"}
    columns |= {"of a trace": "{largest_relative_error_of_a_trace:.1e}"}
    return listed(result("measure")["skipped_classes"], columns)


@table
def measure_gauss_newton() -> str:
    found = rows("measure_gauss_newton")
    ways = [
        ("Lanczos for one example and layer at a time to the Gauss–Newton form",
         "{ratio_lanczos_to_form:.0f}"),
        *((f"{peer}'s Gauss–Newton product for one example and layer at a time to the form",
           f"{{ratio_{peer}_to_form:.0f}}") for peer in ("curvlinops", "hessian-eigenthings")),
        ("Gauss–Newton form to its limit (1 forward pass, K − 1 backward passes)",
         "{ratio_form_to_limit:.2f}"),
        ("the same with the traces of all layers", "{ratio_trace_to_limit:.2f}"),
        ("peak memory of the form to that of a training step", "{ratio_peak_form_to_training:.2f}"),
        ("the same with the traces of all layers", "{ratio_peak_trace_to_training:.2f}"),
    ]  # fmt: skip
    return markdown(
        ["comparison", *(r["network"] for r in found)],
        ([way, *(form.format_map(r) for r in found)] for way, form in ways),
    )


@table
def measure_traces() -> str:
    columns = {
        "head": "{head}",
        "mean of the largest probability": "{largest_probability:.2f}",
        "one layer and example": "{error_of_one_trace:.1%}",
        "sum over layers of one example": "{error_of_an_examples_sum:.1%}",
        "mean of one layer": "{error_of_a_layers_mean:.1%}",
        "sum of the means": "{error_of_the_sum_of_means:.1%}",
        "error of a mean to its stated error": "{error_to_stated_error_of_a_layers_mean:.2f}",
    }
    return listed(rows("measure_traces"), columns)


@table
def measure_text() -> str:
    found = result("measure_text")
    every = {"measured": "every form", "padded": found["ratio_matrix"]}
    error, pairs = max(found["sampling_errors"]), joined("{}", found["pairs"])
    words = f"means of the layers ({pairs} forms; standard error of their sum at most {error:.1%})"
    mean = {"measured": words, "padded": found["ratio_mean"]}
    every["unpadded"], mean["unpadded"] = found["ratio_matrix_unpadded"], found["ratio_mean_unpadded"]
    columns = {"measured": "{measured}", "baseline on padded sentences": "{padded:.1f}"}
    return listed([every, mean], {**columns, "baseline without padding": "{unpadded:.1f}"})


@table
def measure_memory() -> str:
    found = [{**row, "least": row["budgets"][0]} for row in rows("measure_memory")]
    columns = {"network": "{network}", "method": "{method}", "forecast, MiB": "{forecast_mib:.0f}"}
    columns |= {"peak, MiB": "{peak_mib:.0f}", "least budget, MiB": "{least[budget_mib]:.0f}"}
    return listed(found, {**columns, "peak with it, MiB": "{least[peak_mib]:.0f}"})


@table
def text() -> str:
    columns = {"task": "{task}", "seed": "{seed}", "method": "`{method}`", "test accuracy": "{accuracy:.1%}"}
    columns |= {"accuracy on the noisy training labels": "{train_accuracy:.1%}", "distance": "{distance:.2f}"}
    order = sorted(rows("text"), key=lambda r: (r["task"], r["seed"], r["method"] == "robust"))
    return listed(order, columns)


@table
def versions() -> str:
    found = []
    for line in lines("versions"):
        own, made = line["versions"], line["result"]
        others = joined("{0[0]} {0[1]}", (v for v in own.items() if v[0] not in ("torch", "numpy", "python")))
        failed = joined("`{}`", (name.rpartition("::")[2] for name in made["failed"])) or "none"
        found.append({**made, "torch": own["torch"], "others": others, "failed": failed})
    columns = {"torch": "{torch}", "other packages": "{others}", "passed": "{passed}", "skipped": "{skipped}"}
    return listed(found, {**columns, "failed": "{failed}"})


@table
def scale() -> str:
    ranks, examples, many = (result("scale", part=part) for part in ("ranks", "examples", "runs"))
    speed, cpu = ranks["speed_ups"], ranks["speed_ups_cpu"]
    range_ = f"{median(speed):.2f} ({min(speed):.2f} to {max(speed):.2f})"
    cells = [
        ["speed of `measure` on two ranks relative to one", range_],
        ["the same in CPU time of the slower rank", f"{min(cpu):.2f} to {max(cpu):.2f}"],
    ]
    budgets = joined("{:.0f}", examples["budgets_mib"])
    for what, peaks in examples["peaks_beyond_start_mib"].items():
        cells.append([f"peak MiB of `measure` {what}, `memory_mib` {budgets}", joined("{:.0f}", peaks)])
    held = many["resident_mib"]
    title = f"{many['runs']} short runs: resident MiB after the first and the last tenth"
    return markdown(["quantity", "measured"], [*cells, [title, f"{held[0]:.0f}, {held[-1]:.0f}"]])


@table
def auto_cost() -> str:
    columns = {"examples": "{examples:,}", "`auto` to hesstune's head": "{auto_over_own:.2f}"}
    return listed(
        rows("auto_cost"), {**columns, "`auto` to scikit-learn's head": "{auto_over_scikit-learn:.2f}"}
    )


@table
def embeddings() -> str:
    columns = {"embeddings": "{n:,}", "what": "{what}", "seconds": "{fit_seconds:.0f}"}
    return listed(rows("embeddings"), {**columns, "peak memory, GiB": "{peak_gib:.1f}"})


@table
def memory_of_seven_billion() -> str:
    used, seven, gib = memory.transformer_activations(1), memory.SEVEN, 2**30
    found = {
        "fine-tuning, whole": memory.training(seven, "whole", activations=used),
        "fine-tuning, `--shard` on 8 processes": memory.training(seven, "sharded", 8, used),
        "fine-tuning, `--shard` on 16 processes": memory.training(seven, "sharded", 16, used),
        "fine-tuning, `--method lora`": memory.training(seven, "lora", activations=used),
        "`measure`, all layers": memory.measuring(seven, activations=used),
        "`measure --layers`, 1/32 of the weights at a time": memory.measuring(seven, 1 / 32, used),
    }
    cells = []
    for what, own in found.items():
        others = own["total"] - own["weights"] - own["reference"]
        parts = (own["weights"], own["reference"], others, own["total"])
        cells.append([what, *(f"{part / gib:.0f}" for part in parts)])
    return markdown(["run, GiB per process", "weights", "reference", "rest", "total"], cells)


@table
def memory_checked() -> str:
    names = {"whole": "fine-tuning, whole", "lora": "fine-tuning, `--method lora`"}
    names |= {"sharded": "fine-tuning, `--shard` on {processes} processes, the largest"}
    names |= {"measure": "`measure`, all layers"}
    found = [
        {**r, "run": names[r["mode"]].format_map(r), "millions": r["weights"] / 1e6}
        for r in rows("memory_model")
    ]
    columns = {"run": "{run}", "weights, millions": "{millions:.0f}", "predicted, MiB": "{predicted_mib:.0f}"}
    return listed(found, {**columns, "measured, MiB": "{measured_mib:.0f}"})


# The measure


@table
def paper_code() -> str:
    found = []
    for r in rows("paper_code"):
        ratio, leak = r["paper_maximum"] / r["positive_maximum"], r["paper_mean"] / r["block_mean"]
        found.append(
            {**r, "ratio": ratio, "leak": leak, "error": abs(r["fast_maximum"] / r["positive_maximum"] - 1)}
        )
    columns = {"network": "{network}", "layer": "`{layer}`", "distance": "{distance:.2f}"}
    columns |= {"paper's maximum": "{paper_maximum:.3f}", "max vᵀH⁺v": "{positive_maximum:.3f}"}
    columns |= {"ratio of the maxima": "{ratio:.2f}", "leak": "{leak:.1f}×"}
    columns |= {"share of examples with vᵀHv < 0": "{block_negative_share:.0%}"}
    return listed(found, {**columns, "error of `measure`": "{error:.0e}"})


@table
def noise_stability() -> str:
    columns = {"network": "{network}", "σ": "{sigma:g}", "rise ± s.e.": "{value:.3g} ± {stderr:.1g}"}
    return listed(rows("noise_stability"), {**columns, "½σ²·Tr H": "{taylor:.3g}", "ratio": "{ratio:.2f}"})


@table
def gap_measures() -> str:
    found, cells = a.gap_rows(), []
    kinds = [a.gap_tasks(found, heads, dev) for heads in (False, True) for dev in (True, False)]
    for name, (title, _) in a.MEASURES.items():
        dev, test, heads_dev, heads_test = (a.taus(found, name, own) for own in kinds)
        share, ratio = a.near(found, name, kinds[1])
        unit = "–" if name in ("distance", "relative distance") else f"{100 * share:.0f} %"
        means = [signed(float(np.mean(taus))) for taus in (dev, test, heads_dev, heads_test)]
        span = f"{signed(min(test))} to {signed(max(test))}"
        cells.append([title, *means[:2], span, unit, f"{ratio:.2f}", *means[2:]])
    titles = ["Σ_i √(C·…/n) over", "τ, development", "τ, test", "range over test tasks", "within a factor 5"]
    return markdown([*titles, "median ratio", "τ, heads, development", "τ, heads, test"], cells)


@table
def gap_differences() -> str:
    found, cells = a.gap_rows(), []
    tested = a.gap_tasks(found, heads=False, development=False)
    for other in ("distance", "scaled distance", "paper"):
        one = a.bootstrap(a.taus(found, a.DEFAULT, tested), a.taus(found, other, tested))
        cells.append([a.MEASURES[other][0], "{} [{}, {}]".format(*map(signed, one))])
    return markdown(["τ of the default minus τ of", "difference [95 % interval]"], cells)


@table
def gap_texts() -> str:
    found, cells = a.gap_rows(), []
    for name in (a.DEFAULT, "joint", "held out, maximum", "paper", "scaled distance", "distance"):
        taus = [
            signed(tau) for own in (a.TEXTS_DEVELOPMENT, a.TEXTS_TEST) for tau in a.taus(found, name, own)
        ]
        share, ratio = a.near(found, name, a.TEXTS_TEST)
        fitted = a.scaled(found, name, a.TEXTS_TEST, a.TEXTS_DEVELOPMENT)
        unit = "–" if name == "distance" else f"{100 * share:.0f} %"
        cells.append([a.MEASURES[name][0], *taus, unit, f"{ratio:.2f}", f"{100 * fitted:.0f} %"])
    tasks = (f"τ, {task.split()[0].upper()}" for task in (*a.TEXTS_DEVELOPMENT, *a.TEXTS_TEST))
    return markdown(
        ["Σ_i √(C·…/n) over", *tasks, "within a factor 5", "median ratio", "within it, scaled"], cells
    )


@table
def gap_forms() -> str:
    cells = []
    for name, title in a.FORMS.items():
        pairs = a.form_pairs(name)
        ratio = float(np.median([one / gap for one, gap in pairs]))
        cells.append([title, signed(a.tau(pairs)), f"{100 * a.close(pairs):.0f} %", f"{ratio:.2f}"])
    return markdown(["mean over held-out examples of", "τ", "within a factor 5", "median ratio"], cells)


@table
def gap_methods() -> str:
    methods = ("robust", "constraint", "l2_sp", "auto")
    found = [{**a.against_plain(a.gap_rows(), name), "method": name} for name in methods]
    columns = {"method": "`{method}`", "settings": "{runs}", "accuracy, points": "{accuracy:+.1f}"}
    columns |= {"gap, plain → method": "{gap plain:.2f} → {gap:.2f}", "paper's, times smaller": "{paper:.1f}"}
    columns |= {"default's": f"{{{a.DEFAULT}:.1f}}", "as accurate or better": "{better}"}
    columns |= {"paper's there": "{paper, better:.1f}", "default's there": f"{{{a.DEFAULT}, better:.1f}}"}
    return listed(found, columns)


# Methods compared


@table
def study_heads() -> str:
    found, cells = a.all_heads(), []
    mean = a.means(found)
    tasks, ranks = list(mean.index), a.mean_ranks(mean)
    voted = [task for task in tasks if task in a.VOTES]
    for name in mean.mean().sort_values(ascending=False, kind="stable").index:
        below = int((mean[name] < mean["vanilla"] - 0.5).sum())
        minus = ["–", "–"]
        if name != "auto":
            minus = [with_interval(a.gains(found, name, of)) for of in (tasks, voted)]
        accuracy = [f"{mean.loc[of, name].mean():.1f}" for of in (tasks, voted)]
        cells.append([f"`{name}`", *accuracy, f"{ranks[name]:.1f}", *minus, str(below)])
    titles = ["method", "all tasks", "votes", "rank", "`auto` minus it", "`auto` minus it, votes", "below"]
    return markdown(titles, cells)


@table
def study_heads_by_task() -> str:
    mean = a.means(a.all_heads())
    names = list(mean.mean().sort_values(ascending=False, kind="stable").index)
    shown = {task: bold_best(own, names) for task, own in mean.iterrows()}
    cells = ([task, *(own[n] for n in names)] for task, own in shown.items())
    return markdown(["task", *(f"`{n}`" for n in names)], cells)


@table
def study_all_layers() -> str:
    found = pd.DataFrame(row for row in rows("study") if row["part"] == "programmatic_full")
    accuracy = 100 * found.set_index(["task", "seed", "method"])["test_accuracy"].unstack(sort=False)
    keys, made = ["test_accuracy", "measure", "distance"], []
    for method, mean in found.groupby("method", sort=False)[keys].mean().iterrows():
        gain = (accuracy[method] - accuracy["vanilla"]).dropna().groupby(level="task", sort=False)
        minus = paired_difference([own.to_numpy() for _, own in gain])
        shown = "–" if method == "vanilla" else f"{minus.mean:+.1f} [{minus.low:+.1f}, {minus.high:+.1f}]"
        made.append({"method": method, "minus": shown, **mean})
    made.sort(key=lambda row: -row["test_accuracy"])
    columns = {"method": "`{method}`", "test accuracy": "{test_accuracy:.1%}", "measure": "{measure:.3g}"}
    return listed(made, {**columns, "distance": "{distance:.3g}", "minus `vanilla`, points": "{minus}"})


@table
def study_measures() -> str:
    cells = []
    for key, title in a.STUDY_MEASURES.items():
        pairs = a.study_pairs(key)
        ratios = sorted(x / y for x, y in pairs if x > 0 and y > 0)
        taus = [signed(a.tau(a.study_pairs(key, part))) for part in (None, *a.STUDY_PARTS)]
        share = f"{100 * a.close(pairs):.0f} %"
        cells.append([title, *taus, f"{ratios[len(ratios) // 2]:.2g}", share, str(len(pairs))])
    titles = ["measure", "τ, all runs", *(f"τ, {title}" for title in a.STUDY_PARTS.values())]
    return markdown([*titles, "median ratio to the gap", "within a factor 5", "runs"], cells)


@table
def memorisation() -> str:
    found = sorted(rows("memorisation"), key=lambda r: (r["seed"] < learnt.DEVELOPMENT, "agreement" not in r))
    cells = []
    for row in found:
        kind = "development" if row["seed"] >= learnt.DEVELOPMENT else "test"
        epochs = (learnt.onset(row), *(rule(row) for rule in learnt.RULES.values()))
        rate = f"{100 * row['wrong'] / row['n']:.0f} %"
        cells.append(
            [row["task"], str(row["seed"]), kind, rate, *("–" if e is None else str(e) for e in epochs)]
        )
    return markdown(["task", "seed", "runs", "wrong labels", "memorisation starts", *learnt.RULES], cells)


@table
def memorisation_counts() -> str:
    found = [row for row in rows("memorisation") if row["seed"] < learnt.DEVELOPMENT]
    noisy, clean = ([r for r in found if ("agreement" in r) == kind] for kind in (True, False))
    loss, cells = list(learnt.RULES.values())[1], []
    for name, rule in learnt.RULES.items():
        warned = [(rule(row), learnt.onset(row), loss(row)) for row in noisy]
        epochs = [(at, start or math.inf, usual or math.inf) for at, start, usual in warned if at is not None]
        counts = (
            sum(at <= start for at, start, _ in epochs),
            sum(at < usual for at, _, usual in epochs),
            sum(at > usual for at, _, usual in epochs),
            len(noisy) - len(epochs),
        )
        alarms = sum(rule(row) is not None for row in clean)
        cells.append([name, *(f"{count} of {len(noisy)}" for count in counts), f"{alarms} of {len(clean)}"])
    titles = [
        "by the start of memorisation",
        "before the validation loss",
        "after it",
        "missed",
        "false alarms",
    ]
    return markdown(["warning", *titles], cells)


# Noise and labels


@table
def votes() -> str:
    columns = {"majority": "majority", "dawid_skene": "crowd-kit DS", "mace": "crowd-kit MACE"}
    columns |= {"snorkel": "snorkel", "auto, votes": "votes alone", "auto": "auto"}
    cells = []
    for r in rows("votes"):
        shown = bold_best({n: 100 * r[n] for n in columns if n in r}, list(columns))
        ends = " ({:.0f} to {:.0f})".format(*(100 * end for end in r["interval"])) if "interval" in r else ""
        rates = [f"{100 * r['rate said']:.1f}{ends}", f"{100 * (1 - r['auto']):.1f}"]
        cells.append([r["set"], str(r["annotators"]), *(shown.get(n, "–") for n in columns), *rates])
    return markdown(["set", "annotators", *columns.values(), "estimated noise rate", "noise rate"], cells)


@table
def rules() -> str:
    found = pd.DataFrame(rows("rules")).groupby(["labels", "method"], sort=False)["accuracy"].mean()
    cells = ([f"`{labels}`", f"`{method}`", f"{100 * mean:.1f}"] for (labels, method), mean in found.items())
    return markdown(["label model", "method", "test accuracy, %"], cells)


@table
def label_errors() -> str:
    columns = {"ece": "ECE", "top100": "top 100", "tv_em": "F: em", "tv_confident": "F: confident"}
    return _label_errors("label_errors", columns)


@table
def label_errors_small() -> str:
    return _label_errors("label_errors_small", {"ece": "ECE"})


def _label_errors(record: str, columns: dict[str, str]) -> str:
    for score in ("ap", "f1"):
        columns |= {
            f"{score}_clean": f"{score.upper()}: clean",
            f"{score}_cleanlab": f"{score.upper()}: cleanlab",
        }
    cells = []
    for task, own in pd.DataFrame(rows(record)).groupby("task", sort=False):
        mean = own.mean(numeric_only=True)
        shown = ("–" if math.isnan(mean.get(key, math.nan)) else f"{mean[key]:.3f}" for key in columns)
        rate = "{rate:.0%} ({low:.0%} to {high:.0%})".format_map(mean)
        cells.append([task, f"{mean['noise']:.0%}", rate, *shown])
    return markdown(["task", "wrong labels", "estimated rate", *columns.values()], cells)


@table
def label_error_rates() -> str:
    found = pd.DataFrame(rows("label_errors"))
    human = found[found["task"].str.startswith(("cifar10n", "amazon"))]
    counts = {
        "rate within .06 of the truth": (human["rate"] - human["noise"]).abs() <= 0.06,
        "rate in its 90 % interval": human["noise"].between(human["low"], human["high"]),
        "calibration error at most .05": human["ece"] <= 0.05,
        "F1 above cleanlab's": human["f1_clean"] > human["f1_cleanlab"],
    }
    cells = ([title, f"{held.sum()} of {len(human)}"] for title, held in counts.items())
    return markdown(["labels by people", "runs"], cells)


@table
def label_error_differences() -> str:
    found, cells = pd.DataFrame(rows("label_errors")).dropna(), []
    for title, name in (("average precision", "ap"), ("F1", "f1")):
        gains = (found[f"{name}_clean"] - found[f"{name}_cleanlab"]).groupby(found["seed"]).mean()
        cells.append([title, with_interval(gains.tolist(), "+.3f")])
    return markdown(["`clean` minus cleanlab", "mean over tasks [95 % interval over seeds]"], cells)


@table
def noise_digits() -> str:
    found = pd.DataFrame(rows("noise_digits"))
    errors = found.groupby(["method", "noise"], sort=False)["error"].mean().unstack(sort=False)
    cells = ([f"`{method}`", *(f"{error:.3f}" for error in own)] for method, own in errors.iterrows())
    return markdown(["method", *errors.columns], cells)


@table
def noise_pacs() -> str:
    runs = pd.DataFrame(rows("noise_pacs"))
    by = (100 * runs["test_accuracy"]).groupby([runs["matrix"], runs["target"]], sort=False)
    mean, error = by.mean().unstack(sort=False), by.sem().unstack(sort=False)
    total = mean.sum(axis=1)
    share = (total - total["cross-entropy"]) / (total["true F"] - total["cross-entropy"])
    cells = []
    for name, own in mean.iterrows():
        shown = (f"{own[target]:.1f} ± {error.loc[name, target]:.1f}" for target in mean.columns)
        cells.append([name, *shown, f"{share[name]:.2f}"])
    return markdown(["trained with", *mean.columns, "share"], cells)


# Certificates


@table
def certificates_networks() -> str:
    cells = []
    found = pd.DataFrame(rows("certificates_networks"))
    for (task, method), runs in found.groupby(["task", "method"], sort=False):
        for bound, counted in (("compression", "kept"), ("holdout", "errors"), ("pac_bayes", None)):
            if own := runs[bound].dropna().tolist():
                risks = joined("{:.3f}", (cell["risk"] for cell in own))
                counts = joined("{:.0f}", (cell["numbers"][counted] for cell in own if counted)) or "–"
                errors = joined("{:.3f}", (cell["held_out"]["error"] for cell in own))
                cells.append([f"{task}, {method}", f"`{bound}`", risks, counts, str(own[0]["n"]), errors])
    return markdown(["run", "bound", "certificates", "kept, or errors", "n", "test error"], cells)


@table
def certificates_tight() -> str:
    cells = []
    for name, runs in pd.DataFrame(rows("certificates_tight")).groupby("data", sort=False):
        ways = [(way, key) for way in ("before", "now") for key in ("risk", "test_error")]
        shown = [
            joined("{:.3f}", (own[key] for own in runs[way])) for way, key in [*ways, ("now", "real_valued")]
        ]
        first = runs.iloc[0]
        priors = (f"{prior['risk']:.3f}" for prior in first["localised"].values())
        cells.append([name, str(first["now"]["n"]), *shown, *priors])
    titles = ["data", "N", "before", "test error before", "defaults", "test error", "real-valued"]
    return markdown([*titles, "prior at 0", "localised", "known variance (no certificate)"], cells)


@table
def certificates_checked() -> str:
    columns = {"risk": "certificates", "checked alone": "checked alone", "mean risk": "mean over draws"}
    columns |= {"mean alone": "checked alone, mean", "tighter": "tighter", "error of the half": "error"}
    cells = []
    for labels, own in pd.DataFrame(rows("certificates_checked")).groupby("labels", sort=False):
        forms = ("{:.0%}" if key == "tighter" else "{:.3f}" for key in columns)
        cells.append([labels, *(joined(form, own[key]) for form, key in zip(forms, columns, strict=True))])
    return markdown(["labels", *columns.values()], cells)


@table
def certificates_random_weights() -> str:
    found = [{**r, **r["pac_bayes"], **r["pac_bayes"]["held_out"]} for r in rows("certificates")]
    for row in found:  # `held_out` has an n of its own
        row |= {"n": row["pac_bayes"]["n"], "mark": " (vacuous)" if row["vacuous"] else ""}
    columns = {"run": "{task}, {method}", "certificate": "{risk:.3f}{mark}"}
    columns |= {"error with noise": "{empirical:.3f}", "KL": "{kl:.1f}", "n": "{n}"}
    return listed(found, {**columns, "held-out error (bound)": "{error:.3f} ({bound:.3f})"})


@table
def certificate_frontier() -> str:
    forms = ("{risk:.3f}", "{empirical:.3f}", "{kl:.1f}", "{kl_body:.1f}")
    cells = []
    for cell in rows("certificate_frontier"):
        own = cell.get("pac_bayes", {})
        numbers = [form.format_map(own) if own else "–" for form in forms]
        stem = f"{own['sigma_stem']:.4f}" if own.get("sigma_stem") else "–"
        cells.append([cell["method"], *numbers, stem, f"{100 * cell['val_accuracy']:.1f} %"])
    titles = ["run", "certificate", "error with noise", "KL", "KL of the backbone", "σ of the first layer"]
    return markdown([*titles, "validation accuracy"], cells)


@table
def certificate_coverage() -> str:
    columns = {"kind": "{kind}", "certificate": "{certificate}", "failed": "{failures}", "of": "{trials}"}
    return listed(rows("coverage"), {**columns, "most": "{most}"})


@table
def run_coverage() -> str:
    found = []
    for kind in ("sound", "broken"):
        for scene in rows("run_coverage"):
            for name, way in scene["ways"][kind].items():
                means = {key: way[key] / max(1, way["given"]) for key in ("certificates", "truths")}
                counts = {"printed": a.printed_failures(way), "most": a.most_failures(way)}
                found.append({**way, **means, **counts, "kind": kind, "name": name})
    columns = {"kind": "{kind}", "way": "{name}", "refused": "{refused:.0f}"}
    columns |= {"mean certificate": "{certificates:.3f}", "mean true error": "{truths:.3f}"}
    columns |= {"failed": "{failures:.0f}", "printed": "{printed}", "of": "{trials:.0f}", "most": "{most}"}
    return listed(found, columns)


@table
def near_copies() -> str:
    found = sorted(rows("near_copies"), key=lambda row: row["collection"])
    shown = [{**own, "joined": len(own["joined"])} for own in found]
    columns = {"collection": "{collection}", "examples": "{n}", "groups joined": "{joined}"}
    tables = [listed(shown, {**columns, "seconds": "{seconds}"})]
    for kinds in dict.fromkeys(tuple(own["recall"]) for own in found if "recall" in own):
        measured = [own for own in found if tuple(own.get("recall", ())) == kinds]
        cells = [["copies of each kind", *(str(own["copies"]) for own in measured)]]
        cells += [[kind, *(f"{own['recall'][kind]:.3f}" for own in measured)] for kind in kinds]
        tables.append(markdown(["share found", *(own["collection"] for own in measured)], cells))
    return "\n\n".join(tables)
