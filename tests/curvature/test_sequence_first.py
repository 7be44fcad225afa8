"""The place of the examples in a layer's tensors: found as the dense twin says, or refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from networks import check, moved
from torch import nn

from hesstune.curvature.batches import changed_example, differing_rows, with_shared_entries
from hesstune.curvature.capture import differentiable
from hesstune.curvature.layouts import find_layouts
from hesstune.curvature.measure import measure
from hesstune.errors import MeasureError

TOKENS = 4


def noise(*shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch_of(kind):
    """Make a batch of (B, T, D) inputs, in which all, some or no examples differ."""
    x = noise({"two": 2, "one": 1}.get(kind, 6), TOKENS, 3)
    if kind == "first_same":
        x[:4] = x[:1]
    elif kind == "one_token":
        x[:, 1:] = x[:1, 1:]
    elif kind == "all_same":
        x = x[:1].repeat(6, 1, 1)
    elif kind == "constant":
        x = torch.ones_like(x)
    return x


BATCHES = ("differ", "first_same", "one_token", "all_same", "constant", "two", "one")


class Net(nn.Module):
    """Two linear layers, and what a forward pass does with them and inputs (B, T, D)."""

    def __init__(self, run=None):
        super().__init__()
        self.a, self.b, self.run = nn.Linear(3, 4), nn.Linear(4, 3), run

    def forward(self, x):
        return self.run(lambda x: torch.tanh(self.a(x)), self.b, x)


def columns(a, b, x):
    tokens = x.transpose(0, 1)
    return b(a(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]).mean(0))


def windows(a, b, x):
    return b(a(x.unflatten(1, (-1, 2)).flatten(0, 1)).unflatten(0, (len(x), -1)).mean((1, 2)))


def middle_of_rows(a, b, x):
    parts = x.unflatten(1, (2, -1)).transpose(0, 1)
    return b(a(parts.flatten(0, 2)).unflatten(0, parts.shape[:3]).mean((0, 2)))


RUNS = {
    "sequence_first": lambda a, b, x: b(a(x.transpose(0, 1)).mean(0)),
    "rows": lambda a, b, x: b(a(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)),
    "columns": columns,
    "windows": windows,
    "third": lambda a, b, x: b(a(x.unflatten(1, (2, -1)).permute(1, 2, 0, 3)).mean((0, 1))),
    "middle": middle_of_rows,
    "backwards": lambda a, b, x: b(a(x.flip(0)).flip(0).mean(1)),
}


class Positions(Net):
    """A layer on as many positions as there are probe examples."""

    def __init__(self):
        super().__init__()
        self.places, self.position = nn.Parameter(torch.randn(TOKENS, 3)), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x + self.position(self.places))).mean(1))


class ClassToken(Net):
    def __init__(self):
        super().__init__()
        self.token, self.embed = nn.Parameter(torch.randn(1, 1, 3)), nn.Linear(3, 3)

    def forward(self, x):
        token = self.embed(self.token.expand(1, len(x), -1))
        return self.b(torch.tanh(self.a(torch.cat([token, x.transpose(0, 1)]))).mean(0))


class TorchAttention(Net):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        h = self.a(x.transpose(0, 1))
        return self.b(self.attention(h, h, h, need_weights=False)[0][0])


class Recurrent(Net):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(4, 4)

    def forward(self, x):
        return self.b(self.cell(self.a(x.transpose(0, 1)))[0][-1])


class TorchTransformer(Net):
    def __init__(self):
        super().__init__()
        self.whole = nn.Transformer(4, 2, 1, 1, 5)

    def forward(self, x):
        h = self.a(x.transpose(0, 1))
        return self.b(self.whole(h, h)[0])


class TwoLayouts(Net):
    def forward(self, x):
        once, again = self.a(x), self.a(x.transpose(0, 1)).transpose(0, 1)
        return self.b(torch.tanh(once + 2 * again).mean(1))


KINDS = {
    **{name: partial(Net, run) for name, run in RUNS.items()},
    "positions": Positions,
    "class_token": ClassToken,
    "attention": TorchAttention,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "transformer": TorchTransformer,
    "two_layouts": TwoLayouts,
}


def made(kind, scale=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind().double().eval()
    return model, moved(model, scale)


def checked(model, ref, batches, **options):
    """Compare with the dense twin; entries `mask` are shared by all examples."""
    labelled = [(x, torch.arange(size) % 3) for x, size in batches]
    twins = [(with_shared_entries(x, frozenset({"mask"})), y) for x, y in labelled]
    return check(model, ref, labelled, twins, **options)


# The dense twin of a whole transformer is slow.
PAIRS = [(kind, batch) for kind in KINDS for batch in ("first_same", "all_same") if kind != "transformer"]
PAIRS += [("transformer", "all_same")]
PAIRS += [(kind, batch) for kind in ("columns", "third") for batch in ("differ", "one_token", "constant")]
PAIRS += [(kind, batch) for kind in ("sequence_first", "positions", "backwards") for batch in ("two", "one")]


@pytest.mark.parametrize(("kind", "batch"), PAIRS)
def test_every_layout_and_batch_is_measured_as_the_dense_twin_says(kind, batch):
    x = batch_of(batch)
    model, ref = made(KINDS[kind])
    layers = ["a.weight", "b.weight", "*embed*", "*position*", "*in_proj*", "*out_proj*", "*linear1*"]
    layers = [p for p in layers if any(p.strip("*") in name for name in ref.layers())]
    found = checked(model, ref, [(x, len(x))], layers=layers)
    methods = dict(zip(found.names, found.methods, strict=True))
    if kind in ("third", "middle", "backwards") and len(x) > 1:
        assert methods["a.weight"] == "weight_space"
        assert "no dimension of its input is known to run over the examples" in found.reasons[0]
    elif kind != "two_layouts":
        assert methods["a.weight"] == "lanczos"  # the fast path
    if kind == "positions" and len(x) > 1:
        assert methods["position.weight"] == "weight_space"


def test_a_sequence_as_long_as_the_probe_is_not_the_batch():
    x = batch_of("all_same")
    for kind, layout in (
        ("sequence_first", "second"),
        ("rows", "rows"),
        ("columns", "columns"),
        ("third", None),
    ):
        model, ref = made(KINDS[kind])
        for tokens in (2, 4, 6):  # 3 and 4 examples are looked at
            with differentiable(model, ref.layers()):
                cut = torch.cat([x, x], 1)[:, :tokens]
                assert find_layouts(model, cut, ref.layers()) == {"a.weight": layout, "b.weight": "first"}


def test_the_layout_is_found_where_no_gradient_reaches_the_layer():
    """A head of zeros hides other layers from the logits; then changes of the inputs show the layout."""
    model, ref = made(KINDS["columns"])
    nn.init.zeros_(model.b.weight)
    with differentiable(model, ref.layers()):
        assert find_layouts(model, batch_of("differ"), ref.layers())["a.weight"] == "columns"
        assert find_layouts(model, batch_of("all_same"), ref.layers())["a.weight"] == "columns"
        same_tokens = torch.ones(6, TOKENS, 3, dtype=torch.float64)
        assert find_layouts(model, same_tokens, ref.layers())["a.weight"] == "columns"


def test_batches_of_other_sizes_follow():
    model, ref = made(KINDS["sequence_first"])
    checked(model, ref, [(noise(n, TOKENS, 3), n) for n in (1, 6, 4, 1)])
    checked(model, ref, [(noise(6, t, 3), 6) for t in (4, 1, 6)])


class Squeezed(Net):
    """Loses the batch dimension of a batch of one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(TOKENS, 3, 1)

    def forward(self, x):
        x = self.conv(x[0])[None] if len(x) == 1 else self.conv(x)
        return self.b(torch.tanh(self.a(x.mean(1).squeeze()))).reshape(-1, 3)


@pytest.mark.parametrize("sample", [0, 2])
def test_batches_of_one_are_measured_whatever_the_network_does_with_them(sample):
    model, ref = made(Squeezed)
    batches = [noise(5, TOKENS, 3), noise(1, TOKENS, 3)]
    found = checked(model, ref, [(x, len(x)) for x in batches], examples="max", mean_sample=sample)
    assert found.methods[found.names.index("conv.weight")] == "lanczos"
    checked(model, ref, [(batches[1], 1)], examples="max", mean_sample=sample)


# -- what is refused ------------------------------------------------------------------------------


def influenced(a, b, x):
    hidden = a(x).mean(1)
    return b(hidden - 0.3 * hidden.mean(0))


@pytest.mark.parametrize("batch", BATCHES[:-1])
def test_influence_between_examples_is_seen_among_equal_ones(batch):
    model, ref = made(partial(Net, influenced))
    x = batch_of(batch)
    with pytest.raises(MeasureError, match="the examples of a batch influence each other"):
        measure(model, ref, [(x, torch.arange(len(x)) % 3)])


@pytest.mark.parametrize("size", [3, 4, 8])
def test_inputs_that_are_sequence_first_are_refused(size):
    model, ref = made(partial(Net, lambda a, b, x: b(a(x).mean(0))))
    for x in (noise(size, size, 3), noise(size, 1, 3).repeat(1, size, 1)):
        with pytest.raises(MeasureError, match=r"rows of logits .* batch first"):
            measure(model, ref, [(x, torch.arange(size) % 3)])


class TokensAndPositions(Positions):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 3)

    def forward(self, ids):
        return super().forward(self.words(ids))


def test_a_batch_that_tells_nothing_is_refused_only_where_it_matters():
    model, ref = made(TokensAndPositions)
    ids = torch.full((5, TOKENS), 7)
    with pytest.raises(MeasureError, match=r"all the same.* at position.weight"):
        measure(model, ref, [(ids, torch.arange(5) % 3)])
    checked(model, ref, [(ids, 5)], layers=["a.weight", "b.weight"])
    checked(model, ref, [(torch.arange(TOKENS).repeat(5, 1), 5)])


class Masked(Net):
    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)

    def forward(self, x, mask):
        h = self.twice(torch.tanh(self.twice(self.a(x))))
        weights = (h @ h.transpose(1, 2)).masked_fill(mask == 0, -1e9).softmax(-1)
        return self.b((weights @ h).mean(1))


@pytest.mark.parametrize(("tokens", "sample"), [(4, 0), (8, 2)])
def test_a_mask_of_all_examples_is_not_cut_where_a_part_has_as_many(tokens, sample):
    """Eight examples share a graph, four are probed: then (8, 8) or (4, 4) look like one row an example."""
    model, ref = made(Masked, 0.3)
    mask = torch.ones(tokens, tokens, dtype=torch.long).tril()
    batches = [({"x": noise(size, tokens, 3), "mask": mask}, size) for size in (12, tokens)]
    checked(model, ref, batches, examples="max", mean_sample=sample)


def test_a_mask_that_looks_like_one_row_an_example_is_refused():
    model, ref = made(Masked)
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.long).tril()
    with pytest.raises(MeasureError, match="leading dimension of 1"):
        measure(model, ref, [({"x": noise(TOKENS, TOKENS, 3), "mask": mask}, torch.arange(TOKENS) % 3)])
    checked(model, ref, [({"x": noise(TOKENS, TOKENS, 3), "mask": mask[None]}, TOKENS)])


def test_examples_that_differ_are_looked_at_first():
    x = batch_of("first_same")
    assert differing_rows(x, 4).tolist() == [0, 4, 5, 1]
    assert differing_rows(batch_of("all_same"), 3).tolist() == [0, 1, 2]
    for batch in ("first_same", "all_same", "constant"):
        before = batch_of(batch)
        for row in range(3):
            after = changed_example(before, row)
            rows = (after != before).flatten(1).any(1)
            assert rows.tolist() == [r == row for r in range(6)]
    assert changed_example({"ids": torch.full((3, 4), 7), "scale": 2.0}, 0) is None
