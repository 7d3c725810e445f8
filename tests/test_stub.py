"""The stub of guest-init, built for this machine with sanitizers, against a service of a test.

It finds the agent by a name in its network namespace, so each test has one to itself.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl.offload.messages import Decoder, Request, message, number, pieces

ROOT = Path(__file__).parent.parent
# In a namespace of its own: listens as the agent does, then runs the stub under the name gcc.
BESIDE = """
import os, socket, subprocess, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(b"\\0guestctl")
listener.listen()
ours = socket.socket(fileno=int(sys.argv[1]))
if os.fork() == 0:
    stream, _ = listener.accept()
    socket.send_fds(ours, [b"stream"], [stream.fileno()])
    os._exit(0)
ours.close()
os.chdir(sys.argv[2])
for folder in sys.argv[3:]:
    os.chmod(folder, 0)
os.execvp("gcc", ["gcc", "-c", "a b.c"])
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stub")
    command = ["make", "-s", "-C", ROOT / "guest-init", f"OUT={out}", f"{out}/host-stub"]
    subprocess.run(command, check=True, timeout=300)
    return out / "host-stub"


class Called:
    """A stub that has been called in `work`, and the host's end of its connection."""

    def __init__(self, stub: Path, tmp_path: Path, *sealed: Path) -> None:
        self.work = tmp_path / "sealed" / "work"
        self.work.mkdir(parents=True)
        for name in ("stubs", "own"):
            (tmp_path / name).mkdir()
        (tmp_path / "stubs" / "gcc").symlink_to(stub)
        own = tmp_path / "own" / "gcc"
        own.write_text('#!/bin/sh\necho own "$#" "$PATH"\nexit 3\n')
        own.chmod(0o755)
        self.own = own
        path = f"{tmp_path / 'stubs'}:{tmp_path / 'own'}:/usr/bin:/bin"
        mine, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                ["unshare", "--user", "--net", sys.executable, "-c", BESIDE,
                 str(theirs.fileno()), self.work, *sealed],
                env={"PATH": path}, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        with mine:
            mine.settimeout(60)
            _, (handle,), _, _ = socket.recv_fds(mine, 16, 1)
        self.stream = socket.socket(fileno=handle)
        self.stream.settimeout(60)
        service = b""
        while not service.endswith(b"\n"):
            service += self.stream.recv(1)
        assert service == b"offload\n"
        self._messages = self._read()
        self.request = Request.collect(self._messages)

    def _read(self) -> Iterator[tuple[bytes, bytes]]:
        decoder = Decoder()
        while data := self.stream.recv(65536):
            yield from decoder.feed(data)

    def answer(self, *parts: bytes) -> tuple[int, bytes, dict[bytes, bytes]]:
        """Status, output, and what the stub has said after an answer."""
        self.stream.sendall(b"".join(parts))
        self.stream.shutdown(socket.SHUT_WR)
        said = dict(self._messages)
        stdout, stderr = self.process.communicate(timeout=60)
        assert b"ERROR" not in stderr, stderr
        return self.process.returncode, stdout + stderr, said


def made(path: Path, data: bytes) -> bytes:
    head = struct.pack("<II", 0, 0o640) + os.fsencode(path)
    return message(b"f", head) + b"".join(pieces(b"d", data))


def test_a_call_is_sent_as_it_is_and_the_answer_done(stub: Path, tmp_path: Path) -> None:
    called = Called(stub, tmp_path)
    request = called.request
    assert (request.name, request.argv) == (b"gcc", (b"gcc", b"-c", b"a b.c"))
    assert (request.program, request.cwd) == (os.fsencode(called.own), os.fsencode(called.work))
    big = os.urandom(200_000)
    (called.work / "old").write_text("old")
    status, output, said = called.answer(
        made(called.work / "new.o", big),
        message(b"r", os.fsencode(called.work / "old")),
        *pieces(b"o", b"out"),
        *pieces(b"e", b"err"),
        number(b"x", 7),
    )
    assert (status, output) == (7, b"outerr")
    assert (called.work / "new.o").read_bytes() == big
    assert (called.work / "new.o").stat().st_mode & 0o777 == 0o640
    assert not (called.work / "old").exists()
    # How long the files took, before and after.
    assert len(said[b"T"]) == 8


def test_files_below_the_working_directory_need_nothing_above_it(
    stub: Path, tmp_path: Path
) -> None:
    sealed = tmp_path / "sealed"
    called = Called(stub, tmp_path, sealed)
    try:
        status, output, said = called.answer(made(called.work / "x.o", b"x"), number(b"x", 0))
    finally:
        sealed.chmod(0o755)
    assert (status, output, b"W" in said) == (0, b"", False)
    assert (called.work / "x.o").read_bytes() == b"x"


def test_what_steps_down_runs_the_next_of_its_name(stub: Path, tmp_path: Path) -> None:
    called = Called(stub, tmp_path)
    status, output, said = called.answer(message(b"n"))
    assert status == 3
    assert output == f"own 2 {tmp_path / 'own'}:/usr/bin:/bin\n".encode()
    assert set(said) == {b"T"}


def test_a_file_that_cannot_be_written_is_told_and_left_to_the_program(
    stub: Path, tmp_path: Path
) -> None:
    called = Called(stub, tmp_path)
    status, output, said = called.answer(made(tmp_path / "none" / "x.o", b"x"), number(b"x", 0))
    assert status == 3 and output.startswith(b"own 2")
    assert said[b"W"] == b"No such file or directory"
