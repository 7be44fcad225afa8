"""An error on one of two processes ends both, with its message and the exit code of the command line."""

import json
import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes are started as Linux does")

BLOCK = """
import json, sys
import torch
from hesstune.errors import DataError
from hesstune.runtime.distributed import all_reduce_sum, joined_ranks, on_main_process, rank, start_ranks

where, who, kind, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

def fail():
    raise {"value": ValueError("boom"), "data": DataError("boom"), "interrupt": KeyboardInterrupt(),
           "exit": SystemExit(7)}[kind]

try:
    with joined_ranks(), joined_ranks():
        all_reduce_sum(torch.ones(2))
        if where == "main":
            on_main_process(fail)
        elif where == "alike":
            fail()
        elif rank() == who:
            fail()
        all_reduce_sum(torch.ones(2))
except BaseException as error:
    alive = None
    if where == "alike":  # the connections are as they were
        alive = float(all_reduce_sum(torch.ones(1)))
    json.dump([type(error).__name__, str(error), alive], open(f"{out}-{sys.argv[5]}", "w"))
    raise SystemExit(0)
"""

COMMAND = """
import sys
from hesstune.cli.main import run

run(sys.argv[1:])
"""

NETS = """
import os
from torch import nn
from hesstune.errors import ModelError

class Failing(nn.Module):
    "Fails in training, on the second process alone."

    def __init__(self, k):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(),
                                    nn.Linear(8, k))

    def forward(self, x):
        if self.training and os.environ["RANK"] == "1":
            raise {"value": ValueError, "model": ModelError}[os.environ["KIND"]]("boom in a layer")
        return self.layers(x)
"""


def two(tmp_path, program, words, **more):
    """Run a program as two processes that nothing else ends; return their (stderr, exit code)."""
    (tmp_path / "program.py").write_text(program)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in (0, 1):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "2", **more,
                       "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": port}  # fmt: skip
        command = [sys.executable, str(tmp_path / "program.py"), *(w.format(rank=rank) for w in words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes))
    try:
        return [(p.communicate(timeout=100)[1], p.returncode) for p in started]
    finally:
        for process in started:
            process.kill()


# What the failing process raises, and the other one.
RAISED = {
    "value": (["ValueError", "boom"], ["RankError", "process {who} ended with ValueError: boom"]),
    "data": (["DataError", "boom"], ["RunError", "boom"]),
    "interrupt": (["KeyboardInterrupt", ""], ["KeyboardInterrupt", ""]),
    "exit": (["SystemExit", "7"], ["SystemExit", "7"]),
}
CASES = [("main", 0, "value"), ("block", 1, "value")]
SLOW = [("main", 0, "data"), ("main", 0, "interrupt"), ("main", 0, "exit"), ("block", 1, "data"),
        ("block", 0, "interrupt"), ("block", 1, "exit"), ("alike", 0, "data")]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "who", "kind"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_an_error_on_one_process_is_raised_on_both(tmp_path, where, who, kind):
    found = two(tmp_path, BLOCK, [where, str(who), kind, str(tmp_path / "out"), "{rank}"])
    assert [code for _, code in found] == [0, 0], found
    raised = [json.loads((tmp_path / f"out-{rank}").read_text()) for rank in (0, 1)]
    if where == "alike":  # the same error on all processes leaves them connected
        assert raised == [["DataError", "boom", 2.0]] * 2
        return
    assert raised[who][:2] == RAISED[kind][0]
    assert raised[1 - who][:2] == [text.format(who=who) for text in RAISED[kind][1]]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [("model", 2), ("value", 1)])
def test_the_command_line_ends_with_the_message_and_code(tmp_path, image_folder, kind, code):
    (tmp_path / "failing.py").write_text(NETS)
    words = ["finetune", "--model", "py:failing:Failing", "--quiet",
             "--data", f"folder:{image_folder}", "--image-size", "16", "--epochs", "1", "--limit", "8",
             "--method", "vanilla", "--out", str(tmp_path / "run")]  # fmt: skip
    found = two(tmp_path, COMMAND, words, KIND=kind)
    assert [exit_code for _, exit_code in found] == [code, code], found
    assert "boom in a layer" in found[0][0]  # the first process speaks
    if kind == "model":
        assert found[0][0].strip().splitlines()[-1] == "hesstune: boom in a layer"
