"""Fixtures of training: interrupted runs and comparisons of weights."""

import pytest
import torch

import hesstune as ht


def _tensors(run):
    return run.loaded().model.state_dict()


@pytest.fixture
def interrupt():
    """Train until a share of the steps is done, and stop as Ctrl-C does."""

    def start(*data, share=0.5, **options):
        def stop(done, total, text):
            if done > share * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ht.finetune(*data, progress=stop, **options)

    return start


@pytest.fixture
def same_weights():
    """Assert that two runs have the same weights and buffers, bit for bit or nearly."""

    def compare(one, two, atol=0.0):
        one, two = _tensors(one), _tensors(two)
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=atol, msg=name)

    return compare
