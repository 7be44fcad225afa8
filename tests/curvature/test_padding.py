"""Padding changes no number: cut or not, in any order, at either end of the batch."""

from __future__ import annotations

import pytest
import torch
from networks import Case, build, moved, tiny_bert
from torch import nn

from hesstune.curvature.batches import by_length, ignores_padding, trimmed
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure

SAME = {"rtol": 1e-7, "atol": 1e-12}


def ragged(model: nn.Module, lengths: list[int], width: int) -> Case:
    ref = moved(model.double(), 0.3)
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 7, mask.shape, generator=generator) * mask
    targets = torch.randint(3, (len(lengths),), generator=generator)
    return Case(model, ref, {"input_ids": ids, "attention_mask": mask}, targets)


class MeanOverEverything(nn.Module):
    """Averages padded positions too, as a careless model does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.gelu(self.hidden(self.embed(input_ids))).mean(1))


@pytest.mark.parametrize("sample", [0, 3])
def test_padded_and_unpadded_sentences_give_the_same_numbers(sample: int):
    torch.manual_seed(0)
    lengths = [3, 8, 2, 5, 8, 1, 4]
    case = ragged(tiny_bert(), lengths, 8)
    batch = (case.inputs, case.targets)
    whole = measure(case.model, case.ref, [batch], examples="max", mean_sample=sample, tol=1e-6, steps=60)
    alone = [
        (trimmed({k: v[i : i + 1] for k, v in case.inputs.items()}), case.targets[i : i + 1])
        for i in range(len(lengths))
    ]
    assert [part["input_ids"].shape[1] for part, _ in alone] == lengths
    single = measure(case.model, case.ref, alone, tol=1e-6, steps=60)
    torch.testing.assert_close(whole.losses, single.losses, **SAME)  # the order is the given one
    filled = whole.refined
    torch.testing.assert_close(whole.quadratic[filled], single.quadratic[filled], rtol=1e-5, atol=1e-12)


def test_the_plan_cuts_padding_only_where_the_logits_allow_it():
    torch.manual_seed(0)
    masked, careless = tiny_bert(), MeanOverEverything()
    for model, allowed in ((masked, True), (careless, False)):
        case = ragged(model.eval(), [2, 3, 6, 6], 6)
        assert CurvatureEngine.of(model, case.ref).plan_on(case.inputs).cuts_padding is allowed
    full = ragged(tiny_bert().eval(), [6, 6], 6)
    assert not ignores_padding(full.model, full.inputs)  # nothing to cut
    assert not ignores_padding(build("mlp").model, torch.zeros(2, 5))


def test_a_careless_model_is_measured_with_its_padding():
    torch.manual_seed(0)
    case = ragged(MeanOverEverything(), [2, 3, 6, 6], 6)
    whole = measure(case.model, case.ref, [(case.inputs, case.targets)], tol=1e-6, steps=40)
    rows = torch.tensor([3, 1, 0, 2])
    mixed = {k: v[rows] for k, v in case.inputs.items()}
    again = measure(case.model, case.ref, [(mixed, case.targets[rows])], tol=1e-6, steps=40)
    torch.testing.assert_close(again.quadratic, whole.quadratic[rows], rtol=1e-5, atol=1e-12)


def test_lengths_reach_the_last_attended_position():
    left = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert by_length({"attention_mask": left}).tolist() == [1, 2, 0]
    assert trimmed({"attention_mask": left})["attention_mask"].shape == (3, 4)
    kept = trimmed({"attention_mask": left[1:], "input_ids": left[1:], "other": torch.ones(2, 9)})
    assert kept["input_ids"].shape == (2, 1)
    assert kept["other"].shape == (2, 9)
