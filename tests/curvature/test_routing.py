"""Networks whose calls depend on values (experts, early exits, branches) against the dense twin."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import build, check, moved
from torch import nn

from dense_hessians import block_hessian, block_jacobian, positive_form, positive_trace
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure
from hesstune.curvature.stability import noise_stability
from hesstune.errors import MeasureError
from hesstune.reference import Reference


class Experts(nn.Module):
    """A router sends every token, or every example, to one of three experts."""

    def __init__(self, level: str = "token", act=torch.relu, call_empty: bool = False) -> None:
        super().__init__()
        self.first, self.router, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.level, self.act, self.call_empty = level, act, call_empty

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.act(self.first(x))
        z = z.mean(1, keepdim=True) if self.level == "example" else z
        rows = z.flatten(0, 1)
        weight, choice = self.router(rows).softmax(-1).max(-1)
        out = rows
        for number, expert in enumerate(self.experts):
            places = (choice == number).nonzero().squeeze(1)
            if len(places) or self.call_empty:
                found = self.act(expert(rows[places])) * weight[places, None]
                out = out.index_add(0, places, found)
        return self.head(out.view(z.shape).mean(1))


class Marked(nn.Module):
    """Tokens whose first number is positive go through `rare`; the examples' order is that of the rows."""

    def __init__(self, act=torch.relu, how: str = "mask") -> None:
        super().__init__()
        self.first, self.rare, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.act, self.how = act, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.act(self.first(x)).flatten(0, 1)
        mark = (x[..., 0] > 0).flatten()
        if self.how == "list":
            places = [place for place, marked in enumerate(mark.tolist()) if marked]
            chosen = torch.stack([z[place] for place in places]) if places else z[:0]
            places = torch.tensor(places, dtype=torch.int64, device=z.device)
        else:
            places = mark.nonzero().squeeze(1)
            chosen = z[mark] if self.how == "mask" else z.index_select(0, places)
        if len(places):
            source = torch.arange(len(z), device=z.device)
            source[places] = len(z) + torch.arange(len(places), device=z.device)
            z = torch.cat([z, self.act(self.rare(chosen))])[source]
        return self.head(z.view_as(x).mean(1))


class Sorted(nn.Module):
    """As many rows in every batch, in the order of the tokens' first number."""

    def __init__(self, act=torch.relu) -> None:
        super().__init__()
        self.rows, self.head, self.act = nn.Linear(3, 3), nn.Linear(3, 3), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)
        order = tokens[:, 0].argsort()
        z = self.act(self.rows(tokens[order]))
        return self.head(torch.zeros_like(z).index_copy(0, order, z).view_as(x).mean(1))


class EarlyExit(nn.Module):
    """Examples that are not sure of their class go through a further layer, which is smooth."""

    def __init__(self, act=torch.relu) -> None:
        super().__init__()
        self.first, self.early, self.late = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.act(self.first(x.mean(1)))
        logits = self.early(z)
        unsure = x[:, 0, 0] < 0
        if unsure.any():
            later = self.early(F.gelu(self.late(z[unsure])))
            logits = logits.index_put((unsure,), later)
        return logits


class Loop(nn.Module):
    """Each example takes the layer of its own number, one at a time."""

    def __init__(self, act=torch.relu) -> None:
        super().__init__()
        self.own, self.head, self.act = nn.ModuleList(nn.Linear(3, 3) for _ in range(3)), nn.Linear(3, 3), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        numbers = [int(number) for number in x[:, 0, 0].abs().mul(2).clamp(max=2)]
        z = torch.cat([self.own[number](one[None]) for number, one in zip(numbers, x.mean(1), strict=True)])
        return self.head(self.act(z))


def batches_of(marks: list[list[int]], seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Make a batch for each list: examples of four tokens, the given number of which start positively."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for batch in marks:
        x = torch.randn(len(batch), 4, 3, generator=generator, dtype=torch.float64)
        for example, positive in zip(x, batch, strict=True):
            example[:, 0] = torch.where(torch.arange(4) < positive, 1.0, -1.0) * example[:, 0].abs()
        found.append((x, torch.randint(0, 3, (len(batch),), generator=generator)))
    return found


def made(model: nn.Module) -> tuple[nn.Module, Reference]:
    model = model.double().eval()
    return model, moved(model, 0.5)


def checked(model: nn.Module, ref: Reference, batches):
    """Measure all examples and a sample of them, and compare both with the dense twin."""
    check(model, ref, batches, examples="max", mean_sample=3)
    return check(model, ref, batches)


@pytest.mark.parametrize("call_empty", [False, True])
@pytest.mark.parametrize(("level", "act"), [("token", torch.relu), ("token", F.gelu), ("example", F.gelu)])
def test_experts_are_measured_as_the_dense_twin_says(level, act, call_empty):
    torch.manual_seed(3)
    model, ref = made(Experts(level, act, call_empty))
    found = checked(model, ref, batches_of([[2, 1, 3], [1, 4, 2]]))
    assert "exact" not in [found.methods[found.names.index(f"experts.{i}.weight")] for i in range(3)]


MARKS = {
    "rows that divide by the batch size, of other examples": [[2, 2, 2], [3, 1, 2]],
    "as many rows as examples": [[1, 1, 1], [3, 0, 0]],
    "all tokens, then as many rows as two examples have": [[4, 4, 4], [4, 0, 4]],
    "reached by the last batch only": [[0, 0, 0], [0, 0, 0], [0, 2, 1]],
    "not reached later on": [[1, 1, 1], [0, 0, 0]],
}


@pytest.mark.parametrize("act", [torch.relu, F.gelu])
@pytest.mark.parametrize("marks", MARKS)
def test_rows_that_look_like_those_of_the_examples(marks, act):
    torch.manual_seed(0)
    model, ref = made(Marked(act))
    checked(model, ref, batches_of(MARKS[marks]))
    # An engine that was planned on another batch:
    first, (x, y) = batches_of([MARKS[marks][0], MARKS[marks][-1]])
    engine = CurvatureEngine.of(model, ref, ["rare.weight"])
    engine.plan_on(first[0])
    u = block_jacobian(model, x, "rare.weight") @ ref.difference(model, "rare.weight").flatten()
    probabilities = model(x).softmax(1).detach()
    wanted = (probabilities * u.square()).sum(1) - (probabilities * u).sum(1).square()
    if "rare.weight" in engine.plan.by("exact", "lanczos"):
        torch.testing.assert_close(engine.gauss_newton((x, y))[:, 0], wanted, rtol=1e-6, atol=1e-12)
    traces = engine.trace((x, y), probes=8)
    wanted = positive_trace(block_hessian(model, x, y, "rare.weight"))
    assert bool(((traces.value[:, 0] - wanted).abs() <= 8 * traces.stderr[:, 0] + 1e-9).all())


@pytest.mark.parametrize("how", ["list", "index"])
def test_rows_that_are_chosen_by_lists_and_indices(how):
    torch.manual_seed(0)
    checked(*made(Marked(F.gelu, how)), batches_of([[2, 2, 2], [3, 1, 2]]))


@pytest.mark.parametrize("network", [Sorted, EarlyExit, Loop])
@pytest.mark.parametrize("act", [torch.relu, F.gelu])
def test_other_networks_whose_calls_depend_on_values(network, act):
    torch.manual_seed(0)
    model, ref = made(network(act))
    first = batches_of([[4, 4, 4], [4, 0, 4], [0, 0, 0]])
    x = first[0][0]
    x[..., 0] = x[..., 0].flatten().sort().values.view(3, 4)  # in order: the rows are those of the examples
    checked(model, ref, first)


def test_noise_stability_counts_the_rows_of_each_example():
    torch.manual_seed(0)
    model, _ = made(Marked())
    batches = batches_of([[2, 2, 2, 2], [3, 1, 2, 2]])
    found = noise_stability(model, batches, 0.1, samples=2, layers="rare.weight", probes=8)
    traces = [block_hessian(model, x, y, "rare.weight").diagonal(dim1=1, dim2=2).sum(1) for x, y in batches]
    assert abs(found.taylor - 0.005 * float(torch.cat(traces).mean())) < 5 * found.taylor_stderr + 1e-9


def test_a_layer_that_no_example_reaches_is_zero_and_unused():
    torch.manual_seed(0)
    model, ref = made(Marked())
    found = checked(model, ref, batches_of([[0, 0, 0, 0], [0, 0, 0, 0]]))
    column = found.names.index("rare.weight")
    assert (found.methods[column], found.exact[column]) == ("unused", True)
    assert not bool(found.quadratic[:, column].any())


def test_a_layer_that_a_later_batch_uses_otherwise_is_no_longer_called_exact():
    torch.manual_seed(0)
    model, ref = made(Marked())
    for marks in ([[2, 2, 2, 2], [3, 1, 2, 2]], [[0, 0, 0, 0], [1, 0, 0, 0]]):
        found = measure(model, ref, batches_of(marks), trace=True, spectrum=True)
        assert found.methods == ["exact", "weight_space", "exact"]
        assert found.exact == [True, False, True]
        with pytest.raises(MeasureError, match=r"rare\.weight"):
            measure(model, ref, batches_of(marks), method="exact")


def test_a_layer_that_another_entry_of_the_inputs_switches_on_is_measured():
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.side = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
            z = self.first(x)
            return z if extra is None else z + self.side(extra)

    torch.manual_seed(0)
    model, ref = made(Optional())
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = measure(model, ref, [({"x": x}, y), ({"x": x, "extra": x}, y)], steps=40, tol=1e-7)
    hessian = block_hessian(model, {"x": x, "extra": x}, y, "side.weight")
    column, v = found.names.index("side.weight"), ref.difference(model, "side.weight")
    assert not bool(found.quadratic[:4, column].any())
    torch.testing.assert_close(found.quadratic[4:, column], positive_form(hessian, v), rtol=1e-5, atol=1e-9)


class Conditional(nn.Module):
    """What is done with an example depends on the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.late, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x.mean(1)).relu()
        if (x[:, 0, 0] < 0).any():
            z = self.late(z).relu()
        return self.head(z)


@pytest.mark.parametrize("marks", [[[4, 0, 4, 4]], [[4, 4, 4, 4], [4, 4, 4, 0]]])
def test_a_branch_that_depends_on_the_other_examples_is_refused(marks):
    torch.manual_seed(0)
    model, ref = made(Conditional())
    for sample in (0, 2):
        with pytest.raises(MeasureError, match="influence each other"):
            measure(model, ref, batches_of(marks), examples="max", mean_sample=sample)


@pytest.mark.parametrize("name", ["cnn", "conv1d", "conv3d", "vit", "torch_encoder"])
def test_networks_whose_calls_do_not_depend_on_values_are_not_checked_batch_by_batch(name):
    case = build(name)
    assert not CurvatureEngine.of(case.model, case.ref).plan_on(case.inputs).depends_on_values
