"""Commands of the agent on a terminal."""

from __future__ import annotations

import struct

from tests.agent import client as wire
from tests.agent.client import Client, frame
from tests.native.agent import PATH, python, shell


def terminal(rows: int = 24, columns: int = 80) -> tuple[int, bytes]:
    return (wire.TTY, struct.pack("<4H", rows, columns, 0, 0))


def window(client: Client, ident: int, rows: int, columns: int) -> None:
    client.send(frame(wire.RESIZE, ident, struct.pack("<4H", rows, columns, 0, 0)))


def test_a_terminal_is_the_controlling_one(client: Client) -> None:
    job = client.run(
        shell("stty size; tty; echo on >/dev/tty; echo err >&2; exit 6"), PATH, terminal(33, 99)
    )
    lines = job.out[1].split(b"\r\n")
    assert lines[0] == b"33 99"
    assert lines[1].startswith(b"/dev/pts/")
    assert lines[2:] == [b"on", b"err", b""]
    assert not job.out[2]
    assert job.exit is not None and (job.exit.kind, job.exit.value) == (0, 6)


def test_a_terminal_passes_every_byte_when_it_is_raw(client: Client) -> None:
    script = "stty raw -echo; echo go; head -c 512 | od -An -v -tu1 | tr -s ' \\n' ' '"
    ident = client.start(shell(script), PATH, terminal(), eof=False)
    job = client.jobs[ident]
    client.until(lambda: job.out[1] == b"go\n")
    client.feed(ident, bytes(range(256)) * 2, eof=False)
    client.until(lambda: job.over)
    assert job.out[1][3:].split() == [b"%d" % n for n in range(256)] * 2


def test_all_that_was_written_to_a_terminal_arrives(client: Client) -> None:
    """Much of it, and the command ends at once: nothing may be lost with the hang-up."""
    job = client.run(
        python("import sys; sys.stdout.buffer.write(b'0123456789abcde\\n' * 100000)"), terminal()
    )
    assert bytes(job.out[1]) == b"0123456789abcde\r\n" * 100000


def test_control_keys_of_a_terminal(client: Client) -> None:
    """Ctrl-C ends what is in the foreground, Ctrl-D is the end of its input."""
    script = "trap 'echo int' INT; sh -c 'echo up; exec cat'; cat; echo end"
    ident = client.start(shell(script), PATH, terminal(), eof=False)
    job = client.jobs[ident]
    client.until(lambda: b"up" in job.out[1])
    client.feed(ident, b"\x03", eof=False)
    client.until(lambda: b"int" in job.out[1])
    client.feed(ident, b"text\n\x04", eof=False)
    client.until(lambda: job.over)
    assert job.out[1].endswith(b"text\r\ntext\r\nend\r\n")


def test_a_window_that_changes_is_signalled(client: Client) -> None:
    script = "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.05; done"
    ident = client.start(shell(script), PATH, terminal(), eof=False)
    job = client.jobs[ident]
    client.until(lambda: b"up" in job.out[1])
    window(client, ident, 50, 132)
    client.until(lambda: job.over)
    assert b"50 132" in job.out[1]


def test_a_terminal_that_the_command_closes_and_opens_again(client: Client) -> None:
    script = "exec </dev/null >/dev/null 2>&1; sleep 0.2; echo back >/dev/tty"
    assert client.run(shell(script), PATH, terminal()).out[1] == b"back\r\n"


def test_the_end_of_stdin_does_not_end_a_terminal(client: Client) -> None:
    ident = client.start(shell("echo up; sleep 0.2; echo still"), PATH, terminal(), eof=True)
    client.until(lambda: client.jobs[ident].over)
    assert client.jobs[ident].out[1] == b"up\r\nstill\r\n"


def test_a_terminal_of_a_wrong_size_is_an_error(client: Client) -> None:
    job = client.run([b"/bin/true"], (wire.TTY, bytes(7)))
    assert job.failed is not None and job.failed[:2] == (71, 1)


def test_a_window_for_a_job_without_a_terminal_is_nothing(client: Client) -> None:
    ident = client.start([b"/bin/cat"], eof=False)
    window(client, ident, 1, 1)
    window(client, ident + 1, 1, 1)
    client.feed(ident, b"")
    client.until(lambda: client.jobs[ident].over)
