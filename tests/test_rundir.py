"""Run directories, sockets with long paths, locks."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest

from guestctl import sockets
from guestctl.errors import PoolError, UsageError
from guestctl.rundir import GuestDir, PoolDir, flocked, pool_names, read_json, write_json
from guestctl.share import remove_lock
from guestctl.sockets import bound_socket, connected_socket


def test_sockets_with_paths_of_any_length(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200) / ("y" * 200)
    folder.mkdir(parents=True)
    with (
        bound_socket(folder / "agent") as server,
        connected_socket(folder / "agent") as client,
    ):
        peer, _ = server.accept()
        client.sendall(b"hello")
        assert peer.recv(5) == b"hello"
        peer.close()
    assert (folder / "agent").stat().st_mode & 0o777 == 0o600


def test_a_full_backlog_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(bound_socket(tmp_path / "agent"))
        # More than these do not fit until the server has taken one.
        for _ in range(2):
            stack.enter_context(connected_socket(tmp_path / "agent"))
        monkeypatch.setattr(sockets, "_TIMEOUT", 0.1)
        with pytest.raises(TimeoutError, match="nobody has answered"):
            connected_socket(tmp_path / "agent")
        monkeypatch.setattr(sockets, "_TIMEOUT", 60.0)
        late = threading.Timer(0.1, lambda: stack.enter_context(server.accept()[0]))
        late.start()
        stack.enter_context(connected_socket(tmp_path / "agent"))
        late.join()


def test_a_lock_is_one_holders(tmp_path: Path) -> None:
    first = flocked(tmp_path / "lease")
    assert first is not None
    assert flocked(tmp_path / "lease") is None
    os.close(first)
    second = flocked(tmp_path / "lease")
    assert second is not None
    os.close(second)


def test_a_lock_that_is_held_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    remove_lock(path)
    handle = flocked(path)
    assert handle is not None
    remove_lock(path)
    assert path.exists()
    os.close(handle)
    remove_lock(path)
    assert not path.exists()


def test_lease_tells_its_holder(tmp_path: Path) -> None:
    guest = GuestDir(tmp_path)
    assert guest.leased_by() is None
    handle = flocked(guest.lease)
    assert handle is not None
    os.pwrite(handle, b"4321", 0)
    assert guest.leased_by() == 4321
    os.close(handle)
    assert guest.leased_by() is None


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"a": 1})
    write_json(tmp_path / "state.json", {"b": "\udcff"})
    assert read_json(tmp_path / "state.json") == {"b": "\udcff"}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert read_json(tmp_path / "none") == {}
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(PoolError, match="damaged"):
        read_json(tmp_path / "state.json")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "x" * 33, "a b", "ä"])
def test_names_that_no_pool_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        PoolDir.named(tmp_path, name)


def test_guests_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    pool = PoolDir.named(tmp_path, "p")
    assert pool.guests() == []
    tmp_path.chmod(0o700)
    assert pool.create()
    assert not pool.create()
    for name in ("g10", "g2", "g0", "other"):
        (pool.path / name).mkdir()
    assert [guest.name for guest in pool.guests()] == ["g0", "g2", "g10"]
    assert pool_names(tmp_path) == ["p"]
    pool.remove()
    assert pool_names(tmp_path) == []


def test_the_consoles_tail_is_text_whatever_it_holds(tmp_path: Path) -> None:
    guest = GuestDir(tmp_path)
    assert guest.console_tail() == ""
    guest.console.write_bytes(b"x" * 9000 + b"\r\n\xff end")
    assert guest.console_tail().endswith("\n\\xff end")
    assert len(guest.console_tail()) < 5000


def test_an_orderly_end_counts_once(tmp_path: Path) -> None:
    guest = GuestDir(tmp_path)
    assert not guest.take_orderly()
    guest.mark_orderly()
    assert guest.take_orderly()
    assert not guest.take_orderly()
    GuestDir(tmp_path / "gone").mark_orderly()


def test_threads_that_write_one_file_never_leave_it_empty(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"by": 0})
    ended = threading.Event()

    def write(by: int) -> None:
        while not ended.is_set():
            write_json(path, {"by": by})

    writers = [threading.Thread(target=write, args=(by,)) for by in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        # Raises PoolError for half a file.
        assert all("by" in read_json(path) for _ in range(2000))
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]
