"""Where the examples are in a layer's tensors is told by dependence: right as the dense twin, or refused."""

from __future__ import annotations

import pytest
import torch
from networks import moved
from torch import nn

from dense_hessians import block_hessian, positive_form
from hesstune.curvature.batches import changed_example, differing_rows, with_shared_entries
from hesstune.curvature.capture import differentiable
from hesstune.curvature.layouts import find_layouts
from hesstune.curvature.measure import measure
from hesstune.errors import MeasureError

TOKENS = 4


def noise(*shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def first_are_the_same():
    x = noise(6, TOKENS, 3)
    x[:4] = x[:1]
    return x


def only_the_first_token_differs():
    x = noise(6, TOKENS, 3)
    x[:, 1:] = x[:1, 1:]
    return x


BATCHES = {
    "differ": lambda: noise(6, TOKENS, 3),
    "first_same": first_are_the_same,
    "one_token": only_the_first_token_differs,
    "all_same": lambda: noise(1, TOKENS, 3).repeat(6, 1, 1),
    "constant": lambda: torch.ones(6, TOKENS, 3, dtype=torch.float64),
    "two": lambda: noise(2, TOKENS, 3),
    "one": lambda: noise(1, TOKENS, 3),
}


class Net(nn.Module):
    """Two linear layers around whatever a subclass does with (B, T, D)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)


class SequenceFirst(Net):
    def forward(self, x):
        return self.b(torch.tanh(self.a(x.transpose(0, 1))).mean(0))


class Rows(Net):
    def forward(self, x):
        return self.b(torch.tanh(self.a(x.flatten(0, 1))).unflatten(0, x.shape[:2]).mean(1))


class Columns(Net):
    def forward(self, x):
        tokens = x.transpose(0, 1)
        return self.b(torch.tanh(self.a(tokens.flatten(0, 1))).unflatten(0, tokens.shape[:2]).mean(0))


class Windows(Net):
    def forward(self, x):
        windows = x.unflatten(1, (-1, 2)).flatten(0, 1)
        return self.b(torch.tanh(self.a(windows)).unflatten(0, (len(x), -1)).mean((1, 2)))


class Third(Net):
    def forward(self, x):
        return self.b(torch.tanh(self.a(x.unflatten(1, (2, -1)).permute(1, 2, 0, 3))).mean((0, 1)))


class MiddleOfRows(Net):
    def forward(self, x):
        parts = x.unflatten(1, (2, -1)).transpose(0, 1)
        return self.b(torch.tanh(self.a(parts.flatten(0, 2))).unflatten(0, parts.shape[:3]).mean((0, 2)))


class Backwards(Net):
    def forward(self, x):
        return self.b(torch.tanh(self.a(x.flip(0))).flip(0).mean(1))


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
    "sequence_first": SequenceFirst,
    "rows": Rows,
    "columns": Columns,
    "windows": Windows,
    "third": Third,
    "middle": MiddleOfRows,
    "backwards": Backwards,
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


def check(model, ref, batches, **options):
    """Measure, and compare the measured entries with the dense twin."""
    labelled = [(x, torch.arange(size) % 3) for x, size in batches]
    twins = [(with_shared_entries(x, frozenset({"mask"})), y) for x, y in labelled]
    found = measure(model, ref, labelled, tol=1e-7, steps=40, **options)
    for i, name in enumerate(found.names):
        v = ref.difference(model, name)
        dense = torch.cat([positive_form(block_hessian(model, x, y, name), v) for x, y in twins])
        refined = found.refined[:, i]
        torch.testing.assert_close(
            found.quadratic[refined, i],
            dense[refined],
            rtol=1e-5,
            atol=1e-9,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    return found


# The dense twin of a whole transformer is slow: on the batch that tells least.
PAIRS = [(kind, batch) for kind in KINDS for batch in BATCHES if kind != "transformer" or batch == "all_same"]


@pytest.mark.parametrize(("kind", "batch"), PAIRS)
def test_every_layout_and_batch_is_measured_as_the_dense_twin_says(kind, batch):
    x = BATCHES[batch]()
    model, ref = made(KINDS[kind])
    layers = ["a.weight", "b.weight", "*embed*", "*position*", "*in_proj*", "*out_proj*", "*linear1*"]
    layers = [p for p in layers if any(p.strip("*") in name for name in ref.layers())]
    found = check(model, ref, [(x, len(x))], layers=layers)
    methods = dict(zip(found.names, found.methods, strict=True))
    if kind in ("third", "middle", "backwards") and len(x) > 1:
        assert methods["a.weight"] == "weight_space"
        assert "no dimension of its input is known to run over the examples" in found.reasons[0]
    elif kind != "two_layouts":
        assert methods["a.weight"] == "lanczos"  # the fast path
    if kind == "positions" and len(x) > 1:
        assert methods["position.weight"] == "weight_space"


def test_a_sequence_as_long_as_the_probe_is_not_the_batch():
    x = BATCHES["all_same"]()
    for kind, layout in ((SequenceFirst, "second"), (Rows, "rows"), (Columns, "columns"), (Third, None)):
        model, ref = made(kind)
        for tokens in (2, 4, 6):  # 3 and 4 examples are looked at
            with differentiable(model, ref.layers()):
                cut = torch.cat([x, x], 1)[:, :tokens]
                assert find_layouts(model, cut, ref.layers()) == {"a.weight": layout, "b.weight": "first"}


def test_the_layout_is_found_where_no_gradient_reaches_the_layer():
    """A head of zeros hides the rest from the logits; then changes of the inputs tell."""
    model, ref = made(Columns)
    nn.init.zeros_(model.b.weight)
    with differentiable(model, ref.layers()):
        assert find_layouts(model, BATCHES["differ"](), ref.layers())["a.weight"] == "columns"
        assert find_layouts(model, BATCHES["all_same"](), ref.layers())["a.weight"] == "columns"
        same_tokens = torch.ones(6, TOKENS, 3, dtype=torch.float64)
        assert find_layouts(model, same_tokens, ref.layers())["a.weight"] == "columns"


def test_batches_of_other_sizes_follow():
    model, ref = made(SequenceFirst)
    check(model, ref, [(noise(n, TOKENS, 3), n) for n in (1, 6, 4, 1)])
    check(model, ref, [(noise(6, t, 3), 6) for t in (4, 1, 6)])


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
    found = check(model, ref, [(x, len(x)) for x in batches], examples="max", mean_sample=sample)
    assert found.methods[found.names.index("conv.weight")] == "lanczos"
    check(model, ref, [(batches[1], 1)], examples="max", mean_sample=sample)


# -- what is refused ------------------------------------------------------------------------------


class Influenced(Net):
    def forward(self, x):
        hidden = torch.tanh(self.a(x)).mean(1)
        return self.b(hidden - 0.3 * hidden.mean(0))


@pytest.mark.parametrize("batch", [b for b in BATCHES if b != "one"])
def test_influence_between_examples_is_seen_among_equal_ones(batch):
    model, ref = made(Influenced)
    x = BATCHES[batch]()
    with pytest.raises(MeasureError, match="the examples of a batch influence each other"):
        measure(model, ref, [(x, torch.arange(len(x)) % 3)])


class SequenceFirstInputs(Net):
    def forward(self, x):
        return self.b(torch.tanh(self.a(x)).mean(0))


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_inputs_that_are_sequence_first_are_refused(size):
    model, ref = made(SequenceFirstInputs)
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
    check(model, ref, [(ids, 5)], layers=["a.weight", "b.weight"])
    check(model, ref, [(torch.arange(TOKENS).repeat(5, 1), 5)])


class Masked(Net):
    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)

    def forward(self, x, mask):
        h = self.twice(torch.tanh(self.twice(self.a(x))))
        weights = (h @ h.transpose(1, 2)).masked_fill(mask == 0, -1e9).softmax(-1)
        return self.b((weights @ h).mean(1))


@pytest.mark.parametrize("sample", [0, 2])
@pytest.mark.parametrize("tokens", [4, 8])
def test_a_mask_of_all_examples_is_not_cut_where_a_part_has_as_many(tokens, sample):
    """Eight examples share a graph, four are probed: then (8, 8) or (4, 4) look like one row an example."""
    model, ref = made(Masked, 0.3)
    mask = torch.ones(tokens, tokens, dtype=torch.long).tril()
    batches = [({"x": noise(size, tokens, 3), "mask": mask}, size) for size in (12, tokens)]
    check(model, ref, batches, examples="max", mean_sample=sample)


def test_a_mask_that_looks_like_one_row_an_example_is_refused():
    model, ref = made(Masked)
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.long).tril()
    with pytest.raises(MeasureError, match="leading dimension of 1"):
        measure(model, ref, [({"x": noise(TOKENS, TOKENS, 3), "mask": mask}, torch.arange(TOKENS) % 3)])
    check(model, ref, [({"x": noise(TOKENS, TOKENS, 3), "mask": mask[None]}, TOKENS)])


def test_examples_that_differ_are_looked_at_first():
    x = first_are_the_same()
    assert differing_rows(x, 4).tolist() == [0, 4, 5, 1]
    assert differing_rows(BATCHES["all_same"](), 3).tolist() == [0, 1, 2]
    for batch in ("first_same", "all_same", "constant"):
        before = BATCHES[batch]()
        for row in range(3):
            after = changed_example(before, row)
            rows = (after != before).flatten(1).any(1)
            assert rows.tolist() == [r == row for r in range(6)]
    assert changed_example({"ids": torch.full((3, 4), 7), "scale": 2.0}, 0) is None
