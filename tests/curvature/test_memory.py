"""The forecast of a measurement's memory: it covers what is used, and what does not fit is refused."""

from __future__ import annotations

import re
import weakref

import pytest
import torch
from networks import build
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hesstune.curvature.declared import FORECAST
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure
from hesstune.curvature.memory import LiveBytes
from hesstune.errors import MeasureError
from hesstune.reference import Reference

MIB = 2**20


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they live."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {
            x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if storage.nbytes() and key not in self.alive and key not in given:
                self.alive[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, key)
        return out

    def _gone(self, key):
        self.now -= self.alive.pop(key, 0)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


def _cnn(act):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), act(), nn.Conv2d(16, 24, 3, stride=2), act(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5),
    )  # fmt: skip


def _moved(model, by=0.02):
    ref = Reference.of(model.eval())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape).to(parameter.dtype))
    return ref


def _least(error):
    return float(re.search(r"give memory_mib=([\d.]+) \(--memory-mib \1\)", str(error.value))[1])


def test_live_bytes_are_those_of_new_tensors_until_they_are_freed():
    with LiveBytes() as live:
        first = torch.zeros(100)
        second = first.reshape(10, 10)[1:] + 1
        first.add_(1)
        del first
        third = second.double()
    assert live.series == [400, 400 + 360, 360 + 720]
    assert len(third) == 9


@pytest.mark.parametrize("budget", [None, "least"])
@pytest.mark.parametrize(
    ("make", "shape", "options"),
    [
        (lambda: _cnn(nn.ReLU), (3, 16, 16), {}),
        (lambda: _cnn(nn.ReLU), (3, 16, 16), {"trace": True}),
        (lambda: _cnn(nn.ReLU), (3, 16, 16), {"spectrum": True}),
        (lambda: _cnn(nn.GELU), (3, 12, 12), {}),
        (lambda: _cnn(nn.GELU), (3, 12, 12), {"examples": "max", "mean_sample": 2}),
        (Tied, (64,), {}),
    ],
    ids=["exact", "traces", "spectra", "smooth", "maximum", "tied"],
)
def test_the_forecast_covers_what_is_used(make, shape, options, budget):
    torch.manual_seed(0)
    model = make()
    ref, x, y = _moved(model), torch.randn(8, *shape), torch.arange(8) % 3
    options = {**options, "steps": 2}
    if budget == "least":
        with pytest.raises(MeasureError) as refused:
            measure(model, ref, [(x, y)], memory_mib=1e-3, **options)
        budget = _least(refused)
    lines = []

    def forecast_made(line):
        lines.append(line)
        peak.most = peak.now  # planning, which looks at four examples whatever the budget, is over

    with Peak() as peak:
        before = peak.now
        found = measure(model, ref, [(x, y)], memory_mib=budget, on_forecast=forecast_made, **options)
    assert found.notes[-1] == lines[0]
    forecast, used = (
        MIB * float(re.match(rf"{FORECAST} at most ([\d.]+) MiB", lines[0])[1]),
        peak.most - before,
    )
    assert used <= forecast
    # Without a budget the forecast is close to what is used, although small tensors share less.
    assert forecast <= (1.6 * used if budget is None else 1.001 * budget * MIB)


@pytest.mark.parametrize(
    ("name", "options"),
    [("cnn", {"trace": True}), ("mlp_gelu", {}), ("gpt2", {"examples": "max", "mean_sample": 2})],
)
def test_over_the_budget_is_refused_with_a_setting_that_works(name, options):
    case = build(name)
    batches = [(case.inputs, case.targets)]
    with pytest.raises(
        MeasureError, match=r"one example at a time takes .* memory_mib is 1e-06; give"
    ) as refused:
        measure(case.model, case.ref, batches, memory_mib=1e-6, **options)
    assert "\n" not in str(refused.value)
    assert "--layers" in str(refused.value)
    least = _least(refused)
    with pytest.raises(MeasureError, match="one example at a time takes"):
        measure(case.model, case.ref, batches, memory_mib=0.95 * least - 0.002, **options)
    large = measure(case.model, case.ref, batches, **options)
    small = measure(case.model, case.ref, batches, memory_mib=least, **options)
    torch.testing.assert_close(small.maximum, large.maximum, rtol=0.03, atol=1e-9)
    torch.testing.assert_close(small.losses, large.losses, rtol=1e-5, atol=1e-7)


def test_fewer_layers_take_less():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))
    ref, batches = _moved(model), [(torch.randn(2, 64), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(MeasureError, match=r"differences of the layers 1\.1"):
        measure(model, ref, batches, memory_mib=0.5)
    found = measure(model, ref, batches, memory_mib=0.5, layers=["0.weight", "4.weight"])
    assert found.names == ["0.weight", "4.weight"]


def test_the_inputs_of_a_sample_count_from_the_start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))
    ref = _moved(model)
    batches = [(torch.randn(4, 1, 4096), torch.zeros(4, dtype=torch.long)) for _ in range(40)]
    done = []
    options = {"examples": "max", "memory_mib": 1.5, "max_examples": 100, "steps": 2}
    with pytest.raises(MeasureError, match="fewer examples if the inputs take most of it"):
        measure(model, ref, batches, mean_sample=100, progress=done.append, **options)
    assert not done  # a hundred examples of 16 KiB
    assert 2 <= int(measure(model, ref, batches, mean_sample=16, **options).refined[:, 0].sum()) <= 16
    # No more inputs are kept than there are examples.
    measure(model, ref, batches, mean_sample=100, **options | {"max_examples": 20})


def test_larger_inputs_than_the_first_ones_are_forecast_anew():
    torch.manual_seed(0)
    model, y = _cnn(nn.ReLU), torch.zeros(2, dtype=torch.long)
    batches = [(torch.randn(2, 3, size, size), y) for size in (8, 96)]
    with pytest.raises(MeasureError, match="one example at a time takes"):
        measure(model, _moved(model), batches, memory_mib=2.0)


def test_weights_in_half_precision_are_measured_as_float32_and_stay_as_they_were():
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).bfloat16()
    ref = _moved(half, 0.1)
    wide = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    wide.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    before = {name: (p, p.data_ptr()) for name, p in half.named_parameters()}
    x, y = torch.randn(5, 6).bfloat16(), torch.tensor([0, 1, 2, 0, 1])
    found = measure(half, ref, [(x, y)])
    deltas = {name: ref.difference(half, name) for name in ref.layers()}
    expected = CurvatureEngine(wide, deltas)
    forms = expected.lanczos((x.float(), y))
    torch.testing.assert_close(found.quadratic, forms.quadratic, rtol=0.03, atol=1e-9)
    torch.testing.assert_close(found.quadratic[:, -1], expected.exact((x.float(), y)).quadratic[:, -1])
    for name, parameter in half.named_parameters():
        assert parameter is before[name][0]
        assert (parameter.data_ptr(), parameter.dtype) == (before[name][1], torch.bfloat16)
