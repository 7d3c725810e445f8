"""apt's programs, run in a private root with settings of its own."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from guestctl.errors import HostLacks, ImageError
from guestctl.packages.sources import KEYRING

__all__ = ["configuration", "host_architecture", "run_apt"]


def run_apt(
    root: Path,
    command: list[str],
    deadline: float,
    *,
    ok: Sequence[int] = (0,),
    cwd: Path | None = None,
    watch: Callable[[], None] | None = None,
) -> str:
    """Runs one of apt's programs in a private root and returns what it says.

    `watch` is called twice a second meanwhile. Raises ImageError with apt's own complaint.
    """
    if shutil.which(command[0]) is None:
        raise HostLacks(f"{command[0]} is not installed", hint="apt install apt")
    if not Path(KEYRING).exists():
        hint = "apt install debian-archive-keyring"
        raise HostLacks(f"Debian's archive keys are missing: {KEYRING}", hint=hint)
    settings = {"APT_CONFIG": str(root / "apt.conf"), "LC_ALL": "C", "PATH": os.defpath}
    with subprocess.Popen(
        command, cwd=cwd or root, env=settings, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
    ) as process:  # fmt: skip
        until = time.monotonic() + deadline
        try:
            while True:
                try:
                    output, complaint = process.communicate(timeout=0.5 if watch else deadline)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() >= until:
                        raise ImageError(f"{command[0]} took more than {deadline:.0f} s") from None
                    if watch:
                        watch()
        except BaseException:
            process.kill()
            raise
    if process.returncode not in ok:
        errors = [line[2:].strip() for line in complaint.splitlines() if line[:2] in ("E:", "W:")]
        said = "; ".join(errors[:3]) or complaint.strip() or output.strip()[-300:]
        if "No space left on device" in said or "not enough free space" in said.lower():
            raise ImageError(f"the disk is full: {root}")
        raise ImageError(f"{' '.join(command[:2])} failed: {said}", hint=_hint(said))
    return output


def _hint(said: str) -> str:
    if re.search(r"resolve|connect|Temporary failure|timed out|NO_PUBKEY|Failed to fetch", said):
        return "is the network up? `mirror:` in the config names another archive"
    return ""


@functools.cache
def host_architecture() -> str:
    """The host's own architecture, as Debian calls it; raises HostLacks without dpkg."""
    command = ["dpkg", "--print-architecture"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise HostLacks("dpkg is not installed", hint="apt install dpkg") from None
    return done.stdout.strip() or "amd64"


def configuration(root: Path, arch: str) -> str:
    """apt's settings for a private root: the host's way to the net, and nothing else of it."""
    host = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, text=True, timeout=30, check=False
    )
    kept = [line for line in host.stdout.splitlines() if line.startswith("Acquire::")]
    kept = [line for line in kept if not re.match(r"Acquire::(Languages|IndexTargets)", line)]
    ours = [
        f'Dir "{root}";',
        'Dir::State "state";',
        f'Dir::State::status "{root}/status";',
        'Dir::Cache "cache";',
        'Dir::Etc "etc";',
        'Dir::Etc::netrc "/etc/apt/auth.conf";',
        'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
        'Dir::Log "log";',
        f'APT::Architecture "{arch}";',
        f'APT::Architectures {{ "{arch}"; }};',
        'APT::Sandbox::User "root";',  # it means: no other user
        'APT::Install-Recommends "false";',
        'Debug::NoLocking "1";',
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
        'Acquire::AllowInsecureRepositories "false";',
        'APT::Get::AllowUnauthenticated "false";',
    ]
    return "\n".join([*kept, *ours]) + "\n"
