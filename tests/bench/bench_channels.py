"""How fast bytes travel over each channel, and over a bare virtio-serial port for comparison.

One guest a channel, started here without its supervisor so that it can have a port more. `out` is
what a command writes, `in` what one reads; `raw` is the same between the device file of a second
port and its socket, with nothing of ours between. Medians of rounds that alternate.
"""

from __future__ import annotations

import random
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestctl import image
from guestctl.agent import Agent
from guestctl.bridge import bridged
from guestctl.places import Places
from guestctl.plan import PoolOptions, make_trees, plan_pool
from guestctl.process import Host, Process
from guestctl.qemu.machine import CHANNELS, DESCRIPTORS, Machine, qemu_argv
from guestctl.qemu.spawn import scratch_disk
from guestctl.sockets import bound_socket, connected_socket
from guestctl.spec import Command
from guestctl.wire import Op

ARCH = "armv5l"
ROUNDS = 3
PINGS = 100
MIB = 1 << 20
# Bytes that take a second or some. A serial line makes runs of zeros short, so they are noise.
SIZES = {"virtio": 64 << 20, "tcp": 32 << 20, "serial": 128 << 10}
RAW_PORT = b"/dev/vport0p2"
KEPT = b"/tmp/noise"
PATH = b"PATH=/usr/lib/guestctl/static:/usr/bin:/bin"


class _Count:
    size = 0

    def write(self, data: bytes, /) -> None:
        self.size += len(data)


class Bench:
    """A guest with one channel, and a raw port beside a virtio one."""

    def __init__(self, channel: str, folder: Path) -> None:
        places = Places.of_user()
        options = PoolOptions(ARCH, 1, channel=channel)
        plan = plan_pool(options, "bench-channels", places)
        make_trees(plan)
        (spec,) = plan.guests
        names = (*DESCRIPTORS, "raw")
        sockets = {name: bound_socket(folder / name) for name in ("agent", "monitor", "raw")}
        self._bridge, sockets["agent"] = bridged(channel, sockets["agent"])
        self._console, theirs = socket.socketpair()
        scratch = scratch_disk(Path(spec.scratch_folder), spec.scratch)
        numbers = {name: made.fileno() for name, made in sockets.items()}
        numbers |= {"console": theirs.fileno(), "scratch": scratch}
        argv = qemu_argv(Machine.of(spec), {name: numbers[name] for name in names})
        if channel == "virtio":
            argv += ["-chardev", f"socket,id=raw,fd={numbers['raw']},server=on,wait=off"]
            argv += ["-device", "virtserialport,chardev=raw,name=raw"]
        self.qemu = subprocess.Popen(
            argv, pass_fds=list(numbers.values()), stderr=subprocess.DEVNULL
        )
        threading.Thread(target=self._drain, daemon=True).start()
        self.agent = Agent.connect(connected_socket(folder / "agent"), timeout=60)
        self.agent.request(Op.PREPARE, timeout=60)
        self.raw = connected_socket(folder / "raw") if channel == "virtio" else None

    def _drain(self) -> None:
        while self._console.recv(65536):
            pass

    def end(self) -> None:
        self.agent.close()
        if self._bridge is not None:
            self._bridge.close()
        self.qemu.kill()
        self.qemu.wait()

    def start(self, *argv: bytes, stdin: bytes | None = None, out: _Count | None = None) -> Process:
        command = Command(argv=argv, env=(PATH,))
        return Process(
            self.agent, command, self.agent.start(command), host=Host("bench"), stdin=stdin,
            stdout=out, stderr=None, timeout=300, idle_timeout=None,
        )  # fmt: skip

    # --- each gives MiB/s -------------------------------------------------------------------

    def out(self, noise: bytes) -> float:
        """Of what `keep` has put there."""
        sink = _Count()
        begin = time.monotonic()
        self.start(b"dd", b"if=" + KEPT, b"bs=64k", out=sink).wait()
        assert sink.size == len(noise)
        return len(noise) / MIB / (time.monotonic() - begin)

    def into(self, noise: bytes) -> float:
        begin = time.monotonic()
        self._fed(b"/dev/null", noise)
        return len(noise) / MIB / (time.monotonic() - begin)

    def keep(self, noise: bytes) -> None:
        self._fed(KEPT, noise)

    def _fed(self, path: bytes, data: bytes) -> None:
        assert self.start(b"dd", b"of=" + path, b"bs=64k", stdin=data).wait().status == 0

    def raw_out(self, noise: bytes) -> float:
        assert self.raw is not None
        begin = time.monotonic()
        running = self.start(b"dd", b"if=" + KEPT, b"of=" + RAW_PORT, b"bs=64k")
        left = len(noise)
        while left:
            left -= len(self.raw.recv(1 << 18))
        seconds = time.monotonic() - begin
        running.wait()
        return len(noise) / MIB / seconds

    def raw_into(self, noise: bytes) -> float:
        assert self.raw is not None
        begin = time.monotonic()
        # A port reads 4 KiB at a time, and head ends without an end of file.
        running = self.start(b"sh", b"-c", b"head -c %d %s >/dev/null" % (len(noise), RAW_PORT))
        self.raw.settimeout(60)
        self.raw.sendall(noise)
        running.wait()
        return len(noise) / MIB / (time.monotonic() - begin)

    def latency(self) -> float:
        return statistics.median(self.agent.ping(30) for _ in range(PINGS)) * 1000


@contextmanager
def guest(channel: str) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        made = Bench(channel, Path(folder))
        try:
            yield made
        finally:
            made.end()


def main() -> None:
    image.build(ARCH, cache_dir=Places.of_user().cache)
    for channel in CHANNELS:
        noise = random.Random(1).randbytes(SIZES[channel])
        with guest(channel) as made:
            made.keep(noise)
            works = {"out": made.out, "in": made.into}
            if made.raw is not None:
                works |= {"raw out": made.raw_out, "raw in": made.raw_into}
            rates: dict[str, list[float]] = {name: [] for name in works}
            for _ in range(ROUNDS):
                for name, work in works.items():
                    rates[name].append(work(noise))
            middle = {name: statistics.median(found) for name, found in rates.items()}
            ping = made.latency()
        for name in ("out", "in"):
            line = f"{channel:8} {name:4} {middle[name]:8.3g} MiB/s"
            if f"raw {name}" in middle:
                raw = middle[f"raw {name}"]
                line += f"   {middle[name] / raw:5.2f} of the raw port's {raw:.1f}"
            print(line)
        print(f"{channel:8} ping {ping:8.2f} ms")


if __name__ == "__main__":
    main()
