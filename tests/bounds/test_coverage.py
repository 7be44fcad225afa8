"""How often sound and broken certificates fail, counted for known true errors.

Sound certificates must fail in at most a share δ of training sets, up to a binomial 99 % margin. Each
broken one must fail more often on the worst case that shows it: on ordinary data the bound is too loose.
"""

from functools import partial

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.special import rel_entr

from hesstune.bounds.kl import complexity, kl_inverse
from hesstune.bounds.noisy import clean_losses
from hesstune.noise.confidence import NoiseConfidenceSet

DELTA = 0.05
FLIP = 0.1  # the true rule's own error, so that no certificate can be trivially right
NOISE = np.array([[0.85, 0.15], [0.3, 0.7]])


def outcome(failures, delta):
    """Count failures, and the most that δ allows with 99 % probability."""
    trials = len(failures)
    most = int(stats.binom.ppf(0.99, trials, delta))
    failed = int(failures.sum())
    return {"trials": trials, "failures": failed, "most": most, "holds": failed <= most}


class Linear:
    """Linear rules on Gaussian inputs; their randomised error has a closed form.

    y = sign(u·x) with its sign flipped at rate FLIP. For weights N(w, σ²I), P(sign ≠ y | x) is
    Φ(−y w·x/(σ‖x‖)), so neither the truth nor the empirical term needs draws.
    """

    def __init__(self, trials, n, d, seed, strength=40.0):
        self.rng = np.random.default_rng(seed)
        self.n, self.d, self.trials = n, d, trials
        self.u = np.zeros(d)
        self.u[0] = 1.0
        self.x, self.y = self.sample(trials, n)
        self.test_x, self.test_y = self.sample(1, 20000)
        self.strength = strength

    def sample(self, trials, n):
        """Draw inputs (T, N, d) and labels of ±1 (T, N)."""
        x = self.rng.standard_normal((trials, n, self.d)) / np.sqrt(self.d)
        y = np.where(x @ self.u > 0, 1.0, -1.0) * np.where(self.rng.random((trials, n)) < FLIP, -1.0, 1.0)
        return x, y

    def fit(self, x, y):
        """Return the weights w = strength · mean(y x) of every training set, (T, d)."""
        return self.strength * np.einsum("tn,tnd->td", y, x) / x.shape[1]

    def positive(self, w, sigma, x):
        """P(prediction = +1 | x), (T, N)."""
        return stats.norm.cdf((x @ w[:, :, None])[..., 0] / (sigma * np.linalg.norm(x, axis=-1)))

    def error(self, w, sigma, x, y):
        """Return the randomised error on given examples, (T,)."""
        p = self.positive(w, sigma, x)
        return np.where(y > 0, 1 - p, p).mean(axis=1)

    def truth(self, w, sigma):
        """Return the true randomised error, from many test examples, (T,)."""
        return np.concatenate([self.error(row[None], sigma, self.test_x, self.test_y) for row in w])


GRID = 2.0 ** np.arange(-2, 4, 0.5)


def best_of_grid(world, w, centre, x, y):
    """Certify with the scale that gives the smallest bound, the grid's union paid; return failures."""
    bounds, truths = [], []
    for sigma in GRID:
        q = world.error(w, sigma, x, y)
        kl = ((w - centre) ** 2).sum(axis=1) / (2 * sigma**2)
        c = [complexity(float(k), x.shape[1], DELTA, len(GRID)) for k in kl]
        bounds.append(kl_inverse(q, c))
        truths.append(world.truth(w, sigma))
    chosen = np.argmin(bounds, axis=0)[None]
    of_truths, of_bounds = (np.take_along_axis(np.array(v), chosen, 0)[0] for v in (truths, bounds))
    return of_truths > of_bounds


def clean(trials, seed=0):
    """Clean labels, data-free prior, scale chosen on the data."""
    world = Linear(trials, n=100, d=10, seed=seed)
    w = world.fit(world.x, world.y)
    return outcome(best_of_grid(world, w, np.zeros_like(w), world.x, world.y), DELTA)


def data_dependent_prior(trials, seed=1):
    """The prior's centre from one half, the posterior from all, the bound on the other half."""
    world = Linear(trials, n=200, d=10, seed=seed)
    centre = world.fit(world.x[:, :100], world.y[:, :100])
    w = world.fit(world.x, world.y)
    return outcome(best_of_grid(world, w, centre, world.x[:, 100:], world.y[:, 100:]), DELTA)


def noisy(trials, seed=2, clean_sample=0):
    """Clean risk from noisy labels: loss and scale chosen on the data; F known or in a confidence set."""
    world = Linear(trials, n=300, d=10, seed=seed)
    true = (world.y > 0).astype(int)
    flip = world.rng.random(true.shape) < np.where(true == 1, NOISE[1, 0], NOISE[0, 1])
    labels = np.where(flip, 1 - true, true)
    w = world.fit(world.x, 2.0 * labels - 1)
    share = DELTA / 2 if clean_sample else 0.0
    bounds = np.full(trials, np.inf)
    truths = np.zeros(trials)
    known = clean_losses(NOISE)
    families = [known] * trials
    if clean_sample:
        tables = [[world.rng.multinomial(clean_sample // 2, row) for row in NOISE] for _ in range(trials)]
        families = [clean_losses(NoiseConfidenceSet(table, share)) for table in tables]
    for sigma in GRID:
        p, truth = world.positive(w, sigma, world.x), world.truth(w, sigma)
        for t in range(trials):
            up = labels[t] == 1
            confusion = np.array(
                [[(1 - p[t])[~up].sum(), p[t][~up].sum()], [(1 - p[t])[up].sum(), p[t][up].sum()]]
            )
            kl = (w[t] ** 2).sum() / (2 * sigma**2)
            c = complexity(kl, world.n, DELTA - share, len(GRID) * len(families[t]))
            risks = [loss.risk(float(kl_inverse(loss.unit(confusion / world.n), c))) for loss in families[t]]
            if min(risks) < bounds[t]:
                bounds[t], truths[t] = min(risks), truth[t]
    return outcome(truths > bounds, DELTA) | {"mean bound": float(bounds.mean())}


def draws(trials, m, seed=3, own_block=False, count=None):
    """The Monte-Carlo step alone: draws in two dimensions with widely different errors."""
    n = 100
    world = Linear(trials, n=n, d=2, seed=seed, strength=1.0)
    failures = np.zeros(trials, bool)
    for t in range(trials):
        w = world.fit(world.x[t : t + 1], world.y[t : t + 1])
        expected = world.error(w, 0.5, world.x[t : t + 1], world.y[t : t + 1])[0]
        weights = w + 0.5 * world.rng.standard_normal((m, 2))
        wrong = (world.x[t] @ weights.T > 0) != (world.y[t] > 0)[:, None]
        if own_block:
            blocks = np.split(world.rng.permutation(n), min(m, 10))
            wrong = np.stack([wrong[blocks[j % len(blocks)], j] for j in range(m)], axis=1)
        failures[t] = expected > kl_inverse(wrong.mean(), np.log(1 / DELTA) / (count or m))
    return outcome(failures, DELTA)


def shared_subset(trials, seed=4, m=1000, size=20):
    """Broken: every draw is counted on the same random subset of the examples."""
    world = Linear(trials, n=200, d=2, seed=seed, strength=20.0)
    failures = np.zeros(trials, bool)
    for t in range(trials):
        w = world.fit(world.x[t : t + 1], world.y[t : t + 1])
        expected = world.error(w, 1.0, world.x[t : t + 1], world.y[t : t + 1])[0]
        subset = world.rng.choice(world.n, size, replace=False)
        weights = w + world.rng.standard_normal((m, 2))
        wrong = (world.x[t, subset] @ weights.T > 0) != (world.y[t, subset] > 0)[:, None]
        failures[t] = expected > kl_inverse(wrong.mean(), np.log(1 / DELTA) / m)
    return outcome(failures, DELTA)


def worst_case(trials, share, seed=5, n=1500, d=9000):
    """Random labels, w = Σ y x in many dimensions: the PAC-Bayes bound is nearly attained (truth 1/2).

    The certificate counts `share` of the KL; 1 is right.
    """
    rng = np.random.default_rng(seed)
    failures = np.zeros(trials, bool)
    for t in range(trials):
        x = rng.standard_normal((n, d), dtype=np.float32) / np.float32(np.sqrt(d))
        y = np.where(rng.random(n) < 0.5, 1.0, -1.0).astype(np.float32)
        w = y @ x
        sigma = 2.0
        q = stats.norm.cdf(-y * (x @ w) / (sigma * np.linalg.norm(x, axis=1))).mean()
        c = complexity(share * float(w @ w) / (2 * sigma**2), n, DELTA)
        failures[t] = kl_inverse(q, c) < 0.5
    return outcome(failures, DELTA)


def point_masses(trials, paid, seed=6, n=50, rules=5000):
    """Thousands of point-mass priors on random rules (truth 1/2); the posterior is the luckiest of them."""
    rng = np.random.default_rng(seed)
    q = rng.binomial(n, 0.5, size=(trials, rules)).min(axis=1) / n
    return outcome(kl_inverse(q, complexity(0.0, n, DELTA, rules if paid else 1)) < 0.5, DELTA)


def inversion_end(pairs, upper, seed=7):
    """Which end the bisection returns, judged in exact arithmetic: kl(q‖p) must not fall short of c."""
    rng = np.random.default_rng(seed)
    q = rng.random(pairs) ** 3
    c = 10.0 ** rng.uniform(-6, 0.5, pairs)
    p = kl_inverse(q, c)
    if not upper:
        low, high = q.copy(), np.ones(pairs)
        for _ in range(60):
            middle = (low + high) / 2
            above = rel_entr(q, middle) + rel_entr(1 - q, 1 - middle) > c
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        p = low
    with mpmath.workdps(50):
        short = [
            bool(v < 1 and mpmath_kl(mpmath.mpf(float(a)), mpmath.mpf(float(v))) < mpmath.mpf(float(b)))
            for a, v, b in zip(q, p, c, strict=True)
        ]
    return outcome(np.array(short), 0.0)


def mpmath_kl(q, p):
    """kl(q‖p) in mpmath's current precision, for 0 < q < 1."""
    return q * mpmath.log(q / p) + (1 - q) * mpmath.log((1 - q) / (1 - p))


SIMULATIONS = {
    "sound": {
        "clean labels": clean,
        "data-dependent prior": data_dependent_prior,
        "noisy labels, known F": noisy,
        "noisy labels, F in a confidence set": lambda trials: noisy(trials // 4, clean_sample=2000),
        **{f"Monte-Carlo step, m = {m}": partial(draws, m=m) for m in (1, 10, 1000)},
        "Monte-Carlo step, m = 1000, own blocks": partial(draws, m=1000, own_block=True),
        "worst case, whole KL": lambda trials: worst_case(max(2, trials // 40), 1.0),
        "thousands of point masses, union paid": partial(point_masses, paid=True),
        "inversion, upper end": lambda trials: inversion_end(5 * trials // 2, True),
    },
    "broken": {
        "worst case, half the KL": lambda trials: worst_case(max(2, trials // 40), 0.5),
        "thousands of point masses, union forgotten": partial(point_masses, paid=False),
        "inversion, lower end": lambda trials: inversion_end(5 * trials // 2, False),
        "m counted in examples": partial(draws, m=10, count=10 * 100),
        "one subset shared by the draws": shared_subset,
    },
}


CASES = [(kind, name) for kind, found in SIMULATIONS.items() for name in found]


def cases(settings):
    """The certificates, for the record `coverage`."""
    yield from ({"kind": kind, "certificate": name} for kind, name in CASES)


def measure(case, run):
    return {"delta": DELTA, **SIMULATIONS[case["kind"]][case["certificate"]](run.settings["trials"])}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_sound_certificates_hold_and_broken_ones_fail_more_often_than_delta_allows(kind, name):
    assert SIMULATIONS[kind][name](60)["holds"] == (kind == "sound")
