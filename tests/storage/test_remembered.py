"""Results that are computed once: by their numbers, in memory, in threads, and in a folder."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import hesstune.noise.latent.head as choosing
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.head import robust_head
from hesstune.storage.remembered import remembered, remembering


@pytest.fixture
def counted():
    calls = []

    def mean(x, what="mean"):
        def make():
            calls.append(what)
            return {"mean": torch.tensor(x.mean()), "n": len(x)}

        return float(remembered(what, {"x": x, "w": None}, make)["mean"])

    mean.calls = calls
    return mean


def test_the_same_numbers_are_not_computed_twice(counted):
    x = np.arange(5.0)
    with remembering():
        assert counted(x) == counted(x.copy()) == 2.0
        assert len(counted.calls) == 1
        x[0] = 5.0  # in place: other numbers
        assert counted(x) == 3.0
        assert counted(x, "another") == 3.0
        counted(x.astype(np.float32))
        counted(x[None])
    counted(x)
    counted(x)
    assert len(counted.calls) == 5 + 2  # nothing is kept outside


def test_another_process_reads_the_folder_and_a_damaged_file_is_made_again(counted, tmp_path):
    x = np.arange(4.0)
    for _ in range(2):
        with remembering(tmp_path):
            assert counted(x) == 1.5
    assert len(counted.calls) == 1
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with remembering(tmp_path):
        assert counted(x) == 1.5
    assert len(counted.calls) == 2


def test_a_folder_that_cannot_be_written_to_loses_nothing(counted, tmp_path):
    (tmp_path / "file").write_text("")
    with remembering(tmp_path / "file" / "below"):
        assert counted(np.arange(3.0)) == 1.0


def test_who_comes_second_waits_for_the_first(tmp_path):
    """As processes that share a folder do: each has its own block."""
    calls, x = [], np.arange(3.0)

    def make():
        calls.append(None)
        time.sleep(0.2)
        return {"mean": 1.0}

    def process(_):
        with remembering(tmp_path):
            return remembered("slow", {"x": x}, make)["mean"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(process, range(4))) == [1.0] * 4
    assert len(calls) == 1


def test_an_estimate_after_a_head_scores_no_candidate_anew(monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = np.eye(2)[y] + 0.3 * rng.normal(size=(200, 2))
    labels = Observed.of(np.where(rng.random(200) < 0.3, 1 - y, y), 2)
    scored = []
    held_out = choosing._held_out
    monkeypatch.setattr(choosing, "_held_out", lambda *args: scored.append(args[3]) or held_out(*args))
    alone = robust_head(x, labels, find_errors=True)
    scored.clear()
    with remembering():
        robust_head(x, labels)
        first = len(scored)
        shared = robust_head(x, labels, find_errors=True)
    assert len(choosing.CANDIDATES) < first == len(scored) <= 3 * len(choosing.CANDIDATES)
    assert shared.choice == alone.choice
    np.testing.assert_array_equal(shared.truth.channel.matrix, alone.truth.channel.matrix)
