"""The journal of a pool: whole lines from many writers, bounded, followed to its end."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
import time
from pathlib import Path

import pytest

from guestctl import journal
from tests.fairness import FOREVER, until


def write(path: Path, who: int, count: int) -> None:
    for n in range(count):
        journal.record(path, "test", who=who, n=n)


def test_what_is_recorded_is_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal.record(path, "run", guest="g0", argv="x" * 10_000)
    (event,) = journal.read(path)
    assert (event["event"], event["guest"]) == ("run", "g0")
    assert len(event["argv"]) < 1000
    assert abs(event["time"] - time.time()) < 60


def test_nothing_fails_where_the_pool_is_gone(tmp_path: Path) -> None:
    journal.record(tmp_path / "gone" / "events.jsonl", "lost")
    assert journal.read(tmp_path / "gone" / "events.jsonl") == []


def test_many_writers_leave_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(path, who, 200)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    seen = [(event["who"], event["n"]) for event in journal.read(path)]
    assert sorted(seen) == [(who, n) for who in range(4) for n in range(200)]


def test_it_is_bounded_and_keeps_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LIMIT", 2000)
    path = tmp_path / "events.jsonl"
    write(path, 0, 500)
    assert sum(part.stat().st_size for part in tmp_path.iterdir()) < 5000
    numbers = [event["n"] for event in journal.read(path)]
    assert numbers == list(range(numbers[0], 500))


def test_follow_sees_each_event_once_until_the_pool_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LIMIT", 4000)
    path = tmp_path / "pool" / "events.jsonl"
    path.parent.mkdir()
    write(path, 0, 3)
    seen: list[int] = []

    def follow() -> None:
        seen.extend(event["n"] for event in journal.follow(path))

    thread = threading.Thread(target=follow)
    thread.start()
    for n in range(3, 100):
        journal.record(path, "test", n=n)
        # Who follows must not sleep while the file goes by twice.
        until(lambda n=n: len(seen) > n - 20)  # type: ignore[misc]
    until(lambda: len(seen) == 100)
    shutil.rmtree(path.parent)
    thread.join(FOREVER)
    assert not thread.is_alive()
    assert seen == list(range(100))


def test_a_line_that_is_not_finished_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "a"}\n{"eve')
    events = journal.follow(path)
    assert next(events) == {"event": "a"}
    with open(path, "a") as file:
        file.write(json.dumps({"event": "b"})[5:] + "\n")
    assert next(events) == {"event": "b"}
