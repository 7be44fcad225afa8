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


class Halves(torch.nn.Module):
    """Two layers on two devices: its logits are not where its first weight is."""

    def __init__(self, smooth: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)
        self.act = torch.nn.GELU() if smooth else torch.nn.ReLU()

    def forward(self, x):
        return self.second(self.act(self.first(x)).to(self.second.weight.device))


def moved_a_little(model):
    reference = ht.Reference.of(model)
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            shift = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place))
            parameter.add_(0.2 * shift.to(parameter.device))
    return reference


def same_measure(found, plain):
    assert (found.names, found.methods) == (plain.names, plain.methods)
    for name in ("quadratic", "losses", "distances", "trace", "spectrum"):
        expected = getattr(plain, name)
        if expected is not None:
            torch.testing.assert_close(getattr(found, name), expected, rtol=1e-3, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    "options", [{"trace": True}, {"trace": True, "spectrum": True}, {"method": "lanczos"}]
)
@pytest.mark.parametrize("places", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_network_on_two_devices_is_measured_as_on_one(smooth, options, places):
    plain, split = Halves(smooth).double(), Halves(smooth).double()
    reference = moved_a_little(plain)
    split.first.to(places[0])
    split.second.to(places[1])
    apart = moved_a_little(split)
    batch = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % 4
    same_measure(
        ht.measure(split, apart, [batch], **options), ht.measure(plain, reference, [batch], **options)
    )


def test_a_network_laid_out_over_two_devices_by_accelerate_is_measured_as_on_one():
    accelerate = pytest.importorskip("accelerate")
    plain, split = Halves().double(), Halves().double()
    reference = moved_a_little(plain)
    split = accelerate.dispatch_model(
        split, {"first": 0, "act": 0, "second": "cpu"}, main_device=0, force_hooks=True
    )
    apart = moved_a_little(split)
    batch = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % 4
    same_measure(ht.measure(split, apart, [batch]), ht.measure(plain, reference, [batch]))


def test_a_network_sharded_on_the_gpu_is_measured_as_a_whole_one(tmp_path):
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    plain, cut = Halves().double().cuda(), Halves().double().cuda()
    reference = moved_a_little(plain)
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cuda", (1,))
        fully_shard(cut.first, mesh=mesh)
        fully_shard(cut, mesh=mesh)
        apart = ht.Reference.of(cut)
        with torch.no_grad():
            for mine, other in zip(cut.parameters(), plain.parameters(), strict=True):
                mine.to_local().copy_(other)
        batch = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % 4
        same_measure(ht.measure(cut, apart, [batch]), ht.measure(plain, reference, [batch]))
    finally:
        distributed.destroy_process_group()
