"""A short run of the coverage benchmark: sound certificates hold, broken ones are found out."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "certificate_coverage.py"
spec = importlib.util.spec_from_file_location("coverage_benchmark", PATH)
coverage = importlib.util.module_from_spec(spec)
spec.loader.exec_module(coverage)

SOUND = {
    "clean": lambda: coverage.clean(60),
    "data-dependent prior": lambda: coverage.data_dependent_prior(60),
    "noisy, known F": lambda: coverage.noisy(30),
    "noisy, F in a confidence set": lambda: coverage.noisy(8, clean_sample=2000),
    "one draw": lambda: coverage.draws(200, 1),
    "ten draws": lambda: coverage.draws(200, 10),
    "a thousand draws": lambda: coverage.draws(100, 1000),
    "own blocks": lambda: coverage.draws(100, 1000, own_block=True),
    "worst case": lambda: coverage.worst_case(2, 1.0),
    "point masses": lambda: coverage.point_masses(50, True),
    "upper end": lambda: coverage.inversion_end(100, True),
}
BROKEN = {
    "half the KL": lambda: coverage.worst_case(2, 0.5),
    "union forgotten": lambda: coverage.point_masses(50, False),
    "lower end": lambda: coverage.inversion_end(100, False),
    "m counted in examples": lambda: coverage.draws(100, 10, count=1000),
    "one subset for all draws": lambda: coverage.shared_subset(100),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_certificates_fail_at_most_as_often_as_delta_allows(name):
    result = SOUND[name]()
    assert result["failures"] <= result["most"]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_certificates_are_found_out(name):
    result = BROKEN[name]()
    # Two worst cases in a row have probability δ² = 0.0025 under a sound certificate.
    assert result["failures"] > (1 if name == "half the KL" else result["most"])
