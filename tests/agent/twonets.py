"""Two machines in one: run in a user and a network namespace of its own, as

    unshare --user --map-root-user --net python -m tests.agent.twonets AGENT KEY

The other machine is a second network namespace, at the other end of a cable. Its agent runs a
command for us; with another key it does not. Prints what it saw.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestctl.agent import Agent
from guestctl.board import Forwarder, read_key
from guestctl.process import Host, Process
from guestctl.sockets import bound_socket, connected_socket
from guestctl.spec import Command
from guestctl.wire import Op

US, BOARD, PORT = "10.99.0.1", "10.99.0.2", 7743


def sh(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=20)


@contextmanager
def second_machine() -> Iterator[list[str]]:
    """Makes the other machine; what comes before a command that is to run there."""
    with subprocess.Popen(["unshare", "--net", "sleep", "120"]) as other:
        there = ["nsenter", "--target", str(other.pid), "--net"]
        try:
            ours = Path("/proc/self/ns/net").readlink()
            while Path(f"/proc/{other.pid}/ns/net").readlink() == ours:
                time.sleep(0.01)
            ends = ("us0", "type", "veth", "peer", "name", "board0", "netns", str(other.pid))
            sh("ip", "link", "add", *ends)
            sh("ip", "addr", "add", f"{US}/24", "dev", "us0")
            sh("ip", "link", "set", "us0", "up")
            sh(*there, "ip", "addr", "add", f"{BOARD}/24", "dev", "board0")
            sh(*there, "ip", "link", "set", "board0", "up")
            yield there
        finally:
            other.kill()


def main() -> None:
    program, key = sys.argv[1], Path(sys.argv[2])
    with second_machine() as there:
        argv = [*there, program, "agent", "--plain", "--listen", f"{BOARD}:{PORT}", str(key)]
        with subprocess.Popen(argv, env={"ASAN_OPTIONS": "detect_leaks=0"}) as agent:
            try:
                _use(key)
            finally:
                agent.kill()


def _use(key: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "agent")
        forwarder = Forwarder((BOARD, PORT), read_key(key), bound_socket(path))
        deadline = time.monotonic() + 20
        while True:
            try:
                agent = Agent.connect(connected_socket(path), timeout=20, hangs_up=False)
                break
            except Exception:
                # It is not listening yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        agent.request(Op.PREPARE, timeout=20)
        command = Command(argv=(b"cat", b"/proc/net/dev"), env=(b"PATH=/usr/bin:/bin",))
        seen = Process(
            agent, command, agent.start(command), host=Host("board"), stdin=None, stdout=None,
            stderr=None, timeout=60, idle_timeout=None,
        ).wait()  # fmt: skip
        agent.close()
        sys.stdout.write(seen.stdout.decode())
        forwarder.close()


if __name__ == "__main__":
    main()
