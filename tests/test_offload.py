"""Offload's pure parts: where a caller stands, what a call's words say, messages, the ledger."""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path
from typing import cast

import pytest

from guestctl.errors import OffloadError, ProtocolError
from guestctl.offload.builds import builds_of, split
from guestctl.offload.distcc import Distcc, DistccCall, encode_answer, read_call
from guestctl.offload.ledger import (
    Entry,
    JobRecord,
    Ledger,
    read_jobs,
    read_ledger,
    summarize,
)
from guestctl.offload.messages import Decoder, Request, message, number, pieces
from guestctl.offload.place import Place, Unseen, locate
from guestctl.offload.relaying import Register
from guestctl.offload.slots import Slots
from guestctl.offload.tools import Plan, StepDown, Tools
from guestctl.offload.words import hidden_path, is_compilation, shows_columns, step_of
from guestctl.toolchain import Toolchain
from guestctl.view import Call, Mount
from guestctl.wire import Tag
from tests.fairness import FOREVER

# As a guest has it, with a command that has a root of its own.
MOUNTS = b"""\
35 29 0:14 / / rw,noatime master:7 - overlay image rw,lowerdir=/extra:/image,volatile
36 35 0:5 / /dev rw,nosuid,relatime master:8 - devtmpfs dev rw,size=126332k,mode=755
37 36 0:18 / /dev/pts rw,nosuid,noexec,relatime master:9 - devpts devpts rw,gid=5,mode=620
39 35 0:13 / /sys rw,nosuid,nodev,noexec,relatime - sysfs sysfs rw
40 35 0:20 / /run rw,nosuid,nodev,relatime - tmpfs run rw,mode=755
41 35 254:16 /tmp /tmp rw,noatime master:6 - ext4 /dev/vdb rw
42 35 0:21 / /work rw,relatime master:13 - 9p work rw,dirsync,mmap,access=client,trans=virtio
44 35 0:23 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
45 42 0:13 / /work/s\\040y/sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs rw
46 42 0:5 / /work/s\\040y/dev rw,nosuid,relatime - devtmpfs dev rw,mode=755
49 42 0:14 /tools /work/s\\040y/tools ro,noatime master:7 - overlay image rw,volatile
50 42 0:24 / /work/s\\040y/proc rw,nosuid,nodev,noexec,relatime - proc proc rw
"""
IMAGE, SHARE = (0, 14), (0, 21)


def place(
    root: bytes = b"/",
    device: tuple[int, int] = IMAGE,
    mounts: bytes = MOUNTS,
    changed: bytes = b"proc\0",
    layer: bytes | None = None,
) -> Place | Unseen:
    return locate(
        {
            Tag.JOB: b"\1\0\0\0",
            Tag.CALLER_ROOT: root,
            Tag.ROOT_DEVICE: struct.pack("<II", *device),
            Tag.MOUNTS: mounts,
            Tag.CHANGED: changed,
            **({} if layer is None else {Tag.LAYER: layer}),
        }
    )


def test_a_process_in_the_image_sees_image_and_share() -> None:
    # Of a command without a root of its own.
    plain = b"".join(line for line in MOUNTS.splitlines(True) if b"/work/s" not in line)
    found = place(mounts=plain)
    assert isinstance(found, Place)
    assert sorted(found.mounts, key=lambda mount: mount.at) == [
        Mount("root", b"", b"/"),
        Mount(None, b"", b"/run"),
        Mount(None, b"", b"/tmp"),
        Mount("work", b"", b"/work"),
    ]
    assert found.hidden == (b"/dev", b"/proc", b"/run", b"/sys", b"/tmp")


def test_a_process_in_a_root_of_its_own_sees_that_and_tools() -> None:
    assert place(b"/work/s y", SHARE) == Place(
        (Mount("work", b"s y", b"/"), Mount("root", b"tools", b"/tools", True)),
        (b"/dev", b"/proc", b"/sys"),
    )


def test_a_bind_mount_shows_its_source() -> None:
    extra = b"60 35 0:21 /pkg/src /mnt rw,relatime - 9p work rw,trans=virtio\n"
    found = place(mounts=MOUNTS + extra)
    assert isinstance(found, Place)
    assert Mount("work", b"pkg/src", b"/mnt") in found.mounts


def test_a_mount_hides_what_is_under_it() -> None:
    over = b"62 42 0:31 / /work rw - tmpfs none rw\n"
    found = place(mounts=MOUNTS + over)
    assert isinstance(found, Place)
    assert b"/work" in found.hidden
    assert not any(mount.tree == "work" for mount in found.mounts)
    # A mount on a folder above does the same to those that were there before.
    over = b"63 35 0:32 / /a rw - tmpfs n rw\n64 35 0:21 /x /a/b rw - 9p work rw\n"
    found = place(mounts=MOUNTS + over)
    assert isinstance(found, Place)
    assert b"/a" in found.hidden
    assert not any(mount.at == b"/a/b" for mount in found.mounts)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"changed": b"proc\0usr\0"}, "has changed its image: /usr"),
        ({"changed": b"etc\0etc/ld.so.cache\0"}, "/etc/ld.so.cache"),
        ({"root": b"/work/s y", "device": SHARE, "changed": b"tools\0"}, "/tools"),
        ({"root": b"/gone (deleted)"}, "gone"),
        ({"device": (0, 99)}, "out of sight"),
        ({"root": b"/run/r", "device": (0, 20)}, "on tmpfs"),
        ({"mounts": b"rubbish\n"}, "makes no sense"),
    ],
)
def test_what_the_host_cannot_see_has_a_reason(arguments: dict[str, bytes], reason: str) -> None:
    found = place(**arguments)  # type: ignore[arg-type]
    assert isinstance(found, Unseen)
    assert reason in found.reason


SYSROOT = (
    MOUNTS.partition(b"44 35")[0]
    + b"""\
43 35 0:25 / /base rw,relatime - 9p base rw,loose,trans=virtio
44 35 0:26 / /sysroot rw,noatime - overlay sysroot rw,lowerdir=/proc/self/fd/9,volatile
45 44 0:21 /build /sysroot/build rw,relatime - 9p work rw,trans=virtio
46 44 0:14 /tools /sysroot/tools ro,noatime - overlay image rw,volatile
47 44 0:24 / /sysroot/proc rw - proc proc rw
"""
)


def in_sysroot(layer: bytes | None, mounts: bytes = SYSROOT) -> Place | Unseen:
    return place(b"/sysroot", (0, 26), mounts, layer=layer)


def test_a_sysroot_is_the_base_with_folders_of_the_share() -> None:
    # Folders for mounts, interpreters' caches, what was lent: no compiler reads those.
    layer = (
        b"proc/\0build/\0tools/\0bin/sh\0usr/lib/python3/__pycache__/a.pyc\0usr/share/info/dir\0"
    )
    found = in_sysroot(layer + b"etc/mtab\0var/cache/\0")
    assert isinstance(found, Place)
    assert set(found.mounts) == {
        Mount("base", b"", b"/"),
        Mount("work", b"build", b"/build"),
        Mount("root", b"tools", b"/tools", True),
    }
    assert set(found.hidden) == {
        b"/bin/sh", b"/dev", b"/etc/mtab", b"/proc", b"/sys", b"/usr/share/info/dir",
        b"/usr/lib/python3/__pycache__/a.pyc", b"/var/cache",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [b"usr/include/new.h", b"usr/", b"usr/lib/libz.so", b"usr/bin/as", b"lib/", b"etc/ld.so.cache",
     b"opt/x", b"usr/share/", b"bin/shx"],
)  # fmt: skip
def test_a_layer_with_what_compilers_read_is_out_of_sight(name: bytes) -> None:
    found = in_sysroot(b"proc/\0" + name + b"\0")
    assert isinstance(found, Unseen)
    assert "has changed its sysroot: /" + name.decode().rstrip("/") in found.reason


def test_a_layer_that_nobody_tells_of_is_not_guessed() -> None:
    assert in_sysroot(None) == Unseen("the agent cannot say what a layer holds")
    own = SYSROOT.replace(b"overlay sysroot", b"overlay overlay")
    assert in_sysroot(b"", own) == Unseen("a root folder on overlay")


def test_a_stranger_has_no_place() -> None:
    assert locate({}) == Unseen("a process with mounts of its own")
    assert isinstance(locate({Tag.JOB: b"\1\0\0\0"}), Unseen)


def test_changes_that_no_compiler_reads_unasked_are_hidden() -> None:
    found = place(changed=b"root\0etc\0etc/passwd\0")
    assert isinstance(found, Place)
    assert {b"/root", b"/etc/passwd"} <= set(found.hidden)
    # In a root of its own it does not even have them.
    found = place(b"/work/s y", SHARE, changed=b"root\0usr\0")
    assert isinstance(found, Place)
    assert found.hidden == (b"/dev", b"/proc", b"/sys")


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        (b"gcc -c a.c -o a.o", None),
        (b"gcc -c /tmp/a.c", b"/tmp/a.c"),
        (b"gcc -o/tmp/a a.c", b"/tmp/a"),
        (b"gcc -I/tmp/include -c a.c", b"/tmp/include"),
        (b"gcc -Wp,-MD,/tmp/d -c a.c", b"/tmp/d"),
        (b"gcc --sysroot=/tmp a.c", b"/tmp"),
        (b"gcc @/tmp/args", b"/tmp/args"),
        (b"gcc -c ../../tmp/a.c", b"/tmp/a.c"),
        (b"gcc -I../../tmp -c a.c", b"/tmp"),
        (b"gcc -c /usr/../tmp/a.c", b"/usr/../tmp/a.c"),
        (b"gcc -c /tmpx/a.c -I/work/tmp", None),
        (b"gcc -E /dev/null -o /dev/null", None),
        (b"gcc -E - -o /dev/stdout", b"/dev/stdout"),
        (b"ld -T /proc/self/fd/3", b"/proc/self/fd/3"),
    ],
)
def test_hidden_paths_are_found_in_words(words: bytes, hidden: bytes | None) -> None:
    found = hidden_path(b"/work/src", words.split(), (b"/dev", b"/proc", b"/tmp"))
    assert (found is None) == (hidden is None)
    if hidden is not None and b".." not in words:
        assert found == hidden


def test_a_hidden_working_directory() -> None:
    assert hidden_path(b"/tmp/x", [b"gcc"], (b"/tmp",)) == b"/tmp/x"


@pytest.mark.parametrize(
    ("words", "step", "distcc"),
    [
        (b"gcc -O2 -c a.c", "compile", True),
        (b"arm-linux-gnueabi-g++-12 -c a.cc", "compile", True),
        (b"gcc -E -", "preprocess", False),
        (b"gcc -c -xc - -o x.o", "compile", False),
        (b"gcc a.o -o a", "link", False),
        (b"gcc -o conftest conftest.c", "configure", False),
        (b"cc -dumpmachine", "ask", False),
        (b"cc --version", "ask", False),
        (b"ld -r a.o", "link", False),
        (b"arm-linux-gnueabi-ar rc x.a x.o", "archive", False),
        (b"strip -c x", "other", False),
    ],
)
def test_what_words_say(words: bytes, step: str, distcc: bool) -> None:
    argv = words.split()
    assert step_of(argv[0], argv) == step
    assert is_compilation(argv[0], argv) == distcc


@pytest.mark.parametrize(
    ("words", "cwd"),
    [
        (b"gcc -c -o ztest12.o ztest12.c", b"/work"),
        (b"cc -o CMakeFiles/cmTC_1a2b.dir/test.c.o -c t.c", b"/work/CMakeFiles/CMakeTmp"),
        (b"gcc CMakeCCompilerId.c", b"/work/CMakeFiles/3.25.1/CompilerIdC"),
        (b"gcc -c conftest.c", b"/"),
    ],
)
def test_what_is_only_tried_is_configure(words: bytes, cwd: bytes) -> None:
    argv = words.split()
    assert step_of(argv[0], argv, cwd) == "configure"


def test_debug_information_has_columns() -> None:
    assert shows_columns([b"gcc", b"-ggdb3", b"-c"])
    assert shows_columns([b"gcc", b"-fsanitize=undefined", b"-c"])
    assert not shows_columns([b"gcc", b"-g0", b"-c", b"g.c"])


def test_a_call_of_distcc_is_moved_into_the_view() -> None:
    words = (b"/usr/bin/gcc", b"-O2", b"-c", b"-o", b"x.o", b"-include", b"p.c", b"s.d/x.C")
    argv, name = DistccCall(words, b"int x;").moved(b"/s", b"/o")
    assert (argv[3:], name) == ([b"-o", b"/o", b"-include", b"p.c", b"/s.ii"], b"/s.ii")
    for broken in (
        (b"gcc", b"-c", b"a.c"),
        (b"gcc", b"-c", b"a.c", b"b.c", b"-o", b"o"),
        (b"gcc",),
    ):
        with pytest.raises(ProtocolError):
            DistccCall(broken, b"").moved(b"/s", b"/o")


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"DIST00000002",
        b"DIST00000001ARGC00000000",
        b"DIST00000001ARGC00000001ARGVffffffff",
        b"DIST00000001ARGC00000001ARGV00000003a\0bDOTI00000000",
        b"DIST00000001ARGC00000001ARGV00000001aDOTI00000009short",
        b"DIST0000000",
    ],
)
def test_what_is_not_distccs_protocol_is_refused(broken: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(broken)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError):
            read_call(ours)


def test_distccs_protocol_is_read_and_answered() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"DIST00000001ARGC00000001ARGV00000003gccDOTI00000002xy")
        assert read_call(ours) == DistccCall((b"gcc",), b"xy")
    answer = encode_answer(256, b"e", b"", b"obj")
    assert answer == b"DONE00000001STAT00000100SERR00000001eSOUT00000000DOTO00000003obj"


class SlowTools:
    """Stands for Tools: its tool runs until it is killed."""

    distcc_only = False

    def __init__(self) -> None:
        self.began = threading.Event()
        self.killed = threading.Event()

    def plan(self, request: Request, caller: object, *, remote: bool) -> Plan:
        call = Call(request.program, tuple(request.argv), {}, b"/", ())
        return Plan(cast(Toolchain, None), call, None, makes_objects=True, reads_stdin=False)

    def run(self, plan: Plan, stdin: object, register: Register) -> StepDown:
        register(self.killed.set)
        self.began.set()
        assert self.killed.wait(FOREVER)
        return StepDown("killed")


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_caller_of_distcc_that_ends_takes_its_compiler_along(how: int) -> None:
    """Its own end is that of what it says; a lost guest's closes both ways."""
    tools = SlowTools()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        distcc = Distcc(cast(Tools, tools), 2)
        serving = threading.Thread(target=distcc.serve, args=(ours, {}, 1))
        serving.start()
        words = (b"gcc", b"-c", b"x.c", b"-o", b"x.o")
        said = b"".join(b"ARGV%08x%s" % (len(word), word) for word in words)
        theirs.sendall(b"DIST00000001ARGC%08x%sDOTI00000002xy" % (len(words), said))
        assert tools.began.wait(FOREVER)
        assert not tools.killed.is_set()
        theirs.shutdown(how)
        serving.join(FOREVER)
        assert tools.killed.is_set()


def request(*changes: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    whole = {b"N": b"gcc", b"P": b"/usr/bin/gcc", b"C": b"/work", b"U": b"\x12\0\0\0"}
    whole.update(changes)
    words = [(b"A", b"gcc"), (b"A", b"\xff x"), (b"E", b"A=1=2"), (b"E", b"A=3"), (b"G", b"")]
    return [*whole.items(), *words]


def test_a_request_is_what_the_stub_has_said() -> None:
    made = Request.collect(iter(request()))
    assert made.argv == (b"gcc", b"\xff x")
    assert (made.umask, made.environment) == (0o022, {b"A": b"1=2"})


@pytest.mark.parametrize(
    "broken",
    [
        request((b"U", b"1")),
        request((b"P", b"a\0b")),
        request()[1:],
        request()[:-1],
        [(b"G", b"")],
        [(b"?", b""), *request()],
        [(b"A", bytes(10)), *request()],
        [*[(b"E", b"x" * 60000)] * 20, *request()],
    ],
)
def test_what_is_no_request_is_refused(broken: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ProtocolError):
        Request.collect(iter(broken))


def test_a_caller_that_asks_for_nothing_breaks_no_rule() -> None:
    """It was killed, or keeps a request that is too large: its own program runs then."""
    with pytest.raises(OffloadError):
        Request.collect(iter(()))


def test_messages_come_as_they_went_however_they_are_cut() -> None:
    sent = [message(b"A", b""), *pieces(b"d", bytes(100_000)), number(b"x", 3)]
    stream = b"".join(sent)
    for size in (1, 7, 65536, len(stream)):
        decoder = Decoder()
        cut = [stream[at : at + size] for at in range(0, len(stream), size)]
        found = [one for part in cut for one in decoder.feed(part)]
        assert [kind for kind, _ in found] == [b"A", b"d", b"d", b"x"]
        assert found[-1][1] == b"\3\0\0\0"
    with pytest.raises(ProtocolError):
        list(Decoder().feed(b"d\xff\xff\xff\xff"))


def entry(where: str, step: str = "compile", **facts: object) -> Entry:
    return Entry(where, "g0", 1, "gcc", step, ["gcc"], "/work", 0, **facts)  # type: ignore[arg-type]


def test_a_ledger_is_read_back_and_summed_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "l.jsonl")
    ledger.add(entry("offload", seconds=2.0, host=1.0, waited=0.25, share=0.5, written=10))
    ledger.add(entry("guest", "link", reason="because", seconds=5.0))
    ledger.add(entry("distcc", seconds=1.0))
    ledger.add(entry("guest", "link", reason="because"))
    ledger.count(1, "offload")
    ledger.count(1, "guest")
    ledger.count(2, "guest")
    assert ledger.tally(1) == {"offload": 1, "guest": 1}
    ledger.close()
    with open(ledger.path, "ab") as file:
        file.write(b'{"where": "cut o')
    summary = summarize(read_ledger(ledger.path))
    assert (summary.calls, summary.percent_accelerated) == (4, 50.0)
    assert summary.reasons == [("because", 2)]
    assert summary.steps["compile"] == {
        "calls": 2, "local": 0, "seconds": 3.0, "host": 1.0, "waited": 0.25, "transfer": 1.75,
        "share": 0.5,
    }  # fmt: skip
    assert summary.steps["link"]["local"] == 2
    assert summary.written == 10
    assert summarize([]).percent_accelerated == 0


def test_a_broken_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with pytest.raises(OffloadError, match="No such file"):
        read_ledger(path)
    path.write_text('{"where": 1}\n')
    with pytest.raises(OffloadError, match="line 1"):
        read_ledger(path)


def test_the_time_of_a_build_is_split_without_a_rest() -> None:
    # A configure script from 1 to 5, a try of which runs on while make already compiles.
    made = [
        entry("offload", "configure", begin=1.0, seconds=0.5),
        entry("offload", "ask", begin=2.0, seconds=0.5),
        entry("offload", "configure", begin=4.0, seconds=1.0, share=0.25),
        entry("offload", "compile", begin=6.0, seconds=2.0, share=1.0),
        entry("guest", "link", begin=7.0, seconds=2.0),
        entry("offload", "ask", begin=9.5, seconds=0.25),
        entry("offload", "archive", begin=20.0, seconds=1.0),
    ]
    parts = split(made, 0.0, 10.0)
    assert parts == {"configure": 3.75, "compile": 0.75, "link": 1.5, "9p": 1.0, "other": 3.0}
    assert sum(parts.values()) == 10.0
    assert split([], 3.0, 5.0)["other"] == 2.0


def test_builds_of_a_ledger_are_told_apart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    for session in (1.0, 2.0):
        for _ in range(int(session)):
            ledger.add(entry("offload", session=session, begin=5.0, seconds=1.0, host=0.5))
        ledger.add(entry("guest", session=session, begin=6.0, seconds=1.0, reason="because"))
        ledger.add(JobRecord("g0", 1, ["make"], 0, 5.0 - session, 4.0, session))
    ledger.close()
    second, first = builds_of(read_ledger(ledger.path), read_jobs(ledger.path))
    assert (first.name, first.calls, first.local, first.reasons) == ("g0:1", 2, 1, [("because", 1)])
    assert (second.calls, second.saved) == (3, 28.0)
    assert second.as_json()["parts"]["compile"] == 2.0
    with open(ledger.path, "ab") as file:
        file.write(b'{"guest": "g0"}\n')
    with pytest.raises(OffloadError, match="line 8 is no entry: it lacks"):
        read_jobs(ledger.path)


def test_slots_bound_what_runs_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    running, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        # Each with an object of its own, as processes would have.
        for _ in range(20):
            with Slots(tmp_path, 3).taken():
                with lock:
                    running += 1
                    most = max(most, running)
                with lock:
                    running -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 1 <= most <= 3
    assert running == 0


def test_a_guest_that_others_leave_no_slot_gets_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as they do: what they run may have no end."""

    def limit(**seconds: float) -> None:
        for name, value in seconds.items():
            monkeypatch.setattr(f"guestctl.offload.slots._{name}", value)

    def has_none(guest: Slots) -> None:
        with pytest.raises(OffloadError, match="no slot became free"), guest.taken():
            pass

    tmp_path.chmod(0o700)
    limit(PATIENCE=0.1)
    bomber, one, other = (Slots(tmp_path, 2) for _ in range(3))
    with bomber.taken(), bomber.taken():
        with one.taken() as slot, other.taken():
            assert slot.waited > 0.1
            # No guest has two, and in all there are no more than twice as many.
            limit(DEADLINE=0.3)
            for guest in (bomber, one, other, Slots(tmp_path, 2)):
                has_none(guest)
        limit(DEADLINE=FOREVER, PATIENCE=2 * FOREVER)
        with one.taken():  # and the next one without waiting for long
            assert one.free() == 0
    with one.taken():  # one of the usual
        assert one.free() == 1
    with bomber.taken(), bomber.taken():
        limit(DEADLINE=0.3)
        has_none(one)


def test_slots_are_shared_between_guests(tmp_path: Path) -> None:
    """As many callers of each wait all the time: each guest has about half of the turns."""
    tmp_path.chmod(0o700)
    turns = {"one": 0, "other": 0}
    guests = {name: Slots(tmp_path, 2) for name in turns}
    lock = threading.Lock()
    enough = threading.Event()
    everybody = threading.Barrier(8)

    def work(name: str) -> None:
        everybody.wait(FOREVER)
        while not enough.is_set():
            with guests[name].taken():
                time.sleep(0.001)
            with lock:
                turns[name] += 1
                if sum(turns.values()) >= 300:
                    enough.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in turns for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FOREVER)
    assert min(turns.values()) >= 60, turns
