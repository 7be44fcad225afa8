"""What is chosen per layer and why, and what is refused by name."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import AlsoFunctional, build, check, moved
from torch import nn

from dense_hessians import block_hessian
from hesstune.curvature import verification
from hesstune.curvature.capture import capture, differentiable
from hesstune.curvature.layouts import find_layouts
from hesstune.curvature.measure import measure
from hesstune.errors import MeasureError

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1])


class Net(nn.Module):
    """Two linear layers with something between them, or with a forward pass (a, b, x) -> logits."""

    def __init__(self, between=torch.relu, run=None):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.between, self.run = between, run
        for p in self.parameters():
            nn.init.normal_(p, 0, 0.6, generator=generator)

    def forward(self, x):
        return self.b(self.between(self.a(x))) if self.run is None else self.run(self.a, self.b, x)


def _measured(model, **options):
    model.double()
    return check(model, moved(model, 0.3), [(X, Y)], **options)


def _slice_write(x):
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1].relu()
    return out


def _smooth_slice_write(x):
    x = x.clone()
    x[:, 1:].sigmoid_()
    return x


@pytest.mark.parametrize(
    ("between", "method", "reason"),
    [
        (torch.relu, "exact", "piecewise-linear"),
        (lambda x: x.relu_(), "exact", "piecewise-linear"),
        (lambda x: F.hardtanh(x.mul_(2.0).add_(0.1), inplace=True), "exact", "piecewise-linear"),
        (lambda x: torch.maximum(x.abs(), 0.5 * x).clamp(max=3), "exact", "piecewise-linear"),
        (lambda x: torch.where(x > 0, x, 0.2 * x) / 1.7, "exact", "piecewise-linear"),
        (_slice_write, "exact", "double backward agrees there"),
        (_smooth_slice_write, "lanczos", "double backward differs"),
        (torch.tanh, "lanczos", "Tanh comes after it"),
        (F.silu, "lanczos", "Silu comes after it"),
        (lambda x: x * F.relu(x), "lanczos", "Mul comes after it"),
        (lambda x: x / (1 + x.abs()), "lanczos", "Div comes after it"),
        (lambda x: F.layer_norm(x, (4,)), "lanczos", "NativeLayerNorm comes after it"),
        (lambda x: F.softmax(x, 1), "lanczos", "Softmax comes after it"),
        (lambda x: F.instance_norm(x[:, None])[:, 0], "lanczos", "NativeBatchNorm comes after it"),
    ],
)
def test_the_path_follows_what_comes_after_the_layer(between, method, reason):
    m = _measured(Net(between))
    assert m.methods == [method, "exact"]
    assert reason in m.reasons[0]


def test_every_layer_before_a_hidden_write_is_probed(monkeypatch):
    class Deep(Net):
        def __init__(self):
            super().__init__(_smooth_slice_write)
            self.hidden = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

        def forward(self, x):
            for layer in self.hidden:
                x = x + F.leaky_relu(layer(x))
            return super().forward(x)

    model = Deep().double()
    ref = moved(model, 0.1)
    m = measure(model, ref, [(X, Y)])
    methods = dict(zip(m.names, m.methods, strict=True))
    assert methods.pop("b.weight") == "exact"
    assert set(methods.values()) == {"lanczos"}
    monkeypatch.setattr(verification, "_GROUP_BYTES", 1)  # layer by layer, as where they are large
    assert measure(model, ref, [(X, Y)]).reasons == m.reasons


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (lambda: Net(run=lambda a, b, x: b(a(a(x).relu()).relu())), "its weight is used 2 times"),
        (Tied, "its weight is used 2 times"),
        (AlsoFunctional, "its weight is used 2 times"),
        (
            lambda: Net(run=lambda a, b, x: b((x @ a.weight.T.reshape(4, 4)).relu())),
            "not used by a plain call",
        ),
    ],
)
def test_weights_used_otherwise_are_measured_in_weight_space(kind, reason):
    m = _measured(kind())
    assert m.methods == ["weight_space", "exact"]
    assert reason in m.reasons[0]


class Aside(Net):
    def __init__(self):
        super().__init__()
        self.aside = nn.Linear(4, 4)

    def forward(self, x):
        self.aside(x)
        return super().forward(x)


def test_a_layer_that_the_logits_do_not_depend_on_is_zero():
    m = _measured(Aside())
    assert m.methods == ["exact", "exact", "unused"]
    assert m.exact[2]
    assert m.maximum[2] == 0.0


def frozen(a, b, x):
    with torch.no_grad():
        hidden = a(x)
    return b(hidden.relu())


def batchwise(a, b, x):
    hidden = a(x).relu()
    return b(hidden - 0.3 * hidden.mean(0))


class Normed(Net):
    def __init__(self, **options):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, **options)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


class Stubborn(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)


class StubbornNet(Normed):
    def __init__(self):
        super().__init__()
        self.norm = Stubborn(4)


class StubbornDropout(Net):
    def __init__(self):
        super().__init__(nn.Dropout(0.5))
        self.between.train = lambda mode=True: self.between


REFUSED = [
    (frozen, "'a.weight' changes the logits, but no gradient reaches it"),
    (lambda a, b, x: b(F.linear(x, a.weight.data).relu()), "'a.weight' changes the logits, but no gradient"),
    (batchwise, "examples of a batch influence each other"),
    (lambda a, b, x: b(F.dropout(a(x), 0.5, training=True)), "the logits change from one call to the next"),
    (lambda a, b, x: b(a(x)) / (x[:, :1] - X[3, 0]), "the logits of example 3 are not finite"),
    (lambda a, b, x: b(a(x))[:, :1], "at least 2 classes"),
    # Weights in half precision are measured as float32; a network that rounds its own logits is not.
    (lambda a, b, x: b(a(x)).bfloat16(), "measure in float32"),
]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        *((partial(Net, run=run), text) for run, text in REFUSED),
        (lambda: Normed(track_running_stats=False), "batch norm 'norm' uses the statistics of the batch"),
        (StubbornNet, "batch norm 'norm' uses the statistics of the batch"),
        (StubbornDropout, "dropout 'between' stays active"),
    ],
)
def test_networks_without_a_per_example_hessian_are_refused_by_name(make, text):
    model = make().double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(MeasureError, match=text):
        measure(model, moved(model, 0.0), [(X, Y)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_logits_that_are_not_finite_in_a_later_batch_name_the_example():
    model = Net().double()
    late = X.clone()
    late[2] = float("inf")
    with pytest.raises(MeasureError, match="example 7 are not finite"):
        measure(model, moved(model, 0.1), [(X, Y), (late, Y)])


def test_exact_is_refused_where_it_does_not_hold_and_lanczos_agrees_where_it_does():
    with pytest.raises(MeasureError, match=r"'a.weight' cannot be measured exactly: Tanh comes after it"):
        _measured(Net(torch.tanh), method="exact")
    m = _measured(Net(), method="lanczos")
    assert m.methods == ["lanczos", "lanczos"]


def overwriting(a, b, x):
    hidden = torch.relu(x)
    out = a(hidden)
    hidden.mul_(3.0)
    return b(torch.relu(out) + hidden)


def test_an_input_overwritten_in_place_is_noticed():
    model = Net(run=overwriting).double()  # frozen in training, so that autograd permitted it
    with differentiable(model, ["a.weight"]):
        captured = capture(model, X, ["a.weight"], {"a.weight": "first"})
        assert captured.overwritten == {"a.weight"}
        torch.testing.assert_close(captured.layers["a.weight"].input, X.relu())
    ref = moved(model, 0.3)
    m = measure(model, ref, [(X, Y)])
    twin = Net(run=lambda a, b, x: b(a(x.relu()).relu() + 3 * x.relu())).double()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(m.quadratic, measure(twin, ref, [(X, Y)]).quadratic)


def test_layouts_are_told_apart_even_where_shapes_do_not():
    case = build("torch_encoder")
    # As many tokens as examples: the shapes alone allow several layouts.
    inputs = {"x": case.inputs["x"][:, :4], "mask": case.inputs["mask"][:, :4]}
    with differentiable(case.model, case.ref.layers()):
        found = find_layouts(case.model, inputs, case.ref.layers())
    assert found["encoder.self_attn.in_proj_weight"] == "second"
    assert found["encoder.self_attn.out_proj.weight"] == "columns"
    assert found["encoder.linear1.weight"] == "first"
    gpt2 = build("gpt2")
    with differentiable(gpt2.model, gpt2.ref.layers()):
        assert find_layouts(gpt2.model.eval(), gpt2.inputs, gpt2.ref.layers())[gpt2.ref.layers()[0]] == "rows"


def test_video_like_batches_of_frames_are_measured_per_example():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 2, groups=1), nn.Linear(3, 3)

        def forward(self, x):  # (B, M, 1, H, W): frames join the batch, example by example
            frames = torch.relu(self.conv(x.flatten(0, 1))).mean((2, 3))
            return self.head(frames.unflatten(0, (x.shape[0], -1)).amax(1))

    model = Frames().double()
    ref = moved(model, 0.3)
    x = torch.randn(4, 3, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    m = check(model, ref, [(x, Y[:4])], trace=True)
    for i, name in enumerate(m.names):
        trace = block_hessian(model, x, Y[:4], name).diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(m.trace[:, i], trace)
    assert all(m.exact)
