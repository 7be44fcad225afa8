"""A layer that one process measured in weight space is not called exact or unused by the others."""

import torch

from hesstune.analysis import measure
from hesstune.curvature.result import Measure


def test_the_method_of_a_layer_is_that_of_the_process_that_moved_it_to_weight_space(monkeypatch):
    one = torch.ones(2, 3, dtype=torch.float64)
    names, methods = ["a", "b", "c"], ["exact", "unused", "weight_space"]
    own = Measure(names, one, one, one, torch.ones(2), torch.ones(3), methods, ["why"] * 3)
    elsewhere = torch.tensor([0, 1, 1])  # the other process met an example that reaches b
    monkeypatch.setattr(measure, "world", lambda: 2)
    monkeypatch.setattr(measure, "all_gather", lambda rows: [rows, rows])
    monkeypatch.setattr(measure, "all_reduce_sum", lambda tensor: tensor + elsewhere)
    rows = [torch.arange(2).numpy(), torch.arange(2, 4).numpy()]
    found = measure.gathered_measure(own, rows)
    assert found.methods == ["exact", "weight_space", "weight_space"]
    assert found.exact == [True, False, False]
    assert [reason == "why" for reason in found.reasons] == [True, False, True]
