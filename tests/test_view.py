"""Views: what a tool sees of a guest's files, and what comes back of what it writes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from guestctl.errors import UsageError, ViewError, ViewUnavailable
from guestctl.places import Places
from guestctl.view import (
    Bind,
    Call,
    Given,
    Limits,
    Mount,
    Outcome,
    Tree,
    View,
    Written,
    why_no_view,
)
from guestctl.view.worker import worker_program
from tests.viewtools import GuestShare, probe, probe_toolchain

ROOT, WORK = Mount("root", b"", b"/"), Mount("work", b"", b"/work")


@dataclass
class Bench:
    """A view over a share and a root, and the probe to look through it."""

    view: View
    share: GuestShare

    def call(self, *argv: str | bytes, **more: object) -> Outcome:
        mounts: tuple[Mount, ...] = more.pop("mounts", (ROOT, WORK))  # type: ignore[assignment]
        return self.view.call(probe(*argv, mounts=mounts, **more))

    def read(self, path: str) -> bytes:
        """What the tool reads at a path, or why it does not."""
        outcome = self.call("read", path)
        return outcome.stdout if outcome.status == 0 else outcome.stderr.split()[-1]


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return probe_toolchain(tmp_path_factory.mktemp("probe") / "tc")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "etc").mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "etc/release").write_text("guest")
    (folder / "etc/alias").symlink_to("/etc/release")
    return folder


@pytest.fixture(params=["mapped-file", "mapped-xattr"])
def share(request: pytest.FixtureRequest, tmp_path: Path) -> GuestShare:
    return GuestShare(tmp_path / "share", request.param)


@pytest.fixture
def open_view(
    share: GuestShare, root: Path, toolchain: Path, places: Places
) -> Iterator[Callable[..., Bench]]:
    made: list[View] = []

    def build(**more: object) -> Bench:
        trees = {"root": Tree(root, None, fixed=True), "work": Tree(share.path, share.model)}
        # A test that fails while a call runs must not wait for long.
        more.setdefault("limits", Limits(seconds=60))
        view = View(trees, toolchain, cache_dir=places.cache, **more)  # type: ignore[arg-type]
        made.append(view)
        return Bench(view, share)

    yield build
    for view in made:
        view.close()


@pytest.fixture
def bench(open_view: Callable[..., Bench]) -> Bench:
    return open_view()


def names(outcome: Outcome) -> dict[bytes, Written]:
    return {written.path: written for written in outcome.written}


# What is seen


def test_a_tool_sees_the_guest_s_files_at_the_guest_s_paths(bench: Bench) -> None:
    bench.share.file("a", "share")
    assert bench.read("/work/a") == b"share"
    assert bench.read("/etc/alias") == b"guest"
    assert bench.call("list", "/").stdout.split() != []
    assert bench.call("cwd", cwd=b"/work").stdout == b"/work\n"


def test_links_of_the_share_are_links(bench: Bench) -> None:
    bench.share.folder("d")
    bench.share.file("d/real", "content")
    bench.share.link("d/file", "real")
    bench.share.link("folder", "d")
    bench.share.link("absolute", "/etc/release")
    bench.share.link("nowhere", "missing")
    assert bench.call("readlink", "/work/d/file").stdout == b"real"
    assert bench.read("/work/folder/file") == b"content"
    assert bench.read("/work/absolute") == b"guest"
    assert bench.read("/work/nowhere") == b"ENOENT"


def test_links_are_there_when_the_view_opens(
    share: GuestShare, open_view: Callable[..., Bench]
) -> None:
    share.folder("deep")
    share.folder("deep/er")
    share.file("real", "content")
    share.link("deep/er/link", "../../real")
    assert open_view().read("/work/deep/er/link") == b"content"


def test_a_part_of_a_share_may_be_the_root(bench: Bench) -> None:
    bench.share.folder("sys root")
    bench.share.folder("sys root/lib")
    bench.share.file("sys root/lib/libc", "c library")
    bench.share.link("sys root/alias", "/lib/libc")
    bench.share.file("outside", "not seen")
    mounts = (Mount("work", b"sys root", b"/"), Mount("root", b"etc", b"/tools", readonly=True))
    assert bench.call("read", "/alias", mounts=mounts).stdout == b"c library"
    assert bench.call("read", "/../outside", mounts=mounts).status == 1
    assert bench.call("read", "/tools/release", mounts=mounts).stdout == b"guest"
    assert bench.call("write", "/tools/release", "x", mounts=mounts).stderr.split()[-1] == b"EROFS"


def test_devices_of_the_share_give_no_content(bench: Bench) -> None:
    """They are empty files on the host: a tool must not take them for that."""
    bench.share.device("null")
    bench.share.device("pipe", 0o010644, 0)
    bench.share.device("socket", 0o140755, 0)
    assert [bench.read(f"/work/{name}") for name in ("null", "pipe", "socket")] == [b"ELOOP"] * 3


def test_links_that_only_the_host_made_lead_nowhere(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host")
    (bench.share.path / "planted").symlink_to(tmp_path / "secret")
    (bench.share.path / "relative").symlink_to("../secret")
    assert {bench.read("/work/planted"), bench.read("/work/relative")} == {b"ELOOP"}


def test_targets_that_no_file_system_takes_lead_nowhere(bench: Bench) -> None:
    bench.share.link("empty", "")
    bench.share.link("long", "x" * 4096)
    bench.share.link("zero", b"a\0b")
    bench.share.link("longest", "/" * 4084 + "etc/release")
    assert {bench.read(f"/work/{name}") for name in ("empty", "long", "zero")} == {b"ELOOP"}
    assert bench.read("/work/longest") == b"guest"


def test_names_are_bytes(bench: Bench) -> None:
    name = os.fsdecode(b"\xff name,with:odd\\bytes\n")
    bench.share.folder(name)
    bench.share.link(f"{name}/link", "/etc/release")
    assert bench.read(f"/work/{name}/link") == b"guest"
    mounts = (ROOT, Mount("work", os.fsencode(name), b"/mnt"))
    assert bench.call("read", "/mnt/link", mounts=mounts).stdout == b"guest"
    written = bench.call("write", f"/work/{name}/new", "x").written
    assert [entry.path for entry in written] == [b"/work/" + os.fsencode(name) + b"/new"]


def test_devices_that_compilers_use_are_real(bench: Bench) -> None:
    assert bench.call("write", "/dev/null", "gone", "read", "/dev/null").stdout == b""
    assert bench.call("list", "/dev").stdout.split().sort() == ["null", "zero"].sort()


def test_a_folder_too_deep_for_a_path_is_not_shown(bench: Bench) -> None:
    """What lies below could not be scanned, so it must not be seen with its links as text."""
    here = os.open(bench.share.path, os.O_DIRECTORY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    path = "/work" + f"/{'d' * 250}" * 15
    assert bench.call("list", path).status == 0
    assert bench.call("list", f"{path}/{'d' * 250}").stderr.split()[-1] == b"ELOOP"


# What is written


def test_what_a_tool_writes_comes_back_and_not_to_the_share(bench: Bench) -> None:
    bench.share.file("old", "before")
    outcome = bench.call(
        "write", "new", "fresh", "write", "old", "after", "mkdir", "d", "write", "d/in", "x",
        "symlink", "a target", "link", "write", "/etc/made", "y", cwd=b"/work", umask=0o027,
    )  # fmt: skip
    assert outcome.status == 0, outcome
    assert names(outcome) == {
        b"/work/new": Written(b"/work/new", "file", 0o640, b"fresh"),
        b"/work/old": Written(b"/work/old", "file", None, b"after"),
        b"/work/d": Written(b"/work/d", "folder", 0o750),
        b"/work/d/in": Written(b"/work/d/in", "file", 0o640, b"x"),
        b"/work/link": Written(b"/work/link", "link", None, b"a target"),
        b"/etc/made": Written(b"/etc/made", "file", 0o640, b"y"),
    }
    assert sorted(os.listdir(bench.share.path / ".")) in (
        [".virtfs_metadata", "old"],
        ["old"],
    )
    assert (bench.share.path / "old").read_text() == "before"
    assert bench.read("/work/old") == b"before"


def test_folders_are_told_of_before_what_is_in_them(bench: Bench) -> None:
    outcome = bench.call("mkdir", "/work/a", "mkdir", "/work/a/b", "write", "/work/a/b/c", "x")
    assert [entry.path for entry in outcome.written] == [b"/work/a", b"/work/a/b", b"/work/a/b/c"]


def test_what_is_only_read_or_opened_does_not_come_back(bench: Bench) -> None:
    bench.share.file("a", "content")
    outcome = bench.call("read", "/work/a", "open", "/work/a", "list", "/work")
    assert outcome.status == 0
    assert outcome.written == ()


def test_temporary_files_do_not_come_back(bench: Bench) -> None:
    outcome = bench.call("write", "/tmp/cc1", "x", "unlink", "/tmp/cc1", "write", "/work/a", "y")
    assert [entry.path for entry in outcome.written] == [b"/work/a"]


def test_removed_and_replaced_files_are_told(bench: Bench) -> None:
    bench.share.file("gone", "x")
    bench.share.file("target", "old")
    bench.share.link("link", "target")
    outcome = bench.call(
        "unlink", "gone", "write", "t.tmp", "new", "rename", "t.tmp", "target",
        "unlink", "link", "write", "link", "a file now", cwd=b"/work",
    )  # fmt: skip
    assert names(outcome) == {
        b"/work/gone": Written(b"/work/gone", "gone"),
        b"/work/target": Written(b"/work/target", "file", 0o644, b"new"),
        b"/work/link": Written(b"/work/link", "file", 0o644, b"a file now"),
    }


def attributes_on_tmpfs() -> bool:
    """Whether the kernel has them there, as of Linux 6.6."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        try:
            os.setxattr(file.name, "user.test", b"")
        except OSError:
            return False
    return True


def test_a_new_file_in_an_old_one_s_place_is_told_from_it(bench: Bench) -> None:
    """Other names of the old one keep its content, so the guest must do the same."""
    for name in ("new", "same", "two names"):
        bench.share.file(name, "x")
    bench.share.hard("two names", "other")
    outcome = bench.call(
        "unlink", "new", "write", "new", "y", "write", "same", "y", "write", "two names", "y",
        cwd=b"/work", umask=0o077,
    )  # fmt: skip
    assert names(outcome) == {
        b"/work/new": Written(b"/work/new", "file", 0o600 if attributes_on_tmpfs() else None, b"y"),
        b"/work/same": Written(b"/work/same", "file", None, b"y"),
        b"/work/two names": Written(b"/work/two names", "file", None, b"y"),
    }


def test_a_folder_in_another_s_place_is_not_judged(bench: Bench) -> None:
    (bench.share.path / "d").mkdir()
    outcome = bench.call("rmdir", "/work/d", "mkdir", "/work/d")
    assert outcome.trouble == "reserved" or outcome.status == 1


def test_attributes_of_overlays_on_the_guest_s_files_change_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("host")
    for name, value in (("redirect", b"/secret"), ("opaque", b"y"), ("metacopy", b"")):
        bench.share.folder(name)
        bench.share.file(f"{name}/file", "guest")
        for path in (name, f"{name}/file"):
            os.setxattr(bench.share.path / path, f"user.overlay.{name}", value)
        assert bench.read(f"/work/{name}/file") in (b"guest", b"EPERM", b"EIO"), name
        assert bench.read(f"/work/{name}/secret") in (b"ENOENT", b"EPERM", b"EIO"), name


def test_writing_through_a_link_changes_what_it_leads_to(bench: Bench) -> None:
    bench.share.folder("d")
    bench.share.file("d/real", "old")
    bench.share.link("link", "d/real")
    outcome = bench.call("write", "/work/link", "new")
    assert names(outcome) == {b"/work/d/real": Written(b"/work/d/real", "file", None, b"new")}


def test_a_changed_mode_is_told(bench: Bench) -> None:
    bench.share.file("a", "x")
    outcome = bench.call("chmod", "/work/a", "755")
    assert outcome.written == (Written(b"/work/a", "file", 0o755, b"x"),)


def test_a_tool_that_copies_modes_sees_the_guest_s(bench: Bench) -> None:
    bench.share.folder("d")
    bench.share.file("d/program", "x", 0o4751)
    bench.share.link("to d", "/work/d")
    bench.share.link("alias", "to d/program")
    shown = ("stat", "/work/d/program")
    assert bench.call(*shown).stdout == b"100600 1\n"
    for name in (b"/work/d/program", b"/work/to d/../d/program", b"/work/alias"):
        outcome = bench.call(*shown, modes=(name, b"/work/none", b"/work/d", b"/etc/release"))
        assert (outcome.stdout, outcome.written) == (b"104751 1\n", ()), name
    bench.share.file("d/plain", "x", 0o751)
    outcome = bench.call("append", "/work/d/plain", "y", modes=(b"/work/to d/plain",))
    assert outcome.written == (Written(b"/work/d/plain", "file", None, b"xy"),)


def test_metadata_cannot_be_written_unseen(share: GuestShare, bench: Bench) -> None:
    share.file("a", "x")
    outcome = bench.call("mkdir", "/work/.virtfs_metadata_root")
    assert outcome.trouble == ("reserved" if share.model == "mapped-file" else "")


def test_given_files_are_seen_and_come_back_only_if_changed(bench: Bench) -> None:
    given = (Given(b"/tmp/in/a.c", b"source", mtime=10**18), Given(b"/work/b", b"bee"))
    outcome = bench.call("read", "/tmp/in/a.c", "append", "/work/b", "s", given=given)
    assert outcome.stdout == b"source"
    assert outcome.written == (Written(b"/work/b", "file", None, b"bees"),)


def test_a_mount_without_a_tree_is_empty_and_its_files_come_back(bench: Bench) -> None:
    mounts = (ROOT, Mount(None, b"", b"/tmp/guest"))
    outcome = bench.call("list", "/tmp/guest", "write", "/tmp/guest/x", "y", mounts=mounts)
    assert outcome.stdout == b""
    assert [entry.path for entry in outcome.written] == [b"/tmp/guest/x"]


def test_a_tool_of_the_toolchain_can_stand_at_a_guest_s_path(bench: Bench) -> None:
    binds = (Bind(b"probe", b"/usr/lib/gcc/cc1"), Bind(b"probe", b"/etc/release"))
    call = Call(
        b"/usr/lib/gcc/cc1", (b"cc1", b"say", b"hello"), {}, b"/", (ROOT, WORK), binds=binds
    )
    outcome = bench.view.call(call)
    assert (outcome.status, outcome.stdout, outcome.written) == (0, b"hello\n", ())


# How it runs


def test_status_signal_and_output(bench: Bench) -> None:
    outcome = bench.call("say", "out", "warn", "err", "exit", "7")
    assert (outcome.status, outcome.signal) == (7, None)
    assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")
    killed = bench.call("die", "15")
    assert (killed.status, killed.signal) == (None, 15)


def test_joined_output_keeps_its_order(bench: Bench) -> None:
    outcome = bench.call("say", "1", "warn", "2", "say", "3", joined=True)
    assert outcome.stdout == b"1\n2\n3\n"


def test_stdin_and_environment(bench: Bench) -> None:
    outcome = bench.call("copy", "env", stdin=b"input", environment={b"A": b"b \xff"})
    assert outcome.stdout == b"inputA=b \xff\n"
    assert bench.call("copy").stdout == b""


def test_many_arguments(bench: Bench) -> None:
    """A link of thousands of objects."""
    words = [word for number in range(3000) for word in ("say", f"object-number-{number}")]
    assert bench.call(*words).stdout.count(b"\n") == 3000


def test_a_tool_that_is_not_there_is_an_error_of_the_view(bench: Bench) -> None:
    with pytest.raises(ViewError, match=r"execute /\.tc/none: No such file"):
        bench.view.call(Call(b"/.tc/none", (b"none",), {}, b"/", (ROOT,)))
    with pytest.raises(ViewError, match="chdir"):
        bench.call("exit", "0", cwd=b"/none")
    with pytest.raises(ViewError, match="open in its tree none"):
        bench.call("exit", "0", mounts=(Mount("work", b"none", b"/"),))


def test_calls_that_make_no_sense(bench: Bench) -> None:
    for more in (
        {"cwd": b"relative"},
        {"cwd": b"/work/../etc"},
        {"mounts": (WORK,)},
        {"mounts": (ROOT, Mount("none", b"", b"/x"))},
        {"binds": (Bind(b"probe", b"x"),)},
    ):
        with pytest.raises(UsageError):
            bench.call("exit", "0", **more)


def test_calls_in_parallel_do_not_see_each_other(bench: Bench) -> None:
    def one(number: int) -> bool:
        text = f"text {number}"
        outcome = bench.call("write", "/work/same", text, "list", "/work", "read", "/work/same")
        return names(outcome)[b"/work/same"].data == text.encode()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(100)))


# Ends


def processes_of(pid: int) -> set[int]:
    """The process and all its descendants."""
    found = {pid}
    for entry in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) in found and ") Z " not in stat:
            found.add(entry)
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and not zombie(pid)}


def zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_cancelled_call_leaves_nothing(bench: Bench) -> None:
    before = processes_of(bench.view.pid)
    call = probe("stay", "stay", "sleep", "600", mounts=(ROOT, WORK))
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(bench.view.call, call)
        wait_for(lambda: len(processes_of(bench.view.pid)) >= len(before) + 4)
        bench.view.cancel(call)
        assert ending.result(120).trouble == "cancelled"
    wait_for(lambda: processes_of(bench.view.pid) == before)
    assert bench.call("say", "still here").status == 0


def test_a_call_can_be_cancelled_before_anything_runs(bench: Bench) -> None:
    call = probe("sleep", "600", mounts=(ROOT, WORK))
    outcome = bench.view.call(call, lambda: bench.view.cancel(call))
    assert outcome.trouble == "cancelled"


def test_a_call_that_waits_for_others_can_be_cancelled(open_view: Callable[..., Bench]) -> None:
    bench = open_view(limits=Limits(calls=1, seconds=60))
    first, second = (probe("sleep", "50", mounts=(ROOT,)) for _ in range(2))
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(bench.view.call, first)
        wait_for(lambda: len(processes_of(bench.view.pid)) >= 4)
        waiting = pool.submit(bench.view.call, second)
        time.sleep(0.1)
        bench.view.cancel(second)
        bench.view.cancel(first)
        assert running.result(120).trouble == "cancelled"
        assert waiting.result(120).trouble == "cancelled"


def test_what_a_tool_leaves_running_ends_with_it(bench: Bench) -> None:
    before = processes_of(bench.view.pid)
    assert bench.call("stay", "write", "/work/a", "x").status == 0
    wait_for(lambda: processes_of(bench.view.pid) == before)


def test_time_is_limited(open_view: Callable[..., Bench]) -> None:
    bench = open_view(limits=Limits(seconds=0.5))
    assert bench.call("sleep", "600").trouble == "timeout"
    bench = open_view(limits=Limits(processor=1))
    assert bench.call("spin").signal is not None


def test_memory_processes_and_space_are_limited(open_view: Callable[..., Bench]) -> None:
    limits = Limits(seconds=60, memory=64 << 20, processes=4, calls=2, written=8 << 20, entries=50)
    bench = open_view(limits=limits)
    assert int(bench.call("hog").stdout) < 64
    before = processes_of(bench.view.pid)
    with ThreadPoolExecutor(1) as pool:
        call = probe("forks", mounts=(ROOT,))
        ending = pool.submit(bench.view.call, call)
        wait_for(lambda: len(processes_of(bench.view.pid)) >= len(before) + 4)
        time.sleep(0.1)
        assert len(processes_of(bench.view.pid)) <= len(before) + 4 * 2 + 1
        bench.view.cancel(call)
        ending.result(120)
    assert bench.call("fill", "/work/big").stderr.split()[-1] in (b"ENOSPC", b"EFBIG")
    sparse = [word for n in range(4) for word in ("write", f"/work/{n}", "x", "truncate",
              f"/work/{n}", str(7 << 20))]  # fmt: skip
    assert bench.call(*sparse).trouble == "space"
    many = [word for n in range(60) for word in ("mkdir", f"/work/{n}")]
    assert bench.call(*many).trouble == "entries"


def test_output_is_limited(open_view: Callable[..., Bench]) -> None:
    bench = open_view(limits=Limits(output=1000))
    outcome = bench.call(*["say", "x" * 100] * 20)
    assert outcome.trouble == "output"
    assert len(outcome.stdout) <= 1000


def test_the_worker_s_end_ends_calls(bench: Bench) -> None:
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(bench.call, "stay", "sleep", "600")
        wait_for(lambda: len(processes_of(bench.view.pid)) >= 5)
        mine = processes_of(bench.view.pid)
        bench.view.close()
        with pytest.raises(ViewError):
            ending.result(120)
    wait_for(lambda: not alive(mine))


def test_the_owner_s_end_ends_everything(
    share: GuestShare, root: Path, toolchain: Path, places: Places
) -> None:
    """However it ends: the kernel closes its socket."""
    script = f"""
import sys, threading
from pathlib import Path
from guestctl.view import Tree, View, Mount
from tests.viewtools import probe
view = View({{"root": Tree(Path({str(root)!r}))}}, Path({str(toolchain)!r}),
            cache_dir=Path({str(places.cache)!r}))
call = probe("stay", "sleep", "600", mounts=(Mount("root", b"", b"/"),))
threading.Thread(target=view.call, args=(call,)).start()
print(view.pid, flush=True)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    assert owner.stdout
    worker = int(owner.stdout.readline())
    wait_for(lambda: len(processes_of(worker)) >= 5)
    mine = processes_of(worker)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_for(lambda: not alive(mine))


def test_a_view_that_cannot_be_says_why(toolchain: Path, places: Places, tmp_path: Path) -> None:
    with pytest.raises(ViewUnavailable, match=r"bind .*none: No such file"):
        View({"root": Tree(tmp_path / "none")}, toolchain, cache_dir=places.cache)
    assert subprocess.run([worker_program(places.cache)], check=False).returncode == 2


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("max_user_namespaces", "make user and mount namespaces: No space left on device"),
        ("max_mnt_namespaces", "make user and mount namespaces: No space left on device"),
    ],
)
def test_a_host_without_namespaces_has_no_view(
    toolchain: Path, places: Places, root: Path, limit: str, reason: str
) -> None:
    """Limits of a user namespace around us are those of a host that forbids it."""
    script = f"""
from pathlib import Path
from guestctl.errors import HostLacks
from guestctl.view import Tree, View, why_no_view
Path("/proc/sys/user/{limit}").write_text("0")
try:
    View({{"root": Tree(Path({str(root)!r}))}}, Path({str(toolchain)!r}),
         cache_dir=Path({str(places.cache)!r}))
except HostLacks as error:
    print(error)
print(why_no_view(Path({str(places.cache)!r})))
"""
    worker_program(places.cache)
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"tools cannot be confined here: {reason}\n" * 2


def test_this_host_has_views(places: Places) -> None:
    assert why_no_view(places.cache) == ""


@pytest.mark.parametrize("fuse", ["there", "not there"])
def test_a_view_needs_no_dev_fuse(
    fuse: str, share: GuestShare, root: Path, toolchain: Path, places: Places
) -> None:
    """It is the same one with the device and without."""
    script = f"""
import os
from pathlib import Path
from guestctl.view import Mount, Tree, View
from tests.viewtools import GuestShare, probe
print(os.path.exists("/dev/fuse"))
share = GuestShare(Path({str(share.path)!r}), {share.model!r})
share.file("file", "text")
share.link("link", "file")
trees = {{"root": Tree(Path({str(root)!r})), "work": Tree(share.path, share.model)}}
mounts = Mount("root", b"", b"/"), Mount("work", b"", b"/work")
with View(trees, Path({str(toolchain)!r}), cache_dir=Path({str(places.cache)!r})) as view:
    print(view.call(probe("readlink", "/work/link", mounts=mounts)).stdout.decode())
"""
    worker_program(places.cache)
    command = ["bwrap", "--bind", "/", "/", "--dev", "/dev"]
    if fuse == "there":
        # Where this host has none, anything of that name: nobody opens it.
        device = "/dev/fuse" if Path("/dev/fuse").exists() else "/dev/null"
        command += ["--dev-bind", device, "/dev/fuse"]
    done = subprocess.run(
        [*command, sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == [str(fuse == "there"), "file"]


def test_without_watches_changes_are_found_by_time_stamps(
    share: GuestShare, root: Path, toolchain: Path, places: Places
) -> None:
    script = f"""
from pathlib import Path
from guestctl.view import Mount, Tree, View
from tests.viewtools import GuestShare, probe
Path("/proc/sys/user/max_inotify_watches").write_text("2")
share = GuestShare(Path({str(share.path)!r}), {share.model!r})
share.folder("d")
share.folder("e")
trees = {{"root": Tree(Path({str(root)!r})), "work": Tree(share.path, share.model)}}
mounts = Mount("root", b"", b"/"), Mount("work", b"", b"/work")
with View(trees, Path({str(toolchain)!r}), cache_dir=Path({str(places.cache)!r})) as view:
    for number in range(30):
        for name in ("d", "e"):
            share.link(f"{{name}}/link", str(number))
            outcome = view.call(probe("readlink", f"/work/{{name}}/link", mounts=mounts))
            assert outcome.stdout == str(number).encode(), outcome
            share.remove(f"{{name}}/link")
            assert view.call(probe("readlink", f"/work/{{name}}/link", mounts=mounts)).status == 1
print("fresh")
"""
    worker_program(places.cache)
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "fresh\n"
