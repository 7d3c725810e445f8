"""The armv5l kernel, built natively in a guest with offload, and against the host's cross build.

The source is that of the image's kernel, with the image's symbols. A part of it is compiled by
offload and by distcc: all of it would take distcc hours. Then the whole by offload; an interrupted
build goes on where it was, in another slice, which pays once more for make looking at the tree, and
is counted whole. The tree then moves to another guest, where nothing is built again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from guestctl import Guest, Pool, Result, collect, image, stage
from guestctl.imaging.kernel import uimage
from guestctl.offload import read_ledger
from guestctl.offload.builds import builds_of
from guestctl.offload.ledger import read_jobs
from guestctl.system.boot import BootOptions, boot_argv
from guestctl.system.pack import pack
from guestctl.toolchain import install
from tests.console import Console
from tests.proof import Proof
from tests.proof.kernel import (
    ARCH,
    CONFIGURE,
    ENV,
    PART,
    REMOVE,
    SLICE,
    STOPPED,
    WANTED,
    Stopwatch,
    cross,
    cross_part,
    processors_of,
    unpack,
)
from tests.proof.kernel_told import told

TITLE = "The armv5l kernel, built in a guest"
WAYS = {"offload": "auto", "distcc": "distcc"}
# Without the whole, which takes an hour where others are at work.
WHOLE = not os.environ.get("GUESTCTL_KERNEL_PART")
# A system of two static programs of the image, to see the kernel run something.
SYSTEM = r"""
mkdir -p system/bin system/dev system/sbin
cp /usr/lib/guestctl/static/dash system/bin/sh
cp /usr/lib/guestctl/static/coreutils system/bin/uname
mknod system/dev/console c 5 1
printf '#!/bin/sh\necho "init: $(uname -srvm)"\n' >system/sbin/init
chmod 755 system/sbin/init
"""
# What must be the guest's own to run, whatever is lent.
REFUSED = ("-fplugin=./x.so", "-flto")


def prove(proof: Proof) -> None:
    image.build(ARCH, cache_dir=proof.places.cache)
    install(ARCH, cache_dir=proof.places.cache)
    proof.step("source unpacked", partial(unpacked, proof))
    host = sliced(proof, "cross build", partial(cross, proof.folder))
    proof.step("cross build of the part", partial(cross_part, proof.folder))
    proof.step("staged", partial(staged, proof, "native", "linux.tar"))
    first = sliced(proof, "the part in a guest", partial(build, proof, f"{PART}/"))
    for way in WAYS:
        proof.step(f"the part by {way}", partial(part, proof, way))
    whole = sliced(proof, "the whole in a guest", partial(build, proof, WANTED)) if WHOLE else []
    proof.step("collected", partial(collected, proof))
    proof.step("moved", partial(moved, proof))
    if WHOLE:
        proof.step("booted", partial(booted, proof))
    told(proof, host, first, whole)


def sliced(proof: Proof, name: str, work: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Repeats `work` until it is done; returns what each slice has said of itself."""
    kept = proof.folder / f"{name.replace(' ', '-')}.json"
    slices: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []

    def once() -> None:
        slices.append(work())
        kept.write_text(json.dumps(slices))

    number = 0
    while number < len(slices) or not slices or not slices[-1]["done"]:
        proof.step(f"{name}, slice {number + 1}", once)
        number += 1
    return slices


def unpacked(proof: Proof) -> None:
    """The source, and nothing that an earlier proof has found."""
    for kept in (*proof.folder.glob("*.json"), *proof.folder.glob("*.log")):
        kept.unlink()
    unpack(proof.folder, proof.places.cache)


# --- in a guest -----------------------------------------------------------------------------------


def staged(proof: Proof, name: str, archive: str) -> None:
    """An archive is what the tree of that name holds."""
    trees = proof.folder / name
    shutil.rmtree(trees, ignore_errors=True)
    (trees / "g0").mkdir(parents=True)
    stage(proof.folder / archive, trees / "g0")


def build(proof: Proof, goals: str) -> dict[str, Any]:
    """Goes on for a slice; interrupted, make removes what it has not finished."""
    trees, log = proof.folder / "native", proof.folder / "native.log"
    with (
        Pool(ARCH, 1, places=proof.places, share=trees) as pool,
        pool.lease(120) as guest,
        open(log, "ab", buffering=0) as out,
        guest.mounted(),
    ):
        (state,) = pool.status()
        make = f"make -j{guest.jobs}"
        script = (
            f"cd /work/linux; [ -e .config ] || {make} {CONFIGURE};"
            f" exec timeout -s INT {SLICE} {make} {goals}"
        )
        with Stopwatch() as watch:
            result = guest.run(["sh", "-ec", script], env=ENV, log=out, timeout=10 * SLICE)
        assert result.status in (0, *STOPPED), result.describe()
        found = by_ledger(guest, result.job)
        done = result.status == 0
        return {
            **found,
            "done": done,
            "seconds": watch.seconds,
            "jobs": guest.jobs,
            "emulator": processors_of(state["qemu_pid"]),
            "refused": refused(guest) if done else {},
        }


def part(proof: Proof, way: str) -> None:
    """PART, compiled anew, as cross_part does it."""
    with (
        Pool(
            ARCH, 1, places=proof.places, share=proof.folder / "native", offload=WAYS[way]
        ) as pool,
        pool.lease(120) as guest,
        guest.mounted(),
    ):

        def run(script: str) -> tuple[Result, float]:
            with Stopwatch() as watch:
                result = guest.run(
                    ["sh", "-ec", f"cd /work/linux; {script}"], env=ENV, timeout=7200
                )
            return result.check(), watch.seconds

        make = f"make -j{guest.jobs} {PART}/"
        run(make)
        _, looking = run(make)
        run(REMOVE)
        result, seconds = run(make)
        calls = by_ledger(guest, result.job)["calls"]
        sums = run(f"sha256sum {PART}/*.o")[0].stdout.decode().splitlines()
    found = {"looking": looking, "seconds": seconds, "calls": calls, "sums": sums}
    (proof.folder / f"part-{way}.json").write_text(json.dumps(found))


def by_ledger(guest: Guest, job: int) -> dict[str, Any]:
    """How many calls ran where, why some ran in the guest, what the job's time went into, and how
    long the tools ran on the host, one after the other, by the clock."""
    assert guest.offload is not None
    until = time.monotonic() + 60
    while guest.offload.busy and time.monotonic() < until:
        time.sleep(0.05)
    ledger = guest.offload.ledger
    entries = [entry for entry in read_ledger(ledger.path) if entry.job == job]
    (found,) = builds_of(entries, [each for each in read_jobs(ledger.path) if each.job == job])
    return {
        "calls": ledger.tally(job),
        "reasons": ledger.reasons(job),
        "parts": found.parts,
        "tools": sum(entry.host for entry in entries),
    }


def refused(guest: Guest) -> dict[str, list[str]]:
    """What a plugin and link-time optimisation lead to: the reasons in the ledger."""
    found = {}
    for option in REFUSED:
        script = f"cd /work; echo 'int x;' >x.c; gcc {option} -c x.c; rm -f x.*"
        result = guest.run(["sh", "-c", script], env=ENV, timeout=300)
        found[option] = sorted(by_ledger(guest, result.job)["reasons"])
        assert found[option], option
    return found


# --- in another guest -----------------------------------------------------------------------------


def collected(proof: Proof) -> None:
    collect(proof.folder / "native" / "g0", proof.folder / "built.tar")


def moved(proof: Proof) -> None:
    """The tree, collected and staged in another guest: make has nothing to do."""
    staged(proof, "elsewhere", "built.tar")
    trees = proof.folder / "elsewhere"
    with (
        Pool(ARCH, 1, places=proof.places, share=trees) as pool,
        pool.lease(120) as guest,
        open(proof.folder / "moved.log", "wb", buffering=0) as out,
        guest.mounted(),
    ):
        goals = WANTED if WHOLE else f"{PART}/"
        script = f"cd /work/linux; make -j{guest.jobs} {goals}"
        guest.run(["sh", "-ec", script], env=ENV, log=out, timeout=3600).check()


# --- what became of it ----------------------------------------------------------------------------


def booted(proof: Proof) -> None:
    """The kernel runs a system of two programs, which then ends."""
    with Pool(ARCH, 1, places=proof.places) as pool, pool.lease(120) as guest:
        with guest.mounted():
            script = f"cd /work; rm -rf system; {SYSTEM}"
            guest.run(["sh", "-ec", script], timeout=300).check()
        collect(guest.work, proof.folder / "system.tar", path="system")
    boot = proof.folder / "boot"
    shutil.rmtree(boot, ignore_errors=True)
    boot.mkdir()
    collect(proof.folder / "native" / "g0", proof.folder / "boot.tar", path="linux/arch/arm/boot")
    subprocess.run(["tar", "-xf", proof.folder / "boot.tar", "-C", boot], check=True)
    (made,), (tree,) = boot.rglob("Image"), boot.rglob("versatile-pb.dtb")
    kernel, system = proof.folder / "kernel", proof.folder / "system.cpio"
    kernel.write_bytes(uimage(made.read_bytes(), 0x8000))
    pack(proof.folder / "system.tar", system, "cpio")
    argv = boot_argv(system, ARCH, proof.places.cache, BootOptions())
    argv[argv.index("-kernel") + 1] = str(kernel)
    argv[argv.index("-dtb") + 1] = str(tree)
    with Console(argv) as console:
        console.await_(rb"Kernel panic")
        console.end()
    (proof.folder / "console.txt").write_text(console.text)
