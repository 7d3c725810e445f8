"""A pid with its start time: real processes, zombies, and pids that belong to another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from guestctl.processes import ProcessId, processor_time


def test_a_process_from_start_to_end() -> None:
    child = subprocess.Popen(["sleep", "100"])
    known = ProcessId.of(child.pid)
    assert known.alive()
    assert not known.wait(0.05)
    assert known.send(signal.SIGKILL)
    # A zombie has ended, although its pid is still taken.
    assert known.wait(5)
    assert not known.alive()
    assert not known.send(signal.SIGTERM)
    child.wait()
    assert known.wait(0)


def test_a_pid_that_was_given_to_another_is_left_alone() -> None:
    me = ProcessId.of(os.getpid())
    other = ProcessId(me.pid, me.start + 1)
    assert not other.alive()
    assert not other.send(signal.SIGKILL)
    assert other.wait(0)


def test_no_process() -> None:
    with pytest.raises(ProcessLookupError):
        ProcessId.of(2**22 + 1)


def test_wait_has_a_deadline() -> None:
    begin = time.monotonic()
    assert not ProcessId.of(os.getpid()).wait(0.1)
    assert time.monotonic() - begin < 60


def test_time_with_a_processor_and_time_without() -> None:
    """Two processes that share one processor: each waits while the other runs."""
    one = min(os.sched_getaffinity(0))
    script = f"import os\nos.sched_setaffinity(0, [{one}])\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        for process in busy:
            while min(processor_time(process.pid)) < 0.1:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert processor_time(busy[0].pid) == (0.0, 0.0)
