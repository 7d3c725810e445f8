"""What a lease holder writes down of its jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestctl import journal
from guestctl.errors import UsageError
from guestctl.jobs import JobBook, parse_job_name, read_jobs
from guestctl.rundir import GuestDir
from guestctl.spec import Command, Result


@pytest.fixture
def folder(tmp_path: Path) -> GuestDir:
    made = GuestDir(tmp_path / "g3")
    made.path.mkdir()
    return made


def test_a_job_from_start_to_end(folder: GuestDir) -> None:
    book = JobBook(folder)
    command = Command(argv=(b"echo", b"\xff"), window=(24, 80))
    book.opened(7, command, timeout=5.0, idle_timeout=None)
    (job,) = read_jobs(folder)["jobs"]
    assert (job["id"], job["name"], job["tty"], job["timeout"]) == (7, "g3:7", True, 5.0)
    assert job["argv"] == ["echo", "\udcff"]
    book.counted(7, lambda: 123)
    book.publish((4, 3, 2, 1))
    written = read_jobs(folder)
    assert (written["jobs"][0]["output"], written["memory"]) == (123, [4, 3, 2, 1])
    book.closed(7, Result((b"echo",), "exited", 2, seconds=1.5))
    assert read_jobs(folder) == {}
    assert not book.live
    run, ended = journal.read(folder.journal)
    assert (run["event"], run["job"]) == ("run", "g3:7")
    assert (ended["event"], ended["status"], ended["seconds"]) == ("exit", 2, 1.5)


def test_what_was_taken_over_keeps_its_beginning(folder: GuestDir) -> None:
    JobBook(folder).opened(2, Command(argv=(b"make",)), timeout=None)
    (facts,) = read_jobs(folder)["jobs"]
    book = JobBook(folder)
    assert book.taken_over(2)["since"] == facts["since"]
    assert book.taken_over(9) == {}
    first, unknown = read_jobs(folder)["jobs"]
    assert (first["argv"], first["since"]) == (["make"], facts["since"])
    assert unknown["name"] == "g3:9"


def test_what_nobody_took_over_has_expired(folder: GuestDir) -> None:
    JobBook(folder).opened(2, Command(argv=(b"make",)), timeout=None)
    JobBook(folder).expire()
    assert read_jobs(folder) == {}
    assert [(event["event"], event["job"]) for event in journal.read(folder.journal)] == [
        ("run", "g3:2"),
        ("expired", "g3:2"),
    ]
    JobBook(folder).expire()
    assert len(journal.read(folder.journal)) == 2


def test_a_run_directory_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    book = JobBook(GuestDir(tmp_path / "gone" / "g0"))
    book.opened(1, Command(argv=(b"true",)))
    book.closed(1, None)


@pytest.mark.parametrize("text", ["", "g0", ":3", "g0:", "g0:x", "g0:-1", "3", "g0:³"])
def test_what_is_no_job(text: str) -> None:
    with pytest.raises(UsageError):
        parse_job_name(text)


def test_what_is_one() -> None:
    assert parse_job_name("g12:345") == ("g12", 345)
