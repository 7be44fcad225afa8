"""Linear algebra in one thread, and as before afterwards."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from hesstune.noise import probes
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.em import latent_truth
from hesstune.runtime.device import one_thread, one_thread_each, torch_threads
from hesstune.training.estimates import penalised_head


def threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture
def two():
    with threadpool_limits(2, user_api="blas"):
        assert set(threads()) == {2}
        yield
        assert set(threads()) == {2}


OVERLAP = """
import numpy, scipy.linalg
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from threadpoolctl import threadpool_info
from hesstune.runtime.device import one_thread, one_thread_each

def threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

entered, left = Barrier(2), Barrier(2)

def first():
    with one_thread():
        entered.wait()
    left.wait()

def second():
    with one_thread():
        entered.wait()
        left.wait()

def alone():
    with one_thread(), one_thread():
        held = threads()
    return held, threads()

assert threads() == {2}
with ThreadPoolExecutor(2) as pool:
    for overlapping in [pool.submit(first), pool.submit(second)]:
        overlapping.result()
assert threads() == {2}
with ThreadPoolExecutor(1) as pool:
    assert pool.submit(alone).result() == ({1}, {2})
assert alone() == ({1}, {2})
print("as before")
"""


def test_threads_that_overlap_leave_no_limit_behind():
    """In a process that nobody has limited: one that enters first leaves first."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", OVERLAP], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "as before", done.stderr


def test_it_is_lifted_after_an_error_and_holds_in_workers(two):
    with pytest.raises(ValueError, match="no"), one_thread(), one_thread():
        raise ValueError("no")
    assert set(threads()) == {2}
    with one_thread_each(2) as each:
        assert each(lambda _: set(threads()), [0, 1]) == [{1}, {1}]


def test_torch_threads_are_restored():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with pytest.raises(ValueError, match="no"), torch_threads(before + 1):
        raise ValueError("no")
    with torch_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("fit", ["probe", "em", "penalty", "scikit-learn"])
def test_small_fits_hold_one_thread(two, monkeypatch, fit):
    """numpy's and scipy's threads would wait for each other: thirty times as long on two cores."""
    seen = []

    def watched(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, **named: seen.extend(threads()) or original(*given, **named)
        )

    y = np.arange(60) % 2
    x = (np.eye(2)[y] + 0.3 * np.random.default_rng(0).normal(size=(60, 2))).astype(np.float32)
    if fit == "scikit-learn":
        import sklearn.linear_model

        watched(sklearn.linear_model.LogisticRegression, "fit")
        probes.fit_probe(x, y, k=2)
    else:
        watched(probes, "solve_triangular")
        if fit == "probe":
            probes.SoftProbes(x, 1.0).fit(np.eye(2)[y])
        elif fit == "em":
            latent_truth(x, Observed.of(y, 2), strength=0.1)
        else:
            penalised_head(x, np.eye(2)[y])
    assert set(seen) == {1}
