"""Templates: guests saved at the point where they are ready and nobody has used them.

CACHE/templates/
    KEY/               one image on one machine; appears as a whole
        ram            the memory, without its zeros
        state          what QEMU says of its devices
        scratch        the scratch disk, which the guest has mounted
        console.log    what the kernel had to say
        template.json  written last: what these files must be
    KEY.lock           flock: held while the template is made
    KEY.failed         why there is none; for ten minutes nobody tries again

A clone maps the memory copy-on-write. QEMU opens what it maps for writing, and must not be able
to write to what others start from: so it gets a sealed copy in memory, which all clones that
start together share.

Whoever starts clones holds these files open: a template may go at any time, because somebody
else's clone did not come.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guestctl.errors import GuestctlError
from guestctl.patience import pace_of
from guestctl.qemu.accel import qemu_program
from guestctl.qemu.machine import DESCRIPTORS, Machine, Paths, qemu_argv
from guestctl.qemu.monitor import Monitor
from guestctl.rundir import read_json, write_json
from guestctl.spec import GuestSpec
from guestctl.targets import target

__all__ = [
    "NoTemplate",
    "Saved",
    "Template",
    "ignore_shared",
    "load",
    "machine_to_save",
    "obtained",
]

# What is saved, beside the console's log.
_FILES = ("ram", "state", "scratch")
_CONSOLE = "console.log"
# Raised when a template is made in another way.
_VERSION = 5
_LOAD_TIMEOUT = 10.0
_GIVEN_UP = 600.0
_FAIR_TIMEOUT = 20.0
_POLL = 0.02
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class NoTemplate(GuestctlError):
    """There is no template, and the guest has to boot; the message says why."""


class Template:
    """One that lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def opened(self, made_from: str) -> Iterator[Saved]:
        """Its files, as they were when it was made.

        Raises NoTemplate where it is not there, made from something else, of another boot of the
        host, or damaged.
        """
        facts = read_json(self.folder / "template.json")
        if not facts:
            raise NoTemplate("it has not been made")
        if facts.get("made_from") != made_from:
            raise NoTemplate("it was made from something else")
        if facts.get("boot") != _boot():
            # Nothing is forced to the disk: after a power cut the files may be short.
            raise NoTemplate("it is from before the host's last boot")
        with contextlib.ExitStack() as stack:
            handles = {}
            for name in _FILES:
                try:
                    handles[name] = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise NoTemplate(f"its {name} cannot be read: {error.strerror}") from None
                stack.callback(os.close, handles[name])
                if facts.get(name) != _identity(handles[name]):
                    raise NoTemplate(f"its {name} was changed")
            try:
                console = (self.folder / _CONSOLE).read_bytes()
            except OSError as error:
                raise NoTemplate(f"its {_CONSOLE} cannot be read: {error.strerror}") from None
            ident = f"{self.folder.name} {facts['ram']}"
            yield Saved(str(self.folder), ident, float(facts["pace"]), console, **handles)

    def discard(self, reason: str = "") -> None:
        """Removes it; with a `reason`, none is made in its place for a while."""
        if reason:
            _give_up(self.folder, reason)
        # What makes it valid goes first.
        (self.folder / "template.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def prove(self) -> None:
        """Remembers that a guest has come out of it."""
        with contextlib.suppress(OSError):
            self._proof.touch()

    def blame(self, reason: str) -> None:
        """A clone did not come: a template that was good once is made anew, another is not."""
        # Where it cannot be removed the guest boots all the same, as will the next.
        with contextlib.suppress(OSError):
            self.discard("" if self._proof.exists() else reason)

    @property
    def _proof(self) -> Path:
        return self.folder / "proven"


@dataclass(frozen=True)
class Saved:
    """The files of the template in `folder`, open. `ident` names what is in them; `pace` is how
    many times slower than usual the guest was that was saved, `console` what its kernel had said.
    """

    folder: str
    ident: str
    pace: float
    console: bytes
    ram: int
    state: int
    scratch: int


def machine_to_save(spec: GuestSpec, paths: Paths) -> Machine:
    return replace(Machine.of(spec), paths=paths, saving="save", security_model="mapped-file")


def ignore_shared(qemu: Monitor) -> None:
    """The memory is where it is: it does not go through the state."""
    capability = {"capability": "x-ignore-shared", "state": True}
    qemu.ask("migrate-set-capabilities", capabilities=[capability])


def load(monitor: Path, state: int) -> None:
    """Has a QEMU that waits for it become a clone; it inherited descriptor `state`.

    Raises MonitorError.
    """
    with Monitor(monitor, _LOAD_TIMEOUT) as qemu:
        ignore_shared(qemu)
        qemu.ask("migrate-incoming", uri=f"fd:{state}")


def _boot() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _identity(file: Path | int) -> list[int]:
    facts = os.stat(file)
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns]


def _mark(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.failed")


def _give_up(folder: Path, reason: str) -> None:
    write_json(_mark(folder), {"time": time.time(), "reason": reason})


# --- finding and making ---------------------------------------------------------------------


@contextlib.contextmanager
def obtained(spec: GuestSpec, cache: Path) -> Iterator[Saved]:
    """The template for guests like `spec`, open; made where there is none that fits.

    Raises NoTemplate.
    """
    if spec.channel != "virtio" or spec.network:
        raise NoTemplate("only a guest with a virtio channel and without a network is saved")
    made_from = _made_from(spec)
    # A name, and no more than that: what it was made from is in the template, and must fit.
    name = f"{spec.arch}-{zlib.crc32(made_from.encode()):08x}"
    folder = cache / "templates" / name
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    template = Template(folder)
    with contextlib.ExitStack() as stack:
        try:
            saved = stack.enter_context(template.opened(made_from))
        except NoTemplate:
            saved = stack.enter_context(_made(spec, template, made_from))
        yield saved


@contextlib.contextmanager
def _made(spec: GuestSpec, template: Template, made_from: str) -> Iterator[Saved]:
    """One that was missing, or did not fit; raises NoTemplate."""
    folder = template.folder
    failed = read_json(_mark(folder))
    if 0 <= time.time() - failed.get("time", 0) < _GIVEN_UP:
        raise NoTemplate(str(failed.get("reason")))
    with contextlib.ExitStack() as stack:
        with _locked(folder.with_name(f"{folder.name}.lock"), spec.boot_timeout):
            try:
                # Somebody else may have made it meanwhile.
                saved = stack.enter_context(template.opened(made_from))
            except NoTemplate:
                _make(spec, template, made_from)
                saved = stack.enter_context(template.opened(made_from))
        yield saved


def _made_from(spec: GuestSpec) -> str:
    """What a saved guest depends on: QEMU, its devices and their order, and the image."""
    machine = machine_to_save(spec, replace(Machine.of(spec).paths, work="", base=""))
    files = [qemu_program(machine.target), spec.kernel, spec.initramfs, spec.root, spec.dtb]
    told = (
        _VERSION,
        qemu_argv(machine, {name: number for number, name in enumerate((*DESCRIPTORS, "ram"))}),
        [(path, _identity(Path(path).resolve())) for path in files if path],
        (spec.scratch, spec.swap),
        _processor() if spec.accelerator == "kvm" else "",
    )
    return repr(told)


def _processor() -> str:
    """What a guest under KVM may depend on of the host's processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    return "\n".join(line for line in lines[:30] if line.startswith(("model", "flags", "stepping")))


@contextlib.contextmanager
def _locked(path: Path, timeout: float) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NoTemplate(
                        f"another process has been making it for {timeout:g} s"
                    ) from None
                time.sleep(_POLL)
        yield
    finally:
        os.close(handle)


def _make(spec: GuestSpec, template: Template, made_from: str) -> None:
    """Boots a guest, saves it aside, and renames that; the caller holds the lock."""
    from guestctl.saving import save  # which most never need

    aside = template.folder.with_name(f".{template.folder.name}")
    for left in (aside, template.folder):
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir(mode=0o700)
    try:
        begin = time.monotonic()
        prepared = save(spec, aside)
        facts: dict[str, Any] = {name: _identity(aside / name) for name in _FILES}
        facts["made_from"] = made_from
        facts |= {"boot": _boot(), "seconds": round(time.monotonic() - begin, 3)}
        pace = pace_of(prepared, target(spec.arch).prepare_seconds)
        facts |= {"prepare_seconds": round(prepared, 4), "pace": pace}
        write_json(aside / "template.json", facts)
        os.rename(aside, template.folder)
        _sweep(template.folder.parent)
    except (GuestctlError, OSError) as error:
        # A time-out that was short on purpose says nothing of the template.
        if spec.boot_timeout >= _FAIR_TIMEOUT:
            _give_up(template.folder, str(error))
        raise NoTemplate(str(error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(templates: Path) -> None:
    """Removes those of an earlier boot: whatever they were made from, nobody will use them."""
    for facts in templates.glob("[!.]*/template.json"):
        if read_json(facts).get("boot") != _boot():
            Template(facts.parent).discard()
