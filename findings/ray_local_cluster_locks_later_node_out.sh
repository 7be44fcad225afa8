#!/usr/bin/env bash
# ray 2.60.0: after one local `ray.init()`, a second node on the same machine cannot join a new cluster.
#
# Behaviour: `ray.init()` without an address starts a local cluster with token authentication and writes a token into
# ~/.ray/auth_token. `ray start --head` finds that token later and asks for it. `ray start --address=HEAD`, of the same
# user on the same machine, does not send it and ends with an authentication error that says RAY_AUTH_MODE is
# "disabled". Without the local cluster before, the node joins. With RAY_AUTH_MODE=disabled for all of them it joins, too.
#
# Condition: RAY_AUTH_MODE is not set, and any script has called `ray.init()` once with this home folder.
#
# Output seen:
#   ray 2.60.0
#   before a local cluster: 2 nodes
#   after a local cluster: 1 node, authentication error True
#   after a local cluster, RAY_AUTH_MODE=disabled: 2 nodes
#
# The script exits with 0 as long as the behaviour is that, and with 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d /tmp/rayXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray[default]==${RAY_VERSION:-2.60.0}" psutil
cd "$folder"
HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import ray

RAY = str(Path(sys.executable).parent / "ray")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}


def start(words, log, environment):
    command = [RAY, "start", *words, "--num-cpus=1", "--block", "--object-store-memory=83886080", "--disable-usage-stats"]
    return subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=environment)


def end(process):
    try:
        own = psutil.Process(process.pid)
        for one in [*own.children(recursive=True), own]:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
    except psutil.NoSuchProcess:
        pass
    process.wait()


def joined(name, **more):
    """Return whether a second node stays in a new cluster, and what it printed."""
    environment = {**ENVIRONMENT, **more}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temp = Path.cwd() / name
    temp.mkdir()
    head = start(["--head", f"--port={port}", f"--temp-dir={temp}", "--include-dashboard=false"], temp / "head.txt", environment)
    try:
        until = time.monotonic() + 90
        while "Ray runtime started" not in (temp / "head.txt").read_text() and time.monotonic() < until:
            time.sleep(1)
        address = re.search(r"--address='([^']+)'", (temp / "head.txt").read_text())
        second = start([f"--address={address[1]}"], temp / "second.txt", environment)
        try:
            until = time.monotonic() + 90
            while time.monotonic() < until and second.poll() is None:
                if "Ray runtime started" in (temp / "second.txt").read_text():
                    return True, ""
                time.sleep(1)
        finally:
            end(second)
        return False, (temp / "second.txt").read_text()
    finally:
        end(head)


print("ray", ray.__version__)
before, _ = joined("a")
subprocess.run([sys.executable, "-c", "import ray; ray.init(num_cpus=1, include_dashboard=False)"], env=ENVIRONMENT, check=True, capture_output=True)
after, said = joined("b")
disabled, _ = joined("c", RAY_AUTH_MODE="disabled")
refused = "AuthenticationError" in said or "InvalidAuthToken" in said
print("before a local cluster:", "2 nodes" if before else "1 node")
print("after a local cluster:", f"{'2 nodes' if after else '1 node'}, authentication error {refused}")
print("after a local cluster, RAY_AUTH_MODE=disabled:", "2 nodes" if disabled else "1 node")
sys.exit(not (before and not after and refused and disabled))
PYTHON
