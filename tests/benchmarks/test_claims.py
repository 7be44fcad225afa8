"""What is said of the measure is what the study's records say."""

from pathlib import Path

import numpy as np
import pytest

import write_gap
import write_study_gap
import write_study_heads
from hesstune.curvature.result import CONSTRAINT_EVIDENCE, HELD_OUT_EVIDENCE, STATEMENT, TRAINING_EVIDENCE
from records import RESULTS, read_rows
from write_field import FIRST
from write_study import records

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    return write_study_gap.summary(records())


def signed(value):
    return f"{value:+.2f}".replace("-", "−")


def test_the_sentence_quotes_the_records(found):
    measure, distance = found["measure"], found["distance"]
    assert f"{measure['runs']:,} runs" in TRAINING_EVIDENCE
    tau, weak = signed(measure["tau"]), signed(measure["parts"]["programmatic_full"])
    assert f"Kendall's τ was {tau}, {weak}" in TRAINING_EVIDENCE
    assert f"({signed(distance['parts']['programmatic_full'])} for the distance" in TRAINING_EVIDENCE
    heads = [measure["parts"][name] for name in ("programmatic_head", "injected_head", "clean_head")]
    assert f"between {signed(min(heads))} and {signed(max(heads))} for heads alone" in TRAINING_EVIDENCE
    assert TRAINING_EVIDENCE in STATEMENT


def test_what_is_said_of_held_out_examples_is_what_the_runs_show():
    rows = write_gap.read()
    tested = write_gap.tasks(rows, heads=False, development=False)
    every = tested + write_gap.tasks(rows, heads=False, development=True)
    networks = sum(task in every for task, _, _ in rows)
    assert f"Over {networks} whole networks on {len(every)} tasks" in HELD_OUT_EVIDENCE
    means = {key: signed(np.mean(write_gap.taus(rows, key, tested))) for key in write_gap.MEASURES}
    assert f"τ {means[write_gap.DEFAULT]} with the gap within a test task" in HELD_OUT_EVIDENCE
    assert (
        f"({means['distance']} for the distance alone, {means['paper']} for the maximum over"
        in HELD_OUT_EVIDENCE
    )
    near = f"{100 * write_gap.near(rows, write_gap.DEFAULT, tested)[0]:.0f} %"
    assert f"a factor 5 of it in {near}" in HELD_OUT_EVIDENCE
    for page in ("README.md", "docs/concepts/measure.md", "docs/faq.md"):
        assert means[write_gap.DEFAULT] in (ROOT / page).read_text(encoding="utf-8")


def test_what_is_said_of_balls_is_what_the_runs_show():
    found = write_gap.against_plain(write_gap.read(), "robust")
    assert f"in {found['runs']} settings with every layer trained, robust" in CONSTRAINT_EVIDENCE
    assert f"{found[write_gap.DEFAULT]:.1f} times smaller (median)" in CONSTRAINT_EVIDENCE
    assert f"a gap of {found['gap']:.2f} instead of {found['gap plain']:.2f}" in CONSTRAINT_EVIDENCE
    assert f"{-found['accuracy']:.1f} points lower" in CONSTRAINT_EVIDENCE
    assert found["accuracy"] < 0
    assert "single layers was not measured" in CONSTRAINT_EVIDENCE


PAGES = ["README.md", "docs/concepts/measure.md", "docs/faq.md", "docs/measure.md"]


@pytest.mark.parametrize("page", PAGES)
def test_pages_quote_them_too(found, page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    measure, distance = found["measure"], found["distance"]
    assert signed(measure["tau"]) in text
    assert signed(measure["parts"]["programmatic_full"]) in text
    assert signed(distance["parts"]["programmatic_full"]) in text
    if "1,262" in text:
        assert measure["runs"] == 1262


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
    found = write_study_heads.accuracies()
    ranks = write_study_heads.mean_ranks(write_study_heads.task_means(found))
    assert len(ranks) == 13
    assert ranks.pop("auto") < min(ranks.values()) - 1
    told = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "of whose heads `auto`'s have the best mean rank" in told


def test_the_readme_says_of_deeper_layers_what_the_record_shows():
    rows = [r for r in read_rows(RESULTS / "field_deeper.csv") if int(r["seed"]) >= FIRST]

    def gain(schedule, *tasks, over="plain"):
        """Mean of `auto` minus another, by seed."""
        found = {}
        for row in rows:
            sign = {"auto": 100, over: -100}.get(row["method"])
            if sign and row["schedule"] == schedule and (not tasks or row["task"] in tasks):
                found.setdefault(int(row["seed"]), []).append(sign * float(row["accuracy"]))
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
    rows = read_rows(RESULTS / "field_radii_development.csv")

    def mean(rule, epochs, sentences=False):
        found = [r for r in rows if (r["rule"], r["epochs"]) == (rule, epochs)]
        found = [r for r in found if (r["source"] == "sst2") == sentences]
        return 100 * float(np.mean([float(r["accuracy"]) for r in found]))

    assert mean("share 0.003", "12", sentences=True) > mean("constants", "12", sentences=True) + 2
    for epochs in ("12", "40"):
        assert abs(mean("share 0.003", epochs) - mean("constants", epochs)) < 1
    for rule in ("share 0.05, head 8", "stopped distances"):
        assert abs(mean(rule, "12") - mean("constants", "12")) < 1
        assert mean(rule, "40") < mean("share 0.003", "40") - 5
