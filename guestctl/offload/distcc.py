"""The service `distcc`: what a distccd would answer, with the tool in the same confined view.

The guest's distcc preprocesses there and sends one compilation a connection. Protocol 1 of
distcc's doc/protocol-1.txt: tokens of four letters with eight hexadecimal digits, the bytes of
their value after some. A distccd of the host would trust its caller's options; here they are
translated and confined as all others, and nothing has to be installed.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from guestctl.errors import GuestctlError, ProtocolError
from guestctl.offload.messages import Request
from guestctl.offload.relaying import Register
from guestctl.offload.tokens import TokenReader, token
from guestctl.offload.tools import Answer, StepDown, Tools
from guestctl.view import Given

__all__ = ["Distcc", "DistccCall", "encode_answer", "read_call"]

# Where source and object lie in the view; the source's own name is in what it holds.
_SOURCE, _OBJECT = b"/.guestctl-distcc", b"/.guestctl-distcc.o"
_ARGUMENTS_MAX = 4096
_ARGUMENT_MAX = 1 << 16
_SOURCE_MAX = 256 << 20
_TIMEOUT = 600.0
# What a source is called once it is preprocessed: gcc takes the language from the name.
_PREPROCESSED = {
    b"c": b".i", b"i": b".i",
    b"cc": b".ii", b"cpp": b".ii", b"cxx": b".ii", b"cp": b".ii", b"c++": b".ii", b"C": b".ii",
    b"ii": b".ii",
}  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistccCall:
    """One compilation: the options as the guest's distcc sends them, and the source."""

    argv: tuple[bytes, ...]
    source: bytes

    def moved(self, source: bytes, output: bytes) -> tuple[list[bytes], bytes]:
        """The same options for files elsewhere, and the source's name with its suffix; raises
        ProtocolError for what is no compilation of one file."""
        argv = list(self.argv)
        found = [at for at, word in enumerate(argv[1:], 1) if _is_source(argv, at, word)]
        if len(found) != 1 or argv.count(b"-c") != 1 or argv[:-1].count(b"-o") != 1:
            raise ProtocolError("not a compilation of one source")
        name = source + _PREPROCESSED[argv[found[0]].rpartition(b".")[2]]
        argv[found[0]] = name
        argv[argv.index(b"-o") + 1] = output
        return argv, name


def read_call(connection: socket.socket) -> DistccCall:
    """Takes a request from a connection; raises ProtocolError."""
    data = TokenReader(connection)
    if data.number(b"DIST") != 1:
        raise ProtocolError("not protocol 1 of distcc")
    count = data.number(b"ARGC")
    if not 1 <= count <= _ARGUMENTS_MAX:
        raise ProtocolError(f"a call with {count} arguments")
    argv = tuple(data.value(b"ARGV", _ARGUMENT_MAX) for _ in range(count))
    if any(b"\0" in word for word in argv):
        raise ProtocolError("an argument with a zero byte")
    return DistccCall(argv, data.value(b"DOTI", _SOURCE_MAX))


def encode_answer(status: int, stderr: bytes, stdout: bytes, made: bytes | None) -> bytes:
    """What distcc waits for; `status` is as of waitpid(2)."""
    values = ((b"SERR", stderr), (b"SOUT", stdout), (b"DOTO", made or b""))
    head = b"DONE%08xSTAT%08x" % (1, status)
    return head + b"".join(token(name, value) for name, value in values)


class Distcc:
    """Serves the distcc of one guest, and remembers what it has done for each job."""

    def __init__(self, tools: Tools, slots: int) -> None:
        self._tools = tools
        self._slots = slots
        self._served: dict[tuple[int, bytes], list[str]] = {}
        self._lock = threading.Lock()

    def settings(self) -> bytes:
        """The environment that leads a guest's distcc to us, each variable ended by a zero byte."""
        hosts = f"--localslots=1 --localslots_cpp={2 * self._slots} @guestctl/{self._slots}"
        variables = {
            "DISTCC_HOSTS": hosts,
            "DISTCC_SSH": "/tools/offload/connect",
            # An output that could not be written is not our failure: no minute without us.
            "DISTCC_BACKOFF_PERIOD": "1",
            # What we leave to the guest is nobody's to read about but in the ledger.
            "DISTCC_LOG": "/dev/null",
        }
        return b"".join(f"{name}={value}\0".encode() for name, value in variables.items())

    def serve(self, connection: socket.socket, caller: Mapping[int, bytes], job: int) -> None:
        """Answers one connection. To distcc a failure without a word means: do it where you are."""
        connection.settimeout(_TIMEOUT)
        answer = encode_answer(1 << 8, b"", b"", None)
        try:
            call = read_call(connection)
            with _killed_with(connection) as register:
                done = self._compile(call, caller, register)
            if isinstance(done, Answer):
                # Before the answer, with which the guest's distcc may end.
                with self._lock:
                    key = (job, _source_of(call.argv))
                    self._served.setdefault(key, []).append(done.compile_host)
                answer = encode_answer(0, done.stderr, done.stdout, done.written[0].data)
            else:
                _log.info("distcc: %s", done.reason)
        except (GuestctlError, OSError) as error:
            _log.info("distcc: %s", error)
        try:
            connection.sendall(answer)
        except OSError as error:
            _log.info("distcc: the caller has gone: %s", error)

    def _compile(
        self, call: DistccCall, caller: Mapping[int, bytes], register: Register
    ) -> Answer | StepDown:
        argv, name = call.moved(_SOURCE, _OBJECT)
        environment = {b"PATH": b"/usr/bin:/bin"}
        request = Request(call.argv[0], call.argv[0], b"/", 0o022, tuple(argv), environment)
        plan = self._tools.plan(request, caller, remote=True)
        if isinstance(plan, StepDown):
            return plan
        given = replace(plan, call=replace(plan.call, given=(Given(name, call.source),)))
        done = self._tools.run(given, None, register)
        if isinstance(done, StepDown):
            return done
        if done.status or len(done.written) != 1 or (done.stderr and not self._tools.distcc_only):
            # What is said of a source must be said of the real one.
            return StepDown(f"left to the guest, with status {done.status}")
        return done

    def took(self, job: int, argv: Sequence[bytes]) -> str | None:
        """Whether a call of a job was served here, which it says once for each time: the compile
        host that did it, nothing for this one, None if it was not."""
        key = (job, _source_of(argv))
        with self._lock:
            hosts = self._served.get(key)
            if not hosts:
                return None
            host = hosts.pop(0)
            if not hosts:
                del self._served[key]
            return host


@contextmanager
def _killed_with(connection: socket.socket) -> Iterator[Register]:
    """What is registered meanwhile is called when the caller ends, or its guest: until it has its
    answer, a connection says nothing and stays open."""
    cancels: list[Callable[[], None]] = []
    lock = threading.Lock()
    gone = False
    over = os.eventfd(0, os.EFD_CLOEXEC)

    def watch() -> None:
        nonlocal gone
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(over, select.POLLIN)
        if any(handle == over for handle, _ in poll.poll()):
            return
        with lock:
            gone = True
        for cancel in cancels:
            cancel()

    def register(cancel: Callable[[], None]) -> None:
        with lock:
            cancels.append(cancel)
        if gone:
            cancel()

    watcher = threading.Thread(target=watch, name="distcc-watch", daemon=True)
    watcher.start()
    try:
        yield register
    finally:
        os.eventfd_write(over, 1)
        watcher.join()
        os.close(over)


def _source_of(argv: Sequence[bytes]) -> bytes:
    return next((word for at, word in enumerate(argv) if at and _is_source(argv, at, word)), b"")


def _is_source(argv: Sequence[bytes], at: int, word: bytes) -> bool:
    if word.startswith(b"-") or argv[at - 1] in _TAKE_NEXT:
        return False
    return word.rpartition(b".")[2] in _PREPROCESSED


_TAKE_NEXT = frozenset(
    (b"-o", b"-x", b"-MF", b"-MT", b"-MQ", b"-include", b"--param", b"-aux-info")
)
