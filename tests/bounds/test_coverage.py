"""A short run of the coverage benchmark: sound certificates hold, broken ones fail too often."""

import pytest

from certificate_coverage import SIMULATIONS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, found in SIMULATIONS.items() for name in found]
)
def test_sound_certificates_hold_and_broken_ones_fail_more_often_than_delta_allows(kind, name):
    assert SIMULATIONS[kind][name](60)["holds"] == (kind == "sound")
