"""Terminals of a guest in a real one: tmux types and looks at the screen."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestctl import PIPE, Pool
from tests.fairness import FOREVER

GUESTCTL = f"{shlex.quote(sys.executable)} -m guestctl"


class Tmux:
    """One terminal in a server of its own; a shell runs in it."""

    def __init__(self, folder: Path) -> None:
        self._argv = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        env.pop("TMUX", None)
        self("new-session", "-d", "-x", "80", "-y", "24", "sh", env=env)
        self.until(lambda screen: "$" in screen)
        self.line("PS1='host> '; clear")
        self.sees("host>")

    def __call__(self, *argv: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*self._argv, *argv], capture_output=True, text=True, check=True, timeout=30, env=env
        )
        return done.stdout

    def type(self, text: str, *keys: str) -> None:
        """Types `text` as it is, then keys by their names."""
        if text:
            self("send-keys", "-l", text)
        if keys:
            self("send-keys", *keys)

    def line(self, text: str) -> None:
        self.type(text, "Enter")

    def screen(self) -> str:
        return self("capture-pane", "-p")

    def until(self, done: Callable[[str], object], seconds: float = FOREVER) -> str:
        deadline = time.monotonic() + seconds
        while not done(screen := self.screen()):
            assert time.monotonic() < deadline, screen
            time.sleep(0.05)
        return screen

    def sees(self, text: str) -> str:
        """Waits for a line that begins with `text`: not the echo of what was typed."""
        return self.until(lambda screen: re.search(f"^{re.escape(text)}", screen, re.MULTILINE))

    def twice(self, text: str) -> None:
        """Types a line until what runs repeats it: what is typed while a shell still has the
        terminal's modes is no whole line to a program."""
        typed = 0
        deadline = time.monotonic() + FOREVER
        while self.screen().count(text) <= typed:
            assert time.monotonic() < deadline, self.screen()
            self.line(text)
            typed += 1
            for _ in range(20):
                if self.screen().count(text) <= typed:
                    time.sleep(0.1)

    def back(self) -> None:
        """Waits until the host's shell waits for a command."""
        self.until(lambda screen: screen.rstrip().splitlines()[-1] == "host>")

    def close(self) -> None:
        self("kill-server")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    made = Tmux(tmp_path)
    yield made
    made.close()


def enter(tmux: Tmux, pool: Pool) -> None:
    tmux.line(f"{GUESTCTL} shell --name {pool.name}")
    tmux.sees("root@g0:")
    tmux.line("PS1='guest# '")
    tmux.sees("guest#")


@pytest.mark.channels("tcp")
def test_a_shell_is_a_shell(tmux: Tmux, pool: Pool) -> None:
    enter(tmux, pool)
    tmux.line("tty; stty size; echo $TERM")
    screen = tmux.until(lambda screen: re.search(r"^(screen|tmux)", screen, re.MULTILINE))
    assert re.search(r"^/dev/pts/\d+\n24 80$", screen, re.MULTILINE)
    # Ctrl-C ends what runs, and not the shell.
    tmux.line("sleep 1000; echo status $?")
    time.sleep(0.5)
    tmux.type("", "C-c")
    tmux.line("echo after")
    tmux.sees("after")
    # Ctrl-Z, jobs, fg: job control. What cat repeats shows that the terminal is cat's.
    tmux.line("cat")
    tmux.twice("first line")
    tmux.type("", "C-z")
    tmux.sees("[1]+  Stopped")
    tmux.line("fg")
    tmux.twice("through cat")
    tmux.type("", "C-d")
    # The size follows, while something runs too.
    tmux.line("trap 'stty size' WINCH; echo ready")
    tmux.sees("ready")
    tmux("resize-window", "-x", "100", "-y", "30")
    tmux.until(lambda screen: "30 100" in screen)
    # Colours arrive as colours.
    tmux.line(r"printf '\033[31mred\033[0m\n'")
    tmux.sees("red")
    assert "\x1b[31mred" in tmux("capture-pane", "-p", "-e")
    tmux.line("exit 7")
    tmux.back()
    tmux.line("echo status $?; stty -a | grep -o ' echo '")
    tmux.sees("status 7")
    tmux.sees(" echo")


@pytest.mark.channels("tcp", "serial")
def test_a_full_screen_program(tmux: Tmux, pool: Pool) -> None:
    """It draws at places, reads single keys, and gives the screen back."""
    script = (
        "stty raw -echo; printf '\\033[2J\\033[5;10Hhere'; k=$(dd bs=1 count=1 2>/dev/null);"
        " stty sane; printf '\\033[2J\\033[H'; echo key $k"
    )
    tmux.line(f"{GUESTCTL} run --name {pool.name} --tty -- sh -c {shlex.quote(script)}")
    screen = tmux.until(lambda screen: "\n         here" in screen)
    assert screen.splitlines()[4] == "         here"
    tmux.type("x")
    tmux.sees("key x")


@pytest.mark.channels("tcp", "serial")
def test_detached_and_taken_up_again(tmux: Tmux, pool: Pool) -> None:
    enter(tmux, pool)
    tmux.line("mark=kept")
    tmux.type("", "C-]")
    tmux.type("d")
    screen = tmux.until(lambda screen: "detached from job" in screen)
    found = re.search(r"detached from job (\S+)", screen)
    assert found
    (facts,) = pool.status()
    assert (facts["state"], facts["job"]) == ("orphaned", found[1])
    tmux.line(f"clear; {GUESTCTL} run --name {pool.name} --attach {found[1]}")
    tmux.line("echo $mark")
    tmux.sees("kept")
    tmux.line("exit 3")
    tmux.back()
    tmux.line("echo status $?")
    tmux.sees("status 3")


def test_a_shell_where_a_command_failed(tmux: Tmux, pool: Pool) -> None:
    tmux.line(
        f"{GUESTCTL} run --name {pool.name} --root / --cwd /usr --user 7:8 --env WHY=because"
        " --debug-shell -- sh -c 'exit 5'"
    )
    tmux.until(lambda screen: "ended with status 5" in screen)
    tmux.line("PS1=; echo $PWD $WHY $(id -u):$(id -g) ${PATH##*:}")
    tmux.sees("/usr because 7:8 /tools/bin")
    tmux.line("exit")
    tmux.back()
    tmux.line("echo status $?")
    tmux.sees("status 5")


@pytest.mark.channels("tcp")
def test_ctrl_c_on_the_command_line_keeps_the_guest(tmux: Tmux, pool: Pool) -> None:
    beat = "setsid sh -c 'while :; do date +%s%N >/tmp/alive; sleep 0.1; done' &"
    script = f"{beat} until test -e /tmp/alive; do sleep 0.1; done; echo up; sleep 1000"
    tmux.line(f"{GUESTCTL} run --name {pool.name} -- sh -c {shlex.quote(script)}")
    tmux.sees("up")
    tmux.type("", "C-c")
    tmux.until(lambda screen: "interrupted" in screen)
    tmux.back()
    tmux.line("echo status $?")
    tmux.sees("status 130")
    with pool.lease(FOREVER) as guest:
        first = guest.run(["cat", "/tmp/alive"], timeout=60).check().stdout
        second = guest.run(["sh", "-c", "sleep 1; cat /tmp/alive"], timeout=60).check().stdout
        assert first == second


def test_the_watch_is_a_live_table(tmux: Tmux, pool: Pool) -> None:
    with pool.lease(FOREVER) as guest:
        process = guest.start(["sh", "-c", "while :; do :; done # [bold]"])
        tmux("resize-window", "-x", "140", "-y", "24")
        tmux.line(f"clear; {GUESTCTL} pool status --watch --interval 0.2 --name {pool.name}")
        tmux.until(lambda screen: "[bold]" in screen and "GUEST" in screen)
        busy = tmux.until(lambda screen: re.search(r"g0 +leased .* 0:00:0[1-9] +\d+%", screen))
        assert busy.count("GUEST") == 1
        process.cancel()
        process.wait()
    tmux.until(lambda screen: re.search(r"g0 +ready ", screen))
    tmux.type("", "C-c")
    tmux.back()


def test_the_console_beside_a_command(tmux: Tmux, pool: Pool) -> None:
    with pool.lease(FOREVER) as guest:
        tmux.line(f"{GUESTCTL} console {guest.name} --name {pool.name}")
        tmux.until(lambda screen: "Ctrl-C leaves" in screen)
        guest.run(["sh", "-c", "echo from-kmsg >/dev/kmsg; echo hello >/dev/console"], timeout=60)
        tmux.until(lambda screen: "hello" in screen)
        reader = guest.start(["sh", "-c", "head -n1 </dev/console"], timeout=120)
        time.sleep(0.5)
        tmux.line("typed text")
        assert reader.wait().check().stdout == b"typed text\n"
        tmux.type("", "C-c")
        tmux.back()
        tmux.line("clear; stty -a | grep -o ' echo '; echo left")
        tmux.sees("left")


def test_the_console_without_a_terminal(pool: Pool) -> None:
    with pool.lease(FOREVER) as guest:
        guest.run(["sh", "-c", "echo spoken >/dev/console"], timeout=60).check()
    argv = [sys.executable, "-m", "guestctl", "console", "g0", "--name", pool.name]
    deadline = time.monotonic() + 60
    shown = b""
    while b"spoken" not in shown:
        assert time.monotonic() < deadline
        done = subprocess.run([*argv, "--no-follow"], capture_output=True, timeout=60, check=True)
        shown = done.stdout
    missing = subprocess.run(
        [*argv[:4], "g9", *argv[5:]], capture_output=True, timeout=60, check=False
    )
    assert missing.returncode == 1
    assert b"no guest 'g9'" in missing.stderr


@pytest.mark.parametrize("argv", [["shell"], ["run", "--tty", "--", "sh"]])
def test_a_terminal_is_asked_for(pool: Pool, argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guestctl", *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"needs a terminal" in done.stderr


@pytest.mark.channels("tcp")
def test_a_terminal_from_the_library(pool: Pool) -> None:
    with pool.lease(FOREVER) as guest:
        argv = ["sh", "-c", "stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2"]
        result = guest.run(argv, tty=True, window=(12, 34), timeout=60).check()
        assert result.stdout == b"12 34\r\nxterm-256color\r\n"
        big = guest.run(["seq", "100000"], tty=True, timeout=120).check()
        assert big.stdout == b"".join(b"%d\r\n" % n for n in range(1, 100001))
        assert json.loads(json.dumps(result.as_json()))["outcome"] == "exited"


@pytest.mark.channels("tcp", "serial")
def test_a_terminal_passes_every_byte_both_ways(pool: Pool) -> None:
    out = io.BytesIO()
    data = bytes(range(256)) * 20
    script = f"stty raw -echo; echo ready; exec head -c {len(data)}"
    with pool.lease(60) as guest:
        process = guest.start(["sh", "-c", script], tty=True, stdin=PIPE, stdout=out, timeout=120)
        waiter = threading.Thread(target=process.wait)
        waiter.start()
        deadline = time.monotonic() + 60
        while not out.getvalue().startswith(b"ready\n"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.stdin.write(data)
        waiter.join(60)
    assert out.getvalue() == b"ready\n" + data
    assert process.result is not None and process.result.status == 0
