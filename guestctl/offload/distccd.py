"""A conversation with a distccd: one compilation, by protocol 1 of distcc, or 2 with LZO."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guestctl.errors import OffloadError, ProtocolError
from guestctl.offload.hosts import CompileHost
from guestctl.offload.tokens import TokenReader, token

__all__ = ["Compiled", "HostFailed", "compile_there"]

_CONNECT = 5.0
_ANSWER = 600.0
_MADE_MAX = 256 << 20
_OUTPUT_MAX = 16 << 20
# A machine that is gone without a word is noticed after some 25 seconds.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000),
)


class HostFailed(OffloadError):
    """A compile host was lost, or does not answer as a distccd that has the compiler."""


@dataclass(frozen=True)
class Compiled:
    """What came back; `status` is that of waitpid(2)."""

    status: int
    stdout: bytes
    stderr: bytes
    made: bytes


def compile_there(
    host: CompileHost,
    argv: Sequence[bytes],
    source: bytes,
    register: Callable[[Callable[[], None]], None] = lambda _cancel: None,
) -> Compiled:
    """Has a host run a compiler on one preprocessed source; raises HostFailed.

    `register` gets what gives the compilation up.
    """
    try:
        connection = socket.create_connection((host.address, host.port), timeout=_CONNECT)
    except OSError as error:
        raise HostFailed(f"{host.name}: {error.strerror or error}") from None
    with connection:
        for level, option, value in _KEEPALIVE:
            connection.setsockopt(level, option, value)
        connection.settimeout(_ANSWER)
        register(lambda: _give_up(connection))
        try:
            _send(connection, host, argv, source)
            return _answer(TokenReader(connection), host)
        except ProtocolError:
            raise HostFailed(
                f"{host.name}: it does not run {argv[0].decode(errors='replace')}",
                hint="its distccd must have the compiler, and be allowed to run it",
            ) from None
        except OSError as error:
            raise HostFailed(f"{host.name}: {error.strerror or error}") from None


def _give_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _send(
    connection: socket.socket, host: CompileHost, argv: Sequence[bytes], source: bytes
) -> None:
    head = b"DIST%08xARGC%08x" % (2 if host.lzo else 1, len(argv))
    words = b"".join(token(b"ARGV", word) for word in argv)
    body = source
    if host.lzo:
        from guestctl.offload import lzo

        body = lzo.compress(source)
    try:
        connection.sendall(head + words + token(b"DOTI", body))
    except (BrokenPipeError, ConnectionResetError):
        # It has refused already; whether it has said anything is for the reader to find out.
        pass


def _answer(reader: TokenReader, host: CompileHost) -> Compiled:
    if reader.number(b"DONE") != (2 if host.lzo else 1):
        raise ProtocolError("another protocol")
    status = reader.number(b"STAT")
    limits = ((b"SERR", _OUTPUT_MAX), (b"SOUT", _OUTPUT_MAX), (b"DOTO", _MADE_MAX))
    stderr, stdout, made = (reader.value(name, most) for name, most in limits)
    if host.lzo:
        from guestctl.offload import lzo

        stderr, stdout = lzo.expand(stderr, _OUTPUT_MAX), lzo.expand(stdout, _OUTPUT_MAX)
        made = lzo.expand(made, _MADE_MAX)
    return Compiled(status, stdout, stderr, made)
