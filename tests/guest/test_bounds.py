"""Control groups, version 2, for real: not every host delegates them, so a guest's kernel has
them here, and this host's Python bounds a process there.

It runs as a user to whom a group was delegated, as systemd does for each of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from guestctl import Guest, Pool
from guestctl.image import Image
from guestctl.places import Places

ROOT = Path(__file__).parent.parent.parent

# What root does on a host that delegates: to whoever owns the share, which is not root.
DELEGATE = """
set -e
mkdir -p /tmp/groups
mount -t cgroup2 none /tmp/groups
echo "+memory +pids" >/tmp/groups/cgroup.subtree_control
mkdir -p /tmp/groups/user/session
user=$(stat -c %u /work)
chown $user /tmp/groups/user /tmp/groups/user/cgroup.procs /tmp/groups/user/cgroup.subtree_control
echo "+memory +pids" >/tmp/groups/user/cgroup.subtree_control
echo $$ >/tmp/groups/user/session/cgroup.procs
exec setpriv --reuid $user --regid $user --clear-groups -- "$@"
"""

# What a supervisor does there, and what becomes of a process that takes too much.
BOUND = """
import json, os, signal, subprocess, sys, time
from guestctl.qemu import bounds

def held(what):
    return (group.folder / what).read_text().split()

bounds._MEMORY = 48
child = subprocess.Popen(
    [*sys.argv[2:], "-c", sys.argv[1]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
group = bounds.group_for([child.pid], "p-g0", 16)
assert group is not None, bounds.delegated()
told = {what: held(what)[0] for what in ("memory.max", "pids.max", "cgroup.procs")}
child.stdin.write("go\\n")
child.stdin.close()
forks = int(child.stdout.readline())
events = dict(line.split() for line in (group.folder / "memory.events").read_text().splitlines())
facts = {
    "folder": str(group.folder), "told": told, "child": child.pid, "forks": forks,
    "current": int(held("memory.current")[0]), "met": int(events["max"]),
}
(group.folder / "cgroup.kill").write_text("1")
child.wait()
group.remove()
facts["left"] = os.listdir(group.folder.parent) if group.folder.exists() else []
print(json.dumps(facts))
"""

# Wants more processes than it may have, and more memory, the rest of which goes to the swap.
GREEDY = """
import os, signal, sys, time
sys.stdin.readline()
forks = 0
try:
    while forks < 1000:
        if os.fork() == 0:
            signal.pause()
        forks += 1
except BlockingIOError:
    taken = [bytearray(b"x" * (1 << 20)) for _ in range(96)]
    print(forks, flush=True)
signal.pause()
"""


def python(share: Path) -> list[str]:
    """Puts this host's Python into a share, with all that it needs; returns its command there."""
    (share / "lib").mkdir()
    program = Path(sys.executable).resolve()
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    extensions = [str(path) for path in (stdlib / "lib-dynload").glob("resource.*")]
    shutil.copy(program, share / "python")
    told = subprocess.run(
        ["ldd", str(program), *extensions], capture_output=True, text=True, check=True
    ).stdout
    loader = ""
    for word in told.split():
        if word.startswith("/") and not word.endswith(":"):
            shutil.copy(word, share / "lib")
            loader = Path(word).name if "ld-linux" in word else loader
    shutil.copytree(
        stdlib,
        share / "stdlib",
        ignore=shutil.ignore_patterns("test", "__pycache__", "*-packages", "idlelib", "config-*"),
    )
    for name in ("__init__.py", "version.py", "qemu/__init__.py", "qemu/bounds.py"):
        (share / "packages" / "guestctl" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "guestctl" / name, share / "packages" / "guestctl" / name)
    command = [f"/work/lib/{loader}", "--library-path", "/work/lib", "/work/python"]
    return [*command, "-S"]


def bounded(guest: Guest) -> dict[str, object]:
    share = guest.work.path
    command = python(share)
    (share / "bound.py").write_text(BOUND)
    with guest.mounted():
        result = guest.run(
            ["sh", "-c", DELEGATE, "sh", *command, "/work/bound.py", GREEDY, *command],
            env={"PYTHONPATH": "/work/stdlib:/work/stdlib/lib-dynload:/work/packages"},
            timeout=300,
        )
    assert result.status == 0, result.stderr.decode()
    facts: dict[str, object] = json.loads(result.stdout)
    return facts


def test_a_delegated_group_bounds_what_runs_in_it(x86_64_image: Image, places: Places) -> None:
    with Pool("x86_64", 1, places=places) as pool, pool.lease(120) as guest:
        facts = bounded(guest)
    assert facts["folder"] == "/tmp/groups/user/guestctl-p-g0"
    assert facts["told"] == {
        "memory.max": str(64 << 20),
        "pids.max": "256",
        "cgroup.procs": str(facts["child"]),
    }
    # Itself and its children.
    assert facts["forks"] == 255
    current, met = facts["current"], facts["met"]
    assert isinstance(current, int) and current <= 64 << 20
    assert isinstance(met, int) and met > 0
    assert facts["left"] == []
