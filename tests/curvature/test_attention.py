"""Attention kernels, which have no second derivative if fused, and padding, which changes no number."""

from __future__ import annotations

import pytest
import torch
from networks import Case, build, check, moved, tiny_bert
from torch import nn
from torch.backends.cuda import (
    enable_flash_sdp,
    enable_math_sdp,
    enable_mem_efficient_sdp,
    flash_sdp_enabled,
    math_sdp_enabled,
    mem_efficient_sdp_enabled,
)

from hesstune.curvature.batches import by_length, ignores_padding, trimmed
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure

pytest.importorskip("transformers")


def ragged(model: nn.Module, lengths: list[int], width: int) -> Case:
    ref = moved(model.double().eval(), 0.3)
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 7, mask.shape, generator=generator) * mask
    targets = torch.randint(3, (len(lengths),), generator=generator)
    return Case(model, ref, {"input_ids": ids, "attention_mask": mask}, targets)


def kernels():
    return flash_sdp_enabled(), mem_efficient_sdp_enabled(), math_sdp_enabled()


def test_every_linear_layer_of_a_fused_model_is_measured_as_the_dense_hessian_says_and_as_in_eager_mode():
    found = []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        case = ragged(tiny_bert(attn_implementation=attention), [6, 3, 5], 6)
        assert case.model.config._attn_implementation == attention
        batch = [(case.inputs, case.targets)]
        found.append(measure(case.model, case.ref, batch, steps=60, tol=1e-8))
    linears = {f"{name}.weight" for name, m in case.model.named_modules() if isinstance(m, nn.Linear)}
    assert set(found[0].names) == linears  # attention, feed-forward, pooler and classifier
    torch.testing.assert_close(found[0].quadratic, found[1].quadratic, rtol=1e-6, atol=1e-12)
    check(case.model, case.ref, batch, layers=["*query*", "*pooler*", "*intermediate*"])


def test_the_kernels_are_restored():
    before, case = kernels(), ragged(tiny_bert(), [6, 3, 5], 6)
    switches = (enable_flash_sdp, enable_mem_efficient_sdp, enable_math_sdp)
    try:
        for switch, value in zip(switches, (True, False, False), strict=True):
            switch(value)
        chosen = kernels()
        measure(case.model, case.ref, [(case.inputs, case.targets)], steps=4)
        assert kernels() == chosen
        with pytest.raises(ValueError, match="input_ids"):
            measure(case.model, case.ref, [({"nothing": torch.zeros(3, 2)}, case.targets)])
        assert kernels() == chosen  # after a failure, too
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch(value)


def test_a_network_laid_out_by_a_device_map_is_measured_as_without_it():
    """accelerate's hooks wrap every forward; one device here, so they have nothing to move."""
    accelerate = pytest.importorskip("accelerate")
    case = ragged(tiny_bert(), [6, 3, 5], 6)
    plain = measure(case.model, case.ref, [(case.inputs, case.targets)])
    parts = ("bert.embeddings", "bert.encoder", "bert.pooler", "dropout", "classifier")
    laid_out = accelerate.dispatch_model(case.model, dict.fromkeys(parts, "cpu"), force_hooks=True)
    assert hasattr(laid_out.classifier, "_hf_hook")
    found = measure(laid_out, case.ref, [(case.inputs, case.targets)])
    assert (found.names, found.methods) == (plain.names, plain.methods)
    torch.testing.assert_close(found.quadratic, plain.quadratic, rtol=1e-6, atol=1e-12)


class MeanOverEverything(nn.Module):
    """Averages padded positions, too."""

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
    lengths = [3, 8, 2, 5, 1]
    case = ragged(tiny_bert(), lengths, 8)
    options = {"layers": ["*query*", "*output.dense*", "classifier*"], "tol": 1e-6, "steps": 60}
    batch = (case.inputs, case.targets)
    whole = measure(case.model, case.ref, [batch], examples="max", mean_sample=sample, **options)
    alone = [
        (trimmed({k: v[i : i + 1] for k, v in case.inputs.items()}), case.targets[i : i + 1])
        for i in range(len(lengths))
    ]
    assert [part["input_ids"].shape[1] for part, _ in alone] == lengths
    single = measure(case.model, case.ref, alone, **options)
    torch.testing.assert_close(
        whole.losses, single.losses, rtol=1e-7, atol=1e-12
    )  # the order is the given one
    filled = whole.refined
    torch.testing.assert_close(whole.quadratic[filled], single.quadratic[filled], rtol=1e-5, atol=1e-12)


def test_the_bracket_ignores_tokens_behind_the_mask():
    case, width = build("bert"), 3
    padded = {key: value[1:2] for key, value in case.inputs.items()}
    assert int(padded["attention_mask"].sum()) == width
    other = padded["input_ids"].clone()
    other[:, width:] = 9
    engine, target = CurvatureEngine.of(case.model, case.ref), case.targets[1:2]
    inputs = [{key: value[:, :width] for key, value in padded.items()}, padded, padded | {"input_ids": other}]
    expected, *found = [engine.lanczos((x, target)) for x in inputs]
    for forms in found:
        torch.testing.assert_close(forms.quadratic, expected.quadratic, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(forms.upper, expected.upper, rtol=1e-6, atol=1e-12)


def test_padding_is_cut_only_if_the_logits_allow_it():
    torch.manual_seed(0)
    for model, allowed in ((tiny_bert(), True), (MeanOverEverything(), False)):
        case = ragged(model, [2, 3, 6, 6], 6)
        assert CurvatureEngine.of(model, case.ref).plan_on(case.inputs).cuts_padding is allowed
    whole = measure(case.model, case.ref, [(case.inputs, case.targets)], tol=1e-6, steps=40)
    rows = torch.tensor([3, 1, 0, 2])
    mixed = {k: v[rows] for k, v in case.inputs.items()}
    again = measure(case.model, case.ref, [(mixed, case.targets[rows])], tol=1e-6, steps=40)
    torch.testing.assert_close(again.quadratic, whole.quadratic[rows], rtol=1e-5, atol=1e-12)
    full = ragged(tiny_bert(), [6, 6], 6)
    assert not ignores_padding(full.model, full.inputs)  # nothing to cut
    assert not ignores_padding(build("mlp").model, torch.zeros(2, 5))


def test_lengths_reach_the_last_attended_position():
    left = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert by_length({"attention_mask": left}).tolist() == [1, 2, 0]
    assert trimmed({"attention_mask": left})["attention_mask"].shape == (3, 4)
    kept = trimmed({"attention_mask": left[1:], "input_ids": left[1:], "other": torch.ones(2, 9)})
    assert kept["input_ids"].shape == (2, 1)
    assert kept["other"].shape == (2, 9)
