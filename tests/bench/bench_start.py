"""How long a guest takes to be ready, against bare QEMU with the same kernel and initramfs.

Rounds alternate. `bare` is from process start to the first line of user space on the console, with
nothing but the kernel and the initramfs; `told` is the same with the kernel options that our guests
get, which spare it some work; `up` is `guestctl pool up -n 1
--cold` as a user types it; Python's own start-up, measured with the same imports, is subtracted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from guestctl import Pool, image
from guestctl.places import Places
from guestctl.qemu.accel import FIRST_LINE
from guestctl.targets import target

ARCH = "armv5l"
ROUNDS = 7


def bare(made: image.Image, options: str = "") -> float:
    row = target(ARCH)
    argv = [row.qemu, "-nodefaults", "-display", "none", "-no-reboot", "-machine", row.board]
    argv += ["-cpu", row.cpu, "-m", str(row.memory), "-kernel", str(made.kernel)]
    argv += ["-dtb", str(made.dtb), "-initrd", str(made.initramfs), "-serial", "stdio"]
    argv += ["-append", f"console={row.console} quiet panic=-1 {options}"]
    begin = time.monotonic()
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as qemu:
        assert qemu.stdout is not None
        for line in qemu.stdout:
            if FIRST_LINE in line:
                break
        seconds = time.monotonic() - begin
        qemu.kill()
    return seconds


def up(name: str) -> float:
    argv = [sys.executable, "-m", "guestctl", "pool", "up", "-n", "1", "--arch", ARCH, "--cold"]
    begin = time.monotonic()
    subprocess.run([*argv, "--name", name], check=True, capture_output=True)
    return time.monotonic() - begin


def down(name: str) -> None:
    Pool.attach(name).down()


def python() -> float:
    """The start of the interpreter that `pool up` runs, with what it and its forks import."""
    modules = "guestctl.cli.main, guestctl.cli.pool, guestctl.pool, guestctl.supervisor"
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.monotonic() - begin


def main() -> None:
    made = image.build(ARCH, cache_dir=Places.of_user().cache)
    rows: dict[str, list[float]] = {"bare": [], "told": [], "up": [], "python": []}
    name = f"bench-{os.getpid()}"
    for _ in range(ROUNDS):
        rows["bare"].append(bare(made))
        rows["told"].append(bare(made, target(ARCH).kernel_options))
        rows["up"].append(up(name))
        down(name)
        rows["python"].append(python())
    middle = {key: statistics.median(values) for key, values in rows.items()}
    ours = middle["up"] - middle["python"]
    print(f"bare QEMU to its first line of user space  {middle['bare']:.3f} s")
    print(f"pool up -n 1 --cold to ready               {middle['up']:.3f} s")
    print(f"of that, Python's own start-up             {middle['python']:.3f} s")
    print(f"bare QEMU with our kernel options          {middle['told']:.3f} s")
    print(f"ratio without Python's start-up            {ours / middle['bare']:.2f}  (target 1.30)")
    print(f"the same against our kernel options        {ours / middle['told']:.2f}")
