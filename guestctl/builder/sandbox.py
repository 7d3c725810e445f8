"""One component, built in one pristine guest: sysroot and source in, artifact out.

The sysroot is the guest's read-only base, which holds what the component needs and nothing else, as
links into the cache, under a layer on the guest's own disk. What is built and what comes of it lie
on the share, where the host can compile. /tools lends what the sysroot lacks. Paths, environment,
host name and times are the same in every build.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from guestctl import Guest, Process, collect, stage
from guestctl.builder.components import Component
from guestctl.definitions import Device
from guestctl.errors import BuildError

__all__ = ["EPOCH", "Job", "Sandbox"]

# All files of artifacts that are younger get this time.
EPOCH = 1_700_000_000
_ROOT = "/sysroot"
_SHARED = ("build", "inst", "tmp", "var/tmp")
_DESTDIR = "/inst"
_SHELL = "/tools/bin/sh"
# configure would look for a shell that counts its lines, find bash, begin anew in it, and write its
# path into what is installed (docs/decisions/0083-shell-of-configure.md).
_CONFIG_SHELL = "/bin/sh"
_AR = b"!<arch>\n"
_STEP_TIMEOUT = 6 * 3600.0
_IDLE_TIMEOUT = 3600.0
_LEDGER_TIMEOUT = 10.0
_PREPARE = "prepare"  # a step of ours, of which the log need not tell

# What scripts call by its path, and /tools/bin's name of it.
_LENT = {
    "/bin/sh": "sh",
    "/bin/pwd": "pwd",
    "/usr/bin/env": "env",
}

_FURNISH = """
chmod 1777 /tmp /var/tmp
lend() {{
  [ -e "$1" ] || [ -L "$1" ] || [ ! -e "$2" ] || {{ mkdir -p "${{1%/*}}"; ln -s "$2" "$1"; }}
}}
{lent}
"""

_WHOLE = "cd /build; mv .source {name}"
# An archive with one folder at its top is that folder.
_STRIPPED = """
cd /build
set -- .source/* .source/.[!.]*
kept=
for each; do [ -e "$each" ] || [ -L "$each" ] || continue; kept="$kept x"; only=$each; done
if [ "$kept" = " x" ] && [ -d "$only" ] && [ ! -L "$only" ]
then mv "$only" {name}; rmdir .source
else mv .source {name}
fi
"""


@dataclass(frozen=True)
class Job:
    """All that a build needs. `source` is an archive or a folder of files, or None; `sysroot` are
    artifacts in the order in which they are staged; `patches` are files with their -p number.
    """

    component: Component
    source: Path | None
    sysroot: tuple[Path, ...]
    patches: tuple[tuple[Path, int], ...]
    triplet: str


@dataclass
class Sandbox:
    """A leased guest while it builds one component. `seconds` are those of each step, `calls` say
    how many calls of compilers and the like ran where (docs/offload.md), `reasons` why some ran in
    the guest.
    """

    guest: Guest
    job: Job
    log: BinaryIO
    step: Callable[[str], None] = lambda _name: None
    seconds: dict[str, float] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    _jobs: list[int] = field(default_factory=list)
    _running: Process | None = None
    _stopped: bool = False

    def build(self, *outs: Path) -> None:
        """Builds, and collects the artifact into each of `outs`.

        :raise BuildError: a command failed, or there is nothing to collect.
        :raise GuestLost: the guest died.
        """
        name = self.job.component.name
        with self._timed("stage"):
            for artifact in self.job.sysroot:
                report = stage(artifact, self.guest.base, link=True, follow_dirs=True)
                self.log.writelines(f"# {line}\n".encode() for line in report.warnings)
            if self.job.source is not None:
                stage(self.job.source, self.guest.work, into="build/.source")
            self._stage_patches()
        with self.guest.mounted(sysroot=_SHARED):
            with self._timed(_PREPARE):
                self._prepare()
            for step, commands in self.job.component.steps:
                with self._timed(step):
                    for command in commands:
                        self._shell(command, f"/build/{name}", what=f"{step}-commands")
            for device in self.job.component.chunk.devices:
                with self._timed("devices"):
                    self._shell(_node(device), "/", what="devices")
        self._gather_reasons()
        with self._timed("collect"):
            for out in outs:
                collect(self.guest.work, out, path=_DESTDIR.strip("/"), mtime=EPOCH)

    def stop(self) -> None:
        """Cancels what runs, from another thread: `build` then fails."""
        self._stopped = True
        running = self._running
        if running is not None:
            running.cancel()

    def tally(self) -> Counter[str]:
        """The calls so far, those of the running command included; from any thread."""
        running, ledger = self._running, self.guest.offload and self.guest.offload.ledger
        return self.calls + (ledger.tally(running.id) if ledger and running else Counter())

    # --- steps ----------------------------------------------------------------------------------

    def _stage_patches(self) -> None:
        """Puts the patches where `patch` finds them in the guest, by their numbers."""
        with tempfile.TemporaryDirectory() as folder:
            for number, (patch, _strip) in enumerate(self.job.patches):
                shutil.copyfile(patch, Path(folder, f"{number:04d}.patch"))
            if self.job.patches:
                stage(folder, self.guest.work, into="build/.patches")

    def _prepare(self) -> None:
        """The folders that a build expects, what the sysroot lacks, the source under its name."""
        name = shlex.quote(self.job.component.name)
        lent = "\n".join(f"lend {path} /tools/bin/{tool}" for path, tool in _LENT.items())
        self._shell(_FURNISH.format(lent=lent), "/", what=_PREPARE)
        self._shell(_unpacking(self.job.source).format(name=name), "/", what=_PREPARE)
        for number, (_patch, strip) in enumerate(self.job.patches):
            command = f"patch -p{strip} -i ../.patches/{number:04d}.patch"
            self._shell(command, f"/build/{self.job.component.name}", what="patches")

    def _shell(self, command: str, cwd: str, *, what: str) -> None:
        """One command in the sysroot; raises BuildError when it fails."""
        if self._stopped:
            raise BuildError(f"{self.job.component.name}: stopped")
        if what != _PREPARE:
            self.log.write(b"$ " + command.strip().encode() + b"\n")
        self._running = self.guest.start(
            [_SHELL, "-ec", f"echo guestctl >/proc/sys/kernel/hostname; {command}"],
            root=_ROOT,
            cwd=cwd,
            env=self._environment(),
            log=self.log,
            timeout=_STEP_TIMEOUT,
            idle_timeout=_IDLE_TIMEOUT,
        )
        process = self._running
        try:
            if self._stopped:
                process.cancel()
            result = process.wait()
        finally:
            self._running = None
            self._jobs.append(process.id)
            if self.guest.offload:
                self.calls += self.guest.offload.ledger.tally(process.id)
        if result.status:
            line = command.strip().splitlines()[0]
            raise BuildError(
                f"{self.job.component.name}: {what}: {line}: {result.describe()}",
            )

    def _gather_reasons(self) -> None:
        """What the ledger says of calls that ran in the guest; entries follow their calls soon."""
        offload, deadline = self.guest.offload, time.monotonic() + _LEDGER_TIMEOUT
        if offload is None:
            return
        while offload.busy and time.monotonic() < deadline:
            time.sleep(0.01)
        for job in self._jobs:
            self.reasons += offload.ledger.reasons(job)

    def _environment(self) -> Mapping[str, str]:
        chunk = self.job.component.chunk
        jobs = min(chunk.max_jobs or self.guest.jobs, self.guest.jobs)
        triplet = self.job.triplet
        return {
            "HOME": "/tmp",
            "LANG": "C",
            "LC_ALL": "C",
            "TZ": "UTC",
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": _SHELL,
            "CONFIG_SHELL": _CONFIG_SHELL,
            "SOURCE_DATE_EPOCH": str(EPOCH),
            "KBUILD_BUILD_USER": "guestctl",
            "KBUILD_BUILD_HOST": "guestctl",
            "KBUILD_BUILD_TIMESTAMP": f"@{EPOCH}",
            "KBUILD_BUILD_VERSION": "1",
            "BUILD": triplet,
            "HOST": triplet,
            "TARGET": triplet,
            "MORPH_ARCH": self.guest.arch,
            "PREFIX": chunk.prefix,
            "DESTDIR": _DESTDIR,
            "JOBS": str(jobs),
            "MAKEFLAGS": f"-j{jobs}",
            **chunk.environment,
        }

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        """Adds the time that the block takes to the step's."""
        self.step(step)
        begin = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begin
            self.seconds[step] = self.seconds.get(step, 0.0) + spent


def _unpacking(source: Path | None) -> str:
    """The commands that give the staged source its name. A Debian package is a root, not a folder
    with a source in it.
    """
    if source is None:
        return "mkdir -p /build/{name}"
    if source.is_file():
        with open(source, "rb") as file:
            if file.read(len(_AR)) == _AR:
                return _WHOLE
    return _STRIPPED


def _node(device: Device) -> str:
    """The command that makes a device node in the artifact."""
    path = shlex.quote(f"{_DESTDIR}/{device.filename.lstrip('/')}")
    numbers = "" if device.type == "p" else f" {device.major} {device.minor}"
    return (
        f"mkdir -p {shlex.quote(str(Path(_DESTDIR, device.filename.lstrip('/')).parent))};"
        f" mknod -m {device.permissions} {path} {device.type}{numbers};"
        f" chown {device.uid}:{device.gid} {path}; chmod {device.permissions} {path}"
    )
