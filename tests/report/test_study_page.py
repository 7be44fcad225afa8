"""A comparison's page says what its records say, and only that."""

import json

import numpy as np
import pytest
import scipy.stats
from study_results import study_results
from test_run_page import Page

from hesstune.errors import HesstuneError
from hesstune.report.study_page import concordance, render_study, verdict
from hesstune.report.write import write_study


def test_page_is_one_file_with_names_as_text():
    text = render_study(study_results())
    page = Page(text)
    assert page.open == []
    assert all(link.startswith("#") for link in page.links)
    assert "<b>bold" not in text
    assert "<b>bold</b> has the highest mean test accuracy" in " ".join(page.words)
    assert text.count("<table data-sort>") == 4  # over the tasks, each of two tasks, differences
    assert text.count("<svg") == text.count("<figcaption>") == 2


def test_verdict_names_the_best_method_and_its_interval():
    assert concordance([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert concordance([1, 1], [1, 2]) is None
    assert "does not hold zero" in verdict(study_results())
    assert "one seed gives no interval" in verdict(study_results(tasks=("photo",), seeds=1))
    assert "it is the baseline" in verdict(study_results(baseline="<b>bold</b>"))


def test_means_have_t_intervals_over_seeds_and_one_seed_has_none():
    results = study_results(tasks=("photo",))
    values = [c["metrics"]["test_accuracy"] for c in results["cells"] if c["method"] == "robust"]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
    text = render_study(results)
    assert f'{100 * np.mean(values):.1f} % <span class="ends">[{100 * low:.1f}, {100 * high:.1f}]' in text
    assert 'class="ends"' not in render_study(study_results(tasks=("photo",), seeds=1))


def test_another_baseline_can_be_chosen(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(study_results().to_dict()))
    text = write_study(tmp_path, "robust").read_text()
    assert "Differences from robust" in text
    assert "-10." in text or "-9." in text  # vanilla lies below it
    with pytest.raises(HesstuneError, match="did you mean 'robust'"):
        write_study(tmp_path, "robst")


def test_unfinished_comparisons_say_what_is_missing():
    results = study_results(seeds=1)
    cells = [cell.replaced(status="pending", metrics={}) for cell in results.cells]
    results = results.replaced(cells=cells, means=[], differences=[], ranks=[])
    text = render_study(results)
    assert "6 of 6 runs are missing" in text
    assert "No method has been run on every task yet" in text
