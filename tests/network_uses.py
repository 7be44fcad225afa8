"""What hesstune computes of a small network, as numbers and names of layers, to compare with a twin."""

import torch
from torch.utils.data import TensorDataset

import hesstune as ht
from hesstune.bounds.kinds.holdout import Holdout
from hesstune.bounds.record import Network
from hesstune.bounds.sample import BoundOptions, Sample
from hesstune.curvature import CurvatureEngine

K, N = 3, 24
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(1)).double()
Y = torch.arange(N) % K


def batches():
    return [(X[:10], Y[:10]), (X[10:], Y[10:])]


def measured(model, ref):
    found = ht.measure(model, ref, batches())
    return found.quadratic, found.names


def traces(model, ref):
    engine = CurvatureEngine.of(model, ref)
    return engine.trace(batches()[0]).value, engine.names


def stability(model, ref):
    row = ht.noise_stability(model, batches(), 0.1, samples=2, probes=2)
    return torch.tensor([row.value, row.stderr, row.taylor]), list(row.layers)


def certified(model, ref):
    data, held_out = TensorDataset(X, Y), TensorDataset(X + 9, Y)
    options = {"draws": 12, "block_size": 6, "prior_scales": [0.5, 1.0], "diagnostic": True}
    found = ht.certify(model, ref, data, held_out=held_out, **options)
    sample = Sample.read(model, data, BoundOptions(diagnostic=True))
    beside = Holdout.evaluate(Network(model=model), None, sample)
    return torch.tensor([found.risk, found.empirical, beside.risk, beside.empirical]), list(found.sigma)


def distances(model, ref):
    found = ref.distances(model)
    return torch.tensor(list(found.values())), list(found)
