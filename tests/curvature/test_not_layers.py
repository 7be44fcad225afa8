"""Trained weight matrices that are not layers are named wherever they are left out."""

import json
import warnings

import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.cli.main import run as cli
from hesstune.curvature.result import Measure
from hesstune.errors import HesstuneWarning

K, N = 3, 6
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % K


class Experts(nn.Module):
    """A router and experts of three dimensions, as in Mixtral and gpt-oss, and a table of positions."""

    def __init__(self):
        super().__init__()
        self.router = nn.Parameter(torch.randn(2, 4))
        self.gate_up = nn.Parameter(0.5 * torch.randn(2, 5, 4))
        self.table = nn.Embedding(3, 4)
        self.flat = nn.Parameter(torch.randn(1, 4))
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, K)

    def forward(self, x):
        x = x + self.table(torch.zeros(len(x), dtype=torch.long, device=x.device)) + self.flat
        share = (x @ self.router.T).softmax(1)
        hidden = torch.einsum("ne,eoi,ni->no", share, self.gate_up, x)
        return self.head(self.norm(hidden))


def moved(model, but=()):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in but:
                p.add_(0.1 * torch.randn_like(p))
    return model


def test_the_measure_names_what_has_changed_and_keeps_it_in_its_file(tmp_path):
    model = Experts()
    ref = ht.Reference.of(model)
    assert ht.measure(model, ref, [(X, Y)]).not_layers == []
    moved(model, but=("router",))
    found = ht.measure(model, ref, [(X, Y)])
    assert found.names == ["head.weight"]
    assert found.not_layers == ["gate_up", "table.weight"]
    assert all(any(name in note for note in found.notes) for name in found.not_layers)
    assert "gate_up" in repr(found)
    found.save(tmp_path)
    assert Measure.load(tmp_path).not_layers == found.to_dict()["not_layers"] == found.not_layers


def test_distances_warn_of_what_has_changed_and_only_then():
    model = Experts()
    ref = ht.Reference.of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ref.distances(model) == {"head.weight": 0.0}
        moved(model, but=("router", "gate_up", "table.weight"))
        assert ref.distances(model)["head.weight"] > 0
    moved(model)
    with pytest.warns(HesstuneWarning, match=r"router.*gate_up.*table\.weight"):
        found = ref.distances(model)
    assert found == pytest.approx(ref.distances(model, warn=False))
    assert list(found) == ["head.weight"]
    assert ref.changed_others(model) == ["router", "gate_up", "table.weight"]


FACTORY = """
import torch
from torch import nn

class Mixed(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.mixer = nn.Parameter(torch.eye(12))
        self.head = nn.Linear(12, k)

    def forward(self, x):
        return self.head(torch.relu(self.pool(x) @ self.mixer))
"""


def test_the_command_names_them(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "mixednets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {**tiny, "model": "py:mixednets:Mixed", "train": "all", "method": "vanilla", "epochs": 1}
    run = ht.finetune({**options, "out": str(tmp_path / "mixed")})
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        cli(["measure", str(run.path)])
    assert "mixer not measured" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        cli(["measure", str(run.path), "--json", "--quiet"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["not_layers"] == ["mixer"]
