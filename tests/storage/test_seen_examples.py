"""The record of the examples that weights have seen: no seen example is missed, and the file stays small."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from hesstune.errors import ModelError, RunError
from hesstune.storage.seen_examples import KEY, SeenExamples
from hesstune.storage.tensors import add_metadata, save_tensors


def random_digests(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def test_fifty_thousand_digests_stay_small_and_are_found_again(tmp_path):
    digests = random_digests(50_000)
    seen = SeenExamples.of([digests[:30_000], digests[30_000:], digests[:10]])
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"w": torch.ones(3)}, seen.metadata())
    assert path.stat().st_size < 8.01 * 50_000 + 500
    again = SeenExamples.of_file(path)
    assert again.count == 50_000
    assert again.contain(digests).all()
    # 50,000 queries of other examples: one is taken for a seen one with probability 9e-6.
    assert not again.contain(random_digests(50_000, 1)).any()


def test_membership_agrees_with_a_set_of_prefixes():
    """Small digests, so that prefixes are shared between examples that differ after the sixth byte."""
    rng = np.random.default_rng(2)
    digests = np.zeros((300, 16), np.uint8)
    digests[:, [0, 5, 6]] = rng.integers(0, 8, (300, 3))
    known = {row[:6].tobytes() for row in digests[:40]}
    expected = [row[:6].tobytes() in known for row in digests]
    seen = SeenExamples.of_dict(json.loads(json.dumps(SeenExamples.of([digests[:40]]).to_dict())), "x")
    assert seen.contain(digests).tolist() == expected
    assert 0 < sum(expected) < 300
    assert seen.count == len(known)


def test_a_union_keeps_digests_and_unrecorded_weights_once():
    first, second = random_digests(5), random_digests(5, 1)
    one = SeenExamples.of([first]) | SeenExamples(unrecorded=("a", "b"))
    both = one | SeenExamples.of([second, first[:2]]) | SeenExamples(unrecorded=("b", "c"))
    assert both.contain(np.concatenate([first, second])).all()
    assert (both.count, both.unrecorded) == (10, ("a", "b", "c"))
    assert SeenExamples().contain(first).tolist() == [False] * 5


@pytest.mark.parametrize(
    "record", [{"bytes": 6, "digests": "AAAA"}, {"bytes": 6, "digests": "not base64 !"}, {"digests": ""}, 7]
)
def test_a_damaged_record_is_an_error_that_names_the_file(record, tmp_path):
    path = tmp_path / "w.safetensors"
    if isinstance(record, dict):
        record["unrecorded"] = []
    save_tensors(path, {"w": torch.ones(1)}, {KEY: json.dumps(record)})
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        SeenExamples.of_file(path)
    save_tensors(path, {"w": torch.ones(1)})
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    assert SeenExamples.of_file(path) is SeenExamples.of_file(tmp_path / "w.pt") is None


def test_metadata_are_added_to_a_file_and_its_tensors_stay(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(5, dtype=torch.int16)}
    save_tensors(path, tensors, {"format": "pt"})
    add_metadata(path, {"more": "ünïcode"})
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata() == {"format": "pt", "more": "ünïcode"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
    with pytest.raises(RunError, match="missing"):
        add_metadata(tmp_path / "missing.safetensors", {"a": "b"})


def test_a_note_stays_with_copies_of_a_network_and_in_networks_around_it():
    import copy

    digests = random_digests(4)
    inner, other = nn.Linear(2, 2), nn.Linear(2, 2)
    names = set(inner.state_dict())
    SeenExamples.of([digests[:2]]).note_on(inner)
    SeenExamples.of([digests[2:3]]).note_on(other)
    around = copy.deepcopy(nn.Sequential(inner, nn.ReLU(), nn.Sequential(other)))
    assert SeenExamples.noted_on(around).contain(digests).tolist() == [True, True, True, False]
    assert set(inner.state_dict()) == names
    assert SeenExamples.noted_on(nn.Linear(2, 2)).count == 0
