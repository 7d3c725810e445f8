"""Plain facts that travel between the layers: what to run, and how it ended."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from guestctl.errors import CommandFailed

__all__ = ["DEVICE", "OFFLOAD_MODES", "Command", "GuestSpec", "Outcome", "Result", "Usage"]

OFFLOAD_MODES = ("auto", "distcc", "off")
# What the address of a serial device begins with, where one of another kind might stand.
DEVICE = "serial:"

Outcome = Literal["exited", "signalled", "timeout", "lost", "error"]

# Exit statuses in the manner of env(1), timeout(1) and the shell.
STATUS_TIMEOUT = 124
STATUS_BROKEN = 125
STATUS_NOT_EXECUTABLE = 126
STATUS_NOT_FOUND = 127


@dataclass(frozen=True)
class Command:
    """A command as the agent is to start it. Paths are those of the guest.

    `limits` maps Linux resource numbers to (soft, hard), -1 for no limit. `window` is the size, in
    rows and columns, of the terminal that the command gets; None: pipes.
    """

    argv: tuple[bytes, ...]
    env: tuple[bytes, ...] = ()
    cwd: bytes = b"/"
    root: bytes | None = None
    uid: int = 0
    gid: int = 0
    umask: int = 0o022
    limits: dict[int, tuple[int, int]] = field(default_factory=dict)
    window: tuple[int, int] | None = None


@dataclass(frozen=True)
class Usage:
    """What a command used, its descendants included. Times in seconds, memory in KiB."""

    wall: float = 0.0
    user: float = 0.0
    system: float = 0.0
    max_resident: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    blocks_in: int = 0
    blocks_out: int = 0


@dataclass(frozen=True)
class Result:
    """How a command ended.

    `status` is what a shell would say of it: the command's own status, 128 + N after signal N,
    124 after a time-out, 127 and 126 when it could not be found or executed, 125 when guestctl
    could not run it. `job` is its number in the guest, `began` seconds since the epoch, `seconds`
    how long the host waited, `pace` by what its time-outs were scaled, `output_from` with which
    bytes of both outputs ours began (not 0 for one that was attached to). `stdout` and `stderr`
    hold what was captured; `truncated` says that a capture met its bound.
    """

    argv: tuple[bytes, ...]
    outcome: Outcome
    status: int
    guest: str = ""
    signal: int = 0
    began: float = 0.0
    seconds: float = 0.0
    job: int = 0
    pace: float = 1.0
    output_from: tuple[int, int] = (0, 0)
    usage: Usage = Usage()
    error: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: bool = False

    def check(self) -> Result:
        """Returns itself when the status is 0, raises CommandFailed otherwise."""
        if self.status:
            raise CommandFailed(self.describe())
        return self

    def failed(self, error: str) -> Result:
        """The same, but that guestctl does not let it pass."""
        return replace(self, outcome="error", status=STATUS_BROKEN, error=error)

    def describe(self) -> str:
        """One line for people: what was run and how it ended."""
        name = self.argv[0].decode(errors="backslashreplace") if self.argv else "?"
        if self.error:
            return f"{name}: {self.error}"
        if self.outcome == "signalled":
            return f"{name} was ended by signal {self.signal}"
        return f"{name} ended with status {self.status}"

    def as_json(self) -> dict[str, Any]:
        """The facts for `--result`: everything but the captured bytes."""
        facts = asdict(self)
        for name in ("stdout", "stderr"):
            del facts[name]
        facts["argv"] = [arg.decode(errors="surrogateescape") for arg in self.argv]
        return {"version": 1, **facts, "ended": self.began + self.seconds}


@dataclass(frozen=True)
class GuestSpec:
    """All that a supervisor must know of its guest. Sizes in MiB, times in seconds."""

    arch: str
    name: str
    hostname: str
    kernel: str
    initramfs: str
    root: str
    dtb: str | None
    work: str
    base: str
    scratch_folder: str
    memory: int
    accelerator: str
    cpu: str
    namespaces: bool
    unconfined_reason: str = ""
    security_model: str = "mapped-file"
    network: bool = False
    channel: str = "virtio"
    scratch: int = 16384
    swap: int = 1024
    boot_timeout: float = 120.0
    # auto, distcc or off, and why it is off; where it keeps its files.
    offload: str = "off"
    offload_reason: str = ""
    cache: str = ""
    runtime: str = ""
    config: str = ""
    ledger: str = ""
    # The folder of the template that it is cloned from; or why it has to boot.
    template: str = ""
    cold: str = ""
    # For a board: HOST:PORT of its agent, and the file of the key; it has no QEMU.
    member: str = ""
    key: str = ""


def status_of_errno(code: int) -> int:
    """The exit status for a command that could not be executed with errno `code`."""
    return {
        errno.ENOENT: STATUS_NOT_FOUND,
        errno.ENOTDIR: STATUS_NOT_FOUND,
        errno.EACCES: STATUS_NOT_EXECUTABLE,
        errno.EPERM: STATUS_NOT_EXECUTABLE,
        errno.ENOEXEC: STATUS_NOT_EXECUTABLE,
        errno.EISDIR: STATUS_NOT_EXECUTABLE,
    }.get(code, STATUS_BROKEN)
