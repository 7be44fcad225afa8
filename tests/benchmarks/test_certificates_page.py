"""Every certificate of the page follows from its own record: recomputed in 40 digits."""

from functools import cache
from math import comb

import mpmath
import pytest

from records import rows

CELLS = [
    pytest.param(cell[bound], id=f"{cell['task']}, {cell['method']}, seed {cell['seed']}, {bound}")
    for cell in rows("certificates_networks")
    for bound in ("compression", "holdout", "pac_bayes")
    if bound in cell
]


@cache  # seeds that end with as many kept have one certificate
def compression(kept, n, delta, epsilon):
    terms = (mpmath.mpf(comb(m, kept)) * (1 - epsilon) ** (m - n) for m in range(kept, n))
    return mpmath.mpf(delta) / n * mpmath.fsum(terms) / comb(n, kept) - 1


def tail(errors, n, delta, rate):
    terms = (comb(n, j) * rate**j * (1 - rate) ** (n - j) for j in range(errors + 1))
    return mpmath.mpf(delta) - mpmath.fsum(terms)


def binary_kl(q, p):
    return q * mpmath.log(q / p) + (1 - q) * mpmath.log((1 - q) / (1 - p))


@pytest.mark.parametrize("cell", CELLS)
def test_a_certificate_follows_from_its_record(cell):
    with mpmath.workdps(40):
        risk, numbers, n = mpmath.mpf(cell["risk"]), cell["numbers"], cell["n"]
        below = mpmath.mpf("1e-8")
        if cell["bound"] == "holdout":
            errors, delta = int(numbers["errors"]), cell["shares"]["exact_tail"]
            excess = [tail(errors, n, delta, rate) for rate in (risk, risk - below)]
        elif cell["bound"] == "pac_bayes":
            error, delta, family = (
                mpmath.mpf(cell["empirical_bound"]),
                cell["shares"]["pac_bayes"],
                cell["family"],
            )
            assert error > cell["empirical"] > 0
            most = (mpmath.mpf(cell["kl"]) + mpmath.log(2 * mpmath.sqrt(n) * family / mpmath.mpf(delta))) / n
            excess = [binary_kl(error, rate) - most for rate in (risk + mpmath.mpf("1e-12"), risk - below)]
        else:
            kept, delta = int(numbers["kept"]), cell["shares"]["compression"]
            noisy = numbers.get("floor", 0) + numbers.get("gamma", 1) * risk
            rates = (noisy + mpmath.mpf("1e-12"), noisy - below)
            excess = [compression(kept, n, delta, rate) for rate in rates]
        assert excess[0] >= 0 > excess[1]
