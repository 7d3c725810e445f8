"""The service `offload`: calls of tools in a guest that the host carries out, or hands back.

A call comes from the stub (guest-init/stub.c). What the guest says is never trusted: it names
files of its own trees only, which the view confines, and every answer is about its own call.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from guestctl.agent import Agent, Job
from guestctl.errors import GuestctlError, ProtocolError
from guestctl.offload.conversation import Conversation
from guestctl.offload.distcc import Distcc
from guestctl.offload.ledger import Entry, Ledger
from guestctl.offload.messages import IN_PLACE, Request, message, number, pieces
from guestctl.offload.names import DISTCC, OFFLOAD
from guestctl.offload.tools import Answer, StepDown, Tools
from guestctl.offload.words import step_of
from guestctl.services import serve
from guestctl.view import Written
from guestctl.wire import Tag

__all__ = ["Service"]

_STDIN_MAX = 64 << 20
_STDIN_DEADLINE = 600.0
_READERS = 256  # as many as the agent has streams
_WORKERS = 32
_SPENT = struct.Struct("<II")  # microseconds for pending files, and for those of the answer
_log = logging.getLogger(__name__)


class Service:
    """Serves the stubs and the distcc of one guest, from the moment that it is made to `close`."""

    def __init__(
        self, agent: Agent, tools: Tools, ledger: Ledger, *, guest: str, slots: int
    ) -> None:
        self._agent = agent
        self._tools = tools
        self._ledger = ledger
        self._guest = guest
        self.session = time.time()
        self._open = 0
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(_READERS, "offload-reader")
        self._workers = ThreadPoolExecutor(_WORKERS, "offload-worker")
        self._distcc = Distcc(tools, slots)
        self._opening = {OFFLOAD: self._opened, DISTCC: self._opened_by_distcc}
        for name, opened in self._opening.items():
            agent.offer(name, opened)

    @property
    def busy(self) -> bool:
        """Whether a call has begun and is not in the ledger yet."""
        return self._open > 0

    def opened(self, name: bytes, stream: Job) -> None:
        """Serves a stream that was opened to one of our services before they were ours."""
        self._opening[name](stream)

    def close(self) -> None:
        """Ends what runs. The agent's session must have been closed before."""
        self._readers.shutdown(wait=False)
        self._workers.shutdown(wait=False)

    def _opened(self, stream: Job) -> None:
        with self._lock:
            self._open += 1
        self._readers.submit(self._read, Conversation(self._agent, stream))

    def _opened_by_distcc(self, stream: Job) -> None:
        caller = stream.caller
        serve(self._agent, stream, lambda link: self._distcc.serve(link, caller, job_of(caller)))

    def _read(self, talk: Conversation) -> None:
        """One connection, from its first message to its end, which is the end of the call."""
        call = _Call(talk, self._tools, self._ledger, self._distcc)
        try:
            messages = talk.messages()
            call.request = Request.collect(messages)
            done = self._workers.submit(call.work)
            try:
                for kind, payload in messages:
                    call.hear(kind, payload)
            finally:
                call.leave(done)
            call.check()
            self._ledger.add(call.entry(self._guest, self.session))
        except ProtocolError as error:
            _log.warning("a stub of %s: %s", self._guest, error)
        except GuestctlError as error:
            _log.info("a call of %s is lost: %s", self._guest, error)
        except Exception:
            _log.exception("a call of %s failed", self._guest)
        finally:
            # Whoever still waits then runs its own program.
            talk.close()
            with self._lock:
                self._open -= 1


@dataclass
class _Call:
    """One call: `hear` and `leave` in the reading thread, `work` in another."""

    talk: Conversation
    tools: Tools
    ledger: Ledger
    distcc: Distcc
    request: Request = field(init=False)
    begin: float = field(default_factory=time.time)
    _stdin: bytearray = field(default_factory=bytearray)
    _stdin_done: threading.Event = field(default_factory=threading.Event)
    _gone: threading.Event = field(default_factory=threading.Event)
    _cancel: Callable[[], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _share: float = 0.0
    _answer: Answer | StepDown = field(default_factory=lambda: StepDown("the caller has gone"))

    def hear(self, kind: bytes, payload: bytes) -> None:
        if kind == b"I" and len(self._stdin) + len(payload) <= _STDIN_MAX:
            self._stdin += payload
        elif kind == b"Z":
            self._stdin_done.set()
        elif kind == b"T" and len(payload) == _SPENT.size:
            self._share = sum(_SPENT.unpack(payload)) / 1e6
        elif kind == b"W":
            text = payload.decode(errors="replace")
            self._answer = StepDown(f"an output cannot be written: {text}")
            self.ledger.count(self._job, "offload", -1)
            self.ledger.count(self._job, "guest")
        else:
            raise ProtocolError(f"an unexpected message {kind!r}")

    def leave(self, done: Future[None]) -> None:
        """The caller has ended, or was killed: then so is what runs for it."""
        self._gone.set()
        self._stdin_done.set()
        with self._lock:
            cancel = self._cancel
        if cancel is not None:
            cancel()
        done.result()

    def work(self) -> None:
        """Carries the call out and answers."""
        answer = self._decide()
        if self._gone.is_set():
            return
        self._answer = answer
        self.ledger.count(self._job, _where(answer))
        try:
            if isinstance(answer, StepDown):
                settings = self.distcc.settings() if answer.distcc else b""
                self.talk.send(message(b"n", settings))
            else:
                self.talk.send(_encode(answer))
            self.talk.close()
        except (GuestctlError, TimeoutError) as error:
            self._answer = StepDown(f"the answer was not taken: {error}")

    def _decide(self) -> Answer | StepDown:
        try:
            plan = self.tools.plan(self.request, self.talk.caller)
            if isinstance(plan, StepDown):
                return plan
            stdin = self._read_stdin() if plan.reads_stdin else None
            return self.tools.run(plan, stdin, self._register)
        except GuestctlError as error:
            return StepDown(str(error))
        except Exception as error:
            # One call's failure is that caller's step down, and nobody else's business.
            _log.exception("a call failed")
            return StepDown(f"guestctl failed: {error}")

    def _read_stdin(self) -> bytes:
        self.talk.send(message(b"i"))
        if not self._stdin_done.wait(_STDIN_DEADLINE):
            raise ProtocolError("no end of standard input")
        return bytes(self._stdin)

    def _register(self, cancel: Callable[[], None]) -> None:
        """Called with what kills the tool, before it starts."""
        with self._lock:
            self._cancel = cancel
        if self._gone.is_set():
            cancel()

    @property
    def _job(self) -> int:
        return job_of(self.talk.caller)

    def check(self) -> None:
        """A call that was left to distcc ran in the guest if distcc never came."""
        answer = self._answer
        if not isinstance(answer, StepDown) or not answer.distcc:
            return
        host = self.distcc.took(self._job, self.request.argv)
        if host is not None:
            self._answer = replace(answer, compile_host=host)
        else:
            self._answer = replace(answer, distcc=False)
            self.ledger.count(self._job, "distcc", -1)
            self.ledger.count(self._job, "guest")

    def entry(self, guest: str, session: float) -> Entry:
        """For the ledger, once the caller has ended."""
        request, answer = self.request, self._answer
        facts: dict[str, Any]
        if isinstance(answer, StepDown):
            facts = {"status": None, "reason": answer.reason}
        else:
            written = sum(len(file.data) for file in answer.written)
            facts = {"status": answer.status}
            facts["written"] = written + len(answer.stdout) + len(answer.stderr)
        return Entry(
            guest=guest,
            where=_where(answer),
            job=self._job,
            tool=_text(request.name),
            step=step_of(request.name, request.argv, request.cwd),
            argv=[_text(word) for word in request.argv],
            cwd=_text(request.cwd),
            begin=self.begin,
            seconds=time.time() - self.begin,
            host=answer.host,
            waited=answer.waited,
            compile_host=answer.compile_host,
            share=self._share,
            read=len(self._stdin),
            session=session,
            **facts,
        )


def job_of(caller: Mapping[int, bytes]) -> int:
    """The job that a caller belongs to; 0 if the agent does not know."""
    return int.from_bytes(caller.get(Tag.JOB, b""), "little")


def _where(answer: Answer | StepDown) -> str:
    if isinstance(answer, Answer):
        return "offload"
    return "distcc" if answer.distcc else "guest"


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _encode(answer: Answer) -> bytes:
    """All that the stub is to do: files first, so that they are there when the output is seen."""
    parts = [part for file in answer.written for part in _encode_file(file)]
    parts += pieces(b"o", answer.stdout)
    parts += pieces(b"e", answer.stderr)
    parts.append(number(b"x", answer.status))
    return b"".join(parts)


def _encode_file(file: Written) -> list[bytes]:
    if file.kind == "gone":
        return [message(b"r", file.path)]
    in_place = file.mode is None
    flags = IN_PLACE if in_place else 0
    mode = 0o666 if file.mode is None else file.mode
    head = flags.to_bytes(4, "little") + mode.to_bytes(4, "little")
    return [message(b"f", head + file.path), *pieces(b"d", file.data)]
