"""What proof_kernel has found, told."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from guestctl.offload.builds import PARTS
from tests.proof import Proof
from tests.proof.kernel import JOBS, PART

__all__ = ["told"]

Slices = list[dict[str, Any]]
WAYS = ("cross", "offload", "distcc")
BUILT = re.compile(r"^  (?:CC|AS|LD|AR|HOSTCC|HOSTLD) .*", re.MULTILINE)


def told(proof: Proof, host: Slices, part: Slices, whole: Slices) -> None:
    """`part` is the configuration and PART in a guest, `whole` the rest, or nothing."""
    cross = sum(each["processor"] for each in host)
    before = sum(each["seconds"] for each in host)
    proof.fact(
        f"cross build of the whole on the host, make -j{JOBS}",
        f"{before:.0f} s{_in(host)}, {cross:.0f} s of processors",
    )
    by_part(proof)
    native = part + whole
    proof.fact("calls of compilers and binutils", _by(_sum(native, "calls")))
    for reason, count in _sum(native, "reasons").most_common(8):
        proof.fact(f"ran in the guest, {count} times", reason)
    for option, why in part[-1]["refused"].items():
        proof.fact(f"`gcc {option} -c x.c` runs in the guest", "; ".join(why))
    moved(proof)
    if whole:
        all_of_it(proof, host, native)
        booted(proof)
    else:
        proof.fact("the whole kernel in a guest", "left out of this run (GUESTCTL_KERNEL_PART)")


def by_part(proof: Proof) -> None:
    """PART, by each way."""
    ways = {way: json.loads((proof.folder / f"part-{way}.json").read_text()) for way in WAYS}
    for way, each in ways.items():
        calls = f"; {_by(Counter(each['calls']))}" if "calls" in each else ""
        proof.fact(
            f"`make {PART}/`: {way}",
            f"{each['seconds']:.0f} s, {each['looking']:.0f} s with nothing to be done{calls}",
        )
    offload, distcc = (ways[way]["seconds"] for way in WAYS[1:])
    proof.fact("distcc against offload, of that part", f"{distcc / offload:.1f} times")
    one, other = (ways[way]["sums"] for way in WAYS[1:])
    same = sum(left == right for left, right in zip(one, other, strict=True))
    proof.fact("objects of that part that are the same by both ways", f"{same} of {len(one)}")


def moved(proof: Proof) -> None:
    first = set(BUILT.findall((proof.folder / "native.log").read_text()))
    left = BUILT.findall((proof.folder / "moved.log").read_text())
    proof.fact("compiled, assembled, archived and linked at first", len(first))
    proof.fact("the same after the tree was collected and staged in another guest", len(left))
    assert len(first) > 30 and not left, left


def all_of_it(proof: Proof, host: Slices, native: Slices) -> None:
    """The whole kernel in a guest, against its cross build."""
    before, seconds = (sum(each["seconds"] for each in slices) for slices in (host, native))
    emulator, tools = (sum(each[what] for each in native) for what in ("emulator", "tools"))
    proof.fact(
        f"the whole in a guest, make -j{native[0]['jobs']}, by offload",
        f"{seconds:.0f} s{_in(native)}; the guest took {emulator:.0f} s of a processor,"
        f" the tools on the host ran for {tools:.0f} s",
    )
    proof.fact("the guest against the cross build", f"{seconds / before:.1f} times")
    parts = {name: sum(each["parts"][name] for each in native) for name in PARTS}
    told = (f"{name} {100 * took / sum(parts.values()):.0f} %" for name, took in parts.items())
    proof.fact("the guest's time went into", ", ".join(told))


def booted(proof: Proof) -> None:
    console = (proof.folder / "console.txt").read_text()
    (version,) = re.findall(r"Linux version (.*)", console)[:1]
    (said,) = re.findall(r"^init: (.*?)\s*$", console, re.MULTILINE)
    assert "(guestctl@guestctl) (gcc (Debian" in version, version
    proof.fact("the kernel boots, and says", version)
    proof.fact("a static shell runs on it as process 1: `uname -srvm`", said)


def _in(slices: Slices) -> str:
    return f" in {len(slices)} slices" if len(slices) > 1 else ""


def _sum(slices: Slices, what: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in slices:
        total.update(each[what])
    return total


def _by(calls: Counter[str]) -> str:
    return ", ".join(f"{count} by {where}" for where, count in calls.items())
