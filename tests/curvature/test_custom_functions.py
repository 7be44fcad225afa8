"""Functions with a backward pass of their own; networks that write buffers, or amplify rounding."""

import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.errors import MeasureError

BATCH = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


def function(name, forward, slope, once=False):
    """Make an autograd function whose backward pass multiplies by `slope` of what forward kept."""

    def run(ctx, x):
        value, ctx.kept = forward(x), None
        ctx.save_for_backward(x)
        if name == "Kept":
            ctx.kept = value.clone()
        return value

    def backward(ctx, gradient):
        return gradient * slope(ctx.saved_tensors[0] if ctx.kept is None else ctx.kept)

    backward = torch.autograd.function.once_differentiable(backward) if once else backward
    methods = {"forward": staticmethod(run), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods)


def derivative(x):
    return 1 - x.tanh() ** 2


# Rounding with the gradient of the identity; half the derivative; the derivative; the same, not to be
# differentiated twice; and a second derivative that takes the value that it keeps for a constant.
Rounded = function("Rounded", lambda x: torch.round(4 * x) / 4, torch.ones_like)
Halved = function("Halved", torch.tanh, lambda x: 0.5 * derivative(x))
Tanh = function("Tanh", torch.tanh, derivative)
Once = function("Once", torch.tanh, derivative, once=True)
Kept = function("Kept", torch.tanh, lambda value: 1 - value**2)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class QuantisedLinear(nn.Linear):
    """A layer whose weight is rounded before it is used."""

    def forward(self, x):
        return nn.functional.linear(x, Rounded.apply(self.weight), self.bias)


class Counting(nn.Module):
    """Writes its buffers in every forward pass: one in place, one as a new tensor of another shape."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.last = 2 * x
        return x


def network(*middle, first=nn.Linear):
    torch.manual_seed(0)
    model = nn.Sequential(first(5, 6), *middle, nn.Linear(6, 3))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return model


def moved(model):
    ref = ht.Reference.of(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ref


@pytest.mark.parametrize(
    ("model", "function"),
    [
        (network(Applied(Rounded)), "Rounded"),
        (network(Applied(Halved)), "Halved"),
        (network(Applied(Kept)), "Kept"),
        (network(Applied(Once)), "Once"),
        (network(Applied(Once), nn.ReLU()), "Once"),
        (network(nn.GELU(), first=QuantisedLinear), "Rounded"),
    ],
)
def test_a_gradient_that_is_no_derivative_is_refused_and_layers_after_it_are_measured(model, function):
    ref = moved(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MeasureError, match=f"{function} .*0.weight"):
        ht.measure(model, ref, [BATCH])
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert ht.measure(model, ref, [BATCH], layers=f"{len(model) - 1}.weight").exact == [True]


@pytest.mark.parametrize(
    "after", [lambda: (), lambda: (nn.ReLU(),), lambda: (nn.Linear(6, 6), Applied(Tanh))]
)
def test_a_gradient_of_its_own_that_is_the_derivative_is_measured_like_torchs(after):
    custom, plain = network(Applied(Tanh), *after()), network(nn.Tanh(), *after())
    found = [ht.measure(model, moved(model), [BATCH]).quadratic for model in (custom, plain)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-9)


def test_hardsigmoid_is_measured_as_the_same_function_and_what_has_no_second_derivative_is_named():
    class Relu6(nn.Module):
        def forward(self, x):
            return nn.functional.relu6(x + 3) / 6

    class Functional(nn.Module):
        def forward(self, x):
            return nn.functional.hardsigmoid(x)

    for more in (lambda: (), lambda: (nn.Linear(6, 6), nn.GELU())):
        models = network(nn.Hardsigmoid(), *more()), network(Relu6(), *more())
        found, wanted = (ht.measure(model, moved(model), [BATCH]) for model in models)
        torch.testing.assert_close(found.quadratic, wanted.quadratic, rtol=1e-4, atol=1e-9)
        assert found.exact == wanted.exact
        assert all("forward" not in vars(m) for m in models[0])  # left as it was
    model = network(Functional())
    with pytest.raises(MeasureError, match="calls hardsigmoid, which torch cannot differentiate twice"):
        ht.measure(model, moved(model), [BATCH])


@pytest.mark.parametrize("name", ["measure", "noise_stability"])
def test_buffers_that_a_forward_pass_writes_are_as_they_were(name):
    model = network(Counting())
    ref = moved(model)
    before = {key: (buffer, buffer.clone()) for key, buffer in model.named_buffers()}
    if name == "measure":
        ht.measure(model, ref, [BATCH])
    else:
        ht.noise_stability(model, [BATCH], 0.1, samples=2)
    for key, (buffer, value) in before.items():
        assert model.get_buffer(key) is buffer
        assert torch.equal(buffer, value)


def test_a_buffer_of_another_shape_is_no_other_network():
    model = network(Counting())
    ref = moved(model)
    with torch.no_grad():
        model(BATCH[0])
    assert set(ref.distances(model)) == {"0.weight", "2.weight"}
    assert ht.measure(model, ref, [BATCH]).exact == [True, True]
    ref.restore_(model)
    assert model.get_buffer("1.last").shape == (1,)
    assert float(model.get_buffer("1.calls")) == 0


def test_rounding_that_batch_norm_amplifies_is_not_taken_for_randomness():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias.fill_(3e3)  # next to it the batch norm's input varies in its last digits
        model[1].running_mean.fill_(3e3)
    ref = moved(model)
    assert ht.measure(model.eval(), ref, [BATCH]).exact == [True, True]
