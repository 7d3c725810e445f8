"""An agent that was installed on another machine as `guestctl agent install` says: run, in
namespaces of its own, as

    unshare --user --map-root-user --net --mount python -m tests.agent.installed FOLDER

FOLDER has the agent, the key, and what `agent install` has printed as `install.sh`. The other
machine's /usr/local/bin and /etc are folders beside them, and so is our run directory. Prints, as
JSON, what a pool of a guest and that machine has to say.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from guestctl import GuestLost, Pool
from tests.agent.twonets import BOARD, second_machine

PREPARE = """
mount --make-rprivate /
mount --bind bin /usr/local/bin
mount --bind etc /etc
"""


def main() -> None:
    folder = Path(sys.argv[1])
    for name in ("bin", "etc", "run"):
        (folder / name).mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(folder / "run")
    lines = (folder / "install.sh").read_text()
    with second_machine() as there:
        argv = [*there, "unshare", "--mount", "sh", "-ec", f"{PREPARE}\n{lines}\nwait"]
        with subprocess.Popen(
            argv, cwd=folder, stdout=sys.stderr, start_new_session=True
        ) as machine:
            try:
                json.dump(_use(str(folder / "board.key")), sys.stdout)
            finally:
                os.killpg(machine.pid, signal.SIGKILL)


def _use(key: str) -> dict[str, list[str]]:
    deadline = time.monotonic() + 60
    while True:
        try:
            pool = Pool("armv5l", 1, members=(BOARD,), key=key, offload="off")
            break
        except GuestLost:
            # It is not listening yet.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    said = {}
    with pool, pool.lease(timeout=60) as one, pool.lease(timeout=60) as other:
        for machine in (one, other):
            results = [
                machine.run(["uname", "-m"], timeout=60).check(),
                machine.run(["sh", "-c", "cat /proc/net/dev; id -u"], timeout=60).check(),
                machine.run(["sh", "-c", "cat >&2; exit 5"], stdin=b"typed", timeout=60),
            ]
            said[machine.name] = [
                *(result.stdout.decode() for result in results[:2]),
                f"{results[2].status} {results[2].stderr.decode()}",
            ]
    return said


if __name__ == "__main__":
    main()
