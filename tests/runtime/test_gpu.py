"""What only a GPU can show; skipped where there is none."""

import pytest
import torch

import hesstune as ht

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def test_a_run_on_the_gpu_is_that_of_the_cpu_to_rounding(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which keeps ten bits of a product
    chosen = {**tiny, "model": "py:tinynets:small", "augment": "none", "optimizer": "sgd", "epochs": 2}
    cpu, cuda = (ht.finetune(chosen, device=d, out=str(tmp_path / d), train="head") for d in ("cpu", "cuda"))
    weights = cuda.model().state_dict()
    for name, tensor in cpu.model().state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_bf16_on_the_gpu_trains_resumes_and_stays_in_its_balls(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)
    chosen = {**tiny, "device": "cuda", "mixed_precision": "bf16", "radius": 0.1, "checkpoint_minutes": 1e-9}

    class Stopped(Exception):
        pass

    def stop(done, total, text):
        if done > 0.6 * total:
            raise Stopped

    with pytest.raises(Stopped):
        ht.finetune(chosen, out=str(tmp_path / "a"), progress=stop)
    run = ht.finetune(chosen, out=str(tmp_path / "a"), resume=True)
    assert [m["epoch"] for m in run.metrics] == [1, 2, 3, 4]
    assert all(d <= 0.1 * (1 + 1e-5) for d in run.result["distances"].values())


def test_a_compiled_training_step_takes_the_constraint():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).cuda()
    ref = ht.Reference.of(net)
    constraint = ht.DistanceConstraint(net, ref, radius=0.05)
    loss = ht.ConsistentLoss(ht.NoiseMatrix.symmetric(3, 0.3)).cuda()
    compiled = torch.compile(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, y = torch.randn(32, 8, device="cuda"), torch.randint(0, 3, (32,), device="cuda")
    for _ in range(5):
        optimizer.zero_grad()
        loss(compiled(x), y).backward()
        optimizer.step()
        constraint.project_()
    assert all(d <= 0.05 * (1 + 1e-5) for d in ref.distances(net).values())
