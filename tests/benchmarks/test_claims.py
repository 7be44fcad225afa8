"""The numbers that pages and messages quote are those of the records."""

from pathlib import Path

import numpy as np
import pytest

import analysis
from hesstune.curvature.result import CONSTRAINT_EVIDENCE, HELD_OUT_EVIDENCE, STATEMENT, TRAINING_EVIDENCE
from records import result
from records import rows as record_rows

ROOT = Path(__file__).parents[2]


def signed(value):
    return f"{value:+.2f}".replace("-", "−")


def text(page):
    """A page's text on one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def study():
    parts = (None, *analysis.STUDY_PARTS)
    return {
        key: {part: signed(analysis.tau(analysis.study_pairs(key, part))) for part in parts}
        for key in ("measure", "distance")
    }


@pytest.fixture(scope="module")
def gap():
    """The runs of gap.jsonl, their whole networks' test and development tasks, and τ by measure."""
    rows = analysis.gap_rows()
    test, developed = (analysis.gap_tasks(rows, heads=False, development=dev) for dev in (False, True))
    taus = {key: analysis.taus(rows, key, test) for key in analysis.MEASURES}
    return rows, test, developed, taus, {key: signed(np.mean(values)) for key, values in taus.items()}


def test_the_statement_on_training_examples(study):
    measure, distance = study["measure"], study["distance"]
    heads = sorted(
        float(measure[f"{n}_head"].replace("−", "-")) for n in ("programmatic", "injected", "clean")
    )
    for words in (
        f"{len(analysis.study_pairs('measure')):,} runs",
        f"Kendall's τ was {measure[None]}, {measure['programmatic_full']}",
        f"({distance['programmatic_full']} for the distance",
        f"between {signed(heads[0])} and {signed(heads[-1])} for heads alone",
    ):
        assert words in TRAINING_EVIDENCE
    assert TRAINING_EVIDENCE in STATEMENT
    for page in ("docs/explanation/measure.md", "docs/faq.md"):
        for quoted in (measure[None], measure["programmatic_full"], distance["programmatic_full"]):
            assert quoted in text(page)


def test_the_statement_on_held_out_examples(gap):
    rows, tested, developed, taus, mean = gap
    every, default = tested + developed, taus[analysis.DEFAULT]
    networks = sum(row["task"] in every for row in rows)
    share, ratio = analysis.near(rows, analysis.DEFAULT, tested)
    for words in (
        f"Over {networks} whole networks on {len(every)} tasks",
        f"τ {mean[analysis.DEFAULT]} with the gap within a test task",
        f"({mean['distance']} for the distance alone, {mean['paper']} for the maximum over",
        f"a factor 5 of it in {100 * share:.0f} %",
        f"not on the {sum(row['task'].endswith('minilm') for row in rows)} networks on texts",
    ):
        assert words in HELD_OUT_EVIDENCE
    for page in ("docs/explanation/measure.md", "docs/faq.md"):
        assert mean[analysis.DEFAULT] in text(page)
    for words in (
        f"{networks} networks with all layers fine-tuned",
        f"and {len(rows) - networks} heads",
        f"chosen on {len(developed)} development tasks. The {len(tested)} other tasks",
        f"τ {mean[analysis.DEFAULT]} ({signed(min(default))} to {signed(max(default))})",
        f"{100 * share:.0f} % of the runs, with a median ratio of {ratio:.2f}.",
        f"The paper's has τ {mean['paper']}",
        f"difference of losses has τ {mean['difference']}",
    ):
        assert words in text("docs/research/gap.md")


def test_the_statements_on_networks_on_texts(gap):
    rows = gap[0]
    texts = [*analysis.TEXTS_DEVELOPMENT, *analysis.TEXTS_TEST]
    assert f"the {sum(row['task'] in texts for row in rows)} networks on texts" in text(
        "docs/research/gap.md"
    )
    joint, block = (np.array(analysis.taus(rows, key, texts)) for key in ("joint", analysis.DEFAULT))
    assert bool((joint > block).all())  # of all layers moved together, on texts; not over all test tasks
    share = [analysis.near(rows, key, analysis.TEXTS_TEST)[0] for key in ("joint", analysis.DEFAULT)]
    assert share[0] < share[1]
    means = gap[4]
    assert float(means["joint"].replace("−", "-")) < float(means[analysis.DEFAULT].replace("−", "-"))
    assert analysis.near(rows, "joint", gap[1])[0] < analysis.near(rows, analysis.DEFAULT, gap[1])[0]
    found = list(record_rows("gap_forms"))
    ratios = sorted(row["lanczos mean"] / row["gauss_newton mean"] for row in found)
    longer = sorted(row["lanczos to gauss_newton, times as long"] for row in found)
    alike = sorted(row["spearman of layers"] for row in found)
    for words in (
        f"four networks on TREC with {found[0]['n']} training examples",
        f"{ratios[0]:.1f} to {ratios[-1]:.1f} times as large",
        f"ordered alike (Spearman {alike[0]:.2f} to {alike[-1]:.2f})",
        f"took {longer[0]:.0f} to {longer[-1]:.0f} times as long",
    ):
        assert words in text("docs/research/gap.md")
    assert len(found) == 4


def test_the_statement_on_constraints():
    found = analysis.against_plain(analysis.gap_rows(), "robust")
    for words in (
        f"in {found['runs']} settings with every layer trained, robust",
        f"{found[analysis.DEFAULT]:.1f} times smaller (median)",
        f"a gap of {found['gap']:.2f} instead of {found['gap plain']:.2f}",
        f"{-found['accuracy']:.1f} points lower",
    ):
        assert words in CONSTRAINT_EVIDENCE


def test_the_head_of_auto_has_the_best_mean_rank():
    ranks = analysis.mean_ranks(analysis.means(analysis.all_heads()))
    assert len(ranks) == 13
    assert ranks.pop("auto") < min(ranks.values()) - 1


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
    assert min(short) > -0.5
    assert min(fitted) > 3.26
    assert max(gain("short", "art_painting pair:0.4")) < 0
    page, earlier = (
        text("docs/research/field.md"),
        np.mean(gain("short", first=0, last=analysis.FIRST_SEED - 1)),
    )
    for words in (
        f"{np.mean(fitted):.1f} points in the fitted schedule",
        f"{np.mean(stopped):.1f} points more accurate than plain fine-tuning that is stopped",
        f"was {-earlier:.1f} points below plain fine-tuning on seeds 0 to 2",
    ):
        assert words in page


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
    assert f"from {min(ratios):.2f} to {max(ratios):.2f}" in text("docs/research/measure.md")
    assert f"{negative} of {batches}" in text("docs/research/measure.md")


def test_the_numbers_on_noise_and_votes():
    page = text("docs/research/noise.md")
    held = [r for r in record_rows("noise_digits") if r["method"] == "holdout"]
    inside, covered = sum(r["inside"] for r in held), sum(r["covers"] for r in held)
    assert f"{inside} of {len(held)} runs, and so did the true F in {covered}" in page
    scale = result("label_scale")
    long = scale["a_row_a_vote"]
    for found in (scale, long):
        assert (
            f"Labels are {found['accuracy']:.2%} right, majority vote {found['majority_accuracy']:.2%}"
            in page
        )
    assert f"{long['seconds']} s from start to end and at most {long['peak_mib']} MiB" in page
    assert f"{scale['seconds']} s and {scale['peak_mib']} MiB" in page
