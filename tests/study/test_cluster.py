"""A comparison on a real Ray cluster of two nodes, one of which is lost on the way."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import hesstune as ht
from hesstune.errors import MissingExtraError

FEW = {"data": "digits", "train": "head", "limit": 64, "epochs": 1, "inject_noise": "symmetric:0.4"}


def test_an_unknown_engine_and_a_missing_ray_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ht.HesstuneError, match="ray"):
        ht.compare(FEW, seeds=1, out=str(tmp_path / "a"), engine="rays")
    assert not (tmp_path / "a").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[ray\]"):
        ht.compare(FEW, seeds=1, out=str(tmp_path / "a"), engine="ray")


class Node:
    """A Ray node in a process group of its own."""

    def __init__(self, *words, temp):
        command = [str(Path(sys.executable).parent / "ray"), "start", *words, "--num-cpus", "1", "--block",
                   "--object-store-memory", str(80 * 2**20), "--disable-usage-stats"]  # fmt: skip
        self.log = (temp / f"{time.monotonic()}.txt").open("w")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

    def kill(self):
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            for process in [*parent.children(recursive=True), parent]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
        self.log.close()


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster():
    """A head node and another one, a core each; gives the address and the second node."""
    pytest.importorskip("ray", reason="Ray is not installed")
    # Sockets' paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as name:
        temp, port = Path(name), free_port()
        nodes = [Node("--head", "--port", str(port), "--node-ip-address", "127.0.0.1", "--temp-dir", name,
                      "--include-dashboard=false", temp=temp)]  # fmt: skip
        try:
            address = f"127.0.0.1:{port}"
            nodes.append(Node("--address", address, temp=temp))
            yield address, nodes[1]
        finally:
            for node in reversed(nodes):
                node.kill()


def alive(address):
    """The number of nodes that the cluster counts."""
    code = (
        "import logging, sys, ray\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)\n"
        "print(sum(n['Alive'] for n in ray.nodes()))"
    )
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.split() else 0


@pytest.mark.slow
def test_a_study_on_two_nodes_finishes_though_one_is_lost(cluster, tmp_path):
    address, second = cluster
    deadline = time.monotonic() + 180
    while alive(address) < 2:
        assert time.monotonic() < deadline, "the cluster did not start"
        time.sleep(1)
    out = tmp_path / "cmp"
    words = ["compare", "--data", "digits", "--train", "head", "--limit", "64", "--epochs", "2",
             "--inject-noise", "symmetric:0.4", "--methods", "vanilla,robust", "--seeds", "6",
             "--out", str(out), "--engine", "ray", "--json", "--quiet"]  # fmt: skip
    study = subprocess.Popen(
        [sys.executable, "-m", "hesstune", *words], env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not list(out.glob("cells/**/cell.json")):
            assert study.poll() is None, study.stderr.read()
            assert time.monotonic() < deadline, "no cell has finished"
            time.sleep(0.1)
        done = len(list(out.glob("cells/**/cell.json")))
        second.kill()
        assert done < 12, "the study had ended before the node was lost"
        said, errors = study.communicate(timeout=600)
    finally:
        study.kill()
    assert study.returncode == 0, errors
    found = json.loads(said.splitlines()[-1])
    assert [c["status"] for c in found["cells"]] == ["done"] * 12
    # The same numbers as on this machine alone.
    here = ht.compare(
        {**FEW, "epochs": 2}, methods=["vanilla", "robust"], seeds=1, out=str(tmp_path / "here"), jobs=1
    )
    there = {(c["method"], c["seed"]): c["metrics"]["test_accuracy"] for c in found["cells"]}
    for cell in here.results["cells"]:
        assert there[cell["method"], cell["seed"]] == pytest.approx(
            cell["metrics"]["test_accuracy"], abs=0.02
        )
