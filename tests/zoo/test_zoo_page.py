"""The list of tested networks is long and has no network twice."""

from collections import Counter

from zoo_networks import NETWORKS

from hesstune.errors import HesstuneError


def test_list_has_many_networks_of_each_library_and_none_twice():
    assert len({(n.library, n.name) for n in NETWORKS}) == len(NETWORKS)
    count = Counter(n.library for n in NETWORKS)
    assert count["transformers"] >= 60
    assert min(count["timm"], count["torchvision"]) >= 5
    assert Counter(n.reads for n in NETWORKS if n.library == "transformers")["texts"] >= 40


def test_a_refusal_names_one_of_our_errors_and_its_reason():
    for network in NETWORKS:
        if network.refused is not None:
            assert issubclass(network.refused.error, HesstuneError)
            assert len(network.refused.why) > 20, network.name
