"""What is said of the measure is what the study's records say."""

from pathlib import Path

import numpy as np
import pytest

import analysis
from hesstune.curvature.result import CONSTRAINT_EVIDENCE, HELD_OUT_EVIDENCE, STATEMENT, TRAINING_EVIDENCE
from records import result
from records import rows as record_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    parts = (None, *analysis.STUDY_PARTS)
    return {
        key: {part: analysis.tau(analysis.study_pairs(key, part)) for part in parts}
        for key in ("measure", "distance")
    }


def signed(value):
    return f"{value:+.2f}".replace("-", "−")


def test_the_sentence_quotes_the_records(found):
    measure, distance = found["measure"], found["distance"]
    assert f"{len(analysis.study_pairs('measure')):,} runs" in TRAINING_EVIDENCE
    assert (
        f"Kendall's τ was {signed(measure[None])}, {signed(measure['programmatic_full'])}"
        in TRAINING_EVIDENCE
    )
    assert f"({signed(distance['programmatic_full'])} for the distance" in TRAINING_EVIDENCE
    heads = [measure[name] for name in ("programmatic_head", "injected_head", "clean_head")]
    assert f"between {signed(min(heads))} and {signed(max(heads))} for heads alone" in TRAINING_EVIDENCE
    assert TRAINING_EVIDENCE in STATEMENT


def test_what_is_said_of_held_out_examples_is_what_the_runs_show():
    rows = analysis.gap_rows()
    tested = analysis.gap_tasks(rows, heads=False, development=False)
    every = tested + analysis.gap_tasks(rows, heads=False, development=True)
    networks = sum(row["task"] in every for row in rows)
    assert f"Over {networks} whole networks on {len(every)} tasks" in HELD_OUT_EVIDENCE
    means = {key: signed(np.mean(analysis.taus(rows, key, tested))) for key in analysis.MEASURES}
    assert f"τ {means[analysis.DEFAULT]} with the gap within a test task" in HELD_OUT_EVIDENCE
    assert (
        f"({means['distance']} for the distance alone, {means['paper']} for the maximum over"
        in HELD_OUT_EVIDENCE
    )
    near = f"{100 * analysis.near(rows, analysis.DEFAULT, tested)[0]:.0f} %"
    assert f"a factor 5 of it in {near}" in HELD_OUT_EVIDENCE
    for page in ("README.md", "docs/concepts/measure.md", "docs/faq.md"):
        assert means[analysis.DEFAULT] in (ROOT / page).read_text(encoding="utf-8")


def test_what_is_said_of_balls_is_what_the_runs_show():
    found = analysis.against_plain(analysis.gap_rows(), "robust")
    assert f"in {found['runs']} settings with every layer trained, robust" in CONSTRAINT_EVIDENCE
    assert f"{found[analysis.DEFAULT]:.1f} times smaller (median)" in CONSTRAINT_EVIDENCE
    assert f"a gap of {found['gap']:.2f} instead of {found['gap plain']:.2f}" in CONSTRAINT_EVIDENCE
    assert f"{-found['accuracy']:.1f} points lower" in CONSTRAINT_EVIDENCE
    assert found["accuracy"] < 0
    assert "single layers was not measured" in CONSTRAINT_EVIDENCE


PAGES = ["README.md", "docs/concepts/measure.md", "docs/faq.md", "docs/measure.md"]


@pytest.mark.parametrize("page", PAGES)
def test_pages_quote_them_too(found, page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    measure, distance = found["measure"], found["distance"]
    assert signed(measure[None]) in text
    assert signed(measure["programmatic_full"]) in text
    assert signed(distance["programmatic_full"]) in text
    if "1,262" in text:
        assert len(analysis.study_pairs("measure")) == 1262


def test_nothing_says_that_the_measure_follows_the_gap():
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]
    files += [
        *(ROOT / "src").rglob("*.j2"),
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "examples").rglob("*.py"),
    ]
    for path in files:
        text = " ".join(path.read_text(encoding="utf-8").split())
        for wrong in ("follows the gap", "follows the generalization gap", "carry the generalization gap"):
            assert wrong not in text, (path, wrong)


def test_of_heads_auto_has_the_best_mean_rank_as_the_readme_says():
    ranks = analysis.mean_ranks(analysis.means(analysis.all_heads()))
    assert len(ranks) == 13
    assert ranks.pop("auto") < min(ranks.values()) - 1
    told = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "of whose heads `auto`'s have the best mean rank" in told


def test_the_readme_says_of_deeper_layers_what_the_record_shows():
    rows = [r for r in record_rows("deeper") if r["seed"] >= analysis.FIRST_SEED]

    def gain(schedule, *tasks, over="plain"):
        """Mean of `auto` minus another, by seed."""
        found = {}
        for row in rows:
            sign = {"auto": 100, over: -100}.get(row["method"])
            if sign and row["schedule"] == schedule and (not tasks or row["task"] in tasks):
                found.setdefault(row["seed"], []).append(sign * row["accuracy"])
        assert len({len(own) for own in found.values()}) == 1
        return [2 * float(np.mean(own)) for _, own in sorted(found.items())]

    short, fitted = gain("short"), gain("fitted")
    assert len(short) == len(fitted) == 3
    assert min(short) > -0.5
    assert np.mean(short) > 0.5
    assert min(fitted) > 3.26
    assert max(gain("short", "art_painting pair:0.4")) < 0
    told = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    stopped = np.mean(gain("fitted", over="plain, stopped"))
    assert "or a little ahead in a short schedule" in told
    assert f"{np.mean(fitted):.1f} points ahead of it, and {stopped:.1f} ahead of one that is stopped" in told
    assert "Strong pair noise, which it does not find there, is where it is behind" in told


def test_default_radii_did_on_development_tasks_what_the_page_of_distances_says():
    rows = record_rows("radii")

    def mean(rule, epochs, sentences=False):
        found = [r for r in rows if r["method"] == rule and r["task"].endswith(f", {epochs} epochs")]
        found = [r for r in found if r["task"].startswith("sst2") == sentences]
        return 100 * float(np.mean([r["accuracy"] for r in found]))

    assert mean("share 0.003", "12", sentences=True) > mean("constants", "12", sentences=True) + 2
    for epochs in ("12", "40"):
        assert abs(mean("share 0.003", epochs) - mean("constants", epochs)) < 1
    for rule in ("share 0.05, head 8", "stopped distances"):
        assert abs(mean(rule, "12") - mean("constants", "12")) < 1
        assert mean(rule, "40") < mean("share 0.003", "40") - 5


def told(page):
    """A page's text on one line."""
    return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())


def test_the_page_on_the_gap_says_what_its_runs_show():
    runs = analysis.gap_rows()
    tested = analysis.gap_tasks(runs, heads=False, development=False)
    developed = analysis.gap_tasks(runs, heads=False, development=True)
    whole = sum(row["task"] in tested + developed for row in runs)
    taus = {key: analysis.taus(runs, key, tested) for key in (analysis.DEFAULT, "paper", "difference")}
    default = taus[analysis.DEFAULT]
    share, ratio = analysis.near(runs, analysis.DEFAULT, tested)
    mean = {key: signed(np.mean(values)) for key, values in taus.items()}
    for words in (
        f"{whole} networks with all layers fine-tuned",
        f"and {len(runs) - whole} heads",
        f"chosen on {len(developed)} development tasks. The {len(tested)} other tasks",
        f"τ {mean[analysis.DEFAULT]} ({signed(min(default))} to {signed(max(default))})",
        f"{100 * share:.0f} % of the runs, with a median ratio of {ratio:.2f}.",
        f"The paper's has τ {mean['paper']}",
        f"difference of losses has τ {mean['difference']}",
    ):
        assert words in told("gap.md")


def test_the_field_page_says_what_the_earlier_version_of_auto_lost():
    rows = [r for r in record_rows("deeper") if r["schedule"] == "short" and r["seed"] < analysis.FIRST_SEED]
    plain, auto = (np.mean([r["accuracy"] for r in rows if r["method"] == m]) for m in ("plain", "auto"))
    assert f"was {100 * (plain - auto):.1f} points below plain fine-tuning on seeds 0 to 2" in told(
        "field.md"
    )


def test_the_page_on_the_measure_says_what_the_papers_code_computes():
    rows = record_rows("paper_code")
    ratios = [r["paper_maximum"] / r["positive_maximum"] for r in rows]
    negative, batches = (sum(r[key] for r in rows) for key in ("paper_negative_batches", "batches"))
    assert f"from {min(ratios):.2f} to {max(ratios):.2f}" in told("measure.md")
    assert f"{negative} of {batches}" in told("measure.md")


def test_the_page_on_noise_says_what_its_records_show():
    held = [r for r in record_rows("noise_digits") if r["method"] == "holdout"]
    inside, covered = sum(r["inside"] for r in held), sum(r["covers"] for r in held)
    assert f"{inside} of {len(held)} runs, and so did the true F in {covered}" in told("noise.md")
    scale = result("label_scale")
    long = scale["a_row_a_vote"]
    for found in (scale, long):
        accuracies = f"{found['accuracy']:.2%} right, majority vote {found['majority_accuracy']:.2%}"
        assert f"Labels are {accuracies}" in told("noise.md")
    assert f"{long['seconds']} s from start to end and at most {long['peak_mib']} MiB" in told("noise.md")
    assert f"{scale['seconds']} s and {scale['peak_mib']} MiB" in told("noise.md")
