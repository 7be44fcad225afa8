"""The numbers that pages and messages quote are those of the records."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
import memorisation
from analysis import signed
from hesstune.curvature.result import CONSTRAINT_EVIDENCE, HELD_OUT_EVIDENCE, STATEMENT, TRAINING_EVIDENCE
from records import result
from records import rows as record_rows

ROOT = Path(__file__).parents[2]


def text(page):
    """A page's text on one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def quotes(stated, *numbers):
    """Assert that a text has these numbers, with no digit beside them."""
    for number in numbers:
        assert re.search(rf"(?<![\d.]){re.escape(str(number))}(?!\d)", stated), number


@pytest.fixture(scope="module")
def gap():
    """The runs of gap.jsonl, their whole networks' test and development tasks, and τ by measure."""
    rows = analysis.gap_rows()
    test, developed = (analysis.gap_tasks(rows, heads=False, development=dev) for dev in (False, True))
    taus = {key: analysis.taus(rows, key, test) for key in analysis.MEASURES}
    return rows, test, developed, taus, {key: signed(np.mean(values)) for key, values in taus.items()}


def test_training_examples():
    def tau(measure, part=None):
        return signed(analysis.tau(analysis.study_pairs(measure, part)))

    full = [tau(measure, "programmatic_full") for measure in ("measure", "distance")]
    heads = [analysis.tau(analysis.study_pairs("measure", f"{n}_head"))
             for n in ("programmatic", "injected", "clean")]  # fmt: skip
    count = f"{len(analysis.study_pairs('measure')):,}"
    quotes(TRAINING_EVIDENCE, count, tau("measure"), *full, signed(min(heads)), signed(max(heads)))
    assert TRAINING_EVIDENCE in STATEMENT
    for page in ("docs/explanation/measure.md", "docs/faq.md"):
        quotes(text(page), tau("measure"), *full)


def test_held_out_examples(gap):
    rows, tested, developed, taus, mean = gap
    default = taus[analysis.DEFAULT]
    networks = sum(row["task"] in tested + developed for row in rows)
    share, ratio = analysis.near(rows, analysis.DEFAULT, tested)
    texts = sum(row["task"].endswith("minilm") for row in rows)
    stated = [mean[analysis.DEFAULT], mean["paper"], networks, f"{100 * share:.0f}"]
    quotes(HELD_OUT_EVIDENCE, *stated, len(tested + developed), mean["distance"], texts)
    for page in ("docs/explanation/measure.md", "docs/faq.md"):
        assert mean[analysis.DEFAULT] in text(page)
    counts = [len(rows) - networks, len(developed), len(tested)]
    ends = [signed(min(default)), signed(max(default))]
    quotes(text("docs/research/gap.md"), *stated, *counts, *ends, f"{ratio:.2f}", mean["difference"])


def test_networks_on_texts(gap):
    rows, tested, *_, mean = gap
    texts = [*analysis.TEXTS_DEVELOPMENT, *analysis.TEXTS_TEST]
    joint, block = (np.array(analysis.taus(rows, key, texts)) for key in ("joint", analysis.DEFAULT))
    assert bool((joint > block).all())  # of all layers moved together, on texts; not over all test tasks
    for names in (analysis.TEXTS_TEST, tested):
        assert analysis.near(rows, "joint", names)[0] < analysis.near(rows, analysis.DEFAULT, names)[0]
    assert float(mean["joint"].replace("−", "-")) < float(mean[analysis.DEFAULT].replace("−", "-"))
    found = record_rows("gap_forms")
    ratios = [row["lanczos mean"] / row["gauss_newton mean"] for row in found]
    longer = [row["lanczos to gauss_newton, times as long"] for row in found]
    alike = [row["spearman of layers"] for row in found]
    stated = [f"{end(own):{form}}" for own, form in ((ratios, ".1f"), (longer, ".0f"), (alike, ".2f"))
            for end in (min, max)]  # fmt: skip
    quotes(text("docs/research/gap.md"), sum(row["task"] in texts for row in rows), found[0]["n"], *stated)


def test_constraints():
    found = analysis.against_plain(analysis.gap_rows(), "robust")
    gaps = (f"{found[key]:.2f}" for key in ("gap", "gap plain"))
    less, lower = f"{found[analysis.DEFAULT]:.1f}", f"{-found['accuracy']:.1f}"
    quotes(CONSTRAINT_EVIDENCE, found["runs"], less, *gaps, lower)


def test_the_head_of_auto_has_the_best_mean_rank():
    means = analysis.means(analysis.all_heads())
    ranks = analysis.mean_ranks(means)
    quotes(text("docs/howto/choose.md"), len(ranks), len(means))
    assert (means["auto"] < means["vanilla"] - 0.5).sum() == 2  # as this page says
    assert ranks.pop("auto") < min(ranks.values()) - 1


def test_two_encoders_of_texts():
    found = analysis.accuracies(record_rows("heads_encoders"))
    mean = analysis.means(found)
    for encoder in ("minilm", "mpnet"):
        own = mean[[str(task).endswith(encoder) for task in mean.index]]
        for peer in ("sklearn_cv", "cleanlab"):
            gain, low, _ = analysis.interval(analysis.gains(found, peer, list(own.index)))
            assert gain > 0
            assert (low > 0) != ((encoder, peer) == ("mpnet", "cleanlab"))
        assert own["auto"][f"mrpc pair:0.2 {encoder}"] < own["cleanlab"][f"mrpc pair:0.2 {encoder}"] - 1
    assert mean["auto"]["sst2 symmetric:0.4 mpnet"] < mean["cleanlab"]["sst2 symmetric:0.4 mpnet"] - 1


def test_memory_of_the_measure():
    found = record_rows("measure_memory")
    assert len({row["network"] for row in found}) == 6
    over = [row["forecast_mib"] / row["peak_mib"] - 1 for row in found]
    assert min(over) > 0
    quotes(text("docs/measure.md"), f"{100 * min(over):.0f} to {100 * max(over):.0f} %")
    assert all(own["peak_mib"] <= own["budget_mib"] for row in found for own in row["budgets"])


def test_traces_with_many_classes():
    found, page = pd.DataFrame(record_rows("measure_traces")), text("docs/measure.md")
    assert len(found) == 2
    sums, means = 100 * found["error_of_the_sum_of_means"], 100 * found["error_of_a_layers_mean"]
    assert f"was {sums.max():.0f} % off the exact one" in page
    assert f"were {means.min():.0f} to {means.max():.0f} % off, in root mean square" in page
    stated = found["error_to_stated_error_of_a_layers_mean"]
    assert f"errors were up to {stated.max():.1f} times as large" in page


def test_robust_with_its_defaults_is_not_below_plain_fine_tuning():
    found = pd.DataFrame(record_rows("robust_defaults"))
    of = found.pivot_table(index=["task", "schedule"], columns="method", values="accuracy")
    assert (of["robust"] >= of["plain, stopped"]).all()
    assert set(found["schedule"]) == {"short", "longer", "long"}


def test_adapters_of_texts():
    found = analysis.accuracies(record_rows("lora"))
    gain = found["auto"] - found["plain"]
    assert f"more accurate in {(gain > 0).sum()} of the {len(gain)} runs" in text("docs/research/field.md")
    assert gain.mean() > 0
    assert (gain[gain.index.get_level_values("task") == "mrpc symmetric:0.2"] < 0).all()


def test_suspected_errors_of_the_test_tasks():
    found = pd.DataFrame(record_rows("label_errors")).dropna()
    mean, count = found.groupby("task").mean(numeric_only=True), found.groupby("task").size()
    assert set(count) == {5}
    above = {key: mean[f"{key}_clean"] > mean[f"{key}_cleanlab"] for key in ("f1", "ap")}
    page = text("docs/research/noise.md")
    assert f"on {above['f1'].sum()} of {len(mean)} test tasks" in page
    assert f"average precision on {above['ap'].sum()}." in page
    assert list(mean.index[~above["f1"]]) == ["cifar10n worse 2000"]
    assert list(mean.index[~above["ap"]]) == ["amazon_isbook votes"]
    assert found["ap_clean"][found["task"] == "digits pair:0.4"].min() > 0.99


def test_deeper_layers_gain_what_the_pages_say():
    def gain(schedule, *tasks, over="plain", first=analysis.FIRST_SEED, last=99):
        """Mean of `auto` minus another, by seed."""
        found = {}
        for row in record_rows("deeper"):
            sign = {"auto": 100, over: -100}.get(row["method"])
            chosen = row["schedule"] == schedule and (not tasks or row["task"] in tasks)
            if sign and chosen and first <= row["seed"] <= last:
                found.setdefault(row["seed"], []).append(sign * row["accuracy"])
        return [2 * float(np.mean(own)) for own in found.values()]

    short, fitted, stopped = gain("short"), gain("fitted"), gain("fitted", over="plain, stopped")
    _, low, high = analysis.interval(short)
    assert 0 < low < high < 2
    assert len(short) == 5
    assert min(fitted) > 3.26
    assert analysis.interval(stopped)[1] < 0  # "do not separate from chance"
    for task in ("art_painting pair:0.4", "art_painting symmetric:0.2", "cifar10n worse"):
        assert np.mean(gain("short", task)) < 0
    quotes(text("docs/research/field.md"), f"{np.mean(fitted):.1f}", f"{np.mean(stopped):.1f}")
    earlier = np.mean(gain("short", first=0, last=analysis.FIRST_SEED - 1))
    quotes(text("docs/research/field.md"), f"{-earlier:.1f}")


def test_default_radii_on_development_tasks():
    def mean(rule, epochs, sentences=False):
        found = [r for r in record_rows("radii") if r["method"] == rule and f", {epochs} epochs" in r["task"]]
        found = [r for r in found if r["task"].startswith("sst2") == sentences]
        return 100 * float(np.mean([r["accuracy"] for r in found]))

    assert mean("share 0.003", "12", sentences=True) > mean("constants", "12", sentences=True) + 2
    for epochs in ("12", "40"):
        assert abs(mean("share 0.003", epochs) - mean("constants", epochs)) < 1
    for rule in ("share 0.05, head 8", "stopped distances"):
        assert abs(mean(rule, "12") - mean("constants", "12")) < 1
        assert mean(rule, "40") < mean("share 0.003", "40") - 5


def test_the_quantity_of_the_papers_code():
    rows = record_rows("paper_code")
    ratios = [r["paper_maximum"] / r["positive_maximum"] for r in rows]
    negative, batches = (sum(r[key] for r in rows) for key in ("paper_negative_batches", "batches"))
    quotes(text("docs/research/measure.md"), f"{min(ratios):.2f}", f"{max(ratios):.2f}", negative, batches)


def test_noise_and_votes():
    held = [r for r in record_rows("noise_digits") if r["method"] == "holdout"]
    inside, covered = sum(r["inside"] for r in held), sum(r["covers"] for r in held)
    quotes(text("docs/research/noise.md"), inside, len(held), covered)
    scale = result("label_scale")
    for found in (scale, scale["a_row_a_vote"]):
        shares = (f"{found[key]:.2%}" for key in ("accuracy", "majority_accuracy"))
        quotes(text("docs/research/noise.md"), *shares, found["seconds"], found["peak_mib"])


def test_the_curve_of_the_measure_does_not_warn_first():
    found = record_rows("memorisation")
    measure, loss, patience, gap = memorisation.RULES.values()
    noisy, clean = ([row for row in found if ("agreement" in row) == kind] for kind in (True, False))
    for row in noisy:
        assert memorisation.onset(row) < measure(row) < loss(row), row["task"]
        assert patience(row) <= measure(row) + 2, row["task"]
    assert sum(gap(row) >= measure(row) for row in noisy) == 1
    for row in found:
        epochs = [at + 1 for at, value in enumerate(row["measure"]) if value is not None]
        assert epochs == list(range(3, len(row["measure"]) + 1, 3))
    for row in clean:
        values = [value for value in row["measure"] if value is not None]
        assert max(values) / min(values) > 1.8, row["task"]
        assert patience(row) is not None, row["task"]
        if row["seed"] >= memorisation.DEVELOPMENT:
            assert [rule(row) for rule in (measure, loss, gap)] == [None] * 3


def test_the_means_of_smooth_layers_take_less_than_a_twentieth():
    found = result("measure_text")
    stated = text("docs/research/benchmarks.md")
    assert "less than 1/20 of the time of the baseline on padded sentences" in stated
    assert found["ratio_mean"] > 20
    assert max(found["sampling_errors"]) <= 0.05
