"""Whether the host may run a tool for a guest, and running it: the first step of the ladder."""

from __future__ import annotations

import os
import posixpath
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from guestctl.errors import UsageError, ViewError
from guestctl.offload.compilers import Compilers
from guestctl.offload.hosts import HostBook
from guestctl.offload.machines import Machines
from guestctl.offload.messages import Request
from guestctl.offload.names import STUBS
from guestctl.offload.place import Place, Unseen, locate, within
from guestctl.offload.relay import Relay, split_call
from guestctl.offload.relaying import Register, relayed
from guestctl.offload.slots import Slot, Slots
from guestctl.offload.words import hidden_path, is_compilation, shows_columns
from guestctl.toolchain import GuestFiles, Pairing, Refusal, Toolchain, bare, check_object
from guestctl.toolchain.response import Response, expand
from guestctl.toolchain.translate import ENVIRONMENT, doubt, translate
from guestctl.view import Bind, Call, Outcome, Tree, View, Written

__all__ = ["Answer", "Plan", "StepDown", "Tools"]

_RESPONSE_MAX = 1 << 20
_MODE_COPIERS = ("strip", "objcopy")
_MODES_MAX = 200  # of one call


@dataclass(frozen=True)
class StepDown:
    """The call is for the next step of the ladder: distcc, or the guest itself."""

    reason: str
    distcc: bool = False
    host: float = 0.0
    waited: float = 0.0
    compile_host: str = ""


@dataclass(frozen=True)
class Answer:
    """What the host's tool has done. Times in seconds. `compile_host` names another machine."""

    status: int
    stdout: bytes
    stderr: bytes
    written: tuple[Written, ...]
    host: float
    waited: float
    compile_host: str = ""


@dataclass(frozen=True)
class Plan:
    """A call that the host may make, and its parts if another machine may do the most of it."""

    toolchain: Toolchain
    call: Call
    relay: Relay | None
    makes_objects: bool
    reads_stdin: bool


class Tools:
    """The tools of the host for one guest, each toolchain with a view of its own.

    `distcc_only`: nothing but compilations leaves the guest, by distcc.
    """

    def __init__(
        self,
        trees: Mapping[str, Tree],
        toolchains: Sequence[Toolchain],
        slots: Slots,
        *,
        cache_dir: Path,
        runtime: Path,
        hosts: HostBook,
        distcc_only: bool = False,
    ) -> None:
        self._trees = trees
        self._slots = slots
        self._cache_dir = cache_dir
        self.distcc_only = distcc_only
        self._toolchains = toolchains
        self._compilers = Compilers(trees, toolchains, cache_dir)
        self._views: dict[str, View] = {}
        self._closed = False
        self.machines = Machines(hosts, runtime, self._view)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Ends every view, and what runs in them; there will be no more."""
        with self._lock:
            self._closed = True
        self._end_views()

    def _end_views(self) -> None:
        with self._lock:
            for view in self._views.values():
                view.close()
            self._views.clear()

    def renew(self) -> None:
        """Forgets what was seen of trees that do not change. No call may be under way."""
        self._end_views()
        self._compilers = Compilers(self._trees, self._toolchains, self._cache_dir)

    def plan(
        self, request: Request, caller: Mapping[int, bytes], *, remote: bool = False
    ) -> Plan | StepDown:
        """What to run for a call, or why not. `remote` is a call that distcc has sent: it needs no
        file of the guest."""
        place = locate(caller)
        if isinstance(place, Unseen):
            return StepDown(place.reason)
        path = [folder for folder in request.path if folder != STUBS]
        if not all(folder.startswith(b"/") for folder in path):
            return StepDown("a folder in PATH that is not absolute")
        pairing = self._compilers.find(place, request.program, path)
        if isinstance(pairing, str):
            return StepDown(pairing)
        response = self._response(request, place)
        if not remote:
            step = self._first_step(request, place, response)
            if step is not None:
                return step
        environ = {
            name: request.environment[name] for name in ENVIRONMENT if name in request.environment
        }
        command = translate(
            pairing,
            request.program,
            request.argv,
            environ,
            response,
            lambda folder: self._bare(posixpath.join(request.cwd, folder), place, pairing),
        )
        if isinstance(command, Refusal):
            return StepDown(command.reason)
        call = Call(
            program=command.program,
            argv=command.argv,
            environment=command.environ,
            cwd=request.cwd,
            mounts=place.mounts,
            umask=request.umask,
            binds=tuple(Bind(source, at) for source, at in command.binds),
            modes=_copied_modes(pairing.role, request),
        )
        relay = split_call(pairing.role, command.argv) if self.machines.listed() else None
        return Plan(pairing.toolchain, call, relay, command.makes_objects, command.reads_stdin)

    def _response(self, request: Request, place: Place) -> Response:
        """Reads the files that @FILE names, as the tool would."""
        files = GuestFiles(self._trees, place.mounts)

        def read(name: bytes) -> bytes | None:
            try:
                with files.open(posixpath.join(request.cwd, name)) as file:
                    text = file.read(_RESPONSE_MAX + 1)
            except OSError:
                return None
            if len(text) > _RESPONSE_MAX:
                raise UsageError("a response file too large")
            return text

        return read

    def _bare(self, folder: bytes, place: Place, pairing: Pairing) -> bool:
        """Whether a call may have this folder searched before the compiler's own."""
        files = GuestFiles(self._trees, place.mounts)
        try:
            real = files.realpath(folder)
        except OSError:
            return False
        seen = not any(within(real, at) or within(at, real) for at in place.hidden)
        return seen and bare(files, real, pairing.toolchain.triplet)

    def _first_step(self, request: Request, place: Place, response: Response) -> StepDown | None:
        """Where a call whose compiler is known must go, other than to the host; None: nowhere.

        Its files may be sent by distcc, wherever they lie, unless that could be seen in the object.
        """
        distcc = is_compilation(request.name, request.argv)
        distcc = distcc and (self.distcc_only or not shows_columns(request.argv))
        if self.distcc_only:
            return StepDown("--offload distcc" if distcc else "distcc compiles only", distcc)
        words = [*request.argv, *expand(request.argv[1:], response)]
        unseen = hidden_path(request.cwd, words, place.hidden)
        if unseen is None:
            return None
        return StepDown(f"out of the host's sight: {_text(unseen)}", distcc)

    def run(self, plan: Plan, stdin: bytes | None, register: Register) -> Answer | StepDown:
        """Runs a planned call; `register` gets what kills it. Raises GuestctlError."""
        view = self._view(plan.toolchain)
        waited = 0.0
        try:
            if plan.relay is not None:
                compilers = self.machines.ready(plan.toolchain, plan.relay.language)
                by_host = {far.host: far for far in compilers}
                with self._slots.taken(list(by_host)) as slot:
                    if slot.host is None:
                        return self._here(plan, stdin, view, slot.waited, register)
                    far = by_host[slot.host]
                    outcome = relayed(plan.call, plan.relay, far, view, self.machines, register)
                if outcome is not None and not _fault(outcome, plan):
                    return _answer(outcome, slot)
                waited = slot.waited
            with self._slots.taken() as slot:
                return self._here(plan, stdin, view, waited + slot.waited, register)
        except ViewError:
            self._forget(view)
            raise

    def _here(
        self, plan: Plan, stdin: bytes | None, view: View, waited: float, register: Register
    ) -> Answer | StepDown:
        """The same, in a slot of this host's."""
        call = replace(plan.call, stdin=stdin)
        outcome = view.call(call, lambda: register(lambda: view.cancel(call)))
        fault = _fault(outcome, plan)
        if fault:
            return StepDown(fault, host=outcome.wall, waited=waited)
        return _answer(outcome, Slot(waited))

    def _forget(self, lost: View) -> None:
        """The next call gets a view of its own."""
        with self._lock:
            self._views = {id_: view for id_, view in self._views.items() if view is not lost}
        lost.close()

    def _view(self, toolchain: Toolchain) -> View:
        with self._lock:
            if self._closed:
                raise ViewError("the lease is over")
            view = self._views.get(toolchain.id)
            if view is None:
                view = View(self._trees, toolchain.path, cache_dir=self._cache_dir)
                self._views[toolchain.id] = view
            return view


def _answer(outcome: Outcome, slot: Slot) -> Answer:
    assert outcome.status is not None
    return Answer(
        outcome.status,
        outcome.stdout,
        outcome.stderr,
        outcome.written,
        outcome.wall,
        slot.waited,
        slot.host.name if slot.host else "",
    )


def _copied_modes(role: str, request: Request) -> tuple[bytes, ...]:
    """The files whose modes a tool copies: the view must show the guest's."""
    if role not in _MODE_COPIERS:
        return ()
    words = (word for word in request.argv[1:] if word and not word.startswith(b"-"))
    return tuple(os.path.join(request.cwd, word) for word in words)[:_MODES_MAX]


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


def _fault(outcome: Outcome, plan: Plan) -> str:
    """Why an outcome is not to be used; empty for the tool's own word."""
    if outcome.trouble:
        return f"the host's tool: {outcome.trouble}"
    if outcome.status is None:
        return f"the host's tool was ended by signal {outcome.signal}"
    for file in outcome.written:
        if file.kind not in ("file", "gone"):
            return f"the tool made a {file.kind}"
        if plan.makes_objects and file.data.startswith(b"\x7fELF"):
            wrong = check_object(file.data, plan.toolchain.arch)
            if wrong:
                return f"the host's object is wrong: {wrong}"
    reason = doubt(outcome.status, outcome.stderr)
    return f"only the guest can judge: {reason}" if reason else ""
