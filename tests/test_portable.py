"""Nothing here needs a POSIX system: what Windows lacks may be missing."""

import ast
import subprocess
import sys
from pathlib import Path

import hesstune

# Modules of the standard library that Windows does not have.
POSIX_ONLY = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
# What `os` and `signal` lack there. (`sched_getaffinity`, too: it is asked for by `hasattr`.)
ABSENT = {
    "os": "WNOHANG chown chroot fchmod fork forkpty getegid geteuid getgid getloadavg getpgid getuid killpg "
    "mkfifo nice setsid statvfs sync sysconf uname wait",
    "signal": "SIGALRM SIGCHLD SIGHUP SIGKILL SIGUSR1 SIGUSR2 alarm pause setitimer",
}

IMPORT_ALL = """
import importlib, pkgutil, sys
import hesstune

sys.modules.update(dict.fromkeys({missing!r}))
names = ["hesstune"]
for found in pkgutil.walk_packages(hesstune.__path__, "hesstune."):
    if not found.name.endswith("__main__"):
        names.append(found.name)
needed = []
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if error.name in {missing!r}:
            needed.append((name, error.name))
print(len(names), needed)
"""


def test_every_module_imports_without_what_only_posix_has():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL.format(missing=POSIX_ONLY)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, needed = done.stdout.strip().split(maxsplit=1)
    assert int(count) > 100
    assert needed == "[]"


def test_no_call_that_only_posix_has():
    found = []
    for path in sorted(Path(hesstune.__file__).parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: {place}" for place in ("/proc/", "/dev/", '"/tmp') if place in text]
        found += [
            f"{path.name}:{node.lineno}: {node.value.id}.{node.attr}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.attr in ABSENT.get(node.value.id, "").split()
        ]
    assert not found
