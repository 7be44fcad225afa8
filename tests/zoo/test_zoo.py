"""Tiny networks of transformers, timm and torchvision through training, measuring, noise and loading."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from zoo_checks import (
    fresh_logits,
    in_double,
    inputs_of,
    measured_layers,
    moved_network,
    random_network,
    same_state,
    state_of,
    twin_form,
    twin_layers,
    twin_of,
)
from zoo_networks import CLASSES, NETWORKS

import hesstune as ht
from hesstune.errors import HesstuneError
from hesstune.forward import evaluating, logits_of
from hesstune.models.load import load_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from sentences import save_tiny_bert

TARGETS = torch.tensor([0, 2, 1])
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
ROUNDING = 1e-12  # of probabilities next to 0 and 1, in float32
OPERATORS = """_deform_conv2d_backward _ps_roi_align_backward _ps_roi_pool_backward _roi_align_backward
    _roi_pool_backward deform_conv2d nms ps_roi_align ps_roi_pool qnms qroi_align roi_align roi_pool"""
_declared = []  # of torch.library, which forgets what is not held


@pytest.fixture(scope="session", autouse=True)
def _torchvision():
    """Let torchvision be imported where its compiled operators do not fit torch: classifiers use none."""
    try:
        importlib.import_module("torchvision")  # transformers and timm import it, too
    except ImportError:
        return
    except RuntimeError:
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for name in OPERATORS.split():
            _declared[-1].define(f"{name}(Tensor x) -> Tensor")
        importlib.import_module("torchvision")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, _torchvision):
    """Any tokenizer: the networks here are given token ids."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    folder = save_tiny_bert(tmp_path_factory.mktemp("tokenizer"))
    return transformers.AutoTokenizer.from_pretrained(
        folder, model_input_names=["input_ids", "attention_mask"]
    )


@pytest.fixture
def network(request):
    """A network of an installed library."""
    library = request.param.library
    pytest.importorskip(library, reason=f"{library} is not installed")
    return request.param


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n.library}-{n.name}", indirect=True)
def test_a_network_is_trained_measured_and_loaded_or_refused_by_name(network, tokenizer, tmp_path):
    model = random_network(network)
    inputs = inputs_of(network)
    ref = ht.Reference.of(model)
    parameters = dict(model.named_parameters())
    expected = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, LAYERS)}
    assert expected & set(parameters) <= set(ref.layers())
    if network.refused and network.refused.by == "train":
        with pytest.raises(network.refused.error):
            moved_network(model, ref, inputs, TARGETS)
        return
    radii = moved_network(model, ref, inputs, TARGETS)
    check_distances(model, ref, radii)
    check_evaluating(network, model, inputs)
    layers = measured_layers(ref.layers())
    before = state_of(model)
    if network.refused:
        for refused in (
            lambda: ht.measure(model, ref, [(inputs, TARGETS)]),
            lambda: ht.noise_stability(model, [(inputs, TARGETS)], 0.01, samples=2, probes=2),
        ):
            with pytest.raises(network.refused.error):
                refused()
            assert same_state(before, state_of(model))
    else:
        measure = ht.measure(model, ref, [(inputs, TARGETS)], layers=layers, tol=0.1)
        stability = ht.noise_stability(model, [(inputs, TARGETS)], 0.01, samples=2, probes=2, layers=layers)
        assert same_state(before, state_of(model))
        assert all(math.isfinite(v) for v in (stability.value, stability.taylor, stability.stderr))
        assert stability.stderr > 0
        check_measure(network, model, ref, inputs, measure)
    check_loading(network, model, inputs, tokenizer, tmp_path)


def check_distances(model, ref, radii):
    """Every layer moved, by the norm that is written out here, and stays inside its radius."""
    parameters = dict(model.named_parameters())
    distances = ref.distances(model)
    for name, distance in distances.items():
        norm = float((parameters[name].detach().double() - ref[name].double()).square().sum().sqrt())
        assert distance == pytest.approx(norm, rel=1e-6)
        assert 0 < distance <= radii[name]


def check_evaluating(network, model, inputs):
    """In eval mode the network is the one of its present weights, twice, with a change between."""
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    for factor in (1.0, 1.1):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(factor * parameters[name])
            with evaluating(model):
                logits = logits_of(model, inputs)
        assert all(m.training for m in model.modules())
        torch.testing.assert_close(logits, fresh_logits(network, model, inputs), rtol=1e-4, atol=1e-5)
        model.train()  # activations may be shared with other networks, as transformers' XLM does
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(parameters[name])


def check_measure(network, model, ref, inputs, measure):
    """Two layers agree with the dense Hessian; layers called unused are."""
    twin = twin_of(model, network.is_double)
    inputs = in_double(inputs)
    unused = [n for n, m in zip(measure.names, measure.methods, strict=True) if m == "unused"]
    with torch.no_grad():
        before = logits_of(twin, inputs)
        for name in unused:
            twin.get_parameter(name).mul_(1.5).add_(0.1)
        torch.testing.assert_close(logits_of(twin, inputs), before)
    layers = twin_layers(model, [name for name in measure.names if name not in unused])
    assert layers
    row, label = 1, int(TARGETS[1])
    for name in layers:
        column = measure.names.index(name)
        found = [float(getattr(measure, key)[row, column]) for key in ("lower", "quadratic", "upper")]
        value, scale = twin_form(twin, name, ref.difference(model, name), inputs, row, label)
        slack = 1e-3 * value + (1e-5 if network.is_double else 1e-4) * scale + ROUNDING
        assert found[0] - slack <= value <= found[2] + slack, name
        assert found[0] <= found[1] <= found[2], name


def check_loading(network, model, inputs, tokenizer, folder):
    """The new head is zero and alone in the logits; all else is as it was, from an object and a folder."""
    text = network.reads == "texts"
    sources = [((model, tokenizer) if text else model, CLASSES)]
    if network.library == "transformers":
        copy.deepcopy(model).save_pretrained(folder)
        if text:
            tokenizer.save_pretrained(folder)
        sources.append((f"hf:{folder}", CLASSES + 1))
    for source, classes in sources:
        loaded = load_model(source, classes, text=text, image_size=None if text else network.image_size)
        with torch.no_grad(), evaluating(loaded.model):
            logits = logits_of(loaded.model, inputs)
        assert logits.shape == (len(TARGETS), classes)
        assert not logits.any()
        own = dict(loaded.model.named_parameters())
        assert not any(own[name].any() for name in loaded.head_layers)
        changed = {n for n, t in model.named_parameters() if n not in own or not torch.equal(own[n], t)}
        heads = tuple(f"{head}." for head in loaded.heads)
        assert set(loaded.head_layers) <= changed
        assert all(name.startswith(heads) for name in changed), changed


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
