"""Weights cut over two processes (FSDP2 on the CPU) train as whole ones, and no process holds them all."""

import json
import sys

import pytest
import torch
from tests.runtime.test_distributed import NET, torchrun

import hesstune as ht
from hesstune.errors import ConfigError, LayerError
from hesstune.runtime.sharding import pair

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes are started as Linux does")

CASES = {
    "frobenius": {},
    "mars": {"norm": "mars", "grad_clip": 0.5, "select": "best"},
    "sgd": {"optimizer": "sgd", "accumulate": 2, "method": "constraint", "inject_noise": None},
    "head": {"train": "head"},
    "stem": {"model": "py:ranknets:Stemmed"},
}
COMMON = """
import json, sys, warnings
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
import hesstune as ht
from hesstune.curvature import CurvatureEngine
from hesstune.errors import LayerError
from hesstune.training import trainer
from hesstune.runtime.distributed import all_reduce_sum, rank, start_ranks, world

OPTIONS, CASES = json.loads(sys.argv[1]), json.loads(sys.argv[2])
"""

TRAIN = (
    COMMON
    + """
measured = []
BATCH = torch.linspace(-1, 1, 4 * 3 * 16 * 16).reshape(4, 3, 16, 16), torch.arange(4) % 2

def observe(trained):
    tensors = dict(trained.net.named_parameters())
    assert all(isinstance(t, DTensor) for t in tensors.values()), "not sharded"
    for name in trained.reference.layers():
        assert isinstance(trained.reference[name], DTensor), name
    own = sum(t.to_local().numel() for t in tensors.values())
    total = sum(t.numel() for t in tensors.values())
    assert own < 0.75 * total, (own, total)
    assert int(all_reduce_sum(torch.tensor(own))) == total
    measured.append(ht.measure(trained.net, trained.reference, [BATCH]).quadratic.tolist())
    assert all(isinstance(t, DTensor) for t in trained.net.parameters()), "not sharded again"
    try:
        CurvatureEngine.of(trained.net, trained.reference)
    except LayerError as error:
        assert "are sharded" in str(error)
    else:
        raise AssertionError("an engine of parts of weights")
    assert trained.net(BATCH[0]).isfinite().all()  # gathers its weights itself again

for name, more in CASES.items():
    ht.finetune({**OPTIONS, **more}, shard=True, out=f"sharded-{name}", observe=observe)
if rank() == 0:
    Path("measured.json").write_text(json.dumps(measured))
print(f"done {world()}", flush=True)
"""
)

RESUME = (
    COMMON
    + """
from hesstune.runtime.distributed import RankError

trainer.CHECKPOINT_SECONDS = 0

class Stopped(Exception):
    pass

whole_epoch = trainer.Trainer._whole_epoch

def stopping(self, epoch):
    if epoch == 2:
        raise Stopped
    whole_epoch(self, epoch)

ht.finetune(OPTIONS, shard=True, out="through")
trainer.Trainer._whole_epoch = stopping
try:
    ht.finetune(OPTIONS, shard=True, out="stopped")
except (Stopped, RankError):  # RankError if the other process was first
    pass
trainer.Trainer._whole_epoch = whole_epoch
files = sorted(Path("stopped").glob(f"checkpoint-*.{rank()}of2.safetensors"))
assert len(files) == 2, files
all_reduce_sum(torch.zeros(1))
if rank() == 1:  # its newest is cut short: both go on from the one before
    files[-1].write_bytes(files[-1].read_bytes()[:-20])
all_reduce_sum(torch.zeros(1))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ht.finetune(OPTIONS, shard=True, out="stopped", resume=True)
assert rank() or any("going on from" in str(w.message) for w in caught), caught
one, two = (ht.Run.load(name).model().state_dict() for name in ("through", "stopped"))
for name in one:
    assert torch.equal(one[name], two[name]), name
assert [m["epoch"] for m in ht.Run.load("stopped").metrics] == [1, 2, 3]
assert not list(Path("stopped").glob("checkpoint-*"))
print(f"done {world()}", flush=True)
"""
)


@pytest.fixture
def place(tmp_path, image_folder, monkeypatch):
    """A folder with the network's code, and the options of a run."""
    (tmp_path / "ranknets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path, {
        "data": f"folder:{image_folder}", "model": "py:ranknets:small", "method": "robust",
        "inject_noise": "symmetric:0.2", "image_size": 16, "epochs": 3, "batch_size": 5, "lr": 0.01,
        "head_init": "keep", "limit": 11, "radius": 0.05, "augment": "none",
    }  # fmt: skip


def in_two_processes(script, folder, options):
    (folder / "program.py").write_text(script)
    done = torchrun(json.dumps(options), json.dumps(CASES), cwd=folder, program=["program.py"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done 2") == 2


def test_two_processes_that_share_the_weights_train_as_one(place):
    folder, options = place
    in_two_processes(TRAIN, folder, options)
    measured = dict(zip(CASES, json.loads((folder / "measured.json").read_text()), strict=True))
    batch = torch.linspace(-1, 1, 4 * 3 * 16 * 16).reshape(4, 3, 16, 16), torch.arange(4) % 2
    for name, more in CASES.items():
        one = ht.finetune({**options, **more}, out=f"one-{name}")
        two = ht.Run.load(f"sharded-{name}")
        assert {p.name for p in one.path.iterdir()} == {p.name for p in two.path.iterdir()}
        assert two.reference().layers() == one.reference().layers()
        alone = ht.measure(two.model(), two.reference(), [batch]).quadratic
        assert alone.max() > 0
        torch.testing.assert_close(torch.tensor(measured[name]).double(), alone, rtol=1e-3, atol=1e-9)
        weights, start, first = two.model().state_dict(), two.reference(), one.reference()
        for key, tensor in one.model().state_dict().items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)
            assert torch.equal(start[key], first[key])
        for key in ("distance", "test_loss"):
            assert two.result[key] == pytest.approx(one.result[key], rel=1e-3)
        if name != "mars":  # the constraint binds, so its norms were those of whole layers
            assert max(two.result["distances"].values()) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.slow
def test_a_sharded_run_resumes_bit_for_bit_past_a_damaged_checkpoint(place):
    in_two_processes(RESUME, *place)


def test_one_process_or_another_method_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="several processes"):
        ht.finetune({**tiny, "shard": True}, out=str(tmp_path / "a"))
    with pytest.raises(ConfigError, match="'sam' cannot train sharded weights"):
        ht.finetune({**tiny, "shard": True}, method="sam", out=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_whole_reference_beside_a_sharded_weight_is_refused():
    class Part(torch.Tensor):
        def full_tensor(self):
            return self

    with pytest.raises(LayerError, match="after fully_shard"):
        pair(torch.ones(2).as_subclass(Part), torch.ones(2), "a.weight")
