"""Fused attention has no second derivative: the measure takes the math kernel, and gives the others back."""

from __future__ import annotations

import pytest
import torch
from torch.backends.cuda import (
    enable_flash_sdp,
    enable_math_sdp,
    enable_mem_efficient_sdp,
    flash_sdp_enabled,
    math_sdp_enabled,
    mem_efficient_sdp_enabled,
)

from dense_hessians import block_hessian, positive_form
from hesstune.curvature.measure import measure
from hesstune.reference import Reference

transformers = pytest.importorskip("transformers")


def bert(attention: str):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=9,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=5,
        max_position_embeddings=8,
        num_labels=3,
        attn_implementation=attention,
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    reference = Reference.of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, reference


def batch():
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(6) < torch.tensor([6, 3, 5])[:, None]).long()
    ids = torch.randint(1, 9, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}, torch.tensor([0, 2, 1])


def kernels():
    return flash_sdp_enabled(), mem_efficient_sdp_enabled(), math_sdp_enabled()


def test_every_linear_layer_of_a_fused_model_is_measured_as_the_dense_hessian_says():
    model, reference = bert("sdpa")
    assert model.config._attn_implementation == "sdpa"
    found = measure(model, reference, [batch()], examples="all", steps=60, tol=1e-8)
    linears = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(found.names) == linears  # attention, feed-forward, pooler and classifier
    inputs, targets = batch()
    for name in (n for n in found.names if any(part in n for part in ("query", "pooler", "intermediate"))):
        v = reference.difference(model, name).flatten()
        hessians = block_hessian(model, inputs, targets, name)
        dense = torch.stack([positive_form(hessian, v) for hessian in hessians])
        torch.testing.assert_close(
            found.quadratic[:, found.names.index(name)], dense, rtol=1e-5, atol=1e-10, msg=name
        )
    assert found.maximum.min() > 0


def test_fused_and_eager_attention_give_the_same_numbers():
    values = []
    for attention in ("sdpa", "eager"):
        model, reference = bert(attention)
        values.append(measure(model, reference, [batch()], examples="all", steps=60, tol=1e-8).quadratic)
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-12)


def test_the_kernels_are_given_back():
    before = kernels()
    model, reference = bert("sdpa")
    try:
        enable_flash_sdp(True)
        enable_mem_efficient_sdp(False)
        enable_math_sdp(False)
        chosen = kernels()
        measure(model, reference, [batch()], steps=4)
        assert kernels() == chosen
        with pytest.raises(ValueError, match="input_ids"):
            measure(model, reference, [({"nothing": torch.zeros(3, 2)}, torch.tensor([0, 1, 2]))], steps=4)
        assert kernels() == chosen  # after a failure, too
    finally:
        for switch, value in zip(
            (enable_flash_sdp, enable_mem_efficient_sdp, enable_math_sdp), before, strict=True
        ):
            switch(value)


def test_a_network_laid_out_by_a_device_map_is_measured_as_without_it():
    """accelerate's hooks wrap every forward; one device here, where they have nothing to move."""
    accelerate = pytest.importorskip("accelerate")
    model, reference = bert("sdpa")
    plain = measure(model, reference, [batch()])
    parts = ("bert.embeddings", "bert.encoder", "bert.pooler", "dropout", "classifier")
    laid_out = accelerate.dispatch_model(model, dict.fromkeys(parts, "cpu"), force_hooks=True)
    assert hasattr(laid_out.classifier, "_hf_hook")
    found = measure(laid_out, reference, [batch()])
    assert (found.names, found.methods) == (plain.names, plain.methods)
    torch.testing.assert_close(found.quadratic, plain.quadratic, rtol=1e-6, atol=1e-12)
