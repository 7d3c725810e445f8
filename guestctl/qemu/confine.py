"""Keeps a QEMU in namespaces that hold only its own files, through bubblewrap.

mapped-file is no security boundary: a guest that breaks QEMU's 9p server must find nothing. Where
the host does not allow user namespaces, QEMU runs with its seccomp sandbox alone, and
`Confinement` says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestctl.remembered import remembered, stamp

__all__ = [
    "ENVIRONMENT",
    "Binding",
    "Confinement",
    "confined_argv",
    "known_confinement",
    "namespaces_depend_on",
    "probe_confinement",
]

# All that a QEMU is told.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
# What decides whether an ordinary user gets namespaces, where the kernel has it.
_SETTINGS = (
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
)
# What a dynamically linked QEMU reads, where the host has it.
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/alternatives")


@dataclass(frozen=True)
class Binding:
    """A host path, and the path at which QEMU sees it."""

    host: str
    inside: str
    writable: bool = False
    device: bool = False


@dataclass(frozen=True)
class Confinement:
    """What holds a QEMU; `reason` says why `namespaces` is off."""

    namespaces: bool
    seccomp: bool = True
    reason: str = ""


def probe_confinement() -> Confinement:
    """Tries bubblewrap once; it takes a few milliseconds."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return Confinement(False, reason="bubblewrap is not installed (package bubblewrap)")
    argv = [bwrap, "--unshare-all", "--ro-bind", "/", "/", "/bin/true"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except subprocess.TimeoutExpired:
        return Confinement(False, reason="bubblewrap did not answer within 10 s")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Confinement(False, reason=lines[-1] if lines else "bubblewrap failed")
    return Confinement(True)


def known_confinement(cache: Path) -> Confinement:
    """As `probe_confinement`; that it works is remembered in `cache`."""

    def find() -> str:
        found = probe_confinement()
        return "" if found.namespaces else found.reason or "it does not work"

    reason = remembered(
        cache, "confinement", namespaces_depend_on(), find, keep=lambda reason: not reason
    )
    return Confinement(not reason, reason=reason)


def namespaces_depend_on() -> list[Any]:
    """What must be as it was for namespaces that have worked before to work again."""
    found: list[Any] = [os.getuid(), stamp(Path(shutil.which("bwrap") or "/nonexistent"))]
    for setting in _SETTINGS:
        try:
            found.append(Path(setting).read_text(encoding="ascii").strip())
        except OSError:
            found.append("")
    return found


def confined_argv(
    argv: list[str],
    bindings: list[Binding],
    *,
    network: bool,
    info: int,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> list[str]:
    """`argv` as bubblewrap is to run it: it dies with its parent, and sees only `bindings`.

    bubblewrap writes the pid of the namespace's first process to descriptor `info`, as JSON; what
    it runs is the only child of that. (As first process itself it would be deaf to most signals.)
    """
    made = [
        "bwrap",
        "--info-fd",
        str(info),
        "--unshare-user",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-uts",
    ]
    made += ["--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    if not network:
        made.append("--unshare-net")
    for path in _SYSTEM:
        if Path(path).is_symlink() and Path(path).is_dir():
            made += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).exists():
            made += ["--ro-bind", path, path]
    made += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    for binding in bindings:
        kind = "--dev-bind" if binding.device else "--bind" if binding.writable else "--ro-bind"
        made += [kind, binding.host, binding.inside]
    made += ["--chdir", "/", "--clearenv"]
    for name, value in environment.items():
        made += ["--setenv", name, value]
    return [*made, "--", *argv]
