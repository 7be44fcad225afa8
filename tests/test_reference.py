import pytest
import torch
from torch import nn

from hesstune import Reference
from hesstune.errors import LayerError, RunError
from hesstune.reference import layer_names


def moved(model, by=0.5):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)
    return model


class Reordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def test_distances_are_frobenius_norms_of_weights_only():
    model = Reordered()
    ref = Reference.of(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    moved(model)
    expected = {
        n: float(torch.linalg.norm(dict(model.named_parameters())[n].detach() - before[n]))
        for n in ref.layers()
    }
    assert set(expected) == {"last.weight", "first.weight"}
    assert ref.distances(model) == pytest.approx(expected, rel=1e-6)


def test_layers_follow_the_forward_pass_where_inputs_are_given():
    model = Reordered()
    flags, state = model.training, torch.get_rng_state()
    assert Reference.of(model, torch.zeros(2, 3)).layers() == ["first.weight", "last.weight"]
    assert Reference.of(model).layers() == ["last.weight", "first.weight"]
    assert model.training is flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_multihead_attention_projections_are_layers():
    names = layer_names(nn.MultiheadAttention(4, 2))
    assert names == ["in_proj_weight", "out_proj.weight"]
    assert "q_proj_weight" in layer_names(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))


def test_tied_weights_are_one_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert layer_names(model) == ["0.weight"]
    ref = Reference.of(model)
    assert list(ref.distances(moved(model))) == ["0.weight"]


def test_transformers_conv1d_is_a_layer():
    utils = pytest.importorskip("transformers.pytorch_utils")
    assert layer_names(nn.Sequential(utils.Conv1D(2, 3))) == ["0.weight"]


def test_parametrized_weights_are_refused_by_name():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(LayerError, match=r"0\.weight.*remove_parametrizations"):
        Reference.of(model)


def test_mismatches_list_the_names():
    ref = Reference.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
    with pytest.raises(LayerError, match=r"missing in the model: 1\.weight, 1\.bias"):
        ref.distances(nn.Sequential(nn.Linear(2, 3)))
    with pytest.raises(LayerError, match=r"not in the reference: 2\.weight"):
        ref.distances(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2)))
    with pytest.raises(LayerError, match=r"'1\.weight' has shape \(5, 3\)"):
        ref.distances(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)))


def test_half_precision_distance_is_computed_in_float32():
    model = nn.Linear(64, 64, bias=False).to(torch.float16)
    ref = Reference.of(model)
    with torch.no_grad():
        model.weight.add_(300.0)  # squares overflow float16
    assert ref.distances(model)["weight"] == pytest.approx(300 * 64, rel=1e-2)


def test_saved_and_loaded_is_the_same(tmp_path):
    model = Reordered().to(memory_format=torch.preserve_format)
    ref = Reference.of(model)
    ref.save(tmp_path / "ref.safetensors")
    moved(model)
    loaded = Reference.load(tmp_path / "ref.safetensors")
    assert loaded.layers() == ref.layers()
    assert loaded.distances(model) == ref.distances(model)
    loaded.restore_(model)
    assert max(ref.distances(model).values()) == 0
    (tmp_path / "ref.safetensors").write_bytes(b"no reference")
    with pytest.raises(RunError, match="cannot be read as a reference"):
        Reference.load(tmp_path / "ref.safetensors")
