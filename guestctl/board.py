"""The agent of a machine that is no guest of ours, over TCP: each end proves that it has a key, and
every record is checked. docs/protocol.md, "Boards"; guest-init/board.c is the other end.

It hides nothing: what must be secret goes through a tunnel.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import stat
import struct
import threading
from pathlib import Path

from guestctl.errors import BoardError

__all__ = ["DEFAULT_PORT", "Connection", "Forwarder", "make_key", "read_key", "split_address"]

DEFAULT_PORT = 7743
KEY = 32
_MAGIC = b"gctl-b1\n"
_NONCE = 32
_CHECK = 16
_RECORD = 16_384
_TIMEOUT = 10.0
_LENGTH = struct.Struct("<H")
_COUNT = struct.Struct("<Q")


def make_key(path: Path) -> None:
    """Writes a new key, which nobody else may read; raises FileExistsError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "w", encoding="ascii") as file:
        file.write(os.urandom(KEY).hex() + "\n")


def read_key(path: Path) -> bytes:
    """The key in a file of 64 hexadecimal digits; raises BoardError."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise BoardError(f"the key {path} is open to others", hint=f"chmod 600 {path}")
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        raise BoardError(
            f"the key {path}: {error.strerror}", hint="guestctl agent key FILE makes one"
        ) from None
    except ValueError:
        key = b""
    if len(key) != KEY:
        raise BoardError(f"{path} does not hold a key of {2 * KEY} hexadecimal digits")
    return key


def split_address(text: str) -> tuple[str, int]:
    """HOST or HOST:PORT; raises BoardError."""
    host, colon, port = text.partition(":")
    number = int(port) if port.isdigit() else 0
    if not host or (colon and not 0 < number < 65536):
        raise BoardError(f"{text!r} is not HOST or HOST:PORT")
    return host, number or DEFAULT_PORT


class Connection:
    """An authenticated connection. One thread may send while another receives."""

    def __init__(self, address: tuple[str, int], key: bytes) -> None:
        """Connects and greets within ten seconds each; raises BoardError."""
        name = f"{address[0]}:{address[1]}"
        try:
            self._socket = socket.create_connection(address, timeout=_TIMEOUT)
        except OSError as error:
            raise BoardError(f"{name}: {error.strerror or error}") from None
        try:
            self._greet(name, key)
        except OSError as error:
            self.close()
            raise BoardError(f"{name}: {error.strerror or error}") from None
        except BaseException:
            self.close()
            raise
        self._socket.settimeout(None)
        for option, value in (("KEEPIDLE", 30), ("KEEPINTVL", 10), ("KEEPCNT", 3)):
            self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{option}"), value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _greet(self, name: str, key: bytes) -> None:
        ours = os.urandom(_NONCE)
        self._socket.sendall(_MAGIC + ours)
        answer = self._whole(_NONCE + hashlib.sha256().digest_size)
        if answer is None:
            raise BoardError(f"{name} does not greet as an agent does")
        nonces = ours + answer[:_NONCE]
        if not hmac.compare_digest(_derived(key, b"agent", nonces), answer[_NONCE:]):
            raise BoardError(f"{name} does not have our key", hint="copy the key file to it")
        self._socket.sendall(_derived(key, b"host", nonces))
        self._out = hmac.new(_derived(key, b"to agent", nonces), digestmod="sha256")
        self._in = hmac.new(_derived(key, b"to host", nonces), digestmod="sha256")
        self._sent = self._received = 0

    def send(self, data: bytes) -> None:
        """Sends all of it; raises OSError."""
        for at in range(0, len(data), _RECORD):
            record = data[at : at + _RECORD]
            record = _LENGTH.pack(len(record)) + record
            self._socket.sendall(record + _check(self._out, self._sent, record))
            self._sent += 1

    def receive(self) -> bytes:
        """What came, nothing at the end; raises BoardError for a record that was tampered with."""
        head = self._whole(_LENGTH.size)
        if head is None:
            return b""
        (size,) = _LENGTH.unpack(head)
        rest = self._whole(size + _CHECK) if 0 < size <= _RECORD else None
        if rest is None:
            return b""
        wanted = _check(self._in, self._received, head + rest[:size])
        if not hmac.compare_digest(wanted, rest[size:]):
            raise BoardError("a record of the board was changed on its way")
        self._received += 1
        return rest[:size]

    def close(self) -> None:
        """Ends it; who receives in another thread gets the end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _whole(self, size: int) -> bytes | None:
        parts = []
        while size:
            data = self._socket.recv(size)
            if not data:
                return None
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def _derived(key: bytes, label: bytes, nonces: bytes) -> bytes:
    return hmac.digest(key, label + nonces, "sha256")


def _check(key: hmac.HMAC, count: int, record: bytes) -> bytes:
    made = key.copy()
    made.update(_COUNT.pack(count))
    made.update(record)
    return made.digest()[:_CHECK]


class Forwarder:
    """Serves a listening unix socket in a thread: each client is given the board's stream.

    One client at a time. A client whose connection cannot be made gets an end of file, and `fault`
    says why.
    """

    def __init__(self, address: tuple[str, int], key: bytes, listening: socket.socket) -> None:
        self._address = address
        self._key = key
        self._listening = listening
        self.fault = ""
        threading.Thread(target=self._serve, name="guestctl-board", daemon=True).start()

    def close(self) -> None:
        """Takes no more clients."""
        try:
            self._listening.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _serve(self) -> None:
        with self._listening:
            while True:
                try:
                    client, _ = self._listening.accept()
                except OSError:
                    return
                with client:
                    self._join(client)

    def _join(self, client: socket.socket) -> None:
        try:
            board = Connection(self._address, self._key)
        except BoardError as error:
            self.fault = str(error)
            return
        self.fault = ""
        back = threading.Thread(target=self._from_board, args=(board, client), daemon=True)
        back.start()
        try:
            while data := client.recv(1 << 16):
                board.send(data)
        except OSError:
            pass
        board.close()
        back.join(5)

    def _from_board(self, board: Connection, client: socket.socket) -> None:
        try:
            while data := board.receive():
                client.sendall(data)
        except BoardError as error:
            self.fault = str(error)
        except OSError:
            pass
        try:
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
